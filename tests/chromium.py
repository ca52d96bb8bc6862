"""A headless Chromium that tests drive through the DevTools protocol; they skip where there is none."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
    "--window-size=1400,900",
)  # fmt: skip
PATIENCE = 30  # seconds


class Tab:
    """The one tab of a browser."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.loop, self.socket, self.numbers = loop, socket, itertools.count(1)
        self.said: list[str] = []  # errors of the console, and exceptions

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        return self.loop.run_until_complete(asyncio.wait_for(self._call(method, params), PATIENCE))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(json.dumps(message["params"]))

    def open(self, address: str) -> None:
        """Open an address."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)

    def js(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, awaited."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.js(expression)):
            assert time.monotonic() < deadline, f"{expression} stays {value!r}; {self.said}"
            time.sleep(0.02)
        return value

    def picture(self, path: Path) -> None:
        """Save what the tab shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """Start a browser; skips the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium here")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        loop = asyncio.new_event_loop()
        try:
            yield from _tab(loop, Path(profile) / "DevToolsActivePort")
        finally:
            loop.close()
            process.terminate()
            process.wait(20)


def _tab(loop: asyncio.AbstractEventLoop, told: Path) -> Iterator[Tab]:
    deadline = time.monotonic() + PATIENCE
    while not (told.is_file() and told.read_text().count("\n")):
        assert time.monotonic() < deadline, "Chromium does not start"
        time.sleep(0.05)
    port = told.read_text().split("\n")[0]

    async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
        return session, await session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0)

    session, socket = loop.run_until_complete(connect())
    try:
        yield Tab(loop, socket)
    finally:
        loop.run_until_complete(socket.close())
        loop.run_until_complete(session.close())
