"""The entries of each image, whole image and masks, with their summaries and negatives; no picture is read."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pyarrow as pa

from granary.curation.dense.engines import Engine, Entry, Given, Rules, Text, Windows, first_negatives, first_summaries
from granary.curation.dense.packing import Counter
from granary.curation.dense.recipe import Budget, Crops, Format, Negatives, Summaries, Writer
from granary.curation.dense.schema import EntryRow, PairRow, Provenance, pair_features
from granary.curation.dense.steps.entries import COLUMNS, entries_of
from granary.curation.dense.steps.notes import note
from granary.curation.dense.steps.records import AnnotationReader, read_records
from granary.curation.dense.tree import Annotation, InvalidAnnotation, Problem
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_groups
from granary.curation.store import schema


@dataclasses.dataclass(frozen=True)
class WriteTexts:
    """The job of `write_texts`.

    Args:
        unit: number of the shard, and row group of its records.
        records: digest of the records.
        shard: digest of the shard.
        format: of the annotations.
        max_bytes: most bytes of an annotation.
        given: whether the annotations are read again for the texts that came with them.
        budget: of a text.
        tokenizer: digest of the budget's tokenizer; "" where words are counted.
        seed: of the run.
        crops: which masks have an entry, and their boxes.
        summaries, negatives: the engines, and how many of each.
        writer: the language model; None when no engine uses it.
        model: digest of its files; "" when no engine uses it.
    """

    unit: int
    records: str
    shard: str
    format: Format
    max_bytes: int
    given: bool
    budget: Budget
    tokenizer: str
    seed: int
    crops: Crops
    summaries: Summaries
    negatives: Negatives
    writer: Writer | None = None
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Engines:
    """The engines of a unit, in the order in which they are tried, and the counter of its budget."""

    summaries: Sequence[Engine]
    negatives: Sequence[Engine]
    counter: Counter

    @classmethod
    def of(cls, job: WriteTexts) -> Engines:
        """Return the engines that a job names; a model is loaded when it is first asked."""
        counter = Counter(job.budget.tokenizer, job.budget.tokens)
        names = dict.fromkeys((*job.summaries.engines, *job.negatives.engines))
        engines = {name: _engine(name, job, counter) for name in names}
        summaries, negatives = job.summaries.engines, job.negatives.engines
        return cls([engines[name] for name in summaries], [engines[name] for name in negatives], counter)


def _engine(name: str, job: WriteTexts, counter: Counter) -> Engine:
    if name == "given":
        return Given()
    if name == "windows":
        return Windows(counter, job.summaries.windows)
    if name == "rules":
        return Rules(counter, job.seed, job.negatives.per_image, job.negatives.per_mask)
    from granary.curation.dense.writer import ModelWriter

    if job.writer is None:
        raise ValueError("the engine 'model' needs a writer")
    return ModelWriter.of(job.writer, job.summaries, job.negatives, counter, job.seed)


def texts_schema() -> pa.Schema:
    """Return the schema of this stage: a pair but for its picture, and the place of its image in the shard."""
    pair = schema.arrow_schema(pair_features())
    fields = [field for field in pair if field.name != "image"]
    return pa.schema([pa.field("row", pa.int32()), *fields])


def write_texts(run: Run, job: WriteTexts, output: Output) -> None:
    """Write the entries of one shard with their texts."""
    target, engines = texts_schema(), Engines.of(job)
    given = _given(run, job) if job.given else {}
    place = itertools.count()
    for table in read_groups(image_shards(run)[job.unit], COLUMNS):
        images = table.to_pylist()
        pairs = [
            pair
            for image in images
            for pair in entries_of(image, next(place), given.get(image["file"]), job.crops, output)
        ]
        rows = _with_texts(pairs, engines, output)
        _count(rows, output, engines.counter.budget)
        output.write(pa.Table.from_pylist(rows, target))
    output.begin(target)


def _given(run: Run, job: WriteTexts) -> dict[str, Annotation]:
    """Return the annotations of the unit again, by file, for the texts that came with them."""
    annotations = {}
    with AnnotationReader(run.sources["annotations"][0], job.format, job.max_bytes) as reader:
        for record in read_records(run, job.unit):
            try:
                annotations[record["name"]] = reader.read(record)
            except (InvalidAnnotation, OSError):
                continue  # the shard has no such image; it was noted there
    return annotations


def _with_texts(pairs: Sequence[tuple[EntryRow, Entry]], engines: Engines, output: Output) -> list[PairRow]:
    """Return the rows of entries with their texts; an entry without a summary is noted and left out."""
    summaries = first_summaries([entry for _, entry in pairs], engines.summaries)
    described = []
    for (row, entry), texts in zip(pairs, summaries, strict=True):
        if texts:
            described.append((row, entry, texts))
        else:
            note(output, row["file"], "part", Problem(row["key"], "NoSummary", "no engine gave a summary of the entry"))
    entries, positives = [entry for _, entry, _ in described], [texts[0].text for _, _, texts in described]
    negatives = first_negatives(entries, positives, engines.negatives)
    return [_filled(*parts, hard, engines.counter) for parts, hard in zip(described, negatives, strict=True)]


def _filled(row: EntryRow, entry: Entry, texts: Sequence[Text], hard: Sequence[Text], counter: Counter) -> PairRow:
    """Return a row with its texts, every one counted.

    Args:
        hard: the negatives.
    """
    lengths = counter([text.text for text in hard]) if hard else []
    return {
        **row,
        "captions": [text.text for text in texts],
        "tokens": counter([text.text for text in texts]),
        "unit": counter.unit,
        "provenance": [_provenance(text) for text in texts],
        "negatives": [
            {"kind": text.kind, "text": text.text, "tokens": length, "score": text.score, **_provenance(text)}
            for text, length in zip(hard, lengths, strict=True)
        ],
        "positive_score": entry.scores.get("sum") if texts[0].engine == "given" else None,
    }


def _provenance(text: Text) -> Provenance:
    return {"engine": text.engine, "prompt": text.prompt, "seed": text.seed}


def _count(rows: Sequence[PairRow], output: Output, budget: int) -> None:
    """Count what rows hold, and their texts by the engine that made them."""
    for row in rows:
        output.counters["entries"] += 1
        output.counters["entries without negatives"] += not row["negatives"]
        output.counters["summaries"] += len(row["captions"])
        output.counters["summaries over the budget"] += sum(length > budget for length in row["tokens"])
        output.counters["negatives"] += len(row["negatives"])
        output.counters[f"summaries by {row['provenance'][0]['engine']}"] += len(row["captions"])
        if row["negatives"]:
            output.counters[f"negatives by {row['negatives'][0]['engine']}"] += len(row["negatives"])
