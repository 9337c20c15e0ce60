"""Tests of mindspeed_llm.patches.fixes: each defect shows without its patch and not with it."""

from __future__ import annotations

import inspect
import sys
import types

import numpy
import pytest
import torch

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.kernels.optimizer import AdamW
from mindspeed_llm.patches import fixes

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
LAYERNORM = {"recompute_granularity": "selective", "recompute_modules": ["layernorm"]}
ADAM = ["fused_adam", "using_pytorch_optimizer", "have_fused_adam", "using_apex_optimizer"]


def fails(train, words, *arguments):
    with pytest.raises(pytest.fail.Exception, match=words):
        train(*arguments)


def test_resuming_without_our_adam_fails(train, tmp_path):
    path = str(tmp_path / "saved")
    train(1, {"save": path})
    (with_it,) = train(1, {"load": path, "steps": 1})
    assert with_it["losses"][0] > 0
    fails(train, "Error", 1, {"load": path, "steps": 1, "without": ADAM})


def test_loading_shards_into_leaves_needs_no_grad(train, tmp_path):
    path = str(tmp_path / "saved")
    job = {"sharding": "dp_reshardable"}
    train(1, job | {"save": path})
    train(1, job | {"load": path, "steps": 1})
    fails(train, "leaf", 1, job | {"load": path, "steps": 1, "without": ["without_grad"]})


def test_recomputing_norms_needs_no_transformer_engine(train):
    plain, recomputed = train(1, {}, {"recompute": LAYERNORM})
    assert recomputed["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    fails(train, "NameError", 1, {"recompute": LAYERNORM, "without": ["checkpoint_without_fp8"]})


def test_an_emptied_output_is_filled_again_without_a_compiler():
    fill = fixes.share_storage_without_compiler()
    emptied, recomputed = torch.zeros(4, 3), torch.arange(12.0).view(4, 3)
    view, version = emptied.view(-1)[5:], emptied._version
    emptied.untyped_storage().resize_(0)
    fill(emptied, recomputed)
    assert torch.equal(emptied, recomputed)
    assert torch.equal(view, torch.arange(5.0, 12.0))  # saved for backward, like its base
    assert emptied._version == version


def test_bf16_parameters_have_other_type_names_on_the_cpu(train):
    train(1, {"bf16": True, "zero": False, "steps": 1}, {"bf16": True, "steps": 1})
    fails(
        train, "Wrapped parameters must be", 1,
        {"bf16": True, "zero": False, "steps": 1, "without": ["cpu_type_names"]},
    )  # fmt: skip


def test_two_stages_with_batched_p2p_are_refused_because_they_are_wrong(train):
    job = {"pp": 2, "vp": 2, "config": {"deallocate_pipeline_outputs": False}}
    fails(train, "batched p2p mix up messages", 2, job)
    plain, wrong = train(2, {"without": ["refuse_two_stages"]}, job)
    assert wrong["losses"] != pytest.approx(plain["losses"], rel=1e-4)


def _softmax_and_forks(without):
    import torch

    from mindspeed_llm.patches import engine
    from mindspeed_llm.patches.registry import REGISTER

    if without:
        engine.revert()
        left = [p for p in REGISTER if p.adapter.split(":")[1] not in without]
        engine.Engine(left).apply("cpu")
    import logging

    from megatron.core import jit
    from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.utils import attention_mask_func

    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("megatron.core.tensor_parallel.random").addHandler(handler)
    tracker = CudaRNGStatesTracker()
    tracker.add("a", 5)
    tracker.add("b", 6)
    before = torch.get_rng_state()
    with tracker.fork("b"), tracker.fork("a"):  # b was seeded last: a cannot be right by chance
        drawn = torch.rand(3)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    same = torch.equal(before, torch.get_rng_state())
    softmax = FusedScaleMaskSoftmax(False, False, AttnMaskType.causal, False,
        attention_mask_func, True, None, window_size=(2, 0))  # fmt: skip
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2] = True
    probabilities = softmax(torch.zeros(1, 1, 4, 4), mask)[0, 0]
    return {"row": probabilities[3].tolist(), "alone": softmax(torch.zeros(1, 1, 4, 4), None)[0, 0]
            [3].tolist(), "records": records, "same": same, "own": torch.equal(drawn, expected),
            "jit": jit.jit_fuser(_softmax_and_forks) is _softmax_and_forks}  # fmt: skip


