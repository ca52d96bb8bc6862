"""Start a server in a process of its own, know its address, notice its death."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

START = 60.0  # seconds; a cold start loads NumPy and Pillow from disk
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ServerDied(Exception):
    """A server process ended, or said nothing in time; the message has its last words."""


@dataclasses.dataclass
class ServerProcess:
    """A running server; a context manager that stops it.

    Args:
        process: the child process.
        host, port: where it listens.
        socket_path: of its Unix socket, or None.
        tracer: name and version of what casts the rays.
    """

    process: subprocess.Popen[bytes]
    host: str
    port: int
    socket_path: str | None
    tracer: str
    _errors: IO[bytes] = dataclasses.field(repr=False)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def check(self) -> None:
        """Raise ServerDied, with the exit status and the last words, if the process has ended."""
        if not self.alive:
            raise ServerDied(f"the server at {self.address} {_end(self.process, self._errors)}")

    def stop(self, patience: float = 5.0) -> None:
        """End the process: SIGTERM, and SIGKILL when it has not ended after `patience` seconds."""
        _end_process(self.process, patience)
        self._errors.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_server(
    port: int = 0, unix: bool = False, tracer: str = "auto", save_to: str | None = None, timeout: float = START
) -> ServerProcess:
    """Start a server process on 127.0.0.1 and wait until clients may connect.

    The process uses one core and ends when this process does. Args as `serve`; `timeout` in seconds. Raises ServerDied.
    """
    words = [sys.executable, "-m", "granary.synth.pug.world", "--port", str(port), "--tracer", tracer]
    words += ["--parent", str(os.getpid())] + ["--unix"] * unix + (["--save-to", save_to] if save_to else [])
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=_environment()
    )
    try:
        address = _first_line(process, timeout)
    except BaseException:
        _end_process(process, 0)
        errors.close()
        raise
    if address is None:
        words_said = _end(process, errors)
        _end_process(process, 0)
        errors.close()
        raise ServerDied(f"a server of the embedded world {words_said}")
    return ServerProcess(process, address["host"], address["port"], address["unix"], address["tracer"], errors)


def _first_line(process: subprocess.Popen[bytes], timeout: float) -> dict[str, Any] | None:
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    line = b""
    while not line.endswith(b"\n") and (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            process.wait(timeout=5)
            break
        line += piece
    return json.loads(line) if line.endswith(b"\n") else None


def _environment() -> dict[str, str]:
    # The child must find this package from any folder, and several servers share the cores.
    root = str(Path(__file__).parents[4])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **dict.fromkeys(THREADS, "1")}


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    # The child shares the file's position, so it is read without moving it.
    message = os.pread(errors.fileno(), 2**20, 0).decode("utf-8", errors="replace").strip()[-500:]
    status = process.poll()
    how = "did not say in time that it is ready" if status is None else f"ended with status {status}"
    return f"{how}: {message}" if message else how


def _end_process(process: subprocess.Popen[bytes], patience: float) -> None:
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
