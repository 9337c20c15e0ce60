"""Owns prompts in and replies out, without a conversation: where prompts come from, and the file of
replies. It knows nothing of how replies are made."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mindspeed_llm.cli.progress import shown
from mindspeed_llm.cli.text_file import write_text
from mindspeed_llm.config.inference import GenerationSettings, LoadSettings, TaskSettings
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.inference.journal import Journal
from mindspeed_llm.logging import get_logger

if TYPE_CHECKING:
    from mindspeed_llm.inference.engine import Engine, Reply
    from mindspeed_llm.inference.load import Parts
    from mindspeed_llm.inference.sampling import Sampling

_log = get_logger(__name__)
_SHAPES = '{"prompt": text} or {"messages": [{"role": ..., "content": ...}, ...]}'


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is to be answered, and how the row of the reply begins."""

    conversation: Conversation
    row: dict[str, Any]
    where: str

    @classmethod
    def of(cls, text: str, system: str | None, where: str = "") -> Prompt:
        """A single text."""
        return cls(Conversation.of(text, system=system), {"prompt": text}, where)


def read_prompts(task: TaskSettings, system: str | None, stdin: TextIO) -> list[Prompt]:
    """Prompts of --prompt, --prompts-file, or the lines of a pipe.

    Raises:
        ConfigError: there are none.
        DataError: a file that cannot be read, or a line of another shape; names it.
    """
    if task.prompt is not None:
        prompts = [Prompt.of(task.prompt, system)] if task.prompt.strip() else []
    elif task.prompts_file is not None:
        prompts = _prompts_in(task.prompts_file, system)
    elif not stdin.isatty():
        prompts = [Prompt.of(line.rstrip("\r\n"), system) for line in stdin if line.strip()]
    else:
        prompts = []
    if not prompts:
        raise ConfigError(
            f"--task {task.task} has no prompt to answer; give --prompt TEXT, --prompts-file PATH, "
            "or lines through a pipe"
        )
    return prompts


def _prompts_in(path: Path, system: str | None) -> list[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"--prompts-file {path}: cannot be read: {err}") from err
    lines_at = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [Prompt.of(line, system, where) for where, line in lines_at]
    prompts = []
    for where, line in lines_at:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as err:
            raise DataError(f"{where}: not JSON: {err}") from err
        if isinstance(value, dict) and "messages" in value:
            conversation = _conversation(value["messages"], system, where)
            prompts.append(Prompt(conversation, {"messages": value["messages"]}, where))
            continue
        text = value["prompt"] if isinstance(value, dict) and "prompt" in value else value
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: expected a text, {_SHAPES}")
        prompts.append(Prompt.of(text, system, where))
    return prompts


