"""Peak memory of a stage."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

EVERY = 0.2  # seconds between two looks


class PeakMemory:
    """Watches the resident memory of this process and its children while it is entered.

    `bytes` is the highest sum seen. Pages that processes share count for each of them.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(EVERY):
            self._look()

    def _look(self) -> None:
        process, total = psutil.Process(), 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.Error:  # it ended meanwhile
                continue
        self.bytes = max(self.bytes, total)
