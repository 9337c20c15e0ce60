"""Owns what a server counts, as Prometheus reads it; knows nothing of what is counted."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PREFIX = "mindspeed_llm_"


class Metrics:
    """Counters of one server; used by one thread."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._tokens = {"prompt": 0, "cached": 0, "generated": 0}
        self._cancelled = 0
        self._buckets = [0] * (len(_SECONDS) + 1)
        self._waited = 0.0

    def request(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests[path, status] = self._requests.get((path, status), 0) + 1

    def reply(self, prompt: int, cached: int, generated: int) -> None:
        """A reply is over, with its tokens."""
        for name, count in (("prompt", prompt), ("cached", cached), ("generated", generated)):
            self._tokens[name] += count

    def cancelled(self, count: int) -> None:
        """Replies that nobody waited for any more."""
        self._cancelled += count

    def first_token(self, seconds: float) -> None:
        """A reply has begun, so long after it was asked for."""
        self._buckets[bisect.bisect_left(_SECONDS, seconds)] += 1
        self._waited += seconds

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Everything in Prometheus' text format.

        Args:
            gauges: what is so now: name -> (what it is, value).
        """
        lines: list[str] = []

        def block(name: str, kind: str, help_: str, rows: Mapping[str, float]) -> None:
            lines.append(f"# HELP {_PREFIX}{name} {help_}")
            lines.append(f"# TYPE {_PREFIX}{name} {kind}")
            lines.extend(f"{_PREFIX}{name}{label} {value:g}" for label, value in rows.items())

        block("requests_total", "counter", "Requests answered.", {
            f'{{path="{path}",status="{status}"}}': count
            for (path, status), count in sorted(self._requests.items())
        })  # fmt: skip
        block("tokens_total", "counter", "Tokens of replies that are over.", {
            f'{{kind="{kind}"}}': count for kind, count in self._tokens.items()
        })  # fmt: skip
        block("cancelled_total", "counter", "Replies nobody waited for.", {"": self._cancelled})
        total, rows = 0, {}
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._buckets, strict=True):
            total += count
            rows[f'_bucket{{le="{bound}"}}'] = total
        block("first_token_seconds", "histogram", "Time to a reply's first token.",
              {**rows, "_sum": self._waited, "_count": total})  # fmt: skip
        for name, (help_, value) in gauges.items():
            block(name, "gauge", help_, {"": value})
        return "\n".join(lines) + "\n"
