"""The client of the `unrealcv` package behind `Connection`, with a deadline, a limit and an end where it has none.

Imported only for UnrealCV servers: the package brings OpenCV and docker along.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from queue import Empty
from typing import Any

import unrealcv

from granary.synth.pug.renderer.connection import (
    CHUNK,
    LARGEST_REPLY,
    BadFrame,
    Closed,
    ConnectionLost,
    NoGreeting,
    TimedOut,
    Unreachable,
    WrongReply,
    shown,
)

setattr(unrealcv, "print", lambda *_, **__: None)  # noqa: B010 it prints to stdout, which may be somebody's data
logging.getLogger("unrealcv").setLevel(logging.CRITICAL)


class _GuardedSocket:
    """The client's socket; refuses lengths that nobody sends before memory is set aside for them."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def recv(self, size: int) -> bytes:
        if size > LARGEST_REPLY:
            raise BadFrame(f"a frame announces {size} bytes; right is 1 to {LARGEST_REPLY}")
        return bytes(self.sock.recv(min(size, CHUNK)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class _Client(unrealcv.Client):
    """The package's client, whose thread hands every failure on at once instead of falling silent."""

    RECONNECT_ATTEMPTS = 0  # of reading the same broken socket, for a minute

    def __init__(self, endpoint: Any, kind: str) -> None:
        self.reached = False
        super().__init__(endpoint, kind)
        self._command_capabilities_checked = True  # the renderer asks itself, with its own timeout

    @property
    def sock(self) -> Any:
        return self._sock

    @sock.setter
    def sock(self, sock: Any) -> None:
        self.reached = self.reached or sock is not None
        self._sock = None if sock is None else _GuardedSocket(sock)

    def receive_loop_queue(self) -> None:
        try:
            super().receive_loop_queue()
        except AssertionError as error:  # how it says that ids differ
            self.recv_data_q.put(WrongReply(str(error)))
        except ConnectionLost as error:
            self.recv_data_q.put(error)
        except (OSError, AttributeError, TypeError, ValueError, MemoryError) as error:
            self.recv_data_q.put(Closed(f"the connection broke: {error}"))


class UnrealConnection:
    """A connection through the `unrealcv` package.

    Args:
        endpoint: (host, port), or the path of a Unix socket.
        timeout: seconds to connect and be greeted.
    """

    def __init__(self, endpoint: tuple[str, int] | str, timeout: float) -> None:
        self.client = _Client(endpoint, "unix" if isinstance(endpoint, str) else "inet")
        waiting = threading.Thread(target=self.client.connect, daemon=True)  # it would wait for a greeting for ever
        waiting.start()
        waiting.join(timeout)
        if waiting.is_alive() or not self.client.isconnected():
            self.close()
            if not self.client.reached:
                raise Unreachable(f"no connection to {shown(endpoint)}")
            raise NoGreeting(f"{shown(endpoint)} does not greet as an UnrealCV server does")

    def exchange(self, commands: Sequence[str], timeout: float) -> list[bytes]:
        """Send commands, return the body of each reply: the package's `request_batch` under a deadline."""
        client, deadline = self.client, time.monotonic() + timeout
        for command in commands:
            if not client.send(b"%d:%s" % (client.send_message_id, command.encode())):
                raise Closed("the connection broke while a request was sent")
            client.send_message_id += 1
        client.recv_num_q.put(-len(commands))
        return [self._reply(deadline) for _ in commands]

    def _reply(self, deadline: float) -> bytes:
        try:
            reply = self.client.recv_data_q.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            raise TimedOut("the server did not reply in time") from None
        if isinstance(reply, ConnectionLost):
            raise reply
        if reply is None or isinstance(reply, Exception):
            raise Closed("the server closed the connection")
        return reply.encode() if isinstance(reply, str) else bytes(reply)  # bytes that are UTF-8 come as text

    def close(self) -> None:
        """Disconnect; the client is not used again."""
        self.client.disconnect()
