#!/usr/bin/env bash
# A tuned SmolLM2 135M -> a Hugging Face directory for transformers, vLLM and others.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

CHECKPOINT=${CHECKPOINT:-$ROOT/ckpt/smollm2/}
HF_SAVE_DIR=${HF_SAVE_DIR:-$ROOT/model_weights/smollm2-135m-tuned-hf/}

"$PYTHON" "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --model-type-hf smollm2 \
    --load-model-type mg \
    --save-model-type hf \
    --load-dir "$CHECKPOINT" \
    --save-dir "$HF_SAVE_DIR" \
    "$@"
