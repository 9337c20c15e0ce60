"""The safetensors reader against the library's writer and against lying files, and the reverse."""

import errno
import hashlib
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_llm.checkpoint import tensor_file
from mindspeed_llm.checkpoint.tensor_file import DTYPES, TensorFile, TensorFileWriter
from mindspeed_llm.errors import CheckpointError


def some_tensors():
    torch.manual_seed(0)
    tensors = {f"t.{name}": (torch.randn(3, 5) * 3).to(dtype) for name, dtype in DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}


def same(a, b):
    flat = [t.contiguous().view(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def test_reads_what_the_library_writes(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with TensorFile(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.entries) == set(tensors)
        for name, tensor in tensors.items():
            assert same(file.read(name), tensor), name


def test_library_reads_what_is_written_here(tmp_path):
    tensors = some_tensors()
    order = sorted(tensors, key=lambda n: -tensors[n].dtype.itemsize)
    path = tmp_path / "b.safetensors"
    writer = TensorFileWriter(path, [(n, tensors[n].dtype, tuple(tensors[n].shape)) for n in order],
                              {"format": "pt"})  # fmt: skip
    for name in order:
        writer.write(name, tensors[name])
    record = writer.finish()
    data = path.read_bytes()
    assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    loaded = load_file(path)
    assert all(same(loaded[name], tensors[name]) for name in tensors)


def test_noncontiguous_tensor_is_written_in_order(tmp_path):
    tensor = torch.arange(12.0).view(3, 4).t()
    writer = TensorFileWriter(tmp_path / "c.safetensors", [("x", tensor.dtype, (4, 3))])
    writer.write("x", tensor)
    writer.finish()
    assert torch.equal(load_file(tmp_path / "c.safetensors")["x"], tensor)


@pytest.mark.parametrize("small_run", [0, 1 << 20])
def test_every_box_equals_the_slice(tmp_path, monkeypatch, small_run):
    monkeypatch.setattr(tensor_file, "_SMALL_RUN", small_run)
    full = torch.arange(4 * 3 * 5, dtype=torch.int32).view(4, 3, 5)
    save_file({"x": full}, tmp_path / "a.safetensors")
    spans = [[(o, n) for o in range(size) for n in range(size - o + 1)] for size in full.shape]
    with TensorFile(tmp_path / "a.safetensors") as file:
        for box in itertools.product(*spans):
            offset, shape = zip(*box, strict=True)
            part = file.read_box("x", offset, shape)
            assert torch.equal(part, full[tuple(slice(o, o + n) for o, n in box)]), box
            assert part.is_contiguous()


def test_box_reads_its_own_bytes_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_SMALL_RUN", 0)
    save_file({"x": torch.zeros(100, 50)}, tmp_path / "a.safetensors")
    with TensorFile(tmp_path / "a.safetensors") as file:
        read = []
        original = file._fill
        file._fill = lambda view, position: (read.append(len(view)), original(view, position))[1]
        file.read_box("x", (10, 20), (5, 10))
    assert sum(read) == 5 * 10 * 4


def header(entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "empty file": b"",
    "shorter than its length field": b"\x10\x00",
    "length beyond the file": header({"x": entry()}, bytes(8), length=1 << 40),
    "absurd length": header({"x": entry()}, bytes(8), length=(1 << 63) - 1),
    "not JSON": header(b"{]", bytes(8)),
    "not UTF-8": header(b"\xff\xfe{}", bytes(8)),
    "deeply nested": header(b"[" * 200_000),
    "a list": header([1]),
    "a name twice": header(b'{"x": {}, "x": {}}'),
    "entry is a number": header({"x": 3}),
    "unknown dtype": header({"x": entry("F31")}, bytes(8)),
    "negative shape": header({"x": entry(shape=(-2,))}, bytes(8)),
    "shape of bools": header({"x": entry(shape=(True, 2))}, bytes(8)),
    "huge shape": header({"x": entry(shape=(2**40, 2**40))}, bytes(8)),
    "offsets reversed": header({"x": entry(offsets=(8, 0))}, bytes(8)),
    "beyond the data": header({"x": entry(offsets=(8, 16))}, bytes(8)),
    "overlap": header({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)),
    "hole": header({"x": entry(), "y": entry(offsets=(12, 20))}, bytes(20)),
    "trailing bytes": header({"x": entry()}, bytes(9)),
    "truncated data": header({"x": entry()}, bytes(7)),
    "metadata is a list": header({"__metadata__": [], "x": entry()}, bytes(8)),
    "a zip, as pickled weights are": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lying_header_is_one_clean_error(tmp_path, lie):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(lie)
    with pytest.raises(CheckpointError, match="lie.safetensors"):
        TensorFile(path)


def test_file_cut_while_open_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1000)}, path)
    with TensorFile(path) as file:
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(CheckpointError, match="cut short"):
            file.read("x")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        TensorFile(tmp_path / "none.safetensors")


def test_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="exists"):
        TensorFileWriter(tmp_path / "a.safetensors", [])
    assert (tmp_path / "a.safetensors").read_bytes() == b"precious"


