#!/usr/bin/env bash
# Answer prompts with SmolLM2 135M, from --prompt, --prompts-file or a pipe.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

CHECKPOINT=${CHECKPOINT:-$ROOT/ckpt/smollm2/}
TOKENIZER_PATH=${TOKENIZER_PATH:-$ROOT/model_from_hf/smollm2_hf/}
TASK=${TASK:-greedy}  # or do_sample
TP=${TP:-1}
PP=${PP:-1}
PROMPT_TYPE=${PROMPT_TYPE:-smollm2}
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-128}

choose_device
launch "$ROOT/inference.py" \
    --task "$TASK" \
    --load "$CHECKPOINT" \
    --tokenizer-name-or-path "$TOKENIZER_PATH" \
    --prompt-type "$PROMPT_TYPE" \
    --tensor-model-parallel-size "$TP" \
    --pipeline-model-parallel-size "$PP" \
    --max-new-tokens "$MAX_NEW_TOKENS" \
    ${PRECISION_FLAG:+"$PRECISION_FLAG"} \
    "$@"
