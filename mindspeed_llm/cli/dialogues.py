"""Command `mindspeed-llm dialogues`: writes the memory dialogues; knows flags and summary only."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.config.dialogues import DialoguesConfig
from mindspeed_llm.config.flags import parse
from mindspeed_llm.evaluation import dialogues


def main(argv: Sequence[str]) -> int:
    """Parse, write, say what was written."""
    (config,) = parse(
        argv,
        DialoguesConfig,
        prog="mindspeed-llm dialogues",
        description="Write dialogues whose last question needs an earlier turn (Alpaca, parquet).",
    )
    counts = dialogues.write(config.output, train=config.train, test=config.test, seed=config.seed)
    for name, count in counts.items():
        print(f"{config.output / name}: {count} dialogue{'' if count == 1 else 's'}")
    return 0
