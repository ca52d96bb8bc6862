"""What a source is, what it is cut into and what comes out of it: plain data, nothing read here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from pydantic import Field, PrivateAttr

from granary.curation.download.errors import DownloadError
from granary.curation.download.options import Download
from granary.curation.options import Options
from granary.curation.store.addresses import without_secrets

Kind = Literal["auto", "folder", "webdataset", "parquet", "dataset", "urls"]

# Bytes of a file name that are not UTF-8 arrive as U+DC80..U+DCFF (PEP 383) and are written \udcXX. A
# backslash that would read as such an escape is itself written \x5c, so the text leads back to the name.
AMBIGUOUS_BACKSLASH = re.compile(r"\\(?=udc[89a-f][0-9a-f]|x5c)")
ESCAPED = re.compile(r"\\(?:x5c|u(dc[89a-f][0-9a-f]))")


class Source(Options, frozen=True):
    """Where a pool, a seed set or a reference set comes from."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", description="short name, first part of every uri")
    path: str = Field(description="folder, file, glob or brace pattern (local or any fsspec URL), or hf:ORG/NAME")
    kind: Kind = Field(default="auto", description="how the path is read; auto decides from what is there")
    glob: str | None = Field(default=None, description="folder only: relative paths to take, e.g. **/*.jpg")
    labels: Literal["none", "folder"] = Field(default="none", description="folder: the first sub-folder is the label")
    image_column: str = Field(default="image", description="parquet, dataset: column of the image (HF Image or binary)")
    label_column: str = Field(default="label", description="column (webdataset, folder: JSON key) of the label")
    caption_column: str | None = Field(
        default=None,
        description="column (webdataset, folder: JSON key) of the captions; default captions, caption, text, txt, ...",
    )
    url_column: str = Field(default="url", description="urls: column of the address in a CSV or Parquet list")
    split: str | None = Field(
        default=None, description="the split to read, of a dataset or as file names tell it; default all"
    )
    trust_paths: bool = Field(
        default=False,
        description="urls: take rows that name any file of this machine or chain protocols; for lists of your own",
    )
    private_addresses: bool = Field(
        default=False, description="fetch what rows name on this machine and in private networks"
    )
    _download: Download = PrivateAttr(default_factory=Download)

    @property
    def download(self) -> Download:
        """How addresses in it are fetched: set by the recipe for all of its sources."""
        return self._download

    def fetched_by(self, download: Download) -> Self:
        """Return the source with what the recipe says of downloads."""
        copy = self.model_copy()
        copy._download = download
        return copy


@dataclass(frozen=True)
class Piece:
    """The smallest part of a source that a work unit can be given; valid UTF-8, no image bytes.

    Args:
        path: file, relative to the root of the source (a split for kind dataset, the list for kind urls).
        start: first row; start and stop are 0 for whole files.
        stop: the row after the last.
        size: in bytes, 0 when unknown.
        count: candidates in it, 0 when unknown (tar).
        stamp: text that changes when the file changes, or what speaks of it.
        sidecars: files beside it that speak of it, relative to the root.
        table: file of the folder with a row about it, relative to the root; "" where there is none.
        table_stamp: of that file.
    """

    path: str
    start: int
    stop: int
    size: int
    count: int
    stamp: str
    sidecars: tuple[str, ...] = ()
    table: str = ""
    table_stamp: str = ""


class Unread(NamedTuple):
    """Something that speaks of an image and could not be read: its name, class and message of the error."""

    part: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that may be an image.

    Args:
        uri: unique in the source, starts with its name.
        path: what `Reader.read` takes, with offset and size.
        offset: of the bytes in the file, or the row.
        size: in bytes, 0 when unknown.
        label: of the image, as the source has it.
        captions: likewise.
        metadata: JSON, as the source has it.
        data: the bytes where reading the piece had them anyway, else None.
        error: (class, message) of a dead candidate, which has no bytes.
        name: of its own file, "" where it has none.
        unread: what speaks of it and could not be read.
        left_out: (what, why) of members and columns beside it that have no place in a sample.
        keys: names of what was said of it, in JSON beside it or in a table of its folder.
    """

    uri: str
    path: str
    offset: int = 0
    size: int = 0
    label: str | None = None
    captions: tuple[str, ...] = ()
    metadata: str | None = None
    data: bytes | None = None
    error: tuple[str, str] | None = None
    name: str = ""
    unread: tuple[Unread, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    keys: tuple[str, ...] = ()


def escape(name: str) -> str:
    """Write a file name as valid UTF-8; `unescape` gives it back. Ordinary names stay as they are."""
    marked = AMBIGUOUS_BACKSLASH.sub(r"\\x5c", name)
    return marked.encode("utf-8", "backslashreplace").decode("utf-8")


def unescape(text: str) -> str:
    """Invert `escape`."""
    return ESCAPED.sub(lambda match: chr(int(match[1], 16)) if match[1] else "\\", text)


def plain(text: str) -> str:
    """Replace what UTF-8 cannot hold: JSON can smuggle in half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def field_name(source: Source, field: str) -> str:
    """Return the name of a field as the user knows it, for messages."""
    return f"{source.name or 'source'}.{field}"


def failure(error: BaseException) -> tuple[str, str]:
    """Return (class, message) of an error, without local paths that operating systems add and secrets of addresses."""
    kind = error.kind if isinstance(error, DownloadError) else type(error).__name__
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return kind, without_secrets(plain(message)) or kind


def too_many_bytes(size: int, max_bytes: int) -> tuple[str, str]:
    """Return the error of a candidate that is larger than the limit."""
    return "TooManyBytes", f"{size} bytes, the limit is {max_bytes}"