def test_window_and_mask_both_count_and_forks_are_quiet(run_ranks):
    (with_it,) = run_ranks(1, _softmax_and_forks, [])
    (without_it,) = run_ranks(1, _softmax_and_forks, ["both_masks", "set_rng_state"])
    assert with_it["row"] == pytest.approx([0, 0.5, 0, 0.5])
    assert with_it["alone"] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert (with_it["records"], with_it["same"], with_it["jit"]) == ([], True, True)
    assert with_it["own"] and not without_it["own"]
    assert without_it["row"] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


def test_outputs_are_kept_only_with_overlap(monkeypatch):
    utils = types.SimpleNamespace(get_model_config=lambda model: model)
    monkeypatch.setitem(sys.modules, "megatron.core.utils", utils)
    schedule = fixes.keep_outputs(lambda *, model: model[0].deallocate_pipeline_outputs)

    def config(overlap):
        return types.SimpleNamespace(overlap_p2p_comm=overlap, deallocate_pipeline_outputs=True)

    assert schedule(model=[config(True)]) is False
    assert schedule(model=[config(False)]) is True


def test_refusal_names_both_mends(monkeypatch):
    utils = types.SimpleNamespace(get_model_config=lambda model: model)
    monkeypatch.setitem(sys.modules, "megatron.core.utils", utils)
    schedule = fixes.refuse_two_stages(lambda *, model: "ran")

    def config(size, overlap):
        return types.SimpleNamespace(overlap_p2p_comm=overlap, pipeline_model_parallel_size=size)

    with pytest.raises(ConfigError, match="overlap_p2p_comm=True"):
        schedule(model=[config(2, False)])
    assert schedule(model=[config(2, True)]) == schedule(model=[config(4, False)]) == "ran"


def test_vendors_adam_stays():
    class FusedAdam:
        __module__ = "apex.optimizers"

    assert fixes.fused_adam(FusedAdam) is FusedAdam
    assert fixes.fused_adam(torch.optim.AdamW) is fixes.fused_adam(torch.optim.Adam) is AdamW


@pytest.mark.parametrize(("te", "apex", "expected"), [(False, False, True), (True, False, False)])
def test_apex_layout_unless_transformer_engines(monkeypatch, te, apex, expected):
    module = types.SimpleNamespace(USING_TE_OPTIMIZER=te)
    monkeypatch.setitem(sys.modules, "megatron.core.optimizer.distrib_optimizer", module)
    assert fixes.using_apex_optimizer(apex) is expected


def test_numpy_gets_product_back():
    fake = types.ModuleType("numpy")
    fake.prod, fake.pi = numpy.prod, numpy.pi
    mended = fixes.numpy_with_product(fake)
    assert mended.product([2, 3]) == 6 and mended.pi == numpy.pi and not hasattr(fake, "product")
    fake.product = sum
    assert fixes.numpy_with_product(fake) is fake


def test_jit_fuser_with_and_without_options():
    def f():
        pass

    assert fixes.no_jit(f) is fixes.no_jit(mode="x")(f) is f


def test_random_state_and_devices():
    state = fixes.get_rng_state()
    first = torch.rand(2)
    fixes.set_rng_state(state)
    assert torch.equal(torch.rand(2), first)
    fixes.any_device(torch.ones(1))
    with pytest.raises(AssertionError):
        fixes.any_device(None)
    assert fixes.using_pytorch_optimizer(True) is False and fixes.have_fused_adam(False) is True


def test_a_router_needs_no_transformer_engine(monkeypatch):
    from megatron.core.transformer.moe import moe_utils

    monkeypatch.delattr(moe_utils, "te_general_gemm", raising=False)  # 0.17 and later have it
    original = moe_utils.router_gating_linear
    x, weight = (torch.randn(n, 3, generator=torch.manual_seed(n)).bfloat16() for n in (4, 5))
    named = {"bias": None} if "bias" in inspect.signature(original).parameters else {}
    with pytest.raises(NameError, match="te_general_gemm"):
        original(x, weight, router_dtype=torch.float32, **named)
    gate = fixes.gating_without_transformer_engine(original)
    found = gate(x, weight, router_dtype=torch.float32, **named)
    assert found.dtype is torch.float32
    assert torch.equal(found, x.float() @ weight.float().T)


def test_a_router_with_transformer_engine_is_left_alone(monkeypatch):
    from megatron.core.transformer.moe import moe_utils

    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)
    original = moe_utils.router_gating_linear
    assert fixes.gating_without_transformer_engine(original) is original


def test_counts_are_lists_for_all_to_all_on_the_cpu():
    from megatron.core.transformer.moe.moe_utils import maybe_move_tensor_to_cpu as original

    counts = torch.tensor([3, 0, 2])
    assert torch.is_tensor(original(counts, as_numpy=True))  # which all_to_all_single refuses
    move = fixes.counts_on_any_device(original)
    assert isinstance(move(counts, as_numpy=True), numpy.ndarray)
    assert move(counts).tolist() == [3, 0, 2] and move(None, as_numpy=True) is None


def test_a_model_without_fp8_has_nothing_to_quantize():
    def quantize(model_params, main_params):
        raise RuntimeError("Invalid Transformer Engine version")

    mended = fixes.nothing_to_quantize(quantize)
    assert mended([], []) is None
    with pytest.raises(RuntimeError):
        mended([torch.ones(1)], [])


def test_the_format_is_given_where_torch_asks_for_one():
    def asks(transforms, item, *, serialization_format):
        return item, serialization_format.name

    def older(transforms, item):
        return item

    assert fixes.write_item_as_saved(asks)(None, 3) == (3, "TORCH_SAVE")
    assert fixes.write_item_as_saved(older) is older


def test_the_next_layout_knows_nothing_of_the_last(monkeypatch):
    state = types.SimpleNamespace(_POSITION_EMBEDDING_GLOBAL_RANKS=[0])
    monkeypatch.setitem(sys.modules, "megatron.core.parallel_state", state)
    fixes.forget_position_embedding_ranks(lambda: None)()
    assert state._POSITION_EMBEDDING_GLOBAL_RANKS is None


def test_attention_counts_layers_from_the_first_of_the_model(monkeypatch):
    layers = types.SimpleNamespace(get_transformer_layer_offset=lambda config: 4)
    monkeypatch.setitem(sys.modules, "megatron.core.transformer.transformer_layer", layers)
    seen = []
    mended = fixes.layer_number_of_the_model(lambda self, *given, **named: seen.append(given[2:]))
    mended(None, "config", "submodules", 2, "causal")
    mended(None, "config", "submodules", layer_number=1)
    assert seen == [(6, "causal"), (5,)]


def uneven():
    """Runs on each of two ranks: parts of 3 and 1 rows, without the patches and with them."""
    import torch
    import torch.distributed as dist
    from megatron.core.tensor_parallel import mappings

    from mindspeed_llm.patches import engine

    group = dist.group.WORLD
    rank, sizes = dist.get_rank(), [3, 1]
    whole = torch.arange(8.0).view(4, 2)
    mine = whole.split(sizes)[rank]
    out = {
        "gathered": mappings._gather_along_first_dim(mine, group, sizes).tolist(),
        "even": mappings._gather_along_first_dim(whole[2 * rank : 2 * rank + 2], group).tolist(),
        "scattered": mappings._reduce_scatter_along_first_dim(whole, group, sizes).tolist(),
    }
    engine.revert()
    torch.cuda.current_device = lambda: torch.device("cpu")
    try:
        mappings._gather_along_first_dim(mine, group, sizes)
        out["without"] = "no error"
    except RuntimeError as err:
        out["without"] = str(err)
    return out


def test_parts_of_different_sizes_over_gloo(run_ranks):
    whole = torch.arange(8.0).view(4, 2)
    answers = run_ranks(2, uneven)
    for mine, answer in zip(whole.split([3, 1]), answers, strict=True):
        assert answer["gathered"] == answer["even"] == whole.tolist()
        assert answer["scattered"] == (2 * mine).tolist()
        assert "invalid tensor size" in answer["without"]
