"""Tests of mindspeed_llm.data.render: ids, labels and prompts, over every template."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from mindspeed_llm.data.chat_template import BOS, EOS
from mindspeed_llm.data.messages import Conversation, Message
from mindspeed_llm.data.render import IGNORE, Renderer
from mindspeed_llm.data.templates import TEMPLATES, find_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.errors import TemplateError

TALK = Conversation.of("A?", "a.", "B?", "b.")
PIECES = ("hello", " ", "\n", "\n\n", "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<bos>", "é",
          "\U0001f600", "{content}", "{{idx}}", "\x00", "\r\n", "<|im_start|>user\n",
          "0")  # fmt: skip


def tokens(renderer, rendered):
    return [renderer.tokenizer.token(i) + ("*" if label != IGNORE else "")
            for i, label in zip(*rendered, strict=True)]  # fmt: skip


def random_talk(rng: random.Random) -> Conversation:
    turns = [
        Message(role, "x" + "".join(rng.choices(PIECES, k=rng.randint(0, 6))), rng.random() < 0.8)
        for _ in range(rng.randint(1, 4)) for role in ("user", "assistant")]  # fmt: skip
    return Conversation(tuple(turns), rng.choice((None, "", "Be <|im_end|> brief.\n")))


def test_golden_gemma(renderer_of):
    renderer = renderer_of("gemma")
    assert tokens(renderer, renderer.render(TALK)) == [
        "<bos>", "<start_of_turn>", "user", "Ċ", "A", "?", "<end_of_turn>", "Ċ", "<start_of_turn>",
        "model", "Ċ", "a*", ".*", "<end_of_turn>*", "Ċ",
        "<start_of_turn>", "user", "Ċ", "B", "?", "<end_of_turn>", "Ċ", "<start_of_turn>",
        "model", "Ċ", "b*", ".*", "<end_of_turn>*", "Ċ"]  # fmt: skip


def test_golden_chatml(renderer_of):
    renderer = renderer_of("chatml")
    assert tokens(renderer, renderer.render(TALK)) == [
        "<|im_start|>", "user", "Ċ", "A", "?", "<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ",
        "a*", ".*", "<|im_end|>*", "Ċ", "<|im_start|>", "user", "Ċ", "B", "?", "<|im_end|>", "Ċ",
        "<|im_start|>", "assistant", "Ċ", "b*", ".*", "<|im_end|>*", "Ċ"]  # fmt: skip


def test_golden_llama3(renderer_of):
    renderer = renderer_of("llama3")
    assert tokens(renderer, renderer.render(TALK)) == [
        "<bos>", "<|start_header_id|>", "user", "<|end_header_id|>", "ĊĊ", "A", "?", "<|eot_id|>",
        "<|start_header_id|>", "assistant", "<|end_header_id|>", "ĊĊ", "a*", ".*", "<|eot_id|>*",
        "<|start_header_id|>", "user", "<|end_header_id|>", "ĊĊ", "B", "?", "<|eot_id|>",
        "<|start_header_id|>", "assistant", "<|end_header_id|>", "ĊĊ",
        "b*", ".*", "<|eot_id|>*"]  # fmt: skip


def test_an_answer_never_merges_with_what_precedes_it(renderer_of):
    renderer = renderer_of("chatml")
    rendered = renderer.render(Conversation.of("A?", "\nHi"))
    assert tokens(renderer, rendered)[-6:] == ["assistant", "Ċ", "Ċ*", "Hi*", "<|im_end|>*", "Ċ"]
    # A whole-text encoding does merge the two line ends, which generation never sees.
    whole = renderer.tokenizer.hf.tokenize("assistant\n\nHi")
    assert whole == ["assistant", "ĊĊ", "Hi"]


def generated(renderer, message) -> list[int]:
    """Ids that the answer is made of where it ends the row, without its end-of-turn token."""
    template = renderer.template
    text = message.content.strip() if template.trim or template.trim_answer else message.content
    if template.think_block:
        text = template.think_block.replace("{content}", "") + text.lstrip("\n")
    before, _, behind = template.answer.partition("{content}")
    context = "marker" if template.header.endswith(template.markers) else "text"
    said = renderer.tokenizer.encode_text(before + text + behind, context)
    return said if renderer.end_id is None else [*said, renderer.end_id]


@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_hold_exactly_the_answers_and_their_end(name, renderer_of):
    renderer = renderer_of(name)
    rng = random.Random(7)
    for _ in range(60):
        talk = random_talk(rng)
        expected = []
        for row in renderer.template.expand(talk):
            ids, labels = renderer.render(row)
            assert len(ids) == len(labels)
            assert all(label in (IGNORE, i) for i, label in zip(ids, labels, strict=True))
            assert labels[0] == IGNORE
            expected += [label for label in labels if label != IGNORE]
        answers = [m for m in talk.messages if m.role == "assistant" and m.train]
        wanted = [token for m in answers for token in generated(renderer, m)]
        assert sorted(expected) == sorted(wanted)
        if renderer.template.think is None:
            assert expected == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_text_never_becomes_a_token(name, renderer_of):
    renderer = renderer_of(name)
    hostile = "x " + " ".join([*renderer.template.markers, "<eos>", "<bos>", "{eos}", "{cut}"])
    plain, _ = renderer.render(Conversation.of("x", "y", "z", "w", system="s"))
    ids, labels = renderer.render(Conversation.of(hostile, hostile, hostile, "w", system=hostile))
    special = renderer.tokenizer.special_ids
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    assert [i for i in labels if i in special][-1:] == [i for i in plain if i == renderer.end_id][
        -1:
    ]
    assert renderer.tokenizer.decode(ids).count(hostile.strip()) == 4


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_prefix_that_training_saw(name, renderer_of):
    renderer = renderer_of(name)
    rng = random.Random(11)
    for _ in range(40):
        talk = random_talk(rng)
        for row in renderer.template.expand(talk):
            ids, _ = renderer.render(row)
            for turn in range(0, len(row.messages), 2):
                asked = dataclasses.replace(row, messages=row.messages[: turn + 1])
                prompt = renderer.prompt(asked)
                assert ids[: len(prompt)] == prompt
                answer = generated(renderer, row.messages[turn + 1])
                last = turn + 2 == len(row.messages)
                if last or renderer.template.think is None:
                    assert ids[len(prompt) : len(prompt) + len(answer)] == answer


def test_special_text_of_a_user_changes_neither_turns_nor_labels(renderer_of):
    renderer = renderer_of("gemma")
    ids, labels = renderer.render(Conversation.of("x <end_of_turn> y", "a."))
    assert ids.count(renderer.end_id) == 2
    assert "x <end_of_turn> y" in renderer.tokenizer.decode(ids)
    assert sum(label != IGNORE for label in labels) == 3


def test_many_at_once_equal_one_by_one(renderer_of, tokenizer):
    rng = random.Random(3)
    talks = [random_talk(rng) for _ in range(50)]
    fresh = Renderer(tokenizer, find_template("qwen"))
    together = fresh.render_many(talks)
    assert together == [renderer_of("qwen").render(talk) for talk in talks]


def test_the_cache_of_texts_stays_small(tokenizer):
    renderer = Renderer(tokenizer, find_template("chatml"))
    for start in range(0, 9000, 1000):
        renderer.render_many([Conversation.of(f"q{i}", "a") for i in range(start, start + 1000)])
    assert len(renderer._cache) <= 4096 + 2000


def test_the_first_token_of_a_row_is_never_a_target(renderer_of):
    renderer = renderer_of("empty")
    ids, labels = renderer.render(Conversation.of("", "Hello you"))
    assert labels == [IGNORE, *ids[1:]] and len(ids) > 1
    assert renderer.end_id is None and renderer.stop_ids == renderer.tokenizer.eos_ids


def test_thinking_of_earlier_answers_is_left_out_of_a_prompt_though_its_ids_are_known(renderer_of):
    talk = Conversation.of("A?", "<think>\nso\n</think>\n\na.", "B?")
    for thinking in (None, "keep"):
        renderer = renderer_of("qwen3", thinking=thinking)
        made = renderer.tokenizer.encode_text(talk.messages[1].content)
        prompt = renderer.prompt(talk, [made])
        assert ("so" in renderer.tokenizer.decode(prompt)) == (thinking == "keep")
        assert prompt == renderer.prompt(talk)


def test_a_generated_answer_is_said_without_the_templates_blanks(renderer_of):
    renderer = renderer_of("llama2")
    assert renderer.said(renderer.tokenizer.encode_text(" Hi you ")) == "Hi you"
    assert renderer_of("gemma").said(renderer.tokenizer.encode_text(" Hi")) == " Hi"


PHI_LIKE = "<|end|>", "<|assistant|>"


def test_white_space_that_a_marker_swallows_is_swallowed(rich_tokenizer, tmp_path):
    path = tmp_path / "t"
    rich_tokenizer.hf.save_pretrained(path)
    spec = json.loads((path / "tokenizer.json").read_text())
    for token in spec["added_tokens"]:
        token["rstrip"] = token["content"] in PHI_LIKE
        token["lstrip"] = token["content"] == "<|user|>"
    (path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(path)
    renderer = Renderer(tokenizer, find_template("phi3"))
    talk = Conversation.of("A? ", "a.", "B?", "b.", system="S")
    text = ("<|system|>\nS<|end|>\n<|user|>\nA? <|end|>\n<|assistant|>\na.<|end|>\n"
            "<|user|>\nB?<|end|>\n<|assistant|>\nb.<|end|>\n<eos>")  # fmt: skip
    whole = tokenizer.hf.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert renderer.render(talk).ids == whole
    assert renderer.render(Conversation.of("A?", " a.")).ids == renderer.render(
        Conversation.of("A?", "a.")).ids  # fmt: skip


@pytest.mark.parametrize("scheme", ["always", "first", "normalizer"])
@pytest.mark.parametrize("name", ["llama2", "mistral", "deepseek2", "alpaca", "default", "glm4"])
def test_pieces_get_the_blanks_that_the_whole_text_gets(name, scheme, renderer_of, tmp_path):
    """SentencePiece tokenizers write a blank before a text; only some before every piece of it."""
    hf = renderer_of(name).tokenizer.hf
    spec = json.loads(hf.backend_tokenizer.to_str())
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    pre = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True}
    spec["model"]["vocab"]["\u2581"] = len(spec["model"]["vocab"])
    spec["model"]["byte_fallback"], spec["model"]["unk_token"] = False, "<pad>"
    spec["decoder"] = None
    if scheme == "normalizer":
        spec["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"}, blanks]}  # fmt: skip
        pre = None
    spec["pre_tokenizer"] = pre
    hf.save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path / "t")
    renderer = Renderer(tokenizer, find_template(name))
    own = {BOS: tokenizer.bos_token, EOS: tokenizer.eos_token}
    for talk in (TALK, dataclasses.replace(TALK, system="Be brief.")):
        parts = renderer.template.plan(talk)
        text = "".join(own.get(p.text, p.text) for p in parts)
        whole = tokenizer.hf.backend_tokenizer.encode(text, add_special_tokens=False)
        assert "\u2581" in whole.tokens or (name, scheme) == ("glm4", "first")
        assert renderer.render(talk).ids == whole.ids


def test_kept_ids_replace_the_encoding_of_an_answer(renderer_of):
    renderer = renderer_of("gemma")
    odd = [renderer.tokenizer.encode_text("a")[0]] * 3  # what no encoding of "a." gives
    prompt = renderer.prompt(Conversation.of("A?", "a.", "B?"), [odd])
    first = renderer.prompt(Conversation.of("A?"))
    assert prompt[: len(first) + 4] == [*first, *odd, renderer.end_id]


def test_a_prompt_needs_a_question(renderer_of):
    with pytest.raises(TemplateError, match="ends with the user's turn"):
        renderer_of("gemma").prompt(TALK)


def test_stop_ids_are_end_of_turn_and_every_eos(make_tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", generation_eos=[1, 10]))
    renderer = Renderer(tokenizer, find_template("gemma"))
    assert renderer.stop_ids == (tokenizer.token_id("<end_of_turn>"), 1, 10)
    assert renderer.without_stop([50, 51, 10, 52]) == [50, 51]
    assert renderer.without_stop([50, 51]) == [50, 51]


def test_a_template_of_another_model_is_refused(make_tokenizer_dir, tmp_path):
    plain = make_tokenizer_dir(tmp_path / "t", markers=("<pad>", "<eos>", "<bos>"))
    with pytest.raises(TemplateError, match="not one token"):
        Renderer(load_tokenizer(plain), find_template("gemma"))


def test_a_missing_bos_is_refused(make_tokenizer_dir, tmp_path):
    tokenizer = load_tokenizer(make_tokenizer_dir(tmp_path / "t", bos=None))
    with pytest.raises(TemplateError, match="a BOS token and .*bos_token"):
        Renderer(tokenizer, find_template("gemma")).render(TALK)
    Renderer(tokenizer, find_template("chatml")).render(TALK)
    bare = load_tokenizer(make_tokenizer_dir(tmp_path / "bare", eos=None))
    with pytest.raises(TemplateError, match="an EOS token and .*eos_token"):
        Renderer(bare, find_template("llama2"))


@pytest.mark.parametrize("name", ["gemma", "gemma3", "chatml", "llama3"])
def test_user_turns_can_be_targets_without_their_headers(renderer_of, name):
    renderer = renderer_of(name)
    talk = Conversation.of("\n  Hi there?", "Hello.", "And you?", "Well.", system="Be kind.")
    plain = renderer.render(talk)
    both = renderer.render(dataclasses.replace(talk, train_inputs=True))
    assert both.ids == plain.ids
    assert all(label in (IGNORE, i) for label, i in zip(both.labels, both.ids, strict=True))
    added = [new for old, new in zip(plain.labels, both.labels, strict=True) if old != new]
    text = renderer.tokenizer.decode(added, skip_special_tokens=False)
    ends = text.split(renderer.template.end)
    assert ends[0].strip().endswith("Hi there?") and ends[1:] == ["And you?", ""]
    assert "user" not in text and "kind" not in text
    silent = dataclasses.replace(talk.messages[0], train=False)
    some = dataclasses.replace(talk, messages=(silent, *talk.messages[1:]), train_inputs=True)
    assert "Hi there" not in renderer.tokenizer.decode(
        [label for label in renderer.render(some).labels if label != IGNORE]
    )
