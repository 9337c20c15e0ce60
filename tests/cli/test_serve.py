"""`mindspeed-llm serve` from the outside: the openai client, many callers, Ctrl-C, wrong flags."""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
HI = [{"role": "user", "content": "hi"}]


class Served:
    """A server of its own process."""

    def __init__(self, *flags: str, launch: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-m", "mindspeed_llm.cli.main", *launch, "serve", "--port", "0",
                   "--prompt-type", "chatml", *flags]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening at (http://\S+)", line):
                self.url = found[1]
                break
        assert self.url, "".join(self.lines)
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr)).start()

    def client(self, **options: object):
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120,
                             **options)  # fmt: skip

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def served(tiny_chat_dir: Path) -> Iterator[Served]:
    made = Served("--load", str(tiny_chat_dir), "--served-model-name", "tiny")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_the_openai_client(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    how = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.create(messages=HI, logprobs=True, top_logprobs=2, **how)
    text, usage = whole.choices[0].message.content, whole.usage
    assert usage.completion_tokens == len(whole.choices[0].logprobs.content) == 8
    assert whole.choices[0].finish_reason == "length"
    parts = list(client.chat.completions.create(
        messages=HI, stream=True, stream_options={"include_usage": True}, **how))  # fmt: skip
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == text
    assert parts[-1].usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    second = client.chat.completions.create(
        messages=[*HI, {"role": "assistant", "content": text}, *HI], **how
    )
    # All of the first turn but its last id, which nothing came after, is in memory.
    assert second.usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens + 7
    drawn = [client.chat.completions.create(model="tiny", messages=HI, seed=5, n=2, max_tokens=8)
             for _ in range(2)]  # fmt: skip
    assert drawn[0].choices[0].message.content == drawn[1].choices[0].message.content
    assert drawn[0].choices[0].message.content != drawn[0].choices[1].message.content


def test_mistakes_are_told_as_openai_tells_them(served: Served) -> None:
    import openai

    client = served.client()
    with pytest.raises(openai.BadRequestError, match="more than the context of 512"):
        client.chat.completions.create(model="tiny", messages=HI, max_tokens=10**6)
    with pytest.raises(openai.NotFoundError, match="there is 'tiny'"):
        client.chat.completions.create(model="other", messages=HI)
    with pytest.raises(openai.BadRequestError, match="tools cannot be honoured"):
        client.chat.completions.create(model="tiny", messages=HI, tools=[
            {"type": "function", "function": {"name": "f"}}])  # fmt: skip


def test_an_echo_gives_the_likelihood_of_a_text(served: Served, tiny_chat_dir: Path) -> None:
    """What lm-evaluation-harness asks for: prompts as ids, one token more, one alternative."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts = [list(range(20, 45)), [30, 31, 32]]
    found = served.client().completions.create(
        model="tiny", prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_chat_dir, dtype=torch.float32)
    for prompt, choice in zip(prompts, found.choices, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        told = choice.logprobs
        assert told.token_logprobs[0] is None and len(told.tokens) == len(prompt) + 1
        expected = [float(scores[at, token]) for at, token in enumerate(prompt[1:])]
        assert told.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-3)
        best = scores.max(-1).values.tolist()
        assert [max(top.values()) for top in told.top_logprobs[1:]] == pytest.approx(best, abs=1e-3)


def _together(served: Served, callers: int, tokens: int) -> None:
    """Greedy replies are the same alone and among others."""
    client = served.client()

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"tell me of {number} " + "roses " * (number % 7)}]
        return client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=tokens
        ).choices[0].message.content  # fmt: skip

    alone = {number: ask(number) for number in range(0, callers, 5)}
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(ask, range(callers)))
    assert all(found[number] == text for number, text in alone.items())
    assert len(set(found)) > 1


def test_ten_callers_at_once(served: Served) -> None:
    _together(served, 10, 8)


@pytest.mark.slow
def test_sixty_four_callers_at_once(served: Served) -> None:
    _together(served, 64, 40)


def _gauges(served: Served) -> dict[str, float]:
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=300) as answer:
        rows = [line.split() for line in answer.read().decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("mindspeed_llm_"): float(value) for name, value in rows}


def _hang_up(served: Served, number: int) -> None:
    """Ask for a long streamed reply, read its first event, and go."""
    place = served.url.removeprefix("http://").rstrip("/")
    host, port = place.split(":")
    body = json.dumps({"messages": [{"role": "user", "content": f"story {number}"}],
                       "stream": True, "max_tokens": 400}).encode()  # fmt: skip
    with socket.create_connection((host, int(port)), timeout=300) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            b"application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        seen = b""
        while b"data:" not in seen:
            part = line.recv(65536)
            assert part, seen
            seen += part


@pytest.mark.slow
def test_sixty_four_callers_of_whom_some_go_and_some_send_too_much(served: Served) -> None:
    """The others get what they would have got alone; then nothing is left of anyone's."""
    import openai

    client = served.client().with_options(timeout=600)
    before = _gauges(served)

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"a word on {number} " + "tulips " * (number % 5)}]
        return client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=12
        ).choices[0].message.content  # fmt: skip

    def call(number: int) -> str | None:
        if number % 4 == 1:
            return _hang_up(served, number)
        if number % 4 == 3:
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(model="tiny", messages=[
                    {"role": "user", "content": "x" * (5 << 20)}])  # fmt: skip
            assert refused.value.status_code == 413
            return None
        return ask(number)

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        found = list(pool.map(call, range(64)))
    whole = {number: text for number, text in enumerate(found) if text is not None}
    assert len(whole) == 32
    for _ in range(600):
        after = _gauges(served)
        if after["replies"] == after["replies_running"] == 0:
            break
        time.sleep(0.1)
    assert after["replies"] == after["replies_running"] == 0
    assert after["kv_tokens_used"] <= after["kv_tokens_budget"]
    assert after["cancelled_total"] - before["cancelled_total"] == 16
    assert {number: ask(number) for number in list(whole)[::4]} == dict(list(whole.items())[::4])


