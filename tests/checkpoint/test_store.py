"""Chunks written by several writers and read in other boxes; indexes that lie."""

import dataclasses
import itertools
import json

import pytest
import torch

from mindspeed_llm.checkpoint.store import (
    ChunkReader,
    Planned,
    index_from_json,
    index_to_json,
    merge_indexes,
    overlap,
    write_chunks,
)
from mindspeed_llm.errors import CheckpointError

FULL = torch.arange(6 * 8, dtype=torch.float32).view(6, 8)


def plan(offset, shape, key="w", dtype=torch.float32, full=(6, 8)):
    return Planned(key, "model", full, dtype, offset, shape)


def fetch(planned):
    box = tuple(slice(o, o + n) for o, n in zip(planned.offset, planned.shape, strict=True))
    return (FULL[box].to(planned.dtype),)


def write(directory, boxes, **options):
    parts, records = [], []
    for rank, own in enumerate(boxes):
        done, index = write_chunks(directory, f"model-r{rank}", [plan(*b) for b in own], fetch,
                                   **options)  # fmt: skip
        parts.append(index)
        records += done
    return merge_indexes(parts), records


HALVES = [[((0, 0), (3, 8))], [((3, 0), (3, 8))]]
QUARTERS = [[((0, 0), (4, 4)), ((4, 0), (2, 4))], [((0, 4), (4, 4)), ((4, 4), (2, 4))]]


@pytest.mark.parametrize("boxes", [[[((0, 0), (6, 8))]], HALVES, QUARTERS])
def test_any_box_comes_back_from_any_cut(tmp_path, boxes):
    index, _ = write(tmp_path, boxes)
    index = index_from_json(json.loads(json.dumps(index_to_json(index))), "index")
    reader = ChunkReader(tmp_path, index)
    for o0, o1, n0, n1 in itertools.product((0, 2), (0, 3), (1, 4), (2, 5)):
        out = torch.full((n0, n1), -1.0)
        reader.read("w", (o0, o1), out)
        assert torch.equal(out, FULL[o0 : o0 + n0, o1 : o1 + n1])
    reader.close()


def test_reading_casts_and_leaves_what_is_not_stored(tmp_path):
    index, _ = write(tmp_path, HALVES)
    out = torch.full((4, 8), -1.0, dtype=torch.bfloat16)
    ChunkReader(tmp_path, index).read("w", (4, 0), out)
    assert torch.equal(out[:2], FULL[4:].bfloat16())
    assert (out[2:] == -1).all()  # rows behind the stored tensor: a padded vocabulary


def test_files_are_split_by_size_and_fetched_once_each(tmp_path):
    calls = []

    def counted(planned):
        calls.append(planned.offset)
        return fetch(planned)

    rows = [plan((i, 0), (1, 8)) for i in range(6)]
    records, index = write_chunks(tmp_path, "m", rows, counted, max_file_bytes=2 * 32)
    assert len(records) == 3 and len({c.file for c in index["w"].chunks}) == 3
    assert sorted(calls) == [(i, 0) for i in range(6)]
    out = torch.empty(6, 8)
    ChunkReader(tmp_path, merge_indexes([index])).read("w", (0, 0), out)
    assert torch.equal(out, FULL)


def test_mixed_dtypes_and_scalars(tmp_path):
    values = {"a": torch.tensor(3, dtype=torch.int64), "b": torch.tensor([True]),
              "c": torch.ones(3, dtype=torch.bfloat16)}  # fmt: skip
    plans = [Planned(k, "rng", tuple(v.shape), v.dtype, (0,) * v.ndim, tuple(v.shape))
             for k, v in values.items()]  # fmt: skip
    _, index = write_chunks(tmp_path, "m", plans, lambda p: [values[p.key]])
    reader = ChunkReader(tmp_path, merge_indexes([index]))
    for key, value in values.items():
        out = torch.empty_like(value)
        reader.read(key, (0,) * value.ndim, out)
        assert torch.equal(out, value)


@pytest.mark.parametrize(("boxes", "words"), [
    ([HALVES[0]], "24 of its 48"),
    ([HALVES[0], HALVES[0], HALVES[1]], "overlap"),
    ([[((0, 0), (4, 8))], HALVES[1]], "overlap"),
    ([[((0, 0), (3, 8))], [((4, 0), (3, 8))]], "outside"),
])  # fmt: skip
def test_boxes_must_tile_the_tensor(boxes, words):
    """What several ranks wrote is checked before it becomes a checkpoint."""
    from mindspeed_llm.checkpoint.store import Chunk, Stored

    parts = [{"w": Stored("model", (6, 8), torch.float32,
                          tuple(Chunk("f.safetensors", "n", o, s) for o, s in own))}
             for own in boxes]  # fmt: skip
    with pytest.raises(CheckpointError, match=words):
        merge_indexes(parts)


def test_ranks_that_disagree(tmp_path):
    index, _ = write(tmp_path, HALVES)
    other = dataclasses.replace(index["w"], dtype=torch.float16)
    with pytest.raises(CheckpointError, match="another"):
        merge_indexes([index, {"w": other}])


@pytest.mark.parametrize("change", [
    lambda e: e.pop("chunks"),
    lambda e: e.update(dtype="F31"),
    lambda e: e.update(shape=[6, -8]),
    lambda e: e.update(shape=[6, True]),
    lambda e: e.update(shape=[6, 8, 1]),
    lambda e: e.update(shape=[6, 9]),
    lambda e: e["chunks"][0].update(file="../w.safetensors"),
    lambda e: e["chunks"][0].update(file="/etc/passwd"),
    lambda e: e["chunks"][0].update(file="weights.pt"),
    lambda e: e["chunks"][0].update(offset=[1, 0]),
    lambda e: e["chunks"].pop(),
])  # fmt: skip
def test_malformed_index_is_a_clean_error(tmp_path, change):
    index, _ = write(tmp_path, HALVES)
    data = index_to_json(index)
    change(data["w"])
    with pytest.raises(CheckpointError):
        index_from_json(data, "index.json")


@pytest.mark.parametrize("data", [[], {"w": None}, {"w": []}, None, 3])
def test_index_of_another_kind(data):
    with pytest.raises(CheckpointError, match="malformed"):
        index_from_json(data, "index.json")


def test_file_that_contradicts_the_index(tmp_path):
    index, _ = write(tmp_path, HALVES)
    other = tmp_path / "other"
    other.mkdir()
    write(other, [[((3, 0), (3, 8))], [((0, 0), (3, 8))]])  # the two files exchanged
    with pytest.raises(CheckpointError, match="promises"):
        ChunkReader(other, index).read("w", (0, 0), torch.empty(6, 8))


def test_overlap():
    assert overlap(((0, 0), (2, 2)), ((1, 1), (2, 2))) == ((1, 1), (1, 1))
    assert overlap(((0, 0), (2, 2)), ((2, 0), (2, 2))) is None
    assert overlap(((), ()), ((), ())) == ((), ())
