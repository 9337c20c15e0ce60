"""What may be asked for, and that nothing is ignored."""

import pytest

from mindspeed_llm.inference.protocol import ApiError, Defaults, chat_wish, text_wish

DEFAULTS = Defaults(model="m", temperature=0.5, max_new_tokens=99)
HI = [{"role": "user", "content": "hi"}]


def test_a_chat_and_what_counts_where_it_says_nothing() -> None:
    wish = chat_wish({"messages": HI}, DEFAULTS)
    assert wish.sampling.temperature == 0.5 and wish.limit == 99 and wish.choices == 1
    assert not wish.stream and wish.stop == () and wish.sampling.logprobs is None
    assert wish.conversation.system is None
    seeds = {chat_wish({"messages": HI}, DEFAULTS).sampling.seed for _ in range(9)}
    assert len(seeds) > 1, "without a seed replies differ"


def test_every_field_arrives() -> None:
    wish = chat_wish({
        "model": "m", "messages": [{"role": "system", "content": "be kind"}, *HI],
        "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2,
        "seed": 7, "stop": ["a", "b"], "n": 3, "stream": True, "max_completion_tokens": 4,
        "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2,
        "user": "me", "frequency_penalty": 0.0, "logit_bias": {}, "tools": None,
        "response_format": {"type": "text"}, "store": False,
    }, DEFAULTS)  # fmt: skip
    s = wish.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.repetition_penalty, s.seed, s.logprobs) == (
        0.7, 0.9, 5, 0.1, 1.2, 7, 2)  # fmt: skip
    assert wish.stop == ("a", "b") and wish.choices == 3 and wish.stream and wish.usage
    assert wish.limit == 4 and wish.conversation.system == "be kind"
    assert [wish.of_choice(n).seed for n in range(3)] == [7, 8, 9]


@pytest.mark.parametrize(("field", "value", "said"), [
    ("temperature", "hot", "temperature is 'hot'; expected a number"),
    ("temperature", -1, "expected a number from 0"),
    ("temperature", float("nan"), "expected a number"),
    ("top_p", 0, "expected a number from"),
    ("n", 0, "expected a whole number from 1"),
    ("n", True, "expected a whole number"),
    ("max_tokens", 1.5, "expected a whole number"),
    ("stop", [""], "texts that are not empty"),
    ("stop", ["x"] * 17, "at most 16"),
    ("stream", 1, "expected true or false"),
    ("seed", 2**64, "expected a whole number"),
    ("logit_bias", {"5": 1}, "logit_bias cannot be honoured"),
    ("presence_penalty", 0.5, "presence_penalty cannot be honoured"),
    ("tools", [{}], "tools cannot be honoured"),
    ("response_format", {"type": "json_object"}, "response_format cannot be honoured"),
    ("store", True, "store cannot be honoured"),
    ("temprature", 1, "unknown field 'temprature'"),
    ("top_logprobs", 2, "top_logprobs needs logprobs"),
    ("stream_options", {"include_usage": True}, "stream_options needs stream"),
    ("stream_options", {"x": 1}, "include_usage"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(ApiError, match=said.replace("(", r"\(")) as error:
        chat_wish({"messages": HI, field: value}, DEFAULTS)
    assert error.value.status == 400
    body = error.value.body()["error"]
    assert body["type"] == "invalid_request_error" and body["message"]


@pytest.mark.parametrize(("messages", "said"), [
    (None, "expected a list of messages"),
    ([], "expected a list of messages"),
    (["hi"], r"messages\[0\]"),
    ([{"role": "tool", "content": "x"}], r"messages\[0\].role"),
    ([{"role": "user", "content": 5}], r"messages\[0\].content"),
    ([*HI, {"role": "system", "content": "x"}], "only be the first"),
    ([*HI, *HI], "alternate"),
    ([*HI, {"role": "assistant", "content": "x"}], "not the user's"),
    ([{"role": "assistant", "content": "x"}, *HI], "alternate"),
    ([{"role": "user", "content": "x", "name": "me"}], "name cannot be honoured"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "no text"),
])  # fmt: skip
def test_conversations_that_are_none(messages: object, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        chat_wish({"messages": messages}, DEFAULTS)


def test_answers_come_back_with_their_empty_fields_and_texts_in_parts() -> None:
    wish = chat_wish({"messages": [
        *HI, {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]}, DEFAULTS)  # fmt: skip
    assert [m.content for m in wish.conversation.messages] == ["hi", "yes", "ab"]


def test_another_model_is_not_found() -> None:
    with pytest.raises(ApiError) as error:
        chat_wish({"model": "gpt", "messages": HI}, DEFAULTS)
    assert error.value.status == 404 and error.value.code == "model_not_found"
    with pytest.raises(ApiError, match="not a JSON object"):
        chat_wish([], DEFAULTS)


def test_completions() -> None:
    wish = text_wish({"prompt": "hi", "logprobs": 1, "echo": True, "best_of": 1}, DEFAULTS)
    assert wish.prompts == ["hi"] and wish.limit == 16 and wish.echo
    assert wish.sampling.logprobs == 1
    assert text_wish({"prompt": [1, 2]}, DEFAULTS).prompts == [[1, 2]]
    assert text_wish({"prompt": [[1], [2]]}, DEFAULTS).prompts == [[1], [2]]
    assert text_wish({"prompt": ["a", "b"]}, DEFAULTS).prompts == ["a", "b"]


@pytest.mark.parametrize(("fields", "said"), [
    ({"prompt": ""}, "none empty"),
    ({"prompt": [[]]}, "none empty"),
    ({"prompt": [1, "a"]}, "none empty"),
    ({"prompt": [-1]}, "none empty"),
    ({}, "none empty"),
    ({"prompt": ["a"] * 300}, "300 prompts"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "echo": True, "stream": True}, "echo cannot be streamed"),
    ({"prompt": "a", "suffix": "b"}, "suffix cannot be honoured"),
    ({"prompt": "a", "messages": []}, "unknown field 'messages'"),
])  # fmt: skip
def test_completions_that_are_none(fields: dict, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        text_wish(fields, DEFAULTS)