def test_ctrl_c_ends_it_in_the_middle_of_an_answer(served: Served) -> None:
    """The last test of this server."""
    parts = served.client().chat.completions.create(
        model="tiny", messages=HI, stream=True, max_tokens=400
    )
    next(iter(parts))
    assert served.end() == 0
    said = "".join(served.lines)
    assert "ended" in said and "Traceback" not in said


@pytest.mark.slow
def test_two_ranks_answer_as_one_and_end_by_sigterm(tiny_chat_dir: Path) -> None:
    flags = ("--load", str(tiny_chat_dir), "--tensor-model-parallel-size", "2")
    launch = ("launch", "--standalone", "--nproc_per_node", "2", "-m", "mindspeed_llm.cli.main")
    one, both = Served(*flags[:2]), Served(*flags, launch=launch)
    try:
        texts = [
            server.client().chat.completions.create(
                model=tiny_chat_dir.name, messages=HI, temperature=0, max_tokens=20
            ).choices[0].message.content
            for server in (one, both)
        ]  # fmt: skip
        assert texts[0] == texts[1]
        assert one.end(signal.SIGTERM) == 0
        both.end(signal.SIGINT)
    finally:
        for server in (one, both):
            server.process.kill()


@pytest.mark.parametrize(("flags", "said"), [
    (["--host", "0.0.0.0"], "a token is needed"),
    (["--system", "be kind"], "each request brings its own"),
    (["--host", "192.0.2.1"], "a token is needed"),
    (["--kv-tokens", "100"], "--kv-tokens is 100; expected at least"),
])  # fmt: skip
def test_wrong_flags_are_one_line(
    flags: list[str], said: str, tiny_chat_dir: Path, capfd: pytest.CaptureFixture
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mindspeed_llm.cli.main", "serve", "--load", str(tiny_chat_dir),
         "--port", "0", *flags], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_missing_package_and_a_taken_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mindspeed_llm.cli import serve
    from mindspeed_llm.errors import ConfigError

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen there"):
            serve.main(["--load", str(tmp_path), "--port", port])
    find: Callable = serve.importlib.util.find_spec
    monkeypatch.setattr(serve.importlib.util, "find_spec",
                        lambda name: None if name == "uvicorn" else find(name))  # fmt: skip
    with pytest.raises(ConfigError, match=r"uvicorn is not installed: pip install 'mindspeed"):
        serve.main(["--load", str(tmp_path)])
