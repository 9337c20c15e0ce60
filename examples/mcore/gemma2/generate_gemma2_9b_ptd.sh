#!/usr/bin/env bash
# Answer prompts with Gemma 2 9B, from --prompt, --prompts-file or a pipe.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

CHECKPOINT=${CHECKPOINT:-$ROOT/ckpt/}
TOKENIZER_PATH=${TOKENIZER_PATH:-$ROOT/model_from_hf/gemma2_hf/}
TASK=${TASK:-greedy}  # or do_sample
TP=${TP:-8}
PP=${PP:-1}
PROMPT_TYPE=${PROMPT_TYPE:-gemma}
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-256}

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
