"""Owns the safetensors file format: slices read by position, tensors written one after the other.

Files are read with `pread`, never mapped: a file cut short while it is open is an error and not a
SIGBUS, and memory use is what the caller asked for. It knows no names and no checkpoint.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON, data).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from mindspeed_llm.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

_HEADER_LIMIT = 100 * 2**20  # the format's own limit
BLOCK = 2 * 2**20  # bytes of a piece of a tensor: read, hashed and written out of the cache
_WAITING = 8  # pieces, or as many bytes, that a writer has not yet written
_BLOCK = 32 * 2**20  # bytes hashed and written at a time
_FLUSHED = 32 * 2**20  # bytes written after which the disk is set to work
_SMALL_RUN = 16 * 2**10  # shorter contiguous runs are read together with what lies between them


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file; `begin` and `end` are byte positions in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A written file: name within its directory, size in bytes, sha256 as hexadecimal digits."""

    name: str
    size: int
    sha256: str


class RunningHash:
    """sha256 of a file from the bytes that its readers read anyway.

    What is read in the file's order is hashed as it passes; `finish` reads only what is left.

    Args:
        pool: a thread that hashes while the reader goes on; None: `feed` returns when it is done.
    """

    def __init__(self, pool: Executor | None = None) -> None:
        self._digest, self._position, self._pool = hashlib.sha256(), 0, pool
        self._job: Future[None] | None = None

    def feed(self, position: int, data: memoryview | bytes) -> None:
        """These bytes were read at `position`; those that come too early or again are left out.

        With a pool they must not change before the next call, or `finish`: what is read next goes
        elsewhere.
        """
        self._wait()
        if position != self._position:
            return
        self._position += len(data)
        if self._pool is None:
            self._digest.update(data)
        else:
            self._job = self._pool.submit(self._digest.update, data)

    def _wait(self) -> None:
        if self._job is not None:
            self._job.result()
            self._job = None

    def finish(self, path: Path) -> FileRecord:
        """The record of the whole file, whose remaining bytes are read now; raises OSError."""
        self._wait()
        buffer = memoryview(bytearray(_BLOCK))
        with open(path, "rb", buffering=0) as file:
            file.seek(self._position)
            while count := file.readinto(buffer):
                self._digest.update(buffer[:count])
                self._position += count
        return FileRecord(path.name, self._position, self._digest.hexdigest())


