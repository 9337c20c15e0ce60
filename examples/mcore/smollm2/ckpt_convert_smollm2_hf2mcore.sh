#!/usr/bin/env bash
# Hugging Face weights of SmolLM2 135M -> the checkpoint that tuning and chat load.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

HF_DIR=${HF_DIR:-$ROOT/model_from_hf/smollm2_hf/}
MCORE_DIR=${MCORE_DIR:-$ROOT/model_weights/smollm2-135m-mcore/}
TP=${TP:-1}  # checked against the model and noted; the checkpoint loads at any layout
PP=${PP:-1}

"$PYTHON" "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --model-type-hf smollm2 \
    --load-model-type hf \
    --save-model-type mg \
    --target-tensor-parallel-size "$TP" \
    --target-pipeline-parallel-size "$PP" \
    --load-dir "$HF_DIR" \
    --save-dir "$MCORE_DIR" \
    "$@"
