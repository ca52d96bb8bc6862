"""Mean reciprocal rank: does a world model know what a change of colours does to the features of a picture?

Of each picture a bank of changed versions is made. The predictor of `iwm` reads the picture as it is and each change in
turn; the rank is that of the truly changed picture among the bank, by the distance of what was predicted (arXiv
2403.00504, with a bank of 256). Details the paper leaves open: the context encoder reads the picture whole, all patches
are asked for, the target encoder embeds the bank, layer-normalised as in training, and the distance is that of all
patches together. Only the colours of the bank change, by the training's strengths: a target is never blurred, grey or
solarized.

Shapes: n versions in a bank, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.augment import IDENTITY, NEEDED, Photometric, changed, normalised, parameters, to_unit
from granary.training.data.collate import Dead
from granary.training.data.crops import Crop
from granary.training.data.drawn import drawn
from granary.training.data.passes import pieces
from granary.training.evaluation.features import load_whole
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores, dead_letter
from granary.training.methods.iwm import IWM, action
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.registry import resolved

COLOURS = ("brightness", "contrast", "saturation", "hue")


class MRROptions(SplitOptions, frozen=True):
    """Options of the mean reciprocal rank."""

    bank: int = Field(64, ge=2, description="n, changed versions of a picture, each of which is asked for (paper: 256)")
    pictures: int = Field(200, ge=1, description="pictures at most, drawn by hash")
    brightness: float | None = Field(None, ge=0, description="strength of the change; default: of the training")
    contrast: float | None = Field(None, ge=0, description="strength of the change; default: of the training")
    saturation: float | None = Field(None, ge=0, description="strength of the change; default: of the training")
    hue: float | None = Field(None, ge=0, le=0.5, description="strength of the change; default: of the training")

    def changes(self, model: IWM) -> Photometric:
        """Return what is done to the bank: the colours of every version change, and nothing else."""
        given = {name: getattr(self, name) for name in COLOURS if getattr(self, name) is not None}
        return replace(model.changes(), flip=0, jitter=1, grey=0, blur=0, solarize=0, **given)


def evaluate(measured: Measured, options: MRROptions) -> Scores:
    """Ask for every version of every picture's bank.

    Returns:
        mrr with `.chance`, `.bank` and `.pictures`; first, the share of versions that are nearest to what was predicted
        of them, with `.chance`. A predictor that does not read the action has the level of chance, since it ranks every
        bank in one order.
    """
    model, split = _world_model(measured), measured.split
    dataset = shards.open_dataset(measured.data, ("image",), split, options.holdout, "mrr", measured.columns)
    dataset = drawn(dataset, options.pictures, measured.seed, "mrr")
    changes, dead, ranks = options.changes(model), list[Dead](), list[Tensor]()
    for unit, draws in _banks(dataset, model.config.img_size, options.bank, measured, dead):
        ranks.append(ranks_of(distances(model, unit, draws, changes, measured)))
    if not ranks:
        raise UserError(f"data: none of the {len(dead):,} pictures of {dataset.path} can be decoded: {dead[0][2]}")
    rank, bank = torch.cat(ranks).double(), options.bank
    scores = {"mrr": float((1 / rank).mean()), "mrr.chance": chance(bank), "mrr.bank": bank, "mrr.pictures": len(ranks)}
    scores |= {"first": float((rank == 1).double().mean()), "first.chance": 1 / bank}
    rows = [dead_letter(*letter) for letter in dead]
    settings = {"model": resolved(measured.model), "data": dataset.path, "split": split, "dead": rows}
    return Scores(scores, (), settings | {"colours": {name: getattr(changes, name) for name in COLOURS}})


PROTOCOL = Protocol(
    evaluate,
    MRROptions,
    ("split", "batch", "limit", "seed"),
    64,
    ("versions at the same distance as the true one rank before it",),
)


def ranks_of(distance: Tensor) -> Tensor:
    """Return the rank of the true version in each row, 1 for the nearest; of equal distances the true one comes last.

    Args:
        distance: (n, n), of what was predicted for version i, row i, to version j; NaN counts as nearer.
    """
    return len(distance) - (distance > distance.diagonal()[:, None]).sum(dim=1)


def chance(bank: int) -> float:
    """Return the mean reciprocal rank of a random order, H_n / n."""
    return sum(1 / rank for rank in range(1, bank + 1)) / bank


@torch.inference_mode()
def distances(model: IWM, unit: Tensor, draws: Tensor, changes: Photometric, measured: Measured) -> Tensor:
    """Return the Euclidean distances of predictions to the bank of a picture, (n, n) float32 on the CPU.

    Args:
        model: in evaluation mode.
        unit: (1, 3, S, S) in 0..1.
        draws: (n, 11) uniform in 0..1: of each version.
        changes: of colours.
        measured: dtype, and pictures encoded at once.
    """
    config, bank = model.config, parameters(draws, changes)
    clean = bank._replace(factors=bank.factors.new_tensor(IDENTITY).expand_as(bank.factors))
    versions = normalised(changed(unit.expand(len(draws), -1, -1, -1), bank, changes), config.mean, config.std)
    places = torch.arange(config.grid**2, device=unit.device)[None]  # (1, N)
    predicted, truth = list[Tensor](), list[Tensor]()
    with torch.autocast(unit.device.type, DTYPES[measured.dtype], enabled=measured.dtype != "float32"):
        tokens = model.context(normalised(unit, config.mean, config.std)).patches  # (1, N, D)
        parts = zip(versions.split(measured.batch), action(clean, bank).split(measured.batch), strict=True)
        for pictures, actions in parts:
            every = places.expand(len(pictures), -1)
            told = model.predictor(tokens.expand(len(pictures), -1, -1), every, every[None], actions)
            predicted.append(told.flatten(1).float())
            truth.append(model.latents(pictures).flatten(1).float())
    exact = "donot_use_mm_for_euclid_dist"  # equal versions are at equal distances
    return torch.cdist(torch.cat(predicted), torch.cat(truth), compute_mode=exact).cpu()


def _world_model(measured: Measured) -> IWM:
    """Return the training to measure. Raises UserError where it is no world model."""
    model = load_whole(measured)
    if not isinstance(model, IWM):
        raise UserError(f"model: {measured.model} has no predictor that reads actions; give a training of method iwm")
    return model


def _banks(
    dataset: shards.Dataset, side: int, bank: int, measured: Measured, dead: list[Dead]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the middle of each picture, (1, 3, S, S) in 0..1, and the numbers of its bank, (n, 11), drawn by its id."""
    device, crop = torch_device(measured.device), Crop(1, side, centre=True, draws=bank * NEEDED)
    for part in pieces(dataset, crop, limit=measured.limit, seed=measured.seed):
        dead += part["dead"]
        if part["id"]:
            for pixels, draws in zip(part["image"].to(device), part["image_draws"].to(device), strict=True):
                yield to_unit(pixels), draws.view(bank, NEEDED)
