"""Command `mindspeed-llm dialogues`: writes mt-recall's files; knows flags and summary only."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mindspeed_llm.config.dialogues import DialoguesConfig
from mindspeed_llm.config.flags import parse
from mindspeed_llm.evaluation import files
from mindspeed_llm.evaluation.dialogues import test_set, training_set
from mindspeed_llm.evaluation.small_talk import service_talk


def main(argv: Sequence[str]) -> int:
    """Parse, write, say what was written."""
    (config,) = parse(
        argv,
        DialoguesConfig,
        prog="mindspeed-llm dialogues",
        description="Write mt-recall: dialogues whose questions need earlier turns (JSON lines).",
    )
    counts = files.write(
        config.output,
        train=training_set(config.train, config.seed),
        talk=service_talk(config.talk, random.Random(f"{config.seed}-talk")),
        test=test_set(config.test, config.seed, config.distances),
    )
    for name, count in counts.items():
        print(f"{config.output / name}: {count} dialogue{'' if count == 1 else 's'}")
    return 0
