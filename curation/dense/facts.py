"""What a pack run says of itself: the flow, the statistics of its texts, notes, and what its card says."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from granary.curation.dense.recipe import PackRecipe
from granary.curation.dense.steps.shards import image_shards
from granary.curation.runs.facts import About
from granary.curation.runs.run import Marker, Run, read_groups

FIGURES = ("words", "tokens", "masks", "depth")


def totals(markers: Sequence[Marker]) -> collections.Counter[str]:
    """Return the sum of the counters of a stage."""
    found: collections.Counter[str] = collections.Counter()
    for marker in markers:
        found.update(marker.counters)
    return found


def flow(shards: Mapping[str, int], texts: Mapping[str, int]) -> list[dict[str, Any]]:
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


def statistics(run: Run) -> dict[str, dict[str, float]]:
    """Return mean, median, least and most of the words, tokens, masks and depth of the images."""
    values: dict[str, list[np.ndarray]] = {name: [] for name in FIGURES}
    for path in image_shards(run):
        for table in read_groups(path, ["words", "tokens", "depth", "masks.list.element.depth"]):
            masks = table["masks"].combine_chunks()
            values["masks"].append(np.asarray(masks.value_lengths()))
            for name in ("words", "tokens", "depth"):
                values[name].append(table[name].to_numpy())
    return {name: _summary(np.concatenate(found)) for name, found in values.items() if found}


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": round(float(values.mean()), 2),
        "median": float(np.median(values)),
        "least": int(values.min()),
        "most": int(values.max()),
    }


def notes(recipe: PackRecipe, shards: Mapping[str, int], texts: Mapping[str, int], unit: str, budget: int) -> list[str]:
    """Return what a reader of the run should know."""
    found = [f"Texts are packed into windows of {budget} {unit}."]
    if unit == "words":
        found = [
            f"Lengths are counted in words, {budget} at most: no tokenizer was given (--budget.tokenizer). "
            "A text may have more tokens than a model takes."
        ]
    if shards["windows over the budget"]:
        found.append(f"{shards['windows over the budget']:,} windows are single words longer than the budget.")
    if texts["summaries over the budget"]:
        found.append(f"{texts['summaries over the budget']:,} summaries exceed the budget; they were kept as they are.")
    if texts["entries without negatives"]:
        found.append(f"{texts['entries without negatives']:,} of {texts['entries']:,} entries have no negatives.")
    if recipe.crops.store == "boxes":
        found.append("Crops are boxes to be cut out of the whole image at load time.")
    if shards["parts lost"]:
        found.append(f"{shards['parts lost']:,} parts of annotations were lost or mended; dead-letter/ names each.")
    return found


def card(recipe: PackRecipe, unit: str) -> About:
    """Return what the dataset card says of a pack run."""
    pictures = (
        "cut out and stored as PNG"
        if recipe.crops.format == "png"
        else (f"cut out and stored as JPEG of quality {recipe.crops.quality}")
    )
    if recipe.crops.store == "boxes":
        pictures = "left as boxes to be cut out at load time"
    return {
        "made": "made by `granary pack`: images with a tree of masks and a text for each. Whole images are the "
        f"original files, never re-encoded; in the config `pairs`, crops of masks are {pictures}.",
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
        "method": "Densely Captioned Images (Urbanek et al., [arXiv 2312.08578](https://arxiv.org/abs/2312.08578)).",
        "limits": [
            "Texts are as the annotations had them and were not checked against the pictures.",
            "Negatives made by rule may happen to describe the picture, or read oddly.",
        ],
        "local": ["annotations", "images", "splits", "captions", "budget.tokenizer", "writer.model", "writer.device"],
    }
