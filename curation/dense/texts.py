"""What is said of an image and of a mask, in the words of DCI (Urbanek et al., arXiv 2312.08578)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from granary.curation.dense.tree import DULL, GOOD, Annotation, Mask, descendants

ALSO = "The following can also be seen in the image:"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def cleaned(text: str) -> str:
    """Return a text without control characters and halves of surrogate pairs, which become spaces, and trimmed.

    Line feeds and tabs stay, and so do the marks that right-to-left scripts need.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (CONTROL.sub(" ", text) if CONTROL.search(text) else text).strip()


def words(text: str) -> int:
    """Return the number of words: runs of characters between white space."""
    return len(text.split())


def mask_text(mask: Mask) -> str:
    """Return what a mask adds to the description of an image: "label: caption", the label alone when it is dull."""
    if mask.quality > DULL:
        return ""
    parts = [mask.label, mask.caption if mask.quality == GOOD else ""]
    return ": ".join(part for part in parts if part)


def own_description(mask: Mask) -> str:
    """Return what is said of a mask itself, as a sentence; "" when it is unusable or nothing is said."""
    if mask.quality > DULL:
        return ""
    caption = mask.caption if mask.quality == GOOD else ""
    return f"This is an image of {mask.label}. {caption}".strip() if mask.label else caption


def full_description(annotation: Annotation, masks: Mapping[str, Mask]) -> str:
    """Return everything said of an image, the texts of its masks in file order."""
    return _with([annotation.short_caption, annotation.extra_caption], [mask_text(mask) for mask in masks.values()])


def mask_description(masks: Mapping[str, Mask], key: str) -> str:
    """Return everything said of a mask and of what lies in it; "" when nothing is said of the mask itself."""
    description = own_description(masks[key])
    return _with([description], [mask_text(mask) for mask in descendants(masks, key)]) if description else ""


def _with(first: list[str], seen: list[str]) -> str:
    lines, seen = [line for line in first if line], [line for line in seen if line]
    return "\n".join([*lines, ALSO, *seen] if seen else lines)
