"""Bodies and events of OpenAI's answers, made of what an engine says."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mindspeed_llm.data.render import Renderer
from mindspeed_llm.inference.answers import Answers, Remembered
from mindspeed_llm.inference.metrics import Metrics
from mindspeed_llm.inference.protocol import ApiError, Defaults, chat_wish, text_wish
from mindspeed_llm.inference.worker import Worker

DEFAULTS = Defaults(model="m", max_new_tokens=5)
SAYS = "Hello, how are you?"


@pytest.fixture
def answers(letters: type, renderer: Renderer) -> Iterator[Answers]:
    engine = letters()
    engine.ids = renderer.tokenizer.encode_text(SAYS)
    worker = Worker(engine, 8)
    worker.start()
    yield Answers(worker, renderer.tokenizer, renderer, DEFAULTS, Metrics())
    engine.may_go_on.set()
    worker.stop()


def asked(answers: Answers, texts: list[str], **fields: Any) -> dict:
    messages = [{"role": ("user", "assistant")[at % 2], "content": text}
                for at, text in enumerate(texts)]  # fmt: skip
    wish = chat_wish({"messages": messages, **fields}, DEFAULTS)

    async def whole() -> dict:
        choices = answers.chat(wish)
        await answers.finished(choices)
        return answers.chat_body(wish, choices)

    return asyncio.run(whole())


def streamed(answers: Answers, begin: Callable, wish: Any) -> list[Any]:
    async def events() -> list[str]:
        return [event async for event in answers.events(wish, begin(wish))]

    found = asyncio.run(events())
    assert all(event.startswith("data: ") and event.endswith("\n\n") for event in found)
    rows = [event[6:].strip() for event in found]
    return [row if row == "[DONE]" else json.loads(row) for row in rows]


def test_a_whole_answer(answers: Answers, renderer: Renderer) -> None:
    size = len(renderer.tokenizer.encode_text(SAYS))
    body = asked(answers, ["hi"], max_tokens=size, stop="are", n=2, logprobs=True)
    first, second = body["choices"]
    assert body["object"] == "chat.completion" and body["model"] == "m"
    assert first["message"]["content"] == second["message"]["content"] == "Hello, how "
    assert first["finish_reason"] == "stop" and second["index"] == 1
    spelled = "".join(row["token"] for row in first["logprobs"]["content"])
    assert "Hello, how ".startswith(spelled) and spelled, "ids behind the stop text are not told"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_an_answer_in_events(answers: Answers) -> None:
    wish = chat_wish({"messages": [{"role": "user", "content": "hi"}], "stream": True, "n": 2,
                      "stream_options": {"include_usage": True}}, DEFAULTS)  # fmt: skip
    *rows, last, done = streamed(answers, answers.chat, wish)
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["completion_tokens"] == 10
    for index in (0, 1):
        own = [row["choices"][0] for row in rows if row["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [row["finish_reason"] for row in own] == [None] * (len(own) - 1) + ["length"]
        text = "".join(row["delta"].get("content", "") for row in own)
        assert text and SAYS.startswith(text)
    assert len({row["id"] for row in rows}) == 1


def test_an_answer_that_comes_back_keeps_its_ids(answers: Answers) -> None:
    said = asked(answers, ["hi"])["choices"][0]["message"]["content"]
    made: list = []
    begin = answers._begin
    answers._begin = lambda prompts, *rest, **how: (
        made.extend(prompts) or begin(prompts, *rest, **how)
    )
    ids = [5, 6, 7]  # not what the text would become
    answers.remembered.keep(said, ids)
    asked(answers, ["hi", said, "and?"])
    asked(answers, ["hi", said + "!", "and?"])
    known, other = made
    assert any(known[at : at + 3] == ids for at in range(len(known)))
    assert not any(other[at : at + 3] == ids for at in range(len(other)))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_llm.inference.answers._REMEMBERED", 10)
    remembered = Remembered()
    for number in range(9):
        remembered.keep(str(number), [number] * 4)
    remembered.keep("8", [9] * 4)
    assert list(remembered._ids) == ["7", "8"] and remembered._size == 8


def test_completions_with_an_echo(answers: Answers) -> None:
    wish = text_wish({"prompt": ["ab", [5, 6]], "echo": True, "max_tokens": 2}, DEFAULTS)

    async def whole() -> dict:
        choices = answers.text(wish)
        await answers.finished(choices)
        return answers.text_body(wish, choices)

    first, second = asyncio.run(whole())["choices"]
    assert first["text"].startswith("ab") and len(first["text"]) > 2
    assert second["text"].startswith(answers.tokenizer.decode([5, 6])) and second["index"] == 1
    assert first["logprobs"] is None
    events = streamed(answers, answers.text, text_wish(
        {"prompt": "ab", "stream": True, "max_tokens": 3, "logprobs": 1}, DEFAULTS))  # fmt: skip
    rows = [row["choices"][0] for row in events[:-1]]
    assert rows[-1]["finish_reason"] == "length"
    assert sum(len(row["logprobs"]["tokens"]) for row in rows if row["logprobs"]) == 3


def test_what_cannot_be_answered(answers: Answers) -> None:
    with pytest.raises(ApiError) as error:
        asked(answers, ["hi"], max_tokens=64)
    assert error.value.code == "context_length_exceeded" and error.value.status == 400
    with pytest.raises(ApiError, match="beyond the vocabulary of 480"):
        answers.text(text_wish({"prompt": [480]}, DEFAULTS))
    answers.worker.engine.may_go_on.clear()

    async def crowd() -> None:
        wish = chat_wish({"messages": [{"role": "user", "content": "x"}], "n": 5}, DEFAULTS)
        answers.cancel(answers.chat(wish))
        with pytest.raises(ApiError) as error:
            answers.chat(wish)
        assert error.value.status == 429
        threading.Timer(0.1, answers.worker.engine.may_go_on.set).start()

    asyncio.run(crowd())
    answers.renderer = None
    with pytest.raises(ApiError, match="without a chat template"):
        asked(answers, ["hi"])
    answers.worker.stop()

    async def late() -> None:
        answers.text(text_wish({"prompt": "a"}, DEFAULTS))

    with pytest.raises(ApiError) as error:
        asyncio.run(late())
    assert error.value.status == 503


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_is_told_in_the_stream(answers: Answers) -> None:
    answers.worker.engine.failure = ValueError("secret of the machine")
    wish = chat_wish({"messages": [{"role": "user", "content": "x"}], "stream": True}, DEFAULTS)
    events = streamed(answers, answers.chat, wish)
    assert events[-1]["error"]["type"] == "server_error" and "secret" not in str(events)
