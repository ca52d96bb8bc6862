"""Videos of rendered pictures: long runs of still frames, and a needle of a few frames that a question is about.

The pictures of a video are of one split, and none but the needle answers its question. Which are drawn depends on the
rows that have a picture and on the seed alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.runs.chosen import WriteChosen, read_chosen, rows_at, write_chosen
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run
from granary.curation.store import schema
from granary.curation.store.language import QuestionRow, VideoRow, frames_features
from granary.curation.store.sampling import hashed
from granary.synth.pug.planning import Planned, PlannedRow
from granary.synth.pug.quads import Place, places_of
from granary.synth.pug.steps import planned_of
from granary.synth.pug.texts.facts import PictureFacts, with_article
from granary.synth.pug.texts.options import VideoKind, Videos
from granary.synth.pug.texts.templates import ANSWERS, VIDEOS, fits, in_turn

STAGE = "chosen-videos"
ROWS = 100  # videos in a shard
CHOSEN = pa.schema(
    [(name, pa.string()) for name in ("id", "split", "kind", "question", "answer")]
    + [(name, pa.list_(pa.int32())) for name in ("shards", "rows", "shown", "needle")]
)


class ChosenVideo(TypedDict):
    """A video before its pictures are read.

    Attributes:
        shards, rows: where its pictures are, that of the needle first.
        shown: for each frame the number of its picture.
        needle: numbers of the frames that show the first picture.
    """

    id: str
    split: str
    kind: str
    question: str
    answer: str
    shards: list[int]
    rows: list[int]
    shown: list[int]
    needle: list[int]


class Rendered(NamedTuple):
    """A row that has a picture.

    Args:
        place: where that is.
        row: of the plan.
        facts: what language can say of it.
    """

    place: Place
    row: PlannedRow
    facts: PictureFacts


Answers = Mapping[str, Collection[str]]  # question -> all that a picture answers, "" for nothing


class Asked(NamedTuple):
    """A question about a needle, and its answer."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class ChooseVideos:
    """The job of `choose_videos`.

    Args:
        options: kinds, lengths, and how many.
    """

    options: Videos


def choose_videos(run: Run, job: ChooseVideos, output: Output) -> None:
    """Write which pictures the frames of each video show, and what is asked, those of a shard in a row group."""
    work = planned_of(run)
    write_chosen(chosen(work, places_of(run), job.options), CHOSEN, ROWS, output)


def chosen(work: Planned, places: Mapping[str, Place], options: Videos) -> Iterator[ChosenVideo]:
    """Yield the videos that are drawn; every row is asked about once before one is again.

    Args:
        work: the plan.
        places: of the rows that have a picture.
        options: of the recipe.
    """
    rows = [(work.row(place.planned), place) for place in places.values()]
    rendered = sorted((Rendered(place, row, work.facts(row)) for row, place in rows), key=lambda one: one.row.index)
    texts = {kind: [answers_of(one.facts, kind, options) for one in rendered] for kind in options.kinds}
    takes = (list(_take(work.recipe.seed, take, rendered, texts, options)) for take in itertools.count())
    every = itertools.chain.from_iterable(itertools.takewhile(bool, takes))
    yield from itertools.islice(every, options.count)


def _take(
    seed: int, take: int, rendered: Sequence[Rendered], texts: Mapping[VideoKind, Sequence[Answers]], options: Videos
) -> Iterator[ChosenVideo]:
    """Yield a video of each kind for each row that has a question and others that it cannot be asked of, as drawn."""
    of_split = defaultdict[str, list[int]](list)
    for number, one in enumerate(rendered):
        of_split[one.row.split].append(number)
    named = [(f"{kind}/{one.row.id}/{take}", kind, number) for kind in texts for number, one in enumerate(rendered)]
    for name, kind, number in sorted(named, key=lambda entry: (hashed(f"{seed}/video/{entry[0]}"), entry[0])):
        asked, needle = _drawn(texts[kind][number], f"{seed}/{name}"), rendered[number]
        if asked is None:
            continue
        others = [rendered[n] for n in of_split[needle.row.split] if asked.question not in texts[kind][n]]
        if others:
            generator = np.random.default_rng(hashed(f"{seed}/video/{name}"))
            yield _chosen(name, kind, asked, needle, others, options, generator)


