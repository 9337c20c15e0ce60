"""Prompts from files and pipes; a file of replies that an interrupted run goes on with."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindspeed_llm.cli.completions import generate, read_prompts
from mindspeed_llm.config.inference import GenerationSettings, LoadSettings, TaskSettings
from mindspeed_llm.data.render import Renderer
from mindspeed_llm.data.templates import find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import ConfigError, DataError


def _texts(task: TaskSettings, text: str = "") -> list[list[str]]:
    prompts = read_prompts(task, "Be brief.", io.StringIO(text))
    return [[m.content for m in p.conversation.messages] for p in prompts]


def test_where_prompts_come_from(tmp_path: Path) -> None:
    assert _texts(TaskSettings(prompt="a"), "b") == [["a"]]
    assert _texts(TaskSettings(), "b\n\nc\n") == [["b"], ["c"]]
    text = tmp_path / "p.txt"
    text.write_text("x\n\ny\n")
    assert _texts(TaskSettings(prompts_file=text)) == [["x"], ["y"]]
    with pytest.raises(ConfigError, match="no prompt to answer"):
        _texts(TaskSettings())
    with pytest.raises(DataError, match="cannot be read"):
        _texts(TaskSettings(prompts_file=tmp_path / "absent"))


def test_conversations_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
             {"role": "user", "content": "c"}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, [
        "x", {"prompt": "y"}, {"messages": turns},
        {"messages": [{"role": "system", "content": ""}, *turns[:1]]}])))  # fmt: skip
    prompts = read_prompts(TaskSettings(prompts_file=path), "Be brief.", io.StringIO())
    assert [p.conversation.system for p in prompts] == ["Be brief."] * 3 + [""]
    assert [len(p.conversation.messages) for p in prompts] == [1, 1, 3, 1]
    assert prompts[2].row == {"messages": turns}


@pytest.mark.parametrize(
    "line,message",
    [("[1]", "expected a text"), ("{", "not JSON"), ('""', "expected a text"), ("7", "expected a"),
     ('{"messages": []}', "messages: expected a list"),
     ('{"messages": [{"role": "user"}]}', r"messages\[0\]: expected role and content"),
     ('{"messages": [{"role": "assistant", "content": "x"}]}', "'assistant' where 'user' is due"),
     ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
      "not the user's")],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'"ok"\n{line}\n')
    with pytest.raises(DataError, match=rf"p\.jsonl:2: .*{message}"):
        _texts(TaskSettings(prompts_file=path))


class Echo:
    """Engine whose reply to a prompt is its last three ids; can be told to fail."""

    context, stop_ids = 500, (1,)

    def __init__(self, after: int = 99) -> None:
        self.after, self.asked = after, []
        self.seeds: dict[tuple[int, ...], int] = {}

    def batches(self, prompts, *, sampling, max_new_tokens, batch_size, ends):
        from mindspeed_llm.inference.engine import Reply

        for first in range(0, len(prompts), batch_size):
            if self.after == 0:
                raise KeyboardInterrupt
            self.after -= 1
            rows = range(first, min(first + batch_size, len(prompts)))
            self.seeds |= {tuple(prompts[row]): sampling[row].seed for row in rows}
            self.asked += [prompts[row] for row in rows]
            yield {
                row: Reply(prompt_tokens=1, ids=list(prompts[row][-3:]), stop="length")
                for row in rows
            }


class Bench:
    """Runs `generate` on a file of prompts."""

    def __init__(self, tokenizer_dir: Path, folder: Path) -> None:
        tokenizer = load_tokenizer(tokenizer_dir)
        renderer = Renderer(tokenizer, find_template("chatml"))
        self.parts = SimpleNamespace(tokenizer=tokenizer, renderer=renderer)
        self.prompts, self.output = folder / "p.txt", folder / "out.jsonl"
        self.load = LoadSettings(load=folder / "model")

    def run(self, texts: list[str], engine: Echo, **generation: object) -> list[dict]:
        from mindspeed_llm.inference.sampling import Sampling

        warm = Sampling(temperature=generation.pop("temperature", 0.0))
        self.prompts.write_text("\n".join(texts))
        task = TaskSettings(prompts_file=self.prompts, output=self.output, micro_batch_size=2)
        settings = GenerationSettings(**{"max_new_tokens": 5, **generation})
        prompts = read_prompts(task, None, io.StringIO())
        generate(self.parts, engine, self.load, task, settings, warm, prompts)
        return [json.loads(line) for line in self.output.read_text().splitlines()]


@pytest.fixture
def bench(tiny_tokenizer_dir: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_tokenizer_dir, tmp_path)


TEXTS = [f"prompt number {n}" for n in range(7)]


def test_an_interrupted_run_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    first = Echo(after=2)
    with pytest.raises(KeyboardInterrupt):
        bench.run(TEXTS, first)
    part = tmp_path / "out.jsonl.part"
    assert len(first.asked) == 4 and not bench.output.exists()
    with part.open("a") as file:
        file.write('["half a li')
    second = Echo()
    rows = bench.run(TEXTS, second)
    assert len(second.asked) == 3 and not part.exists()
    assert [row["prompt"] for row in rows] == TEXTS
    bench.output.unlink()
    assert bench.run(TEXTS, Echo()) == rows


def test_what_is_answered_stays_and_the_rest_is_made(bench: Bench) -> None:
    rows = bench.run(TEXTS, Echo())
    more = Echo()
    assert bench.run([TEXTS[3], "new", *TEXTS[:2], "new"], more) != rows
    assert len(more.asked) == 1, "a prompt that stands twice is answered once"
    other = Echo()
    bench.run(TEXTS[:2], other, max_new_tokens=6)
    assert len(other.asked) == 2, "other settings, other answers"
    other = Echo()
    (tmp := bench.load.load).mkdir()
    (tmp / "model.safetensors").write_bytes(b"weights")
    bench.run(TEXTS[:2], other, max_new_tokens=6)
    assert len(other.asked) == 2, "another model, other answers"


def test_seeds_do_not_depend_on_what_else_is_asked(bench: Bench) -> None:
    whole, rest = Echo(), Echo()
    bench.run(TEXTS[:3], whole, temperature=1.0)
    bench.output.unlink()
    bench.run([TEXTS[3], TEXTS[2]], rest, temperature=1.0)
    assert len(set(whole.seeds.values())) == 3
    (same,) = whole.seeds.keys() & rest.seeds.keys()
    assert whole.seeds[same] == rest.seeds[same]


def test_prompts_that_the_model_cannot_take_are_named_before_anything_runs(bench: Bench) -> None:
    engine = Echo()
    with pytest.raises(DataError, match=r"p\.txt:2: the prompt has \d+ tokens"):
        bench.run(["fine", "far too long " * 200], engine)
    task = TaskSettings(prompt="half a pair: \ud800")
    with pytest.raises(DataError, match="the prompt is no text: .*surrogates not allowed"):
        generate(bench.parts, engine, bench.load, task, GenerationSettings(), None,
                 read_prompts(task, None, io.StringIO()))  # fmt: skip
    bench.parts.renderer = None
    with pytest.raises(DataError, match="a conversation needs a chat template"):
        task = TaskSettings(prompt="x")
        generate(bench.parts, engine, bench.load, task, GenerationSettings(), None,
                 read_prompts(task, "a system text", io.StringIO()))  # fmt: skip
    assert not engine.asked


def test_a_place_that_cannot_be_written_is_found_out_first(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bench.output = tmp_path / "file" / "out.jsonl"
    engine = Echo()
    with pytest.raises(DataError, match="cannot be read or written"):
        bench.run(TEXTS, engine)
    assert not engine.asked


def test_another_programs_output_is_left_aside(bench: Bench) -> None:
    mine = bench.run(TEXTS[:1], Echo())
    with bench.output.open("a") as file:
        file.write('[1]\n{"key": 5}\n{"key": "a"}\nnonsense\n')
    again = Echo()
    assert bench.run(TEXTS[:1], again) == mine and not again.asked
