"""Owns `mindspeed-llm verify`, and running it in a process of its own for commands that export."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.verify import VerifyConfig
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.models.registry import read_model
from mindspeed_llm.models.shapes import count_parameters

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
             "MASTER_PORT")  # fmt: skip
_MEMORY = Path("/proc/meminfo")


def main(argv: Sequence[str]) -> int:
    """Compare as the flags say; raises UserError where the two differ."""
    (config,) = parse(
        argv,
        VerifyConfig,
        prog="mindspeed-llm verify",
        description="Compare a Hugging Face export with the checkpoint it was made of.",
    )
    # Late: --help answers at once, and megatron-core is patched before anything imports it.
    from mindspeed_llm.device.detect import detect
    from mindspeed_llm.patches import engine

    device = detect("cpu")
    engine.apply(device)

    from mindspeed_llm.device.runtime import init_distributed, shutdown_distributed
    from mindspeed_llm.inference.compare import compare

    init_distributed(device)
    done = compare(config.load, config.hf_dir, trust_pickle=config.trust_pickle)
    shutdown_distributed()
    print(f"the same model: {done.count} logits of transformers and of the checkpoint differ by at "
          f"most {done.difference:.2g} (largest logit {done.largest:.3g})")  # fmt: skip
    return 0


def checker(
    checkpoint: Path, model_dir: Path, *, trust_pickle: bool = False
) -> Callable[[Path], None]:
    """For `mcore_to_hf`: run `mindspeed-llm verify` on the directory it made, print what it says.

    A process of its own, because patches and process groups of this one may be others, and the
    memory of two models never adds up.

    Args:
        checkpoint: that is exported.
        model_dir: directory of its config.json, for the memory that will be needed.
        trust_pickle: the user allows pickled weights of others.

    Raises:
        ConfigError: the machine has too little free memory; before anything is written.
    """
    # One model at a time, in float32, and something beside it.
    needed, free = int(4.4 * count_parameters(read_model(model_dir))), _free_bytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"comparing the export's logits needs {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} are free; use a larger machine, or give --no-verify"
        )

    def check(exported: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "mindspeed_llm.cli.main", "verify",
                   "--load", str(checkpoint), "--hf-dir", str(exported)]  # fmt: skip
        command += ["--trust-pickle"] if trust_pickle else []
        environment = {k: v for k, v in os.environ.items() if k not in _LAUNCHED}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error: " in line]
            said = lines[-1].split("error: ", 1)[1] if lines else done.stderr[-2000:]
            raise CheckpointError(f"the export was taken back: {said}")
        print(done.stdout.strip())

    return check


def _free_bytes() -> int | None:
    """Memory that the system can give without swapping; None where it does not say."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    table = dict(line.split(":", 1) for line in lines if ":" in line)
    words = table.get("MemAvailable", "").split()
    return int(words[0]) * 1024 if words else None
