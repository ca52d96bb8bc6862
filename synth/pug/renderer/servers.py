"""Servers: listed by address, launched from a binary, or of the embedded world; each leased by one worker at a time."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import tempfile
import time
from typing import IO, Any

from granary.curation.errors import UserError
from granary.curation.ports import free_port
from granary.synth.pug.recipe import RendererOptions
from granary.synth.pug.renderer.connection import Connection, ConnectionLost, NoGreeting, SocketConnection, Unreachable

try:
    import fcntl
except ImportError:  # Windows: servers are then leased among the workers of one process only
    fcntl = None  # type: ignore[assignment]

GREETING = 10.0  # seconds a server may take to greet
LOCAL = ("127.0.0.1", "localhost", "::1")
Endpoint = tuple[str, int] | str


def open_connection(endpoint: Endpoint, timeout: float, package: bool) -> Connection:
    """Connect to a server.

    Args:
        endpoint: (host, port), or the path of a Unix socket.
        timeout: seconds.
        package: through the `unrealcv` package; else through our own socket.

    Raises:
        ConnectionLost: nobody answers as an UnrealCV server does.
        UserError: the package cannot be imported.
    """
    if not package:
        return SocketConnection(endpoint, timeout)
    check_package()
    from granary.synth.pug.renderer.unreal import UnrealConnection

    return UnrealConnection(endpoint, timeout)


def check_package() -> None:
    """Raise UserError, with the remedy, when the `unrealcv` package cannot be imported."""
    try:
        importlib.import_module("granary.synth.pug.renderer.unreal")
    except ImportError as error:
        if re.search(r"libGL|libgthread|libglib|cannot open shared object", str(error)):
            remedy = (
                "apt-get install libgl1 libglib2.0-0, or pip install opencv-python-headless in place of opencv-python"
            )
        else:
            remedy = "pip install 'granary-data[unreal]'"
        raise UserError(f"renderer.kind: unrealcv cannot be imported ({error}); {remedy}") from None


def endpoint_of(address: str) -> Endpoint:
    """Parse HOST:PORT or the path of a Unix socket; raises UserError."""
    if "/" in address:
        return address.removeprefix("unix:")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"renderer.addresses: {address!r} is no address; give HOST:PORT or the path of a Unix socket")
    return host.strip("[]"), int(port)


class ListedServer:
    """A server that somebody else runs; a lock of this machine keeps its other workers away."""

    about = ""

    def __init__(self, address: str) -> None:
        self.address, self.endpoint = address, endpoint_of(address)
        self._lock: IO[bytes] | None = None

    @property
    def remote(self) -> bool:
        """Whether it is on another machine: it may serve no TCP client after the first one leaves."""
        return isinstance(self.endpoint, tuple) and self.endpoint[0] not in LOCAL

    def claim(self) -> bool:
        """Take the lease; False when another worker of this machine has it."""
        name = hashlib.blake2b(self.address.encode(), digest_size=8).hexdigest()
        lock = open(os.path.join(tempfile.gettempdir(), f"granary-{name}.lock"), "ab")  # noqa: SIM115 held for long
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                return False
        self._lock = lock
        return True

    def connect(self, timeout: float) -> Connection:
        """Connect by TCP, or by the Unix socket a Linux server changes to when its first client has left."""
        troubles: list[ConnectionLost] = []
        for endpoint in self._endpoints():
            try:
                return open_connection(endpoint, min(timeout, GREETING), package=True)
            except ConnectionLost as error:
                troubles.append(error)
        raise next((error for error in troubles if isinstance(error, NoGreeting)), troubles[0])

    def _endpoints(self) -> list[Endpoint]:
        if isinstance(self.endpoint, str) or self.remote:
            return [self.endpoint]
        path = os.path.join(tempfile.gettempdir(), f"unrealcv_{self.endpoint[1]}.socket")
        return [self.endpoint, *([path] if os.path.exists(path) else [])]

    def close(self) -> None:
        """Give the lease back."""
        if self._lock is not None:
            self._lock.close()
        self._lock = None


class EmbeddedServer:
    """A server of the embedded world in a process of its own; started again when it has died."""

    def __init__(self, options: RendererOptions) -> None:
        self.options, self.about = options, ""
        self.process: Any = None

    def connect(self, timeout: float) -> Connection:
        """Connect; the first time, and after a death, start the process."""
        from granary.synth.pug.world.process import ServerDied, start_server

        if self.process is not None and not self.process.alive:
            self.close()
        if self.process is None:
            try:
                self.process = start_server(timeout=self.options.start_timeout)
                self.about = self.process.tracer
            except (ServerDied, OSError) as error:
                raise Unreachable(f"the embedded world does not start: {error}") from None
        try:
            return SocketConnection((self.process.host, self.process.port), min(timeout, GREETING))
        except ConnectionLost:
            self.close()  # it hangs, or still serves a client that we gave up
            raise

    def close(self) -> None:
        """Stop the process."""
        if self.process is not None:
            self.process.stop()
        self.process = None


class LaunchedServer:
    """A packaged game that we launch on a free port, and again when it has died."""

    about = ""

    def __init__(self, options: RendererOptions) -> None:
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.listed: ListedServer | None = None

    def connect(self, timeout: float) -> Connection:
        """Connect; the first time, and after a death, launch the binary and wait until it greets."""
        if self.process is not None and self.process.poll() is not None:
            self.close()
        if self.listed is not None:
            return self.listed.connect(timeout)
        self._launch()
        assert self.process is not None
        assert self.listed is not None
        deadline = time.monotonic() + self.options.start_timeout
        while True:
            try:
                return self.listed.connect(timeout)
            except ConnectionLost as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    status = self.process.poll()
                    self.close()
                    raise Unreachable(f"{self.options.binary} does not serve (exit status {status}): {error}") from None
                time.sleep(0.2)

    def _launch(self) -> None:
        port = free_port()
        words = [str(self.options.binary), *(word.replace("{port}", str(port)) for word in self.options.arguments)]
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise Unreachable(f"{self.options.binary} cannot be launched: {error.strerror}") from None
        self.listed = ListedServer(f"127.0.0.1:{port}")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = self.listed = None
