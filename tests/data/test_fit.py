"""Tests of mindspeed_llm.data.fit: what training makes of a data set is what preparing it for that
length would have made."""

from __future__ import annotations

import json
import multiprocessing
import os

import pytest

from mindspeed_llm.config.data import PreprocessConfig
from mindspeed_llm.data import fit as fit_module
from mindspeed_llm.data.dataset import SFTDataset
from mindspeed_llm.data.fit import Fit, fitted
from mindspeed_llm.data.manifest import DatasetFiles, Manifest
from mindspeed_llm.data.prepare import prepare
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import DataError, UserError

SHAREGPT = "SharegptStyleInstructionHandler"


def talk(number):
    """0 to 5 pairs before the last; some with a system text, thinking, or marks of their own."""
    pairs = number % 6 + 1
    said = [{"from": "system", "value": f"Be number {number}. "}] if number % 3 == 0 else []
    for pair in range(pairs):
        thought = f"<think>\nso {pair}\n</think>\n\n" if number % 5 == pair % 5 else ""
        mark = {"loss": pair % 2 == 0} if number % 7 == 1 else {}
        said += [{"from": "human", "value": f"Question {pair} of {number}{'?' * (number % 9)}"},
                 {"from": "gpt", "value": f"{thought}Answer {pair}.", **mark}]  # fmt: skip
    return {"conversations": said}


TALKS = [talk(number) for number in range(48)]
LENGTH = 96


@pytest.fixture(scope="module")
def make(tmp_path_factory, make_tokenizer_dir, every_marker, jinja):
    """`make(template, **settings)` -> prefix of TALKS prepared so; each once."""
    place = tmp_path_factory.mktemp("fit")
    (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALKS))
    (place / "p.jsonl").write_text(
        "".join(json.dumps({"text": "word " * n}) + "\n" for n in range(1, 120))
    )
    tokenizer = make_tokenizer_dir(place / "t", markers=every_marker, chat_template=jinja["llama3"])
    made = {}

    def run(template, **settings):
        key = json.dumps([template, settings], sort_keys=True)
        if key not in made:
            made[key] = place / f"set{len(made)}"
            plain = template == "plain"
            config = PreprocessConfig(
                input=(str(place / ("p.jsonl" if plain else "a.jsonl")),),
                tokenizer_name_or_path=tokenizer, output_prefix=made[key],
                handler_name="GeneralPretrainHandler" if plain else SHAREGPT,
                prompt_type=None if plain else template, verify_template=False,
                on_bad_row="skip", **settings,
            )  # fmt: skip
            prepare(config)
        return made[key]

    run.tokenizer = lambda: load_tokenizer(tokenizer)
    return run


def bytes_of(prefix):
    return [path.read_bytes() for path in DatasetFiles(prefix).six]


def facts(prefix):
    manifest = Manifest.read(DatasetFiles(prefix))
    return (manifest.rows, manifest.tokens, manifest.supervised_tokens, manifest.longest,
            manifest.packing, manifest.seq_length)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "policy", "pack", "settings"),
    [
        ("gemma3", "oldest-turns", False, {}),
        ("gemma3", "newest-turns", True, {"train_on": "last"}),
        ("chatml", "newest-turns", False, {"train_on": "last"}),
        ("chatml", "oldest-turns", True, {"train_on_inputs": True}),
        ("llama2", "oldest-turns", True, {}),
        ("mistral-v1", "newest-turns", False, {"train_on_inputs": True}),
        ("qwen3", "oldest-turns", False, {"thinking": "strip-history"}),
        ("qwen3", "newest-turns", True, {"thinking": "keep"}),
        ("hf", "oldest-turns", True, {}),
        ("gemma", "oldest-turns", False, {"template_compat": "mindspeed"}),
        ("glm4", "newest-turns", True, {"template_compat": "mindspeed"}),
        ("baichuan2", "newest-turns", False, {"template_compat": "mindspeed"}),
        ("llama3", "drop", True, {}),
        ("plain", "split", False, {}),
        ("plain", "split", True, {"append_eod": True}),
    ],
)
def test_it_equals_preparing_for_that_length(make, tmp_path, template, policy, pack, settings):
    """Byte for byte, from the data set of any length (the documented way of the guide)."""
    how = {"truncation": policy, "pack": pack, "pad_to_multiple_of": 4 if pack else 1}
    wanted = make(template, seq_length=LENGTH, **how, **settings)
    found = fitted(make(template, **settings), tmp_path, Fit(seq_length=LENGTH, **how),
                   make.tokenizer)  # fmt: skip
    assert facts(found) == facts(wanted)
    assert bytes_of(found) == bytes_of(wanted)
    counts = Manifest.read(DatasetFiles(found)).counts
    assert counts["kept"] and (policy in ("drop", "split") or counts["truncated"] > 5)


