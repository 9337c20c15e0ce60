"""Memory of one sequence: it grows, is cut back and copied, and windows drop what nobody sees."""

import pytest
import torch

from mindspeed_llm.inference import memory
from mindspeed_llm.inference.memory import KeyValues, Shape, blocks

WINDOW = 6


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BLOCK", 4)
    monkeypatch.setattr(memory, "_BACK", 5)


@pytest.fixture
def shape() -> Shape:
    return Shape(windows=(None, WINDOW, None), groups=2, head_dim=3, limit=64,
                 dtype=torch.float32, device=torch.device("cpu"))  # fmt: skip


def write(held: KeyValues, count: int) -> None:
    """Each new position holds its own number, keys positive, values negative."""
    start = held.length
    numbers = torch.arange(start, start + count, dtype=torch.float32)
    for fresh, keys, values in held.open(count):
        fresh[0] = numbers[None, :, None]
        fresh[1] = -numbers[None, :, None]
        seen = torch.arange(start + count - keys.shape[2], start + count)
        assert torch.equal(keys[0, 1, :, 2], seen.float()), "kept, in order, the new ones last"
        assert torch.equal(values, -keys)


def test_what_was_written_stays_and_windows_see_enough(shape: Shape) -> None:
    held = KeyValues(shape)
    for count in (1, 7, 1, 1, 12, *[1] * 30):
        start = held.length
        write(held, count)
        (_, whole, _), (_, window, _), _ = views(held)
        assert whole.shape[2] == held.length == start + count
        assert window.shape[2] >= min(held.length, WINDOW)


def views(held: KeyValues) -> list:
    """Of all positions: opened anew for the last one."""
    held.length -= 1
    return list(held.open(1))


def test_a_window_holds_no_more_than_it_needs(shape: Shape) -> None:
    held = KeyValues(shape)
    for _ in range(60):
        write(held, 1)
    (sliding,) = [part for window, part in held._parts.items() if window]
    assert sliding.store.shape[3] <= WINDOW + 5 + 4
    assert held.capacity >= 60


def test_it_grows_by_blocks_and_no_further_than_its_limit(shape: Shape) -> None:
    held = KeyValues(shape)
    held.limit = 20
    sizes = []
    for _ in range(20):
        write(held, 1)
        sizes.append(held.capacity)
    assert sizes[0] == 4 and sizes[-1] == 20
    assert all(size % 4 == 0 for size in sizes)
    with pytest.raises(ValueError, match="65 positions do not fit a KV cache of 64"):
        held.open(45)


def test_cutting_back_goes_as_far_as_the_window_allows(shape: Shape) -> None:
    held = KeyValues(shape)
    for _ in range(40):
        write(held, 1)
    assert held.crop(37) == 37
    write(held, 2)
    assert held.crop(50) == 39
    assert held.crop(3) == 0, "what the next position would see is gone"
    write(held, 9)
    assert held.length == 9


def test_a_copy_has_memory_of_its_own(shape: Shape) -> None:
    held = KeyValues(shape)
    for _ in range(40):
        write(held, 1)
    twin = held.copy(38)
    assert twin.length == 38
    write(twin, 3)
    twin.open(1)[0][0].fill_(7)
    write(held, 1)
    assert held.copy(3).length == 0
    assert KeyValues(shape).copy(9).length == 0


def test_whole_blocks() -> None:
    assert [blocks(n) for n in (1, 4, 5)] == [4, 4, 8]
