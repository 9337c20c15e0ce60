"""Owns `evaluation.py` and `mindspeed-llm evaluate`: flags, tables, the file of results. It knows
nothing of how replies or scores are made."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mindspeed_llm.cli.leading import lead
from mindspeed_llm.cli.progress import shown
from mindspeed_llm.cli.text_file import write_text
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.evaluate import EvaluateSettings
from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.inference import ALWAYS, REFUSED, LoadSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import RuntimeSettings
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.evaluation.dialogues import Dialogue
from mindspeed_llm.evaluation.files import read_dialogues, read_script

if TYPE_CHECKING:
    from mindspeed_llm.data.render import Renderer
    from mindspeed_llm.inference.engine import Engine
    from mindspeed_llm.inference.load import Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What was read: dialogues to score, dialogues for their loss, a user's turns to replay."""

    scored: list[Dialogue]
    plain: list[Dialogue]
    script: list[str]


def main(argv: Sequence[str]) -> int:
    """Run `evaluation.py`; returns the exit code."""
    load, evaluate, runtime, parallel, architecture = parse(
        argv, LoadSettings, EvaluateSettings, RuntimeSettings, ParallelConfig, ArchitectureFlags,
        prog="evaluation.py", always=ALWAYS, refused=REFUSED,
        description="How much of a conversation a model remembers, and its loss.",
    )  # fmt: skip
    if not load.has_template:
        raise ConfigError(
            "dialogues need the chat template the model was tuned with: --prompt-type NAME, or "
            "--hf-chat-template for the tokenizer's own"
        )

    # Everything is read before anything long begins.
    given = Given(
        scored=read_dialogues(evaluate.data, scored=True) if evaluate.data else [],
        plain=read_dialogues(evaluate.ordinary, scored=False) if evaluate.ordinary else [],
        script=read_script(evaluate.replay) if evaluate.replay else [],
    )

    def work(parts: Parts, engine: Engine) -> None:
        assert parts.renderer is not None
        result = _evaluate(engine, parts.renderer, load, evaluate, given)
        if evaluate.json is not None:
            write_text(evaluate.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")

    return lead(load, runtime, parallel, architecture, work)


def _evaluate(
    engine: Engine,
    renderer: Renderer,
    load: LoadSettings,
    evaluate: EvaluateSettings,
    given: Given,
) -> dict[str, Any]:
    # Late: it imports megatron-core, which is patched by now.
    from mindspeed_llm.evaluation import recall, run

    result: dict[str, Any] = {"load": str(load.load), "template": renderer.template.name}
    if load.lora_load is not None:
        result["lora_load"] = str(load.lora_load)
    started = time.monotonic()
    if given.scored:
        with shown("recall", len(given.scored)) as progress:
            outcomes = run.recall(
                engine,
                renderer,
                given.scored,
                system=load.system,
                max_new_tokens=evaluate.max_new_tokens,
                batch_size=evaluate.micro_batch_size,
                progress=progress,
            )
        result["recall"] = recall.summary(outcomes)
        result["replies"] = [
            o.dialogue.row() | {"reply": o.reply, "exact": o.exact, "value": o.value,
                                "stopped": o.stopped} for o in outcomes
        ]  # fmt: skip
        print("\n".join(recall.table(result["recall"])))
        print(f"replies that end by themselves: {100 * result['recall']['all']['stopped']:.0f} %")
    if given.plain:
        with shown("ordinary talk", len(given.plain)) as progress:
            result["ordinary"] = run.loss(
                engine, renderer, given.plain, system=load.system, progress=progress
            )
        print(f"loss on ordinary talk: {result['ordinary']['loss']:.4f} nats a token "
              f"({result['ordinary']['tokens']} tokens)")  # fmt: skip
    if given.script:
        result["replay"] = []
        turns = run.replay(
            engine,
            renderer,
            given.script,
            system=load.system,
            max_new_tokens=evaluate.replay_tokens,
        )
        for user, reply in turns:
            result["replay"].append({"user": user, "reply": reply})
            print(f"You >> {user}\nMindSpeed-LLM:\n{reply}\n", flush=True)
    result["seconds"] = round(time.monotonic() - started, 1)
    return result
