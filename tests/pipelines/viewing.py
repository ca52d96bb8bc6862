"""A page that `granary view` serves, asked over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from granary.curation.view.server import Server
from granary.pipelines.cli.view import open_page

Answered = tuple[int, dict[str, str], bytes]


class Visitor:
    """Asks a server, with its token and under its own name unless told otherwise."""

    def __init__(self, server: Server) -> None:
        self.server, self.base = server, f"/{server.token}/"

    def send(self, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answered:
        """Return status, headers and body of whatever is asked; a header of the value "" is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_host="Host" in headers)
            if body is not None:
                headers.setdefault("Content-Length", str(len(body)))
            for name, value in headers.items():
                if value:
                    connection.putheader(name.replace("_", "-"), value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def get(self, path: str, **query: object) -> bytes:
        """Return the body of an answer, which must be one."""
        status, _, body = self.send(self.base + quote(path) + "?" + urlencode(query))
        assert status == 200, body
        return body

    def json(self, path: str, **query: object) -> Any:
        return json.loads(self.get(path, **query))

    def numbers(self, path: str, **query: object) -> list[int]:
        return np.frombuffer(self.get(path, **query), "<u4").tolist()

    def refused(self, path: str, status: int, **query: object) -> str:
        """Return why there is no answer."""
        got, _, body = self.send(self.base + quote(path) + "?" + urlencode(query))
        assert got == status, body
        return json.loads(body)["error"]

    def rows(self) -> list[dict[str, Any]]:
        """Return what the page tells of every row."""
        count = self.json("run")["rows"]
        return self.json("rows", rows=",".join(map(str, range(count))))

    def facet(self, name: str) -> list[list[str]]:
        """Return the values of each row of a facet."""
        run = self.json("run")
        (facet,) = [facet for facet in run["facets"] if facet["name"] == name]
        data, count = self.get("facet", name=name), run["rows"]
        starts = np.frombuffer(data[: 4 * (count + 1)], "<u4") if facet["many"] else np.arange(count + 1)
        codes = np.frombuffer(data[4 * (count + 1) :] if facet["many"] else data, "<u2")
        return [[facet["values"][code] for code in codes[starts[i] : starts[i + 1]]] for i in range(count)]


@contextlib.contextmanager
def visiting(run: Path | str, **options: Any) -> Iterator[Visitor]:
    """Serve the page of a run until the block ends."""
    with open_page(str(run), **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield Visitor(server)
        finally:
            server.shutdown()
            thread.join()
