"""The entries of each image, whole image and masks, with their summaries and negatives; no picture is read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from granary.curation.dense import crops
from granary.curation.dense.assemble import masks_of
from granary.curation.dense.engines import Engine, Entry, Given, Rules, Text, Windows, first_negatives, first_summaries
from granary.curation.dense.packing import Counter
from granary.curation.dense.readers import READERS
from granary.curation.dense.recipe import Budget, Crops, Format, Negatives, Summaries, Writer
from granary.curation.dense.rows import EntryRow, ImageRow, Made, PairRow
from granary.curation.dense.schema import pair_features
from granary.curation.dense.steps.records import RecordReader, read_records
from granary.curation.dense.steps.shards import note, shard_paths
from granary.curation.dense.texts import mask_description
from granary.curation.dense.tree import UNUSABLE, Annotation, InvalidAnnotation, Mask, Problem, entry_key
from granary.curation.images.decode import DecodeLimits
from granary.curation.runs.run import Output, Run, read_groups
from granary.curation.store import schema

NEEDED = ["id", "width", "height", "file", "split", "description", "masks", "source"]


def texts_schema() -> pa.Schema:
    """Return the schema of this stage: a pair but for its picture, and the place of its image in the shard."""
    pair = schema.arrow_schema(pair_features())
    fields = [field for field in pair if field.name != "image"]
    return pa.schema([pa.field("row", pa.int32()), *fields])


@dataclasses.dataclass(frozen=True)
class WriteTexts:
    """Which entries are given texts, and how.

    Args:
        unit: number of the shard.
        records: digest of the records that the shard was packed from.
        shard: SHA-256 of the shard.
        given: whether its annotations came with summaries or negatives.
        format: of the annotations.
        budget: of the texts.
        tokenizer: fingerprint of the budget's tokenizer; "" where words are counted.
        decode: limits on what is read.
        seed: of the run.
        crops: which masks give entries.
        summaries: how summaries are made.
        negatives: how negatives are made.
        writer: the language model; None where no engine asks one.
        model: fingerprint of the language model; "" where there is none.
    """

    unit: int
    records: str
    shard: str
    given: bool
    format: Format
    budget: Budget
    tokenizer: str
    decode: DecodeLimits
    seed: int
    crops: Crops
    summaries: Summaries
    negatives: Negatives
    writer: Writer | None = None
    model: str = ""


def write_texts(run: Run, job: WriteTexts, output: Output) -> None:
    """Write the entries of one shard with their texts."""
    target, counter = texts_schema(), Counter(job.budget.tokenizer, job.budget.tokens)
    summaries, negatives = (_engines(job, options.engines, counter) for options in (job.summaries, job.negatives))
    given = _given(run, job) if job.given and "given" in (*job.summaries.engines, *job.negatives.engines) else {}
    start = 0
    shard = shard_paths(run, "shards", "data")[job.unit]
    for table in read_groups(shard, NEEDED):
        rows: list[EntryRow] = []
        entries: list[Entry] = []
        for place, image in enumerate(table.to_pylist(), start):
            for row, entry in _entries(image, place, given.get(image["file"]), job, output):
                rows.append(row)
                entries.append(entry)
        start += table.num_rows
        found = first_summaries(entries, summaries)
        positives = [texts[0].text if texts else "" for texts in found]
        spoken = [place for place, texts in enumerate(found) if texts]
        against: list[list[Text]] = [[] for _ in entries]
        made = first_negatives([entries[p] for p in spoken], [positives[p] for p in spoken], negatives)
        for place, texts in zip(spoken, made, strict=True):
            against[place] = texts
        full = [
            _filled(row, entry, texts, hard, counter)
            for row, entry, texts, hard in zip(rows, entries, found, against, strict=True)
            if _said(row, texts, output)
        ]
        _count(full, output, counter.budget)
        output.write(pa.Table.from_pylist(full, target))
    output.begin(target)


def _engines(job: WriteTexts, names: Sequence[str], counter: Counter) -> list[Engine]:
    """Return the engines of some names, in their order."""
    return [_engine(job, name, counter) for name in names]


def _engine(job: WriteTexts, name: str, counter: Counter) -> Engine:
    if name == "given":
        return Given()
    if name == "windows":
        return Windows(counter, job.summaries.windows)
    if name == "rules":
        return Rules(counter, job.seed, job.negatives.per_image, job.negatives.per_mask)
    from granary.curation.dense.llm import ModelWriter

    assert job.writer is not None
    return ModelWriter.of(job.writer, job.summaries, job.negatives, job.seed, counter)


def _given(run: Run, job: WriteTexts) -> dict[str, Annotation]:
    """Return the annotations of the unit again, by file, for the texts that came with them."""
    parse, found = READERS[job.format].parse, {}
    with RecordReader(run.sources["annotations"][0], job.decode.max_bytes) as reader:
        for record in read_records(run, job.unit):
            if not record["error"]:
                try:
                    found[record["name"]] = parse(reader.read(record), record["name"])
                except (InvalidAnnotation, OSError):
                    continue  # the shard has no such image; it was noted there
    return found


def _entries(
    image: ImageRow, place: int, given: Annotation | None, job: WriteTexts, output: Output
) -> Iterator[tuple[EntryRow, Entry]]:
    """Yield the whole image and each mask that is large enough and of which something is said."""
    masks = masks_of(image)
    base = entry_id(image["id"], image["file"], "base")
    ids, make = {"": base}, functools.partial(_row, image, place, darken=job.crops.darken)
    _note_strangers(image, masks, given, output)
    whole = [0, 0, image["width"], image["height"]]
    yield make("base", "", "", whole), _entry(base, "base", image["description"], given)
    chosen = {key: text for key, mask in masks.items() if (text := _text_of(mask, masks, job.crops.min_side, output))}
    ids |= {key: entry_id(image["id"], image["file"], entry_key(key)) for key in chosen}
    for key, text in chosen.items():
        parent = masks[key].parent
        while parent not in ids:
            parent = masks[parent].parent
        box = crops.grown(masks[key].box or (0, 0, 0, 0), image["width"], image["height"], job.crops.grow)
        name = entry_key(key)
        yield make(name, key, ids[parent], list(box)), _entry(ids[key], name, text, given)


def _text_of(mask: Mask, masks: Mapping[str, Mask], min_side: int, output: Output) -> str:
    """Return the description of a mask that gives an entry; "" for others, which are counted by their reason."""
    reason, text = "", ""
    if not crops.large_enough(mask.box or (0, 0, 0, 0), min_side):
        reason = "small"
    elif mask.quality >= UNUSABLE:
        reason = "unusable"
    elif not (text := mask_description(masks, mask.key)):
        reason = "without text"
    output.counters[f"masks {reason}" if reason else "masks chosen"] += 1
    return text


def entry_id(image_id: str, file: str, key: str) -> str:
    """Return the id of an entry: 32 hex characters of a hash of its image, its annotation and its key."""
    return hashlib.sha256("\0".join([image_id, file, key]).encode()).hexdigest()[:32]


def _row(image: ImageRow, place: int, key: str, mask: str, parent: str, box: list[int], darken: bool) -> EntryRow:
    return {
        "row": place,
        "id": entry_id(image["id"], image["file"], key),
        "width": box[2] - box[0],
        "height": box[3] - box[1],
        "image_id": image["id"],
        "parent_id": parent,
        "file": image["file"],
        "split": image["split"],
        "key": key,
        "base": key == "base",
        "mask": mask,
        "box": box,
        "darkened": bool(mask) and darken,
        "source": image["source"],
    }


def _entry(id: str, key: str, description: str, given: Annotation | None) -> Entry:
    if given is None:
        return Entry(id, key, description)
    texts, hard, scores = given.summaries.get(key, []), given.negatives.get(key, {}), given.scores.get(key, {})
    return Entry(id, key, description, texts, hard, scores)


def _note_strangers(image: ImageRow, masks: Mapping[str, Mask], given: Annotation | None, output: Output) -> None:
    """Note texts that came for masks that are not there."""
    known = {"base", *map(entry_key, masks)}
    for field in ("summaries", "negatives") if given is not None else ():
        for key in sorted(getattr(given, field).keys() - known):
            problem = Problem(f"{field}/{key}", "NoMask", "the texts are of a mask that is not there")
            note(output, image["file"], "part", problem)


def _said(row: EntryRow, texts: Sequence[Text], output: Output) -> bool:
    if not texts:
        problem = Problem(row["key"], "NoSummary", "no engine gave a summary of the entry")
        note(output, row["file"], "part", problem)
    return bool(texts)


def _filled(row: EntryRow, entry: Entry, texts: Sequence[Text], hard: Sequence[Text], counter: Counter) -> PairRow:
    """Return a row with its texts, every one counted."""
    lengths = counter([text.text for text in texts])
    against = counter([text.text for text in hard]) if hard else []
    score = entry.scores.get("sum") if texts[0].engine == "given" else None
    return {
        **row,
        "captions": [text.text for text in texts],
        "tokens": lengths,
        "unit": counter.unit,
        "provenance": [_made(text) for text in texts],
        "negatives": [
            {"kind": text.kind, "text": text.text, "tokens": length, "score": text.score, **_made(text)}
            for text, length in zip(hard, against, strict=True)
        ],
        "positive_score": score,
    }


def _made(text: Text) -> Made:
    return {"engine": text.engine, "prompt": text.prompt, "seed": text.seed}


def _count(rows: Sequence[PairRow], output: Output, budget: int) -> None:
    for row in rows:
        output.counters.update(
            {
                "entries": 1,
                "entries without negatives": not row["negatives"],
                "summaries": len(row["captions"]),
                "summaries over the budget": sum(length > budget for length in row["tokens"]),
                "negatives": len(row["negatives"]),
                **{f"summaries by {row['provenance'][0]['engine']}": len(row["captions"])},
                **(
                    {f"negatives by {row['negatives'][0]['engine']}": len(row["negatives"])} if row["negatives"] else {}
                ),
            }
        )
