"""Look at the beginning of a set before the whole of the pool is read."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.sources import Candidate, Reader, Source, columns, failure, list_pieces, read_piece

PROBED = 64  # candidates of a set that are looked at; a set that holds more of them passes
LOOKED_THROUGH = 1000  # candidates among which a key must be there at least once
SHOWN = 20  # keys that a message names
SIDE = 32  # a JPEG need not be decoded larger


def check_first_images(role: str, source: Source, limits: DecodeLimits) -> None:
    """Raise UserError where a whole set holds no image, as far as a few files tell. Fetches nothing from lists.

    Args:
        role: for example "references", for the message.
        source: resolved.
        limits: on what is decoded.
    """
    if source.kind == "urls":
        return
    left_out: Counter[tuple[str, str]] = Counter()
    problems: Counter[str] = Counter()
    with Reader(source, limits.max_bytes) as reader:
        for candidate in candidates(source, left_out, limits):
            problem = why_no_image(candidate, reader, limits)
            if problem is None or problems.total() == PROBED:
                return
            problems[problem] += 1
    passed = [f"{count} {what} left out ({why})" for (what, why), count in sorted(left_out.items())]
    told = ", ".join([*(f"{count} {problem}" for problem, count in sorted(problems.items())), *passed])
    raise UserError(
        f"{role}: {source.path}, read as {source.kind}, holds no readable image ({told or 'nothing is there'}); "
        f"give images, or leave it out of {role}"
    )


def check_named_keys(role: str, source: Source, limits: DecodeLimits) -> None:
    """Raise UserError where none of many images of a shard or folder has a label or caption key that the user named.

    Args:
        role: for example "pool", for the message.
        source: resolved; tables and lists were checked by their columns.
        limits: on what is read.
    """
    missing = columns.named_columns(source) if source.kind in ("webdataset", "folder") else {}
    keys: set[str] = set()
    for candidate in itertools.islice(candidates(source, Counter(), limits), LOOKED_THROUGH) if missing else ():
        keys |= set(candidate.keys)
        missing = {option: key for option, key in missing.items() if columns.find(list(keys), key) is None}
        if not missing:
            return
    for option, key in missing.items():
        raise UserError(
            f"{role}.{option} is {key!r}, but nothing of that name comes with the first images of {source.path}, only "
            f"{', '.join(sorted(keys)[:SHOWN]) or 'no keys'}; give one of them, or leave the option out"
        )


def candidates(source: Source, left_out: Counter[tuple[str, str]], limits: DecodeLimits) -> Iterator[Candidate]:
    """Yield the candidates of a set, as many as are taken."""
    for piece in list_pieces(source, left_out):
        yield from read_piece(source, piece, limits.max_bytes)


def why_no_image(candidate: Candidate, reader: Reader, limits: DecodeLimits) -> str | None:
    """Return why a candidate is no image, None where it is one."""
    if candidate.error is not None:
        return candidate.error[0]
    try:
        data = candidate.data or reader.read(candidate.path, candidate.offset, candidate.size)
        decode(data, limits, SIDE)
    except DecodeError as error:
        return error.kind
    except OSError as error:
        return failure(error)[0]
    return None
