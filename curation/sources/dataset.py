"""What `datasets` reads: a `save_to_disk` folder, a folder that `load_dataset` knows, or a Hub id.

Images stay undecoded, code of a repository is never run (`datasets` 4 and later cannot), and columns that are
not asked for are not touched.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from granary.curation.download.client import Downloads
from granary.curation.errors import UserError
from granary.curation.sources import columns, files, parquet
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.model import Candidate, Piece, Source, escape, failure, field_name

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hf:"
HUB_ID = re.compile(r"hf:[\w.-]+(/[\w.-]+){0,2}")  # hf:NAME, hf:ORG/NAME, hf:ORG/NAME/CONFIG
SAVED = ("state.json", "dataset_dict.json")
PIECE_ROWS = 1000
FAILURES = (*parquet.FAILURES, TypeError)


class Split(NamedTuple):
    """One split: the rows with undecoded images, its fingerprint, the columns that are read."""

    rows: Dataset
    stamp: str
    columns: parquet.Columns


def check(source: Source) -> None:
    """Raise UserError where the path is no dataset; a Hub id is only checked for its form."""
    if not source.path.startswith(HUB):
        splits(source)
    elif not HUB_ID.fullmatch(source.path):
        name = source.name or "source"
        raise UserError(f"{name}.path is {source.path!r}; a dataset on the Hub is written hf:ORG/NAME.")


def is_saved(folder: str) -> bool:
    """Say whether `save_to_disk` wrote a folder (its path ends in a slash)."""
    return any(files.exists(folder + mark) for mark in SAVED)


def list_pieces(source: Source, left_out: LeftOut) -> Iterator[Piece]:
    """Yield ranges of rows, split by split."""
    for name, split in splits(source).items():
        total = len(split.rows)
        for start in range(0, total, PIECE_ROWS):
            stop = min(start + PIECE_ROWS, total)
            yield Piece(name, start, stop, 0, stop - start, split.stamp)


def read_piece(source: Source, piece: Piece, max_bytes: int) -> Iterator[Candidate]:
    """Yield the rows of a range with their bytes."""
    split = splits(source)[piece.path]
    for row in range(piece.start, piece.stop):
        uri = f"{source.name}/{piece.path}#{row}"
        try:
            yield parquet.from_cells(source, uri, piece.path, row, split.columns, split.rows[row], max_bytes)
        except FAILURES as error:
            yield Candidate(uri, piece.path, row, error=failure(error))


def splits(source: Source) -> dict[str, Split]:
    """Return the splits by name, loaded once per process."""
    loaded = load(source.path, source.split, source.name or "source")
    return {escape(name): prepare(source, rows) for name, rows in loaded.items()}


@functools.lru_cache(maxsize=8)
def load(path: str, split: str | None, name: str) -> dict[str, Dataset]:
    """Load the splits of a dataset. Raises UserError with what `datasets` had to say."""
    import datasets

    try:
        if path.startswith(HUB):
            repository, _, config = path[len(HUB) :].partition("/")
            organisation, _, config = config.partition("/")
            identity = f"{repository}/{organisation}" if organisation else repository
            loaded = datasets.load_dataset(identity, config or None, split=split)
        elif is_saved(path):
            loaded = datasets.load_from_disk(path)
            loaded = loaded[split] if split and isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(path, split=split)
    except Exception as error:
        reason = f"split {split!r} is not there" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{name}.path is {path!r}, which `datasets` cannot load: {reason}") from error
    if isinstance(loaded, datasets.DatasetDict):
        return dict(sorted(loaded.items()))
    return {split or str(loaded.split or "data"): loaded}


def prepare(source: Source, rows: Dataset) -> Split:
    """Return a split with its images undecoded. Raises UserError where no column holds images."""
    import datasets

    features = rows.features
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image = columns.image_name(source, list(features), typed)
    columns.check_named(source, list(features))
    label = columns.find(list(features), source.label_column)
    classes = getattr(features[label], "names", None) if label else None
    chosen = parquet.columns_of(source, features.arrow_schema, image, classes)
    selected = rows.select_columns(chosen.names)
    if image in typed:
        selected = selected.cast_column(image, datasets.Image(decode=False))
    elif not is_binary(features[image]):
        raise UserError(
            f"{field_name(source, 'image_column')} is {image!r}, which holds no images but {features[image]}."
        )
    return Split(selected, rows._fingerprint, chosen)


def is_binary(feature: object) -> bool:
    """Say whether a column holds bytes, or a struct of bytes and path that lost its type."""
    arrow = getattr(feature, "pa_type", None)
    return isinstance(feature, dict) or (
        arrow is not None and (pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow))
    )


def random_access(source: Source) -> bool:
    """Say that rows are read in pool order; a remote dataset may be stored in compressed blocks."""
    return False


class Reader:
    """Reads rows of memory-mapped tables."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.splits = splits(source)
        self.top = source.path if not source.path.startswith(HUB) else hub_cache()
        self.max_bytes = max_bytes
        self.downloads = Downloads(source.download, max_bytes, source.private_addresses)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the bytes of row `offset` of split `path`."""
        split = self.splits[path]
        value = split.rows[offset][split.columns.image]
        return parquet.cell_bytes(value, self.top, self.top, self.max_bytes, self.downloads.read)

    def close(self) -> None:
        """Close the connections; tables stay mapped for the process."""
        self.downloads.close()


def hub_cache() -> str:
    """Return the folder that files downloaded from the Hub are kept in."""
    import datasets

    return files.absolute(str(datasets.config.HF_CACHE_HOME)) + "/"
