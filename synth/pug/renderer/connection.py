"""A conversation with an UnrealCV server: pipelined requests, replies in order, one deadline, and no second chances.

After any error a connection is closed and never used again: a late reply would be taken for the next one's.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from granary.synth.pug.world.wire import HEADER, MAGIC, send_frame

LARGEST_REPLY = 256 << 20  # bytes
CHUNK = 1 << 20
REPLY = re.compile(rb"(\d+):")


class RenderError(Exception):
    """A scene was not rendered. `lost` says that the connection is of no more use."""

    lost = False


class ConnectionLost(RenderError):
    """The connection is of no more use."""

    lost = True


class Unreachable(ConnectionLost):
    """Nobody accepts connections at the address."""


class NoGreeting(ConnectionLost):
    """A server accepted the connection but did not greet: it is busy with another client, or no UnrealCV server."""


class BadFrame(ConnectionLost):
    """A frame does not begin with UnrealCV's magic number, or announces a length nobody sends."""


class Closed(ConnectionLost):
    """The server closed the connection, perhaps in the middle of a reply."""


class WrongReply(ConnectionLost):
    """A reply answers another request than the one it should."""


class TimedOut(ConnectionLost):
    """The server did not reply in time."""


class ErrorReply(RenderError):
    """The server answered `error ...`."""


class Connection(Protocol):
    """An open conversation with a server."""

    def exchange(self, commands: Sequence[str], timeout: float) -> list[bytes]:
        """Send commands, return the body of each reply in order. Raises ConnectionLost."""

    def close(self) -> None:
        """End the conversation."""


class DeadlineSocket:
    """The receiving side of a socket under one deadline, with a limit on what a frame may announce."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock, self.deadline = sock, deadline

    def receive(self, size: int) -> bytes:
        """Return exactly `size` bytes; memory grows with what arrives, not with what was announced."""
        data = bytearray()
        while len(data) < size:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimedOut("the server did not reply in time")
            self.sock.settimeout(left)
            try:
                piece = self.sock.recv(min(size - len(data), CHUNK))
            except TimeoutError:
                raise TimedOut("the server did not reply in time") from None
            except OSError as error:
                raise Closed(f"the connection broke: {error}") from None
            if not piece:
                raise Closed(f"the server closed the connection after {len(data)} of {size} bytes")
            data += piece
        return bytes(data)

    def frame(self) -> bytes:
        """Return the payload of the next frame."""
        magic, size = HEADER.unpack(self.receive(HEADER.size))
        if magic != MAGIC:
            raise BadFrame(f"a frame begins with {magic:#010x}; UnrealCV's begin with {MAGIC:#010x}")
        if not 0 < size <= LARGEST_REPLY:
            raise BadFrame(f"a frame announces {size} bytes; right is 1 to {LARGEST_REPLY}")
        return self.receive(size)


class SocketConnection:
    """A connection of our own, which needs nothing but the standard library.

    Args:
        endpoint: (host, port), or the path of a Unix socket.
        timeout: seconds to connect and be greeted.
    """

    def __init__(self, endpoint: tuple[str, int] | str, timeout: float) -> None:
        self.next_id = 0
        deadline = time.monotonic() + timeout
        self.sock = opened_socket(endpoint, timeout)
        try:
            greet(DeadlineSocket(self.sock, deadline), endpoint)
        except ConnectionLost:
            self.close()
            raise

    def exchange(self, commands: Sequence[str], timeout: float) -> list[bytes]:
        """Send commands, return the body of each reply."""
        reader = DeadlineSocket(self.sock, time.monotonic() + timeout)
        first, self.next_id = self.next_id, self.next_id + len(commands)
        try:
            self.sock.settimeout(timeout)
            for number, command in enumerate(commands, first):
                send_frame(self.sock, b"%d:%s" % (number, command.encode()))
        except OSError as error:
            raise Closed(f"the connection broke: {error}") from None
        return [_body(reader.frame(), number) for number in range(first, self.next_id)]

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def _body(payload: bytes, number: int) -> bytes:
    match = REPLY.match(payload)
    if match is None or int(match[1]) != number:
        raise WrongReply(f"request {number} was answered with {payload[:20]!r}")
    return payload[match.end() :]


def opened_socket(endpoint: tuple[str, int] | str, timeout: float) -> socket.socket:
    """Return a connected socket; raises Unreachable."""
    try:
        if isinstance(endpoint, str):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout)
            sock.connect(endpoint)
        else:
            sock = socket.create_connection(endpoint, timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise Unreachable(f"no connection to {shown(endpoint)}: {error}") from None
    return sock


def greet(reader: DeadlineSocket, endpoint: tuple[str, int] | str) -> str:
    """Return what the server greets with; raises NoGreeting."""
    try:
        greeting = reader.frame()
    except (TimedOut, Closed, BadFrame) as error:
        raise NoGreeting(f"{shown(endpoint)} does not greet as an UnrealCV server does: {error}") from None
    if not greeting.startswith(b"connected"):
        raise NoGreeting(f"{shown(endpoint)} refuses: {greeting[:80].decode('utf-8', 'replace')}")
    return greeting.decode("utf-8", "replace")


def shown(endpoint: tuple[str, int] | str) -> str:
    """Return an endpoint as a user writes it."""
    return endpoint if isinstance(endpoint, str) else f"{endpoint[0]}:{endpoint[1]}"
