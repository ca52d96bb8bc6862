"""Boxes and masks of what an instruction names in a picture, and nothing where it is not there.

After RefCOCO, gRefCOCO (arXiv 2306.00968) and VistaLLM (arXiv 2312.12423). Masks are compared with the masks of the
data; VistaLLM's published program compares them with the polygon of the truth, which hides what the points lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from granary.training.data.bins import mask_of, parsed, points_of
from granary.training.data.instructions import Coding
from granary.training.evaluation.davis import Mask
from granary.training.evaluation.instructed import InstructedOptions, Replies, Reply, Size
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.referring import Answer, Boxes, box_f1, mask_scores
from granary.training.evaluation.scores import Scores

NOTES = (
    "box.accuracy: of things that are there, all boxes above IoU 0.5 of one of the truth each, and none too many.",
    "mask.miou, mask.ciou: with the masks of the data; mask.polygon_miou: with their polygons of as many points.",
    "permuted: the same questions about the picture of another row, counted against the first row's truth.",
)


def evaluate(measured: Measured, options: InstructedOptions) -> Scores:
    """Ask for boxes and masks; without a split all rows are taken.

    Returns:
        box.accuracy and mask.miou of what is there, with mask.ciou, giou, precision and polygon_miou; no_target, how
        often what is not there is recognised, with box.no_target and mask.no_target; box.target and mask.target, how
        often something is answered where it is; `.permuted` of the first three; unreadable, the share of answers in no
        right form; the numbers of instructions and rows. None for what there is no instruction of.
    """
    asked = Replies(measured, options, "the protocol referring", "data", lambda one: one.form in ("box", "mask"))
    replies = list(asked.all())
    boxes, masks = ([one for one in replies if one.instruction.form == form] for form in ("box", "mask"))
    own, other = (_scores(boxes, masks, asked.coding, text) for text in (_own, _other))
    main = {f"{name}.permuted": other.get(name) for name in ("box.accuracy", "mask.miou", "no_target")}
    counts = {"instructions": len(replies), "instructions.box": len(boxes), "instructions.mask": len(masks)}
    return Scores({**own, **main, **counts, **asked.counts()}, settings={"dead": asked.dead})


PROTOCOL = Protocol(evaluate, InstructedOptions, batch=64, notes=NOTES)
Text = Callable[[Reply], str | None]


def _own(reply: Reply) -> str | None:
    return reply.text


def _other(reply: Reply) -> str | None:
    return reply.other


def _scores(boxes: Sequence[Reply], masks: Sequence[Reply], coding: Coding, text: Text) -> dict[str, float | None]:
    """Return the scores of answers; nothing where there are none."""
    told = [(one, said) for one in boxes if (said := text(one)) is not None]
    drawn = [(one, said) for one in masks if (said := text(one)) is not None]
    answers = [(one, boxes_of(said, one.sizes[0], coding)) for one, said in told]
    regions = [_answer(one, said, coding) for one, said in drawn]
    of_boxes = [one for one, _ in told]
    right = [float(found is not None and box_f1(found, _truth(one)) == 1) for one, found in answers]
    there = [bool(one.instruction.targets) for one in of_boxes]
    empty = [found is not None and not len(found) for _, found in answers]
    recognised = [e for e, t in zip(empty, there, strict=True) if not t]
    recognised_masks = [r.readable and not r.mask.any() for r in regions if not r.truth.any()]
    broken = [found is None for _, found in answers] + [not region.readable for region in regions]
    polygons = [
        region._replace(truth=_drawn([coding.mask(t) for t in one.instruction.targets], one.sizes[0], coding))
        for (one, _), region in zip(drawn, regions, strict=True)
        if one.instruction.targets
    ]
    of_masks = {name: _known(value) for name, value in (mask_scores(regions) if regions else {}).items()}
    return {
        "box.accuracy": _mean(r for r, t in zip(right, there, strict=True) if t),
        "box.no_target": _mean(recognised),
        "box.target": _mean(not e for e, t in zip(empty, there, strict=True) if t),
        "mask.miou": of_masks.pop("targets_miou", None),
        **{f"mask.{name}": value for name, value in of_masks.items()},
        "mask.polygon_miou": _known(mask_scores(polygons)["targets_miou"]) if polygons else None,
        "no_target": _mean([*recognised, *recognised_masks]),
        "unreadable": _mean(broken),
    }


def boxes_of(text: str, size: Size, coding: Coding) -> Boxes | None:
    """Return the boxes (N, 4) of an answer in pixels of a picture, sides in order; None where it cannot be read."""
    items = parsed(text, "box", bins=coding.bins)
    if items is None:
        return None
    corners = [np.sort(points_of(item, *size, coding.bins), axis=0).ravel() for item in items]
    return np.reshape(np.array(corners, np.float64), (-1, 4))


def _truth(reply: Reply) -> Boxes:
    return np.reshape(np.array([target.box for target in reply.instruction.targets], np.float64), (-1, 4))


def _answer(reply: Reply, text: str, coding: Coding) -> Answer:
    size = reply.sizes[0]
    items = parsed(text, "mask", coding.points, coding.bins)
    return Answer(
        _drawn(items or [], size, coding), union([t.mask for t in reply.instruction.targets], size), items is not None
    )


def _drawn(items: Iterable[Sequence[int]], size: Size, coding: Coding) -> Mask:
    return mask_of(items, *size, coding.bins)


def union(masks: Iterable[Mask], size: Size) -> Mask:
    """Return the mask (height, width) that some masks of a picture cover together."""
    whole = np.zeros((size[1], size[0]), bool)
    for mask in masks:
        whole |= mask
    return whole


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
