"""The servers of one process: each is leased by one worker at a time, and kept for the next one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence

from joblib import cpu_count

from granary.synth.pug.recipe import RendererOptions
from granary.synth.pug.renderer.capture import UnrealCVRenderer
from granary.synth.pug.renderer.servers import EmbeddedServer, LaunchedServer, ListedServer

IDLE = 5.0  # seconds after which an unused server of this machine is left to others


class Pool:
    """The servers of one process: each is used by one worker at a time.

    Args:
        options: which servers.
        modes: what they capture.
        meshes: the user's own, by name.
        workers: servers to start at most, where the options leave it open.
    """

    def __init__(
        self, options: RendererOptions, modes: Sequence[str], meshes: Mapping[str, str], workers: int = 0
    ) -> None:
        self.options, self.modes, self.meshes = options, tuple(modes), dict(meshes)
        self.limit = options.servers or workers or cpu_count()
        self.condition = threading.Condition()
        self.idle: list[UnrealCVRenderer] = []
        self.started = 0
        self.unclaimed = [ListedServer(address) for address in options.addresses]
        self.timers: dict[int, threading.Timer] = {}

    @contextlib.contextmanager
    def lease(self) -> Iterator[UnrealCVRenderer]:
        """Have a renderer that nobody else uses; waits until one is free."""
        renderer = self._acquire()
        try:
            yield renderer
        except BaseException:
            renderer.drop()  # what it was asked last may still be answered
            raise
        finally:
            self._release(renderer)

    def close(self) -> None:
        """Stop all servers that are not in use."""
        with self.condition:
            while self.idle:
                self._discard(self.idle[-1])

    def _acquire(self) -> UnrealCVRenderer:
        with self.condition:
            while True:
                if self.idle:
                    renderer = self.idle.pop()
                    if (timer := self.timers.pop(id(renderer), None)) is not None:
                        timer.cancel()
                    return renderer
                server = self._another()
                if server is not None:
                    return UnrealCVRenderer(server, self.options, self.modes, self.meshes)
                self.condition.wait(0.2)  # another process may give a listed server back without telling

    def _another(self) -> ListedServer | LaunchedServer | EmbeddedServer | None:
        if self.options.kind == "unrealcv" and self.options.binary is None:
            free = next((server for server in self.unclaimed if server.claim()), None)
            if free is not None:
                self.unclaimed.remove(free)
            return free
        if self.started >= self.limit:
            return None
        self.started += 1
        return EmbeddedServer(self.options) if self.options.kind == "embedded" else LaunchedServer(self.options)

    def _release(self, renderer: UnrealCVRenderer) -> None:
        with self.condition:
            self.idle.append(renderer)
            if isinstance(renderer.server, ListedServer) and not renderer.server.remote:
                timer = self.timers[id(renderer)] = threading.Timer(IDLE, self._expire, [renderer])
                timer.daemon = True
                timer.start()
            self.condition.notify()

    def _expire(self, renderer: UnrealCVRenderer) -> None:
        with self.condition:
            if renderer in self.idle:
                self._discard(renderer)
                self.condition.notify()

    def _discard(self, renderer: UnrealCVRenderer) -> None:
        self.idle.remove(renderer)
        if (timer := self.timers.pop(id(renderer), None)) is not None:
            timer.cancel()
        renderer.close()
        if isinstance(renderer.server, ListedServer):
            self.unclaimed.append(renderer.server)
        else:
            self.started -= 1


_pools: dict[str, Pool] = {}
_pools_lock = threading.Lock()


def pool_of(options: RendererOptions, modes: Sequence[str], meshes: Mapping[str, str], workers: int = 0) -> Pool:
    """Return this process's pool of such servers."""
    key = json.dumps([options.model_dump(mode="json"), list(modes), dict(meshes)], sort_keys=True)
    with _pools_lock:
        if key not in _pools:
            _pools[key] = Pool(options, modes, meshes, workers)
        return _pools[key]


def close_pools() -> None:
    """Stop every server that this process started and does not use."""
    with _pools_lock:
        for pool in _pools.values():
            pool.close()
        _pools.clear()
