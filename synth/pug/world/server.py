"""The server's sockets: loopback only, one client at a time, replies in the order of the requests."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from granary.curation.errors import UserError
from granary.synth.pug.world.wire import ProtocolError, parse_request, receive_frame, send_frame

NAME = "granary-world"
HOST = "127.0.0.1"
REFUSAL = b"refused: this server has one client at a time"
CHECK = 0.5  # seconds between looks at the parent process

log = logging.getLogger(__name__)


class Handler(Protocol):
    """Answers commands; `Interpreter` of `granary.synth.pug.world.commands.server` is the one in use."""

    def answer(self, command: str) -> bytes:
        """Return the body of the reply."""


class Server:
    """Listen on a loopback TCP port, and on a Unix socket when asked, and answer one client at a time.

    Args:
        handler: answers commands; called from one thread.
        port: of TCP; 0 takes a free one, `port` then tells which.
        unix: also listen on `unrealcv_<port>.socket` in the system's temporary folder, where UnrealCV has it.
    """

    def __init__(self, handler: Handler, port: int = 0, unix: bool = False) -> None:
        self.handler = handler
        self.path: Path | None = None
        self._tcp = _listen_tcp(port)
        self.port = int(self._tcp.getsockname()[1])
        self._listeners = [self._tcp]
        if unix:
            self.path = unix_path(self.port)
            self._listeners.append(_listen_unix(self.path))
        self._current: socket.socket | None = None
        self._waiting: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._alarm, self._bell = socket.socketpair()

    def run(self, alive: Callable[[], bool] = lambda: True) -> None:
        """Accept clients until `stop` is called or `alive()`, asked every half second, is false."""
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        try:
            while alive():
                ready, _, _ = select.select([*self._listeners, self._alarm], [], [], CHECK)
                if self._alarm in ready:
                    break
                for listener in ready:
                    with contextlib.suppress(OSError):
                        self._admit(listener.accept()[0])
        finally:
            self._close()
            worker.join(timeout=10)
            self._alarm.close()
            self._bell.close()

    def stop(self) -> None:
        """End `run`; may be called from any thread or a signal handler."""
        with contextlib.suppress(OSError):  # it has ended already
            self._bell.send(b"!")

    def _admit(self, connection: socket.socket) -> None:
        if self._current is not None and not _hung_up(self._current):
            with contextlib.suppress(OSError), connection:
                connection.settimeout(1)
                send_frame(connection, REFUSAL)
            return
        self._current = connection
        self._waiting.put(connection)

    def _work(self) -> None:
        try:
            while (connection := self._waiting.get()) is not None:
                with connection:
                    self._converse(connection)
                if self._current is connection:
                    self._current = None
        finally:
            self.stop()  # after a defect of ours the server ends, and is noticed, instead of answering nobody

    def _converse(self, connection: socket.socket) -> None:
        try:
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            send_frame(connection, f"connected to {NAME}".encode())
            while (payload := receive_frame(connection)) is not None:
                number, command = parse_request(payload)
                send_frame(connection, number + b":" + self.handler.answer(command))
        except ProtocolError as error:
            log.warning("closed a connection: %s", error)
        except OSError as error:
            log.info("lost a connection: %s", error)

    def _close(self) -> None:
        self._waiting.put(None)
        for listener in self._listeners:
            listener.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        if self._current is not None:
            with contextlib.suppress(OSError):
                self._current.shutdown(socket.SHUT_RDWR)


def serve(
    port: int = 9000,
    unix: bool = False,
    tracer: str = "auto",
    save_to: str | None = None,
    ready: Callable[[dict[str, Any]], None] | None = None,
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Serve the embedded world on 127.0.0.1 until SIGTERM or SIGINT.

    Args:
        port: TCP port; 0 takes a free one.
        unix: also listen on UnrealCV's Unix socket for that port.
        tracer: "embree", "numpy" or "auto" (Embree where it is installed).
        save_to: folder where `vget /camera/0/lit NAME.png` may write; None refuses such commands.
        ready: called with {"host", "port", "unix", "tracer"} when clients may connect.
        alive: asked twice a second; the server stops when it is false.
    """
    from granary.synth.pug.world.commands.server import Interpreter
    from granary.synth.pug.world.session import Session

    if save_to is not None:
        _make_folder(save_to)
    session = Session(tracer=tracer, save_to=save_to)
    server = Server(Interpreter(session), port, unix)
    session.port = server.port
    with _stopping_on_signals(server.stop):
        if ready is not None:
            path = None if server.path is None else str(server.path)
            ready({"host": HOST, "port": server.port, "unix": path, "tracer": session.renderer.tracer})
        server.run(alive)


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"save-to: {path} is no folder that can be made ({error.strerror}); give another") from None


def unix_path(port: int) -> Path:
    """Return where UnrealCV puts the Unix socket that belongs to a TCP port."""
    return Path(tempfile.gettempdir()) / f"unrealcv_{port}.socket"


def _listen_tcp(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"port: {port} cannot be used ({error}); give a free one, or 0 to have one chosen") from None
    listener.listen(8)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    # A socket file of a dead server is in the way of a new one; the TCP port, which we hold, proves that it is dead.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(8)
    return listener


def _hung_up(connection: socket.socket) -> bool:
    """Tell whether the peer has left, even while requests of it are still unread."""
    if connection.fileno() < 0:
        return True
    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


@contextlib.contextmanager
def _stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
