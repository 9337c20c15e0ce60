"""Boxes of flat ranges, and requests that a checkpoint cannot answer."""

import itertools
import math

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)

from mindspeed_llm.checkpoint.sharded import (
    InPlace,
    check_request,
    fill,
    flat_boxes,
    flat_pieces,
    load_tree,
    pieces_of,
    split_for_saving,
    write_pieces,
)
from mindspeed_llm.checkpoint.store import ChunkReader, merge_indexes
from mindspeed_llm.errors import CheckpointError


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (1, 5), (5, 1), (2, 1, 3)])
def test_boxes_of_every_flat_range(shape):
    numel = math.prod(shape)
    full = torch.arange(numel).view(shape)
    for start, stop in itertools.combinations_with_replacement(range(numel + 1), 2):
        boxes = flat_boxes(shape, start, stop)
        parts = [full[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))].flatten()
                 for box in boxes]  # fmt: skip
        assert torch.equal(torch.cat([*parts, full.new_empty(0)]), full.flatten()[start:stop])
        assert len(boxes) <= 2 * len(shape) - 1


def test_flat_range_of_a_scalar():
    assert flat_boxes((), 0, 1) == [((), ())] and flat_boxes((), 1, 1) == []


def sharded(key, data, *offsets, prepend=0, replica=(0, 0, 0), elastic=False):
    return ShardedTensor.from_rank_offsets(key, data, *offsets, prepend_axis_num=prepend,
                                           replica_id=replica,
                                           allow_shape_mismatch=elastic)  # fmt: skip


def store(directory, *states, section="model"):
    parts = []
    for rank, state in enumerate(states):
        share = split_for_saving(state, section)
        parts.append(write_pieces(directory, f"r{rank}", share.pieces)[1])
    return ChunkReader(directory, merge_indexes(parts))


def test_layers_on_two_ranks_become_one_tensor(tmp_path):
    full = torch.arange(24.0).view(2, 3, 4)
    states = []
    for layer, r in itertools.product(range(2), range(2)):
        part = full[layer, :, 2 * r : 2 * r + 2].clone()
        states.append({"w": sharded("w", part, (0, layer, 2), (2, r, 2), prepend=1)})
    reader = store(tmp_path, *states)
    assert reader.tensors["w"].shape == (2, 3, 4)
    out = torch.empty(2, 3, 4)
    reader.read("w", (0, 0, 0), out)
    assert torch.equal(out, full)
    local = torch.zeros(3, 4)
    fill(pieces_of(sharded("w", local, (0, 1, 2), prepend=1), "model"), reader)
    assert torch.equal(local, full[1])


def test_replicas_are_written_once(tmp_path):
    data = torch.ones(4)
    reader = store(
        tmp_path, {"a": sharded("a", data)}, {"a": sharded("a", data, replica=(0, 0, 1))}
    )
    assert len(reader.tensors["a"].chunks) == 1


def test_flat_parts_of_a_layer(tmp_path):
    """Optimizer state of two data-parallel ranks that meet inside a row."""
    weight = torch.zeros(3, 4, dtype=torch.bfloat16)
    values = torch.arange(12.0)
    tensor = sharded("w", weight, (0, 1, 2), prepend=1)
    other = sharded("w", weight, (0, 0, 2), prepend=1)
    parts = []
    for rank, pieces in enumerate([
        flat_pieces(tensor, values[:6], 0, "state.w", "optimizer")
        + flat_pieces(other, values + 100, 0, "state.w", "optimizer"),
        flat_pieces(tensor, values[6:], 6, "state.w", "optimizer"),
    ]):  # fmt: skip
        parts.append(write_pieces(tmp_path, f"r{rank}", pieces)[1])
    reader = ChunkReader(tmp_path, merge_indexes(parts))
    out = torch.empty(2, 3, 4)
    reader.read("state.w", (0, 0, 0), out)
    assert torch.equal(out, torch.stack([values + 100, values]).view(2, 3, 4))
    back = torch.zeros(7)
    fill(flat_pieces(tensor, back, 3, "state.w", "optimizer"), reader)
    assert torch.equal(back, values[3:10])


def halves(key, data, replica, flat):
    return [sharded(key, part, (0, i, 2), replica=replica) for i, part in enumerate(data.chunk(2))]


def test_factories_are_filled_in_place(tmp_path):
    full = torch.arange(8.0)
    make = [ShardedTensorFactory("g", t, halves, torch.cat, (0, 0, 0)) for t in (full, full * 0)]
    reader = store(tmp_path, {"g": make[0]})
    target = InPlace(
        [{"g": make[1], "e": ShardedObject("x._extra_state", None, (1,), (0,))}], "model"
    )
    check_request(target.pieces, reader, "model", cast=False, vocab_size=None)
    target.fill(reader)
    assert torch.equal(make[1].data, full)


def test_factory_whose_parts_are_copies(tmp_path):
    def swapped(key, data, replica, flat):
        return [sharded(key, data.flip(0).clone(), replica=replica)]

    full, empty = torch.arange(8.0), torch.zeros(8)
    make = [ShardedTensorFactory("g", t, swapped, lambda parts: parts[0].flip(0), (0, 0, 0))
            for t in (full, empty)]  # fmt: skip
    reader = store(tmp_path, {"g": make[0]})
    InPlace([{"g": make[1]}], "model").fill(reader)
    assert torch.equal(empty, full)


