"""What people wrote of the steps of videos, in the forms it is published in; every reader gives the same records.

COIN (Tang et al. 2019) is one JSON file, CrossTask (Zhukov et al. 2019) a folder of `TASK_VIDEO.csv` with lines
`step,start,end`, steps from 1, and beside it lists of tasks with the names of their steps. The form of COIN is that
of https://github.com/coin-dataset/annotations, README.md; that of CrossTask is what `read_task_info` and
`read_assignment` of https://github.com/DmZhukov/CrossTask, data.py, read. EPIC-KITCHENS-100 (Damen et al. 2022) is a
table with the columns of https://github.com/epic-kitchens/epic-kitchens-100-annotations, a line for each action; Ego4D
Goal-Step (Song et al. 2023) one JSON file with a list `videos`, in the form that the README.md of
https://github.com/facebookresearch/ego4d-goalstep has; their segments are steps. A JSON line is {"video": ...,
"task": ..., "subset": ..., "steps": [{"step_id": ..., "label": ..., "start": ..., "end": ...}]}; a step may have a verb
and a noun too.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from granary.curation.dense import fields
from granary.curation.dense.readers import lines
from granary.curation.dense.tree import InvalidAnnotation
from granary.curation.errors import UserError
from granary.curation.sources import Source, failure, files, listing
from granary.curation.sources.model import unescape

Format = Literal["coin", "crosstask", "epic", "goalstep", "lines"]
MAX_BYTES = 1 << 30
MAX_LINE = 64 << 20
EPIC = ("video_id", "start_timestamp", "stop_timestamp", "narration", "verb_class", "noun_class")
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}  # by what stands in a file's name
TASKS = ("tasks_primary.txt", "tasks_related.txt")
# The keys that the published forms have.
COIN = frozenset({"annotation", "class", "duration", "end", "recipe_type", "start", "subset", "video_url"})
COIN_STEP = frozenset({"id", "label", "segment"})
EPIC_ALL = frozenset({*EPIC, "uid", "narration_id", "participant_id", "narration_timestamp", "start_frame"}) | {
    "stop_frame", "verb", "noun", "all_nouns", "all_noun_classes",
}  # fmt: skip
TIMED = frozenset({"start_time", "end_time", "summary", "is_procedural", "segments"})
GOAL = TIMED | {"video_uid", "goal_category", "goal_description", "goal_wikihow_url"}
GOAL_STEP = TIMED | {"step_category", "step_description", "is_continued", "is_relevant"}


class Segment(NamedTuple):
    """A step: from start to end in seconds.

    Args:
        step: its number, as the annotations have it; "" where there is none.
        label: in words.
        verb, noun: numbers of their classes, where annotations have them apart.
    """

    start: float
    end: float
    step: str
    label: str
    verb: str = ""
    noun: str = ""


class Procedure(NamedTuple):
    """The steps of a video in the order they were written down.

    Args:
        video: its name.
        task: what is done.
        subset: training, testing, ...; "" where none is named.
        segments: the steps that can be used.
        wrong: what is wrong with the others, or with all of it.
        error: (class, message) when nothing of it can be read; `video` is then where it was written.
        unknown: keys of the entry and of its steps that the published form does not have, each as often as it stands
            there; not of JSON lines, which are no published form.
    """

    video: str
    task: str
    subset: str
    segments: list[Segment]
    wrong: list[str]
    error: tuple[str, str] | None = None
    unknown: tuple[str, ...] = ()


def read_procedures(path: str, form: Format) -> Iterator[Procedure]:
    """Yield the videos of annotations, in the order of the files; a line or a table that is none has an error.

    Args:
        path: of the file, or of CrossTask's folder with a slash at its end.
        form: of the annotations.

    Raises:
        UserError: they cannot be read.
    """
    try:
        yield from READERS[form](path)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(
            f"annotations: {path} cannot be read as {form} ({error}); give another file or --format"
        ) from error


def _coin(path: str) -> Iterator[Procedure]:
    tree = json.loads(files.read_file(path, MAX_BYTES))
    database = tree.get("database") if isinstance(tree, dict) else None
    if not isinstance(database, dict):
        raise ValueError("there is no object `database`")
    for video, entry in database.items():
        record = entry if isinstance(entry, dict) else {}
        steps = _objects(record.get("annotation"))
        unknown = (*_unknown([record], COIN), *_unknown(steps, COIN_STEP, "annotation."))
        yield _procedure(video, record.get("class"), record.get("subset"), [*map(_coin_step, steps)], unknown)


def _objects(entries: object) -> list[Mapping[str, Any]]:
    """Return the entries of a list, empty ones in the place of what is no object; none where there is no list."""
    return [entry if isinstance(entry, dict) else {} for entry in entries] if isinstance(entries, list) else []


def _unknown(records: Iterable[Mapping[str, Any]], known: frozenset[str], part: str = "") -> Iterator[str]:
    """Yield the keys of records that a published form does not have, behind the name of the part they are of."""
    return (f"{part}{key}" for record in records for key in record if key not in known)


def _coin_step(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a step of COIN, {"id": "373", "segment": [21.0, 23.0], "label": ...}, as a JSON line has it."""
    bounds = step.get("segment")
    start, end = bounds if isinstance(bounds, list) and len(bounds) == 2 else (None, None)
    return {"step_id": step.get("id"), "label": step.get("label"), "start": start, "end": end}