def _chosen(
    name: str,
    kind: VideoKind,
    asked: Asked,
    needle: Rendered,
    others: Sequence[Rendered],
    options: Videos,
    generator: np.random.Generator,
) -> ChosenVideo:
    """Return a video whose frames show some of the other pictures, and for a while the needle."""
    picked = generator.permutation(len(others))[: options.shots]
    shown, seen = frames_of(len(picked), options, generator)
    places = [needle.place, *(others[number].place for number in picked)]
    return ChosenVideo(
        id=hashlib.sha256(f"video/{name}".encode()).hexdigest()[:32],
        split=needle.row.split,
        kind=kind,
        question=asked.question,
        answer=asked.answer,
        shards=[place.shard for place in places],
        rows=[place.row for place in places],
        shown=shown.tolist(),
        needle=seen.tolist(),
    )


def frames_of(
    shots: int, options: Videos, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw how long each shot is, and where the needle interrupts them.

    Args:
        shots: pictures beside the needle.
        options: lengths.
        generator: draws.

    Returns:
        For each frame its picture, 0 for the needle and 1 .. shots for the others in order; the frames of the needle.
    """
    rest = options.frames - options.needle
    cuts = np.sort(generator.choice(np.arange(1, rest), shots - 1, replace=False))
    lengths = np.diff([0, *cuts, rest])
    others = np.repeat(np.arange(1, shots + 1), lengths)
    start = int(generator.integers(rest + 1))
    seen = np.arange(start, start + options.needle)
    return np.insert(others, [start] * options.needle, 0), seen


def answers_of(facts: PictureFacts, kind: VideoKind, options: Videos) -> Answers:
    """Return what could be asked of a picture, and all answers: a question is clear where it has one.

    Args:
        facts: of the picture.
        kind: of the question.
        options: with its wordings.
    """
    found = defaultdict[str, set[str]](set)
    for template in options.templates.get(kind) or VIDEOS[kind]:
        found.setdefault(_filled(template, {"world": facts.world}), set())
        for thing in facts.things:
            fields = {"world": facts.world, "thing": thing.words, "colour": thing.colour, "texture": thing.texture}
            found[_filled(template, fields)].add(fields[ANSWERS[kind]])
    return {question: answers for question, answers in found.items() if question}


def _drawn(texts: Answers, draw: str) -> Asked | None:
    """Return one of the clear questions about a picture; None where there is none."""
    clear = {question: min(answers) for question, answers in texts.items() if len(answers) == 1 and answers != {""}}
    return next((Asked(question, clear[question]) for question in in_turn(clear, draw)), None)


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """Return a template with what it names; "" where that is not known."""
    known = {name: text for name, text in fields.items() if text}
    known |= {f"a_{name}": with_article(text) for name, text in known.items()}
    return template.format_map(known) if fits(template, known) else ""


def write_videos(run: Run, job: WriteChosen, output: Output) -> None:
    """Write one shard of videos, every frame the file of a picture, see `granary.curation.store.language.VideoRow`."""
    videos = read_chosen(run, STAGE, job)
    places = [list(zip(video["shards"], video["rows"], strict=True)) for video in videos]
    pictures = rows_at(run, itertools.chain.from_iterable(places), ["image"])
    shard = RowGroups(output, schema.arrow_schema(frames_features()), job.row_group)
    for video, own in zip(videos, places, strict=True):
        asked = QuestionRow(
            id=f"{video['id']}-{video['kind']}",
            kind=video["kind"],
            question=video["question"],
            answer=video["answer"],
            answers=[video["answer"]],
        )
        frames = [pictures[own[number]]["image"] for number in video["shown"]]
        row = VideoRow(id=video["id"], images=frames, questions=[asked], needle=video["needle"], split=video["split"])
        shard.add(row, sum(len(frame["bytes"]) for frame in frames))
    shard.close()
