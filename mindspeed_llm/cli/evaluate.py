"""Owns `evaluation.py` and `mindspeed-llm evaluate`: flags, tables, the file of results. It knows
nothing of how replies or scores are made."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
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
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.evaluation import report
from mindspeed_llm.evaluation.curves import draw_recall
from mindspeed_llm.evaluation.dialogues import Dialogue
from mindspeed_llm.evaluation.files import (
    read_conversations,
    read_dialogues,
    read_result,
    read_script,
    row,
)

if TYPE_CHECKING:
    from mindspeed_llm.data.render import Renderer
    from mindspeed_llm.evaluation.run import Evaluated
    from mindspeed_llm.inference.engine import Engine
    from mindspeed_llm.inference.load import Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """What was read: dialogues to score, conversations, a user's turns to replay, and the result
    of an earlier evaluation."""

    scored: list[Dialogue]
    conversations: list[Conversation]
    script: list[str]
    earlier: dict[str, Any] | None


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
    given = _read(load, evaluate)
    models = [load]
    if evaluate.compare is not None and given.earlier is None:
        models.insert(0, _other(load, evaluate.compare))
    results: list[dict[str, Any]] = [] if given.earlier is None else [given.earlier]
    for model in models:

        def work(parts: Parts, engine: Engine, model: LoadSettings = model) -> None:
            assert parts.renderer is not None
            print(f"--- {model.lora_load or model.load}", flush=True)
            asked = _resumed(engine, model, evaluate)
            results.append(_evaluate(asked, parts.renderer, model, evaluate, given))

        lead(model, runtime, parallel, architecture, work)
    if results:  # on rank 0
        _conclude(results, evaluate)
    return 0


def _read(load: LoadSettings, evaluate: EvaluateSettings) -> Given:
    """Everything is read before anything long begins."""
    earlier = None
    if evaluate.compare is not None and not evaluate.compare.is_dir():
        earlier = read_result(evaluate.compare)
    conversations: list[Conversation] = []
    if evaluate.input is not None:
        conversations = [
            c if c.system is not None else dataclasses.replace(c, system=load.system)
            for c in read_conversations(evaluate.input, evaluate.handler_name, evaluate.map_keys,
                                        evaluate.max_conversations)
        ]  # fmt: skip
    return Given(
        scored=read_dialogues(evaluate.data) if evaluate.data else [],
        conversations=conversations,
        script=read_script(evaluate.replay) if evaluate.replay else [],
        earlier=earlier,
    )


def _other(load: LoadSettings, compare: Path) -> LoadSettings:
    """What loads the model of --compare: as --load, without its adapter."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"--compare {compare}: several processes load one model a run; evaluate that one by "
            "itself with --json FILE, and give --compare FILE"
        )
    return dataclasses.replace(load, load=compare, lora_load=None)


def _resumed(engine: Engine, load: LoadSettings, evaluate: EvaluateSettings) -> Evaluated:
    """The engine; where there is a file of results, with what an interrupted run has found."""
    from mindspeed_llm.evaluation.kept import Kept
    from mindspeed_llm.inference.session import weights_fingerprint

    if evaluate.json is None:
        return engine
    model = [weights_fingerprint(load.load, load.lora_load), load.bf16, sorted(engine.stop_ids)]
    return Kept(engine, _part(evaluate.json), json.dumps(model))


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _conclude(results: Sequence[dict[str, Any]], evaluate: EvaluateSettings) -> None:
    last = results[-1]
    if len(results) == 2:
        print("\n" + "\n".join(report.side_by_side(results[0], last)))
        last = last | {"compare": {k: v for k, v in results[0].items() if k != "compare"}}
    if evaluate.json is not None:
        write_text(evaluate.json, json.dumps(last, indent=1, ensure_ascii=False) + "\n")
        _part(evaluate.json).unlink(missing_ok=True)
    if evaluate.png is not None:
        named = {str(r["load"]): r["recall"] for r in results if "recall" in r}
        print(draw_recall(named, evaluate.png))


def _evaluate(
    engine: Evaluated,
    renderer: Renderer,
    load: LoadSettings,
    evaluate: EvaluateSettings,
    given: Given,
) -> dict[str, Any]:
    # Late: it imports megatron-core, which is patched by now.
    from mindspeed_llm.evaluation import run

    result: dict[str, Any] = {"load": str(load.load), "template": renderer.template.name}
    if load.lora_load is not None:
        result["lora_load"] = str(load.lora_load)
    started = time.monotonic()
    if given.scored:
        result |= _recall(engine, renderer, load, evaluate, given.scored)
    if given.conversations:
        with shown("conversations", len(given.conversations)) as progress:
            found = run.likelihood(engine, renderer, given.conversations, progress=progress)
        print("\n".join(report.single({"input": found})), flush=True)
        result["input"] = found
        count = 3 * sum(len(c.messages) >= 4 for c in given.conversations)
        with shown("history gain", count) as progress:
            gain = run.history_gain(engine, renderer, given.conversations, progress=progress)
        result["history_gain"] = gain
        print("\n".join(report.single({"history_gain": gain})))
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


def _recall(
    engine: Evaluated, renderer: Renderer, load: LoadSettings, evaluate: EvaluateSettings,
    dialogues: Sequence[Dialogue],
) -> dict[str, Any]:  # fmt: skip
    from mindspeed_llm.evaluation import recall, run

    with shown("recall", run.probes(dialogues)) as progress:
        outcomes = run.recall(
            engine,
            renderer,
            dialogues,
            system=load.system,
            max_new_tokens=evaluate.max_new_tokens,
            batch_size=evaluate.micro_batch_size,
            progress=progress,
        )
    found = recall.summary(outcomes)
    replies = [
        row(o.dialogue) | {"replies": list(o.replies), "exact": o.exact, "value": o.value,
                           "stopped": o.stopped} for o in outcomes
    ]  # fmt: skip
    print("\n".join(recall.table(found)))
    print(f"replies that end by themselves: {100 * found['all']['stopped']:.0f} %")
    return {"recall": found, "replies": replies}
