"""Many downloads at a time, in one event loop, given out in the order they were announced in."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from granary.curation.download import transfer
from granary.curation.download.errors import DownloadError
from granary.curation.download.options import Download

if TYPE_CHECKING:
    from aiohttp import ClientSession

HELD_BYTES = 1 << 28  # of files that came and were not asked for yet: no more are begun
MOST_BYTES = 1 << 30  # likewise: those nobody waits for are put back
AHEAD = 4  # times the connections: files that may wait to be asked for
SILENT_AFTER = 8  # time limits in a row that passed without an answer: the host is not asked again


class Announced(NamedTuple):
    """One address that will be asked for."""

    position: int
    address: str
    body: concurrent.futures.Future[bytes]


class _NoRoom(Exception):
    """Too much came that nobody has asked for yet."""


class Downloads:
    """Fetches addresses of http and https ahead of those who read them.

    `expect` says what will be read, `read` waits for it. The event loop has a thread of its own, so that files come in
    while others are decoded. What the order of reading is, the order of the servers' answers does not change.

    Args:
        options: limits and manners.
        max_bytes: larger files are not read.
        private: whether addresses of this machine and of private networks may be reached.
    """

    def __init__(self, options: Download, max_bytes: int, private: bool = False) -> None:
        self.options, self.private = options, private
        self.max_bytes = min(max_bytes, options.max_bytes or max_bytes)
        self.announced: dict[str, collections.deque[Announced]] = collections.defaultdict(collections.deque)
        self.count = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    def expect(self, addresses: Iterable[str]) -> None:
        """Announce what will be read, in this order."""
        batch = [self._announce(address) for address in addresses]
        if batch:
            loop = self._running()
            loop.call_soon_threadsafe(self.worker.add, batch)

    def read(self, address: str) -> bytes:
        """Return the body of an address, announced or not. Raises DownloadError."""
        if address not in self.announced:
            self.expect([address])
        item = self.announced[address].popleft()
        if not self.announced[address]:
            del self.announced[address]
        loop = self._running()
        loop.call_soon_threadsafe(self.worker.need, item.position)
        try:
            body = item.body.result()
        finally:
            loop.call_soon_threadsafe(self.worker.take, item.position)
        return body

    def close(self) -> None:
        """Give up what still runs, and end the thread."""
        if self.loop is not None:
            asyncio.run_coroutine_threadsafe(self.worker.stop(), self.loop).result()
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.names.shutdown(wait=False, cancel_futures=True)
            self.loop.close()
            self.loop = None
            self.announced.clear()

    def _announce(self, address: str) -> Announced:
        item = Announced(self.count, address, concurrent.futures.Future())
        self.announced[address].append(item)
        self.count += 1
        return item

    def _running(self) -> asyncio.AbstractEventLoop:
        """Return the event loop, begun when it is first needed."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            self.names = concurrent.futures.ThreadPoolExecutor(self.options.connections, "granary-names")
            self.loop.set_default_executor(self.names)  # they look up hosts; asyncio has few, as many as cores
            self.worker = _Worker(self.options, self.max_bytes, self.private)
            self.thread = threading.Thread(target=self.loop.run_forever, name="granary-downloads", daemon=True)
            self.thread.start()
        return self.loop


class NoDownloads(Downloads):
    """In the place of downloads: fetches nothing and refuses every address."""

    def expect(self, addresses: Iterable[str]) -> None:
        """Announce nothing."""

    def read(self, address: str) -> bytes:
        """Raise DownloadError."""
        raise DownloadError("NotFetched", "its picture is at an address, and nothing is fetched here")


