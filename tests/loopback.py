"""Servers of this machine for tests: on a free port of the loopback, in a thread, silent."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers over connections that stay open, and prints nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the terminal clean."""


class Server(http.server.ThreadingHTTPServer):
    """Serves inside a `with` block."""

    daemon_threads = True

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that was killed, or gave up, leaves a broken connection."""


@contextlib.contextmanager
def serving(answer: Callable[[Any], object]) -> Iterator[tuple[str, list[str]]]:
    """Serve GET requests; `answer(handler)` writes whatever it likes. Yields the address and the paths asked for."""
    asked: list[str] = []

    class Answer(Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with contextlib.suppress(OSError):
                answer(self)

    with Server(Answer) as server:
        yield server.url, asked