def _epic(path: str) -> Iterator[Procedure]:
    """Yield videos in the order of their first actions; the name of the file says which subset they are."""
    rows = csv.DictReader(io.StringIO(files.read_file(path, MAX_BYTES).decode("utf-8", "replace")))
    missing = set(EPIC) - set(rows.fieldnames or ())
    if missing:
        raise ValueError(f"there is no column {min(missing)}")
    videos: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        videos.setdefault(row["video_id"] or "", []).append(_epic_step(row))
    subset, columns = _subset(path), [name for name in rows.fieldnames or () if name not in EPIC_ALL]
    for video, steps in videos.items():
        ordered = sorted(steps, key=lambda step: step["start"] or 0.0)
        yield _procedure(video, "", subset, ordered, [*columns] * len(steps))


def _subset(path: str) -> str:
    """Return the subset that the name of a file says, "" for none."""
    name = path.rsplit("/", 1)[-1].lower()
    return next((subset for word, subset in SUBSETS.items() if word in name), "")


def _epic_step(row: Mapping[str, str | None]) -> Mapping[str, Any]:
    verb, noun = (row[name] or "" for name in ("verb_class", "noun_class"))
    start, end = (_clock(row[name] or "") for name in ("start_timestamp", "stop_timestamp"))
    step = f"{verb},{noun}" if verb and noun else None
    return {"step_id": step, "label": row["narration"], "start": start, "end": end, "verb": verb, "noun": noun}


def _clock(text: str) -> float | None:
    """Return the seconds of a time such as 00:01:09.14; None where it is none."""
    parts = text.split(":")
    times = [_seconds(part) for part in parts]
    if len(parts) != 3 or None in times:
        return None
    return sum(60.0**place * (time or 0.0) for place, time in enumerate(reversed(times)))


def _goalstep(path: str) -> Iterator[Procedure]:
    """Yield videos with their steps; the substeps below these are left. The file's name says which subset it is."""
    tree = json.loads(files.read_file(path, MAX_BYTES))
    videos = tree.get("videos") if isinstance(tree, dict) else None
    if not isinstance(videos, list):
        raise ValueError("there is no list `videos`")
    subset = _subset(path)
    for place, record in enumerate(_objects(videos)):
        if not record.get("video_uid"):
            error = ("NoVideoName", "the entry names no `video_uid`")
            yield Procedure(f"videos[{place}]", "", "", [], [], error)
            continue
        steps = _objects(record.get("segments"))
        unknown = (*_unknown([record], GOAL), *_unknown(steps, GOAL_STEP, "segments."))
        rows = [_goalstep_step(step) for step in steps]
        yield _procedure(str(record["video_uid"]), record.get("goal_category"), subset, rows, unknown)


def _goalstep_step(step: Mapping[str, Any]) -> Mapping[str, Any]:
    label, bounds = step.get("step_description"), {"start": step.get("start_time"), "end": step.get("end_time")}
    return {"step_id": step.get("step_category"), "label": label, **bounds}


