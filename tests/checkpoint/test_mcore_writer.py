"""A target is checked before a byte is read; between formats nothing changes."""

import pytest
import torch
from safetensors.torch import load_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf, source_to_mcore
from mindspeed_llm.checkpoint.directory import find_checkpoint, model_directory
from mindspeed_llm.checkpoint.mcore_writer import Target, check_mcore_target
from mindspeed_llm.checkpoint.weights import open_base
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.models.registry import read_model


def again(root, target, **options):
    directory = model_directory(root)
    source, _ = open_base(root, trust_pickle=True)
    return source_to_mcore(source, target, model=read_model(directory), documents=directory,
                           **options)  # fmt: skip


def test_from_format_to_format(tmp_path, tiny_hf_model):
    source = tiny_hf_model("qwen2", tmp_path / "hf")
    hf_to_mcore(source, tmp_path / "a")
    layout = ParallelConfig(tensor_model_parallel_size=2)
    again(tmp_path / "a", Target(root=tmp_path / "b", ckpt_format="torch_dist"))
    done = again(tmp_path / "b", Target(root=tmp_path / "c", parallel=layout))
    assert find_checkpoint(tmp_path / "c").common()["about"]["layout"]["tensor_parallel"] == 2
    assert done.path == tmp_path / "c" / "release"
    mcore_to_hf(tmp_path / "c", tmp_path / "back")
    old, new = (load_file(d / "model.safetensors") for d in (source, tmp_path / "back"))
    assert old.keys() == new.keys() and all(torch.equal(old[n], new[n]) for n in old)
    again(tmp_path / "c", Target(root=tmp_path / "d"), dtype=torch.bfloat16)
    mcore_to_hf(tmp_path / "d", tmp_path / "half")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(half[n], old[n].bfloat16()) for n in old)


def test_target_is_checked_first(tmp_path, tiny_hf_model):
    model = read_model(tiny_hf_model("llama", tmp_path / "hf"))
    with pytest.raises(ConfigError, match="divide"):
        Target(root=tmp_path / "a", parallel=ParallelConfig(pipeline_model_parallel_size=3)).check(
            model
        )
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("")
    with pytest.raises(CheckpointError, match="not empty"):
        check_mcore_target(tmp_path / "a", overwrite=True)
