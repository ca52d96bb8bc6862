"""What the files of a folder are, by their names: pictures, shards, tables, and what only stands beside them.

The names of splits are those by which the Hub finds them (`datasets`, "Structure your repository").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from granary.curation.errors import UserError
from granary.curation.sources import listing
from granary.curation.sources.listing import File
from granary.curation.sources.model import Source, field_name

LeftOut = Counter[tuple[str, str]]  # (what, why) -> how many files, members or columns
FileKind = Literal["hidden", "picture", "shard", "table", "metadata", "companion", "unknown"]

IMAGE_ENDINGS = frozenset((
    "avif", "bmp", "dib", "gif", "heic", "heif", "ico", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "jxl",
    "pbm", "pcx", "pgm", "png", "pnm", "ppm", "qoi", "tga", "tif", "tiff", "webp",
))  # fmt: skip
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
TABLE_ENDINGS = (".parquet", ".pq")
COMPANION_ENDINGS = frozenset((
    "c", "cfg", "cls", "cff", "conf", "cpp", "css", "csv", "db", "done", "gitattributes", "gitignore",
    "html", "htm", "idx", "ini", "ipynb", "js", "json", "jsonl", "lock", "log", "md", "npy", "npz", "pdf",
    "pickle", "pkl", "pt", "py", "pyc", "rst", "safetensors", "sh", "sql", "tex", "toml", "tsv", "txt",
    "url", "xml", "yaml", "yml",
))  # fmt: skip
COMPANION_NAMES = frozenset((
    "authors", "changelog", "citation", "contributing", "copying", "dockerfile", "licence", "license",
    "makefile", "manifest", "notice", "readme", "_success", "version",
))  # fmt: skip
# Words of the names of pictures that show what a dataset holds and are no part of it.
PREVIEW = re.compile(
    r"(^|[^a-z])(assets|banner|card|contact-sheet|cover|docs|figs?|figures?|logo|overview|preview|previews|readme|"
    r"screenshots?|teaser|thumbnails?)([^a-z]|$)"
)
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
NUMBERED = re.compile(r"(?:^|/)([^/]+?)-\d{5}-of-\d{5}[^/]*$")
HIDDEN = "a name begins with a dot"
NO_PICTURE = "its name is not that of a picture"
NO_DATA = "not among the files that hold the data"


def kind_of(path: str) -> FileKind:
    """Return what a file is by its path, relative to its source."""
    base = path.lower().rsplit("/", 1)[-1]
    stem, _, ending = base.rpartition(".")
    if is_hidden(path):
        return "hidden"
    if base in listing.TABLE_NAMES:
        return "metadata"
    if base.endswith(TAR_ENDINGS):
        return "shard"
    if base.endswith(TABLE_ENDINGS):
        return "table"
    if stem and ending in IMAGE_ENDINGS:
        return "picture"
    known = (stem and ending in COMPANION_ENDINGS) or base in COMPANION_NAMES or stem in COMPANION_NAMES
    return "companion" if known else "unknown"


def is_hidden(path: str) -> bool:
    """Say whether a file or one of its folders is hidden, as macOS and version control leave them."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/") if part not in ("", "."))


def is_preview(path: str) -> bool:
    """Say whether a picture only shows what a dataset holds."""
    return PREVIEW.search(path.lower()) is not None


def split_of(path: str) -> str | None:
    """Return the split that a file belongs to, None where its path names none.

    As on the Hub: NAME-00000-of-00001 is of split NAME, else a folder or a word of the name tells train, validation
    or test.
    """
    numbered = NUMBERED.search(path)
    if numbered:
        return numbered[1]
    *folders, base = path.lower().split("/")
    words = [*folders, *reversed(re.split(r"[^a-z]+", base.split(".", 1)[0]))]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def data_files(source: Source, endings: tuple[str, ...], left_out: LeftOut) -> Iterator[File]:
    """Yield the files of a source that hold its data, of the split that is asked for.

    Args:
        source: resolved.
        endings: of the files that hold data.
        left_out: is given what is passed over.
    """
    for file in listing.shards(source.path, endings if not source.path.endswith("/") else ("",)):
        if file.stamp == "unlisted":
            yield file
        elif source.path.endswith("/") and is_hidden(file.path):
            left_out["hidden files", HIDDEN] += 1
        elif source.path.endswith("/") and not file.path.lower().endswith(endings):
            left_out[what(file.path), NO_DATA] += 1
        elif of_split(source, file.path, left_out):
            yield file


def of_split(source: Source, path: str, left_out: LeftOut) -> bool:
    """Say whether a file is of the split that is asked for, and count it where it is not."""
    split = split_of(path)
    if source.split is None or same_split(source.split, split):
        return True
    left_out[f"files of {split or 'no split'}", f"split is {source.split}"] += 1
    return False


def same_split(asked: str, split: str | None) -> bool:
    """Say whether a split is the one asked for: the Hub takes val, dev and validation for one."""
    return split is not None and SPLIT_WORDS.get(asked, asked) == SPLIT_WORDS.get(split, split)


def base_name(path: str) -> str:
    """Return the last part of a path or an address, without its query."""
    return path.partition("?")[0].rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]


def what(path: str) -> str:
    """Return how files like this one are counted: by their ending, or by their name where they have none."""
    base = path.rsplit("/", 1)[-1]
    _, dot, ending = base.rpartition(".")
    return f"*.{ending.lower()}" if dot and len(ending) <= 12 else base[:40]


def check_split(source: Source, endings: tuple[str, ...]) -> None:
    """Raise UserError where no file is of the split that is asked for."""
    if source.split is None:
        return
    everything = source.model_copy(update={"split": None})
    splits = {split_of(file.path) for file in data_files(everything, endings, LeftOut())}
    if not any(same_split(source.split, split) for split in splits):
        known = ", ".join(sorted(split for split in splits if split)) or "none"
        raise UserError(
            f"{field_name(source, 'split')} is {source.split!r}, but the names of the files in {source.path} tell of "
            f"other splits: {known}; give one of them, or leave split out."
        )
