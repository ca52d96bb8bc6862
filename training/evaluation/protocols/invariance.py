"""How little features change where a picture is cropped, recoloured, blurred or mirrored.

The mean cosine of the features of a picture and of the changed picture, less the mean cosine of two pictures that have
nothing to do with one another: 0 where a change does as much as another picture, 1 less that mean where it does nothing
(Shekhar et al. 2023, arXiv 2304.13089, ask for such invariances; the details are ours).

Shapes: n pictures, B of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.augment import Photometric, photometric, to_unit
from granary.training.data.collate import Dead, Part
from granary.training.data.crops import Crop
from granary.training.data.drawn import drawn
from granary.training.data.passes import pieces
from granary.training.evaluation.features import BATCH, encode_unit, load
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores, dead_letter
from granary.training.evaluation.site_features import has_class_token
from granary.training.models.registry import resolved

NOTHING = Photometric(flip=0, jitter=0, grey=0, blur=0, solarize=0)


class InvarianceOptions(SplitOptions, frozen=True):
    """Options of invariance; strengths are DINOv2's."""

    pictures: int = Field(1000, ge=2, description="pictures at most, drawn by hash")
    scale: tuple[float, float] = Field((0.3, 1.0), description="share of the picture's area in a random crop")
    brightness: float = Field(0.4, ge=0, description="strength of the change of brightness")
    contrast: float = Field(0.4, ge=0, description="strength of the change of contrast")
    saturation: float = Field(0.2, ge=0, description="strength of the change of saturation")
    hue: float = Field(0.1, ge=0, le=0.5, description="strength of the change of hue")
    sigma: tuple[float, float] = Field(
        (0.1, 2.0), description="least and largest blur in pixels of the model's picture"
    )

    def changes(self) -> dict[str, Photometric]:
        """Return what is done to the pixels of a picture, by name; the crop is not among them."""
        strengths = {name: getattr(self, name) for name in ("brightness", "contrast", "saturation", "hue")}
        return {
            "colour": replace(NOTHING, jitter=1, **strengths),
            "blur": replace(NOTHING, blur=1, sigma=self.sigma),
            "flip": replace(NOTHING, flip=1),
        }


def evaluate(measured: Measured, options: InvarianceOptions) -> Scores:
    """Compare the last vectors of every picture, cut from its middle, with those of a changed one.

    Returns:
        crop, colour, blur and flip with `.cosine`, and unrelated, the mean cosine of two pictures; the same with
        `mean_` before it for mean patches, where the model has a class token.
    """
    split, subject = measured.split, load(measured)
    dataset = shards.open_dataset(measured.data, ("image",), split, options.holdout, "invariance", measured.columns)
    dataset = drawn(dataset, options.pictures, measured.seed, "invariance")
    device, side = torch_device(measured.device), subject.config.img_size
    changes, dead = {"": NOTHING, **options.changes()}, list[Dead]()

    def vectors(unit: Tensor) -> Tensor:
        cls, mean = encode_unit(subject, unit, 1, measured.dtype)
        return torch.stack([cls[:, -1], mean], dim=1) if has_class_token(subject) else cls  # (B, 1 or 2, D)

    kept: dict[str, list[Tensor]] = {name: [] for name in (*changes, "crop")}
    for part in _batches(dataset, Crop(1, side, centre=True), measured, dead):
        unit, draws = to_unit(part["image"][:, 0].to(device)), part["image_draws"][:, 0].to(device)
        for name, change in changes.items():
            kept[name].append(vectors(photometric(unit, draws, change)))
    for part in _batches(dataset, Crop(1, side, options.scale), measured, []):
        kept["crop"].append(vectors(to_unit(part["image"][:, 0].to(device))))
    if not kept[""]:
        raise UserError(f"data: none of the {len(dead):,} pictures of {dataset.path} can be decoded: {dead[0][2]}")
    joined = {name: F.normalize(torch.cat(parts).double(), dim=2) for name, parts in kept.items()}
    if len(joined[""]) < 2:
        raise UserError(f"data: {dataset.path} has one picture; invariance compares two or more")
    scores: dict[str, float | None] = {}
    for number, prefix in enumerate(("", "mean_")[: joined[""].shape[1]]):
        scores |= invariances({name: unit[:, number] for name, unit in joined.items()}, prefix)
    scores["unrelated.pictures"] = len(joined[""])
    rows = [dead_letter(*letter) for letter in dead]
    return Scores(scores, (), {"model": resolved(measured.model), "data": dataset.path, "split": split, "dead": rows})


PROTOCOL = Protocol(evaluate, InvarianceOptions, ("split", "batch", "limit", "seed"), BATCH)


def invariances(unit: dict[str, Tensor], prefix: str = "") -> dict[str, float]:
    """Return for each change its mean cosine, less that of two pictures.

    Args:
        unit: (n, D) float64, rows of length 1: of the pictures as "", and of the changed ones by the change.
        prefix: of the names.
    """
    plain, n = unit[""], len(unit[""])
    among = float((plain.sum(dim=0).square().sum() - plain.square().sum()) / (n * (n - 1)))  # of all pairs i != j
    cosines = {name: float((plain * unit[name]).sum(dim=1).mean()) for name in ("crop", "colour", "blur", "flip")}
    scores = dict[str, float]()
    for name, cosine in cosines.items():
        scores |= {f"{prefix}{name}": cosine - among, f"{prefix}{name}.cosine": cosine}
    return {**scores, f"{prefix}unrelated": among}


def _batches(dataset: shards.Dataset, crop: Crop, measured: Measured, dead: list[Dead]) -> Iterator[Part]:
    """Yield the pictures of a dataset in batches, with their draws; what cannot be decoded is added to `dead`."""
    for part in pieces(dataset, crop, limit=measured.limit, seed=measured.seed):
        dead += part["dead"]
        for start in range(0, len(part["id"]), measured.batch):
            yield {name: part[name][start : start + measured.batch] for name in ("image", "image_draws")}
