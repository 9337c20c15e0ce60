# What the launchers share; they source it. Every setting is `NAME=${NAME:-default}`: set it in front of
# the command, e.g.  DEVICE=cpu TP=2 bash examples/mcore/gemma2/tune_gemma2_9b_full_ptd.sh --train-iters 10
# (further arguments go to the program, and a flag that is repeated there wins).

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-python}
# The launchers of this checkout run the library of this checkout.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

NNODES=${NNODES:-1}               # machines
NODE_RANK=${NODE_RANK:-0}         # number of this machine
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-6000}  # of several machines; one machine takes a free port
LOG_DIR=${LOG_DIR:-$ROOT/logs}
PACK=${PACK:-}                    # 1: data and training share rows of SEQ_LENGTH among conversations
PACK_FLAG=${PACK:+--pack}
LENGTHS_FLAG=$([[ -n $PACK ]] || echo --variable-seq-lengths)

# CANN's environment, where there is an NPU: torch loads torch_npu by itself, so every step needs it.
ASCEND_SET_ENV=${ASCEND_SET_ENV:-/usr/local/Ascend/ascend-toolkit/set_env.sh}
if [[ ${DEVICE:-} == npu ]] || { [[ -z ${DEVICE:-} ]] && compgen -G "/dev/davinci[0-9]*" >/dev/null; }; then
    if [[ -f $ASCEND_SET_ENV ]]; then
        set +u  # that file reads variables that may be unset
        source "$ASCEND_SET_ENV"
        set -u
    else
        echo "note: no $ASCEND_SET_ENV; set ASCEND_SET_ENV if torch_npu does not load" >&2
    fi
fi

# Choose DEVICE (npu, cuda, cpu) unless it is given, and say so.
choose_device() {
    if [[ -z ${DEVICE:-} ]]; then
        DEVICE=$("$PYTHON" -c 'from mindspeed_llm.device.detect import detect; print(detect().kind)')
    fi
    export DEVICE
    # CPUs compute fp32 faster than bf16; accelerators the other way round.
    PRECISION=${PRECISION:-$([[ $DEVICE == cpu ]] && echo fp32 || echo bf16)}
    case $PRECISION in
        bf16) PRECISION_FLAG=--bf16 ;;
        fp32) PRECISION_FLAG= ;;
        *) echo "error: PRECISION is '$PRECISION'; expected bf16 or fp32" >&2; exit 2 ;;
    esac
    echo "device: $DEVICE, $PRECISION" >&2
}

# launch PROGRAM FLAG...: TP x PP x CP processes (or NPROC) on each of NNODES machines. Takes the place of the
# shell, so it comes last in a script, signals reach the program and its exit code is the script's.
launch() {
    local processes=${NPROC:-$((${TP:-1} * ${PP:-1} * ${CP:-1} / NNODES))} meet=(--standalone)
    if ((NNODES > 1)); then
        meet=(--node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
    fi
    exec "$PYTHON" -m mindspeed_llm.cli.launch --nproc-per-node "$processes" --nnodes "$NNODES" \
        "${meet[@]}" "$@"
}

# The same, with all output also in LOG_DIR. What copies it outlives the signals that end the program.
launch_logged() {
    local log
    log=$LOG_DIR/$(basename "$0" .sh).log
    mkdir -p "$LOG_DIR"
    echo "log: $log" >&2
    exec > >(trap '' INT TERM USR1; exec tee "$log") 2>&1
    launch "$@"
}
