"""Which of several pictures show something, and where: attribute-level co-segmentation, AttCoSeg (arXiv 2312.12423).

The data are the config `groups` of `granary pack --format instructions`. VistaLLM does not say its metrics in detail:
here a choice is right where the pictures that are named are exactly those that show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from granary.training.data.bins import mask_of, parsed_group
from granary.training.data.instructions import Coding
from granary.training.evaluation.davis import region_similarity
from granary.training.evaluation.instructed import InstructedOptions, Replies, Reply
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.protocols.referring import union
from granary.training.evaluation.scores import Scores

NOTES = (
    "choice: the pictures named are exactly those that show it; chance: of as many pictures drawn at random.",
    "miou: of the masks in pictures that show it, 0 where one is not named; permuted: the same questions about the "
    "pictures of another row.",
)


def evaluate(measured: Measured, options: InstructedOptions) -> Scores:
    """Ask which pictures show something; without a split all rows are taken.

    Returns:
        choice with `.permuted` and `.chance`; precision and recall of the pictures named; miou with `.permuted`;
        unreadable, the share of answers in no right form; the numbers of instructions and rows.
    """
    asked = Replies(measured, options, "the protocol cosegmentation", "groups", lambda one: one.form == "group")
    replies = list(asked.all())
    own, other = (_scores(replies, asked.coding, text) for text in (lambda one: one.text, lambda one: one.other))
    chances = [1 / math.comb(len(one.sizes), len({t.picture for t in one.instruction.targets})) for one in replies]
    main: dict[str, float | None] = {f"{name}.permuted": other.get(name) for name in ("choice", "miou")}
    main["choice.chance"] = _mean(chances)
    return Scores({**own, **main, "instructions": len(replies), **asked.counts()}, settings={"dead": asked.dead})


PROTOCOL = Protocol(evaluate, InstructedOptions, batch=32, notes=NOTES)


def _scores(replies: Sequence[Reply], coding: Coding, text: Callable[[Reply], str | None]) -> dict[str, float | None]:
    """Return the scores of answers; nothing where there are none."""
    told = [(one, parsed_group(said, coding.points, coding.bins)) for one in replies if (said := text(one)) is not None]
    if not told:
        return {}
    shown = [{target.picture for target in one.instruction.targets} for one, _ in told]
    named = [set(masks or ()) for _, masks in told]
    both = [len(one & other) for one, other in zip(shown, named, strict=True)]
    right = [masks is not None and n == s for (_, masks), n, s in zip(told, named, shown, strict=True)]
    return {
        "choice": _mean(right),
        "precision": sum(both) / max(1, sum(map(len, named))),
        "recall": sum(both) / max(1, sum(map(len, shown))),
        "miou": _mean(iou for (one, masks) in told for iou in _ious(one, masks or {}, coding)),
        "unreadable": _mean(masks is None for _, masks in told),
    }


def _ious(reply: Reply, masks: dict[int, list[list[int]]], coding: Coding) -> Iterable[float]:
    """Yield the IoU in each picture that shows it."""
    for picture in sorted({target.picture for target in reply.instruction.targets}):
        size = reply.sizes[picture]
        truth = union([t.mask for t in reply.instruction.targets if t.picture == picture], size)
        yield region_similarity(mask_of(masks.get(picture, []), *size, coding.bins), truth)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
