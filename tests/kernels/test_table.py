"""The table of kernels: every place exists, the last candidate does everything, conditions hold."""

import inspect

import pytest
import torch

from mindspeed_llm.errors import KernelError
from mindspeed_llm.kernels import dispatch, table
from mindspeed_llm.kernels.dispatch import Need
from mindspeed_llm.kernels.table import candidates, kernel, operations, overview

DEVICES = ("npu", "cuda", "cpu")
BF16 = torch.bfloat16


def names(op, device, **need):
    """The candidates that fit, whether they are installed here or not."""
    return [one.kernel for one in candidates(op, device) if one.fits(Need(**need)) is None]


@pytest.mark.parametrize("op", operations())
def test_every_candidate_is_called_like_the_reference(op):
    reference = inspect.signature(candidates(op, "cpu")[-1].load())
    for device in DEVICES:
        for one in candidates(op, device):
            assert inspect.signature(one.load()).parameters.keys() == reference.parameters.keys()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", operations())
def test_the_last_candidate_is_always_there(op, device):
    last = candidates(op, device)[-1]
    assert last.available() is None
    need = Need(head_dim=999, softcap=1.0, window=3, dropout=0.5, interleaved=True, split=True,
                bias_correction=False)  # fmt: skip
    assert last.fits(need) is None


def test_a_soft_cap_is_never_given_to_a_kernel_without_one():
    for device in DEVICES:
        for op in ("attention", "packed_attention", "decode_attention"):
            for one in candidates(op, device):
                capped = one.fits(Need(softcap=2.0, dtype=BF16)) is None
                assert capped == (one.place.split(":")[0] in ("flash", "flex", "onednn")
                                  or one.kernel.startswith("soft-capped"))  # fmt: skip


def test_what_an_npu_takes():
    fusion, decode = "npu_fusion_attention", "npu_fused_infer_attention_score"
    assert names("attention", "npu")[0] == fusion
    assert fusion not in names("attention", "npu", head_dim=769)
    assert names("decode_attention", "npu", dtype=BF16)[0] == decode
    assert names("decode_attention", "npu", dtype=torch.float32)[0] == fusion
    assert decode not in names("decode_attention", "npu", dtype=BF16, head_dim=72)
    assert names("attention", "npu", softcap=5.0, dtype=BF16)[0] == "flash_attn_npu"
    assert names("attention", "npu", softcap=5.0, dtype=BF16, dropout=0.1) == ["soft-capped blocks"]
    assert set(names("cross_entropy", "npu", split=True)) == {"plain torch"}
    assert "npu_rotary_mul" not in names("rotary", "npu", head_dim=896)


def test_nothing_of_an_npu_is_there_without_torch_npu():
    assert table.operator("npu_rms_norm")() == "this torch_npu has no operator npu_rms_norm"
    for _, choice in overview("npu", BF16):
        assert choice.candidate.place.split(":")[0] != "npu" or not choice.candidate.fused
    assert table.package("no_such_package")() == "no_such_package is not installed"


def test_what_a_package_lacks_is_named(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "old_flash.py").write_text("def old_func(q, k, v, causal=False): ...")
    (tmp_path / "other_torch.py").write_text("raise ImportError('undefined symbol: x\\nmore')")
    assert table.package("old_flash", "old_flash:old_func", "causal")() is None
    assert table.package("old_flash", "old_flash:old_func", "causal", "softcap")() == (
        "old_func of this old_flash has no argument softcap"
    )
    assert table.package("old_flash", "old_flash:new_func")() == "this old_flash has no new_func"
    assert table.package("other_torch", "other_torch:f")() == (
        "other_torch cannot be imported: undefined symbol: x"
    )


def test_an_operator_without_the_argument_is_named(monkeypatch):
    with torch.library._scoped_library("npu", "FRAGMENT") as library:
        library.define("table_probe(Tensor x, int dim) -> Tensor")
        assert table.operator("table_probe", "dim")() is None
        assert table.operator("table_probe", "mode")() == (
            "table_probe of this torch_npu has no argument mode"
        )


def test_kernel_answers_with_the_function():
    from mindspeed_llm.kernels.rms_norm import rms_norm

    assert kernel("rms_norm", "cpu", dtype=BF16, zero_centered=True) is rms_norm
    with pytest.raises(KeyError):
        kernel("no such operation", "cpu")


def test_fused_answers_with_nothing_where_the_plain_kernel_would_run():
    assert table.fused("swiglu", "cpu") is None
    assert table.fused("attention", "cpu") is kernel("attention", "cpu")


@pytest.mark.parametrize("op", ["attention", "packed_attention", "decode_attention"])
def test_torchs_attention_is_a_fall_back_on_an_npu(op):
    """It is there only where torch_npu lacks the operator, as it does in this environment."""
    choice = dispatch.look(op, "npu", Need(dtype=BF16), candidates(op, "npu"))
    assert choice.candidate.kernel.startswith("scaled_dot_product_attention")
    assert choice.is_fall_back and "no operator npu_fusion_attention" in choice.why
    with pytest.raises(KernelError, match=f"{op} on npu runs as scaled_dot_product_attention"):
        dispatch.require_fused(True)
        try:
            kernel(op, "npu", dtype=BF16)
        finally:
            dispatch.require_fused(False)
    assert not dispatch.look(op, "cpu", Need(), candidates(op, "cpu")).is_fall_back


@pytest.mark.parametrize("split", [False, True])
def test_the_plain_loss_is_a_fall_back_where_the_vocabulary_is_whole(split):
    need = Need(split=split)
    choice = dispatch.look("cross_entropy", "npu", need, candidates("cross_entropy", "npu"))
    assert choice.candidate.kernel == "plain torch" and choice.is_fall_back is not split


@pytest.mark.parametrize("name", ["npu_rmsnorm", "plain torch", "scaled_dot_product_attention"])
def test_names_that_would_change_nothing_are_refused(name, monkeypatch):
    """The last two run whatever is named: nothing else could."""
    monkeypatch.setenv(dispatch.WITHOUT, name)
    for ask in (lambda: kernel("rms_norm", "cpu"), lambda: overview("cpu", BF16)):
        with pytest.raises(KernelError, match=f"names '{name}'.*npu_rms_norm"):
            ask()
    monkeypatch.setenv(dispatch.WITHOUT, "npu_rms_norm,_fused_adamw_")
    choice = dispatch.look("adamw", "cpu", Need(), candidates("adamw", "cpu"))
    assert kernel("adamw", "cpu") is choice.call and choice.candidate.kernel == "torch._foreach"
