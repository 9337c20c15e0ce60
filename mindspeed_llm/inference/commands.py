"""Owns the commands of a conversation: lines that begin with `/`. It knows no terminal; what a
command has to say goes to the chat's transcript."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mindspeed_llm.data.dialogue import Dialogue
from mindspeed_llm.data.messages import Conversation
from mindspeed_llm.errors import ConfigError, DataError, TemplateError, UserError
from mindspeed_llm.inference.session import (
    Identity,
    Made,
    Session,
    read_session,
    write_session,
)

if TYPE_CHECKING:
    from mindspeed_llm.inference.chat import Chat

_LARGEST_FILE = 16 * 2**20  # bytes; no context holds more


class Command(NamedTuple):
    """What is typed after it, what it does, and the doing: told the rest of the line."""

    argument: str
    help: str
    run: Callable[[Chat, str], None]


def obey(chat: Chat, line: str) -> bool:
    """Do what a line that begins with `/` says; returns whether the talk is over.

    A mistake is told and changes nothing.
    """
    name, _, rest = line[1:].partition(" ")
    if name in ("quit", "exit", "bye"):
        return True
    command = COMMANDS.get(name)
    if command is None:
        chat.out.refuse(f"no command /{name}; /help lists them, and //{name} sends it as text")
        return False
    try:
        command.run(chat, rest.strip())
    except UserError as err:
        chat.out.refuse(str(err))
    return False


def _help(chat: Chat, _: str) -> None:
    for name, command in COMMANDS.items():
        chat.out.notice(f"/{name} {command.argument}".rstrip() + f": {command.help}")
    chat.out.notice("q, quit, exit, /quit leave; clear, new, /clear begin a new conversation")
    chat.out.notice(
        '""" begins and ends a text of several lines; // begins a text with a slash', last=True
    )


def _system(chat: Chat, text: str) -> None:
    dialogue = chat.dialogue
    if text:
        dialogue.renderer.prompt(Conversation.of("x", system=text))  # a template may refuse it
        dialogue.system = text
        chat.out.notice("the system text counts from the next reply on", last=True)
    elif dialogue.system is None:
        chat.out.notice("the template's own system text", last=True)
    else:
        chat.out.notice(f"system text: {dialogue.system}", last=True)


def _set(chat: Chat, text: str) -> None:
    if not text:
        raise ConfigError("/set NAME VALUE; /show lists names and values")
    name, _, value = text.replace("=", " ", 1).partition(" ")
    manner = chat.manner.changed(name, value)
    if manner.max_new_tokens >= chat.engine.context:
        raise ConfigError(
            f"max_new_tokens {manner.max_new_tokens} leaves no room in the context of "
            f"{chat.engine.context} tokens"
        )
    chat.manner = manner
    idle = manner.sampling.idle
    note = f"; {', '.join(idle)} without effect while temperature is 0" if idle else ""
    chat.out.notice(f"{name} is {value.strip() or 'empty'}{note}", last=True)


def _show(chat: Chat, text: str) -> None:
    if text == "turns":
        for number, turn in enumerate(chat.dialogue.history, 1):
            out = "" if number > chat.dialogue.first else ", left out"
            chat.out.notice(f"turn {number}{out}: {turn.user}")
            chat.out.notice(f"answer {number}: {turn.text}")
        chat.out.notice(f"{len(chat.dialogue.history)} turns", last=True)
        return
    if text:
        raise ConfigError(f"/show {text}: expected /show or /show turns")
    rows = {"template": chat.dialogue.renderer.template.name, "context": chat.engine.context}
    for name, value in (rows | chat.manner.rows()).items():
        chat.out.notice(f"{name} {value}")
    _system(chat, "")


def _undo(chat: Chat, _: str) -> None:
    if not chat.dialogue.history:
        raise ConfigError("there is no turn to take back")
    user = chat.dialogue.history[-1].user
    chat.dialogue.take_back()
    chat.out.notice(f"taken back: {user}", last=True)


def _regen(chat: Chat, _: str) -> None:
    if not chat.dialogue.history:
        raise ConfigError("there is no reply to make anew")
    turn = chat.dialogue.reopen()
    if chat.manner.sampling.is_greedy:
        chat.out.notice("greedy: the same prompt gives the same reply; /set temperature draws")
    try:
        chat.reply()
    except TemplateError:
        chat.dialogue.answer(turn.answer or [], turn.note)
        raise


def _identity(chat: Chat) -> Identity:
    if chat.identity is None:
        raise ConfigError("sessions cannot be saved here: the model has no files")
    return chat.identity()


def _save(chat: Chat, text: str) -> None:
    path = _path(text, "/save FILE")
    write_session(
        path,
        Session(
            identity=_identity(chat), manner=chat.manner, system=chat.dialogue.system,
            replies=chat.replies, left_out=chat.dialogue.first, turns=chat.dialogue.history,
        ),
    )  # fmt: skip
    chat.out.notice(f"{len(chat.dialogue.history)} turns saved in {path}", last=True)


def _load(chat: Chat, text: str) -> None:
    name, force = text, False
    if text.endswith(" force"):
        name, force = text.removesuffix(" force"), True
    load(chat, _path(name, "/load FILE"), force=force)


