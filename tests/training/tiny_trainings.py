"""A training of a few seconds for each method, on shapes of sixteen pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny_procedures import STEPS, with_steps
from tiny_shards import shapes, write_shards

from granary.curation.instructions.schema import instruction_feature
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

TEXT = {"vocabulary": 600, "context": 12, "text_width": 16, "text_depth": 1, "text_heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "xrm": {"frozen": False},
    "ijepa": {"predictor_width": 16, "predictor_depth": 1, "min_keep": 0},
    "stop": {"predictor_width": 16, "predictor_depth": 1, "min_keep": 0},
    "iwm": {"predictor_width": 16, "predictor_depth": 1, "targets": 3, "loss": "smooth_l1"},
    "simclr": {"projector_hidden": [8], "projector_width": 4},
    "barlow": {"projector_hidden": [8], "projector_width": 4},
    "vicreg": {"projector_hidden": [8], "projector_width": 4},
    "nnclr": {"projector_hidden": [8], "projector_width": 4, "predictor_hidden": [8], "queue": 16},
    "byol": {"projector_hidden": [8], "projector_width": 4, "predictor_hidden": [8]},
    "simsiam": {"projector_hidden": [8], "projector_width": 4, "predictor_hidden": [2]},
    "moco": {"projector_hidden": [8], "projector_width": 4, "queue": 16},
    "moco_v3": {"projector_hidden": [8], "projector_width": 4, "predictor_hidden": [8]},
    "swav": {"projector_hidden": [8], "projector_width": 4, "prototypes": 6, "local_crops": 1, "local_size": 8},
    "msn": {"projector_hidden": [8], "projector_width": 4, "prototypes": 6, "local_crops": 1, "local_size": 8},
    "wmse": {"projector_hidden": [8], "projector_width": 2, "sub_batch": 4},
    "dinov2": {"prototypes": 12, "hidden": 10, "bottleneck": 6, "local_crops": 1, "local_size": 8},
    "mae": {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2},
    "simmim": {},
    "beit": {"codes": 16, "codebook_pictures": 12, "smallest_block": 2},
    "clip": {**TEXT, "dimension": 8},
    "siglip": TEXT,
    "llip": {**TEXT, "dimension": 8, "heads": 2},
    "llava": {"language": "tiny?width=16&depth=1&heads=2", "vocabulary": 600, "context": 16, "describe": "what?"},
    "vistallm": {
        "language": "tiny?width=16&depth=1&heads=2",
        "vocabulary": 600,
        "context": 40,
        "describe": "what?",
        "bins": 17,
        "points": 4,
        "items": 2,
        "pictures": 2,
        "train_encoder": True,
        "pictures_by": {"queries": 2, "width": 16, "depth": 1, "heads": 2},
    },
    "longvu": {
        **{"source": "image", "language": "tiny?width=16&depth=1&heads=2", "vocabulary": 600, "context": 16},
        **{"describe": "what?", "high": 2, "low": 1, "patches": 2, "width": 8, "depth": 1, "heads": 2, "budget": 14},
    },
    "flava": {**TEXT, "fusion_depth": 1, "fusion_heads": 2, "codes": 8, "codebook_pictures": 8, "smallest_block": 2},
    "vedit": {"latents": "latents", "width": 16, "blocks": 1, "heads": 2, "euler_steps": 2},
    "coca": {**TEXT, "dimension": 8, "decoder_depth": 1, "queries": 3},
}
NONE: Mapping[str, Any] = {}
SETTINGS: dict[str, Any] = {
    "model": {"width": 16, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4},
    "steps": 2,
    "batch": 8,
    "workers": 0,
    "window": 16,
    "logs": {"every": 1, "tensorboard": False},
    "device": {"accelerator": "cpu", "threads": 1},
}


def asked(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return instructions about a row: where its shape is, where another one is not, and what it is."""
    side, (word, *_) = row["width"], (name for name in ("circle", "square") if name != row["label"])
    target = {"picture": 0, "box": [1, 2, side - 3, side - 1], "size": [side, side], "counts": None}
    made = {"task": "box", "form": "box", "answer": "", "targets": []}
    said = {"task": "caption", "form": "text", "question": "What is it?", "answer": f"a {row['label']}", "targets": []}
    there = {**made, "question": f"where is the {row['label']}?", "targets": [target]}
    return [there, {**made, "question": f"where is the {word}?"}, said]


def tiny_run(folder: Path, count: int = 24, side: int = 16) -> str:
    """Write shapes with labels, captions, instructions and steps of a video; returns the folder of the run."""
    rows = [
        {**row, "captions": [f"a {row['label']}", "a shape"], "instructions": asked(row)} for row in shapes(count, side)
    ]
    extra = {"instructions": instruction_feature(), **STEPS}
    return str(write_shards(folder, with_steps(rows), group=8, extra=extra))


def tiny_recipe(
    method: str, run: str, out: Path | str, options: Mapping[str, Any] = NONE, **changes: Any
) -> TrainRecipe:
    """Return the recipe of a tiny training; `options` are added to those of the method."""
    given = {"method": method, "data": run, "out": str(out), "options": {**OPTIONS.get(method, NONE), **options}}
    return TrainRecipe.model_validate({**SETTINGS, **given, **changes})


def tiny_training(method: str, run: str, out: Path, options: Mapping[str, Any] = NONE, **changes: Any) -> str:
    """Train; returns the folder of the last checkpoint."""
    return train(tiny_recipe(method, run, out, options, **changes))["checkpoint"]
