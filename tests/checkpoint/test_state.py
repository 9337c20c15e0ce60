"""Save at one layout, go on at another; resume bit-equal; fail on all ranks or on none."""

import json
import re

import pytest
import torch

from mindspeed_llm.checkpoint.directory import TRACKER, find_checkpoint


def losses(phase):
    return torch.tensor(phase[0]["losses"], dtype=torch.float64)


def check(phases):
    errors = [rank["error"] for phase in phases for rank in phase if rank["error"]]
    assert not errors, errors


@pytest.fixture
def gemma2(tmp_path, tiny_hf_model):
    """Tied embedding, whose gradient has a bucket of its own with PP; odd vocabulary."""
    return tiny_hf_model("gemma2", tmp_path / "gemma2")


def test_saved_at_tp2_goes_on_at_every_layout(tmp_path, gemma2, train):
    root = str(tmp_path / "ck")
    first = {"tp": 2, "load": str(gemma2), "steps": 2, "save": root, "more": 2}
    again = [{"resume": root, "steps": 2, **layout} for layout in ({"tp": 2}, {"pp": 2}, {})]
    saved, same, pipeline, data = phases = train(2, gemma2, first, *again)
    check(phases)
    assert same[0]["losses"] == saved[0]["losses"][2:]
    assert [r["digest"] for r in same] == [r["digest"] for r in saved]
    (single,) = alone = train(1, gemma2, {"resume": root, "steps": 2})
    check(alone)
    for phase in (pipeline, data, single):
        torch.testing.assert_close(losses(phase), losses(saved)[2:], rtol=2e-5, atol=0)


def test_pipeline_with_several_buckets_goes_on_elsewhere(tmp_path, gemma2, train):
    """megatron-core's own gathering of the state mixes up parameters here."""
    root = str(tmp_path / "ck")
    first = {"pp": 2, "load": str(gemma2), "steps": 2, "save": root, "more": 2, "dropout": 0.1}
    plain = {"resume": root, "steps": 2}
    saved, same, quiet, other = phases = train(
        2, gemma2, first, {"pp": 2, "dropout": 0.1, **plain}, {"pp": 2, **plain}, {"tp": 2, **plain}
    )
    check(phases)
    assert same[0]["losses"] == saved[0]["losses"][2:], "dropout draws go on as well"
    assert [r["digest"] for r in same] == [r["digest"] for r in saved]
    torch.testing.assert_close(losses(other), losses(quiet), rtol=2e-5, atol=0)


@pytest.mark.parametrize("distributed", [True, False])
def test_bf16_goes_on_with_its_fp32_weights(tmp_path, tiny_hf_model, train, distributed):
    """Main weights in fp32 beside bf16 ones, biases, an output layer of its own, JSON state."""
    source = tiny_hf_model("llama", tmp_path / "llama", attention_bias=True)
    root = str(tmp_path / "ck")
    shared = {"bf16": True, "distributed": distributed, "dropout": 0.1, "bucket": 20_000}
    state = {"lr": 0.1 + 0.2, "seen": [1, {"a": None}]}
    first = {"load": str(source), "steps": 2, "save": root, "more": 2, "state": state, **shared}
    again = {"resume": root, "steps": 2, **shared}
    if distributed:
        phases = train(1, source, first) + train(1, source, again)
    else:  # the same process
        phases = train(1, source, first, again)
    check(phases)
    (saved,), (resumed,) = phases
    assert resumed["losses"] == saved["losses"][2:]
    assert resumed["digest"] == saved["digest"]
    assert resumed["state"] == {"step": 2} | state


def test_failing_rank_fails_all_and_the_former_checkpoint_stays(tmp_path, gemma2, train):
    root = tmp_path / "ck"
    good = {"tp": 2, "load": str(gemma2), "steps": 1, "save": str(root)}
    bad = {"tp": 2, "resume": str(root), "steps": 1, "save": str(root), "disk": 10_000}
    first, second, again = train(2, gemma2, good, bad, {"tp": 2, "resume": str(root), "steps": 1})
    check([first, again])
    assert all("rank 1:" in r["error"] and "cannot write" in r["error"] for r in second), second
    assert sorted(p.name for p in root.iterdir()) == ["iter_0000001", TRACKER]


def test_what_cannot_be_resumed_is_said_before_anything_changes(
    tmp_path, gemma2, tiny_hf_model, train
):
    """Each in one phase of one process: the message, the same on both ranks."""
    from mindspeed_llm.checkpoint.convert import hf_to_mcore

    smaller = tiny_hf_model("gemma2", tmp_path / "smaller", num_hidden_layers=2)
    wider = tiny_hf_model("gemma2", tmp_path / "wider", intermediate_size=100)
    released = hf_to_mcore(gemma2, tmp_path / "released").path.parent
    root = tmp_path / "ck"
    save = {"load": str(released), "steps": 1, "save": str(root), "tp": 2}
    again = {"resume": str(root)}
    refused = {
        "converted weights": {"resume": str(released)},
        "DistributedOptimizer.*FP32Optimizer": again | {"distributed": False},
        "expected torch.bfloat16": again | {"bf16": True},
        "no such directory": {"resume": str(tmp_path / "none")},
        "the model has": again | {"model": str(smaller)},
        "linear_fc1": again | {"model": str(wider)},
    }
    cast = {"load": str(root), "bf16": True, "pp": 2, "steps": 1}
    first, *failed, last = train(2, gemma2, save, *refused.values(), cast)
    check([first, last])  # weights alone may be cast
    for words, phase in zip(refused, failed, strict=True):
        assert all(re.search(words, rank["error"] or "") for rank in phase), (words, phase)
    about = find_checkpoint(root).common()["about"]
    assert about["vocab_size"] == 131 and about["optimizer"] == ["DistributedOptimizer"]
    index = json.loads((root / "iter_0000001" / "index.json").read_text())
    assert index["embedding.word_embeddings.weight"]["shape"] == [132, 64], "padded for TP 2"


