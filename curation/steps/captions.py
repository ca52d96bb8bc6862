"""The steps that balance captions: entries, the matches of each image, their counts, the draws, the verdicts.

Every unit holds the captions of one part of the pool, or the words of one bucket; only counts meet in one place.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from granary.curation.errors import UserError
from granary.curation.runs.decisions import STAGE as DECIDED
from granary.curation.runs.run import Output, Run
from granary.curation.runs.spans import Span, read_part
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Layout
from granary.curation.selection.captions import Matcher, draws, probabilities, words_of
from granary.curation.sources import files
from granary.curation.steps.dedup import Bucket
from granary.curation.steps.verdicts import VERDICT
from granary.curation.store.sampling import hashed

BEFORE = "verdicts-before-captions"
MAX_BYTES = 1 << 30  # of a file of entries
WORDS = pa.schema([("word", pa.string()), ("bucket", pa.int32()), ("images", pa.int64())])
ENTRIES = pa.schema([("entry", pa.string())])
MATCHES = pa.schema(
    [("index", pa.int64()), ("id", pa.string()), ("captions", pa.int32()), ("entries", pa.list_(pa.int32()))]
)
COUNTS = pa.schema([("images", pa.int64())])
DRAWN = pa.schema(
    [("index", pa.int64()), ("kept", pa.bool_()), ("reason", pa.string()), ("entries", pa.list_(pa.int32()))]
)
BALANCED = pa.schema(
    [("entry", pa.string()), ("before", pa.int64()), ("after", pa.int64()), ("probability", pa.float64())]
)
HASH_BUCKETS = 1 << 20


def load_entries(path: str) -> list[str]:
    """Return the entries of a file: one a line, or a JSON list of texts; blank ones are none, each is there once.

    Raises:
        UserError: it cannot be read, or holds no entry.
    """
    try:
        text = files.read_file(files.absolute(path), MAX_BYTES).decode("utf-8-sig")
        listed = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"balance.captions.entries: {path} cannot be read ({str(error)[:200]}); give a file with one entry a line, "
            "a JSON list of texts, or the word words"
        ) from None
    entries = list(dict.fromkeys(" ".join(entry.split()) for entry in listed if isinstance(entry, str)))
    if not any(entries):
        raise UserError(f"balance.captions.entries: {path} holds no entry; give one a line, or a JSON list of texts")
    return [entry for entry in entries if entry]


def candidates(run: Run, part: int) -> pa.Table:
    """Return index, id and captions of the images of a pool part that every other stage keeps, and no decision."""
    start = int(Layout.of(run, "pool").starts[part])
    before = read_part(run, BEFORE, part, ["status", "stage"])
    drawn = pc.and_(pc.equal(before["status"], "kept"), pc.not_equal(before["stage"], DECIDED))
    kept = np.flatnonzero(drawn.to_numpy())
    rows = read_table(run.parts("pool")[part], ["id", "captions"]).take(pa.array(kept))
    return rows.append_column("index", pa.array(kept + start))


# -- the entries -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CountWords:
    """The job of `count_words`.

    Args:
        part: of the pool.
        fold: whether capitals and small letters are the same.
    """

    part: int
    fold: bool


def count_words(run: Run, job: CountWords, output: Output) -> None:
    """Count in how many images of a part each word is."""
    counts: Counter[str] = Counter()
    for captions in candidates(run, job.part)["captions"].to_pylist():
        counts.update(words_of(captions or [], job.fold))
    rows = [
        {"word": word, "bucket": hashed(f"word/{word}") % HASH_BUCKETS, "images": count}
        for word, count in sorted(counts.items())
    ]
    output.write(pa.Table.from_pylist(rows, WORDS))


@dataclasses.dataclass(frozen=True)
class FrequentWords(Bucket):
    """The job of `frequent_words`: a bucket of words.

    Args:
        least: images that a word must be in.
    """

    least: int


def frequent_words(run: Run, job: FrequentWords, output: Output) -> None:
    """Write the words of a bucket that are in enough images."""
    counts: Counter[str] = Counter()
    for url in run.parts("caption-words"):
        table = read_table(url)
        mine = table.filter(pa.array(table["bucket"].to_numpy() % job.buckets == job.bucket))
        counts.update(dict(zip(mine["word"].to_pylist(), mine["images"].to_pylist(), strict=True)))
    words = sorted(word for word, count in counts.items() if count >= job.least)
    output.write(pa.table({"entry": words}, ENTRIES))


@dataclasses.dataclass(frozen=True)
class ListEntries:
    """The job of `list_entries`.

    Args:
        entries: of the file.
    """

    entries: tuple[str, ...]


def list_entries(run: Run, job: ListEntries, output: Output) -> None:
    """Write the entries of a file."""
    output.write(pa.table({"entry": list(job.entries)}, ENTRIES))


@functools.lru_cache(maxsize=1)
def _entries(url: str, digest: str) -> tuple[str, ...]:
    """Return all entries of a run, in the order of their text; its digest tells them from those of another recipe."""
    return tuple(sorted(Run(url).read_all("caption-entries")["entry"].to_pylist()))


@functools.lru_cache(maxsize=1)
def _matcher(url: str, digest: str, fold: bool) -> Matcher:
    return Matcher.of(_entries(url, digest), fold)


# -- matches, counts, draws ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MatchPart:
    """The job of `match_part`.

    Args:
        part: of the pool.
        fold: whether capitals and small letters are the same.
        entries: digest of the stage that wrote them.
    """

    part: int
    fold: bool
    entries: str


def match_part(run: Run, job: MatchPart, output: Output) -> None:
    """Write which entries the captions of each image of a part hold; an image counts once for an entry."""
    matcher = _matcher(run.url, job.entries, job.fold)
    rows = [
        {
            "index": row["index"],
            "id": row["id"],
            "captions": sum(map(bool, row["captions"] or [])),
            "entries": matcher.found(row["captions"] or []),
        }
        for row in candidates(run, job.part).to_pylist()
    ]
    output.write(pa.Table.from_pylist(rows, MATCHES))


@dataclasses.dataclass(frozen=True)
class CountMatches:
    """The job of `count_matches`.

    Args:
        entries: digest of the stage that wrote them.
    """

    entries: str


def count_matches(run: Run, job: CountMatches, output: Output) -> None:
    """Write how many images match each entry."""
    output.write(pa.table({"images": _totals(run, "caption-matches", len(_entries(run.url, job.entries)))}, COUNTS))


def _totals(run: Run, stage: str, entries: int, kept: bool = False) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return (entries,) int64: how many images of a stage have each entry, one part held at a time.

    Args:
        kept: count the images alone that are kept.
    """
    totals = np.zeros(entries, np.int64)
    for url in run.parts(stage):
        table = read_table(url, ["entries", *(["kept"] if kept else [])])
        lists = (table.filter(table["kept"]) if kept else table)["entries"].combine_chunks()
        totals += np.bincount(lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64), minlength=entries)
    return totals


