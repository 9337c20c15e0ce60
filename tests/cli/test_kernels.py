"""What is shown of the choice of kernels."""

import dataclasses

from rich.console import Console

from mindspeed_llm.cli import kernels
from mindspeed_llm.kernels.dispatch import WITHOUT
from mindspeed_llm.kernels.table import SHOWN


def test_every_operation_is_shown_with_its_reason(monkeypatch):
    monkeypatch.setenv(WITHOUT, "oneDNN")  # which not every processor has
    rows = kernels.rows("cpu")
    assert [row["op"] for row in rows] == [name for name, _, _ in SHOWN]
    assert all(row["kernel"] and row["why"] and ":" in row["in"] for row in rows)
    capped = next(row for row in rows if row["op"] == "attention, soft cap")
    assert "not scaled_dot_product_attention: it has no soft cap" in capped["why"]


def test_dtypes_are_shown_apart_where_their_kernels_differ(monkeypatch):
    from mindspeed_llm.kernels import table

    there = table._ROWS["attention"]["cuda"][0]
    there = dataclasses.replace(there, available=lambda: None)
    monkeypatch.setitem(table._ROWS["attention"], "cuda", (there,))
    found = {row["op"]: row["kernel"] for row in kernels.rows("cuda")}
    assert found["attention bf16"] == "flash_attn"
    assert found["attention fp32"] == "scaled_dot_product_attention"


def test_a_fall_back_is_called_one(capsys):
    """Without torch_npu every operator of an NPU is missing."""
    rows = kernels.rows("npu")
    assert {row["op"] for row in rows if row["fall_back"]} >= {"RMSNorm", "attention", "SwiGLU"}
    assert not any(row["fall_back"] for row in kernels.rows("cpu"))
    Console(width=300).print(kernels.table(rows))
    line = next(line for line in capsys.readouterr().out.splitlines() if " SwiGLU " in line)
    assert "plain torch (fall-back)" in line and "has no operator npu_swiglu" in line


def test_the_table_can_be_printed(capsys):
    Console(width=200).print(kernels.table(kernels.rows("cpu"), "Kernels on cpu"))
    shown = capsys.readouterr().out
    assert "Kernels on cpu" in shown and "linear + cross entropy" in shown