class _Worker:
    """What runs inside the event loop; every method is called there."""

    def __init__(self, options: Download, max_bytes: int, private: bool) -> None:
        self.options, self.max_bytes, self.private = options, max_bytes, private
        self.queue: collections.deque[Announced] = collections.deque()
        self.held: dict[int, int] = collections.defaultdict(int)  # bytes of each file that came and was not taken
        self.needed, self.begun, self.taken = -1, 0, 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.room = asyncio.Event()
        self.connections = asyncio.Semaphore(options.connections)
        self.hosts: dict[str, asyncio.Semaphore] = collections.defaultdict(lambda: asyncio.Semaphore(options.per_host))
        self.failures: collections.Counter[str] = collections.Counter()
        self.session: ClientSession | None = None

    def add(self, batch: list[Announced]) -> None:
        self.queue.extend(batch)
        self._feed()

    def need(self, position: int) -> None:
        """Somebody waits for this one: neither it nor what comes before it waits for room."""
        self.needed = max(self.needed, position)
        self._feed()

    def take(self, position: int) -> None:
        """One was handed out."""
        self.held.pop(position, None)
        self.taken += 1
        self._feed()

    async def stop(self) -> None:
        """Cancel what runs and close the connections."""
        self.queue.clear()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.session is not None:
            await self.session.close()

    def _feed(self) -> None:
        """Begin what there is room for."""
        self.room.set()
        self.room.clear()
        while self.queue and self._may_begin(self.queue[0].position):
            task = asyncio.ensure_future(self._answer(self.queue.popleft()))
            self.begun += 1
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def _may_begin(self, position: int) -> bool:
        waiting = self.begun - self.taken
        room = waiting < AHEAD * self.options.connections and self._held_bytes() < HELD_BYTES
        return room or position <= self.needed

    def _held_bytes(self) -> int:
        return sum(self.held.values())

    async def _answer(self, item: Announced) -> None:
        try:
            item.body.set_result(await self._fetch(item))
        except DownloadError as error:
            item.body.set_exception(error)
        except _NoRoom:
            self._put_back(item)
        except BaseException:
            item.body.set_exception(DownloadError("ConnectionError", "the download was given up"))
            raise

    def _put_back(self, item: Announced) -> None:
        self.held.pop(item.position, None)
        self.begun -= 1
        self.queue = collections.deque(sorted([*self.queue, item]))
        self._feed()

    async def _fetch(self, item: Announced) -> bytes:
        """Try an address as often as the options say."""
        attempt = 0
        while True:
            try:
                return await self._try(item)
            except DownloadError as error:
                self.held.pop(item.position, None)
                wait = self._wait(error, attempt, _host(item.address))
                if wait is None:
                    raise
            attempt += 1
            await asyncio.sleep(wait)

    def _wait(self, error: DownloadError, attempt: int, host: str) -> float | None:
        """Return the seconds until a failed address is tried again; None where it is not."""
        asked = error.wait or 0
        last = attempt >= self.options.retries or asked > self.options.longest_wait
        if last or not error.passing or self._silent(host):
            return None
        return float(max(self.options.backoff * 2**attempt, asked))

    async def _try(self, item: Announced) -> bytes:
        """Fetch once, when the host and the loop have a connection to spare."""
        host = _host(item.address)
        async with self.hosts[host], self.connections:
            if item.position > self.needed and self._held_bytes() >= HELD_BYTES:
                raise _NoRoom
            if self._silent(host):
                raise DownloadError("SilentHost", f"the host did not answer {SILENT_AFTER} times in a row")
            try:
                body = await self._transfer(item)
            except DownloadError as error:
                self.failures[host] = self.failures[host] + 1 if error.kind == "TimeoutError" else 0
                raise
            self.failures[host] = 0
            return body

    def _silent(self, host: str) -> bool:
        return self.failures[host] >= SILENT_AFTER

    async def _transfer(self, item: Announced) -> bytes:
        if self.session is None:
            self.session = transfer.open_session(self.options, self.private)
        count = functools.partial(self._arrived, item)
        return await transfer.transfer(self.session, item.address, self.options, self.max_bytes, count)

    def _arrived(self, item: Announced, size: int) -> None:
        """Count bytes; raises _NoRoom where they are too many and nobody waits for the file."""
        self.held[item.position] += size
        if item.position > self.needed and self._held_bytes() > MOST_BYTES:
            raise _NoRoom


def _host(address: str) -> str:
    try:
        return urlsplit(address).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""
