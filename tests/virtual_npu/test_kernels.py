"""Every NPU kernel through the wheel's dispatch and autograd, on operators that refuse what the
vendor's documents forbid; and the rules themselves."""

import json

import pytest
import torch
import torch.nn.functional as F
from rig.contracts.rules import ContractError

from mindspeed_llm.cli import selfcheck
from mindspeed_llm.cli.kernels import rows
from mindspeed_llm.errors import KernelError
from mindspeed_llm.kernels import attention as plain
from mindspeed_llm.kernels import dispatch, npu, parity
from mindspeed_llm.kernels.cross_entropy import summed_cross_entropy
from mindspeed_llm.kernels.table import candidates, kernel, operator, overview

NPU = torch.device("npu", 0)
BF16, FP32 = torch.bfloat16, torch.float32
OPERATORS = {"rms_norm": "npu_rms_norm", "rotary": "npu_rotary_mul", "swiglu": "npu_swiglu",
             "geglu_tanh": "npu_geglu", "geglu_erf": "npu_geglu", "gelu_erf": "npu_gelu",
             "cross_entropy": "npu_cross_entropy_loss"}  # fmt: skip


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_every_kernel_equals_the_plain_one(dtype):
    results = list(parity.compare(NPU, dtype))
    wrong = [r for r in results if r.state == "fail"]
    assert wrong == []
    if dtype is FP32:
        # sums in another order, and nothing else
        assert max(r.error for r in results if r.error is not None) < 1e-5
    ran = {r.kernel for r in results if r.state == "pass"}
    assert {
        "npu_fusion_attention",
        "npu_fusion_attention TND",
        "npu_rms_norm",
        "npu_rotary_mul",
        "npu_swiglu",
        "npu_geglu",
        "npu_cross_entropy_loss",
        "_fused_adamw_",
    } <= ran
    assert ("npu_fused_infer_attention_score" in ran) == (dtype is BF16)
    skipped = {r.kernel: r.reason for r in results if r.state == "skipped"}
    assert skipped["flash_attn_npu"] == "flash_attn_npu is not installed"


@pytest.mark.parametrize(("op", "name"), OPERATORS.items())
def test_forward_and_backward_reach_the_operator(op, name, journal):
    check = next(c for c in parity.CHECKS if c.op == op)
    result = parity._result(check, candidates(op, "npu")[0], NPU, dispatch.Need(dtype=BF16))
    assert result.state == "pass"
    ran = {(e["op"], e["backward"]) for e in journal}
    assert (name, False) in ran
    if op != "cross_entropy":  # its gradient is made of the forward pass's log-probabilities
        assert any(ran_name.startswith(name) and back for ran_name, back in ran)


def test_gammas_are_float32_where_one_is_added(journal):
    x, w = torch.randn(4, 2, 64, device=NPU, dtype=BF16), torch.randn(64, device=NPU, dtype=BF16)
    npu.rms_norm(x, w * 0.1, 1e-6, zero_centered=True)
    npu.rms_norm(x, w, 1e-6, zero_centered=False)
    assert [e["gamma"] for e in journal] == ["torch.float32", "torch.bfloat16"]


def packed(window=None, sequences=(5, 9)):
    torch.manual_seed(0)
    total, bounds = sum(sequences), [0]
    for length in sequences:
        bounds.append(bounds[-1] + length)
    q, k, v = (torch.randn(total, n, 32) for n in (4, 2, 2))
    on = [t.to(NPU) for t in (q, k, v)]
    found = npu.packed_attention(*on, cu_seqlens=bounds, scale=0.3, window=window).cpu()
    return found, lambda w: plain.packed_attention(q, k, v, cu_seqlens=bounds, scale=0.3, window=w)


def test_a_window_counts_the_querys_own_key(journal):
    found, expected = packed(window=4)
    torch.testing.assert_close(found, expected(4))
    for other in (3, 5):
        assert (found - expected(other)).abs().max() > 0.05
    (call,) = journal
    assert (call["sparse_mode"], call["pre_tockens"], call["masked"]) == (4, 3, True)


def test_keys_are_not_repeated_and_a_row_is_one_call(journal):
    packed()
    (call,) = journal
    assert call["input_layout"] == "TND" and call["sparse_mode"] == 2 and call["shape"][1] == 4


def test_more_sequences_than_a_call_takes(monkeypatch, journal):
    monkeypatch.setattr(npu, "SEQUENCES", 2)
    found, expected = packed(sequences=(3, 4, 1, 2, 5))
    torch.testing.assert_close(found, expected(None))
    assert len(journal) == 3


def test_labels_of_nothing_never_reach_the_operator(journal):
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 16), torch.randn(29, 16)
    targets = torch.tensor([1, -100, 28, 5, -100, 0])
    found = summed_cross_entropy(hidden.to(NPU), weight.to(NPU), targets.to(NPU),
                                 softmax=npu.softmax_loss)  # fmt: skip
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    torch.testing.assert_close(found.cpu(), expected)
    with pytest.raises(ContractError, match="A negative ignore_index ignores nothing"):
        torch.ops.npu.npu_cross_entropy_loss(hidden.to(NPU), targets[[0, 1]].repeat(3).to(NPU))


