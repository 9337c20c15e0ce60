"""Commands of a conversation: what they do, and that a mistake changes nothing."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mindspeed_llm.data.render import Renderer
from mindspeed_llm.inference.commands import COMMANDS
from mindspeed_llm.inference.sampling import Sampling
from mindspeed_llm.inference.session import Identity

ME = Identity(model="m", tokenizer="t", template="c")


@pytest.fixture
def decoded(renderer: Renderer) -> Callable:
    return lambda talk: [renderer.tokenizer.decode(ids) for ids in talk.engine.prompts]


def test_help_lists_every_command(talking: Callable) -> None:
    text = talking(["/help"], []).run()
    assert all(f"[/{name}" in text for name in COMMANDS)
    wanted = "help system set show undo regen save load read tokens stats".split()
    assert set(wanted) <= set(COMMANDS)


@pytest.mark.parametrize("word", ["/quit", "/exit", "/bye"])
def test_leaving(talking: Callable, word: str) -> None:
    talk = talking([word, "never read"], [])
    talk.run()
    assert talk.lines == ["never read"]


def test_the_system_text_counts_from_the_next_reply(talking: Callable, decoded: Callable) -> None:
    talk = talking(["/system", "Hi", "/system Answer in verse.", "/system", "Ho"], ["a", "b"])
    text = talk.run()
    first, second = decoded(talk)
    assert "Answer in verse." not in first and "Answer in verse." in second
    assert "the template's own system text" in text and "system text: Answer in verse." in text


def test_set_changes_the_next_reply(talking: Callable) -> None:
    lines = ["Hi", "/set temperature 0.8", "/set top-k=5", "/set max_new_tokens 2", "Ho"]
    talk = talking(lines, ["abc", "abcdef"])
    text = talk.run()
    assert talk.engine.samplings[1] == Sampling(temperature=0.8, top_k=5, seed=1235)
    assert "[temperature is 0.8]" in text and "[cut after --max-new-tokens 2]" in text


def test_what_is_without_effect_says_so(talking: Callable) -> None:
    assert "top_k without effect while temperature is 0" in talking(["/set top_k 5"], []).run()


@pytest.mark.parametrize(
    "line,message",
    [("/set", "/set NAME VALUE"), ("/set colour red", "no setting 'colour'"),
     ("/set temperature x", "expected a number"), ("/set max_new_tokens 4096", "leaves no room"),
     ("/undo", "no turn to take back"), ("/regen", "no reply to make anew"),
     ("/save", "a file is missing"), ("/load", "a file is missing"), ("/read", "a file is missing"),
     ("/load /nonexistent", "cannot be read"), ("/read /nonexistent", "cannot be read"),
     ("/read /", "cannot be read"), ("/show me", "/show turns"), ("/stats", "no reply yet")],
)  # fmt: skip
def test_a_mistake_changes_nothing(talking: Callable, line: str, message: str) -> None:
    talk = talking([line, "Hi"], ["a"])
    before = talk.chat.manner
    assert message in talk.run()
    assert talk.chat.manner == before and len(talk.engine.prompts) == 1


def test_show(talking: Callable) -> None:
    lines = ["/show", "Hi", "/show turns", "Ho", "/show turns"]
    text = talking(lines, ["one", "two"], history_turns=0).run()
    assert "[template chatml]" in text and "[context 4096]" in text and "[top_k 0]" in text
    assert "[turn 1: Hi]\n[answer 1: one]\n[1 turns]" in text
    assert "[turn 1, left out: Hi]" in text and "[turn 2: Ho]" in text


def test_undo_takes_the_last_turn_out_of_the_prompt(talking: Callable, decoded: Callable) -> None:
    talk = talking(["alpha", "beta", "/undo", "gamma"], ["one", "two", "three"])
    assert "[taken back: beta]" in talk.run()
    last = decoded(talk)[-1]
    assert "alpha" in last and "one" in last and "beta" not in last and "two" not in last


def test_regen_asks_the_same_again(talking: Callable, decoded: Callable) -> None:
    lines = ["alpha", "/set temperature 1", "/regen", "beta"]
    talk = talking(lines, ["one", "two", "three"])
    talk.run()
    first, second, third = talk.engine.prompts
    assert first == second and "two" in decoded(talk)[2] and "one" not in decoded(talk)[2]
    talk = talking(["alpha", "/regen"], ["one", "one"])
    assert "greedy: the same prompt gives the same reply" in talk.run()


def test_regen_that_has_no_room_keeps_the_reply(talking: Callable, renderer: Renderer) -> None:
    lines = ["alpha", "/set max_new_tokens 90", "/regen", "/set max_new_tokens 5", "beta"]
    talk = talking(lines, ["one", "two"], context=100, max_new_tokens=5)
    assert "[not sent: this turn alone is" in talk.run()
    assert "one" in renderer.tokenizer.decode(talk.engine.prompts[-1])


def test_a_file_goes_in_front_of_the_next_message(
    talking: Callable, decoded: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "note.txt"
    path.write_text("the note\n")
    talk = talking([f"/read {path}", "What does it say?", "And now?"], ["a", "b"])
    assert re.search(r"note.txt, \d+ tokens, goes in front", talk.run())
    assert "the note\n\n\nWhat does it say?" in decoded(talk)[0]
    assert decoded(talk)[1].count("the note") == 1
    path.write_bytes(b"ab\xff")
    assert "not UTF-8 text" in talking([f"/read {path}"], []).run()
    path.write_text(" \n")
    assert "there is nothing in it" in talking([f"/read {path}"], []).run()


def test_tokens_and_stats(talking: Callable) -> None:
    talk = talking(["/tokens", "/tokens abc", "Hi", "/tokens", "/stats", "/stats on", "Ho"],
                   ["one", "two"])  # fmt: skip
    text = talk.run()
    ids = talk.encode("abc")
    assert "[0 of 4096 tokens are used]" in text
    assert f"[{len(ids)} tokens: {' '.join(map(str, ids))}]" in text
    used = int(re.findall(r"\[(\d+) of 4096 tokens are used\]", text)[1])
    assert used > len(talk.engine.prompts[0]) + len(talk.encode("one"))
    assert text.count("ended by stop") == 2


def test_a_saved_conversation_goes_on_and_is_replayed(talking: Callable, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    warm = Sampling(temperature=0.5, seed=3)
    lines = ["alpha", "/system Be brief.", "beta", f"/save {path}", "gamma"]
    first = talking(lines, ["one", "two", "three"], identity=ME, sampling=warm, history_turns=9)
    first.run()
    second = talking([f"/load {path}", "gamma", "/undo", "/replay"],
                     ["three", "one", "tWo"], identity=ME)  # fmt: skip
    text = second.run()
    assert "2 turns and the settings of" in text
    assert second.engine.prompts[0] == first.engine.prompts[2]
    assert second.engine.samplings[0] == first.engine.samplings[2]
    assert second.engine.prompts[1:] == first.engine.prompts[:2]
    assert second.engine.samplings[1:] == first.engine.samplings[:2]
    assert "reply 2 is another one from its token 2 on" in text
    assert "1 of 2 replies made again are the same" in text


def test_another_models_session_is_refused_unless_forced(
    talking: Callable, decoded: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "talk.json"
    talking(["alpha", f"/save {path}"], ["one"], identity=ME).run()
    other = dataclasses.replace(ME, model="n", tokenizer="u")
    lines = [f"/load {path}", "Hi", f"/load {path} force", "Ho"]
    talk = talking(lines, ["a", "b"], identity=other)
    text = talk.run()
    assert "the session is of another model, tokenizer;" in text
    assert "though it is of another model, tokenizer" in text
    assert "alpha" not in decoded(talk)[0] and "alpha" in decoded(talk)[1]
    assert "one" in decoded(talk)[1], "the answer's text, encoded by the tokenizer at hand"


def test_ids_that_the_model_does_not_have(talking: Callable, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talking(["alpha", f"/save {path}"], [[479]], identity=ME).run()
    assert "1 turns and the settings" in talking([f"/load {path}"], [], identity=ME).run()
    path.write_text(path.read_text().replace("479", "480"))
    assert "beyond the vocabulary of 480" in talking([f"/load {path}"], [], identity=ME).run()


def test_without_an_identity_nothing_is_saved(talking: Callable, tmp_path: Path) -> None:
    assert "cannot be saved here" in talking([f"/save {tmp_path / 'x'}"], []).run()
    assert not (tmp_path / "x").exists()
