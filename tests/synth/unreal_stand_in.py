"""A faulty UnrealCV server: it paints what it shows, as text, into the pixels, and goes wrong in chosen ways.

Whoever stores one of its pictures can be asked what the picture really is of: `painted` reads it back.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from PIL import Image

MAGIC = 0x9E2B83C1
FLOOR = (40, 50, 60)  # colour of the one object of each level
FAR = 10_000  # cm upwards, above which nothing is seen
ASSETS = {"worlds": ["Meadow", "Snow"], "objects": ["Cat", "Dog"], "textures": ["Default", "Sky"], "lights": {}}

FAULTS = (
    *("delay", "wrong_id", "bytes", "close_mid_image", "restart", "blank", "stale", "stale_mask", "error", "huge"),
    *("shifted", "wrong_pose", "not_png", "wrong_size", "empty", "bad_magic", "infinite_depth", "blended_mask"),
)
"""What goes wrong: at every fifth picture; "bytes", "stale" and "stale_mask" always."""


class StandIn:
    """A server on loopback, in threads of this process.

    Args:
        faults: names of `FAULTS`.
        every: a fault happens at every so many pictures.
        delay: seconds of the fault "delay".
        tcp_once: serve a Unix socket only, once the first TCP client has left, as Linux builds do.
        batches: offer vbatch.
        lag: pictures that are of the state before, after each change ("stale").
        dies_at: number of the picture at which the server ends for good.
    """

    def __init__(
        self,
        faults: Collection[str] = (),
        every: int = 5,
        delay: float = 0.8,
        tcp_once: bool = False,
        batches: bool = True,
        lag: int = 2,
        dies_at: int = 0,
        port: int = 0,
    ) -> None:
        self.faults, self.every, self.delay, self.lag, self.dies_at = set(faults), every, delay, lag, dies_at
        self.tcp_once, self.batches = tcp_once, batches
        self.pictures = self.refused = self.clients = 0
        self.happened: list[str] = []
        self.commands: list[str] = []
        self.reset()
        self.busy = threading.Lock()
        self.sockets: list[socket.socket] = []
        self.over = threading.Event()
        self.port = port
        self.listen()

    def reset(self) -> None:
        """Begin with an empty world, as a new process does."""
        self.level, self.things = "Meadow", {"Floor": self.thing("Floor", FLOOR)}
        self.camera = {"location": [0.0] * 3, "rotation": [0.0] * 3, "fov": [90.0], "size": [64, 64]}
        self.light: dict[str, Any] = {}
        self.history: list[str] = [self.state()]
        self.mask_history: list[list[Any]] = [[[90, 91, 92]]]

    @staticmethod
    def thing(kind: str, colour: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
        return {
            **{"kind": kind, "location": [0.0] * 3, "rotation": [0.0] * 3, "scale": [1.0] * 3},
            **{"color": list(colour), "texture": "Default"},
        }

    # -- sockets -----------------------------------------------------------------------------------------------------

    def listen(self, unix: bool = False) -> None:
        if unix:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.path)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(self.path)
        else:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            self.port = listener.getsockname()[1]
        listener.listen(4)
        self.listener = listener
        threading.Thread(target=self.accept, args=[listener], daemon=True).start()

    @property
    def path(self) -> str:
        return os.path.join(tempfile.gettempdir(), f"unrealcv_{self.port}.socket")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(connection)
            if not self.busy.acquire(blocking=False):
                self.refused += 1
                connection.close()
                continue
            self.clients += 1
            threading.Thread(target=self.serve, args=[connection, listener], daemon=True).start()

    def serve(self, connection: socket.socket, listener: socket.socket) -> None:
        try:
            self.send(connection, b"connected to the stand-in")
            while not self.over.is_set():
                number, command = self.read(connection)
                self.commands.append(command)
                self.reply(connection, number, command)
        except (OSError, EOFError):
            pass
        finally:
            connection.close()
            self.busy.release()
        if self.tcp_once and listener is self.listener and not self.over.is_set():
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self.listen(unix=True)

    def read(self, connection: socket.socket) -> tuple[int, str]:
        magic, size = struct.unpack("<II", self.exactly(connection, 8))
        assert magic == MAGIC
        number, _, command = self.exactly(connection, size).partition(b":")
        return int(number), command.decode()

    @staticmethod
    def exactly(connection: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = connection.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def send(self, connection: socket.socket, payload: bytes) -> None:
        data = struct.pack("<II", MAGIC, len(payload)) + payload
        if "bytes" in self.faults and len(data) < 20_000:
            for i in range(len(data)):
                connection.send(data[i : i + 1])
        else:
            connection.sendall(data)

    def stop(self) -> None:
        """End for good."""
        self.over.set()
        for sock in (self.listener, *self.sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- faults ------------------------------------------------------------------------------------------------------

    def reply(self, connection: socket.socket, number: int, command: str) -> None:
        body = self.answer(command)
        lit = command.startswith("vget /camera/0/lit")
        if lit:
            self.pictures += 1
            if self.pictures == self.dies_at:
                self.stop()
                raise EOFError
        turn = lit and self.pictures % self.every == 0
        fault = next((name for name in sorted(self.faults) if turn and hasattr(self, f"do_{name}")), None)
        if fault is not None:
            self.happened.append(fault)
            getattr(self, f"do_{fault}")(connection, number, body)
        else:
            self.send(connection, b"%d:%s" % (number, body))

    def do_delay(self, connection: socket.socket, number: int, body: bytes) -> None:
        time.sleep(self.delay)
        self.send(connection, b"%d:%s" % (number, body))

    def do_wrong_id(self, connection: socket.socket, number: int, body: bytes) -> None:
        self.send(connection, b"%d:%s" % (number + 7, body))

    def do_close_mid_image(self, connection: socket.socket, number: int, body: bytes) -> None:
        payload = b"%d:%s" % (number, body)
        connection.sendall(struct.pack("<II", MAGIC, len(payload)) + payload[: len(payload) // 2])
        raise EOFError

    def do_restart(self, connection: socket.socket, number: int, body: bytes) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.reset()
        threading.Timer(0.15, self.listen).start()
        raise EOFError

    def do_blank(self, connection: socket.socket, number: int, body: bytes) -> None:
        self.send(connection, b"%d:%s" % (number, self.png(np.full((*self.shape, 3), 77, np.uint8))))

    def do_error(self, connection: socket.socket, number: int, body: bytes) -> None:
        self.send(connection, b"%d:error Can not read the frame buffer" % number)

    def do_huge(self, connection: socket.socket, number: int, body: bytes) -> None:
        connection.sendall(struct.pack("<II", MAGIC, 0xFFFFFFFF) + b"%d:%s" % (number, body))

    def do_bad_magic(self, connection: socket.socket, number: int, body: bytes) -> None:
        connection.sendall(struct.pack("<II", 0x12345678, len(body)) + body)

    def do_empty(self, connection: socket.socket, number: int, body: bytes) -> None:
        connection.sendall(struct.pack("<II", MAGIC, 0))

    def do_shifted(self, connection: socket.socket, number: int, body: bytes) -> None:
        """Answer with the picture before, and a further reply: every later answer is one too late."""
        self.send(connection, b"%d:%s" % (number, self.lit(self.history[-2] if len(self.history) > 1 else "?")))
        self.send(connection, b"%d:%s" % (number + 1, body))

    def do_not_png(self, connection: socket.socket, number: int, body: bytes) -> None:
        self.send(connection, b"%d:%s" % (number, body[: len(body) // 2]))

    def do_wrong_size(self, connection: socket.socket, number: int, body: bytes) -> None:
        self.send(connection, b"%d:%s" % (number, self.png(np.zeros((9, 9, 3), np.uint8))))

    def do_wrong_pose(self, connection: socket.socket, number: int, body: bytes) -> None:
        """Something pushes the camera after the picture was asked for."""
        self.camera["location"][0] += 3
        self.send(connection, b"%d:%s" % (number, self.lit(self.state())))

    def do_infinite_depth(self, connection: socket.socket, number: int, body: bytes) -> None:
        self.no_depth = True
        self.send(connection, b"%d:%s" % (number, body))

    def do_blended_mask(self, connection: socket.socket, number: int, body: bytes) -> None:
        self.blended = True
        self.send(connection, b"%d:%s" % (number, body))

    no_depth = blended = False

    # -- commands ----------------------------------------------------------------------------------------------------

    def answer(self, command: str) -> bytes:
        for pattern, function in self.handlers():
            if match := re.fullmatch(pattern + " *", command):
                reply = function(*match.groups())
                if command.startswith(("vset", "vbp")) and self.history[-1] != self.state():
                    self.history.append(self.state())
                if "color" in command and command.startswith("vset"):
                    self.mask_history.append(self.colours())
                return reply if isinstance(reply, bytes) else (reply or "ok").encode()
        return f"error No handler found for URI '{command}'".encode()

    def handlers(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        number = r"([-+]?\d*[.]?\d+)"
        triple = f"{number} {number} {number}"
        yield r"vget /unrealcv/version", lambda: "0.0.1"
        yield r"vget /unrealcv/status", lambda: "Is Listening"
        yield r"vget /unrealcv/echo (.*)", lambda text: text
        if self.batches:
            yield r"vbatch (\d+)", lambda count: "ok"
        yield r"vbp Director Assets", lambda: json.dumps(ASSETS)
        yield r"vbp Director SetTexture (\S+) (\S+)", self.set_texture
        yield rf"vbp Director SetSun {triple} {triple}", lambda *values: self.light.update(sun=values) or "{}"
        yield rf"vbp Director SetSky {number}", lambda value: self.light.update(sky=value) or "{}"
        yield r"vget /level/name", lambda: self.level
        yield r"vset /action/game/level (\S+)", self.set_level
        yield r"vget /objects", lambda: "".join(f"{name} " for name in self.things)
        yield r"vset /objects/spawn (\S+) (\S+)", self.spawn
        yield r"vset /object/(\S+)/destroy", lambda name: self.things.pop(name) and "ok"
        for key in ("location", "rotation", "scale"):
            yield rf"vset /object/(\S+)/{key} {triple}", self.setter(key)
            yield rf"vget /object/(\S+)/{key}", self.getter(key)
        yield r"vset /object/(\S+)/color (\d+) (\d+) (\d+)", self.set_colour
        yield r"vget /object/(\S+)/color", self.get_colour
        for key in ("location", "rotation"):
            yield rf"vset /camera/0/{key} {triple}", self.camera_setter(key, float)
            yield rf"vget /camera/0/{key}", self.camera_getter(key)
        yield rf"vset /camera/0/fov {number}", self.camera_setter("fov", float)
        yield r"vget /camera/0/fov", self.camera_getter("fov")
        yield r"vset /camera/0/size (\d+) (\d+)", self.camera_setter("size", int)
        yield r"vget /camera/0/lit png", lambda: self.lit(self.seen(self.history, "stale"))
        yield r"vget /camera/0/object_mask png", lambda: self.seen_mask()
        yield r"vget /camera/0/depth npy", self.depth

    def set_texture(self, name: str, texture: str) -> str:
        self.things[name]["texture"] = texture
        return "{}"

    def set_level(self, name: str) -> str:
        if name not in ASSETS["worlds"]:
            return "error no such level"
        self.level, self.light, self.things = name, {}, {"Floor": self.thing("Floor", FLOOR)}
        return "ok"

    def spawn(self, kind: str, name: str) -> str:
        if kind not in ASSETS["objects"]:
            return "error no such class"
        self.things[name] = self.thing(kind)
        return name

    def setter(self, key: str) -> Callable[..., str]:
        def set_(name: str, *values: str) -> str:
            if name not in self.things:
                return "error Cannot find object"
            self.things[name][key] = [float(value) for value in values]
            return "ok"

        return set_

    def getter(self, key: str) -> Callable[[str], str]:
        return lambda name: " ".join(f"{value:.3f}" for value in self.things[name][key])

    def set_colour(self, name: str, *values: str) -> str:
        self.things[name]["color"] = [int(value) for value in values]
        return "ok"

    def get_colour(self, name: str) -> str:
        return "(R={},G={},B={},A=255)".format(*self.things[name]["color"])

    def camera_setter(self, key: str, kind: Callable[[str], Any]) -> Callable[..., str]:
        return lambda *values: self.camera.update({key: [kind(value) for value in values]}) or "ok"

    def camera_getter(self, key: str) -> Callable[[], str]:
        return lambda: " ".join(f"{value:.3f}" for value in self.camera[key])

    # -- pictures ----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.camera["size"][1]), int(self.camera["size"][0])

    def state(self) -> str:
        """What decides a picture, as text."""
        things = {name: copy.deepcopy(thing) for name, thing in self.things.items()}
        for thing in things.values():
            del thing["color"]
        return json.dumps({"level": self.level, "things": things, "camera": self.camera, "light": self.light})

    def seen(self, history: list[Any], fault: str) -> Any:
        """What is shown: with the fault, for `lag` pictures after a change that of the state before."""
        if fault not in self.faults or len(history) < 2:
            return history[-1]
        key = f"left {fault}"
        if self.__dict__.get(f"at {fault}") != len(history):
            self.__dict__[f"at {fault}"], self.__dict__[key] = len(history), self.lag
            self.__dict__[f"old {fault}"] = self.__dict__.get(f"shown {fault}", history[0])
        if self.__dict__[key] > 0:
            self.__dict__[key] -= 1
            return self.__dict__[f"old {fault}"]
        self.__dict__[f"shown {fault}"] = history[-1]
        return history[-1]

    def lit(self, state: str) -> bytes:
        """Paint a text into a picture: its length in two bytes, then its bytes, then a pattern."""
        height, width = self.shape
        pixels = (np.arange(height * width * 3) * 37 % 251).astype(np.uint8)
        data = struct.pack("<H", len(state)) + state.encode()
        assert len(data) < pixels.size, "the picture is too small for the text"
        pixels[: len(data)] = np.frombuffer(data, np.uint8)
        picture = pixels.reshape(height, width, 3)
        for place, thing in enumerate(self.shown(json.loads(state))):
            if thing["location"][2] < FAR:
                picture[self.region(place)] ^= 255
        return self.png(picture)

    def shown(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """The objects that are painted below the text, where the mask has them."""
        return [thing for name, thing in sorted(state["things"].items()) if name != "Floor"]

    def region(self, place: int) -> tuple[slice, slice]:
        """The pixels of one object."""
        height, width = self.shape
        left = 4 + place * (width // 2)
        return slice(height // 4, height // 2), slice(left, left + width // 3)

    def colours(self) -> list[Any]:
        return [thing["color"] for name, thing in sorted(self.things.items()) if name != "Floor"]

    def seen_mask(self) -> bytes:
        height, width = self.shape
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[height // 2 :] = FLOOR
        colours = self.seen(self.mask_history, "stale_mask") if "stale_mask" in self.faults else self.colours()
        for place, colour in enumerate(colours):
            pixels[self.region(place)] = colour
        if self.blended:
            pixels[0, :3] = pixels[self.shape[0] // 3, 6] // 2
            self.blended = False
        return self.png(pixels)

    def depth(self) -> bytes:
        depth = np.linspace(100, 900, self.shape[0] * self.shape[1], dtype=np.float32).reshape(self.shape)
        if self.no_depth:
            depth[0, 0], self.no_depth = np.inf, False
        buffer = io.BytesIO()
        np.save(buffer, depth)
        return buffer.getvalue()

    @staticmethod
    def png(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)  # as Unreal may leave it
        Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(buffer, "PNG")
        return buffer.getvalue()


def painted(data: bytes) -> dict[str, Any]:
    """Read from a picture what it is of."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tobytes()
    (length,) = struct.unpack("<H", pixels[:2])
    return dict(json.loads(pixels[2 : 2 + length]))


def main() -> None:
    """Serve as a packaged game would: `unreal_stand_in.py -RenderOffScreen -cvport=PORT`."""
    import sys

    port = next(int(word.partition("=")[2]) for word in sys.argv if word.startswith("-cvport="))
    StandIn(port=port).over.wait()


if __name__ == "__main__":
    main()
