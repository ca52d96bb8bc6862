"""What goes to the Hub; of a run: shards, card, contact sheet, Croissant, and on request ledger and embeddings."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Set
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.hub.card import (
    Tree,
    contact_sheet_of,
    counts_of,
    earlier_card,
    folder_of,
    own_template,
    parse_card,
    write_card,
)
from granary.curation.hub.croissant import croissant
from granary.curation.hub.merging import check_kept, merge_cards
from granary.curation.hub.upload import Upload
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.facts import NEEDED, Counts, Facts, lacking_nothing
from granary.curation.runs.integrity import path_in, written
from granary.curation.runs.run import Run
from granary.curation.runs.splits import loadable
from granary.curation.runs.tables import read_table
from granary.curation.store import storage
from granary.curation.store.trees import mapping

if TYPE_CHECKING:
    from datasets import Features

FILE_ROWS, GROUP_ROWS = 100_000, 10_000  # of the files that ledger and embeddings are merged into
Tables = Iterator[pa.Table]


@dataclasses.dataclass(frozen=True)
class Publication:
    """What is sent.

    Args:
        name: of the dataset or model.
        parquet: of a dataset, for each config its Parquet files, "default" first.
        texts: the text files by path: README.md, croissant.json, recipe.yaml ...
        sheet: contact-sheet.jpg; None where there is none.
        write: returns the texts with what a card on the Hub has merged into them.
        weights: of a model, the files of its weights.
    """

    name: str
    parquet: dict[str, list[Upload]]
    texts: dict[str, str]
    sheet: bytes | None
    write: Callable[[str], dict[str, str]]
    weights: tuple[Upload, ...] = ()

    @property
    def large(self) -> list[Upload]:
        """The files that are sent in batches: shards, or weights."""
        return [upload for files in self.parquet.values() for upload in files] + list(self.weights)

    @property
    def beside(self) -> list[Upload]:
        """The small files, the texts among them."""
        files = {path: text.encode() for path, text in self.texts.items()}
        if self.sheet is not None:
            files["contact-sheet.jpg"] = self.sheet
        return [Upload(path, len(data), data=data) for path, data in files.items()]

    def over(self, card: str) -> Publication:
        """Return the publication with the card that stands on the Hub merged into its own; "" for none."""
        return dataclasses.replace(self, texts=self.write(card)) if card else self


def gather(
    url: str,
    repository: str,
    address: str,
    scratch: str,
    ledger: bool = False,
    embeddings: bool = False,
    licence: str | None = None,
) -> Publication:
    """Gather what a finished run publishes; nothing is written into the run directory.

    Args:
        url: of the run directory.
        repository, address: ORG/NAME and its web address, for the card.
        scratch: a folder of this machine for the merged ledger and embeddings, kept until they are sent.
        ledger, embeddings: whether they are published too.
        licence: in the place of the recipe's.

    Raises:
        UserError: there is no finished run, or its files are not those it counted.
    """
    run = Run(url.rstrip("/"))
    facts, recipe = cast(Facts, _read(run, "run.json", NEEDED)), _read(run, "recipe.yaml")
    recipe |= {"licence": licence} if licence else {}
    counted = counts_of(facts)
    parquet = {config: _shards(run, config, counts) for config, counts in counted.items()}
    if ledger:
        parquet["ledger"] = _merge(_ledger(run), os.path.join(scratch, "ledger"), "ledger")
    if embeddings:
        parquet["embeddings"] = _merge(_embeddings(run), os.path.join(scratch, "embeddings"), "embeddings")
    earlier = earlier_card(run)
    features = {config: _features(files[0].url) for config, files in parquet.items()}
    features |= _stated(earlier, list(features))
    sheet = _contact_sheet(run, parquet["default"])
    splits = {config: list(loadable(counts)) for config, counts in counted.items()}

    def texts_over(theirs: str) -> dict[str, str]:
        before = merge_cards(earlier, theirs) if theirs else earlier
        card = write_card(facts, recipe, features, before, repository, sheet is not None, own_template(run))
        check_kept(card, before)
        stated = parse_card(card)[0].get("license")
        description = croissant(facts["name"], stated, address, features, splits)
        return {"README.md": card, "croissant.json": description}

    return Publication(facts["name"], parquet, texts_over(""), sheet, texts_over)


def _read(run: Run, name: str, needed: Set[str] = frozenset()) -> Tree:
    try:
        return lacking_nothing(mapping(name, storage.read_bytes(run.path(name))), needed)
    except FileNotFoundError:
        raise UserError(
            f"run: {run.url} is not a finished run (it has no {name}); give the --out of a finished run"
        ) from None
    except ValueError as error:
        raise UserError(
            f"run: {run.path(name)} is damaged ({error}); `granary check RUN --repair` removes it, and the run's "
            "command writes it again"
        ) from None


def shards_of(run: Run) -> dict[str, list[Upload]]:
    """Return for each config of a finished run its shards, "default" first; raises UserError where they are others."""
    facts = cast(Facts, _read(run, "run.json", NEEDED))
    return {config: _shards(run, config, counts) for config, counts in counts_of(facts).items()}


def _shards(run: Run, config: str, counts: Counts) -> list[Upload]:
    """Return the shards of a config; a folder that lost or gained one since the run counted them is an error."""
    folder = run.path("dataset", folder_of(config))
    urls = {name: storage.join(folder, name) for name in storage.names(folder) if name.endswith(".parquet")}
    hashes = written(run, urls)
    shards = [
        Upload(f"{folder_of(config)}/{name}", storage.size(url), url, written=hashes.get(path_in(run, url), ""))
        for name, url in urls.items()
    ]
    size = sum(shard.size for shard in shards)
    if not shards or (len(shards), size) != (counts["shards"], counts["bytes"]):
        raise UserError(
            f"run: {folder} holds {len(shards)} shards of {size:,} bytes, not the {counts['shards']} of "
            f"{counts['bytes']:,} that the run wrote; run its granary command again"
        )
    return shards


def _features(url: str) -> Features:
    from datasets import Features

    with storage.open_read(url) as file:
        return Features.from_arrow_schema(pq.ParquetFile(file).schema_arrow)


def _stated(card: str, configs: list[str]) -> dict[str, Features]:
    """Return the features that the run's own card states, so that the preflight compares them with the shards'."""
    from datasets import Features

    info = parse_card(card)[0].get("dataset_info") or {}
    stated = {one.get("config_name", "default"): one for one in (info if isinstance(info, list) else [info])}
    return {
        config: Features._from_yaml_list(stated[config]["features"])
        for config in configs
        if "features" in stated.get(config, {})
    }


def _contact_sheet(run: Run, shards: list[Upload]) -> bytes | None:
    try:
        return storage.read_bytes(run.path("dataset", "contact-sheet.jpg"))
    except FileNotFoundError:
        return contact_sheet_of([shard.url for shard in shards], DecodeLimits())


def _ledger(run: Run) -> Tables:
    return (read_table(url) for url in run.parts("ledger"))


def _embeddings(run: Run) -> Tables:
    """Yield id and embedding of the kept images; part i of the ledger has the rows of part i of the pool."""
    for pool, ledger in zip(run.parts("pool"), run.parts("ledger"), strict=False):  # the ledger ends with the seeds
        kept = pc.equal(read_table(ledger, ["status"])["status"], "kept")
        yield read_table(pool, ["id", "embedding"]).filter(kept)


def _merge(tables: Tables, folder: str, config: str) -> list[Upload]:
    """Write tables into files of at most about FILE_ROWS rows, holding GROUP_ROWS of them in memory."""
    os.makedirs(folder)
    paths: list[str] = []
    groups = _regroup(tables)
    for first in groups:
        paths.append(os.path.join(folder, f"{len(paths)}.parquet"))
        with pq.ParquetWriter(paths[-1], first.schema, compression="zstd", write_page_checksum=True) as writer:
            for group in itertools.chain([first], itertools.islice(groups, FILE_ROWS // GROUP_ROWS - 1)):
                writer.write_table(group)
    if not paths:
        raise UserError(f"run: it has no {config}; leave --{config} out")
    names = [f"{config}/part-{number:05d}-of-{len(paths):05d}.parquet" for number in range(len(paths))]
    return [Upload(name, os.path.getsize(path), path) for name, path in zip(names, paths, strict=True)]


def _regroup(tables: Tables) -> Tables:
    """Yield the same rows in tables of GROUP_ROWS, the last one shorter."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.num_rows for one in held) >= GROUP_ROWS:
            whole = pa.concat_tables(held).combine_chunks()
            ends = range(GROUP_ROWS, whole.num_rows + 1, GROUP_ROWS)
            yield from (whole.slice(end - GROUP_ROWS, GROUP_ROWS) for end in ends)
            held = [whole.slice(ends[-1])]
    if any(table.num_rows for table in held):
        yield pa.concat_tables(held).combine_chunks()