def test_a_disk_that_fails_while_it_is_flushed(tmp_path, monkeypatch):
    """What is written is set to work on in between, and an error of that is not lost."""
    monkeypatch.setattr(tensor_file, "_FLUSHED", 1000)
    flushed = []

    def fail(fd):
        flushed.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    tensors = [("x", torch.float32, (1000,)), ("y", torch.float32, (1000,))]
    writer = TensorFileWriter(tmp_path / "a.safetensors", tensors)
    for name, _, shape in tensors:
        writer.write(name, torch.zeros(shape))
    with pytest.raises(CheckpointError, match="cannot write .*Input/output error"):
        writer.finish()
    assert flushed


def cached(path):
    with open(path, "rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False


def test_what_is_on_the_disk_leaves_the_page_cache(tmp_path):
    plain = tmp_path / "plain"
    with open(plain, "wb") as file:
        file.write(bytes(2**16))
        file.flush()
        os.fsync(file.fileno())
        assert cached(plain)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(plain):
        pytest.skip("a file system in memory")
    writer = TensorFileWriter(tmp_path / "a.safetensors", [("x", torch.float32, (2**14,))])
    writer.write("x", torch.ones(2**14))
    writer.finish()
    assert not cached(tmp_path / "a.safetensors")


@pytest.mark.parametrize("hashed", [True, False])
def test_pieces_out_of_a_ring_reach_a_slow_disk_whole(tmp_path, monkeypatch, hashed):
    """No buffer is filled again before what was in it is written and hashed."""
    pwrite = os.pwrite

    def slow(fd, data, position):
        time.sleep(0.002)
        return pwrite(fd, data, position)

    monkeypatch.setattr(os, "pwrite", slow)
    path = tmp_path / "a.safetensors"
    ring = tensor_file.Ring(nbytes=12)
    writer = TensorFileWriter(path, [("x", torch.float32, (60,)), ("y", torch.bfloat16, (20,))],
                              hashed=hashed)  # fmt: skip
    order = list(range(20)) if hashed else [*range(0, 20, 2), *range(1, 20, 2)]
    for number in order:
        piece = ring.take((1, 3), torch.float32)
        writer.write("x", piece.copy_(torch.arange(3.0) + 3 * number), 3 * number)
    for number in range(20):
        piece = ring.take((1,), torch.float32).fill_(number)
        writer.write("y", piece, number)  # cast on the way
    record = writer.finish()
    assert torch.equal(load_file(path)["x"], torch.arange(60.0))
    assert torch.equal(load_file(path)["y"], torch.arange(20).bfloat16())
    assert record.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest() if hashed else "")
    assert ring.take((4,), torch.float32).shape == (4,)  # larger than a buffer: new memory


def test_what_was_not_written_is_noticed(tmp_path):
    writer = TensorFileWriter(tmp_path / "a.safetensors", [("x", torch.float32, (4,))])
    writer.write("x", torch.zeros(3))
    with pytest.raises(AssertionError, match="x was not written"):
        writer.finish()
    with pytest.raises(AssertionError, match="in order"):
        writer.write("x", torch.zeros(1), 0)
    writer.abort()


def test_a_hash_beside_the_reader_is_that_of_the_file(tmp_path):
    """In the file's order while it is read, the rest at the end; what comes again is left out."""
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(1000.0), "y": torch.ones(10, 10)}, path)
    with ThreadPoolExecutor(1) as pool:
        running = tensor_file.RunningHash(pool)
        with TensorFile(path, running) as file:
            buffers = torch.empty(2, 100)
            for number, start in enumerate((0, 100, 0, 200, 500)):
                file.read_box("x", (start,), (100,), buffers[number % 2])
        record = running.finish(path)
    data = path.read_bytes()
    assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_box_goes_into_tensors_of_any_kind(tmp_path):
    full = torch.arange(24.0).view(4, 6)
    save_file({"x": full}, tmp_path / "a.safetensors")
    with TensorFile(tmp_path / "a.safetensors") as file:
        columns = torch.zeros(4, 6, requires_grad=True)
        file.read_box("x", (0, 2), (4, 3), columns[:, 3:])
        assert torch.equal(columns[:, 3:], full[:, 2:5]) and not columns[:, :3].any()
        half = file.read_box("x", (1, 0), (2, 6), torch.zeros(2, 6, dtype=torch.bfloat16))
        assert torch.equal(half, full[1:3].bfloat16())
