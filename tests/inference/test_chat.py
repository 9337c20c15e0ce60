"""The terminal conversation, with an engine that replays scripted replies."""

import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mindspeed_llm.data.dialogue import Dialogue
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.inference.chat import Chat, interruptible
from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.sampling import GREEDY, Sampling


class Scripted:
    """Engine whose replies are written beforehand; keeps the prompts it was given."""

    def __init__(self, replies: Sequence[Sequence[int]], context: int = 4096) -> None:
        self.replies, self.context = list(replies), context
        self.prompts: list[list[int]] = []
        self.closed = 0
        self.before_token: Callable[[int], None] = lambda index: None

    def stream(
        self, prompt: Sequence[int], *, sampling: Sampling, max_new_tokens: int
    ) -> tuple[Reply, Iterator[int]]:
        self.prompts.append(list(prompt))
        reply = Reply(prompt_tokens=len(prompt))
        return reply, self._tokens(reply, self.replies.pop(0), max_new_tokens)

    def _tokens(self, reply: Reply, ids: Sequence[int], limit: int) -> Iterator[int]:
        try:
            for index, token in enumerate(ids):
                self.before_token(index)
                reply.ids.append(token)
                if len(reply.ids) == limit:
                    reply.stop = "length"
                yield token
                if reply.stop:
                    return
            reply.stop = "stop"
        finally:
            self.closed += 1


@pytest.fixture
def renderer(tiny_tokenizer_dir: Path) -> Renderer:
    return Renderer(load_tokenizer(tiny_tokenizer_dir), find_template("chatml"))