def load(chat: Chat, path: Path, *, force: bool = False) -> None:
    """Go on with the conversation in `path`.

    Args:
        chat: whose conversation is replaced.
        path: of the session.
        force: take it though it is of another model; with another tokenizer the answers' ids mean
            nothing, so their texts are encoded anew.

    Raises:
        DataError: no session, or of another model.
    """
    session = read_session(path)
    own = _identity(chat)
    differ = session.identity.differences(own)
    if differ and not force:
        raise DataError(
            f"{path}: the session is of another {', '.join(differ)}; /load {path} force takes "
            "it nevertheless"
        )
    turns = list(session.turns)
    tokenizer = chat.dialogue.renderer.tokenizer
    if "tokenizer" in differ:
        turns = [dataclasses.replace(t, answer=tokenizer.encode_text(t.text)) for t in turns]
    elif any(index >= chat.engine.vocabulary for turn in turns for index in turn.answer or ()):
        raise DataError(f"{path}: ids beyond the vocabulary of {chat.engine.vocabulary} tokens")
    if session.manner.max_new_tokens >= chat.engine.context:
        raise DataError(
            f"{path}: max_new_tokens {session.manner.max_new_tokens} leaves no room in the context "
            f"of {chat.engine.context} tokens"
        )
    chat.dialogue.restore(turns, session.left_out)
    chat.dialogue.system = session.system
    chat.manner, chat.replies = session.manner, session.replies
    chat.attached.clear()
    note = f", though it is of another {', '.join(differ)}" if differ else ""
    chat.out.notice(f"{len(turns)} turns and the settings of {path}{note}", last=True)


def _replay(chat: Chat, _: str) -> None:
    dialogue = Dialogue(chat.dialogue.renderer)
    turns, equal = chat.dialogue.history, 0
    for number, turn in enumerate(turns, 1):
        made, want = turn.note, turn.answer or []
        assert isinstance(made, Made)
        dialogue.restore(turns[: number - 1], made.first)
        dialogue.system = made.system
        prompt = dialogue.ask(turn.user)
        # A reply that did not end by itself is compared as far as it went.
        limit = len(want) + 1 if made.ending == "stop" else len(want)
        found = chat.silently(prompt, made.sampling, limit) if limit else []
        if found is None:
            chat.out.notice("stopped", last=True)
            return
        if found != want:
            same = next((i for i, (a, b) in enumerate(zip(found, want, strict=False)) if a != b),
                        min(len(found), len(want)))  # fmt: skip
            chat.out.notice(f"reply {number} is another one from its token {same + 1} on")
        equal += found == want
    chat.out.notice(f"{equal} of {len(turns)} replies made again are the same", last=True)


def _read(chat: Chat, text: str) -> None:
    path = _path(text, "/read FILE")
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"{path}: {path.stat().st_size} bytes; at most {_LARGEST_FILE}")
        content = path.read_text(encoding="utf-8")
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise DataError(f"{path}: not UTF-8 text: {err.reason} at byte {err.start}") from err
    if not content.strip():
        raise DataError(f"{path}: there is nothing in it")
    chat.attached.append(content)
    count = len(chat.dialogue.renderer.tokenizer.encode_text(content))
    chat.out.notice(f"{path}, {count} tokens, goes in front of your next message", last=True)


def _tokens(chat: Chat, text: str) -> None:
    tokenizer = chat.dialogue.renderer.tokenizer
    if text:
        ids = tokenizer.encode_text(text)
        chat.out.notice(f"{len(ids)} tokens: {' '.join(map(str, ids))}", last=True)
        return
    used = 0
    if chat.last is not None and chat.dialogue.history:
        dialogue = Dialogue(chat.dialogue.renderer, chat.dialogue.system)
        dialogue.restore(chat.dialogue.history, chat.dialogue.first)
        used = len(dialogue.ask(""))
    chat.out.notice(f"{used} of {chat.engine.context} tokens are used", last=True)


def _stats(chat: Chat, text: str) -> None:
    if text:
        return _set(chat, f"stats {text}")
    if chat.last is None:
        raise ConfigError("there is no reply yet; /stats on tells of each one")
    chat.out.notice(chat.last.stats(), last=True)


def _clear(chat: Chat, _: str) -> None:
    chat.clear()


def _path(text: str, usage: str) -> Path:
    if not text:
        raise ConfigError(f"a file is missing: {usage}")
    return Path(text).expanduser()


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", _help),
    "system": Command("[TEXT]", "show or change the system text", _system),
    "set": Command("NAME VALUE", "change a setting, as `/set temperature 0.7`", _set),
    "show": Command("[turns]", "the settings, or the conversation", _show),
    "undo": Command("", "take back the last turn", _undo),
    "regen": Command("", "make the last reply anew, with another seed", _regen),
    "save": Command("FILE", "save conversation and settings", _save),
    "load": Command("FILE [force]", "go on with a saved one; force: of another model", _load),
    "replay": Command("", "make all replies again and compare them, id by id", _replay),
    "read": Command("FILE", "put a text file in front of the next message", _read),
    "tokens": Command("[TEXT]", "tokens of the conversation, or of TEXT", _tokens),
    "stats": Command("[on|off]", "counts and speed of the last reply, or of each one", _stats),
    "clear": Command("", "begin a new conversation", _clear),
}
