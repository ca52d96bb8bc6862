"""What a pack run says of itself: the flow, the statistics of its texts, notes, and what its card says."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from granary.curation.dense.packing import Counter
from granary.curation.dense.recipe import Crops, Format, PackRecipe
from granary.curation.dense.schema import ASKED, Asked
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.facts import About, FlowRow
from granary.curation.runs.run import Marker, Run
from granary.curation.runs.tables import read_groups
from granary.curation.store.language import MEANINGS

LOCAL = [
    *("annotations", "images", "splits", "captions", "answers"),
    *("budget.tokenizer", "writer.model", "writer.device"),
]  # keys of the recipe that belong to one machine
METHODS: Mapping[Format, str] = {
    "dci": "Densely Captioned Images (Urbanek et al., [arXiv 2312.08578](https://arxiv.org/abs/2312.08578)).",
    "coco": "COCO (Lin et al., [arXiv 1405.0312](https://arxiv.org/abs/1405.0312)) or LVIS (Gupta et al., "
    "[arXiv 1908.03195](https://arxiv.org/abs/1908.03195)), packed as Densely Captioned Images are (Urbanek et al., "
    "[arXiv 2312.08578](https://arxiv.org/abs/2312.08578)).",
    "narratives": "ImageInWords (Garg et al., [arXiv 2405.02793](https://arxiv.org/abs/2405.02793)) or Localized "
    "Narratives (Pont-Tuset et al., [arXiv 1912.03098](https://arxiv.org/abs/1912.03098)), packed as Densely Captioned "
    "Images are (Urbanek et al., [arXiv 2312.08578](https://arxiv.org/abs/2312.08578)).",
    "jsonl": "Annotations of one's own, packed as Densely Captioned Images are (Urbanek et al., "
    "[arXiv 2312.08578](https://arxiv.org/abs/2312.08578)).",
    "vqa": "VQAv2 (Goyal et al., [arXiv 1612.00837](https://arxiv.org/abs/1612.00837)).",
    "gqa": "GQA (Hudson and Manning, [arXiv 1902.09506](https://arxiv.org/abs/1902.09506)).",
    "pope": "POPE (Li et al., [arXiv 2305.10355](https://arxiv.org/abs/2305.10355)).",
    "llava": "LLaVA (Liu et al., [arXiv 2304.08485](https://arxiv.org/abs/2304.08485)).",
    "winoground": "Winoground (Thrush et al., [arXiv 2204.03162](https://arxiv.org/abs/2204.03162)).",
}
FIGURES = ("words", "tokens", "masks", "depth")


class Spread(TypedDict):
    """How a number is spread over the images."""

    mean: float
    median: float
    least: int
    most: int


def totals(markers: Sequence[Marker]) -> collections.Counter[str]:
    """Return the sum of the counters of a stage."""
    sums: collections.Counter[str] = collections.Counter()
    for marker in markers:
        sums.update(marker.counters)
    return sums


def flow(shards: Mapping[str, int], texts: Mapping[str, int]) -> list[FlowRow]:
    """Return what came in and went out: annotations, then the masks of those packed, then the masks with an entry."""
    dropped, dead, files = shards["dropped"], shards["dead"], shards["files"]
    masks, lost = shards["masks"], shards["masks lost"]
    left_out = sum(texts[f"masks {reason}"] for reason in ("small", "unusable", "without text"))
    speechless = masks - left_out - texts["masks chosen"]
    return [
        {"stage": "annotations", "in": files, "kept": files - dropped - dead, "dropped": dropped, "dead": dead},
        {"stage": "masks", "in": masks + lost, "kept": masks, "dropped": 0, "dead": lost},
        {"stage": "mask entries", "in": masks, "kept": masks - left_out - speechless, "dropped": left_out, "dead": 0},
    ]


def statistics(run: Run) -> dict[str, Spread]:
    """Return mean, median, least and most of the words, tokens, masks and depth of the images."""
    values: dict[str, list[NDArray[np.integer]]] = {name: [] for name in FIGURES}
    for path in image_shards(run):
        for table in read_groups(path, ["words", "tokens", "depth", "masks.list.element.depth"]):
            masks = table["masks"].combine_chunks()
            values["masks"].append(np.asarray(masks.value_lengths()))
            for name in ("words", "tokens", "depth"):
                values[name].append(table[name].to_numpy())
    return {name: _spread(np.concatenate(arrays)) for name, arrays in values.items() if arrays}


def _spread(values: NDArray[np.integer]) -> Spread:
    return {
        "mean": round(float(values.mean()), 2),
        "median": float(np.median(values)),
        "least": int(values.min()),
        "most": int(values.max()),
    }


def notes(recipe: PackRecipe, shards: Mapping[str, int], texts: Mapping[str, int], counter: Counter) -> list[str]:
    """Return what a reader of the run should know.

    Args:
        recipe: of the run.
        shards, texts: sums of the counters of these stages.
        counter: of the budget.
    """
    lines = [] if recipe.format in ASKED else [_budget(counter)]
    if column := ASKED.get(recipe.format):
        lines.append(f"{shards[column]:,} {column} of {shards['kept']:,} images.")
    if shards["windows over the budget"]:
        lines.append(f"{shards['windows over the budget']:,} windows are single words longer than the budget.")
    if texts["summaries over the budget"]:
        lines.append(f"{texts['summaries over the budget']:,} summaries exceed the budget; they were kept as they are.")
    if texts["entries without negatives"]:
        lines.append(f"{texts['entries without negatives']:,} of {texts['entries']:,} entries have no negatives.")
    if recipe.crops.store == "boxes":
        lines.append("Crops are boxes to be cut out of the whole image at load time.")
    if shards["parts lost"]:
        lines.append(f"{shards['parts lost']:,} parts of annotations were lost or corrected; dead-letter/ names each.")
    return lines


def _budget(counter: Counter) -> str:
    if counter.unit == "tokens":
        return f"Texts are packed into windows of {counter.budget} tokens."
    return (
        f"Lengths are counted in words, {counter.budget} at most: no tokenizer was given (--budget.tokenizer). "
        "A text may have more tokens than a model takes."
    )


def card(recipe: PackRecipe, unit: str) -> About:
    """Return what the dataset card says of a pack run."""
    asked = ASKED.get(recipe.format)
    if asked is not None:
        return _card_of_asked(recipe.format, asked)
    return {
        "made": "made by `granary pack`: images with a tree of masks and a text for each. Whole images are the "
        f"original files, never re-encoded; in the config `pairs`, crops of masks are {_pictures(recipe.crops)}.",
        "meanings": {
            "captions": "short texts of the whole image, as the data gave them",
            "file": "the annotation the row comes from",
            "split": "as the data has it",
            "short_caption": "of the whole image",
            "extra_caption": "of the whole image, what the short one leaves out",
            "description": "everything said of the image, masks included",
            "words": "of the description",
            "tokens": f"of the description, counted in {unit}",
            "unit": "what tokens are counted in: tokens, or words where no tokenizer was given",
            "depth": "of the mask tree",
            "masks": "key, parent, children, depth, label, caption, quality (0 good, 1 dull, 2 unusable), box (x0, y0, "
            "x1, y1; x1 and y1 exclusive), area, size (height, width), and counts (COCO run lengths) or png",
            "texts": f"the description in windows of the budget, with their {unit}, mask (part) and box",
        },
        "tags": ["dense-captions", "image-text", "contrastive"],
        "task_categories": ["image-to-text", "zero-shot-image-classification"],
        "method": METHODS[recipe.format],
        "limits": [
            "Texts are as the annotations had them and were not checked against the pictures.",
            "Negatives made by rule may happen to describe the picture, or read oddly.",
        ],
        "local": LOCAL,
    }


def _card_of_asked(format: Format, column: Asked) -> About:
    """Return what the dataset card says of a run whose annotations ask or say things of pictures.

    Args:
        format: of the annotations.
        column: that holds them.
    """
    return {
        "made": "made by `granary pack`: images, each with all that was asked or said of it. They are the original "
        "files, never re-encoded.",
        "meanings": {column: MEANINGS[column], "file": "the record the row comes from", "split": "as the data has it"},
        "tags": ["image-text", *(["visual-instructions"] if column == "messages" else [])],
        "task_categories": ["image-text-to-text" if column == "messages" else "visual-question-answering"],
        "method": METHODS[format],
        "limits": ["Questions, answers and conversations are as the annotations had them, and were not checked."],
        "local": LOCAL,
    }


def _pictures(crops: Crops) -> str:
    """Return what became of the pictures of masks."""
    if crops.store == "boxes":
        return "left as boxes to be cut out at load time"
    form = "PNG" if crops.format == "png" else f"JPEG of quality {crops.quality}"
    return f"cut out and stored as {form}"
