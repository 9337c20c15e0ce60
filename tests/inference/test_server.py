"""Who may ask, how much, and what happens when someone hangs up: over real sockets."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mindspeed_llm.data.render import Renderer
from mindspeed_llm.inference.answers import Answers
from mindspeed_llm.inference.metrics import Metrics
from mindspeed_llm.inference.protocol import ApiError, Defaults
from mindspeed_llm.inference.server import Access, make_app
from mindspeed_llm.inference.worker import Worker

TOKEN = "a-token-of-some-length"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
SURROGATE = b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 3}'


class Caller:
    """A server in this process, and someone who calls it."""

    def __init__(self, port: int, engine: Any, worker: Worker) -> None:
        self.port, self.engine, self.worker = port, engine, worker

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if body is not None else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        self.headers = dict(answer.headers)
        return answer.status, answer.read().decode()

    def hang_up(self, body: dict, after: bytes) -> None:
        """Send, read until `after` has come, and go."""
        data = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                         % (len(data), data))  # fmt: skip
            seen = b""
            while after and after not in seen:
                seen += line.recv(65536)
            while not self.engine.tickets:
                time.sleep(0.01)

    def wait_idle(self) -> None:
        for _ in range(3000):
            if self.worker.count == 0 and not self.engine.tickets:
                return
            time.sleep(0.01)
        raise AssertionError("somebody's reply is still being made")


@pytest.fixture
def serving(letters: type, renderer: Renderer) -> Iterator[Callable[..., Caller]]:
    import uvicorn

    ends: list[Callable[[], None]] = []

    def serve(*, context: int = 64, **access: Any) -> Caller:
        engine = letters()
        engine.context = context
        worker = Worker(engine, 4)
        answers = Answers(worker, renderer.tokenizer, renderer, Defaults(model="m"), Metrics())
        rules = Access(**{"token": None, "hosts": frozenset({"me.example"}), "is_local": True,
                          "body": 2000, **access})  # fmt: skip
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(answers, rules), log_level="error",
                                               lifespan="off"))  # fmt: skip
        worker.start()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()

        def end() -> None:
            engine.may_go_on.set()
            worker.stop()
            server.should_exit = True
            thread.join(30)

        ends.append(end)
        return Caller(listening.getsockname()[1], engine, worker)

    yield serve
    for end in ends:
        end()


def test_who_sends_too_much_is_told_so(serving: Callable) -> None:
    """Also where the body is far more than fits in the line's buffers."""
    caller = serving()
    for headers in ({}, {"Transfer-Encoding": "chunked"}):
        body = iter([b"x" * 65536] * 100) if headers else b"x" * (100 * 65536)
        connection = http.client.HTTPConnection("127.0.0.1", caller.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", body,
                           {"Content-Type": "application/json", **headers},
                           encode_chunked=bool(headers))  # fmt: skip
        answer = connection.getresponse()
        assert answer.status == 413 and "more than 2000 bytes" in answer.read().decode()


def test_routes_and_headers(serving: Callable) -> None:
    caller = serving()
    status, page = caller.ask("GET", "/")
    assert status == 200 and "<main>" in page and "http" not in page.replace("http-equiv", "")
    assert caller.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "unsafe" not in caller.headers["Content-Security-Policy"]
    assert caller.ask("GET", "/page.js")[0] == caller.ask("GET", "/page.css")[0] == 200
    assert json.loads(caller.ask("GET", "/health")[1]) == {"status": "ok"}
    assert json.loads(caller.ask("GET", "/v1/models")[1])["data"][0]["id"] == "m"
    assert json.loads(caller.ask("GET", "/v1/models/m")[1])["object"] == "model"
    assert caller.ask("GET", "/v1/models/other")[0] == 404
    assert caller.ask("GET", "/docs")[0] == 404 and caller.ask("PUT", "/health")[0] == 405
    status, body = caller.ask("POST", "/v1/chat/completions", HI)
    assert status == 200 and json.loads(body)["usage"]["completion_tokens"] == 3
    assert caller.ask("POST", "/v1/completions", {"prompt": "hi"})[0] == 200
    metrics = caller.ask("GET", "/metrics")[1]
    assert 'tokens_total{kind="generated"} 19' in metrics
    assert 'requests_total{path="other",status="404"} 2' in metrics


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::"])
def test_a_name_that_is_not_ours(serving: Callable, host: str) -> None:
    status, body = serving().ask("GET", "/health", Host=host)
    assert status == 421 and "not called" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:5", "[::1]:8000",
                                  "me.example"])  # fmt: skip
