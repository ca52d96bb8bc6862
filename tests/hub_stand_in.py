"""A stand-in of the Hugging Face Hub over real HTTP: repositories, commits, large files, downloads.

It keeps what it received in memory and every request in `requests`, and can be told to misbehave. As on the Hub, large
files are stored by their SHA-256 before they are committed, so that a whole one is never asked for again.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loopback

TOKEN = "hf_" + "StandInSecretToken" * 2
PAGE = 100


@dataclasses.dataclass
class Commit:
    """One state of a branch: what is at each path."""

    title: str
    files: dict[str, tuple[str, bool]]  # path: (SHA-256, whether it is large)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.title, sorted(self.files.items()))).encode()).hexdigest()


@dataclasses.dataclass
class Repo:
    """A repository: its commits, the newest last, by branch."""

    private: bool
    branches: dict[str, list[Commit]]


class Hub(loopback.Server):
    """The server. `with Hub() as hub:` serves at `hub.url`.

    fault: called with (method, path, number of the request) before each answer. A status and headers it returns are
        answered instead, "drop" breaks the connection, "lose" does what is asked and drops the answer.
    puts: how often each large file was received whole, by SHA-256.
    cas: a folder that the real `hf_xet` keeps its chunks in, as the Hub's Xet service would; without it there is none.
    known: bytes of the files that may come by Xet, by SHA-256: the folder says that they came, not what they are.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.puts: collections.Counter[str] = collections.Counter()
        self.cas: Path | None = None
        self.known: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str, int], Any] = lambda method, path, number: None
        self.lock = threading.RLock()

    def head(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Return the bytes at every path of a branch."""
        return {path: self.objects[sha] for path, (sha, _) in self.repos[repo].branches[branch][-1].files.items()}

    def titles(self, repo: str, branch: str = "main") -> list[str]:
        """Return the titles of the commits of a branch, the first one first."""
        return [commit.title for commit in self.repos[repo].branches[branch]]

    def add_repo(self, repo: str, files: dict[str, bytes] | None = None, private: bool = False) -> None:
        """Make a repository that is there already."""
        stored = {path: (self.store(data), False) for path, data in (files or {}).items()}
        self.repos[repo] = Repo(private, {"main": [Commit("initial commit", stored)]})

    def received_by_xet(self, sha: str) -> bool:
        """Say whether the chunks of a file were registered; an index of them holds its digest as 64-bit words."""
        digest = bytes.fromhex(sha)
        words = b"".join(digest[i : i + 8][::-1] for i in range(0, 32, 8))
        return self.cas is not None and any(words in one.read_bytes() for one in self.cas.rglob("shards/*.mdb"))

    def store(self, data: bytes) -> str:
        """Keep bytes by their SHA-256."""
        sha = hashlib.sha256(data).hexdigest()
        self.objects[sha] = data
        return sha


class Handler(loopback.Handler):
    """Answers one request; the method's name and a pattern of the path choose how."""

    server: Hub
    lost = False

    def do_GET(self) -> None:
        self.answer_one()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer_one(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append((self.command, self.path))
            fault = self.server.fault(self.command, path, number)
        if fault == "drop":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        body = self.body()
        if body is None:
            self.close_connection = True
            return
        self.lost = fault == "lose"
        if fault is not None and not self.lost:
            self.answer({"error": f"busy, {self.headers.get('Authorization')}"}, *fault)
        elif self.command != "PUT" and self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            self.answer({"error": f"Invalid credentials in Authorization header {self.headers['Authorization']}"}, 401)
        else:
            with self.server.lock:
                self.route(path, urllib.parse.parse_qs(url.query), body)

    def body(self) -> bytes | None:
        """Return what came with the request; None when the sender went away in the middle."""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            return b"".join(self.chunks())
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        return data if len(data) == length else None

    def chunks(self) -> Iterator[bytes]:
        while length := int(self.rfile.readline().strip() or b"0", 16):
            yield self.rfile.read(length)
            self.rfile.readline()

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.lost:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "X-Request-Id": "stand-in", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "org", "orgs": []})
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.startswith("/lfs/"):
            self.large(path.split("/")[2], body)
        elif found := re.fullmatch(r"/(?:(?:api/)?datasets/|api/models/|)([^/]+/[^/]+?)(\.git)?(?:/(.*))?", path):
            repo = self.server.repos.get(found[1])
            if repo is None or (repo.private and "Authorization" not in self.headers):
                self.missing("RepoNotFound")
            elif found[2]:
                self.answer({"transfer": "basic", "objects": [self.offer(one) for one in json.loads(body)["objects"]]})
            else:
                self.of_repo(found[1], repo, found[3] or "", query, body)
        else:
            self.missing("EntryNotFound")

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def validate(self, card: str) -> None:
        bad = "language: no-such-language" in card
        self.answer(
            {"errors": [{"message": '"language" must be one of [...]'}] if bad else [], "warnings": []},
            400 if bad else 200,
        )

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'org'}/{wanted['name']}"
        if not name.startswith("org/"):
            self.answer({"error": "You don't have the rights to create a dataset under this namespace"}, 403)
        elif name in self.server.repos:
            self.answer({"error": "You already created this dataset repo"}, 409)
        else:
            self.server.add_repo(name, {".gitattributes": b""}, wanted.get("visibility") == "private")
            self.answer({"url": f"{self.server.url}/datasets/{name}", "name": name})

    def offer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.url}/lfs/{wanted['oid']}"
        if wanted["oid"] in self.server.objects:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{href}?X-Amz-Signature=presigned"}, "verify": {"href": href}}}

    def large(self, sha: str, body: bytes) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == sha
            self.server.puts[sha] += 1
            self.server.objects[sha] = body
        self.answer({})

    def of_repo(self, name: str, repo: Repo, path: str, query: dict[str, list[str]], body: bytes) -> None:
        verb, _, rest = path.partition("/")
        revision, _, inner = rest.partition("/")
        if verb == "xet-write-token" and self.server.cas:
            address = f"local://{self.server.cas}"
            self.answer({"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": address})
            return
        if verb == "branch":
            status = 409 if rest in repo.branches else 200
            repo.branches.setdefault(rest, list(repo.branches["main"]))
            self.answer({}, status)
            return
        by_sha = {commit.sha: commit for commits in repo.branches.values() for commit in commits}
        commits = repo.branches.get(revision or "main")
        commit = commits[-1] if commits else by_sha.get(revision)
        if commit is None:
            self.missing("RevisionNotFound")
        elif verb in ("", "revision"):
            siblings = [{"rfilename": path} for path in commit.files]
            self.answer({"id": name, "sha": commit.sha, "private": repo.private, "siblings": siblings, "tags": []})
        elif verb == "preupload":
            self.answer({"files": [self.mode(commit, one) for one in json.loads(body)["files"]]})
        elif verb == "tree":
            self.tree(commit, inner, query)
        elif verb == "commit" and commits:
            self.commit(name, commits, [json.loads(line) for line in body.splitlines()])
        elif verb == "resolve":
            self.resolve(commit, inner)
        elif verb == "paths-info":
            wanted = (
                urllib.parse.parse_qs(body.decode()).get("paths", []) if body[:1] != b"{" else json.loads(body)["paths"]
            )
            self.answer([self.entry(commit, path) for path in wanted if path in commit.files])
        else:
            self.missing("EntryNotFound")

    def mode(self, commit: Commit, file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        held = commit.files.get(path)
        large = path.endswith((".parquet", ".jpg", ".safetensors"))
        oid = (held[0] if large else self.blob(held[0])) if held else None
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def blob(self, sha: str) -> str:
        data = self.server.objects[sha]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def entry(self, commit: Commit, path: str) -> dict[str, Any]:
        sha, large = commit.files[path]
        size = len(self.server.objects[sha])
        entry = {"type": "file", "path": path, "size": size, "oid": self.blob(sha)}
        return entry | ({"lfs": {"oid": sha, "size": size, "pointerSize": 130}} if large else {})

    def tree(self, commit: Commit, folder: str, query: dict[str, list[str]]) -> None:
        within = [path for path in sorted(commit.files) if not folder or path.startswith(folder + "/")]
        entries = [self.entry(commit, path) for path in within]
        if query.get("recursive", ["false"])[0].lower() != "true":
            depth = folder.count("/") + bool(folder)
            folders = sorted({"/".join(path.split("/")[: depth + 1]) for path in within if path.count("/") > depth})
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
            entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            again = urllib.parse.urlsplit(self.path)
            words = {key: value[0] for key, value in query.items()} | {"cursor": str(start + PAGE)}
            headers["Link"] = f'<{self.server.url}{again.path}?{urllib.parse.urlencode(words)}>; rel="next"'
        if folder and not within:
            self.missing("EntryNotFound")
        else:
            self.answer(entries[start : start + PAGE], 200, headers)

    def commit(self, name: str, commits: list[Commit], lines: list[dict[str, Any]]) -> None:
        files, title = dict(commits[-1].files), ""
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = (self.server.store(base64.b64decode(value["content"])), False)
            elif key == "lfsFile":
                if self.server.received_by_xet(value["oid"]):
                    self.server.objects[value["oid"]] = self.server.known[value["oid"]]
                assert value["oid"] in self.server.objects, "a file was committed that was never received"
                files[value["path"]] = (value["oid"], True)
            elif key == "deletedFile":
                del files[value["path"]]
        commits.append(Commit(title, files))
        url = f"{self.server.url}/datasets/{name}/commit/{commits[-1].sha}"
        self.answer({"success": True, "commitUrl": url, "commitOid": commits[-1].sha})

    def resolve(self, commit: Commit, path: str) -> None:
        if path not in commit.files:
            self.missing("EntryNotFound")
            return
        sha, large = commit.files[path]
        data, status, headers = self.server.objects[sha], 200, {}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        etag = f'"{sha if large else self.blob(sha)}"'
        headers |= {"ETag": etag, "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-ETag": etag, "X-Linked-Size": str(len(self.server.objects[sha]))}
        self.answer(data, status, headers)
