"""Tests of mindspeed_llm.patches.attention: plain GPTModels of megatron-core on packed rows."""

from __future__ import annotations

import pytest


def packed_and_apart(window, bf16):
    """Largest differences of losses and gradients between a packed row and its sequences alone."""
    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer import TransformerConfig

    parallel_state.initialize_model_parallel(torch.distributed.get_world_size())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    dtype = torch.bfloat16 if bf16 else torch.float32
    config = TransformerConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2,
        use_cpu_initialization=True, normalization="RMSNorm", attention_dropout=0.0,
        hidden_dropout=0.0, masked_softmax_fusion=False, persist_layer_norm=False,
        add_bias_linear=False, bf16=bf16, params_dtype=dtype,
        tensor_model_parallel_size=torch.distributed.get_world_size(),
        **({} if window is None else {"window_size": (window - 1, 0)}),
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPTModel(config, get_gpt_layer_local_spec(normalization="RMSNorm"), vocab_size=64,
                     max_sequence_length=64, position_embedding_type="rope").to(dtype)  # fmt: skip
    lengths = [5, 12, 1, 9]
    ids = torch.randint(0, 64, (1, sum(lengths)), generator=torch.manual_seed(2))
    labels = torch.randint(0, 64, (1, sum(lengths)), generator=torch.manual_seed(3))
    parts = list(zip(ids.split(lengths, 1), labels.split(lengths, 1), strict=True))

    def grads():
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return found

    alone = []
    for tokens, targets in parts:
        where = torch.arange(tokens.shape[1])[None]
        alone.append(model(tokens, where, None, labels=targets))
    torch.cat(alone, 1).sum().backward()
    expected = grads()
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds,
                             max_seqlen_q=12, max_seqlen_kv=12)  # fmt: skip
    where = torch.cat([torch.arange(n) for n in lengths])[None]
    row = model(ids, where, None, labels=labels, packed_seq_params=packed)
    row.sum().backward()
    pairs = zip(grads(), expected, strict=True)
    return [(row - torch.cat(alone, 1)).abs().max().item(),
            max(((a - b).norm() / b.norm().clamp(min=1e-6)).item() for a, b in pairs)]  # fmt: skip


@pytest.mark.parametrize(("ranks", "window"), [(1, None), (1, 4), (2, None)])
def test_a_packed_row_is_its_sequences(run_ranks, ranks, window):
    for loss, gradients in run_ranks(ranks, packed_and_apart, window, False):
        assert loss < 1e-5 and gradients < 1e-5


def by_both():
    """Largest difference of outputs and gradients from megatron-core's own attention, as a part of
    the largest value, by case, and which of the two ran."""
    import inspect

    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    from mindspeed_llm.patches import attention as adapters

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    patched = DotProductAttention.forward
    original, ran = patched.__wrapped__, []

    def noted(*args, **kwargs):
        ran.append("original")
        return original(*args, **kwargs)

    ours = adapters.fused_attention(noted)
    length, future = 12, torch.ones(12, 12, dtype=torch.bool).triu(1)
    documents = future.clone()
    documents[7:, :7] = True
    ahead = future.clone()
    ahead[0, 1] = False
    cases = {
        "causal": {}, "given": {"mask": future}, "documents": {"mask": documents},
        "batch": {"mask": torch.stack([future, documents])[:, None]},
        "ahead": {"mask": ahead}, "layer scaling": {"apply_query_key_layer_scaling": True},
        "one query": {"sq": 1}, "all": {"kind": AttnMaskType.no_mask},
    }  # fmt: skip
    if "window_size" in inspect.signature(TransformerConfig).parameters:
        cases["window"] = {"window_size": (3, 0)}
    found = {}
    for name, case in cases.items():
        kind, mask = case.pop("kind", AttnMaskType.causal), case.pop("mask", None)
        sq = case.pop("sq", length)
        config = TransformerConfig(
            num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2,
            attention_dropout=0.0, masked_softmax_fusion=False, attention_softmax_in_fp32=True,
            **case)  # fmt: skip
        module = DotProductAttention(config, 2, kind, "self")
        torch.manual_seed(0)
        shapes = ((sq, 4), (length, 2), (length, 2))
        inputs = [torch.randn(s, 2, n, 8, requires_grad=True) for s, n in shapes]
        given = None if mask is None else mask.view(-1, 1, length, length)
        results, ran[:] = [], []
        for forward in (ours, original):
            out = forward(module, *inputs, given)
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
        pairs = zip(*results, strict=True)
        worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        found[name] = [worst, *ran]
    return found


def test_rows_are_megatrons_own_attention(run_ranks):
    (found,) = run_ranks(1, by_both)
    assert max(worst for worst, *_ in found.values()) < 1e-6
    ran = {name for name, (_, *original) in found.items() if original}
    assert ran == {"ahead", "all"}  # what no kernel does


def test_without_the_patch_packed_rows_are_refused():
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    original = getattr(DotProductAttention.forward, "__wrapped__", DotProductAttention.forward)
    with pytest.raises((AssertionError, AttributeError)):
        original(None, None, None, None, None, packed_seq_params=object())
