"""What megatron-core's own functions find in a written torch_dist checkpoint; see test_torch_dist
for loading it into a model."""

import argparse

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore
from mindspeed_llm.checkpoint.store import Planned
from mindspeed_llm.checkpoint.torch_dist_writer import write_torch_dist
from mindspeed_llm.errors import CheckpointError


def test_one_tensor_in_memory_and_its_values(tmp_path):
    plan = [Planned("decoder.layers.a", "model", (2, 3, 4), torch.bfloat16, (i, 0, 0), (1, 3, 4))
            for i in range(2)]  # fmt: skip
    plan.append(Planned("b", "model", (5,), torch.float32, (0,), (5,)))
    asked, done = [], []

    def fetch(planned):
        asked.append((planned.key, planned.offset))
        return torch.full(planned.shape, len(asked) + 0.25).view(-1).split(5)

    write_torch_dist(tmp_path, plan, fetch, num_layers=2, on_bytes=done.append)
    assert len(asked) == 3 and sorted(done) == [4, 4, 10, 10, 10, 10, 20]

    from torch.distributed.checkpoint import FileSystemReader, load

    found = {"decoder.layers.a": torch.zeros(2, 3, 4, dtype=torch.bfloat16), "b": torch.zeros(5)}
    load(found, storage_reader=FileSystemReader(tmp_path), no_dist=True)
    order = {place: number + 1.25 for number, place in enumerate(asked)}
    assert (found["b"] == order["b", (0,)]).all()
    for i in range(2):
        assert (found["decoder.layers.a"][i] == order["decoder.layers.a", (i, 0, 0)]).all()


def test_values_that_do_not_fit_and_a_failing_source(tmp_path):
    plan = [Planned("w", "model", (2,), torch.float16, (0,), (2,))]
    with pytest.raises(CheckpointError, match="w: has values beyond fp16"):
        write_torch_dist(tmp_path, plan, lambda p: [torch.full((2,), 1e6)], num_layers=0,
                         on_bytes=lambda n: None)  # fmt: skip


def test_common_state_and_nothing_left_of_a_failure(tmp_path, tiny_hf_model, monkeypatch):
    source = tiny_hf_model("llama", tmp_path / "hf")
    done = hf_to_mcore(source, tmp_path / "mcore", ckpt_format="torch_dist", dtype=torch.bfloat16)
    with torch.serialization.safe_globals([argparse.Namespace]):
        common = torch.load(done.path / "common.pt", weights_only=True)
    assert common["checkpoint_version"] == 3.0 and common["iteration"] == 0
    assert {p.name for p in done.path.iterdir()} >= {"hf", ".metadata", "metadata.json"}
    from mindspeed_llm.checkpoint import tensor_file, torch_dist_writer

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch_dist_writer, "cast", full)
    with pytest.raises(CheckpointError, match="No space left.*free space"):
        hf_to_mcore(source, tmp_path / "second", ckpt_format="torch_dist")
    assert not (tmp_path / "second").exists() and tensor_file.cast is not full
    assert load_file(source / "model.safetensors")
