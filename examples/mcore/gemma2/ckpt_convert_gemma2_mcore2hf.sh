#!/usr/bin/env bash
# A tuned Gemma 2 9B -> a Hugging Face directory for transformers, vLLM and others.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

CHECKPOINT=${CHECKPOINT:-$ROOT/ckpt/}
HF_SAVE_DIR=${HF_SAVE_DIR:-$ROOT/model_weights/gemma2-9b-tuned-hf/}

"$PYTHON" "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --model-type-hf gemma2 \
    --load-model-type mg \
    --save-model-type hf \
    --load-dir "$CHECKPOINT" \
    --save-dir "$HF_SAVE_DIR" \
    "$@"
