#!/usr/bin/env bash
# Talk to SmolLM2 135M in the terminal: base, chat or tuned weights.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

CHECKPOINT=${CHECKPOINT:-$ROOT/ckpt/smollm2/}
TOKENIZER_PATH=${TOKENIZER_PATH:-$ROOT/model_from_hf/smollm2_hf/}
TP=${TP:-1}
PP=${PP:-1}
PROMPT_TYPE=${PROMPT_TYPE:-smollm2}
HISTORY_TURNS=${HISTORY_TURNS:-16}  # earlier turns that the model sees
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-128}

choose_device
launch "$ROOT/inference.py" \
    --task chat \
    --load "$CHECKPOINT" \
    --tokenizer-name-or-path "$TOKENIZER_PATH" \
    --prompt-type "$PROMPT_TYPE" \
    --tensor-model-parallel-size "$TP" \
    --pipeline-model-parallel-size "$PP" \
    --history-turns "$HISTORY_TURNS" \
    --max-new-tokens "$MAX_NEW_TOKENS" \
    ${PRECISION_FLAG:+"$PRECISION_FLAG"} \
    "$@"
