"""Where the heads of a Vision Transformer look: how far, and at how many tokens.

The mean attention distance (Dosovitskiy et al. 2020, arXiv 2010.11929, appendix D.7) is that from a patch to the
patches it attends to, weighted by attention, in pixels of the model's picture. Shapes: n pictures, B of a batch, L
blocks, H heads, T tokens, N patches.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.augment import normalised, to_unit
from granary.training.data.drawn import drawn
from granary.training.evaluation.features import Features, dead_letters, encoded_by, load
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores
from granary.training.evaluation.sites import attention_maps
from granary.training.models.registry import resolved
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

PICTURES = 256
BATCH = 16  # the maps of all layers are held at once


class AttentionOptions(SplitOptions, frozen=True):
    """Options of the measures of attention."""

    pictures: int = Field(PICTURES, ge=1, description="pictures at most, drawn by hash")


def evaluate(measured: Measured, options: AttentionOptions) -> Scores:
    """Measure the attention of patches in every block, head by head; labels are not read.

    Returns:
        distance, the mean over blocks and heads in pixels, with `.uniform`, that of uniform attention; for every block
        `LAYER.distance`, and `LAYER.entropy` in nats of the attention to all tokens (at most log T), each the mean over
        heads with those of the heads as `.head1`, ...; `LAYER.others`, the share of attention to class token and
        registers, where there are some.
    """
    subject, split = load_vit(measured), measured.split
    dataset = shards.open_dataset(measured.data, ("image",), split, options.holdout, "attention", measured.columns)
    dataset = drawn(dataset, options.pictures, measured.seed, "attention")
    found, config = attention_of(subject, dataset, measured), subject.config
    heads = found.cls.mean(dim=0)  # (L, 3, H)
    layers = {
        f"{layer}.{name}": values
        for layer, block in enumerate(heads, 1)
        for name, values in zip(("distance", "entropy", "others"), block, strict=True)
        if name != "others" or first_patch(config)
    }
    uniform = float(patch_distances(config.grid, config.patch_size).mean())
    scores: dict[str, float | None] = {"distance": float(heads[:, 0].mean()), "distance.uniform": uniform}
    scores["distance.pictures"] = len(found.ids)
    for name, values in layers.items():
        scores[name] = float(values.mean())
        if not name.endswith("others"):
            scores |= {f"{name}.head{head}": value for head, value in enumerate(values.tolist(), 1)}
    settings = {"model": resolved(measured.model), "data": dataset.path, "split": split, "dead": dead_letters(found)}
    return Scores(scores, settings=settings)


PROTOCOL = Protocol(evaluate, AttentionOptions, ("split", "batch", "limit"), BATCH)


def load_vit(measured: Measured) -> VisionTransformer:
    """Return the model to measure on its device. Raises UserError where it has no attention."""
    subject = load(measured)
    if not isinstance(subject, VisionTransformer):
        raise UserError(f"model: {measured.model} is no Vision Transformer, in which alone attention is measured")
    return subject


def attention_of(subject: VisionTransformer, dataset: shards.Dataset, measured: Measured) -> Features:
    """Return what `measures` gives of every picture and block in the place of vectors: `cls` is (n, L, 3, H) float64.

    Args:
        subject: on its device.
        dataset: opened.
        measured: device, batch and limit.
    """
    config, device = subject.config, torch_device(measured.device)
    distances = patch_distances(config.grid, config.patch_size).to(device)
    first = first_patch(config)

    def heads(pixels: Tensor) -> tuple[Tensor, None]:
        x = normalised(to_unit(pixels.to(device)), config.mean, config.std)
        maps = attention_maps(subject, x, range(config.depth))
        return torch.stack([measures(part, distances, first) for part in maps], dim=1).cpu(), None

    return encoded_by(heads, config.img_size, dataset, measured)


def first_patch(config: ViTConfig) -> int:
    """Return how many tokens stand before the patches."""
    return int(config.class_token) + config.registers


def patch_distances(grid: int, patch: int) -> Tensor:
    """Return the distance in pixels between the middles of all patches of a square picture: (N, N) float64.

    Args:
        grid: patches along a side.
        patch: pixels of one.
    """
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).double()  # (N, 2), by rows
    return patch * torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def measures(maps: Tensor, distances: Tensor, first: int) -> Tensor:
    """Return distance, entropy and share to others of attention, the mean over the patches that attend.

    Args:
        maps: (B, H, T, T), rows that sum to 1.
        distances: (N, N) in pixels.
        first: tokens before the patches; they are left out of the distance, to whose weights the rest is scaled.

    Returns:
        (B, 3, H) float64.
    """
    rows = maps[:, :, first:].double()
    patches = rows[..., first:]
    mass = patches.sum(dim=3)
    distance = (patches * distances).sum(dim=3) / mass.clamp(min=torch.finfo(mass.dtype).tiny)
    entropy = torch.special.entr(rows).sum(dim=3)
    return torch.stack([part.mean(dim=2) for part in (distance, entropy, 1 - mass)], dim=1)
