"""The terminal conversation, with an engine that replays scripted replies."""

import json
import os
import signal
from collections.abc import Callable

import pytest

from mindspeed_llm.data.render import Renderer
from mindspeed_llm.inference.chat import interruptible
from mindspeed_llm.inference.sampling import Sampling


def test_transcript_looks_like_the_guide(talking: Callable) -> None:
    talk = talking(["Hi", "She likes pink roses.", "q"], ["Hello there 🎉", "Pink it is."])
    assert talk.run() == (
        "You >> MindSpeed-LLM:\nHello there 🎉\n\nYou >> MindSpeed-LLM:\nPink it is.\n\nYou >> "
    )


def test_the_second_prompt_continues_the_first_and_its_ids(
    renderer: Renderer, talking: Callable
) -> None:
    talk = talking(["Hi", "And?"], ["Hello", "Yes"])
    talk.run()
    first, second = talk.engine.prompts
    assert second[: len(first) + len(talk.encode("Hello"))] == first + talk.encode("Hello")
    assert second[len(first) + len(talk.encode("Hello"))] == renderer.end_id


@pytest.mark.parametrize("word", ["q", "quit", "exit", " QUIT "])
def test_leaving_words(talking: Callable, word: str) -> None:
    talk = talking([word, "never read"], [])
    talk.run()
    assert talk.lines == ["never read"] and not talk.engine.prompts


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_end_of_input_and_ctrl_c_at_the_prompt_leave(talking: Callable, end: type) -> None:
    talk = talking(["Hi", end, "never read"], ["Hello"])
    assert talk.run().endswith("You >> \n")
    assert talk.lines == ["never read"]


@pytest.mark.parametrize("word", ["clear", "new", "New "])
def test_clear_forgets_everything(talking: Callable, word: str) -> None:
    talk = talking(["Hi", word, "Hi"], ["Hello", "Hello again"])
    assert "forgotten" in talk.run()
    assert talk.engine.prompts[0] == talk.engine.prompts[1]


def test_an_empty_line_is_no_turn(talking: Callable) -> None:
    talk = talking(["", "   ", "Hi"], ["Hello"])
    talk.run()
    assert len(talk.engine.prompts) == 1


def test_history_turns_limits_what_is_sent_and_is_told_once(
    renderer: Renderer, talking: Callable
) -> None:
    lines = ["alpha", "beta", "gamma", "delta"]
    talk = talking(lines, ["one", "two", "three", "four"], history_turns=1)
    text = talk.run()
    assert text.count("only the last 1 turns") == 1
    decoded = [renderer.tokenizer.decode(ids) for ids in talk.engine.prompts]
    assert "alpha" in decoded[1] and "one" in decoded[1]
    assert "alpha" not in decoded[2] and "beta" in decoded[2]
    assert "beta" not in decoded[3] and "gamma" in decoded[3] and "three" in decoded[3]


def test_no_history_at_all(renderer: Renderer, talking: Callable) -> None:
    talk = talking(["alpha", "beta"], ["one", "two"], history_turns=0)
    talk.run()
    assert "alpha" not in renderer.tokenizer.decode(talk.engine.prompts[1])


def test_a_full_context_drops_the_oldest_turns_and_says_so(
    renderer: Renderer, talking: Callable
) -> None:
    lines = ["alpha " * 8, "beta " * 8, "gamma " * 8]
    probe = talking(lines[:1], ["one"])
    probe.run()
    room = 2 * len(probe.engine.prompts[0]) + 20
    talk = talking(lines, ["one", "two", "three"], context=room + 10, max_new_tokens=10)
    assert "oldest turn" in talk.run()
    last = renderer.tokenizer.decode(talk.engine.prompts[-1])
    assert "alpha" not in last and "gamma" in last
    assert all(len(prompt) <= room for prompt in talk.engine.prompts)


def test_two_hundred_turns_past_the_context(renderer: Renderer, talking: Callable) -> None:
    """Every prompt fits, the system text stays, most turns go on from the one before, and what is
    left out is told each time."""
    lines = ["/system be kind", *(f"turn {number} " + "rose " * (number % 9 + 1)
                                  for number in range(200))]  # fmt: skip
    talk = talking(lines, ["yes"] * 200, context=220, max_new_tokens=20, history_turns=1000)
    shown = talk.run()
    prompts = talk.engine.prompts
    assert len(prompts) == 200 and all(len(prompt) <= 200 for prompt in prompts)
    texts = [renderer.tokenizer.decode(prompt) for prompt in prompts]
    assert all("be kind" in text and f"turn {number} " in text
               for number, text in enumerate(texts))  # fmt: skip
    goes_on = sum(after[: len(before)] == before
                  for before, after in zip(prompts, prompts[1:], strict=False))  # fmt: skip
    notices = shown.count("left out: the conversation is longer")
    assert goes_on + notices == 199 and notices < 100


def test_a_turn_that_never_fits_is_refused_and_the_talk_goes_on(
    renderer: Renderer, talking: Callable
) -> None:
    talk = talking(["Hi", "far too long " * 50, "And?"], ["Hello", "Yes"], context=80,
                max_new_tokens=10)  # fmt: skip
    text = talk.run()
    assert "[not sent:" in text and text.count("MindSpeed-LLM:") == 2
    assert "far too long" not in renderer.tokenizer.decode(talk.engine.prompts[-1])


