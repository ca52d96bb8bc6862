"""A proxy before an UnrealCV server that passes frames on, and goes wrong once at chosen captures."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import NoReturn

MAGIC = 0x9E2B83C1
CAPTURES = (b"\x89PNG", b"\x93NUMPY")
LARGE = 0xFFFFFFFF
PIECE = 0.02  # seconds between two bytes of a slow frame


class FaultyProxy:
    """A proxy on loopback, in threads of this process.

    Args:
        upstream: port of the server.
        faults: what goes wrong, by the number of the capture, from 1.
        stall: seconds of a stall.
    """

    def __init__(self, upstream: int, faults: Mapping[int, str], stall: float) -> None:
        self.upstream, self.faults, self.stall = upstream, dict(faults), stall
        self.captures = 0
        self.happened: list[str] = []
        self.greeting: bytes | None = None  # instead of the server's, once
        self.silent_until = 0.0
        self.over = threading.Event()
        self.port = 0
        self.listen()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def listen(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=8)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, args=[self.listener], daemon=True).start()

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                time.sleep(max(0.0, self.silent_until - time.monotonic()))
                with contextlib.suppress(OSError, EOFError), connection:
                    self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """Pass on what one client and the server say, until one of them leaves."""
        if self.greeting is not None:
            greeting, self.greeting = self.greeting, None
            connection.sendall(greeting)
            return
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            threading.Thread(target=copy, args=[connection, server], daemon=True).start()
            while not self.over.is_set():
                self.reply(connection, exactly(server, struct.unpack("<II", exactly(server, 8))[1]))

    def reply(self, connection: socket.socket, payload: bytes) -> None:
        frame = struct.pack("<II", MAGIC, len(payload)) + payload
        number, _, body = payload.partition(b":")
        self.captures += body.startswith(CAPTURES)
        fault = self.faults.pop(self.captures, None) if body.startswith(CAPTURES) else None
        if fault is None:
            connection.sendall(frame)
        else:
            self.happened.append(fault)
            getattr(self, f"do_{fault}")(connection, frame, int(number))

    def stop(self) -> None:
        self.over.set()
        self.listener.close()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- faults ------------------------------------------------------------------------------------------------------

    def do_stall(self, connection: socket.socket, frame: bytes, number: int) -> None:
        """Neither reply nor greet anybody for a while."""
        self.silent_until = time.monotonic() + self.stall
        time.sleep(self.stall)
        connection.sendall(frame)

    def do_half_a_frame_and_a_stall(self, connection: socket.socket, frame: bytes, number: int) -> None:
        connection.sendall(frame[: len(frame) // 2])
        self.do_stall(connection, frame[len(frame) // 2 :], number)

    def do_slow(self, connection: socket.socket, frame: bytes, number: int) -> None:
        for place in range(len(frame)):
            connection.sendall(frame[place : place + 1])
            time.sleep(PIECE)

    def do_reset(self, connection: socket.socket, frame: bytes, number: int) -> NoReturn:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise EOFError

    def do_close(self, connection: socket.socket, frame: bytes, number: int) -> NoReturn:
        raise EOFError

    def do_half_a_header(self, connection: socket.socket, frame: bytes, number: int) -> NoReturn:
        connection.sendall(frame[:3])
        raise EOFError

    def do_half_a_frame(self, connection: socket.socket, frame: bytes, number: int) -> NoReturn:
        connection.sendall(frame[: len(frame) // 2])
        raise EOFError

    def do_refused(self, connection: socket.socket, frame: bytes, number: int) -> NoReturn:
        """Nobody listens for a while."""
        self.listener.close()
        threading.Timer(self.stall, self.listen).start()
        raise EOFError

    def do_wrong_greeting(self, connection: socket.socket, frame: bytes, number: int) -> NoReturn:
        self.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        raise EOFError

    def do_half_a_greeting(self, connection: socket.socket, frame: bytes, number: int) -> NoReturn:
        self.greeting = struct.pack("<II", MAGIC, 23) + b"connect"
        raise EOFError

    def do_garbage(self, connection: socket.socket, frame: bytes, number: int) -> None:
        connection.sendall(bytes(range(7, 71)) + frame)

    def do_garbled(self, connection: socket.socket, frame: bytes, number: int) -> None:
        place = 8 + (len(frame) - 8) // 2
        garbled = bytes(byte ^ 0x55 for byte in frame[place : place + 4])
        connection.sendall(frame[:place] + garbled + frame[place + 4 :])

    def do_wrong_id(self, connection: socket.socket, frame: bytes, number: int) -> None:
        body = frame[8:].partition(b":")[2]
        payload = b"%d:%s" % (number + 1, body)
        connection.sendall(struct.pack("<II", MAGIC, len(payload)) + payload)

    def do_lost(self, connection: socket.socket, frame: bytes, number: int) -> None:
        """Leave one reply out."""

    def do_twice(self, connection: socket.socket, frame: bytes, number: int) -> None:
        connection.sendall(frame + frame)

    def do_huge(self, connection: socket.socket, frame: bytes, number: int) -> None:
        connection.sendall(struct.pack("<II", MAGIC, LARGE) + frame[8:])

    def do_empty(self, connection: socket.socket, frame: bytes, number: int) -> None:
        connection.sendall(struct.pack("<II", MAGIC, 0))


FAULTS = tuple(name.removeprefix("do_") for name in vars(FaultyProxy) if name.startswith("do_"))


def copy(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until one side leaves, then wake whoever still reads from the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
