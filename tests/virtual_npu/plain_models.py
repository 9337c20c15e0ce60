"""Trains GPTModels of megatron-core's own specifications, as other people's scripts build them,
after the one import, and writes what came of it:  python plain_models.py DEVICE OUT JOBS

JOBS is JSON, one object of tiny_gpt's options for each run, with a name and perhaps `packed`.
"""

import json
import os
import sys
from pathlib import Path

import torch

import mindspeed_llm.megatron_adaptor  # noqa: F401  the one line

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
import tiny_gpt


def packed_step(batches, model):
    """The same rows, one behind the other in a single one."""
    from megatron.core.packed_seq_params import PackedSeqParams

    rows = next(batches)
    bounds = torch.arange(0, tiny_gpt.BATCH + 1, dtype=torch.int32) * tiny_gpt.LENGTH
    longest = {"max_seqlen_q": tiny_gpt.LENGTH, "max_seqlen_kv": tiny_gpt.LENGTH}
    packed = PackedSeqParams("thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, **longest)
    where = torch.arange(tiny_gpt.LENGTH, device=rows.device).repeat(tiny_gpt.BATCH)[None]
    labels = rows[:, 1:].reshape(1, -1)
    out = model(rows[:, :-1].reshape(1, -1), where, None, labels=labels, packed_seq_params=packed)
    return out, tiny_gpt.loss_of


def main(device: str, out: str, jobs: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    if device == "npu":
        torch.cuda.set_device(rank)
        device = f"cuda:{rank}"  # as scripts that know no NPU say
    torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    step, found = tiny_gpt.forward_step, {}
    for job in json.loads(jobs):
        name = job.pop("name")
        journal = sys.modules.get("rig.journal")
        if journal is not None:
            journal.entries.append({"run": name})
        tiny_gpt.forward_step = packed_step if job.pop("packed", False) else step
        found[name] = tiny_gpt.run(tiny_gpt.DEFAULTS | job | {"device": device})
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
