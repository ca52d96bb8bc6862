"""A stand-in of the Hub that has one model, the one that `encoder.retrieval: auto` asks for."""

from __future__ import annotations

import hashlib
import json
import time

import loopback

from granary.curation.encoders.choice import FILES, MODEL

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ModelHub(loopback.Server):
    """A Hub on loopback with one model; `silent` seconds pass before an answer, and `broken` ends it in status 500."""

    block_on_close = False

    def __init__(self) -> None:
        super().__init__(Answer)
        self.files = {name: f"contents of {name}".encode() for name in FILES}
        self.silent, self.broken = 0.0, False
        self.asked: list[str] = []


class Answer(loopback.Handler):
    server: ModelHub

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(path)
        time.sleep(hub.silent)
        data = hub.files.get(path.rpartition("/")[2], b"")
        if path == f"/api/models/{MODEL}":
            siblings = [{"rfilename": name, "size": len(one)} for name, one in hub.files.items()]
            data = json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(500 if hub.broken else 200 if data else 404)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET
