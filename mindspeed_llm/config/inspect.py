"""Owns the settings of looking at a prepared data set; knows neither files nor tokenizers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mindspeed_llm.config.flags import setting
from mindspeed_llm.errors import ConfigError

_MOST = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """A prepared data set, and what to show of it"""

    prefix: str = setting(help="prefix of the six files that preprocess_data.py wrote",
                          positional=True)  # fmt: skip
    rows: str = setting("0", help="rows to show, from 0: numbers and ranges such as 0,5,10-12")
    tokenizer_name_or_path: Path | None = setting(
        None, help="Hugging Face directory of the tokenizer; without it ids are shown"
    )
    table: bool = setting(False, help="one line a token instead of one a stretch")
    plot: Path | None = setting(
        None, help="draw histograms of lengths and trained answers to this .png"
    )
    json: bool = setting(False, help="print one JSON object instead")

    def __post_init__(self) -> None:
        if self.table and self.json:
            raise ConfigError("--table and --json are two forms of output; give one of them")
        if len(self.row_numbers) > _MOST:
            raise ConfigError(f"--rows {self.rows}: more than {_MOST} rows; show fewer")

    @property
    def row_numbers(self) -> list[int]:
        """The rows of --rows, in the order given.

        Raises:
            ConfigError: not numbers and ranges.
        """
        found: list[int] = []
        for part in self.rows.split(","):
            first, dash, last = part.strip().partition("-")
            ends = (first, last if dash else first)
            if not all(end.isascii() and end.isdigit() for end in ends) or int(ends[1]) < int(
                ends[0]
            ):
                raise ConfigError(f"--rows {self.rows}: {part!r} is neither a number nor a range")
            if int(ends[1]) - int(ends[0]) > _MOST:
                raise ConfigError(f"--rows {self.rows}: more than {_MOST} rows; show fewer")
            found += range(int(ends[0]), int(ends[1]) + 1)
        return found