def _lines(path: str) -> Iterator[Procedure]:
    for line in lines.records(Source(name="annotations", path=path, kind="folder"), MAX_LINE):
        try:
            if line.error:
                raise InvalidAnnotation(*line.error)
            yield _of_line(fields.load(line.text, []))
        except InvalidAnnotation as error:
            yield Procedure(line.name, "", "", [], [], (error.kind, str(error)))


def _of_line(record: fields.JsonObject) -> Procedure:
    """Return what a line says; raises InvalidAnnotation where it names no video."""
    if not record.get("video"):
        raise InvalidAnnotation("NoVideoName", "the line names no `video`")
    steps = record.get("timed_steps", record.get("steps"))
    rows: list[Mapping[str, Any]]
    rows = [step if isinstance(step, dict) else {"step_id": step} for step in steps] if isinstance(steps, list) else []
    return _procedure(str(record["video"]), record.get("task"), record.get("subset"), rows)


def _crosstask(path: str) -> Iterator[Procedure]:
    if not path.endswith("/"):
        raise ValueError("it is a file; give the folder of the annotations")
    names = _task_names(path)
    for file in listing.walk(path):
        name = unescape(file.path).rsplit("/", 1)[-1]
        task, _, video = name.removesuffix(".csv").partition("_")
        if name.endswith(".csv") and video and task.isdigit():
            title, steps = names.get(task, (task, []))
            try:
                text = files.read_file(files.join(path, file.path), MAX_BYTES).decode("utf-8", "replace")
                table = [row for row in csv.reader(io.StringIO(text)) if row]
            except (OSError, csv.Error) as error:
                yield Procedure(video, title, "", [], [], failure(error))
            else:
                unknown = [f"column {place}" for row in table for place in range(4, len(row) + 1)]
                yield _procedure(video, title, "", [_crosstask_step(row, steps) for row in table], unknown)


def _crosstask_step(row: list[str], names: list[str]) -> Mapping[str, Any]:
    number, start, end = [*row, "", "", ""][:3]
    known = number.isdigit() and 0 < int(number) <= len(names)
    return {"step_id": number, "label": names[int(number) - 1] if known else "", "start": start, "end": end}


def _task_names(path: str) -> dict[str, tuple[str, list[str]]]:
    """Return title and steps of the tasks: blocks of number, title, address, count, steps with commas, empty line."""
    names = {}
    for folder in (path, path.rstrip("/").rpartition("/")[0] + "/"):
        for file in (folder + name for name in TASKS):
            if files.exists(file):
                lines = files.read_file(file, MAX_BYTES).decode("utf-8", "replace").splitlines()
                for block in zip(*(lines[place::6] for place in range(5)), strict=False):
                    names[block[0].strip()] = (block[1].strip(), [step.strip() for step in block[4].split(",")])
    return names


def _procedure(
    video: str, task: object, subset: object, steps: list[Mapping[str, Any]], unknown: Iterable[str] = ()
) -> Procedure:
    segments, wrong = [], []
    for place, step in enumerate(steps):
        start, end = _seconds(step.get("start")), _seconds(step.get("end"))
        number = step.get("step_id", step.get("step"))
        if start is None or end is None or end <= start:
            wrong.append(f"step {place + 1} has no time: from {step.get('start')} to {step.get('end')}")
        else:
            words, named = str(step.get("label") or ""), "" if number is None else str(number)
            verb, noun = ("" if step.get(name) is None else str(step[name]) for name in ("verb", "noun"))
            segments.append(Segment(start, end, named, words, verb, noun))
    if not steps:
        wrong.append("no step is written down")
    named = "" if task is None else str(task)
    return Procedure(video, named, str(subset or ""), segments, wrong, unknown=tuple(unknown))


def _seconds(value: object) -> float | None:
    """Return a time as a number of seconds, not negative; None where it is none."""
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


READERS: dict[Format, Callable[[str], Iterator[Procedure]]] = {
    "coin": _coin,
    "crosstask": _crosstask,
    "epic": _epic,
    "goalstep": _goalstep,
    "lines": _lines,
}
