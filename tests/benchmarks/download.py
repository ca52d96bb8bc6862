"""Addresses a second of the downloader against img2dataset: same server, same number of connections, one run.

    python -m tests.benchmarks.download [PYTHON]

A server of this machine, in a process of its own, answers each request after 50 ms, and the first one of a connection
50 ms later, as a line of that latency does. PYTHON is an interpreter that has img2dataset: its `download` then runs in
one process and writes nothing. Without it the reference is what its downloader does: a pool of threads, each of
which opens an address with urllib and reads it (img2dataset/downloader.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from granary.curation.download import Download, Downloads

LATENCY = 0.05
ADDRESSES, ROUNDS = 2000, 3
CONNECTIONS = (16, 64)
Fetch = Callable[[list[str], int], int]


def photograph() -> bytes:
    """Return a JPEG of about 20 kB."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((480, 320), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    """Answer the requests of one connection, each after the latency, one more before the first."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n".encode()
    await asyncio.sleep(LATENCY)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while request := await reader.readuntil(b"\r\n\r\n"):
            await asyncio.sleep(LATENCY)
            closing = b"connection: close" in request.lower()
            writer.write(head + (b"Connection: close\r\n\r\n" if closing else b"\r\n") + body)
            await writer.drain()
            if closing:
                break
    writer.close()


def serve(ready: Connection) -> None:
    """Serve until the process is ended; tells its port."""

    async def forever() -> None:
        body = photograph()
        server = await asyncio.start_server(lambda r, w: answer(r, w, body), "127.0.0.1", 0, backlog=1024)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Yield the address of a running server."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{here.recv()}"
    process.terminate()


def with_granary(addresses: list[str], connections: int) -> int:
    """Fetch in one event loop; returns the number of files."""
    options = Download(connections=connections, per_host=connections)
    downloads = Downloads(options, max_bytes=1 << 24, private=True)
    downloads.expect(addresses)
    count = sum(bool(downloads.read(address)) for address in addresses)
    downloads.close()
    return count


def with_threads(addresses: list[str], connections: int) -> int:
    """Fetch as img2dataset does; returns the number of files."""

    def fetch(address: str) -> bytes:
        request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            return io.BytesIO(reply.read()).getvalue()

    with ThreadPool(connections) as pool:
        return sum(map(bool, pool.imap_unordered(fetch, addresses)))


def with_img2dataset(python: str) -> Fetch:
    """Return what runs the `download` of img2dataset in one process: it only fetches, and writes no file."""

    def fetch(addresses: list[str], connections: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "list.txt").write_text("\n".join(addresses))
            options = {
                "url_list": f"{folder}/list.txt",
                "output_folder": f"{folder}/out",
                "output_format": "dummy",
                "thread_count": connections,
                "processes_count": 1,
                "disable_all_reencoding": True,
            }
            program = f"from img2dataset import download; download(**{options!r})"
            subprocess.run([python, "-c", program], check=True, capture_output=True)
            shards = [json.loads(path.read_text()) for path in Path(folder, "out").glob("*_stats.json")]
            return sum(shard["successes"] for shard in shards)

    return fetch


class Measured(NamedTuple):
    """What one way of fetching took: addresses a second, and milliseconds of a processor for each of them."""

    rate: float
    processor: float


def measure(fetch: Fetch, addresses: list[str], connections: int) -> Measured:
    """Fetch all addresses, less what one address alone takes: the start of a program is not measured."""
    (seconds, processor), (first, start) = cost(fetch, addresses, connections), cost(fetch, addresses[:1], connections)
    count = len(addresses) - 1
    return Measured(count / (seconds - first), (processor - start) / count * 1e3)


def cost(fetch: Fetch, addresses: list[str], connections: int) -> tuple[float, float]:
    """Return seconds, and those of a processor; every address must come."""
    began, before = time.perf_counter(), sum(os.times()[:4])
    count = fetch(addresses, connections)
    assert count == len(addresses), f"{count} of {len(addresses)} came"
    return time.perf_counter() - began, sum(os.times()[:4]) - before


def medians(methods: dict[str, Fetch], addresses: list[str], connections: int) -> dict[str, Measured]:
    """Return the medians over rounds in which all methods take turns."""
    rounds = [{name: measure(fetch, addresses, connections) for name, fetch in methods.items()} for _ in range(ROUNDS)]
    return {
        name: Measured(*(statistics.median(values) for values in zip(*(one[name] for one in rounds), strict=True)))
        for name in methods
    }


def main(python: str | None) -> None:
    """Print rates, processor times and ratios."""
    methods: dict[str, Fetch] = {"granary": with_granary, "threads and urllib": with_threads}
    if python:
        methods["img2dataset"] = with_img2dataset(python)
    table = Table("connections", "method", "addresses/s", "processor ms of each", "granary is faster by", box=None)
    with server() as base:
        addresses = [f"{base}/{number}.jpg" for number in range(ADDRESSES)]
        for connections in CONNECTIONS:
            measured = medians(methods, addresses, connections)
            for name, (rate, processor) in measured.items():
                ratio = measured["granary"].rate / rate
                table.add_row(str(connections), name, f"{rate:,.0f}", f"{processor:.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