class Ring:
    """Buffers that are given out in turn, so that blocks of any number need no new memory.

    As many as a `TensorFileWriter` may still be writing, and the one that is being filled: one is
    free again when the last one has been filled and handed to the writer. New memory costs more
    than all else that is done to a block: the system has to clear each of its pages first.
    """

    def __init__(self, nbytes: int = BLOCK) -> None:
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8) for _ in range(_WAITING + 1)]
        self._next = 0
        self.nbytes = nbytes

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised contiguous tensor on the CPU, a new one if larger than `nbytes`."""
        if math.prod(shape) * dtype.itemsize > self.nbytes:
            return torch.empty(tuple(shape), dtype=dtype)
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        return buffer[: math.prod(shape) * dtype.itemsize].view(dtype).view(*shape)


class TensorFile:
    """An open safetensors file whose header was checked against the file's size.

    Args:
        running: told of all bytes that are read.

    Raises:
        CheckpointError: missing, truncated, overlapping, oversized or malformed; names the file.
    """

    def __init__(self, path: Path, running: RunningHash | None = None) -> None:
        self.path = path
        self._running = running
        try:
            # O_NONBLOCK: a pipe of that name is opened at once, and refused
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as err:
            raise CheckpointError(f"{path}: cannot open ({err.strerror})") from err
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise CheckpointError(f"{path}: not a regular file; expected safetensors")
            self.entries, self.metadata = _read_header(path, self._fd, running)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor `name` on the CPU."""
        entry = self.entries[name]
        return self.read_box(name, (0,) * len(entry.shape), entry.shape)

    def read_box(
        self,
        name: str,
        offset: Sequence[int],
        shape: Sequence[int],
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Elements `offset` ... `offset + shape` of tensor `name`.

        Reads the bytes of the box only, up to the gaps between very short runs.

        Args:
            out: tensor of that shape to read into, on any device, cast to its dtype; None: a new
                one on the CPU.
        """
        entry = self.entries[name]
        box = list(zip(offset, shape, entry.shape, strict=True))
        assert all(o >= 0 and s >= 0 and o + s <= full for o, s, full in box), (name, offset, shape)
        out = torch.empty(tuple(shape), dtype=entry.dtype) if out is None else out.detach()
        assert tuple(out.shape) == tuple(shape), name
        if out.numel() == 0:
            return out
        if not (out.is_contiguous() and out.device.type == "cpu" and out.dtype == entry.dtype):
            return out.copy_(self.read_box(name, offset, shape))
        split = len(box)  # axes from `split` on are whole, so their bytes are one run
        while split and box[split - 1][1] == box[split - 1][2]:
            split -= 1
        tail = math.prod(entry.shape[split:]) * entry.dtype.itemsize
        run = tail * (shape[split - 1] if split else 1)
        if split > 1 and run < _SMALL_RUN and shape[split - 2] > 1:
            return out.copy_(self._read_wide(name, offset, shape, split))
        view = memoryview(out.view(-1).view(torch.uint8).numpy())
        for number, start in enumerate(_run_starts(entry.shape, offset, shape, split)):
            begin = entry.begin + start * entry.dtype.itemsize
            self._fill(view[number * run : (number + 1) * run], begin)
        return out

    def _read_wide(
        self, name: str, offset: Sequence[int], shape: Sequence[int], split: int
    ) -> torch.Tensor:
        """`read_box` through the enclosing box whose last partial axis is whole."""
        axis = split - 1
        wide_offset, wide_shape = list(offset), list(shape)
        wide_offset[axis], wide_shape[axis] = 0, self.entries[name].shape[axis]
        wide = self.read_box(name, wide_offset, wide_shape)
        return wide.narrow(axis, offset[axis], shape[axis]).contiguous()

    def _fill(self, view: memoryview, position: int) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done : done + _BLOCK]], position + done)
            except OSError as err:
                raise CheckpointError(f"{self.path}: cannot read ({err.strerror})") from err
            if count == 0:
                raise CheckpointError(f"{self.path}: ends at byte {position + done}; it was cut "
                                      "short while it was read; copy it again")  # fmt: skip
            if self._running is not None:
                self._running.feed(position + done, view[done : done + count])
            done += count


def _run_starts(
    full: Sequence[int], offset: Sequence[int], shape: Sequence[int], split: int
) -> list[int]:
    """First element of each contiguous run of a box, in order; axes from `split` on are whole."""
    strides = [math.prod(full[axis + 1 :]) for axis in range(len(full))]
    starts = [sum(o * s for o, s in zip(offset, strides, strict=True))]
    for axis in range(max(split - 1, 0)):
        starts = [start + i * strides[axis] for start in starts for i in range(shape[axis])]
    return starts


def _read_header(
    path: Path, fd: int, running: RunningHash | None
) -> tuple[dict[str, Entry], dict[str, str]]:
    size = os.fstat(fd).st_size
    prefix = os.pread(fd, 8, 0)
    length = int.from_bytes(prefix, "little")
    if size < 8 or length > size - 8:
        raise CheckpointError(f"{path}: not a safetensors file, or cut short: {size} bytes, the "
                              f"header alone claims {length}")  # fmt: skip
    if length > _HEADER_LIMIT:
        raise CheckpointError(f"{path}: header of {length} bytes; at most {_HEADER_LIMIT} is sane")
    text = os.pread(fd, length, 8)
    if running is not None:
        running.feed(0, prefix + text)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: the safetensors header is not JSON ({err})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is not a JSON object")
    start = 8 + length
    entries = {name: _entry(path, name, value, start) for name, value in header.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise CheckpointError(f"{path}: tensor {name} begins at byte {entry.begin}, expected "
                                  f"{position}: overlapping tensors or a hole")  # fmt: skip
        position = entry.end
    if position != size:
        raise CheckpointError(f"{path}: {size} bytes, but its header describes {position}: "
                              "incomplete download or damaged file")  # fmt: skip
    return entries, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name appears twice")
    return out


def _entry(path: Path, name: str, value: Any, start: int) -> Entry:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the header's entry of {name} is not a JSON object")
    dtype, shape, span = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype!r}; known: {sorted(DTYPES)}")
    if not _naturals(shape) or len(shape) > 16 or not _naturals(span) or len(span) != 2:
        raise CheckpointError(f"{path}: tensor {name} has shape {shape!r:.80}, offsets {span!r:.80}"
                              "; expected lists of integers")  # fmt: skip
    kind = DTYPES[dtype]
    if span[1] - span[0] != math.prod(shape) * kind.itemsize:
        raise CheckpointError(f"{path}: tensor {name} of shape {shape} and dtype {dtype} takes "
                              f"{math.prod(shape) * kind.itemsize} bytes; the header gives it "
                              f"{span[1] - span[0]}")  # fmt: skip
    return Entry(kind, tuple(shape), start + span[0], start + span[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """`tensor` in `dtype`; raises CheckpointError where fp16 cannot hold a value."""
    if tensor.dtype == dtype:
        return tensor
    out = tensor.to(dtype)
    if dtype == torch.float16 and not torch.equal(torch.isfinite(out), torch.isfinite(tensor)):
        raise CheckpointError(f"{name}: has values beyond fp16's range; use bf16 or fp32")
    return out


class TensorFileWriter:
    """Writes one safetensors file, tensor by tensor or in pieces of them.

    A thread writes while the caller makes the next piece; another one hashes the block that is
    being written, and a third flushes what is written so far, so that the end has little to wait
    for. What is on the disk leaves the page cache: its memory serves the next pages of the file,
    where else a whole model's would be taken from other processes, and in a virtual machine from
    the host, which costs ten times the writing (docs/performance.md).

    Args:
        path: file to create; it must not exist.
        tensors: (name, dtype, shape) in the order of the file.
        metadata: the header's string-to-string table.
        hashed: compute the file's sha256; it has to be written in its order then.

    Raises:
        CheckpointError: the file exists, or the disk refuses (full, read-only, quota).
    """

    def __init__(
        self,
        path: Path,
        tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
        metadata: dict[str, str] | None = None,
        *,
        hashed: bool = True,
    ) -> None:
        self.path = path
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        position = 0
        for name, dtype, shape in tensors:
            assert name not in header, f"{name} twice in {path}"
            end = position + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape),
                            "data_offsets": [position, end]}  # fmt: skip
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensor data begins at a multiple of 8
        start = 8 + len(text)
        self._places = {name: (dtype, start + header[name]["data_offsets"][0])
                        for name, dtype, _ in tensors}  # fmt: skip
        self._missing = {name: math.prod(shape) for name, _, shape in tensors}
        self._hash = hashlib.sha256() if hashed else None
        self._size = self._hashed = 0
        try:
            self._file = open(path, "xb", buffering=0)
        except OSError as err:
            raise CheckpointError(f"{path}: cannot create ({err.strerror})") from err
        self._flusher = ThreadPoolExecutor(1, "tensor-flusher")
        self._flush: Future[None] | None = None
        self._flushed = 0
        self._hasher = ThreadPoolExecutor(1, "tensor-hasher") if hashed else None
        self._thread = ThreadPoolExecutor(1, "tensor-writer")
        self._jobs: deque[tuple[Future[None], int]] = deque()
        self._submit(iter([memoryview(len(text).to_bytes(8, "little") + text)]), 0, start)

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        """Write elements of tensor `name` from `start` on, given on any device and in any shape.

        They are cast to the announced dtype.

        They must not change before they are written: a `Ring` that they are from has gone round
        then, and of tensors of more than 16 MiB only the last can be waiting.

        Raises:
            CheckpointError: the disk refuses, or fp16 cannot hold a value, of this tensor or of
                a former one.
        """
        dtype, begin = self._places[name]
        self._missing[name] -= tensor.numel()
        assert self._missing[name] >= 0, f"{self.path}: too much of {name}"
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        position = begin + start * dtype.itemsize
        self._submit(_blocks(name, flat, dtype), position, flat.numel() * dtype.itemsize)

    def _submit(self, blocks: Iterator[memoryview], position: int, nbytes: int) -> None:
        waiting = sum(count for _, count in self._jobs)
        while self._jobs and (len(self._jobs) >= _WAITING or waiting + nbytes > _WAITING * BLOCK):
            job, count = self._jobs.popleft()
            waiting -= count
            job.result()
        if self._hash is not None:
            assert position == self._hashed, f"{self.path}: hashed, so to be written in order"
            self._hashed += nbytes
        self._jobs.append((self._thread.submit(self._put, blocks, position), nbytes))

    def finish(self) -> FileRecord:
        """Flush to the disk and close; every announced tensor must have been written.

        The record's sha256 is empty if none was asked for.
        """
        missing = [name for name, count in self._missing.items() if count]
        assert not missing, f"{self.path}: {missing[0]} was not written"
        while self._jobs:
            self._jobs.popleft()[0].result()
        try:
            if self._flush is not None:
                self._flush.result()
            os.fsync(self._file.fileno())
            self._forget()
            self._close()
        except OSError as err:
            raise self._refused(err) from err
        return FileRecord(self.path.name, self._size, self._hash.hexdigest() if self._hash else "")

    def abort(self) -> None:
        """Close without finishing; the caller removes the directory."""
        self._close()

    def _close(self) -> None:
        for pool in (self._thread, self._hasher, self._flusher):
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        self._file.close()

    def _put(self, blocks: Iterator[memoryview], position: int) -> None:
        for block in blocks:
            hashing = None
            if self._hash is not None and self._hasher is not None:
                hashing = self._hasher.submit(self._hash.update, block)
            done = 0
            try:
                while done < len(block):
                    done += os.pwrite(self._file.fileno(), block[done:], position + done)
            except OSError as err:
                raise self._refused(err) from err
            position += done
            self._size += done
            if hashing is not None:
                hashing.result()
            free = self._flush is None or self._flush.done()
            if free and self._size - self._flushed >= _FLUSHED:
                self._flushed = self._size
                self._flush = self._flusher.submit(self._sync)

    def _sync(self) -> None:
        try:
            os.fdatasync(self._file.fileno())
            self._forget()
        except OSError as err:
            raise self._refused(err) from err

    def _forget(self) -> None:
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _refused(self, err: OSError) -> CheckpointError:
        return CheckpointError(f"{self.path}: cannot write after {self._size} bytes "
                               f"({err.strerror}); free space or choose another disk")  # fmt: skip


def _blocks(name: str, flat: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The bytes of a one-dimensional tensor, cast to `dtype`, a block at a time."""
    for start in range(0, flat.numel(), _BLOCK // 8):
        block = cast(flat[start : start + _BLOCK // 8], dtype, name)
        yield memoryview(block.view(torch.uint8).numpy())
