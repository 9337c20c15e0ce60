#!/usr/bin/env bash
# Conversations (Alpaca style) -> the six files that tune_gemma2_9b_full_ptd.sh reads.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

INPUT=${INPUT:-$ROOT/dataset/train-00000-of-00001.parquet}
TOKENIZER_MODEL=${TOKENIZER_MODEL:-$ROOT/model_from_hf/gemma2_hf/}
DATA_PATH=${DATA_PATH:-$ROOT/finetune_dataset/alpaca}
HANDLER=${HANDLER:-AlpacaStyleInstructionHandler}
PROMPT_TYPE=${PROMPT_TYPE:-gemma}
MAP_KEYS=${MAP_KEYS:-'{"history":"histories"}'}
SEQ_LENGTH=${SEQ_LENGTH:-8192}
WORKERS=${WORKERS:-4}
LOG_INTERVAL=${LOG_INTERVAL:-1000}

mkdir -p "$(dirname "$DATA_PATH")"
"$PYTHON" "$ROOT/preprocess_data.py" \
    --input "$INPUT" \
    --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path "$TOKENIZER_MODEL" \
    --output-prefix "$DATA_PATH" \
    --handler-name "$HANDLER" \
    --prompt-type "$PROMPT_TYPE" \
    --map-keys "$MAP_KEYS" \
    --seq-length "$SEQ_LENGTH" \
    --workers "$WORKERS" \
    --log-interval "$LOG_INTERVAL" \
    ${PACK_FLAG:+"$PACK_FLAG"} \
    "$@"
