"""WebDataset tar shards: members with one key (path up to the first dot of the base name) are one sample.

Plain image endings are candidates; of a key that has none, those that end in one (KEY.left.png). KEY.json is kept as
metadata and gives captions and label, KEY.txt and KEY.caption a caption, KEY.cls a label; other members, KEY.mask.png
beside KEY.jpg among them, are left out and counted, like the hidden ones that macOS adds. As in the convention, the
members of a key follow one another. Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

from granary.curation.sources import columns, contents, files, listing, sidecars, tar
from granary.curation.sources.contents import IMAGE_ENDINGS, LeftOut
from granary.curation.sources.model import Candidate, Piece, Source, Unread, escape, failure, too_many_bytes
from granary.curation.sources.sidecars import Sidecars
from granary.curation.sources.tar import DamagedTar, Member

ENDINGS = contents.TAR_ENDINGS
COMPRESSED = tuple(ending for ending in ENDINGS if ending != ".tar")
COMPANION = "neither an image nor a sidecar"
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass
class Group:
    """The members of one key that were met so far.

    Args:
        others: images of endings with a dot, such as left.png.
    """

    key: str
    candidates: list[Candidate] = field(default_factory=list)
    others: list[tuple[str, Candidate]] = field(default_factory=list)
    sidecars: Sidecars = field(default_factory=Sidecars)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    held: int = 0

    def pictures(self) -> list[Candidate]:
        """Return the candidates: those of plain endings, else the others."""
        if self.candidates:
            self.left_out += [(f"*.{ending}", COMPANION) for ending, _ in self.others]
        return self.candidates or [candidate for _, candidate in self.others]


def list_pieces(source: Source, left_out: LeftOut) -> Iterator[Piece]:
    """Yield one piece per shard."""
    for file in contents.data_files(source, ENDINGS, left_out):
        yield Piece(file.path, 0, 0, file.size, 0, file.stamp)


def read_piece(source: Source, piece: Piece, max_bytes: int) -> Iterator[Candidate]:
    """Yield the images of a shard with their bytes; after damage, one dead candidate for the rest."""
    seen: dict[str, int] = {}
    prefix = f"{source.name}/{piece.path}#"
    stream: BinaryIO | None = None
    group = Group("")
    try:
        stream = open_stream(files.join(files.root(source.path), piece.path))
        for member in tar.members(stream):
            if not is_safe(member.name):
                error = ("UnsafeMemberPath", "absolute, or leads out of the archive")
                yield unique(seen, Candidate(prefix + escape(member.name), piece.path, error=error))
            elif contents.is_hidden(member.name):
                group.left_out.append(("hidden members", contents.HIDDEN))
            elif member.type != "other":
                key, ending = key_and_ending(member.name)
                if key != group.key:
                    yield from finished(source, piece, group, prefix, seen)
                    group = Group(key, left_out=[] if group.key else group.left_out)
                add_member(stream, group, member, ending, piece, prefix, max_bytes)
        yield from finished(source, piece, group, prefix, seen)
    except DAMAGE as error:
        if group.pictures():
            yield from finished(source, piece, group, prefix, seen)
        yield unique(seen, Candidate(f"{prefix}rest", piece.path, error=failure(error)))
    finally:
        if stream is not None:
            stream.close()


def open_stream(path: str) -> BinaryIO:
    """Open a shard, unpacked on the fly where it is compressed, whatever its name says."""
    file = files.open_file(path)
    magic = file.read(max(map(len, UNPACKERS)))
    file.seek(0)
    opener = next((opener for prefix, opener in UNPACKERS.items() if magic.startswith(prefix)), None)
    return cast(BinaryIO, ClosingStream(file, opener)) if opener else file


UNPACKERS: dict[bytes, Callable[..., object]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open}


class ClosingStream(io.BufferedReader):
    """The contents of a compressed file, which is closed with them."""

    def __init__(self, file: BinaryIO, opener: Callable[..., object]) -> None:
        super().__init__(cast(io.RawIOBase, opener(file, mode="rb")))
        self.below = file

    def close(self) -> None:
        """Close both."""
        super().close()
        self.below.close()


def is_safe(name: str) -> bool:
    """Say whether a member name stays inside of a folder."""
    parts = name.replace("\\", "/").split("/")
    return not name.startswith("/") and ".." not in parts


def key_and_ending(name: str) -> tuple[str, str]:
    """Split a/b.c.mask.png into a/b and c.mask.png, in lower case."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem) or name, ending.lower()


