"""Look at the beginning of a set before the whole of the pool is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError, DecodeLimits, decode
from granary.curation.sources import Candidate, Reader, Source, failure, list_pieces, read_piece

PROBED = 64  # candidates of a set that are looked at; a set that holds more of them passes
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
