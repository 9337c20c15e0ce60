"""Owns `mindspeed-llm serve`: flags, the socket, signals. What is answered it does not know."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from mindspeed_llm.cli.leading import lead
from mindspeed_llm.config.architecture import ArchitectureFlags
from mindspeed_llm.config.flags import parse
from mindspeed_llm.config.inference import ALWAYS, REFUSED, LoadSettings
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.config.serve import TOKEN_VARIABLE, ServeSettings
from mindspeed_llm.config.train import RuntimeSettings
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.logging import get_logger, rank

if TYPE_CHECKING:
    from fastapi import FastAPI

    from mindspeed_llm.inference.engine import Engine
    from mindspeed_llm.inference.load import Parts
    from mindspeed_llm.inference.worker import Worker

_log = get_logger(__name__)
_GRACE = 5  # seconds in which answers that are being sent may end


def main(argv: Sequence[str]) -> int:
    """Run `mindspeed-llm serve`; returns the exit code."""
    load, serve, runtime, parallel, architecture = parse(
        argv, LoadSettings, ServeSettings, RuntimeSettings, ParallelConfig, ArchitectureFlags,
        prog="mindspeed-llm serve", always=ALWAYS, refused=REFUSED,
        description="Answer OpenAI's requests, and a page to talk, over HTTP.",
    )  # fmt: skip
    if load.system is not None:
        raise ConfigError("--system has no place here: each request brings its own")
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{package} is not installed: pip install 'mindspeed-llm[serve]'")
    token = serve.token(os.environ.get(TOKEN_VARIABLE))
    listening = _socket(serve) if rank() == 0 else None  # before a model is loaded in vain

    def options(parts: Parts) -> dict[str, Any]:
        return {"budget": serve.budget(parts.context), "rows": serve.max_running,
                "chunk": serve.prefill_chunk}  # fmt: skip

    def work(parts: Parts, engine: Engine) -> None:
        from mindspeed_llm.inference.answers import Answers
        from mindspeed_llm.inference.metrics import Metrics
        from mindspeed_llm.inference.protocol import Defaults
        from mindspeed_llm.inference.server import Access, make_app
        from mindspeed_llm.inference.worker import Worker

        assert listening is not None
        if serve.max_new_tokens >= parts.context:
            raise ConfigError(f"--max-new-tokens {serve.max_new_tokens} leaves no room in the "
                              f"context of {parts.context} tokens; lower it")  # fmt: skip
        name = serve.served_model_name or load.load.resolve().name
        worker = Worker(engine, serve.max_queue)
        defaults = Defaults(model=name, temperature=serve.temperature,
                            max_new_tokens=serve.max_new_tokens)  # fmt: skip
        answers = Answers(worker, parts.tokenizer, parts.renderer, defaults, Metrics())
        access = Access(token=token, hosts=frozenset({*serve.allowed_host, serve.host}),
                        is_local=serve.is_local, body=serve.max_body_bytes)  # fmt: skip
        _run(make_app(answers, access), worker, listening)

    with contextlib.closing(listening) if listening else contextlib.nullcontext():
        return lead(load, runtime, parallel, architecture, work, options)


def _socket(serve: ServeSettings) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address is not ours, or taken.
    """
    try:
        found = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM,
                                   flags=socket.AI_PASSIVE)  # fmt: skip
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as err:
        raise ConfigError(f"--host {serve.host} --port {serve.port}: cannot listen there: "
                          f"{err.strerror}; choose another port or address") from err  # fmt: skip
    return listening


def _run(app: FastAPI, worker: Worker, listening: socket.socket) -> None:
    """Serve until Ctrl-C, SIGTERM, or the engine's failure."""
    import uvicorn

    class Server(uvicorn.Server):
        """Ends the replies first, so that nobody waits for them."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            worker.ask_to_stop()
            super().handle_exit(sig, frame)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _log.info("listening at http://%s:%d (Ctrl-C ends)", shown, port)

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                            timeout_graceful_shutdown=_GRACE, lifespan="off")  # fmt: skip
    server = Server(config)

    def fail() -> None:
        server.should_exit = True

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    worker.on_failure = fail
    worker.start()
    signal.signal(signal.SIGTERM, leave)  # uvicorn ends in order, then hands the signal on
    try:
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is over
            server.run(sockets=[listening])
    finally:
        worker.stop()
    if worker.failure is not None:
        raise worker.failure
    _log.info("ended")
