"""Which files a path names: a folder tree, a glob or brace pattern, or one file, in order of names."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fsspec.utils import glob_translate

from granary.curation.sources.files import MAGIC, as_os_errors, info, remote_stamp, root
from granary.curation.sources.model import escape
from granary.curation.store import storage

MAX_EXPANSIONS = 1_000_000
TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of the Hub's imagefolder


class File(NamedTuple):
    """A listed file: path relative to the root (escaped), bytes, stamp of its state."""

    path: str
    size: int
    stamp: str


def walk(folder: str) -> Iterator[File]:
    """Yield every file below a folder, sorted by relative path, but for the TABLE_NAMES of a folder, which come first.

    Of a local folder: hidden files count; sockets, fifos and devices do not; a link to a file is a file. A link to a
    folder is followed when it leads out of `folder`, each real folder once, so no loop is endless and nothing
    inside comes twice. A folder that cannot be listed and a broken link are yielded: reading them gives the error.

    Args:
        folder: its path ends in a slash.
    """
    seen: set[tuple[int, int]] = set()
    top = os.path.realpath(folder) if storage.is_local(folder) else ""
    pending: list[tuple[str, File | None]] = [("", None)]  # a stack: folders can be nested deeper than calls
    while pending:
        relative, file = pending.pop()
        if relative and not relative.endswith("/"):
            yield file or local_file(folder, relative)
            continue
        try:
            below = local_entries(folder + relative, top, seen) if top else remote_entries(folder, relative)
        except OSError:
            yield File(escape(relative), 0, "unlisted")
            continue
        pending.extend(sorted(((relative + name, entry) for name, entry in below), key=listed_before, reverse=True))


def listed_before(entry: tuple[str, File | None]) -> tuple[bool, str]:
    """Return the key that names are sorted by: those of tables that speak of a folder's pictures come first."""
    return entry[0].rsplit("/", 1)[-1].lower() not in TABLE_NAMES, entry[0]


def local_file(folder: str, relative: str) -> File:
    """Return a local file with its state, asked only when its turn comes."""
    try:
        file = info(folder + relative)
    except OSError as error:
        return File(escape(relative), 0, type(error).__name__)
    return File(escape(relative), file["size"], file["stamp"])


def local_entries(folder: str, top: str, seen: set[tuple[int, int]]) -> list[tuple[str, File | None]]:
    """Return the names in a folder, sub-folders with a slash: that sorts them as whole paths sort."""
    state = os.stat(folder)
    if (state.st_dev, state.st_ino) in seen:
        return []
    entries: list[tuple[str, File | None]] = []
    with os.scandir(folder) as scanned:
        for entry in scanned:
            kind = entry_kind(entry)
            if kind == "directory" and entry.is_symlink():
                target = os.path.realpath(entry.path)
                kind = "other" if target == top or target.startswith(top.rstrip("/") + "/") else kind
            if kind != "other":
                entries.append((entry.name + ("/" if kind == "directory" else ""), None))
    seen.add((state.st_dev, state.st_ino))
    return entries


def entry_kind(entry: os.DirEntry[str]) -> str:
    """Return file, directory or other; a link that leads nowhere is a file, dead at reading."""
    try:
        if entry.is_dir():
            return "directory"
        if entry.is_file():
            return "file"
        return "file" if entry.is_symlink() and not os.path.exists(entry.path) else "other"
    except OSError:
        return "file"


def remote_entries(top: str, relative: str) -> list[tuple[str, File | None]]:
    """Return the names in a remote folder, sub-folders with a slash, and what the listing says of its files."""

    def ask() -> list[dict[str, object]]:
        fs, inner = storage.filesystem(top + relative)
        folder = inner.rstrip("/")
        return [entry for entry in fs.ls(inner, detail=True) if entry["name"].rstrip("/") != folder]

    entries: list[tuple[str, File | None]] = []
    for entry in as_os_errors(lambda: storage.retrying(ask)):
        name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
        if entry["type"] == "directory":
            entries.append((name + "/", None))
        else:
            stamp = remote_stamp(entry) or "unknown"
            entries.append((name, File(escape(relative + name), int(str(entry.get("size") or 0)), stamp)))
    return entries


def matcher(glob: str) -> Callable[[str], bool]:
    """Return the test of a glob on relative paths; one without a slash is about the base name alone."""
    pattern = re.compile(glob_translate(glob))
    whole = "/" in glob
    return lambda path: pattern.fullmatch(path if whole else path.rsplit("/", 1)[-1]) is not None


def expand_braces(pattern: str) -> list[str]:
    """Expand {a,b} and {000..010} as a shell does; nested braces inside out."""
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if inner is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner[1])
    if numbers:
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        if abs(last - first) >= MAX_EXPANSIONS:
            raise ValueError(f"more than {MAX_EXPANSIONS} names in {pattern}")
        step = 1 if last >= first else -1
        words = [str(number).zfill(width) for number in range(first, last + step, step)]
    else:
        words = inner[1].split(",")
    heads = (pattern[: inner.start()] + word + pattern[inner.end() :] for word in words)
    every = itertools.chain.from_iterable(map(expand_braces, heads))
    return list(dict.fromkeys(itertools.islice(every, MAX_EXPANSIONS)))


def matching(path: str) -> Iterator[File]:
    """Yield the files of a glob or brace pattern in sorted order, once each.

    A name that braces spell out and that is not there is yielded too: a missing shard is a loss to report.
    """
    top = root(path)
    names = sorted({name[len(top) :] for name in expand_braces(path)})
    globs = [matcher(name) for name in names if MAGIC.search(name)]
    files = {file.path: file for file in walk(top) if any(test(file.path) for test in globs)} if globs else {}
    for name in (name for name in names if not MAGIC.search(name)):
        with contextlib.suppress(OSError):
            files[escape(name)] = one_file(path, name)
        files.setdefault(escape(name), File(escape(name), 0, "missing"))
    yield from (files[name] for name in sorted(files))


def first_match(path: str) -> str:
    """Return the first name a pattern finds, empty where it finds none."""
    try:
        return next((file.path for file in matching(path) if file.stamp not in ("missing", "unlisted")), "")
    except (OSError, ValueError):
        return ""


def one_file(path: str, name: str) -> File:
    """Return the listing of a single file below the root of `path`."""
    file = info(root(path) + name)
    return File(escape(name), file["size"], file["stamp"])


def shards(path: str, endings: tuple[str, ...]) -> Iterator[File]:
    """Yield the files with one of the endings of a folder, those of a pattern, or the one file."""
    if path.endswith("/"):
        yield from (file for file in walk(path) if file.path.lower().endswith(endings) or file.stamp == "unlisted")
        return
    try:
        is_file = info(path)["type"] == "file"
    except OSError:
        is_file = not MAGIC.search(path)
    if is_file:
        name = path[len(root(path)) :]
        try:
            yield one_file(path, name)
        except OSError:
            yield File(escape(name), 0, "missing")
    else:
        yield from matching(path)
