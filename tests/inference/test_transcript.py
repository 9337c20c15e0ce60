"""What a reader and a machine get of a reply."""

import io
import json

from mindspeed_llm.inference.engine import Reply
from mindspeed_llm.inference.sampling import Logprob
from mindspeed_llm.inference.transcript import JsonLines, Outcome, Plain


def _outcome(ending: str, ids: list[int], **reply: object) -> Outcome:
    made = Reply(prompt_tokens=7, cached_tokens=3, ids=ids, **reply)
    return Outcome(number=2, reply=made, text="hello", ending=ending, limit=5, first=0.5,
                   seconds=1.5, context=64)  # fmt: skip


def test_plain_endings_and_counts() -> None:
    shown = {}
    for ending in ("stop", "length", "stop_string", "interrupted"):
        out = io.StringIO()
        plain = Plain(out)
        plain.begin()
        plain.piece("hello")
        plain.end(_outcome(ending, [1, 2, 3]), stats=False)
        shown[ending] = out.getvalue().removeprefix("MindSpeed-LLM:\n")
    assert shown == {
        "stop": "hello\n\n", "stop_string": "hello\n\n", "interrupted": "hello [stopped]\n\n",
        "length": "hello [cut after --max-new-tokens 5]\n\n"}  # fmt: skip
    assert _outcome("stop", [1, 2, 3]).stats() == (
        "prompt 7 tokens (3 cached), new 3, first after 0.50 s, 2.0 tokens/s, context 10 of 64, "
        "ended by stop"
    )


def test_notices_hold_no_controls() -> None:
    out = io.StringIO()
    plain = Plain(out)
    plain.notice("turn 1: \x1b]52;c;QQ==\x07", last=True)
    plain.refuse("\x9b2J")
    assert out.getvalue() == "[turn 1: ]52;c;QQ==]\n\n[not sent: 2J]\n\n"


def test_json_has_times_and_logprobs_where_asked() -> None:
    out = io.StringIO()
    lines = JsonLines(out)
    lines.begin()
    lines.piece("hello")
    lines.end(_outcome("stop", [1], logprobs=[Logprob(-0.5, [(1, -0.5)])]), stats=True)
    lines.end(_outcome("stop", [1]), stats=False)
    lines.leave()
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert first["logprobs"] == [{"chosen": -0.5, "top": [[1, -0.5]]}]
    assert first["time"] == {"first": 0.5, "tokens_per_second": 0.0}
    assert set(first) - set(second) == {"logprobs", "time"}
