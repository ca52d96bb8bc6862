"""Put an annotation and its picture together: masks decoded, the tree repaired, every text in windows of the budget."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from granary.curation.dense import crops, masks, texts
from granary.curation.dense.packing import Counter, windows
from granary.curation.dense.recipe import MaskForm
from granary.curation.dense.schema import DescribedImage, MaskRow, WindowRow
from granary.curation.dense.tree import GOOD, UNUSABLE, Annotation, Box, Mask, Problem, link, without
from granary.curation.images.decode import decode
from granary.curation.images.limits import DecodeLimits

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
        problems: what was lost or corrected, of the reading too.
    """

    annotation: Annotation
    masks: Mapping[str, Mask]
    description: str
    sha256: str
    width: int
    height: int
    problems: list[Problem]


def assemble(annotation: Annotation, picture: bytes, limits: DecodeLimits) -> Assembled:
    """Decode a picture and the masks over it.

    A mask whose pixels cannot be read is lost, its children move up; whatever is lost is in `problems`.

    Args:
        annotation: of the picture.
        picture: its file, as it is.
        limits: under which it is decoded.

    Raises:
        DecodeError: it is not a picture.
    """
    decoded = decode(picture, limits, SIDE)  # to its end, at a scale that JPEG gives away: it may break off
    linked, problems = link(annotation.masks)
    readable, lost = _decoded(linked, decoded.width, decoded.height, annotation.relative)
    left = without({key: readable.get(key, mask) for key, mask in linked.items()}, linked.keys() - readable.keys())
    silent = [
        Problem(key, "EmptyText", "nothing is said of the mask")
        for key, mask in left.items()
        if mask.quality == GOOD and not texts.mask_text(mask)
    ]
    return Assembled(
        annotation,
        left,
        texts.full_description(annotation, left),
        hashlib.sha256(picture).hexdigest(),
        decoded.width,
        decoded.height,
        [*annotation.problems, *problems, *lost, *silent],
    )


def _decoded(
    linked: Mapping[str, Mask], width: int, height: int, relative: bool
) -> tuple[dict[str, Mask], list[Problem]]:
    """Return the masks whose pixels can be read, and what was lost of these and of the others."""
    readable: dict[str, Mask] = {}
    problems: list[Problem] = []
    for key, mask in linked.items():
        try:
            readable[key], differences = masks.decode_pixels(mask, width, height, relative)
            problems += differences
        except ValueError as error:
            problems.append(Problem(key, "InvalidMask", str(error)))
    return readable, problems


def image_row(assembled: Assembled, counter: Counter, grow: float, form: MaskForm) -> DescribedImage:
    """Return the row of config `default` but for the picture, see `schema.image_features`.

    Args:
        assembled: the annotation and its masks.
        counter: of the budget.
        grow: share by which the boxes of masks grow.
        form: of the masks: rle or png.
    """
    annotation, masks_of_image = assembled.annotation, assembled.masks.values()
    captions = annotation.summaries.get("base") or [annotation.short_caption]
    return {
        "id": assembled.sha256[:32],
        "width": assembled.width,
        "height": assembled.height,
        "captions": [caption for caption in captions if caption],
        "file": annotation.file,
        "split": annotation.split,
        "short_caption": annotation.short_caption,
        "extra_caption": annotation.extra_caption,
        "description": assembled.description,
        "words": texts.words(assembled.description),
        "tokens": counter([assembled.description])[0],
        "unit": counter.unit,
        "depth": max((mask.depth for mask in masks_of_image), default=0),
        "masks": [_mask_row(mask, assembled, form) for mask in masks_of_image],
        "texts": _windows(assembled, counter, grow),
    }


def _mask_row(mask: Mask, assembled: Assembled, form: MaskForm) -> MaskRow:
    return {
        "key": mask.key,
        "parent": mask.parent,
        "children": list(mask.children),
        "depth": mask.depth,
        "label": mask.label,
        "caption": mask.caption,
        "quality": mask.quality,
        "box": list(mask.box or ()),
        "area": mask.area or 0,
        **masks.stored(mask, assembled.width, assembled.height, form),
    }


def _windows(assembled: Assembled, counter: Counter, grow: float) -> list[WindowRow]:
    """Return each text in windows: those of the whole image, then of each mask, each tied to its crop."""
    return [
        {"part": part, "window": number, "text": window.text, "tokens": window.tokens, "box": list(box)}
        for part, text, box in _parts(assembled, grow)
        for number, window in enumerate(windows(text, counter))
    ]


def _parts(assembled: Assembled, grow: float) -> Iterator[tuple[str, str, Box]]:
    """Yield part, text and crop of the whole image, then of each mask that can be used."""
    annotation = assembled.annotation
    whole = "\n".join(filter(None, (annotation.short_caption, annotation.extra_caption)))
    yield "base", whole, (0, 0, assembled.width, assembled.height)
    for mask in assembled.masks.values():
        if mask.quality < UNUSABLE and mask.box:
            box = crops.grown(mask.box, assembled.width, assembled.height, grow)
            yield mask.key, texts.own_description(mask), box


def masks_of(rows: Sequence[MaskRow]) -> dict[str, Mask]:
    """Return the masks of a row of config `default` by key, without their pixels."""
    return {row["key"]: _mask_of(row) for row in rows}


def _mask_of(row: MaskRow) -> Mask:
    x0, y0, x1, y1 = row["box"]
    return Mask(
        row["key"],
        row["parent"],
        tuple(row["children"]),
        row["label"],
        row["caption"],
        row["quality"],
        box=(x0, y0, x1, y1),
        area=row["area"],
        depth=row["depth"],
    )
