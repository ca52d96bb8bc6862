"""Whether the files of a run are those that were written: markers hold the size and the SHA-256 of what they name.

What is damaged can be removed, since every part is made again by the command that made it, with the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from granary.curation.errors import UserError
from granary.curation.runs.run import INDEX, Marker, Run, parse_index
from granary.curation.sources.files import absolute
from granary.curation.store import storage
from granary.curation.store.hashing import digest_of
from granary.curation.store.trees import mapping

READERS = 8  # files that are read at a time


class Part(NamedTuple):
    """A part of a stage, as its marker and the stage's index name it.

    Args:
        stage: folder of the markers.
        stem: name of part and marker, without ending.
    """

    stage: str
    stem: str

    @property
    def marker(self) -> str:
        """Path of the marker in the run directory."""
        return storage.join(self.stage, f"{self.stem}.done")


class Damage(NamedTuple):
    """Something of a run that is not what was written.

    Args:
        path: of the file, in the run directory.
        cause: in a few words.
        removable: paths to remove so that the run's command makes all of it again.
    """

    path: str
    cause: str
    removable: tuple[str, ...]


class Check(NamedTuple):
    """What a check of a run saw.

    Args:
        parts: that were compared.
        damages: what is not as it was written.
    """

    parts: int
    damages: list[Damage]


def check_run(url: str) -> Check:
    """Compare every part of a run with its marker; nothing is changed.

    Raises:
        UserError: there is no run directory, or one that has no parts with markers, such as that of a training.
    """
    run = Run(url.rstrip("/"))
    names = storage.names(run.url)
    if not {"recipe.yaml", "run.json"} & set(names):
        raise UserError(f"run: {url} is not a run directory (it has no recipe.yaml); give the --out of a granary run")
    parts = list(all_parts(run))
    indices = _indices(run, names, "run.json" in names)
    damages = [*_whole_files(run, names), *indices, *_check_parts(run, parts)]
    if not parts and not damages:
        raise UserError(
            f"run: nothing in {url} can be compared with what was written: it holds no part of a run of granary "
            "curate, render, sample or pack"
        )
    return Check(len(parts), damages)


def remove(url: str, damages: Iterable[Damage]) -> None:
    """Remove what is damaged in a run directory."""
    for damage in damages:
        for path in damage.removable:
            storage.remove(storage.join(url, path))


def parts_of(run: Run, stage: str) -> list[Part]:
    """Return the parts of which there is a marker, or that the index of a finished stage names."""
    names = storage.names(run.path(stage))
    marked = {name.removesuffix(".done") for name in names if name.endswith(".done")}
    return [Part(stage, stem) for stem in sorted(marked | (_indexed(run, stage) if INDEX in names else set()))]


def check_part(run: Run, part: Part) -> Damage | None:
    """Compare a part with its marker; None when it is what was written."""
    try:
        marker = Marker.parse(storage.read_bytes(run.path(part.marker)))
    except FileNotFoundError:
        return Damage(part.marker, "it is missing", ())
    except (ValueError, TypeError):
        return Damage(part.marker, "it is not the marker that was written", (part.marker,))
    cause = difference(run, marker)
    return Damage(marker.path, cause, (marker.path, part.marker)) if cause else None


def difference(run: Run, marker: Marker) -> str:
    """Say how the file that a marker names differs from what was written; "" where it does not."""
    url = run.path(marker.path)
    try:
        size = storage.size(url)
        if size != marker.size:
            return f"it has {size:,} bytes and {marker.size:,} were written"
        return "" if sha256_of(url) == marker.sha256 else "its SHA-256 is not that of what was written"
    except FileNotFoundError:
        return "it is missing"


def sha256_of(url: str) -> str:
    """Return the SHA-256 of a file, hex; it is read in pieces."""
    with storage.open_read(url) as file:
        return digest_of(file, hashlib.sha256())


def written(run: Run, paths: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of what was written to paths of the run directory, as far as markers tell it."""
    stems, hashes = {stem_of(path) for path in paths}, {}
    for part in (part for part in all_parts(run) if part.stem in stems):
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # such a marker tells nothing
            marker = Marker.parse(storage.read_bytes(run.path(part.marker)))
            hashes[marker.path] = marker.sha256
    return hashes


def remove_damaged(run: Run, url: str) -> list[Damage]:
    """Remove a file of a run that could not be read, and what else is damaged in its stage.

    Args:
        run: the run directory.
        url: of the file.

    Returns:
        What is damaged; nothing, and nothing is removed, when the file is what was written.
    """
    damages = _damages_beside(run, path_in(run, url))
    remove(run.url, damages)
    return damages


def path_in(run: Run, url: str) -> str:
    """Return the path of a file in the run directory, whether its URL is absolute or not."""
    return absolute(url).removeprefix(absolute(run.url).rstrip("/") + "/")


def _damages_beside(run: Run, path: str) -> list[Damage]:
    if path.startswith("sources/"):  # has no marker: every command writes it first
        return [Damage(path, "it cannot be read", (path,))]
    if path.endswith(INDEX):
        return list(_indices(run, [path.rpartition("/")[0]], finished=True))
    alike = [part for part in all_parts(run) if part.stem == stem_of(path)]  # of several stages
    damaged = [(part, damage.path) for part in alike if (damage := check_part(run, part))]
    of_the_file = [part for part, damaged_path in damaged if damaged_path == path]
    of_a_marker = [part for part, damaged_path in damaged if damaged_path == part.marker]
    part = next(iter([*of_the_file, *of_a_marker]), None)
    return _check_parts(run, parts_of(run, part.stage)) if part else []


def all_parts(run: Run) -> Iterator[Part]:
    """Yield the parts of every stage."""
    return (part for stage in storage.names(run.url) for part in parts_of(run, stage))


def stem_of(path: str) -> str:
    """Return the name of a part without folder and ending."""
    return path.rpartition("/")[2].removesuffix(".parquet")


def _check_parts(run: Run, parts: Iterable[Part]) -> list[Damage]:
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        return [damage for damage in pool.map(functools.partial(check_part, run), parts) if damage]


def _indexed(run: Run, stage: str) -> set[str]:
    try:
        names = parse_index(storage.read_bytes(run.path(stage, INDEX)))["parts"]
    except ValueError:
        return set()
    return {name.removesuffix(".parquet") for name in names}


def _indices(run: Run, stages: Iterable[str], finished: bool) -> Iterator[Damage]:
    """Yield the indices that cannot be read, and of a finished run those that are missing beside markers."""
    for stage in stages:
        path, names = storage.join(stage, INDEX), storage.names(run.path(stage))
        if INDEX not in names:
            if finished and any(name.endswith(".done") for name in names):
                yield Damage(path, "it is missing", ())
            continue
        try:
            parse_index(storage.read_bytes(run.path(path)))
        except ValueError:
            yield Damage(path, "it is no index", (path,))


def _whole_files(run: Run, names: Iterable[str]) -> Iterator[Damage]:
    """Yield recipe.yaml and run.json where they cannot be read."""
    for name in sorted({"recipe.yaml", "run.json"} & set(names)):
        try:
            mapping(name, storage.read_bytes(run.path(name)))
        except ValueError:
            yield Damage(name, "it cannot be read", (name,))