@dataclasses.dataclass(frozen=True)
class DrawPart:
    """The job of `draw_part`.

    Args:
        part: of the pool.
        most: images that an entry keeps in expectation.
        seed: of the run.
        entries: digest of the stage that wrote them.
    """

    part: int
    most: int
    seed: int
    entries: str


def draw_part(run: Run, job: DrawPart, output: Output) -> None:
    """Draw every image of a part once for each of its entries, and say why it stays or goes."""
    entries, counts = _entries(run.url, job.entries), run.read("caption-counts", 0)["images"].to_numpy()
    odds = probabilities(counts, job.most)
    table = run.read("caption-matches", job.part)
    lists = table["entries"].to_pylist()
    owners = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    numbers = np.array([number for one in lists for number in one], np.int64)
    ids = table["id"].to_pylist()
    drawn = draws(job.seed, [ids[row] for row in owners], [entries[number] for number in numbers])
    won = drawn < odds[numbers]
    kept = np.bincount(owners[won], minlength=len(lists)) > 0
    reasons = [
        _reason(bool(stays), texts, [entries[number] for number in one])
        for stays, texts, one in zip(kept, table["captions"].to_pylist(), lists, strict=True)
    ]
    for reason in reasons:
        output.counters[reason.partition(":")[0]] += 1
    columns = {"index": table["index"], "kept": kept, "reason": reasons, "entries": table["entries"]}
    output.write(pa.table(columns, DRAWN))


def _reason(kept: bool, captions: int, entries: list[str]) -> str:
    """Return why an image stays or goes."""
    if kept:
        return f"drawn for its captions: {_shown(entries)}"
    if not entries:
        return "its captions match no entry" if captions else "it has no caption"
    return f"not drawn for its captions: {_shown(entries)}"


def _shown(entries: list[str], most: int = 8) -> str:
    """Return the first entries in words."""
    return ", ".join(entries[:most]) + (f" and {len(entries) - most} more" if len(entries) > most else "")


@dataclasses.dataclass(frozen=True)
class SumUp:
    """The job of `sum_up`.

    Args:
        most: images that an entry keeps in expectation.
        entries: digest of the stage that wrote them.
    """

    most: int
    entries: str


def sum_up(run: Run, job: SumUp, output: Output) -> None:
    """Write for each entry that any image matches how many did before and after, the most frequent first."""
    entries, before = _entries(run.url, job.entries), run.read("caption-counts", 0)["images"].to_numpy()
    after, odds = _totals(run, "caption-draws", len(entries), kept=True), probabilities(before, job.most)
    order = sorted(np.flatnonzero(before).tolist(), key=lambda number: (-before[number], entries[number]))
    rows = {
        "entry": [entries[number] for number in order],
        "before": before[order],
        "after": after[order],
        "probability": odds[order],
    }
    output.counters.update({"entries": len(entries), "head": int((before > job.most).sum()), "tail": len(order)})
    output.counters["tail"] -= output.counters["head"]
    output.write(pa.table(rows, BALANCED))


def write_balanced_verdicts(run: Run, job: Span, output: Output) -> None:
    """Write the verdicts with those of the draws over what the other stages kept, a row group for each part."""
    for part in range(*job.parts):
        rows = read_part(run, BEFORE, part).to_pylist()
        start = int(Layout.of(run, "pool").starts[part])
        for drawn in run.read("caption-draws", part).to_pylist():
            row = rows[drawn["index"] - start]
            status = "kept" if drawn["kept"] else "dropped"
            rows[drawn["index"] - start] = {**row, "status": status, "stage": "captions", "reason": drawn["reason"]}
        for row in rows:
            output.counters[f"{row['status']} {row['stage']}"] += 1
        output.write(pa.Table.from_pylist(rows, VERDICT))
