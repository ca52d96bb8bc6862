"""Measure the embedded world: `python -m tests.benchmarks.world [FRAMES]`.

Starts two server processes, asks both at once through plain sockets, and prints frames per second (lit, mask and depth
of one scene are one frame), processor time per frame, the share of the protocol, and the rate at 640 x 480 beside the
one UnrealCV's paper states for itself.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from granary.synth.pug.world import ServerProcess, start_server
from granary.synth.pug.world.wire import HEADER, send_frame

UNREALCV = 10.4  # lit frames/s at 640 x 480: Qiu et al. 2017, on a machine with a GPU
ANIMALS = ("Elephant", "Cat", "Duck", "Lion")
CAPTURES = ("vget /camera/0/lit png", "vget /camera/0/object_mask png", "vget /camera/0/depth npy")


class Peer:
    """The least client there can be."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.socket = socket.create_connection((server.host, server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")
        self._reply()

    def ask(self, commands: Sequence[str]) -> list[bytes]:
        """Send commands in one go; return the bodies of the replies."""
        for command in commands:
            send_frame(self.socket, b"0:" + command.encode())
        replies = [self._reply() for _ in commands]
        assert not any(reply.startswith(b"error") for reply in replies), replies
        return replies

    def _reply(self) -> bytes:
        _, size = HEADER.unpack(self.stream.read(HEADER.size))
        return self.stream.read(size).partition(b":")[2]

    def processor_time(self) -> float:
        """Seconds of processor time that the server has used."""
        fields = Path(f"/proc/{self.server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def render(peer: Peer, frames: int, captures: Sequence[str]) -> None:
    """Ask for frames: the object turns, its kind changes now and then."""
    peer.ask(["vset /objects/spawn Elephant A"])
    for frame in range(frames):
        if frame % 25 == 0:
            kind = ANIMALS[frame // 25 % len(ANIMALS)]
            peer.ask(["vset /object/A/destroy", f"vset /objects/spawn {kind} A"])
        peer.ask([f"vset /object/A/rotation 0 {frame * 7 % 360} 0", *captures])
    peer.ask(["vset /object/A/destroy"])


def prepare(peer: Peer, world: str, width: int, height: int) -> None:
    """Load a world and every animal before the clock runs."""
    peer.ask([f"vset /action/game/level {world}", "vset /camera/0/fov 45", f"vset /camera/0/size {width} {height}"])
    peer.ask(["vset /camera/0/location 293 0 107", "vset /camera/0/rotation -12 180 0"])
    for kind in ANIMALS:
        peer.ask([f"vset /objects/spawn {kind} B", CAPTURES[0], "vset /object/B/destroy"])


def measure(peers: Sequence[Peer], frames: int, width: int, height: int, captures: Sequence[str]) -> None:
    """Print the rate of all peers together over three worlds."""
    wall = cpu = 0.0
    worlds = ("Meadow", "CitySquare", "Snow")
    each = max(1, frames // (len(worlds) * len(peers)))
    with ThreadPoolExecutor(len(peers)) as pool:
        for world in worlds:
            list(pool.map(lambda peer, name=world: prepare(peer, name, width, height), peers))  # type: ignore[misc]
            start, used = time.perf_counter(), sum(peer.processor_time() for peer in peers)
            list(pool.map(lambda peer: render(peer, each, captures), peers))
            wall += time.perf_counter() - start
            cpu += sum(peer.processor_time() for peer in peers) - used
    done = each * len(worlds) * len(peers)
    what = "+".join(capture.split("/")[-1].split()[0] for capture in captures)
    print(
        f"{width} x {height} {what}: {done} frames with {len(peers)} servers, {done / wall:.1f} frames/s, "
        f"{1000 * cpu / done:.0f} ms of processor time a frame, 1,000 frames in {1000 * wall / done:.0f} s"
    )
    if (width, height) == (640, 480):
        print(f"  UnrealCV's own figure at this size, on a machine with a GPU: {UNREALCV} frames/s")


def overhead(peer: Peer, frames: int = 20) -> None:
    """Print what commands, sockets and encoding cost beside the tracing of a frame."""
    prepare(peer, "Meadow", 224, 224)
    start = time.perf_counter()
    render(peer, frames, CAPTURES)
    whole = (time.perf_counter() - start) / frames
    commands = ["vset /object/A/rotation 0 1 0", *(["vget /unrealcv/echo x"] * len(CAPTURES))]
    peer.ask(["vset /objects/spawn Cat A"])
    start = time.perf_counter()
    for _ in range(500):
        peer.ask(commands)
    requests = (time.perf_counter() - start) / 500
    peer.ask(CAPTURES)
    start = time.perf_counter()
    for _ in range(100):
        peer.ask(CAPTURES)  # nothing changed: kept pictures are encoded and sent
    encoding = (time.perf_counter() - start) / 100
    print(
        f"a frame of 224 x 224 takes {1000 * whole:.0f} ms; its requests {1000 * requests:.2f} ms "
        f"({100 * requests / whole:.1f} %), encoding and sending its pictures {1000 * encoding:.1f} ms"
    )


def main() -> None:
    """Run all measurements."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with start_server() as one, start_server() as two:
        print(f"two servers, {one.tracer}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        peers = [Peer(one), Peer(two)]
        overhead(peers[0])
        measure(peers, frames, 224, 224, CAPTURES)
        measure(peers, frames, 64, 64, CAPTURES)
        measure(peers, max(6, frames // 10), 640, 480, CAPTURES[:1])


if __name__ == "__main__":
    main()