def _conversation(value: Any, system: str | None, where: str) -> Conversation:
    """A list of messages as OpenAI writes them, system text first if there is one."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages: expected a list that is not empty")
    messages = []
    for at, row in enumerate(value):
        role, content = (row.get("role"), row.get("content")) if isinstance(row, dict) else (0, 0)
        if not isinstance(content, str):
            raise DataError(f"{where}: messages[{at}]: expected role and content, both texts")
        if at == 0 and role == "system":
            system = content
            continue
        due = "assistant" if len(messages) % 2 else "user"
        if role != due:
            raise DataError(f"{where}: messages[{at}]: role {role!r} where {due!r} is due")
        messages.append(Message(due, content))
    conversation = Conversation(tuple(messages), system)
    if not conversation.is_open:
        raise DataError(f"{where}: messages: the last one is not the user's: nothing to answer")
    return conversation


def _answered(output: Path) -> dict[str, dict[str, Any]]:
    """Rows of an earlier --output by their keys; a line without one is left aside.

    Raises:
        DataError: the file cannot be read.
    """
    if not output.is_file():
        return {}
    try:
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as err:
        raise DataError(f"{output}: cannot be read: {err.strerror}") from err
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("key"), str) and "reply" in row:
                found[row["key"]] = row
    return found


def generate(
    parts: Parts,
    engine: Engine,
    load: LoadSettings,
    task: TaskSettings,
    generation: GenerationSettings,
    sampling: Sampling,
    prompts: Sequence[Prompt],
) -> None:
    """Answer all prompts, show the replies in order, write them to --output.

    Raises:
        DataError: a prompt that the model cannot take, or a file that cannot be written.
        KeyboardInterrupt: Ctrl-C; what was answered is kept for the next run.
    """
    from mindspeed_llm.inference.chat import interruptible
    from mindspeed_llm.inference.sampling import of_prompts
    from mindspeed_llm.inference.stream import printable

    ids = [_ids(parts, engine, generation, prompt) for prompt in prompts]
    output = task.output
    part = None if output is None else output.with_name(f"{output.name}.part")
    answers = Journal(part, None if output is None else _answered(output))
    drawn = of_prompts(sampling, ids)
    keys = _keys(load, generation, drawn, engine, ids, named=task.output is not None)
    due = {key: at for at, key in enumerate(keys) if key not in answers.rows}
    places = sorted(due.values())
    if len(places) < len(set(keys)):
        _log.info("%s: %d of %d are answered already", task.output, len(set(keys)) - len(places),
                  len(set(keys)))  # fmt: skip
    batches = _batches(parts, engine, generation, [drawn[place] for place in places],
                       task.micro_batch_size, [ids[place] for place in places])  # fmt: skip
    with shown("answering", len(places)) as progress, interruptible() as pressed:
        for rows in batches:
            found = {places[at]: row for at, row in rows.items()}
            answers.add({keys[at]: {**prompts[at].row, **row, "key": keys[at]}
                         for at, row in found.items()})  # fmt: skip
            progress(len(rows))
            if pressed.is_set() and len(answers.rows) < len(set(keys)):
                raise KeyboardInterrupt
    rows = [answers.rows[key] for key in keys]
    if output is not None:
        write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        answers.remove()
    for prompt, row in zip(prompts, rows, strict=True):
        asked = prompt.conversation.messages[-1].content
        print(f"You >> {printable(asked)}\nMindSpeed-LLM:\n{printable(row['reply'])}\n")


def _ids(parts: Parts, engine: Engine, generation: GenerationSettings, prompt: Prompt) -> list[int]:
    conversation = prompt.conversation
    where = f"{prompt.where}: " if prompt.where else ""
    try:
        "".join([conversation.system or "", *(m.content for m in conversation.messages)]).encode()
    except UnicodeEncodeError as err:
        raise DataError(f"{where}the prompt is no text: {err}; take this character out") from err
    if parts.renderer is not None:
        ids = parts.renderer.prompt(conversation)
    elif len(conversation.messages) > 1 or conversation.system is not None:
        raise DataError(f"{where}a conversation needs a chat template: --prompt-type NAME")
    else:
        # As a base model was trained: the text alone, with what its tokenizer puts before a text.
        ids = parts.tokenizer.hf(conversation.messages[0].content)["input_ids"]
    if len(ids) + generation.max_new_tokens > engine.context:
        raise DataError(
            f"{where}the prompt has {len(ids)} tokens and --max-new-tokens is "
            f"{generation.max_new_tokens}: together more than the context of {engine.context}"
        )
    return ids


def _keys(
    load: LoadSettings,
    generation: GenerationSettings,
    sampling: Sequence[Sampling],
    engine: Engine,
    ids: Sequence[list[int]],
    *,
    named: bool,
) -> list[str]:
    """A name for each prompt; `named`: a hash of all that the reply depends on, else its place."""
    from mindspeed_llm.inference.session import weights_fingerprint

    if not named:
        return [str(place) for place in range(len(ids))]
    same = [weights_fingerprint(load.load, load.lora_load), load.bf16, generation.max_new_tokens,
            generation.stop, sorted(engine.stop_ids)]  # fmt: skip
    rows = [json.dumps([row, dataclasses.asdict(drawn), same])
            for row, drawn in zip(ids, sampling, strict=True)]  # fmt: skip
    return [hashlib.sha256(row.encode()).hexdigest()[:32] for row in rows]


def _batches(
    parts: Parts,
    engine: Engine,
    generation: GenerationSettings,
    sampling: Sequence[Sampling],
    batch_size: int,
    ids: Sequence[list[int]],
) -> Iterator[dict[int, dict[str, Any]]]:
    """Place in `ids` -> row of its reply, a batch at a time."""
    from mindspeed_llm.inference.stream import TextStream

    def decode(tokens: Sequence[int]) -> str:
        return parts.tokenizer.decode(tokens, skip_special_tokens=True)

    streams: dict[int, TextStream] = {}
    texts: dict[int, str] = {}

    def ends(place: int, token: int) -> bool:
        stream = streams.setdefault(place, TextStream(decode, generation.stop, raw=True))
        texts[place] = texts.get(place, "") + stream.push(token)
        return stream.stopped

    for replies in engine.batches(
        ids, sampling=sampling, max_new_tokens=generation.max_new_tokens, batch_size=batch_size,
        ends=ends if generation.stop else None,
    ):  # fmt: skip
        yield {
            place: _row(decode(reply.ids) if place not in streams
                        else texts[place] + streams[place].finish(), reply)
            for place, reply in replies.items()
        }  # fmt: skip


def _row(text: str, reply: Reply) -> dict[str, Any]:
    row: dict[str, Any] = {"reply": text, "tokens": len(reply.ids), "stop": reply.stop}
    if reply.logprobs:
        row |= {"ids": reply.ids, "logprobs": [one._asdict() for one in reply.logprobs]}
    return row