def test_gelu_is_tanh_here_and_erf_is_erf_all_the_same():
    x = torch.randn(5, 2, 16)
    gate, up = x.chunk(2, -1)
    assert not torch.allclose(F.gelu(gate.to(NPU)).cpu(), F.gelu(gate), atol=1e-6)
    for exact in (npu.gelu_erf, npu.gelu_erf_written_out):
        torch.testing.assert_close(exact(gate.to(NPU)).cpu(), F.gelu(gate), atol=1e-6, rtol=1e-5)
    for exact in (npu.geglu_erf, npu.geglu_erf_written_out):
        torch.testing.assert_close(exact(x.to(NPU)).cpu(), F.gelu(gate) * up, atol=1e-6, rtol=1e-5)


def test_operators_without_derivative_are_refused_by_both():
    q = torch.randn(2, 1, 4, 32, device=NPU, dtype=BF16, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no derivative"):
        npu.decode_attention(q, q, q, scale=0.3)
    with pytest.raises(ContractError, match="gradients would vanish"):
        torch.ops.npu.npu_gemma_rms_norm(q, torch.ones(32, device=NPU, dtype=BF16))


@pytest.fixture
def older(monkeypatch):
    """A torch_npu without the operator."""
    return lambda name: monkeypatch.setattr(torch.ops.npu, name, object(), raising=False)


def test_an_operator_that_is_missing_is_a_fall_back_with_a_name(older):
    older("npu_rms_norm")
    older("npu_fusion_attention")
    shown = {name: choice for name, choice in overview("npu", BF16)}
    for name in ("RMSNorm", "packed attention, soft cap"):
        assert shown[name].is_fall_back
    assert "this torch_npu has no operator npu_rms_norm" in shown["RMSNorm"].why
    for name in ("attention", "packed attention"):
        assert shown[name].candidate.kernel.startswith("scaled_dot_product_attention")
        assert shown[name].is_fall_back
    dispatch.require_fused(True)
    try:
        with pytest.raises(KernelError, match="--require-fused: rms_norm on npu runs as plain"):
            kernel("rms_norm", "npu")
    finally:
        dispatch.require_fused(False)


def test_everything_has_its_kernel_here():
    fall_backs = {name for name, choice in overview("npu", BF16) if choice.is_fall_back}
    assert fall_backs == {"attention, soft cap", "packed attention, soft cap",
                          "decode attention, soft cap"}  # fmt: skip
    assert operator("npu_rotary_mul", "rotary_mode")() is None
    assert operator("npu_rotary_mul", "no_such")() is not None


def call(name, *args, **options):
    return getattr(torch.ops.npu, name)(*args, **options)


def on_npu(*shape, dtype=FP32):
    return torch.randn(*shape, device=NPU, dtype=dtype)


@pytest.mark.parametrize(("words", "broken"), [
    ("looks everywhere", lambda: call("npu_fusion_attention", *[on_npu(5, 1, 64)] * 3, 2, "SBH",
                                      sparse_mode=2)),
    ("upper triangle", lambda: call(
        "npu_fusion_attention", *[on_npu(5, 1, 64)] * 3, 2, "SBH", sparse_mode=2,
        atten_mask=torch.zeros(5, 5, dtype=torch.bool, device=NPU))),
    ("not cumulative", lambda: call("npu_fusion_attention", *[on_npu(5, 2, 32)] * 3, 2, "TND",
                                    actual_seq_qlen=[3, 2], actual_seq_kvlen=[3, 2])),
    ("undefined memory", lambda: call("npu_fusion_attention", *[on_npu(5, 2, 32)] * 3, 2, "TND",
                                      actual_seq_qlen=[3], actual_seq_kvlen=[3])),
    ("must lie in", lambda: call("npu_rotary_mul", on_npu(5, 1, 2, 8), *[
        torch.full((5, 1, 1, 8), 1.2, device=NPU)] * 2)),
    ("not contiguous", lambda: call("npu_swiglu", on_npu(8, 6).t())),
    ("float16 or bfloat16", lambda: call("npu_fused_infer_attention_score",
                                         *[on_npu(1, 1, 2, 32)] * 3, num_heads=2,
                                         input_layout="BSND")),
    ("with gamma", lambda: call("npu_rms_norm", on_npu(3, 8), on_npu(8, dtype=BF16))),
])  # fmt: skip
def test_the_rig_refuses_what_the_documents_forbid(words, broken):
    with pytest.raises(ContractError, match=words):
        broken()


def test_selfcheck_is_one_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parity, "CHECKS", parity.CHECKS[:3])
    report = tmp_path / "report.json"
    assert selfcheck.main(["--device", "npu", "--report", str(report)]) == 0
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["device"] == "npu" and written["machine"]["torch_npu"].startswith("2.13.0")
    assert "npu_rotary_mul" in capsys.readouterr().out
    runs = {r["dtype"]: r for r in written["results"] if r["name"].startswith("training")}
    assert {dtype: r["state"] for dtype, r in runs.items()} == {"float32": "pass",
                                                                "bfloat16": "pass"}  # fmt: skip
    assert runs["float32"]["error"] < 1e-5


def test_doctor_and_patches_show_the_fused_operators():
    found = {row["op"]: row for row in rows("npu")}
    assert found["RMSNorm 1 + w"]["kernel"] == "npu_rms_norm"
    assert found["decode attention bf16"]["kernel"] == "npu_fused_infer_attention_score"
    assert found["decode attention fp32"]["kernel"] == "npu_fusion_attention"
    assert "flash_attn_npu is not installed" in found["attention, soft cap"]["why"]
