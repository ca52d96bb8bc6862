"""An annotated image in memory, whatever format it came in, and its tree of masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from granary.curation.dense.rle import Lengths
from granary.curation.store.language import MessageRow, PollRow, QuestionRow

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 are exclusive
GOOD, DULL, UNUSABLE = 0, 1, 2  # mask_quality of DCI: texts are label and caption, label alone, none


class InvalidAnnotation(Exception):
    """Nothing of an annotation can be used.

    Args:
        kind: short class name, for tables.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Problem:
    """A part of an annotation that was lost or corrected.

    Args:
        part: key of a mask, name of a field, or "".
    """

    part: str
    error: str
    message: str


@dataclass(frozen=True)
class Png:
    """The pixels of a mask as a picture, unread.

    Args:
        data: base64 of a PNG of the size of the image, or its data URL.
    """

    data: object = field(repr=False)


@dataclass(frozen=True)
class RunLengths:
    """The pixels of a mask in COCO's code, unread.

    Args:
        code: {"size": [height, width], "counts": text or numbers}.
    """

    code: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True)
class Polygons:
    """The pixels of a mask as outlines, unread.

    Args:
        outlines: a list of [x, y, x, y, ...].
    """

    outlines: object = field(repr=False)


@dataclass(frozen=True)
class Mask:
    """A region of the image and what is said of it.

    Args:
        key: unique in the image.
        parent: key of the mask around it, "" at the top.
        children: keys of the masks directly inside.
        label: short name; may be "".
        caption: description; may be "".
        quality: GOOD, DULL or UNUSABLE.
        pixels: as they came, nothing in them checked; None where there is only a box, and once they are decoded.
        box: bounds of the pixels; as stated until the pixels are decoded.
        area: number of pixels; as stated until they are decoded.
        lengths: the pixels as run lengths, once decoded; None for a box.
        depth: 1 at the top.
    """

    key: str
    parent: str = ""
    children: tuple[str, ...] = ()
    label: str = ""
    caption: str = ""
    quality: int = GOOD
    pixels: Png | RunLengths | Polygons | None = field(default=None, repr=False)
    box: Box | None = None
    area: int | None = None
    lengths: Lengths | None = field(default=None, repr=False, compare=False)
    depth: int = 1


@dataclass(frozen=True)
class Embedded:
    """Where a picture lies that is no file of its own.

    Args:
        path: of a Parquet file among the annotations.
        row: of it.
        column: that holds the picture.
    """

    path: str
    row: int
    column: str

    @property
    def name(self) -> str:
        """What messages and rows call the picture."""
        return f"{self.path}:{self.row}/{self.column}"


@dataclass(frozen=True)
class Annotation:
    """What people and models said of one image.

    Args:
        file: name of the annotation, for example `112956-data.json` or `captions.jsonl:17`.
        image: file name of the picture.
        also: further file names that the picture may have, tried in turn.
        masks: by key, in file order.
        relative: whether boxes are in thousandths of width and height instead of pixels.
        short_caption, extra_caption: of the whole image: one or two sentences, and the rest.
        split: train, valid, test or "".
        summaries: short texts by entry key ("base", "m-IDX-sc"), the first one first.
        negatives: texts that do not describe the entry, by entry key and kind (basic, layout, swaps).
        scores: logits by entry key and name ("sum", "basic_0", ...).
        questions, polls, messages: what is asked and said of the picture, in file order.
        embedded: where the picture lies; None where it is a file.
        problems: what was lost or corrected in reading.
    """

    file: str
    image: str
    also: tuple[str, ...] = ()
    masks: Mapping[str, Mask] = field(default_factory=dict)
    relative: bool = False
    short_caption: str = ""
    extra_caption: str = ""
    split: str = ""
    summaries: Mapping[str, list[str]] = field(default_factory=dict)
    negatives: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    questions: Sequence[QuestionRow] = ()
    polls: Sequence[PollRow] = ()
    messages: Sequence[MessageRow] = ()
    embedded: Embedded | None = None
    problems: list[Problem] = field(default_factory=list)


def entry_key(mask: str) -> str:
    """Return the entry key of a mask with what lies in it: m-IDX-sc."""
    return f"m-{mask}-sc"


def link(masks: Mapping[str, Mask]) -> tuple[dict[str, Mask], list[Problem]]:
    """Make parents, children and depths agree.

    The parent a mask names counts; where it names none, the mask that lists it as a child. Names of masks that are
    not there are dropped: DCI leaves masks out of its files and keeps their names. A loop is cut at its last mask in
    file order, which moves to the top.

    Returns:
        The masks in the same order, and the loops that were cut.
    """
    listed = {child: mask.key for mask in reversed(list(masks.values())) for child in mask.children}
    parents = {
        key: _present(mask.parent, masks, key) or _present(listed.get(key, ""), masks, key)
        for key, mask in masks.items()
    }
    problems = []
    for key in _loops(parents):
        problems.append(Problem(key, "MaskCycle", "the mask lies inside itself; it was moved to the top"))
        parents[key] = ""
    return arranged(masks, parents), problems


def _present(parent: str, masks: Mapping[str, Mask], key: str) -> str:
    return parent if parent in masks and parent != key else ""


def _loops(parents: Mapping[str, str]) -> Iterator[str]:
    """Yield for each loop of the parents the member that comes last."""
    order = {key: place for place, key in enumerate(parents)}
    settled: set[str] = set()
    for start in parents:
        path: dict[str, None] = {}
        key = start
        while key and key not in settled and key not in path:
            path[key] = None
            key = parents[key]
        if key in path:
            members = list(path)
            yield max(members[members.index(key) :], key=order.__getitem__)
        settled |= path.keys()


def arranged(masks: Mapping[str, Mask], parents: Mapping[str, str]) -> dict[str, Mask]:
    """Return the masks with parents as given, children and depths to match; `parents` has no loop.

    Children stand in the order their parent listed them, then in file order.
    """
    children: dict[str, list[str]] = {key: [] for key in masks}
    for key, parent in parents.items():
        if parent:
            children[parent].append(key)
    depth = {"": 0}
    for key in parents:
        above = []
        while key not in depth:
            above.append(key)
            key = parents[key]
        for below in reversed(above):
            depth[below] = depth[parents[below]] + 1
    linked = {}
    for key, mask in masks.items():
        listed = {child: place for place, child in enumerate(mask.children)}
        inside = sorted(children[key], key=lambda child: listed.get(child, len(listed)))
        linked[key] = dataclasses.replace(mask, parent=parents[key], children=tuple(inside), depth=depth[key])
    return linked


def without(masks: Mapping[str, Mask], lost: Collection[str]) -> dict[str, Mask]:
    """Return linked masks without the lost ones, whose children move up to the nearest mask that is left."""
    if not lost:
        return dict(masks)
    parents = {}
    for key, mask in masks.items():
        parent = mask.parent
        while parent in lost:
            parent = masks[parent].parent
        parents[key] = parent
    left = {key: mask for key, mask in masks.items() if key not in lost}
    return arranged(left, {key: parents[key] for key in left})


def descendants(masks: Mapping[str, Mask], key: str) -> Iterator[Mask]:
    """Yield what lies inside a mask, depth first, without unusable masks and all that lies in them."""
    pending = list(reversed(masks[key].children))
    while pending:
        mask = masks[pending.pop()]
        if mask.quality < UNUSABLE:
            yield mask
            pending.extend(reversed(mask.children))
