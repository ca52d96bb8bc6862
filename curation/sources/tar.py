"""The members of a tar archive by their headers alone, from a stream of untrusted bytes.

The header block is parsed by `tarfile`; the walk is our own, since `tarfile.open` takes damage in the middle
for the end of the archive, recurses over extended headers and reads them at any size.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED = 1 << 20  # bytes of a long name or a pax header
MAX_SIZE = 1 << 62  # offsets must stay within what seek takes
MAX_PADDING = 4096  # zero blocks after which the rest is taken for padding
EXTENSIONS = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
WITHOUT_DATA = {
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
}


class DamagedTar(OSError):
    """The archive cannot be read from here on."""


class Member(NamedTuple):
    """One member.

    Args:
        type: file, link, sparse or other.
        offset: of its data in the unpacked archive, bytes.
        size: of its data, bytes.
    """

    name: str
    type: str
    offset: int
    size: int


def members(stream: BinaryIO) -> Iterator[Member]:
    """Yield the members in order; the caller may read from the stream in between.

    Archives that were simply appended to one another are read on past the end marks.

    Args:
        stream: the archive, with random access.

    Raises:
        DamagedTar: at a bad header, at a cut, and at the end of a file without an end mark.
    """
    offset, padding = 0, 0
    extended: dict[str, str] = {}
    while padding < MAX_PADDING:
        block = block_at(stream, offset, after_end=padding > 0)
        if block is None:
            return
        offset += BLOCK
        if not block.strip(b"\0"):
            padding += 1
            continue
        header = parse_header(block, after_end=padding > 0)
        if header is None:
            return
        padding = 0
        if header.type in EXTENSIONS:
            extended |= extended_fields(stream, header, offset)
            offset += padded(header.size)
            continue
        member, offset = with_extended(stream, header, block, extended, offset)
        extended = {}
        if header.type != tarfile.XGLTYPE:
            yield member


def block_at(stream: BinaryIO, offset: int, after_end: bool) -> bytes | None:
    """Return the header block, None at a proper end."""
    stream.seek(offset)
    block = stream.read(BLOCK)
    if len(block) == BLOCK:
        return block
    if after_end:
        return None
    raise DamagedTar("the archive is cut off" if offset or block else "the archive is empty")


def parse_header(block: bytes, after_end: bool) -> tarfile.TarInfo | None:
    """Parse a header block; after an end mark, None for what is not one."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        if after_end:
            return None
        raise DamagedTar(f"bad header: {error}") from error
    if not 0 <= header.size < MAX_SIZE:
        raise DamagedTar(f"bad header: size {header.size}")
    return header


def extended_fields(stream: BinaryIO, header: tarfile.TarInfo, offset: int) -> dict[str, str]:
    """Return what an extended header says about the member after it: path, size, GNU.sparse.*."""
    if header.size > MAX_EXTENDED:
        raise DamagedTar(f"extended header of {header.size} bytes")
    stream.seek(offset)
    data = stream.read(header.size)
    if len(data) < header.size:
        raise DamagedTar("the archive is cut off")
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    return {} if header.type == tarfile.GNUTYPE_LONGLINK else pax_records(data)


def pax_records(data: bytes) -> dict[str, str]:
    """Parse "length key=value\\n" records (POSIX.1-2001); the length counts the whole record."""
    fields: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start]:
        digits, _, _ = data[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[start + len(digits) + 1 : start + length - 1].partition(b"=")
        if length <= len(digits) + 1 or not equals:
            raise DamagedTar("bad pax header")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start += length
    return fields


def with_extended(
    stream: BinaryIO, header: tarfile.TarInfo, block: bytes, extended: dict[str, str], offset: int
) -> tuple[Member, int]:
    """Return the member its headers describe, and where the next header starts."""
    sparse = header.type == tarfile.GNUTYPE_SPARSE
    more = sparse and block[482]
    while more:  # old GNU sparse maps go on in blocks of their own
        more = (block_at(stream, offset, after_end=False) or bytes(BLOCK))[504]
        offset += BLOCK
    size = extended.get("size", str(header.size))
    if not size.isdecimal() or len(size) > 19 or int(size) >= MAX_SIZE:
        raise DamagedTar(f"bad size {size[:40]}")
    sparse = sparse or any(key.startswith("GNU.sparse") for key in extended)
    name = extended.get("GNU.sparse.name") or extended.get("path") or header.name
    stored = 0 if header.type in WITHOUT_DATA else int(size)
    kinds = {tarfile.LNKTYPE: "link", tarfile.SYMTYPE: "link"}
    kind = "sparse" if sparse else "file" if header.isreg() else kinds.get(header.type, "other")
    return Member(name, kind, offset, stored), offset + padded(stored)


def padded(size: int) -> int:
    """Return the size on tape: whole blocks."""
    return -(-size // BLOCK) * BLOCK
