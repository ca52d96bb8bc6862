"""The entries of each image, whole image and masks, with their summaries and negatives; no picture is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from granary.curation.dense import crops
from granary.curation.dense.assemble import masks_of
from granary.curation.dense.engines import Engine, Entry, Given, Rules, Text, Windows, first_negatives, first_summaries
from granary.curation.dense.packing import Counter
from granary.curation.dense.readers import READERS
from granary.curation.dense.schema import pair_features
from granary.curation.dense.steps.records import RecordReader, read_records
from granary.curation.dense.steps.shards import note, shard_paths
from granary.curation.dense.texts import mask_description
from granary.curation.dense.tree import UNUSABLE, Annotation, InvalidAnnotation, Mask, Problem, entry_key
from granary.curation.runs.run import Output, Run, read_groups
from granary.curation.store import schema

NEEDED = ["id", "width", "height", "file", "split", "description", "masks", "source"]
Row = dict[str, Any]


def texts_schema() -> pa.Schema:
    """Return the schema of this stage: a pair but for its picture, and the place of its image in the shard."""
    pair = schema.arrow_schema(pair_features())
    fields = [field for field in pair if field.name != "image"]
    return pa.schema([pa.field("row", pa.int32()), *fields])


def write_texts(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write the entries of one shard with their texts."""
    target, counter = texts_schema(), Counter(arguments["tokenizer"], arguments["budget"])
    summaries = _engines(arguments, arguments["summaries"]["engines"], counter)
    negatives = _engines(arguments, arguments["negatives"]["engines"], counter)
    given = _given(run, arguments) if arguments["given"] and "given" in _named(arguments) else {}
    start = 0
    shard = shard_paths(run, "shards", "data")[arguments["unit"]]
    for table in read_groups(shard, NEEDED):
        rows: list[Row] = []
        entries: list[Entry] = []
        for place, image in enumerate(table.to_pylist(), start):
            for row, entry in _entries(image, given.get(image["file"]), arguments, output):
                rows.append({"row": place, **row})
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


def _named(arguments: Mapping[str, Any]) -> set[str]:
    return {*arguments["summaries"]["engines"], *arguments["negatives"]["engines"]}


def _engines(arguments: Mapping[str, Any], names: Sequence[str], counter: Counter) -> list[Engine]:
    found: list[Engine] = []
    for name in names:
        if name == "given":
            found.append(Given())
        elif name == "windows":
            found.append(Windows(counter, arguments["summaries"]["windows"]))
        elif name == "rules":
            counts = arguments["negatives"]
            found.append(Rules(counter, arguments["seed"], counts["per_image"], counts["per_mask"]))
        else:
            from granary.curation.dense.llm import ModelWriter

            found.append(ModelWriter.of(arguments, counter))
    return found


def _given(run: Run, arguments: Mapping[str, Any]) -> dict[str, Annotation]:
    """Return the annotations of the unit again, by file, for the texts that came with them."""
    parse, found = READERS[arguments["format"]].parse, {}
    with RecordReader(run.sources["annotations"][0], arguments["decode"]["max_bytes"]) as reader:
        for record in read_records(run, arguments["unit"]):
            if not record["error"]:
                try:
                    found[record["name"]] = parse(reader.read(record), record["name"])
                except (InvalidAnnotation, OSError):
                    continue  # the shard has no such image; it was noted there
    return found


def _entries(
    image: Mapping[str, Any], given: Annotation | None, arguments: Mapping[str, Any], output: Output
) -> Iterator[tuple[Row, Entry]]:
    """Yield the whole image and each mask that is large enough and of which something is said."""
    masks = masks_of(image)
    base = entry_id(image["id"], image["file"], "base")
    ids = {"": base}
    _note_strangers(image, masks, given, output)
    whole = [0, 0, image["width"], image["height"]]
    yield _row(image, "base", "", "", whole, arguments), _entry(base, "base", image["description"], given)
    chosen = {key: text for key, mask in masks.items() if (text := _wanted(mask, masks, arguments, output))}
    ids |= {key: entry_id(image["id"], image["file"], entry_key(key)) for key in chosen}
    for key, text in chosen.items():
        parent = masks[key].parent
        while parent not in ids:
            parent = masks[parent].parent
        box = crops.grown(masks[key].box or (0, 0, 0, 0), image["width"], image["height"], arguments["crops"]["grow"])
        name = entry_key(key)
        yield _row(image, name, key, ids[parent], list(box), arguments), _entry(ids[key], name, text, given)


def _wanted(mask: Mask, masks: Mapping[str, Mask], arguments: Mapping[str, Any], output: Output) -> str:
    """Return the description of a mask that gives an entry; "" for others, which are counted by their reason."""
    reason, text = "", ""
    if not crops.large_enough(mask.box or (0, 0, 0, 0), arguments["crops"]["min_side"]):
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


def _row(
    image: Mapping[str, Any], key: str, mask: str, parent: str, box: list[int], arguments: Mapping[str, Any]
) -> Row:
    return {
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
        "darkened": bool(mask) and arguments["crops"]["darken"],
        "source": image["source"],
    }


def _entry(id: str, key: str, description: str, given: Annotation | None) -> Entry:
    if given is None:
        return Entry(id, key, description)
    texts, hard, scores = given.summaries.get(key, []), given.negatives.get(key, {}), given.scores.get(key, {})
    return Entry(id, key, description, texts, hard, scores)


def _note_strangers(
    image: Mapping[str, Any], masks: Mapping[str, Mask], given: Annotation | None, output: Output
) -> None:
    """Note texts that came for masks that are not there."""
    known = {"base", *map(entry_key, masks)}
    for field in ("summaries", "negatives") if given is not None else ():
        for key in sorted(getattr(given, field).keys() - known):
            problem = Problem(f"{field}/{key}", "NoMask", "the texts are of a mask that is not there")
            note(output, image["file"], "part", problem)


def _said(row: Row, texts: Sequence[Text], output: Output) -> bool:
    if not texts:
        problem = Problem(row["key"], "NoSummary", "no engine gave a summary of the entry")
        note(output, row["file"], "part", problem)
    return bool(texts)


def _filled(row: Row, entry: Entry, texts: Sequence[Text], hard: Sequence[Text], counter: Counter) -> Row:
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


def _made(text: Text) -> dict[str, Any]:
    return {"engine": text.engine, "prompt": text.prompt, "seed": text.seed}


def _count(rows: Sequence[Row], output: Output, budget: int) -> None:
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
