"""Whatever a directory of others holds: one clear error, and the target never looks complete."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf
from mindspeed_llm.checkpoint.directory import TRACKER
from mindspeed_llm.errors import UserError

FILE = "model.safetensors"
QUERY = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def llama(tmp_path, tiny_hf_model):
    return tiny_hf_model("llama", tmp_path / "hf")


def header(directory, change):
    """Rewrite the header of the weight file, its tensors as they are."""
    data = (directory / FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    text = change(table)
    text = json.dumps(table).encode() if text is None else text
    (directory / FILE).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def config(directory, **changes):
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values))


def tensors(directory, change):
    table = load_file(directory / FILE)
    change(table)
    save_file(table, directory / FILE, metadata={"format": "pt"})


def cut(directory):
    path = directory / FILE
    os.truncate(path, path.stat().st_size - 100)


def index_with(file):
    def damage(directory):
        names = dict.fromkeys(load_file(directory / FILE), FILE)
        text = json.dumps({"weight_map": names | {QUERY: file}})
        (directory / "model.safetensors.index.json").write_text(text)

    return damage


def overlap(table):
    begin, end = table[NORM]["data_offsets"]
    table[NORM]["data_offsets"] = [begin - 4, end - 4]


@pytest.mark.parametrize(("damage", "words"), [
    (lambda d: tensors(d, lambda t: t.pop(QUERY)), f"missing.*{QUERY}"),
    (lambda d: tensors(d, lambda t: t.update(extra=t[NORM].clone())), "unknown.*extra"),
    (lambda d: tensors(d, lambda t: t.update({QUERY: t[QUERY][:, :48].contiguous()})), QUERY),
    (lambda d: tensors(d, lambda t: t.update({QUERY: t[QUERY].int()})), "int32"),
    (cut, "incomplete download"),
    (lambda d: header(d, overlap), "overlapping"),
    (lambda d: header(d, lambda t: t[NORM].update(data_offsets=[0, 2**62])), "bytes"),
    (lambda d: header(d, lambda t: t[NORM].update(data_offsets=[-8, 248])), "lists of integers"),
    (lambda d: header(d, lambda t: t[NORM].update(shape=[2**40, 2**40])), "takes"),
    (lambda d: header(d, lambda t: t[NORM].update(shape=[1] * 60 + [64])), "lists of integers"),
    (lambda d: header(d, lambda t: t[NORM].update(dtype="F4")), "F4"),
    (lambda d: header(d, lambda t: b"[" * 5000), "not JSON"),
    (lambda d: header(d, lambda t: b'{"a": NaN'), "not JSON"),
    (lambda d: (d / FILE).write_bytes((2**63).to_bytes(8, "little")), "cut short"),
    (lambda d: (d / FILE).write_bytes(b"\x00" * 8), "not JSON"),
    (lambda d: (d / FILE).write_bytes(b""), "cut short"),
    (index_with("../../etc/passwd"), "same directory"),
    (index_with("/etc/passwd"), "same directory"),
    (index_with("a\x00b.safetensors"), "same directory"),
    (index_with("gone.safetensors"), "gone.safetensors"),
    (lambda d: config(d, auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    (lambda d: config(d, new_kind_of_attention=True), "new_kind_of_attention"),
    (lambda d: config(d, hidden_size=2**40), "hidden_size"),
    (lambda d: config(d, num_hidden_layers=10**7), "num_hidden_layers"),
    (lambda d: config(d, vocab_size=-1), "vocab_size"),
    (lambda d: config(d, num_attention_heads="4"), "num_attention_heads"),
    (lambda d: config(d, rope_parameters={"rope_type": "evil"}), "rope"),
    (lambda d: (d / "config.json").write_text("{" * 10**5), "config.json"),
    (lambda d: (d / "config.json").write_text("x" * 5 * 2**20), "bytes"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_one_clear_error_and_nothing_written(tmp_path, llama, damage, words):
    damage(llama)
    start = time.process_time()
    with pytest.raises(UserError, match=words) as caught:
        hf_to_mcore(llama, tmp_path / "mcore")
    assert not (tmp_path / "mcore").exists()
    assert len(str(caught.value)) < 2500
    assert time.process_time() - start < 20, "an absurd number is refused, not counted to"


def test_values_that_are_no_numbers_are_named_and_keep_their_bits(tmp_path, llama, caplog):
    def spoil(table):
        table[QUERY][0, :3] = torch.tensor([math.nan, math.inf, -math.inf])

    tensors(llama, spoil)
    assert hf_to_mcore(llama, tmp_path / "mcore").odd == (QUERY,)
    assert mcore_to_hf(tmp_path / "mcore", tmp_path / "back").odd == (QUERY,)
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 2 and all(f"in 1 tensors, which are kept: {QUERY}" in w for w in warned)
    found = load_file(tmp_path / "back" / FILE)[QUERY]
    assert torch.equal(found.view(torch.int32), load_file(llama / FILE)[QUERY].view(torch.int32))


def test_hugging_faces_cache_is_read_through_its_links(tmp_path, llama):
    """models--x/snapshots/REVISION/file -> ../../blobs/HASH, as its hub library leaves it."""
    snapshot = tmp_path / "models--x" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--x" / "blobs"
    for directory in (snapshot, blobs):
        directory.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in llama.iterdir())):
        path.rename(blobs / f"{number:064d}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064d}")
    done = hf_to_mcore(snapshot, tmp_path / "mcore")
    assert not any(p.is_symlink() for p in done.path.rglob("*"))
    mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
    new, old = load_file(tmp_path / "back" / FILE), load_file(snapshot / FILE)
    assert all(torch.equal(new[name], old[name]) for name in old)


@pytest.mark.parametrize("name", ["config.json", FILE])
@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, llama, name, kind):
    (llama / name).unlink()
    kind(llama / name)
    with pytest.raises(UserError, match=f"{name}: not a regular file"):
        hf_to_mcore(llama, tmp_path / "mcore")


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", FILE])
def test_links_out_of_a_directory_are_refused(tmp_path, llama, name):
    (tmp_path / "secret").write_text("of this machine")
    (llama / name).unlink(missing_ok=True)
    (llama / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=f"{name}: a link to .*secret, outside of the directory"):
        hf_to_mcore(llama, tmp_path / "mcore")
    assert not (tmp_path / "mcore").exists()


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "common.pt", "hf/config.json"])
def test_a_flipped_bit_in_a_torch_dist_checkpoint(tmp_path, llama, name):
    path = hf_to_mcore(llama, tmp_path / "mcore", ckpt_format="torch_dist").path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=name if name != "hf/config.json" else "config"):
        mcore_to_hf(tmp_path / "mcore", tmp_path / "back", trust_pickle=True)
    assert not list(tmp_path.glob("back*"))


@pytest.mark.parametrize("direction", ["to mcore", "torch_dist", "to hf"])
def test_full_disk(tmp_path, llama, direction):
    """The disk takes 100 kB of a file and no more."""
    if direction == "to hf":
        hf_to_mcore(llama, tmp_path / "mcore")
    before = sorted(tmp_path.rglob("*"))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="free space"):
            if direction == "to hf":
                mcore_to_hf(tmp_path / "mcore", tmp_path / "back")
            else:
                kind = "torch_dist" if direction == "torch_dist" else "safetensors"
                hf_to_mcore(llama, tmp_path / "mcore", ckpt_format=kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(tmp_path.rglob("*")) == before


_SLOW = """
import sys, time
from pathlib import Path
from mindspeed_llm.checkpoint import hf_source, convert, tensor_file, torch_dist_writer
from mindspeed_llm.checkpoint.convert import hf_to_mcore, mcore_to_hf