def test_names_that_are_ours(serving: Callable, host: str) -> None:
    assert serving().ask("GET", "/health", Host=host)[0] == 200


def test_other_addresses_are_ours_where_it_listens_to_others() -> None:
    access = Access(token=TOKEN, hosts=frozenset(), is_local=False, body=1)
    access.check_host("192.168.1.5:80")
    with pytest.raises(ApiError):
        access.check_host("evil.example")


def test_pages_of_other_sites_are_turned_away(serving: Callable) -> None:
    caller = serving()
    assert caller.ask("POST", "/v1/chat/completions", HI, Origin="http://evil.example")[0] == 403
    assert caller.ask("POST", "/v1/chat/completions", HI, Origin="null")[0] == 403
    own = f"http://127.0.0.1:{caller.port}"
    assert caller.ask("POST", "/v1/chat/completions", HI, Origin=own)[0] == 200
    status, body = caller.ask("POST", "/v1/chat/completions", HI, Content_Type="text/plain")
    assert status == 415 and "application/json" in body


def test_the_token(serving: Callable) -> None:
    caller = serving(token=TOKEN)
    for given in (None, TOKEN, f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xfc"):
        wrong = {} if given is None else {"Authorization": given}
        status, body = caller.ask("POST", "/v1/chat/completions", HI, **wrong)
        assert status == 401 and TOKEN not in body
        assert caller.ask("GET", "/metrics", **wrong)[0] == 401
    assert caller.ask("GET", "/health")[0] == caller.ask("GET", "/")[0] == 200
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert caller.ask("POST", "/v1/chat/completions", HI, **right)[0] == 200


@pytest.mark.parametrize(("body", "status"), [
    (b"x" * 3000, 413), (b"{", 400), (b"\xff\xfe", 400), (b'{"temperature": NaN}', 400),
    (b"[" * 1500, 400), (SURROGATE, 400), (b"", 400), (b"null", 400), (b"{}", 400),
])  # fmt: skip
def test_bodies_that_are_none(serving: Callable, body: bytes, status: int) -> None:
    caller = serving()
    found, answer = caller.ask("POST", "/v1/chat/completions", body)
    assert found == status and json.loads(answer)["error"]["message"]
    assert caller.ask("POST", "/v1/chat/completions", HI)[0] == 200


def test_a_body_that_does_not_say_how_large_it_is(serving: Callable) -> None:
    with socket.create_connection(("127.0.0.1", serving().port), timeout=30) as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                     b"application/json\r\nTransfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        for _ in range(30):
            line.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        assert b" 413 " in line.recv(65536)


def test_a_full_queue(serving: Callable) -> None:
    caller = serving()
    caller.engine.may_go_on.clear()
    status, body = caller.ask("POST", "/v1/chat/completions", HI | {"n": 5})
    assert status == 429 and json.loads(body)["error"]["code"] == "queue_full"
    assert caller.headers["retry-after"] == "1"
    caller.engine.may_go_on.set()
    assert caller.ask("POST", "/v1/chat/completions", HI | {"n": 4})[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_hangs_up_frees_the_engine(serving: Callable, stream: bool) -> None:
    caller = serving(context=10**7)
    body = HI | {"max_tokens": 10**6, "stream": stream}
    caller.hang_up(body, b'content": "' if stream else b"")
    caller.wait_idle()
    assert caller.engine.cancelled == [1]
    assert "cancelled_total 1" in caller.ask("GET", "/metrics")[1]


def test_when_the_engine_is_gone(serving: Callable) -> None:
    caller = serving()
    caller.worker.stop()
    assert caller.ask("GET", "/health")[0] == 503
    assert caller.ask("POST", "/v1/chat/completions", HI)[0] == 503
