#!/usr/bin/env bash
# The tests on virtual NPUs: the real torch_npu wheel, without hardware (README.md here). They have an
# environment of their own, since torch_npu changes torch where it is imported, layered over that of the
# other tests. Arguments go to pytest:  bash tests/virtual_npu/run.sh -k window
#
# Settings: VENV (the other tests' environment, made by tests/run.sh), NPU_VENV (default VENV-npu),
# TORCH_NPU_SPEC (torch-npu==2.13.0, which needs that torch). Python 3.11 on x86_64, gcc, g++, binutils.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$ROOT"

VENV=${VENV:-$ROOT/.venv-tests}
NPU_VENV=${NPU_VENV:-$VENV-npu}
TORCH_NPU_SPEC=${TORCH_NPU_SPEC:-torch-npu==2.13.0}

VENV=$VENV bash tests/run.sh --version >/dev/null
if [[ ! -f $NPU_VENV/.installed || $(<"$NPU_VENV/.installed") != "$TORCH_NPU_SPEC $ROOT" ]]; then
    echo "installing into $NPU_VENV ..." >&2
    "$VENV/bin/python" -c 'import platform, sys; sys.exit((sys.version_info[:2], platform.machine()) != ((3, 11), "x86_64"))' ||
        { echo "error: the virtual NPU needs Python 3.11 on x86_64; set PYTHON=python3.11" >&2; exit 2; }
    "$VENV/bin/python" -m venv "$NPU_VENV"
    site=$("$NPU_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    # The other environment's packages, then what starts the device in every process.
    "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$site/a_base.pth"
    "$NPU_VENV/bin/python" -m pip install --quiet --no-deps "$TORCH_NPU_SPEC"
    printf '%s\nimport rig.start\n' "$ROOT/tests/virtual_npu" >"$site/b_virtual_npu.pth"
    printf '%s' "$TORCH_NPU_SPEC $ROOT" >"$NPU_VENV/.installed"
fi
"$NPU_VENV/bin/python" -m rig.cann >/dev/null

MINDSPEED_LLM_MCORE_PATHS=$(printf '%s:' "$VENV"/megatron-core-*)
export MINDSPEED_LLM_MCORE_PATHS=${MINDSPEED_LLM_MCORE_PATHS%:}
export VIRTUAL_NPU=1 CPU_PYTHON=$VENV/bin/python PYTHONPATH=$ROOT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
exec "$NPU_VENV/bin/python" -m pytest -m "not network and not cuda" tests/virtual_npu "$@"
