"""One LoRA run, and all the ways out of it: loaded, merged, exported, at another layout; all give
the logits of base and adapter."""

import shutil

import pytest
import torch

from mindspeed_llm.checkpoint.convert import hf_to_mcore
from mindspeed_llm.checkpoint.merge import export_adapter, merge_to_hf, merge_to_mcore
from mindspeed_llm.checkpoint.weights import Place, locate
from mindspeed_llm.errors import CheckpointError

IDS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]]


def train_lora(flags, ids):
    """Train, save, and give the logits of the model with its adapters."""
    import torch

    from mindspeed_llm.cli.train import read_settings
    from mindspeed_llm.training.inputs import read_inputs
    from mindspeed_llm.training.loop import train
    from mindspeed_llm.training.setup import prepare

    settings, architecture = read_settings(flags)
    job = prepare(settings, read_inputs(settings, architecture, check_tokenizer=False),
                  torch.device("cpu"))  # fmt: skip
    train(job)
    model, ids = job.replica.model[0].eval(), torch.tensor(ids)
    job.replica.loss.remove()
    with torch.no_grad():
        logits = model(ids, torch.arange(ids.shape[1])[None], None)
    return logits.reshape(1, ids.shape[1], -1)[..., :481].tolist()


def load(ids, *places):
    """At TP 2: logits of the weights at each (load, lora_load), or the error."""
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint.directory import model_directory
    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.errors import CheckpointError
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel(2, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    ids = torch.tensor(ids)
    results = []
    for root, adapter in places:
        gpt = build_model(read_model(model_directory(Path(root))),
                          ParallelConfig(tensor_model_parallel_size=2), dtype=torch.float32,
                          parallel_output=False).eval()  # fmt: skip
        try:
            load_weights(Path(root), [gpt], adapter=adapter and Path(adapter))
        except CheckpointError as error:
            results.append(str(error))
            continue
        with torch.no_grad():
            logits = gpt(ids, torch.arange(ids.shape[1])[None], None)
        results.append(logits[..., :481].tolist())
    return results


@pytest.fixture
def tuned(tmp_path, run_ranks, tiny_chat_model, tiny_sft_data, tiny_tokenizer_dir):
    """Base and LoRA checkpoint in `tmp_path`, and the logits of the tuned model."""
    shutil.copytree(tiny_chat_model("gemma2"), tmp_path / "base")
    prefix = tiny_sft_data(tmp_path / "rows", tiny_tokenizer_dir)
    flags = ["--load", str(tmp_path / "base"), "--save", str(tmp_path / "lora"), "--data-path",
             str(prefix), "--seq-length", "32", "--train-iters", "3", "--global-batch-size", "4",
             "--lr", "1e-2", "--lr-decay-style", "constant", "--lora-r", "4"]  # fmt: skip
    (logits,) = run_ranks(1, train_lora, flags, IDS)
    return torch.tensor(logits)


def hf_logits(directory, adapter=None):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits


def test_every_way_out_gives_the_logits_of_base_and_adapter(
    tmp_path, run_ranks, tuned, tiny_hf_model
):
    base, lora = tmp_path / "base", tmp_path / "lora"
    size = sum(p.stat().st_size for p in lora.rglob("*.safetensors") if "model-" in p.name)
    assert 50 * size < 10 * sum(p.stat().st_size for p in base.glob("*.safetensors")), (
        "adapter only"
    )
    place = locate(lora)
    assert place == Place(base=base, adapter=lora)
    merge_to_hf(place, tmp_path / "merged_hf")
    merge_to_mcore(place, tmp_path / "merged_mcore")
    merge_to_mcore(place, tmp_path / "bf16", dtype=torch.bfloat16)
    export_adapter(place, tmp_path / "peft")
    hf_to_mcore(base, tmp_path / "mcore")
    tiny_hf_model("gemma2", tmp_path / "other", vocab_size=481, seed=1)

    def close(logits):
        torch.testing.assert_close(torch.as_tensor(logits), tuned, rtol=0, atol=1e-4)

    assert (hf_logits(base) - tuned).abs().max() > 0.05, "training has changed something"
    close(hf_logits(tmp_path / "merged_hf"))
    close(hf_logits(base, tmp_path / "peft"))
    ways = [(lora, None), (tmp_path / "merged_mcore", None), (tmp_path / "merged_hf", None),
            (tmp_path / "mcore", lora), (base, tmp_path / "peft"), (tmp_path / "bf16", None),
            (tmp_path / "other", lora)]  # fmt: skip
    ways = [(str(root), adapter and str(adapter)) for root, adapter in ways]
    *results, rounded, refused = run_ranks(2, load, IDS, *ways)[0]
    for logits in results:
        close(logits)
    assert 0 < (torch.tensor(rounded) - tuned).abs().max() < 0.2
    assert "not the weights that the adapter" in refused
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="where they are no more.*--load BASE --lora-load"):
        locate(lora)
    with pytest.raises(CheckpointError, match="is a LoRA checkpoint and --lora-load"):
        locate(lora, tmp_path / "peft")
    done = merge_to_hf(Place(base=tmp_path / "moved", adapter=lora), tmp_path / "again")
    assert done.path == tmp_path / "again"
    assert (done.path / "model.safetensors").read_bytes() == (
        tmp_path / "merged_hf/model.safetensors"
    ).read_bytes()
    with pytest.raises(CheckpointError, match="not the weights that the adapter"):
        merge_to_mcore(Place(base=tmp_path / "other", adapter=lora), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