def add_member(
    stream: BinaryIO, group: Group, member: Member, ending: str, piece: Piece, prefix: str, max_bytes: int
) -> None:
    """Put a member into its group: image, sidecar or companion."""
    plain_image, image = ending in IMAGE_ENDINGS, ending.rpartition(".")[2] in IMAGE_ENDINGS
    if plain_image or (image and not group.candidates):
        candidate = read_image(stream, group, member, piece, prefix, max_bytes)
        group.candidates += [candidate] if plain_image else []
        group.others += [] if plain_image else [(ending, candidate)]
        group.held += len(candidate.data or b"")
    elif ending in sidecars.ENDINGS and member.type == "file":
        add_sidecar(stream, group.sidecars, member, ending)
    else:
        group.left_out.append((f"*.{ending}" if ending else "members without an ending", COMPANION))


def add_sidecar(stream: BinaryIO, group: Sidecars, member: Member, ending: str) -> None:
    """Read a sidecar into its group, or note why it is not read."""
    if member.size > sidecars.MAX_SIDECAR:
        group.unread.append(Unread(ending, *too_many_bytes(member.size, sidecars.MAX_SIDECAR)))
    else:
        group.data[ending] = whole_member(stream, member)


def read_image(stream: BinaryIO, group: Group, member: Member, piece: Piece, prefix: str, max_bytes: int) -> Candidate:
    """Return the candidate of an image; bytes of a group beyond `max_bytes` are left for the reader."""
    uri = prefix + escape(member.name.removeprefix("./"))
    if member.type != "file":
        message = f"a {member.type} member has no bytes of its own that could be read"
        return Candidate(uri, piece.path, error=(f"{member.type.capitalize()}Member", message))
    if member.size > max_bytes:
        return Candidate(uri, piece.path, error=too_many_bytes(member.size, max_bytes))
    data = whole_member(stream, member) if group.held + member.size <= max_bytes else None
    return Candidate(
        uri, piece.path, member.offset, member.size, data=data, name=escape(member.name.rsplit("/", 1)[-1])
    )


def whole_member(stream: BinaryIO, member: Member) -> bytes:
    """Return the data of a member; a cut inside of it is damage to the archive."""
    data = files.read_range(stream, member.offset, member.size)
    if len(data) < member.size:
        raise DamagedTar(f"the archive is cut off inside {escape(member.name)}")
    return data


def finished(source: Source, piece: Piece, group: Group, prefix: str, seen: dict[str, int]) -> Iterator[Candidate]:
    """Yield the candidates of a whole group, with what its sidecars say."""
    if not group.key:
        return
    beside = group.sidecars.described(source, columns.partitions(piece.path))
    unread, pictures = tuple(group.sidecars.unread), group.pictures()
    for number, candidate in enumerate(pictures):
        left_out = tuple(group.left_out) if number == 0 else ()
        described = replace(candidate, **beside._asdict(), unread=unread, left_out=left_out)
        yield unique(seen, described)
    if not pictures:
        error = ("NoImage", f"the key has no member with an image ending, only {endings_of(group)}")
        yield unique(seen, Candidate(prefix + escape(group.key), piece.path, error=error))


def endings_of(group: Group) -> str:
    """Return what the members of a group end in, for a message."""
    known = [f".{ending}" for ending in (*group.sidecars.data, *(unread.part for unread in group.sidecars.unread))]
    return ", ".join(sorted({*known, *(what.removeprefix("*") for what, _ in group.left_out)})[:8])


def unique(seen: dict[str, int], candidate: Candidate) -> Candidate:
    """Give a uri that was there before the suffix #2, #3, ..."""
    uri, count = candidate.uri, seen.get(candidate.uri, 0) + 1
    while count > 1 and f"{uri}#{count}" in seen:
        count += 1
    seen[uri] = count
    if count == 1:
        return candidate
    seen[f"{uri}#{count}"] = 1
    return replace(candidate, uri=f"{uri}#{count}")


def random_access(source: Source) -> bool:
    """Say whether members can be read in any order at equal cost: not from compressed shards."""
    return not any(file.path.lower().endswith(COMPRESSED) for file in listing.shards(source.path, ENDINGS))


class Reader:
    """Reads members by range; a compressed shard is unpacked onwards from where the last read ended."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.root = files.root(source.path)
        self.max_bytes = max_bytes
        self.path = ""
        self.stream: BinaryIO | None = None

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the bytes of a member."""
        if size > self.max_bytes:
            raise files.TooManyBytes(too_many_bytes(size, self.max_bytes)[1])
        if self.stream is None or path != self.path:
            self.close()
            self.stream, self.path = open_stream(files.join(self.root, path)), path
        try:
            return whole_member(self.stream, Member(path, "file", offset, size))
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise DamagedTar(str(error)) from error

    def close(self) -> None:
        """Close the shard that is open."""
        if self.stream is not None:
            self.stream.close()
        self.stream = None