class Talk:
    """A chat over a script of lines; EOF after the last."""

    def __init__(self, renderer: Renderer, lines: Sequence[str | type[BaseException]],
                 replies: Sequence[str], *, history_turns: int = 3, context: int = 4096,
                 max_new_tokens: int = 100) -> None:  # fmt: skip
        self.encode = renderer.tokenizer.encode_text
        self.engine = Scripted([self.encode(text) for text in replies], context)
        self.out = io.StringIO()
        self.lines = list(lines)
        self.dialogue = Dialogue(renderer)
        self.chat = Chat(self.engine, self.dialogue, read_line=self.read, out=self.out,
                         sampling=GREEDY, max_new_tokens=max_new_tokens,
                         history_turns=history_turns)  # fmt: skip

    def read(self, prompt: str) -> str:
        self.out.write(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return line

    def run(self) -> str:
        self.chat.run()
        return self.out.getvalue()


def test_transcript_looks_like_the_guide(renderer: Renderer) -> None:
    talk = Talk(renderer, ["Hi", "She likes pink roses.", "q"], ["Hello there 🎉", "Pink it is."])
    assert talk.run() == (
        "You >> MindSpeed-LLM:\nHello there 🎉\n\nYou >> MindSpeed-LLM:\nPink it is.\n\nYou >> "
    )


def test_the_second_prompt_continues_the_first_and_its_ids(renderer: Renderer) -> None:
    talk = Talk(renderer, ["Hi", "And?"], ["Hello", "Yes"])
    talk.run()
    first, second = talk.engine.prompts
    assert second[: len(first) + len(talk.encode("Hello"))] == first + talk.encode("Hello")
    assert second[len(first) + len(talk.encode("Hello"))] == renderer.end_id


@pytest.mark.parametrize("word", ["q", "quit", "exit", " QUIT "])
def test_leaving_words(renderer: Renderer, word: str) -> None:
    talk = Talk(renderer, [word, "never read"], [])
    talk.run()
    assert talk.lines == ["never read"] and not talk.engine.prompts


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_end_of_input_and_ctrl_c_at_the_prompt_leave(renderer: Renderer, end: type) -> None:
    talk = Talk(renderer, ["Hi", end, "never read"], ["Hello"])
    assert talk.run().endswith("You >> \n")
    assert talk.lines == ["never read"]


@pytest.mark.parametrize("word", ["clear", "new", "New "])
def test_clear_forgets_everything(renderer: Renderer, word: str) -> None:
    talk = Talk(renderer, ["Hi", word, "Hi"], ["Hello", "Hello again"])
    assert "forgotten" in talk.run()
    assert talk.engine.prompts[0] == talk.engine.prompts[1]


def test_an_empty_line_is_no_turn(renderer: Renderer) -> None:
    talk = Talk(renderer, ["", "   ", "Hi"], ["Hello"])
    talk.run()
    assert len(talk.engine.prompts) == 1


def test_history_turns_limits_what_is_sent_and_is_told_once(renderer: Renderer) -> None:
    lines = ["alpha", "beta", "gamma", "delta"]
    talk = Talk(renderer, lines, ["one", "two", "three", "four"], history_turns=1)
    text = talk.run()
    assert text.count("only the last 1 turns") == 1
    decoded = [renderer.tokenizer.decode(ids) for ids in talk.engine.prompts]
    assert "alpha" in decoded[1] and "one" in decoded[1]
    assert "alpha" not in decoded[2] and "beta" in decoded[2]
    assert "beta" not in decoded[3] and "gamma" in decoded[3] and "three" in decoded[3]


def test_no_history_at_all(renderer: Renderer) -> None:
    talk = Talk(renderer, ["alpha", "beta"], ["one", "two"], history_turns=0)
    talk.run()
    assert "alpha" not in renderer.tokenizer.decode(talk.engine.prompts[1])


def test_a_full_context_drops_the_oldest_turns_and_says_so(renderer: Renderer) -> None:
    lines = ["alpha " * 8, "beta " * 8, "gamma " * 8]
    probe = Talk(renderer, lines[:1], ["one"])
    probe.run()
    room = 2 * len(probe.engine.prompts[0]) + 20
    talk = Talk(renderer, lines, ["one", "two", "three"], context=room + 10, max_new_tokens=10)
    assert "oldest turn left out" in talk.run()
    last = renderer.tokenizer.decode(talk.engine.prompts[-1])
    assert "alpha" not in last and "gamma" in last
    assert all(len(prompt) <= room for prompt in talk.engine.prompts)


def test_a_turn_that_never_fits_is_refused_and_the_talk_goes_on(renderer: Renderer) -> None:
    talk = Talk(renderer, ["Hi", "far too long " * 50, "And?"], ["Hello", "Yes"], context=80,
                max_new_tokens=10)  # fmt: skip
    text = talk.run()
    assert "[not sent:" in text and text.count("MindSpeed-LLM:") == 2
    assert "far too long" not in renderer.tokenizer.decode(talk.engine.prompts[-1])


def test_a_reply_that_was_cut_says_so(renderer: Renderer) -> None:
    talk = Talk(renderer, ["Hi"], ["Hello there, how are you?"], max_new_tokens=2)
    assert "[cut after --max-new-tokens 2]" in talk.run()


def test_ctrl_c_stops_the_reply_only_and_keeps_what_was_said(renderer: Renderer) -> None:
    talk = Talk(renderer, ["Hi", "Go on"], ["abcdefgh", "done"])

    def press(index: int) -> None:
        if index == 3 and len(talk.engine.prompts) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    talk.engine.before_token = press
    before = signal.getsignal(signal.SIGINT)
    text = talk.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert "[stopped]" in text and "done" in text
    assert talk.engine.closed == 2
    kept = talk.encode("abcdefgh")[:4]
    first, second = talk.engine.prompts
    assert second[len(first) : len(first) + 5] == [*kept, renderer.end_id]


def test_a_second_ctrl_c_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible() as pressed:
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        pressed.clear()
        pressed.wait(5)


def test_control_sequences_of_the_model_do_not_reach_the_terminal(renderer: Renderer) -> None:
    talk = Talk(renderer, ["Hi"], ["a\x1b[2Jb\x07"])
    text = talk.run()
    assert "\x1b" not in text and "\x07" not in text and "a[2Jb" in text
