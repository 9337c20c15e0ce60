"""checkpoint.sums: what stands in SHA256SUMS, and what is refused."""

import hashlib

import pytest

from mindspeed_llm.checkpoint.sums import NAME, check_sums, write_sums
from mindspeed_llm.errors import CheckpointError


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "__0_0.distcp").write_bytes(b"weights" * 1000)
    (tmp_path / "hf" / "config.json").write_bytes(b"{}")
    write_sums(tmp_path)
    return tmp_path


def test_every_file_in_the_form_of_sha256sum(directory):
    lines = (directory / NAME).read_text().splitlines()
    weights = hashlib.sha256(b"weights" * 1000).hexdigest()
    config = hashlib.sha256(b"{}").hexdigest()
    assert lines == [f"{weights}  __0_0.distcp", f"{config}  hf/config.json"]
    check_sums(directory)


def test_without_a_list_nothing_is_compared(directory):
    (directory / NAME).unlink()
    (directory / "__0_0.distcp").write_bytes(b"other")
    check_sums(directory)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda d: (d / "__0_0.distcp").write_bytes(b"weighty" * 1000), "distcp: its sha256 is .*says"),
    (lambda d: (d / "hf" / "config.json").unlink(), "config.json: missing"),
    (lambda d: (d / NAME).write_text("x  y"), "no hash and the name of a file below"),
    (lambda d: (d / NAME).write_text("0" * 64 + "  ../../etc/passwd"), "a file below"),
    (lambda d: (d / NAME).write_text("0" * 64 + "  /etc/passwd"), "a file below"),
    (lambda d: (d / NAME).write_bytes(b"\xff" * 5 * 2**20), "too large"),
])  # fmt: skip
def test_damage_is_named(directory, damage, message):
    damage(directory)
    with pytest.raises(CheckpointError, match=message):
        check_sums(directory)
