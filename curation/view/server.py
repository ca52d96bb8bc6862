"""Who may ask for the page: this machine alone, with the token of the address, under the server's own name.

A page of a stranger in the same browser knows no token, and a name that a stranger's DNS points here is not ours:
requests with another Host are refused before anything is read of them.
"""

from __future__ import annotations

import hmac
import http.server
import secrets
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from granary.curation.errors import UserError
from granary.curation.store.addresses import without_secrets
from granary.curation.store.printable import printable
from granary.curation.view.answers import Answer, Request

if TYPE_CHECKING:
    from socket import socket

LOOPBACK = "127.0.0.1"
MOST_BODY = 16_000_000  # bytes of a request: the numbers of a million rows, and decisions
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Server(http.server.ThreadingHTTPServer):
    """Serves one page below `http://127.0.0.1:PORT/TOKEN/`.

    Args:
        answer: the answer to a request that may be made.
        port: to listen on; 0 for one that is free.

    Raises:
        UserError: the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[Request], Answer], port: int = 0) -> None:
        self.answer, self.token = answer, secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port: {port} cannot be listened on ({error}); give another, or 0 for a free one"
            ) from None

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names under which a browser of this machine asks for the page."""
        return tuple(f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost"))

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        """Say nothing of a browser that went away while it was answered."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Checks a request, and hands it on."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    server_version, sys_version = "granary", ""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._send(self._checked("GET", b""))

    def do_POST(self) -> None:
        """Answer a POST, whose body is not longer than MOST_BODY."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BODY:
            self.close_connection = True
            self._send(Answer.plain(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MOST_BODY:,} bytes"))
            return
        self._send(self._checked("POST", self.rfile.read(int(length))))

    def _checked(self, method: str, body: bytes) -> Answer:
        own = self.headers.get_all("Host", [])
        if len(own) != 1 or own[0].lower() not in self.server.hosts:
            return Answer.plain(HTTPStatus.MISDIRECTED_REQUEST, "this is not the name of this server")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in self.server.hosts]:
            return Answer.plain(HTTPStatus.FORBIDDEN, "another page may not ask")
        target, _, query = self.path.partition("?")
        token, slash, path = target.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            return Answer.plain(HTTPStatus.FORBIDDEN, "the address lacks the token that `granary view` printed")
        return self._answered(Request(method, path, dict(parse_qsl(query)), body))

    def _answered(self, request: Request) -> Answer:
        try:
            return self.server.answer(request)
        except UserError as error:
            return Answer.plain(HTTPStatus.BAD_REQUEST, str(error))
        except Exception:  # noqa: BLE001  # the page goes on, and the terminal tells what happened
            print(printable(without_secrets(traceback.format_exc())), file=sys.stderr)
            return Answer.plain(HTTPStatus.INTERNAL_SERVER_ERROR, "granary view failed here; its terminal tells more")

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Cache-Control", f"private, max-age={answer.keep}" if answer.keep else "no-store")
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep requests, and the token in them, out of the terminal."""
