"""The two rows of a packed run: an image with its masks and texts (config `default`), a crop with its summaries
and negatives (config `pairs`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypedDict

from granary.curation.dense.recipe import Format
from granary.curation.store.language import message_feature, poll_feature, question_feature
from granary.curation.store.schema import sample_features

if TYPE_CHECKING:
    from datasets import Features
    from datasets.features.features import FeatureType

Asked = Literal["questions", "polls", "messages"]
ASKED: Mapping[Format, Asked] = {"vqa": "questions", "gqa": "questions", "pope": "polls", "llava": "messages"}
"""The formats that ask and say things of pictures instead of describing them, and the column that these stand in."""


class ImageFile(TypedDict):
    """A picture: the bytes of its file, and the file's name."""

    bytes: bytes
    path: str


class Origin(TypedDict):
    """Where an image comes from: the name of its source, and its uri in it."""

    name: str
    uri: str


class StoredPixels(TypedDict):
    """Pixels of a mask: its height and width, and run lengths or a PNG; neither where the mask is a mere box."""

    size: list[int]
    counts: str | None
    png: bytes | None


class MaskRow(StoredPixels):
    """A mask of an image."""

    key: str
    parent: str
    children: list[str]
    depth: int
    label: str
    caption: str
    quality: int
    box: list[int]
    area: int


class WindowRow(TypedDict):
    """A window of the description of an image."""

    part: str
    window: int
    text: str
    tokens: int
    box: list[int]


class DescribedImage(TypedDict):
    """A row of config `default` but for its picture, see `image_features`."""

    id: str
    width: int
    height: int
    captions: list[str]
    file: str
    split: str
    short_caption: str
    extra_caption: str
    description: str
    words: int
    tokens: int
    unit: str
    depth: int
    masks: list[MaskRow]
    texts: list[WindowRow]


class ImageRow(DescribedImage):
    """A row of config `default`."""

    image: ImageFile
    source: Origin


class Provenance(TypedDict):
    """How a text was made."""

    engine: str
    prompt: str
    seed: int | None


class NegativeRow(Provenance):
    """A text that does not describe its entry."""

    kind: str
    text: str
    tokens: int
    score: float | None


class EntryRow(TypedDict):
    """An entry without its texts.

    Args:
        row: place of its image in the shard.
    """

    row: int
    id: str
    width: int
    height: int
    image_id: str
    parent_id: str
    file: str
    split: str
    key: str
    base: bool
    mask: str
    box: list[int]
    darkened: bool
    source: Origin


class PairRow(EntryRow):
    """A row of config `pairs` but for its picture, see `pair_features`."""

    captions: list[str]
    tokens: list[int]
    unit: str
    provenance: list[Provenance]
    negatives: list[NegativeRow]
    positive_score: float | None


def image_features(format: Format = "dci") -> Features:
    """Return the `datasets.Features` of a whole image, beside those of every sample.

    Args:
        format: of the annotations; those of `ASKED` have a column of their own.

    Returns:
        file: name of the annotation unit (file, or file:record); split: train, valid, test or what the data says.
        description: everything said of the image, masks included; short_caption, extra_caption: as annotated.
        words, tokens: of the description; unit: what `tokens` counts: tokens, or words where no tokenizer was given.
        masks: in file order. key: of the mask; parent: its key, "" at the top; children: keys of those that are
            there; depth: 1 at the top; quality: 0 good, 1 dull, 2 unusable; box: x0, y0, x1, y1 with x1, y1 exclusive;
            area: pixels; size: height, width of the mask; counts: COCO run-length code, or png: a 1-bit PNG.
        texts: the description cut into windows of the token budget, in order. part: "base" or the key of the mask a
            window speaks of; window: its number within the part; tokens: of it; box: of the crop it goes with.
        depth: of the mask tree.
    """
    from datasets import List, Value

    string, count = Value("string"), Value("int32")
    mask = {
        "key": string,
        "parent": string,
        "children": List(string),
        "depth": count,
        "label": string,
        "caption": string,
        "quality": Value("int8"),
        "box": List(count),
        "area": count,
        "size": List(count),
        "counts": string,
        "png": Value("binary"),
    }
    text = {"part": string, "window": count, "text": string, "tokens": count, "box": List(count)}
    return sample_features(
        {
            "file": string,
            "split": string,
            "short_caption": string,
            "extra_caption": string,
            "description": string,
            "words": count,
            "tokens": count,
            "unit": string,
            "depth": count,
            "masks": List(mask),
            "texts": List(text),
            **asked_features(format),
        }
    )


def asked_features(format: Format) -> dict[str, FeatureType]:
    """Return the column of what is asked or said of a picture; none for formats that describe it."""
    made: dict[Asked, Callable[[], FeatureType]] = {
        "questions": question_feature,
        "polls": poll_feature,
        "messages": message_feature,
    }
    return {ASKED[format]: made[ASKED[format]]()} if format in ASKED else {}


def pair_features() -> Features:
    """Return the `datasets.Features` of an entry of the benchmark and of contrastive training.

    Rows are in order of annotation file, then the whole image, then its masks in file order.

    Returns:
        id: of the entry, stable: 32 hex characters; image: the picture of the entry (null where crops are cut at load
            time: cut `box` out of the image `image_id` of config `default`); width, height: of the entry's picture.
        image_id: id of the whole image; parent_id: id of the entry of the nearest mask around it, or of the whole
            image; "" for the whole image itself.
        file: name of the annotation unit; key: "base" or "m-IDX-sc"; base: whether it is the whole image.
        box: x0, y0, x1, y1 of the picture in the whole image, x1 and y1 exclusive; mask: key of the mask, "" for base.
        darkened: whether pixels outside the mask were darkened.
        captions: the summaries, the first one first; tokens: of each, counted in `unit` ("tokens" or "words");
        provenance: how each caption was made.
        negatives: kind (basic, layout, swaps, ...), text, its tokens, and score: logit against the picture, or null;
            engine, prompt, seed: how it was made.
        positive_score: logit of the first summary, or null, by the model that scored the negatives.
    """
    from datasets import Features, Image, List, Value

    string, count = Value("string"), Value("int32")
    made = {"engine": string, "prompt": string, "seed": Value("int64")}
    negative = {"kind": string, "text": string, "tokens": count, "score": Value("float32"), **made}
    return Features(
        {
            "id": string,
            "image": Image(),
            "width": count,
            "height": count,
            "image_id": string,
            "parent_id": string,
            "file": string,
            "split": string,
            "key": string,
            "base": Value("bool"),
            "mask": string,
            "box": List(count),
            "darkened": Value("bool"),
            "captions": List(string),
            "tokens": List(count),
            "unit": string,
            "provenance": List(made),
            "negatives": List(negative),
            "positive_score": Value("float32"),
            "source": {"name": string, "uri": string},
        }
    )
