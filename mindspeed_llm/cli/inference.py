"""Owns `inference.py`, `mindspeed-llm chat` and `generate`: flags, the terminal, files of prompts
and replies. It knows nothing of how replies are made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mindspeed_llm.cli.leading import lead
from mindspeed_llm.cli.progress import shown
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.inference import (
    ALWAYS,
    REFUSED,
    GenerationSettings,
    LoadSettings,
    TaskSettings,
)
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.train import RuntimeSettings
from mindspeed_llm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mindspeed_llm.inference.engine import Engine
    from mindspeed_llm.inference.load import Parts
    from mindspeed_llm.inference.sampling import Sampling


def main(argv: Sequence[str]) -> int:
    """Run `inference.py`; returns the exit code."""
    load, task, generation, runtime, parallel, architecture = parse(
        argv, LoadSettings, TaskSettings, GenerationSettings, RuntimeSettings, ParallelConfig,
        ArchitectureFlags, prog="inference.py", always=ALWAYS, refused=REFUSED,
        description="Talk to a model, or let it answer prompts.",
    )  # fmt: skip
    temperature = generation.temperature_of(task.kind)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # bytes that are no text end no conversation
    if task.kind == "chat" and not load.has_template:
        raise ConfigError(
            "--task chat needs the chat template the model was tuned with: --prompt-type NAME, or "
            "--hf-chat-template for the tokenizer's own"
        )
    if load.system is not None and not load.has_template:
        raise ConfigError("--system has no place without --prompt-type or --hf-chat-template")
    prompts = [] if task.kind == "chat" else read_prompts(task, sys.stdin)

    def work(parts: Parts, engine: Engine) -> None:
        from mindspeed_llm.inference.sampling import Sampling

        sampling = Sampling(
            temperature=temperature,
            top_k=generation.top_k,
            top_p=generation.top_p,
            seed=generation.seed,
        )
        if task.kind == "chat":
            _chat(parts, engine, load, task, generation, sampling)
        else:
            _generate(parts, engine, load, task, generation, sampling, prompts)

    return lead(load, runtime, parallel, architecture, work)


def _chat(
    parts: Parts,
    engine: Engine,
    load: LoadSettings,
    task: TaskSettings,
    generation: GenerationSettings,
    sampling: Sampling,
) -> None:
    from mindspeed_llm.data.dialogue import Dialogue
    from mindspeed_llm.inference.chat import Chat

    assert parts.renderer is not None
    if generation.max_new_tokens >= parts.context:
        raise ConfigError(
            f"--max-new-tokens {generation.max_new_tokens} leaves no room in the context of "
            f"{parts.context} tokens; lower it"
        )
    Chat(
        engine,
        Dialogue(parts.renderer, load.system),
        read_line=line_reader(sys.stdin, sys.stdout),
        out=sys.stdout,
        sampling=sampling,
        max_new_tokens=generation.max_new_tokens,
        history_turns=task.history_turns,
    ).run()


def line_reader(stdin: TextIO, stdout: TextIO) -> Callable[[str], str]:
    """A function that shows a prompt and returns a line; EOFError at the end of the input.

    At a terminal lines can be edited; what comes through a pipe is shown after its prompt, so that
    the transcript can be read.
    """
    if stdin.isatty() and stdout.isatty():
        try:
            import readline  # noqa: F401  importing it gives input() a line editor
        except ImportError:
            pass  # a Python built without it: input() still reads lines
        return input

    def read(prompt: str) -> str:
        stdout.write(prompt)
        stdout.flush()
        line = stdin.readline()
        if not line:
            raise EOFError
        line = line.rstrip("\r\n")
        if not stdin.isatty():
            stdout.write(line + "\n")
        return line

    return read


def read_prompts(task: TaskSettings, stdin: TextIO) -> list[str]:
    """Prompts of --prompt, --prompts-file, or the lines of a pipe.

    Raises:
        ConfigError: there are none.
        DataError: a file that cannot be read, or a line of another shape; names it.
    """
    if task.prompt is not None:
        prompts = [task.prompt]
    elif task.prompts_file is not None:
        prompts = _prompts_in(task.prompts_file)
    elif not stdin.isatty():
        prompts = [line.rstrip("\r\n") for line in stdin if line.strip()]
    else:
        prompts = []
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ConfigError(
            f"--task {task.task} has no prompt to answer; give --prompt TEXT, --prompts-file PATH, "
            "or lines through a pipe"
        )
    return prompts


def _prompts_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"--prompts-file {path}: cannot be read: {err}") from err
    lines_at = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in lines_at]
    prompts = []
    for number, line in lines_at:
        try:
            value = json.loads(line)
        except ValueError as err:
            raise DataError(f"{path}:{number}: not JSON: {err}") from err
        text = value["prompt"] if isinstance(value, dict) and "prompt" in value else value
        if not isinstance(text, str):
            raise DataError(f'{path}:{number}: expected a text or {{"prompt": text}}')
        prompts.append(text)
    return prompts


def _generate(
    parts: Parts,
    engine: Engine,
    load: LoadSettings,
    task: TaskSettings,
    generation: GenerationSettings,
    sampling: Sampling,
    prompts: Sequence[str],
) -> None:
    from mindspeed_llm.data.messages import Conversation
    from mindspeed_llm.inference.stream import printable

    renderer = parts.renderer
    if renderer is not None:
        ids = [renderer.prompt(Conversation.of(text, system=load.system)) for text in prompts]
    else:
        # As a base model was trained: the text alone, with what its tokenizer puts before a text.
        ids = [parts.tokenizer.hf(text)["input_ids"] for text in prompts]
    with shown("answering", len(prompts)) as progress:
        replies = engine.generate_batch(
            ids,
            sampling=sampling,
            max_new_tokens=generation.max_new_tokens,
            batch_size=task.micro_batch_size,
            progress=progress,
        )
    rows = []
    for prompt, reply in zip(prompts, replies, strict=True):
        text = parts.tokenizer.decode(reply.ids, skip_special_tokens=True)
        rows.append({"prompt": prompt, "reply": text, "tokens": len(reply.ids), "stop": reply.stop})
        print(f"You >> {prompt}\nMindSpeed-LLM:\n{printable(text)}\n")
    if task.output is not None:
        write_text(task.output, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def write_text(path: Path, text: str) -> None:
    """Write a file that is complete or absent; its directory is made.

    Raises:
        DataError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as err:
        with contextlib.suppress(OSError):  # there may be nothing, or no directory, to clean
            temporary.unlink()
        raise DataError(f"{path}: cannot be written: {err.strerror}") from err
