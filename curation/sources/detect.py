"""What a path is read as: decided by what holds the data, never by what only stands beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.sources import columns, contents, dataset, files, listing, parquet, urls
from granary.curation.sources.model import Source, field_name

ARCHIVES = (".zip", ".rar", ".7z", ".tar.zst", ".tzst", ".tar.lz4")
SUPPORTED = (
    "granary reads a folder of pictures, .tar files (also .tar.gz, .tar.xz, .tar.bz2), .parquet files, a .txt, .csv, "
    ".tsv, .jsonl or .parquet list of addresses, a granary run, and hf:ORG/NAME"
)
TABLES_LOOKED_AT = 16  # of a folder, for a column of images
PREVIEWS = 1  # a picture alone beside data is a preview of them whatever its name


class Held(NamedTuple):
    """What a folder holds, hidden files apart.

    Args:
        pictures: those whose names are not names of previews.
    """

    pictures: int
    shards: int
    tables: list[str]
    lists: list[str]
    archives: list[str]


def dataset_of_run(path: str) -> str:
    """Return the dataset of a granary run for the run's folder, any other folder as it is; both end in a slash.

    Raises:
        UserError: the run is not finished.
    """
    if not files.exists(path + "recipe.yaml") or not (files.exists(path + "run.json") or files.exists(path + "pool")):
        return path
    if files.exists(path + "run.json") and files.exists(path + "dataset/data"):
        return path + "dataset/"
    raise UserError(f"{path} is a granary run without a finished dataset; run its command again first.")


def detect(source: Source, what: str) -> str:
    """Return the kind of what stands at the path of a source.

    Args:
        source: with its path settled.
        what: file, directory or pattern.

    Raises:
        UserError: it is nothing that granary reads, or two things at once.
    """
    if what == "directory":
        by_choice = source.glob is not None or source.labels == "folder"
        return "folder" if by_choice else detect_folder(source)
    path = (listing.first_match(source.path) if what == "pattern" else source.path).lower()
    if path.endswith(contents.TAR_ENDINGS):
        return "webdataset"
    if path.endswith(parquet.ENDINGS):
        return "parquet" if what == "pattern" else detect_parquet(source, source.path)
    if what == "pattern":
        raise UserError(
            f"{subject(source)}: a pattern names tar or Parquet files; for images give the folder and a glob."
        )
    if path.endswith(ARCHIVES):
        raise UserError(f"{subject(source)}, an archive that is not read; unpack it. {SUPPORTED}.")
    return "urls" if path.endswith(urls.ENDINGS) else "folder"


def subject(source: Source) -> str:
    """Return the beginning of a sentence about the path of a source."""
    return f"{field_name(source, 'path')} is {source.path!r}"


def detect_folder(source: Source) -> str:
    """Return the kind of a folder. Raises UserError where it holds pictures and data files, or neither."""
    if dataset.is_saved(source.path):
        return "dataset"
    held = look_into(source.path)
    tables = bool(held.tables) and (not (held.shards or held.pictures) or any_with_images(source, held.tables))
    kinds = [kind for kind, there in (("webdataset", held.shards), ("parquet", tables)) if there]
    if held.pictures > (PREVIEWS if kinds else 0):
        kinds.append("folder")
    if len(kinds) > 1:
        raise UserError(mixed(source, kinds))
    if not kinds and (held.archives or held.lists):
        raise UserError(nothing_readable(source, held))
    return kinds[0] if kinds else "folder"


def look_into(path: str) -> Held:
    """Return what a folder holds, from names alone."""
    held = Held(0, 0, [], [], [])
    for file in listing.walk(path):
        kind, name = contents.kind_of(file.path), file.path.lower()
        if kind == "picture" and not contents.is_preview(name):
            held = held._replace(pictures=held.pictures + 1)
        elif kind == "shard":
            held = held._replace(shards=held.shards + 1)
        elif kind != "hidden":
            note(held, kind, file.path)
    return held


def note(held: Held, kind: str, path: str) -> None:
    """Keep the first few paths of tables, lists and archives."""
    name = path.lower()
    few: Iterable[tuple[bool, list[str]]] = (
        (kind in ("table", "metadata") and name.endswith(parquet.ENDINGS), held.tables),
        (kind in ("companion", "metadata") and name.endswith(urls.ENDINGS), held.lists),
        (name.endswith(ARCHIVES), held.archives),
    )
    for fits, paths in few:
        if fits and len(paths) < TABLES_LOOKED_AT:
            paths.append(path)


OPTIONS = {
    "folder": "pictures, leaving the data files out",
    "webdataset": "tar files alone",
    "parquet": "Parquet files alone",
}


def mixed(source: Source, kinds: list[str]) -> str:
    """Return the sentence about a folder that can be read in two ways."""
    ways = ", or ".join(f"{field_name(source, 'kind')} {kind} for the {OPTIONS[kind]}" for kind in kinds)
    names = {"folder": "pictures", "webdataset": "tar files", "parquet": "Parquet files with images"}
    return f"{subject(source)}, which holds {' and '.join(names[kind] for kind in kinds)}: give {ways}."


def nothing_readable(source: Source, held: Held) -> str:
    """Return the sentence about a folder of lists or archives alone."""
    paths = held.archives or held.lists
    advice = "unpack it first" if held.archives else "give the file itself if it is a list of addresses"
    return f"{subject(source)}, a folder without pictures; {paths[0]} in it is not read: {advice}. {SUPPORTED}."


def any_with_images(source: Source, tables: Iterable[str]) -> bool:
    """Say whether one of the tables of a folder has a column of images."""
    return any(has_images(source, files.join(source.path, table)) for table in tables)


def has_images(source: Source, path: str) -> bool:
    """Say whether a Parquet file has a column of images; one that cannot be read has none."""
    schema = schema_of(path)
    with contextlib.suppress(UserError):
        return schema is not None and bool(parquet.choose_columns(source, schema))
    return False


def schema_of(path: str) -> pa.Schema | None:
    """Return the schema of a Parquet file, None where it cannot be read."""
    try:
        with files.open_file(path) as file:
            return pq.read_schema(file)
    except parquet.FAILURES:
        return None


def detect_parquet(source: Source, path: str) -> str:
    """Return parquet for a file with an image column, urls for one with a column of addresses."""
    schema = schema_of(path)
    if schema is None or has_images(source, path):
        return "parquet"
    if columns.find(schema.names, source.url_column):
        return "urls"
    raise UserError(
        f"{subject(source)} with the columns {', '.join(schema.names)}: none "
        f"of them is image_column ({source.image_column!r}) or url_column ({source.url_column!r})."
    )


FITS = {  # options that are not for every kind -> the kinds, and what they are called
    "glob": (("folder",), "folders"),
    "labels": (("folder",), "folders"),
    "image_column": (("parquet", "dataset"), "tables"),
    "url_column": (("urls",), "lists of addresses"),
    "trust_paths": (("urls",), "lists of addresses"),
    "split": (("parquet", "dataset", "webdataset", "folder"), "datasets and folders"),
}


def check(source: Source) -> None:
    """Raise UserError where options or path do not fit the kind."""
    for option, (kinds, what) in FITS.items():
        value = source.model_dump()[option]
        fits = source.kind in kinds and (what != "folders" or source.path.endswith("/"))
        if not fits and value != Source.model_fields[option].default:
            subject = f"{field_name(source, option)} is {value!r}"
            raise UserError(f"{subject}, which is for {what}, but {source.path!r} is read as {source.kind}.")
    CHECKS.get(source.kind, lambda source: None)(source)
    if source.kind in SPLIT_ENDINGS:
        contents.check_split(source, SPLIT_ENDINGS[source.kind])


SPLIT_ENDINGS = {"parquet": contents.TABLE_ENDINGS, "webdataset": contents.TAR_ENDINGS, "folder": ("",)}


def check_list(source: Source) -> None:
    """Raise UserError where a list of addresses is a folder, or cannot be read."""
    if source.path.endswith("/"):
        raise UserError(f"{subject(source)}, a folder; a list of addresses is one text, CSV or Parquet file.")
    urls.load(source, files.info(source.path)["stamp"])
    if source.path.lower().endswith(".txt"):
        columns.check_named(source, [])


def check_tables(source: Source) -> None:
    """Raise UserError where no table of a source has a column of images, with the columns that are there."""
    first: pa.Schema | None = None
    for path in table_paths(source):
        schema = schema_of(path)
        if schema is not None and has_images(source, path):
            columns.check_named(source, [*schema.names, *columns.partitions(path)])
            return
        first = first or schema
    if first is not None:
        parquet.choose_columns(source, first)


def table_paths(source: Source) -> list[str]:
    """Return where the first few tables of a source are."""
    tables = contents.data_files(source, parquet.ENDINGS, contents.LeftOut())
    return [parquet.address(source, file.path) for file, _ in zip(tables, range(TABLES_LOOKED_AT), strict=False)]


CHECKS: dict[str, Callable[[Source], None]] = {
    "dataset": dataset.check,
    "urls": check_list,
    "parquet": check_tables,
}
