"""The rows of packed instructions: a picture with all that is asked of it, and a group of pictures with one question.

Coordinates are numbers, in pixels of the picture: how they become tokens is a matter of the training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from granary.curation.dense.schema import ImageFile, Origin
from granary.curation.store.schema import sample_features

if TYPE_CHECKING:
    from datasets import Features
    from datasets.features.features import FeatureType

Form = Literal["text", "box", "mask", "group"]
MEANINGS = {
    "things": "what the picture shows: name, texture, position and size of each, box (x0, y0, x1, y1 in pixels, x1 and "
    "y1 exclusive), and mask as COCO run lengths, null where there is none",
    "instructions": "what is asked: task, form of the answer (text, box, mask; group: masks in those of several "
    "pictures that show it), question, answer where it is a text, and targets: picture (number), box, size (height, "
    "width) and counts of the mask; no target where nothing of the kind is there",
    "split": "as the data had it",
}


class ThingRow(TypedDict):
    """A thing in a picture, see `MEANINGS`; position and size are "" where they are not clear."""

    name: str
    texture: str
    position: str
    size: str
    box: list[int]
    counts: str | None


class TargetRow(TypedDict):
    """A thing that is asked for: number of its picture, box, size of the picture and run lengths of its mask."""

    picture: int
    box: list[int]
    size: list[int]
    counts: str | None


class InstructionRow(TypedDict):
    """A question and its answer, see `MEANINGS`."""

    task: str
    form: Form
    question: str
    answer: str
    targets: list[TargetRow]


class PictureRow(TypedDict):
    """A row of config `default`."""

    id: str
    image: ImageFile
    width: int
    height: int
    label: str | None
    captions: list[str]
    source: Origin
    split: str
    things: list[ThingRow]
    instructions: list[InstructionRow]


def instruction_feature() -> FeatureType:
    """Return the `datasets` feature of the column instructions, a list of `InstructionRow`."""
    from datasets import List, Value

    string, count = Value("string"), Value("int32")
    target = {"picture": count, "box": List(count), "size": List(count), "counts": string}
    return List({"task": string, "form": string, "question": string, "answer": string, "targets": List(target)})


def picture_features() -> Features:
    """Return the `datasets.Features` of a picture with what is asked of it, see `PictureRow`."""
    from datasets import List, Value

    string = Value("string")
    thing = {"name": string, "texture": string, "position": string, "size": string, "box": List(Value("int32"))}
    return sample_features(
        {"split": string, "things": List({**thing, "counts": string}), "instructions": instruction_feature()}
    )


def group_features() -> Features:
    """Return the `datasets.Features` of a group of pictures; `images` has them in the order that targets number them.

    The columns id, source, split and instructions are those of `picture_features`; attribute and value say what some
    of the pictures share.
    """
    from datasets import Features, Image, List, Value

    string = Value("string")
    return Features(
        {
            "id": string,
            "images": List(Image()),
            "attribute": string,
            "value": string,
            "source": {"name": string, "uri": string},
            "split": string,
            "instructions": instruction_feature(),
        }
    )