def test_damaged_weights_are_found_by_every_rank(tmp_path, gemma2, train):
    from mindspeed_llm.checkpoint.convert import hf_to_mcore

    root = tmp_path / "ck"
    path = next(hf_to_mcore(gemma2, root).path.glob("model-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    full, sizes = train(
        2, gemma2, {"load": str(root), "tp": 2}, {"load": str(root), "tp": 2, "check": "size"}
    )
    assert all(path.name in rank["error"] and "damaged" in rank["error"] for rank in full)
    check([sizes])


def compare_with_direct(model_dir, root):
    """Logits at TP 2 from the Hugging Face directory and from the checkpoint."""
    from pathlib import Path

    import torch
    from megatron.core import parallel_state, tensor_parallel

    from mindspeed_llm.checkpoint.state import load_weights
    from mindspeed_llm.config.parallel import ParallelConfig
    from mindspeed_llm.models.build import build_model
    from mindspeed_llm.models.registry import read_model

    parallel_state.initialize_model_parallel(2, 1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    logits = []
    for source in (model_dir, root):
        gpt = build_model(read_model(Path(model_dir)), ParallelConfig(tensor_model_parallel_size=2),
                          dtype=torch.float32, parallel_output=False).eval()  # fmt: skip
        load_weights(Path(source), [gpt])
        ids = torch.arange(24)[None]
        with torch.no_grad():
            logits.append(gpt(ids, torch.arange(24)[None], None)[..., :131])
    return [torch.equal(*logits), logits[0].tolist()]


def test_hugging_face_directory_loads_directly(tmp_path, gemma2, run_ranks):
    import transformers

    from mindspeed_llm.checkpoint.convert import hf_to_mcore

    hf_to_mcore(gemma2, tmp_path / "mcore")
    results = run_ranks(2, compare_with_direct, str(gemma2), str(tmp_path / "mcore"))
    model = transformers.AutoModelForCausalLM.from_pretrained(gemma2, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.arange(24)[None]).logits
    for same, logits in results:
        assert same
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-4)


WHOLE = {"tp": 2, "sp": True, "ep": 2, "etp": 1}


@pytest.mark.parametrize("changes", [
    pytest.param({}, id="alike"),
    pytest.param({"mlp_only_layers": [1]}, id="mixed", marks=pytest.mark.slow),
])  # fmt: skip
def test_experts_go_on_at_every_layout(tmp_path, tiny_hf_model, train, changes):
    """Written by two ranks with half of the experts each; their optimizer is one of its own."""
    source = tiny_hf_model("qwen3_moe", tmp_path / "hf", **changes)
    root = str(tmp_path / "ck")
    first = {"ep": 2, "load": str(source), "steps": 2, "save": root, "more": 2}
    layouts = ({"ep": 2}, {"pp": 2}, WHOLE)
    if changes:
        layouts += ({"tp": 2, "sp": True}, {})
    again = [{"resume": root, "steps": 2, **layout} for layout in layouts]
    saved, same, *others = phases = train(2, source, first, *again)
    check(phases)
    assert same[0]["losses"] == saved[0]["losses"][2:]
    assert [r["digest"] for r in same] == [r["digest"] for r in saved]
    for phase in others:
        torch.testing.assert_close(losses(phase), losses(saved)[2:], rtol=2e-5, atol=0)
    # and back: saved where experts have no optimizer of their own
    back = str(tmp_path / "back")
    plain = {"pp": 2, "load": str(source), "steps": 2, "save": back, "more": 2}
    alone, spread = phases = train(2, source, plain, {"ep": 2, "resume": back, "steps": 2})
    check(phases)
    torch.testing.assert_close(losses(alone), losses(saved), rtol=2e-5, atol=0)
    torch.testing.assert_close(losses(spread), losses(alone)[2:], rtol=2e-5, atol=0)
    index = json.loads((tmp_path / "ck" / "iter_0000002" / "index.json").read_text())
    key, shape = ("decoder.layers.mlp.experts.experts.linear_fc2.weight", [4, 4, 64, 40])
    if changes:
        key, shape = ("decoder.layers.2.mlp.experts.experts.linear_fc2.weight", [4, 64, 40])
    assert index[key]["shape"] == shape


@pytest.mark.slow
def test_experts_with_optimizers_that_are_not_distributed(tmp_path, tiny_hf_model, train):
    source = tiny_hf_model("mixtral", tmp_path / "hf")
    root = str(tmp_path / "ck")
    job = {"ep": 2, "distributed": False}
    first = job | {"load": str(source), "steps": 1, "save": root, "more": 2}
    saved, same, refused = train(
        2, source, first, job | {"resume": root, "steps": 2},
        {"distributed": False, "resume": root},
    )  # fmt: skip
    check([saved, same])
    assert [r["digest"] for r in same] == [r["digest"] for r in saved]
    assert all("was saved in 2 parts and has 1 now" in rank["error"] for rank in refused)