def test_a_reply_that_was_cut_says_so(talking: Callable) -> None:
    talk = talking(["Hi"], ["Hello there, how are you?"], max_new_tokens=2)
    assert "[cut after --max-new-tokens 2]" in talk.run()


def test_ctrl_c_stops_the_reply_only_and_keeps_what_was_said(
    renderer: Renderer, talking: Callable
) -> None:
    talk = talking(["Hi", "Go on"], ["abcdefgh", "done"])

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
    # A shell starts what it puts into the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible() as pressed:
            os.kill(os.getpid(), signal.SIGINT)
            assert pressed.wait(5)
            os.kill(os.getpid(), signal.SIGINT)
            pressed.clear()
            pressed.wait(5)
    finally:
        signal.signal(signal.SIGINT, before)


def test_control_sequences_of_the_model_do_not_reach_the_terminal(talking: Callable) -> None:
    talk = talking(["Hi"], ["a\x1b[2Jb\x07"])
    text = talk.run()
    assert "\x1b" not in text and "\x07" not in text and "a[2Jb" in text


def test_several_lines_between_triple_quotes_are_one_text(
    renderer: Renderer, talking: Callable
) -> None:
    lines = ['"""first', "  /help is text here", "q", 'last"""', '"""one line"""', '"""', '"""']
    talk = talking(lines, ["one", "two"])
    talk.run()
    decoded = [renderer.tokenizer.decode(ids) for ids in talk.engine.prompts]
    assert "first\n  /help is text here\nq\nlast" in decoded[0]
    assert '"""' not in decoded[1] and "one line" in decoded[1]
    assert len(decoded) == 2, "an empty block is no turn"


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_block_that_never_ends_is_not_sent(talking: Callable, end: type) -> None:
    talk = talking(['"""first', end], [])
    assert talk.run().endswith("You >> ... \n") and not talk.engine.prompts


def test_a_slash_is_a_command_only_at_the_start_of_a_line(
    renderer: Renderer, talking: Callable
) -> None:
    lines = ["//help me", " /help", "/help\nwas pasted", "/nonsense", "/etc/hosts is what?"]
    talk = talking(lines, ["a", "b", "c"])
    text = talk.run()
    decoded = [renderer.tokenizer.decode(ids) for ids in talk.engine.prompts]
    assert len(decoded) == 3
    assert "/help me" in decoded[0] and "//" not in decoded[0]
    assert "/help" in decoded[1] and "/help\nwas pasted" in decoded[2]
    assert "no command /nonsense; /help lists them, and //nonsense sends it" in text


def test_stop_strings_end_the_reply_and_are_not_remembered(
    renderer: Renderer, talking: Callable
) -> None:
    talk = talking(["Hi", "And?"], ["Pink.\nUser: more", "Yes"], stop=("\nUser:",), json=True)
    rows = [json.loads(line) for line in talk.run().splitlines()]
    assert [(row["text"], row["stop"]) for row in rows] == [
        ("Pink.", "stop_string"), ("Yes", "stop")]  # fmt: skip
    assert "User:" not in renderer.tokenizer.decode(talk.engine.prompts[1])
    assert "Pink." in renderer.tokenizer.decode(talk.engine.prompts[1])
    assert talk.engine.closed == 2


def test_a_conversation_that_is_too_long_can_be_an_error(talking: Callable) -> None:
    lines = ["alpha " * 8, "beta " * 8, "/undo", "Hi"]
    probe = talking(lines[:1], ["one"])
    probe.run()
    room = len(probe.engine.prompts[0])
    talk = talking(lines, ["one", "two"], context=room + 30, max_new_tokens=10, overflow="error")
    text = talk.run()
    assert "[not sent: the conversation has" in text and "--overflow drop-turns" in text
    assert len(talk.engine.prompts) == 2 and "left out" not in text


def test_every_reply_has_a_seed_of_its_own(talking: Callable) -> None:
    lines = ["one", "two", "/regen", "new", "one"]
    talk = talking(lines, ["a"] * 4, sampling=Sampling(temperature=1.0, seed=7))
    talk.run()
    assert [sampling.seed for sampling in talk.engine.samplings] == [7, 8, 9, 7]


def test_json_lines_hold_everything_and_nothing_else(talking: Callable) -> None:
    talk = talking(["Hi", "new", "/nonsense", "q"], ["a\x1b[2J\x9b é"], json=True)
    text = talk.run()
    assert text.isascii() and "\x1b" not in text
    reply, notice, error = [json.loads(line) for line in text.splitlines()]
    assert reply["text"] == "a\x1b[2J\x9b é" and reply["stop"] == "stop" and reply["turn"] == 1
    ids = talk.encode("a\x1b[2J\x9b é")
    assert reply["ids"] == ids and reply["usage"] == {
        "prompt_tokens": len(talk.engine.prompts[0]), "cached_tokens": 0,
        "completion_tokens": len(ids)}  # fmt: skip
    assert "forgotten" in notice["notice"] and "/nonsense" in error["error"]


def test_a_line_of_counts_follows_each_reply(talking: Callable) -> None:
    talk = talking(["Hi", "Ho"], ["abc", "d"], stats=True)
    text = talk.run()
    first, second = [line for line in text.splitlines() if line.startswith("[prompt ")]
    assert f"prompt {len(talk.engine.prompts[0])} tokens (0 cached)" in first
    assert "tokens/s" in first and "ended by stop" in first and "of 4096" in first
    assert "no rate" in second
