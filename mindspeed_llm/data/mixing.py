"""Owns mixing sources by weight: which of their rows come in which order. Knows only counts.

A weight is a source's share of the mix's rows, relative to the other weights. At every point of the
mix each source has its share to within one row (R. Tijdeman, "The chairman assignment problem",
1980: of the sources that are behind, take the one whose next row is due first). A source's rows
come in a random order that depends on the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mindspeed_llm.errors import ConfigError

_LARGEST = 100  # times the rows there are


def mix(counts: Sequence[int], weights: Sequence[float], seed: int, repeat: bool) -> np.ndarray:
    """Numbers of the rows of the mix, int64; rows are numbered through, source after source.

    Args:
        counts: rows of each source, all positive.
        weights: their shares, all positive.
        seed: of the order within each source.
        repeat: False: the mix ends when the source whose turn it is has no row left, so no row
            comes twice. True: such a source begins again in another order, and the mix ends when
            every source was used up once.

    Raises:
        ConfigError: repeating would make more than 100 times the rows there are.
    """
    shares = [weight / sum(weights) for weight in weights]
    size = max(count / share for count, share in zip(counts, shares, strict=True))
    if repeat and size > _LARGEST * sum(counts):
        raise ConfigError(f"--mix-exhausted repeat: these weights repeat {sum(counts):,} rows into "
                          f"{size:,.0f}; choose weights nearer to the sizes of the sources "
                          f"({', '.join(f'{count:,}' for count in counts)})")  # fmt: skip
    drawn = _schedule(counts, shares, repeat)
    starts = np.cumsum([0, *counts])
    rows = np.empty(len(drawn), dtype=np.int64)
    for source, count in enumerate(counts):
        places = np.flatnonzero(drawn == source)
        passes = [np.random.default_rng([seed, source, number]).permutation(count)
                  for number in range(-(-len(places) // count))]  # fmt: skip
        order = np.concatenate(passes) if passes else np.zeros(0, dtype=np.int64)
        rows[places] = starts[source] + order[: len(places)]
    return rows


def _schedule(counts: Sequence[int], shares: Sequence[float], repeat: bool) -> np.ndarray:
    """Source of each row of the mix, int64."""
    drawn: list[int] = []
    used = [0] * len(shares)
    for source in _turns(shares):
        if not repeat and used[source] == counts[source]:
            break
        used[source] += 1
        drawn.append(source)
        if repeat and all(n >= count for n, count in zip(used, counts, strict=True)):
            break
    return np.asarray(drawn, dtype=np.int64)


def _turns(shares: Sequence[float]) -> Iterator[int]:
    """Endless sources such that after n of them source i was taken n * shares[i] times, +- 1."""
    edge = 1 / (2 * max(1, len(shares) - 1))
    used = [0] * len(shares)
    number = 0
    while True:
        number += 1
        behind = [i for i, share in enumerate(shares) if share * number - used[i] >= edge - 1e-9]
        source = min(behind, key=lambda i: (used[i] + 1 - edge) / shares[i])
        used[source] += 1
        yield source
