"""What is asked of pictures in the column `instructions` of a run, and how its answers are written with a vocabulary.

The column has coordinates as numbers, see `granary.curation.instructions.schema`; how many bins a coordinate has, how
many points a mask, and which points of an outline these are, is said here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from granary.curation.dense import rle
from granary.curation.errors import UserError
from granary.curation.store.sampling import priority
from granary.training.data import shards
from granary.training.data.bins import bins_of, picture_token, written
from granary.training.data.collate import Part
from granary.training.data.contours import SAMPLERS, Mask, outlines, padded
from granary.training.method import Moment

Form = Literal["text", "box", "mask", "group"]
COLUMN = "instructions"


class Target(NamedTuple):
    """A thing that an answer points at.

    Args:
        picture: number of its picture.
        box: left, top, right, bottom in pixels, right and bottom exclusive.
        size: width and height of the picture.
        counts: COCO run lengths of its mask; None where there is none.
    """

    picture: int
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    counts: str | None

    @property
    def mask(self) -> Mask:
        """The mask (height, width). Raises ValueError where there is none, or it is damaged or empty."""
        return rle.mask_of(self.lengths, self.size[1], self.size[0])

    @property
    def lengths(self) -> rle.Lengths:
        """The run lengths of the mask. Raises ValueError as `mask`."""
        if self.counts is None:
            raise ValueError("there is no mask")
        lengths, *_ = rle.read({"size": self.size[::-1], "counts": self.counts})
        if not rle.area(lengths):
            raise ValueError("the mask is empty")
        return lengths


class Instruction(NamedTuple):
    """A question, the form of its answer, the answer where it is a text, and what it points at where it is not."""

    task: str
    form: Form
    question: str
    answer: str
    targets: tuple[Target, ...]


class Coding(NamedTuple):
    """How answers are written.

    Args:
        bins: of a coordinate.
        points: of a mask.
        sampler: which points of an outline, of `SAMPLERS`.
    """

    bins: int
    points: int
    sampler: str

    def answer(self, instruction: Instruction) -> str:
        """Return an answer as text: of several pictures each number followed by its masks, nothing where is nothing."""
        form, targets = instruction.form, instruction.targets
        if form == "text":
            return instruction.answer
        if form == "box":
            return written("box", [self.box(target) for target in targets])
        masks = {target: self.mask(target) for target in targets}
        if form == "mask":
            return written("mask", masks.values())
        shown = sorted({target.picture for target in targets})
        return "".join(
            picture_token(n) + written("mask", [masks[target] for target in targets if target.picture == n])
            for n in shown
        )

    def box(self, target: Target) -> list[int]:
        """Return the four bins of a box."""
        return bins_of(np.reshape(target.box, (2, 2)), *target.size, self.bins)

    def mask(self, target: Target) -> list[int]:
        """Return the bins of the points of a mask, of its largest part alone."""
        outline = outlines(target.mask)[0]
        kept, _ = padded(outline[SAMPLERS[self.sampler](outline, self.points)], self.points)
        return bins_of(kept, *target.size, self.bins)


def instructions_of(cell: Sequence[Any] | None) -> list[Instruction]:
    """Return what a cell asks; what lacks a question, an answer or a form, or points nowhere, is left out."""
    return [one for value in cell or () if isinstance(value, Mapping) and (one := _instruction(value)) is not None]


def _instruction(value: Mapping[str, Any]) -> Instruction | None:
    form, question, answer = (str(value.get(key) or "").strip() for key in ("form", "question", "answer"))
    if form not in get_args(Form) or not question or (form == "text" and not answer):
        return None
    try:
        targets = tuple(_target(target) for target in value.get("targets") or ())
        for target in targets if form in ("mask", "group") else ():
            target.lengths  # noqa: B018 - damaged ones raise
    except (TypeError, ValueError, KeyError):
        return None
    return Instruction(str(value.get("task") or form), form, question, answer, targets)  # type: ignore[arg-type]


def _target(value: Mapping[str, Any]) -> Target:
    (left, top, right, bottom), (height, width) = map(float, value["box"]), map(int, value["size"])
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"the box {value['box']} is not inside its picture")
    return Target(int(value["picture"] or 0), (left, top, right, bottom), (width, height), value["counts"])


def draw_instructions(batch: Part, moment: Moment, tasks: Collection[str] = ()) -> list[Instruction | None]:
    """Draw an instruction for each row by (seed, step, id): a task that it has, each alike, then one of it.

    Args:
        batch: with `instructions` and `id`.
        moment: of the run.
        tasks: that are drawn from; none are all.

    Returns:
        None for a row of which nothing is asked.
    """
    drawn: list[Instruction | None] = []
    for place, number in enumerate(priority(moment.seed, list(batch["id"]), f"asked/{moment.step}").tolist()):
        of_task: dict[str, list[Instruction]] = {}
        for one in instructions_of(batch[COLUMN][place]):
            if not tasks or one.task in tasks:
                of_task.setdefault(one.task, []).append(one)
        if of_task:
            chosen = of_task[sorted(of_task)[number % len(of_task)]]
            drawn.append(chosen[number // len(of_task) % len(chosen)])
        else:
            drawn.append(None)
    return drawn


def asked_corpus(datasets: Sequence[shards.Dataset], tasks: Collection[str] = ()) -> Iterator[str]:
    """Yield all questions, and the answers that are texts, row groups in an order drawn by hash.

    Raises:
        UserError: there is none at all.
    """
    groups, any_text = [group for dataset in datasets for group in dataset.groups], False
    for place in priority(0, range(len(groups)), "corpus").argsort():
        for cell in shards.read_group(groups[place], [COLUMN])[COLUMN].to_pylist():
            for one in instructions_of(cell):
                if not tasks or one.task in tasks:
                    any_text = True
                    yield from (text for text in (one.question, one.answer) if text)
    if not any_text:
        paths = ", ".join(dataset.path for dataset in datasets)
        raise UserError(
            f"data: nothing is asked in the column {COLUMN} of {paths}; granary pack --format {COLUMN} does"
        )
