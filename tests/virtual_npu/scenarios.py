"""Trains as the command line does, several times in one process, and writes what came of it:
python scenarios.py FOLDER DEVICE NAME...

FOLDER/plan.json lists the runs, those of the names are done, FOLDER/DEVICE-NAME.json gets the
losses. A process that is started once for many runs costs minutes less than one for each; runs of
several ranks are started one by one, since the same processes meet only once.
"""

import json
import sys
from pathlib import Path

import torch


def main(folder: Path, device: str, names: list[str]) -> None:
    from mindspeed_llm.cli import train
    from mindspeed_llm.logging import rank

    for run in json.loads((folder / "plan.json").read_text(encoding="utf-8")):
        if run["name"] not in names:
            continue
        place = folder / f"{device}-{run['name']}"
        argv = [
            word.replace("{out}", str(place)).replace("{device}", device) for word in run["argv"]
        ]
        if device == "cpu":  # nothing falls back there, so the flag is refused
            argv = [word for word in argv if word != "--require-fused"]
        _mark(run["name"])
        assert train.main([*argv, "--device", device]) == 0
        _leave_groups()
        if rank() == 0:
            lines = (place / "logs/train.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
            (folder / f"{device}-{run['name']}.json").write_text(json.dumps(losses))


def _mark(name: str) -> None:
    """A line in the record of fused operators."""
    journal = sys.modules.get("rig.journal")
    if journal is not None:
        journal.entries.append({"run": name})


def _leave_groups() -> None:
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.destroy_model_parallel()
    tensor_parallel.random._CUDA_RNG_STATE_TRACKER = None
    tensor_parallel.random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
