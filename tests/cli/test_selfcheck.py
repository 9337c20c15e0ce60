"""`mindspeed-llm selfcheck`: table, report, exit code."""

import json

import pytest

from mindspeed_llm.cli import selfcheck
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.kernels import parity


def test_the_cpu_passes_and_leaves_a_report(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert selfcheck.main(["--device", "cpu", "--report", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "packed causal attention" in shown and "0 fail" in shown and str(report) in shown
    assert "training a packed Gemma 2" in shown
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["device"] == "cpu" and written["machine"]["torch"]
    assert written["counts"]["pass"] == sum(r["state"] == "pass" for r in written["results"]) > 50


def test_a_failure_is_an_exit_code(monkeypatch, capsys):
    bad = parity.Result("RMSNorm", "float32", "npu_rms_norm", "fail", 0.5, "differs by 5e-01")
    monkeypatch.setattr(parity, "compare", lambda device, dtype: iter([bad]))
    assert selfcheck.main(["--device", "cpu", "--kernels-only"]) == 1
    shown = capsys.readouterr().out
    assert "differs by 5e-01" in shown and "0 pass, 2 fail, 0 skipped" in shown


def test_a_report_without_a_place_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="its directory does not exist"):
        selfcheck.main(["--report", str(tmp_path / "none" / "report.json")])
