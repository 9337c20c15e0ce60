"""Holds the flags and the summary of `unpack-gguf`; the unpacking has its own tests."""

from pathlib import Path

from mindspeed_llm.cli import unpack_gguf
from mindspeed_llm.cli.main import main


def test_flags_reach_the_unpacking(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(unpack_gguf, "unpack", lambda *paths: seen.append(paths) or 3 * 2**20)
    assert unpack_gguf.main(["--input", "a.gguf", "--output", "b"]) == 0
    assert seen == [(Path("a.gguf"), Path("b"))]
    assert capsys.readouterr().out.startswith("b: 3 MiB of float32 weights")


def test_a_missing_file_is_one_error(tmp_path, capsys):
    code = main(
        ["unpack-gguf", "--input", str(tmp_path / "x.gguf"), "--output", str(tmp_path / "o")]
    )
    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: --input {tmp_path / 'x.gguf'}: no such file")
    assert not (tmp_path / "o").exists()
