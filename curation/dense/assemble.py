"""Put an annotation and its picture together: masks decoded, the tree mended, every text in windows of the budget."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from granary.curation.dense import crops, masks, texts
from granary.curation.dense.packing import Counter, windows
from granary.curation.dense.recipe import MaskForm
from granary.curation.dense.rows import ImageRow, MaskRow, WindowRow, box_of
from granary.curation.dense.tree import GOOD, UNUSABLE, Annotation, Mask, Problem, link, without
from granary.curation.images.decode import DecodeLimits, decode

SIDE = 64


@dataclass(frozen=True)
class Assembled:
    """An annotation whose pixels were looked at.

    Args:
        annotation: as read.
        masks: linked and decoded, in file order.
        description: everything said of the image.
        sha256: of the picture, hex.
        width, height: of the picture, upright.
        problems: what was lost or mended, of the reading too.
    """

    annotation: Annotation
    masks: Mapping[str, Mask]
    description: str
    sha256: str
    width: int
    height: int
    problems: list[Problem]


def assemble(annotation: Annotation, picture: bytes, limits: DecodeLimits) -> Assembled:
    """Decode a picture and the masks over it; raises DecodeError when it is no picture.

    A mask whose pixels cannot be read is lost, its children move up; whatever is lost is in `problems`.
    """
    decoded = decode(picture, limits, SIDE)  # to its end, at a scale that JPEG gives away: it may break off
    linked, problems = link(annotation.masks)
    found: dict[str, Mask] = {}
    for key, mask in linked.items():
        try:
            found[key], differences = masks.decode_pixels(mask, decoded.width, decoded.height, annotation.relative)
            problems += differences
        except ValueError as error:
            problems.append(Problem(key, "InvalidMask", str(error)))
    left = without({key: found.get(key, mask) for key, mask in linked.items()}, linked.keys() - found.keys())
    problems += [
        Problem(key, "EmptyText", "nothing is said of the mask")
        for key, mask in left.items()
        if mask.quality == GOOD and not texts.mask_text(mask)
    ]
    description = texts.full_description(annotation, left)
    sha256 = hashlib.sha256(picture).hexdigest()
    return Assembled(
        annotation, left, description, sha256, decoded.width, decoded.height, [*annotation.problems, *problems]
    )


def image_row(found: Assembled, counter: Counter, grow: float, form: MaskForm) -> ImageRow:
    """Return the row of config `default` but for the picture, see `schema.image_features`.

    Args:
        found: the annotation and its masks.
        counter: of the budget.
        grow: share by which the boxes of masks grow.
        form: of the masks: rle or png.
    """
    annotation, kept = found.annotation, found.masks
    captions = annotation.summaries.get("base") or [annotation.short_caption]
    return {
        "id": found.sha256[:32],
        "width": found.width,
        "height": found.height,
        "captions": [caption for caption in captions if caption],
        "file": annotation.file,
        "split": annotation.split,
        "short_caption": annotation.short_caption,
        "extra_caption": annotation.extra_caption,
        "description": found.description,
        "words": texts.words(found.description),
        "tokens": counter([found.description])[0],
        "unit": counter.unit,
        "depth": max((mask.depth for mask in kept.values()), default=0),
        "masks": [_mask_row(mask, found, form) for mask in kept.values()],
        "texts": _windows(found, counter, grow),
    }


def _mask_row(mask: Mask, found: Assembled, form: MaskForm) -> MaskRow:
    return {
        "key": mask.key,
        "parent": mask.parent,
        "children": list(mask.children),
        "depth": mask.depth,
        "label": mask.label,
        "caption": mask.caption,
        "quality": mask.quality,
        "box": list(mask.box or ()),
        "area": mask.area,
        **masks.stored(mask, found.width, found.height, form),
    }


def _windows(found: Assembled, counter: Counter, grow: float) -> list[WindowRow]:
    """Return each text in windows: those of the whole image, then of each mask, each tied to its crop."""
    annotation = found.annotation
    whole = "\n".join(filter(None, (annotation.short_caption, annotation.extra_caption)))
    parts = [("base", whole, (0, 0, found.width, found.height))]
    for mask in found.masks.values():
        if mask.quality < UNUSABLE and mask.box:
            box = crops.grown(mask.box, found.width, found.height, grow)
            parts.append((mask.key, texts.own_description(mask), box))
    return [
        {"part": part, "window": number, "text": window.text, "tokens": window.tokens, "box": list(box)}
        for part, text, box in parts
        for number, window in enumerate(windows(text, counter))
    ]


def masks_of(row: ImageRow) -> dict[str, Mask]:
    """Return the masks of a row of config `default`, without their pixels."""
    return {
        mask["key"]: Mask(
            mask["key"],
            mask["parent"],
            tuple(mask["children"]),
            mask["label"],
            mask["caption"],
            mask["quality"],
            box=box_of(mask["box"]),
            area=mask["area"],
            depth=mask["depth"],
        )
        for mask in row["masks"]
    }
