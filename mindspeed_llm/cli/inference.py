"""Owns `inference.py`, `mindspeed-llm chat` and `generate`: flags, and what the chat's lines and
replies go through. It knows nothing of how replies are made."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mindspeed_llm.cli.completions import generate, read_prompts
from mindspeed_llm.cli.leading import lead
from mindspeed_llm.cli.lines import (
    ReadLine,
    default_history,
    line_reader,
    script_reader,
    silent,
)
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.inference import (
    ALWAYS,
    REFUSED,
    ChatSettings,
    GenerationSettings,
    LoadSettings,
    TaskSettings,
)
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.run import RuntimeSettings
from mindspeed_llm.errors import ConfigError

if TYPE_CHECKING:
    from mindspeed_llm.inference.engine import Engine
    from mindspeed_llm.inference.load import Parts
    from mindspeed_llm.inference.sampling import Sampling


def main(argv: Sequence[str]) -> int:
    """Run `inference.py`; returns the exit code."""
    load, task, chat, generation, runtime, parallel, architecture = parse(
        argv, LoadSettings, TaskSettings, ChatSettings, GenerationSettings, RuntimeSettings,
        ParallelConfig, ArchitectureFlags, prog="inference.py", always=ALWAYS, refused=REFUSED,
        description="Talk to a model, or let it answer prompts.",
    )  # fmt: skip
    temperature = generation.temperature_of(task.kind)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # bytes that are no text end no conversation
    _check(load, task, chat, generation)
    prompts = [] if task.kind == "chat" else read_prompts(task, load.system, sys.stdin)
    script = None if chat.script is None else script_reader(chat.script, sys.stdout)

    def work(parts: Parts, engine: Engine) -> None:
        from mindspeed_llm.inference.sampling import Sampling

        sampling = Sampling(
            temperature=temperature,
            top_k=generation.top_k,
            top_p=generation.top_p,
            min_p=generation.min_p,
            repetition_penalty=generation.repetition_penalty,
            seed=generation.seed,
            logprobs=generation.logprobs,
        )
        if task.kind == "chat":
            _chat(parts, engine, load, chat, generation, sampling, script)
        else:
            generate(parts, engine, load, task, generation, sampling, prompts)

    return lead(load, runtime, parallel, architecture, work)


def _check(
    load: LoadSettings, task: TaskSettings, chat: ChatSettings, generation: GenerationSettings
) -> None:
    chat.check_task(task.kind)
    if task.kind == "chat" and not load.has_template:
        raise ConfigError(
            "--task chat needs the chat template the model was tuned with: --prompt-type NAME, or "
            "--hf-chat-template for the tokenizer's own"
        )
    if load.system is not None and not load.has_template:
        raise ConfigError("--system has no place without --prompt-type or --hf-chat-template")
    written = chat.json if task.kind == "chat" else task.output is not None
    if generation.logprobs is not None and not written:
        raise ConfigError(
            "--logprobs has no place in a plain transcript; give --json (chat) or --output FILE"
        )


def _chat(
    parts: Parts,
    engine: Engine,
    load: LoadSettings,
    settings: ChatSettings,
    generation: GenerationSettings,
    sampling: Sampling,
    script: ReadLine | None,
) -> None:
    from mindspeed_llm.data.dialogue import Dialogue
    from mindspeed_llm.inference import commands
    from mindspeed_llm.inference.chat import Chat
    from mindspeed_llm.inference.manner import Manner
    from mindspeed_llm.inference.session import Identity, weights_fingerprint
    from mindspeed_llm.inference.transcript import JsonLines, Plain

    assert parts.renderer is not None
    renderer = parts.renderer
    if generation.max_new_tokens >= parts.context:
        raise ConfigError(
            f"--max-new-tokens {generation.max_new_tokens} leaves no room in the context of "
            f"{parts.context} tokens; lower it"
        )

    @functools.cache
    def identity() -> Identity:
        return Identity(
            model=weights_fingerprint(load.load, load.lora_load),
            tokenizer=parts.tokenizer.sha256,
            template=f"{renderer.template.name} {renderer.template.fingerprint()}",
        )

    if script is None:
        history = (settings.history_file or default_history()) if settings.keep_history else None
        words = [f"/{name}" for name in commands.COMMANDS]
        script = line_reader(sys.stdin, sys.stdout, history=history, words=words)
    chat = Chat(
        engine,
        Dialogue(renderer, load.system),
        read_line=silent(script) if settings.json else script,
        out=JsonLines(sys.stdout) if settings.json else Plain(sys.stdout),
        manner=Manner(
            sampling=sampling,
            max_new_tokens=generation.max_new_tokens,
            history_turns=settings.history_turns,
            overflow=settings.overflow,
            stop=generation.stop,
            stats=settings.stats,
        ),
        identity=identity,
    )
    if settings.session is not None:
        commands.load(chat, settings.session)
    chat.run()