def test_shorter_once_more_is_the_same(make, tmp_path):
    """A data set that was truncated when it was prepared is truncated further."""
    how = {"truncation": "oldest-turns"}
    wanted = make("gemma3", seq_length=60, **how)
    found = fitted(make("gemma3", seq_length=LENGTH, **how), tmp_path, Fit(seq_length=60, **how),
                   make.tokenizer)  # fmt: skip
    assert bytes_of(found) == bytes_of(wanted)


def test_each_sample_of_expanded_thinking_is_shortened_by_itself(make, tmp_path):
    wanted = make("qwen3", seq_length=LENGTH, truncation="oldest-turns")
    found = fitted(make("qwen3"), tmp_path, Fit(seq_length=LENGTH, truncation="oldest-turns"),
                   make.tokenizer)  # fmt: skip
    assert bytes_of(found) == bytes_of(wanted)


def test_mixed_rows_keep_their_turns(tmp_path, make_tokenizer_dir, every_marker):
    """Lines of turns follow the order that weights ask for."""
    tokenizer = make_tokenizer_dir(tmp_path / "t", markers=every_marker)
    for name, rows in (("a", TALKS[:20]), ("b", TALKS[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def run(name, **settings):
        prepare(PreprocessConfig(
            input=(f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1"), handler_name=SHAREGPT,
            tokenizer_name_or_path=tokenizer, output_prefix=tmp_path / name,
            prompt_type="chatml", **settings,
        ))  # fmt: skip
        return tmp_path / name

    how = {"truncation": "oldest-turns"}
    wanted = run("short", seq_length=LENGTH, **how)
    found = fitted(run("long"), tmp_path, Fit(seq_length=LENGTH, **how),
                   lambda: load_tokenizer(tokenizer))  # fmt: skip
    assert bytes_of(found) == bytes_of(wanted)


def never():
    raise AssertionError("nothing is to be shortened")


def test_what_fits_stays_as_it_is(make, tmp_path):
    whole = make("chatml")
    assert fitted(whole, tmp_path, Fit(seq_length=9999, truncation="oldest-turns"), never) == whole
    assert fitted(whole, tmp_path, Fit(seq_length=9999, truncation="error"), never) == whole
    assert fitted(whole, tmp_path, Fit(seq_length=40), never) == whole
    packed = make("chatml", seq_length=LENGTH, pack=True)
    assert fitted(packed, tmp_path, Fit(seq_length=LENGTH, pack=True), never) == packed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("template", "fit", "words"),
    [
        ("chatml", {"truncation": "error"}, r"\d+ of 48 rows have more .*--truncation error"),
        ("chatml", {"truncation": "split"}, "split is for plain texts, and its template is chatml"),
        ("plain", {"truncation": "oldest-turns"}, "oldest-turns is for conversations"),
        ("chatml", {"pack": True, "pad_to_multiple_of": 7}, "96 is not a multiple of .* 7"),
        ("chatml", {"pack": True, "seq_length": 3}, "all 48 rows are longer than --seq-length 3"),
        ("chatml", {"truncation": "newest-turns", "seq_length": 3}, "all 48 rows are longer"),
    ],
)
def test_what_cannot_be_is_said(make, tmp_path, template, fit, words):
    with pytest.raises(DataError, match=words):
        fitted(make(template), tmp_path, Fit(**{"seq_length": LENGTH, **fit}), make.tokenizer)
    assert not list(tmp_path.glob("*packed*"))


OLDEST = Fit(seq_length=LENGTH, truncation="oldest-turns")


@pytest.mark.parametrize("what", ["no turns", "short", "older", "tokenizer", "template"])
def test_rows_that_cannot_be_made_again_are_refused(
    make, tmp_path, what, make_tokenizer_dir, every_marker
):
    source = make("chatml")
    copy = DatasetFiles(tmp_path / source.name)
    for path in DatasetFiles(source).six:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads(DatasetFiles(source).manifest.read_text())
    copy.turns.write_bytes(DatasetFiles(source).turns.read_bytes())
    tokenizer, words = make.tokenizer, "prepare"
    if what == "no turns":
        copy.turns.unlink()
        words = "turns.jsonl, which is missing"
    elif what == "short":
        lines = copy.turns.read_bytes().splitlines(keepends=True)
        copy.turns.write_bytes(b"".join(lines[:9]))
        manifest["files"][copy.turns.name]["bytes"] = copy.turns.stat().st_size
        words = "fewer lines than the data set has rows"
    elif what == "older":
        del manifest["files"][copy.turns.name]
        words = "needs the turns of its rows, and it was prepared without"
    elif what == "tokenizer":
        other = make_tokenizer_dir(tmp_path / "t", markers=[*every_marker, "<|more|>"])
        tokenizer, words = (lambda: load_tokenizer(other)), "prepared with another tokenizer"
    else:
        manifest["template_sha256"] = "0"
        words = "needs template chatml as it was"
    copy.manifest.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"--data-path .*{words}"):
        fitted(copy.prefix, tmp_path / "kept", OLDEST, tokenizer)
    assert not list((tmp_path / "kept").glob("*packed*"))


def test_it_is_found_again_by_content(make, tmp_path, monkeypatch):
    made = []
    real = fit_module.exclusive_scratch
    monkeypatch.setattr(fit_module, "exclusive_scratch", lambda f: made.append(f) or real(f))
    source = make("chatml")
    first = fitted(source, tmp_path, OLDEST, make.tokenizer)
    assert fitted(source, tmp_path, OLDEST, never) == first and len(made) == 1
    assert SFTDataset(first, tokenizer_sha256=None).lengths.max() <= LENGTH
    others = [
        fitted(source, tmp_path, Fit(seq_length=LENGTH, truncation="newest-turns"), make.tokenizer),
        fitted(source, tmp_path, Fit(seq_length=LENGTH + 1, pack=True), make.tokenizer),
        fitted(make("chatml", train_on="last"), tmp_path, OLDEST, make.tokenizer),
    ]
    assert len({first, *others}) == 4 and len(made) == 4
    DatasetFiles(first).data("labels").write_bytes(b"short")  # damaged: made again
    assert fitted(source, tmp_path, OLDEST, make.tokenizer) == first and len(made) == 5


def test_a_place_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--data-cache-path .*file/kept: cannot be written"):
        fitted(make("chatml"), tmp_path / "file" / "kept", OLDEST, make.tokenizer)


def _ask(prefix, directory, tokenizer, answers):
    made = []
    real = fit_module.exclusive_scratch
    fit_module.exclusive_scratch = lambda files: made.append(1) or real(files)
    answers.put((str(fitted(prefix, directory, OLDEST, tokenizer)), len(made), os.getpid()))


def test_of_several_processes_one_makes_it(make, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    asking = [
        context.Process(target=_ask, args=(make("chatml"), tmp_path, make.tokenizer, answers))
        for _ in range(3)
    ]
    for process in asking:
        process.start()
    found = [answers.get(timeout=100) for _ in asking]
    for process in asking:
        process.join()
    assert len({prefix for prefix, *_ in found}) == 1 and sum(made for _, made, _ in found) == 1
