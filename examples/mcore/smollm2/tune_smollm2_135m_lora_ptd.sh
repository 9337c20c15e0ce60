#!/usr/bin/env bash
# Multi-turn tuning of SmolLM2 135M with low-rank adapters. The architecture is read from the checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

DATA_PATH=${DATA_PATH:-$ROOT/finetune_dataset/smollm2}
CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-$ROOT/model_weights/smollm2-135m-mcore/}
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-$ROOT/ckpt/smollm2-lora/}
TOKENIZER_MODEL=${TOKENIZER_MODEL:-$ROOT/model_from_hf/smollm2_hf/}
TP=${TP:-1}
PP=${PP:-1}
CP=${CP:-1}
VPP=${VPP:-}  # layers of each chunk of an interleaved pipeline
SEQ_LENGTH=${SEQ_LENGTH:-1024}
MBS=${MBS:-2}
GBS=${GBS:-6}
TRAIN_ITERS=${TRAIN_ITERS:-40}
SAVE_INTERVAL=${SAVE_INTERVAL:-1000}
LR=${LR:-1e-3}
MIN_LR=${MIN_LR:-1e-4}
LORA_R=${LORA_R:-16}
LORA_ALPHA=${LORA_ALPHA:-32}
LORA_DROPOUT=${LORA_DROPOUT:-0}
LORA_TARGET_MODULES=${LORA_TARGET_MODULES:-linear_qkv linear_proj linear_fc1 linear_fc2}

choose_device
launch_logged "$ROOT/posttrain_gpt.py" \
    --stage sft --is-instruction-dataset --finetune ${LENGTHS_FLAG:+"$LENGTHS_FLAG"} \
    --load "$CKPT_LOAD_DIR" --save "$CKPT_SAVE_DIR" --save-interval "$SAVE_INTERVAL" \
    --data-path "$DATA_PATH" --tokenizer-name-or-path "$TOKENIZER_MODEL" \
    --tensor-model-parallel-size "$TP" --pipeline-model-parallel-size "$PP" \
    --context-parallel-size "$CP" ${VPP:+--num-layers-per-virtual-pipeline-stage "$VPP"} \
    --seq-length "$SEQ_LENGTH" --micro-batch-size "$MBS" --global-batch-size "$GBS" \
    --train-iters "$TRAIN_ITERS" --lr "$LR" --min-lr "$MIN_LR" --lr-decay-style cosine \
    --lr-warmup-fraction 0.1 --weight-decay 0.0 --adam-beta2 0.95 --clip-grad 1.0 \
    --lora-r "$LORA_R" --lora-alpha "$LORA_ALPHA" --lora-dropout "$LORA_DROPOUT" \
    --lora-target-modules $LORA_TARGET_MODULES \
    ${PRECISION_FLAG:+"$PRECISION_FLAG"} \
    "$@"