@pytest.mark.parametrize(("rows", "fits"), [(8, True), (7, True), (10, True), (6, False)])
def test_padded_vocabulary(tmp_path, rows, fits):
    full = torch.arange(32.0).view(8, 4)
    reader = store(tmp_path, {"e": sharded("e", full, elastic=True)})
    local = torch.full((rows, 4), -1.0)
    pieces = pieces_of(sharded("e", local, elastic=True), "model")
    if not fits:
        with pytest.raises(CheckpointError, match=r"e: stored with shape \[8, 4\]"):
            check_request(pieces, reader, "model", cast=False, vocab_size=7)
        return
    check_request(pieces, reader, "model", cast=False, vocab_size=7)
    fill(pieces, reader)
    assert torch.equal(local[:8], full[:rows]) and (local[8:] == 0).all()


@pytest.mark.parametrize(("request_", "words"), [
    ({"a": torch.zeros(4), "b": torch.zeros(2)}, r"missing in the checkpoint \(1\): b"),
    ({}, r"not in this model \(1\): a"),
    ({"a": torch.zeros(5)}, r"different \(1\): a: stored with shape \[4\], the model has \[5\]"),
    ({"a": torch.zeros(4, dtype=torch.int64)}, "a: stored as torch.float32, expected torch.int64"),
    ({"a": torch.zeros(4, dtype=torch.bfloat16)}, "expected torch.bfloat16"),
])  # fmt: skip
def test_requests_that_do_not_fit(tmp_path, request_, words):
    reader = store(tmp_path, {"a": sharded("a", torch.ones(4))})
    pieces = [p for k, t in request_.items() for p in pieces_of(sharded(k, t), "model")]
    with pytest.raises(CheckpointError, match=words):
        check_request(pieces, reader, "model", cast=False, vocab_size=None)
    assert all((t == 0).all() for t in request_.values())


def test_casting_between_floats_only(tmp_path):
    reader = store(tmp_path, {"a": sharded("a", torch.tensor([1.5, 2.5]))})
    local = torch.zeros(2, dtype=torch.bfloat16)
    pieces = pieces_of(sharded("a", local), "model")
    check_request(pieces, reader, "model", cast=True, vocab_size=None)
    fill(pieces, reader)
    assert local.tolist() == [1.5, 2.5]
    whole = pieces_of(sharded("a", torch.zeros(2, dtype=torch.int32)), "model")
    with pytest.raises(CheckpointError, match="int32"):
        check_request(whole, reader, "model", cast=True, vocab_size=None)


def test_tree_with_everything(tmp_path):
    """Lists, integer keys, factories, objects and local values come back in their places."""

    def tree(scale, local):
        return {
            "state": {0: {"m": sharded("s.m", torch.arange(4.0) * scale),
                          "g": ShardedTensorFactory("s.g", torch.arange(8.0) * scale, halves,
                                                    torch.cat, (0, 0, 0))}},
            "nested": [[sharded("n", torch.ones(2) * scale)],
                       [sharded("k", torch.ones(3) * scale)]],
            "groups": [{"lr": 0.1 * scale, "params": LocalNonpersistentObject(local)}],
            "object": ShardedObject("o", {"a": scale}, (1,), (0,)),
            "te": ShardedObject("x._extra_state", None, (1,), (0,)),
        }  # fmt: skip

    share = split_for_saving(tree(1, "saved"), "optimizer")
    assert share.common == {"groups": [{"lr": 0.1}]}
    index = write_pieces(tmp_path, "r0", share.pieces)[1]
    reader = ChunkReader(tmp_path, merge_indexes([index]))
    loaded = load_tree(tree(0, "here"), reader, "optimizer", common=share.common,
                       objects=share.objects, vocab_size=None)  # fmt: skip
    assert loaded["groups"] == [{"lr": 0.1, "params": "here"}]
    assert loaded["state"][0]["m"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert loaded["state"][0]["g"].tolist() == list(range(8))
    assert [t.tolist() for row in loaded["nested"] for t in row] == [[1, 1], [1, 1, 1]]
    assert loaded["object"] == {"a": 1} and loaded["te"] is None
    with pytest.raises(CheckpointError, match="o/shard"):
        load_tree(tree(0, "here"), reader, "optimizer", common={}, objects={}, vocab_size=None)


def test_pickled_extra_state_is_not_stored():
    state = {"x": ShardedObject("x._extra_state", b"pickle", (1,), (0,))}
    with pytest.raises(CheckpointError, match="pickled extra state"):
        split_for_saving(state, "model")
    empty = {"x": ShardedObject("x._extra_state", torch.zeros(0), (1,), (0,))}
    assert split_for_saving(empty, "model").objects == {}


def test_model_with_other_objects_is_refused():
    with pytest.raises(CheckpointError, match="tensors only"):
        InPlace([{"o": ShardedObject("o", 1, (1,), (0,))}], "model")