original = tensor_file.cast
def slow(*args):
    time.sleep(0.03)
    return original(*args)
tensor_file.cast = torch_dist_writer.cast = slow
convert = mcore_to_hf if sys.argv[1] == "to hf" else hf_to_mcore
kind = {"ckpt_format": "torch_dist"} if sys.argv[1] == "torch_dist" else {}
convert(Path(sys.argv[2]), Path(sys.argv[3]), **kind)
"""


@pytest.mark.parametrize("direction", ["to mcore", "torch_dist", "to hf"])
def test_killed_in_the_middle(tmp_path, llama, direction):
    """kill -9 when a part is on the disk: nothing has the target's name, and a rerun works."""
    source, target = llama, tmp_path / "target"
    if direction == "to hf":
        source = tmp_path / "mcore"
        hf_to_mcore(llama, source)
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", _SLOW, direction,
                                str(source), str(target)])  # fmt: skip
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        files = [*tmp_path.glob("target*/**/*.safetensors"), *tmp_path.glob("target*/**/*.distcp")]
        parts = [p for p in files if p.stat().st_size > 50_000]
        if parts:
            break
        time.sleep(0.005)
    assert process.poll() is None and parts, "it was killed while it wrote"
    process.kill()
    process.wait()
    assert not (target / TRACKER).exists() and not (target / "config.json").exists()
    assert not (target / "release").exists()
    if direction == "to hf":
        mcore_to_hf(source, target)
    else:
        kind = "torch_dist" if direction == "torch_dist" else "safetensors"
        hf_to_mcore(source, target, ckpt_format=kind)
        assert sorted(p.name for p in target.iterdir()) == [TRACKER, "release"]
        mcore_to_hf(target, tmp_path / "back", trust_pickle=kind == "torch_dist")
        target = tmp_path / "back"
    new, old = load_file(target / FILE), load_file(llama / FILE)
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert not list(tmp_path.glob("*.tmp-*")), "what the killed one left is removed"
