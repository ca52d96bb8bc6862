"""What the work units of a pack run of videos do, without Beam: videos ─ shards, then ledger and dead letters."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from granary.curation.dense.texts import cleaned
from granary.curation.images.decode import DecodeError
from granary.curation.runs import dead_letters
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.dead_letters import DeadLetter
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Marker, NoJob, Output, Run, digest, undigested
from granary.curation.runs.splits import NAME, TRAIN
from granary.curation.runs.tables import read_groups, read_table
from granary.curation.sources import failure, files, listing
from granary.curation.sources.model import unescape
from granary.curation.steps.unreadable import OUTAGES, check_lost
from granary.curation.store import schema, storage
from granary.curation.videos.decode import Facts, Frame, facts_of
from granary.curation.videos.limits import VideoLimits
from granary.curation.videos.procedures import Procedure, Segment, read_procedures
from granary.curation.videos.recipe import VideoFormat
from granary.curation.videos.shots import SIDE, Histogram, Shots, changes, colours, cuts

if TYPE_CHECKING:
    from datasets import Features

ENDINGS = (
    ".mp4",
    ".mkv",
    ".webm",
    ".mov",
    ".avi",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".flv",
    ".ogv",
    ".wmv",
    ".gif",
)
SPLITS = {"training": TRAIN, "testing": "test", "validation": "validation"}
LISTED = pa.schema(
    [
        (name, pa.string())
        for name in ("video", "path", "stamp", "task", "split", "segments", "wrong", "error", "message")
    ]
)
UNKNOWN, OTHER_KEYS, MAX_KEYS, MAX_KEY = "unknown ", "(others)", 100, 80
NO_TIME, OUTSIDE = "NoTime", "OutsideOfVideo"
TWICE = ("DuplicateKey", "the video is annotated twice; the first time counts")


class Group(NamedTuple):
    """What the marker of the list notes of a row group: digest of its rows, their number, their split."""

    digest: str
    rows: int
    split: str


def video_features() -> Features:
    """Return the features of a packed video: those of a sample, whose picture shows the first clip, and more."""
    from datasets import List, Value

    clip = {
        "start": Value("float64"), "end": Value("float64"), "first": Value("int32"), "frames": Value("int32"),
        "step": Value("string"), "label": Value("string"), "verb": Value("string"), "noun": Value("string"),
    }  # fmt: skip
    return schema.sample_features(
        {
            "video": {"bytes": Value("binary"), "path": Value("string")},
            "name": Value("string"),
            "codec": Value("string"),
            "frames": Value("int32"),
            "seconds": Value("float64"),
            "times": List(Value("float64")),
            "clips": List(clip),
            "split": Value("string"),
        }
    )


@dataclasses.dataclass(frozen=True)
class ListVideos:
    """The job of `list_videos`.

    Args:
        format: of the annotations.
        unit_rows: most videos in a row group.
        state: digest of what annotations and videos are now.
    """

    format: VideoFormat
    unit_rows: int
    state: str


def state_of(run: Run) -> str:
    """Return a digest that changes when a file of the sources does."""
    kinds = [source.path for sources in run.sources.values() for source in sources]
    return digest([[(f.path, f.size, f.stamp) for f in listing.shards(path, ("",))] for path in kinds])


def list_videos(run: Run, job: ListVideos, output: Output) -> None:
    """Write a row for each video: one of the annotations with its file, or, for shots, each file of the folder.

    Of two files with the name of one video the first is taken, and the others are counted; a video that is annotated
    again is lost the second time. Keys that no reader knows are counted by name, as `unknown NAME`; names after the
    first hundred, of files that are not what they are said to be, as one.
    """
    found: dict[str, listing.File] = {}
    files_found = 0
    for file in listing.walk(run.sources["videos"][0].path):
        name = unescape(file.path).rsplit("/", 1)[-1]
        if name.lower().endswith(ENDINGS):
            found.setdefault(name.rpartition(".")[0], file)
            files_found += 1
    if job.format == "shots":
        told: Iterator[Procedure] = (Procedure(name, "", "", [], []) for name in sorted(found))
    else:
        told = read_procedures(run.sources["annotations"][0].path, job.format)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    named = set[str]()
    unknown = Counter[str]()
    for procedure in told:
        for key in (" ".join(cleaned(key).split())[:MAX_KEY] for key in procedure.unknown):
            unknown[key if key in unknown or len(unknown) < MAX_KEYS else OTHER_KEYS] += 1
        again = procedure.video in named
        named.add(procedure.video)
        row = _listed(procedure._replace(error=TWICE) if again else procedure, found.get(procedure.video))
        group = groups[row["split"]]
        group.append(row)
        if len(group) == job.unit_rows:
            _write_group(groups.pop(row["split"]), output)
    for group in groups.values():
        _write_group(group, output)
    output.counters.update({"unnamed": len(found.keys() - named), "namesakes": files_found - len(found)})
    output.counters.update({UNKNOWN + key: count for key, count in unknown.items()})
    output.begin(LISTED)


def _listed(procedure: Procedure, file: listing.File | None) -> dict[str, Any]:
    split = SPLITS.get(procedure.subset, procedure.subset) or TRAIN
    row = dict.fromkeys(LISTED.names, "") | {
        "video": procedure.video,
        "task": procedure.task,
        "split": split if NAME.fullmatch(split) else TRAIN,
        "segments": json.dumps(procedure.segments),
        "wrong": json.dumps(procedure.wrong),
    }
    if procedure.error:
        return row | dict(zip(("error", "message"), procedure.error, strict=True))
    if file is None:
        return row | {"error": "FileNotFoundError", "message": "the folder has no video of that name"}
    return row | {"path": file.path, "stamp": file.stamp}


def _write_group(rows: list[dict[str, Any]], output: Output) -> None:
    output.write(pa.Table.from_pylist(rows, LISTED))
    output.notes.append(Group(digest(rows), len(rows), rows[0]["split"]))


@dataclasses.dataclass(frozen=True)
class PackVideos:
    """The job of `write_shard`.

    Args:
        unit: row group of the list.
        listed: digest of its rows.
        format: where clips come from.
        decode: limits on videos.
        shots: where they are cut.
        poster: longer side of the picture.
        row_group: most videos in a row group.
        max_unreadable: share of the unit for which connections or permissions may fail, see `check_lost`.
    """

    unit: int
    listed: str
    format: VideoFormat
    decode: VideoLimits
    shots: Shots
    poster: int
    row_group: int
    max_unreadable: float = undigested(1.0)


@dataclasses.dataclass(frozen=True)
class ReadVideo:
    """What a row of the list led to: a sample, or why there is none, and what was lost of its clips."""

    row: dict[str, Any]
    sample: dict[str, Any] | None
    reason: str = ""
    message: str = ""
    lost_clips: tuple[tuple[str, str, str], ...] = ()

    @property
    def lost(self) -> bool:
        """Whether a connection or a permission failed, which says nothing about what the file holds."""
        return self.reason in OUTAGES


def write_shard(run: Run, job: PackVideos, output: Output) -> None:
    """Pack the videos of one unit; what is lost is noted with its reason, and the rest goes on.

    Raises:
        TooManyUnreadable: connections or permissions failed for too many of the files, see `check_lost`.
    """
    groups = RowGroups(output, schema.arrow_schema(video_features()), job.row_group)
    rows = read_table(run.parts("videos")[0], group=job.unit).to_pylist()
    for read in check_lost((_read(run, row, job) for row in rows), job.max_unreadable, output.counters):
        uri, kept = f"videos/{read.row['path'] or read.row['video']}", read.sample is not None
        output.counters["files"] += 1
        output.counters["kept" if kept else "dead"] += 1
        if read.sample is not None:
            output.counters.update({"clips": len(read.sample["clips"]), "frames": read.sample["frames"]})
            groups.add(read.sample, len(read.sample["video"]["bytes"]))
        else:
            output.notes.append([uri, "", read.reason, read.message])
        output.counters["clips lost"] += len(read.lost_clips)
        output.notes.extend([uri, *lost] for lost in read.lost_clips)
    groups.close()


def _read(run: Run, row: dict[str, Any], job: PackVideos) -> ReadVideo:
    """Read and decode the video of a row, all of it."""
    if row["error"]:
        return ReadVideo(row, None, row["error"], row["message"])
    look = Look(job.poster)
    try:
        data = files.read_file(files.join(run.sources["videos"][0].path, row["path"]), job.decode.max_bytes)
        facts = facts_of(data, job.decode, look)
    except DecodeError as error:
        return ReadVideo(row, None, error.kind, str(error))
    except OSError as error:
        return ReadVideo(row, None, *failure(error))
    wrong = [(f"step {place + 1}", NO_TIME, text) for place, text in enumerate(json.loads(row["wrong"]))]
    segments = [Segment(*values) for values in json.loads(row["segments"])]
    if job.format == "shots":
        starts = cuts(changes(look.histograms), facts.times, job.shots)
        bounds = [*(float(facts.times[start]) for start in starts), facts.seconds]
        segments = [Segment(start, end, "", "") for start, end in itertools.pairwise(bounds)]
    clips, outside = clips_of(segments, facts)
    if not clips:
        return ReadVideo(row, None, "NoClips", "; ".join(text for *_, text in (*wrong, *outside)) or "it has no clip")
    return ReadVideo(row, _sample(row, data, facts, clips, look), lost_clips=(*wrong, *outside))


class Look:
    """Sees every frame once: its colours, and of the first one a small picture."""

    def __init__(self, side: int) -> None:
        self.side, self.histograms = side, list[Histogram]()
        self.poster = b""

    def __call__(self, frame: Frame) -> None:
        """Look at the next frame."""
        self.histograms.append(colours(frame.small(SIDE, SIDE)))
        if not self.poster:
            picture, file = frame.image(), io.BytesIO()
            picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
            picture.save(file, "JPEG", quality=90)
            self.poster = file.getvalue()


def clips_of(segments: list[Segment], facts: Facts) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """Return the clips with their first frame and number of frames, and (part, error, message) of those that are lost.

    A clip that ends after its video is cut short; one that shows no frame is lost.

    Args:
        segments: from start to end in seconds.
        facts: of the video.
    """
    clips, lost = [], []
    for place, segment in enumerate(segments):
        end = min(segment.end, facts.seconds)
        first, last = (int(np.searchsorted(facts.times, time)) for time in (segment.start, end))
        if first < last:
            told = {**segment._asdict(), "end": end}
            clips.append(told | {"first": first, "frames": last - first})
        else:
            times = f"{segment.start:.2f} to {segment.end:.2f} s of {facts.seconds:.2f}"
            lost.append((f"clip {place + 1}", OUTSIDE, f"no frame is shown from {times}"))
    return clips, lost


def _sample(row: dict[str, Any], data: bytes, facts: Facts, clips: list[dict[str, Any]], look: Look) -> dict[str, Any]:
    path = unescape(row["path"])
    return {
        "id": hashlib.sha256(data).hexdigest()[:32],
        "image": {"bytes": look.poster, "path": path.rsplit("/", 1)[-1].rpartition(".")[0] + ".jpg"},
        "width": facts.width,
        "height": facts.height,
        "label": row["task"] or None,
        "captions": list(dict.fromkeys(clip["label"] for clip in clips if clip["label"])),
        "source": {"name": "videos", "uri": f"videos/{row['path']}"},
        "video": {"bytes": data, "path": path.rsplit("/", 1)[-1]},
        "name": row["video"],
        "codec": facts.codec,
        "frames": facts.frames,
        "seconds": facts.seconds,
        "times": facts.times.tolist(),
        "clips": clips,
        "split": row["split"],
    }


@dataclasses.dataclass(frozen=True)
class WriteLedger:
    """The job of `write_ledger`.

    Args:
        unit: number of the shard.
        shard: its digest.
    """

    unit: int
    shard: str


def write_ledger(run: Run, job: WriteLedger, output: Output) -> None:
    """Write one row per video of a unit: kept or dead, and why."""
    dead = {uri: f"{error}: {message}" for uri, part, error, message in notes_of(run, job.unit) if not part}
    kept = {}
    for table in read_groups(image_shards(run)[job.unit], ["id", "source", "video"]):
        for batch in table.to_batches(max_chunksize=1):  # one video is held at a time
            (row,) = batch.to_pylist()
            kept[row["source"]["uri"]] = {"id": row["id"], "sha256": hashlib.sha256(row["video"]["bytes"]).hexdigest()}
    rows = []
    for listed in read_table(run.parts("videos")[0], group=job.unit).to_pylist():
        uri = f"videos/{listed['path'] or listed['video']}"
        status, stage, reason = ("dead", "read", dead[uri]) if uri in dead else ("kept", "shards", "packed")
        decided = {"uri": uri, "role": "pool", "status": status, "stage": stage, "reason": reason}
        rows.append({**decided, **kept.get(uri, {}), "seed_ids": [], "similarities": []})
        output.counters[status] += 1
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def write_dead_letters(run: Run, job: NoJob, output: Output) -> None:
    """Collect what was lost: videos, and clips of those that were packed."""
    for unit in range(len(run.parts("shards"))):
        letters = (DeadLetter(uri, "read", error, text, part) for uri, part, error, text in notes_of(run, unit))
        dead_letters.write_dead_letters(letters, output)
    output.begin(schema.DEAD_LETTER)


def notes_of(run: Run, unit: int) -> list[tuple[str, str, str, str]]:
    """Return (uri, part, error, message) of what a unit lost."""
    marker = Marker.parse(storage.read_bytes(run.parts("shards")[unit].removesuffix(".parquet") + ".done"))
    return [(str(uri), str(part), str(error), str(text)) for uri, part, error, text in marker.notes]
