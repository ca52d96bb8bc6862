"""Reconstruction: what two models make of crops of pictures that one of them knows, as diffusion models draw it.

Meehan et al. 2023 (arXiv 2304.13850). --model and the reference are trainings of `rcdm` on part X of a run of `granary
partition`: they are told what a model that was trained on part A, and one that was trained on part B, say of pictures.
Of an attacked picture each is told the backbone's mean over the public neighbours of a crop beside its objects, and
what the projector says of the crop; both begin with the same noise. Beside what they draw stands the public picture
that is nearest to it in pixels: what one model alone draws, and is no public picture, that model knew.
Shapes: n public and m attacked pictures, K drawings of each, S their side, C numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.crops import sample_generator, views_of
from granary.training.data.drawn import drawn, ids_of, some
from granary.training.data.reads import Views
from granary.training.evaluation.attack import CropOptions, crop_views
from granary.training.evaluation.drawings import Row, page
from granary.training.evaluation.features import BATCH, check_dtype, encoded_by
from granary.training.evaluation.parts import ATTACKED, PUBLIC, Parts, check_apart, opened_parts
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.results import read_row
from granary.training.evaluation.scores import DeadLetter, Scores, dead_letter
from granary.training.evaluation.trained import trained_ids
from granary.training.methods.rcdm import RCDM
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.training import load_training

NOTES = (
    "distance: root mean square difference of a drawing and its picture, in 0..1; .public: of the nearest public one.",
    "copied: share of drawings that are nearer to their picture than to any public one.",
)


class ReconstructionOptions(CropOptions, frozen=True):
    """Options of the drawings."""

    reference: str | None = Field(None, description="rcdm told by the model that was trained on the other part")
    part: str = Field("A", description="attacked part, which the model that tells --model was trained on: A or B")
    known: str | None = Field(
        None, description="JSON of granary evaluate dejavu: what it lists as known by heart is drawn; default: any"
    )
    examples: int = Field(8, ge=1, description="pictures that are drawn, at most")
    drawings: int = Field(4, ge=1, description="of each picture by each model")
    neighbours: int = Field(5, ge=1, description="public pictures that the backbone's mean is over")
    steps: int = Field(50, ge=2, description="of drawing")
    page: str | None = Field(None, description="PNG to write: pictures, crops, drawings, nearest public pictures")


class Seen(NamedTuple):
    """Pictures by id, in one order.

    Args:
        ids: m names.
        pixels: (m, side, side, 3) uint8.
    """

    ids: list[str]
    pixels: Tensor


class Drawn(NamedTuple):
    """What a model draws.

    Args:
        pictures: (m, K, 3, S, S) in 0..1.
        nearest: (m, K) int64, the public picture nearest to each in pixels.
        distances: (m, K) to the picture that is attacked.
        public: (m, K) to that nearest one.
    """

    pictures: Tensor
    nearest: Tensor
    distances: Tensor
    public: Tensor


def evaluate(measured: Measured, options: ReconstructionOptions) -> Scores:
    """Let two models draw attacked pictures, and compare the drawings with these and with public pictures.

    Returns:
        distance with `.reference` and `.public`, closer (share of the pictures whose best drawing is the model's) with
        `.chance`, copied with `.reference` and `.chance`, pictures with counts.

    Raises:
        UserError: a model is no RCDM, or knows pictures that are not public; nothing can be attacked.
    """
    if options.reference is None:
        raise UserError("options.reference: missing; give the rcdm that the model trained on the other part tells")
    if options.part not in ATTACKED:
        raise UserError(f"options.part: {options.part!r} is not right; the parts are {', '.join(ATTACKED)}")
    check_dtype(measured.dtype)
    names = measured.model, options.reference
    models = [_loaded(name, measured) for name in names]
    one, other = ({**model.options.model_dump(exclude={"teacher"}), "teacher_size": model.seen} for model in models)
    if key := next((key for key in one if one[key] != other[key]), None):
        raise UserError(
            f"options.reference: {names[1]} is no twin of {names[0]}: options.{key} is {other[key]!r}, not {one[key]!r}"
        )
    parts = opened_parts(measured, "reconstruction")
    check_apart(parts)
    notes = [note for name in names for note in _check_public(parts, name)]
    chosen = _chosen(measured, options, parts)
    crops, dead = _seen(chosen, models[0].seen, measured, crop_views(measured, options, parts))
    size = models[0].options.size
    whole, _ = _seen(some(chosen, np.isin(ids_of(chosen), crops.ids)), size, measured)
    public, _ = _seen(parts.public, size, measured)
    shown, _ = _seen(parts.public, models[0].seen, measured)
    both = [_drawn(model, measured, options, crops, shown, whole, public) for model in models]
    if options.page:
        storage.write_bytes(options.page, _page(options, crops, whole, public, both))
    settings = {"part": options.part, "ids": crops.ids, "dead": dead}
    return Scores(_compared(both, whole, public), notes, settings)


PROTOCOL = Protocol(evaluate, ReconstructionOptions, ("split", "batch", "limit", "seed"), BATCH, NOTES)


def _loaded(name: str, measured: Measured) -> RCDM:
    """Return a training of RCDM. Raises UserError for another model."""
    model = load_training(name, torch_device(measured.device), measured.seed)
    if not isinstance(model, RCDM):
        raise UserError(f"model: {name} is no training of rcdm")
    return model


def _check_public(parts: Parts, name: str) -> list[str]:
    """Return what could not be verified. Raises UserError where a model has drawn pictures that are not public."""
    known = trained_ids(name)
    if known is None:
        return [f"what {name} was trained on cannot be read: it is taken to be part {PUBLIC}"]
    if others := len(known - set(ids_of(parts.public).tolist())):
        raise UserError(
            f"model: {name} was trained on {others:,} pictures that are not of part {PUBLIC}; train it with --split "
            f"part={PUBLIC}"
        )
    return []


def _chosen(measured: Measured, options: ReconstructionOptions, parts: Parts) -> shards.Dataset:
    """Return the attacked pictures: those that are known by heart, else some drawn by hash."""
    dataset = parts.attacked[options.part]
    if options.known is None:
        return drawn(dataset, options.examples, measured.seed, "reconstruction")
    told: Mapping[str, object] = read_row(options.known).used.get("dejavu", {})
    listed = told.get("memorised")
    rows = listed.get(options.part, []) if isinstance(listed, Mapping) else []
    ids = [row["id"] for row in rows[: options.examples]]
    found = some(dataset, np.isin(ids_of(dataset), ids))
    if not found.count:
        raise UserError(f"options.known: {options.known} lists no picture of part {options.part} as known by heart")
    return found


def _seen(
    dataset: shards.Dataset, side: int, measured: Measured, views: Views | None = None
) -> tuple[Seen, list[DeadLetter]]:
    """Return the pictures of a dataset, or crops of them, and what there is none of."""
    kept: list[Tensor] = []

    def keep(pixels: Tensor) -> tuple[Tensor, None]:
        kept.append(pixels.clone())
        return torch.zeros(len(pixels), 1, 1), None

    column = getattr(views, "column", None)
    found = encoded_by(keep, side, dataset, measured, (), views or views_of, (column,) if column else ())
    return Seen(found.ids, torch.cat(kept)), [dead_letter(*row) for row in found.dead]


@torch.inference_mode()
def _drawn(
    model: RCDM,
    measured: Measured,
    options: ReconstructionOptions,
    crops: Seen,
    shown: Seen,
    whole: Seen,
    public: Seen,
) -> Drawn:
    """Return what a model draws of attacked pictures, a picture at a time."""
    device, size = model.network.signal.device, model.options.size
    steps = min(options.steps, model.options.noise_steps)
    banks, attacked = (_told(model, seen, measured.batch) for seen in (shown, crops))
    near = torch.cdist(attacked[-1], banks[-1]).topk(min(options.neighbours, len(shown.ids)), largest=False).indices
    vectors = torch.cat([banks[0][near].mean(dim=1), *attacked[1:]], dim=1)  # (m, C)
    pictures = []
    for name, vector in zip(crops.ids, vectors, strict=True):
        noise = sample_generator(measured.seed, 0, f"reconstruction/{name}")
        begun = noise.standard_normal((options.drawings, 3, size, size), dtype=np.float32)
        told = vector.expand(options.drawings, -1)
        with torch.autocast(device.type, DTYPES[measured.dtype], enabled=measured.dtype != "float32"):
            pictures.append(model.drawing.drawn(told, torch.from_numpy(begun).to(device), steps).float().cpu())
    found = torch.stack(pictures)
    flat = found.flatten(2)  # (m, K, numbers)
    scale = flat.shape[2] ** 0.5
    to_public = torch.cdist(flat.flatten(0, 1), _numbers(public)).unflatten(0, flat.shape[:2]) / scale
    nearest = to_public.min(dim=2)
    distances = (flat - _numbers(whole)[:, None]).norm(dim=2) / scale
    return Drawn(found, nearest.indices, distances, nearest.values)


def _told(model: RCDM, seen: Seen, batch: int) -> list[Tensor]:
    """Return what the frozen model makes of pictures at each site, (m, D)."""
    device = model.network.signal.device
    parts = [model.sites(some.to(device)) for some in seen.pixels.split(batch)]
    return [torch.cat(site) for site in zip(*parts, strict=True)]


def _numbers(seen: Seen) -> Tensor:
    """Return pictures as vectors in 0..1: (m, 3 * side * side)."""
    return seen.pixels.permute(0, 3, 1, 2).flatten(1).float().div(255)


def _compared(both: list[Drawn], whole: Seen, public: Seen) -> dict[str, float | None]:
    """Return the scores."""
    target, reference = both
    numbers = _numbers(whole)
    nearest = torch.cdist(numbers, _numbers(public)).min(dim=1).values / numbers.shape[1] ** 0.5
    closer = target.distances.min(dim=1).values < reference.distances.min(dim=1).values
    copied = [float((one.distances < one.public).double().mean()) for one in both]
    return {
        "distance": float(target.distances.mean()),
        "distance.reference": float(reference.distances.mean()),
        "distance.public": float(nearest.mean()),
        "closer": float(closer.double().mean()),
        "closer.chance": 0.5,
        "copied": copied[0],
        "copied.reference": copied[1],
        "copied.chance": 1 / (len(public.ids) + 1),
        "pictures": len(whole.ids),
        "pictures.public": len(public.ids),
    }


def _page(options: ReconstructionOptions, crops: Seen, whole: Seen, public: Seen, both: list[Drawn]) -> bytes:
    """Return the pictures side by side, as PNG."""
    rows = []
    for place in range(len(crops.ids)):
        row: Row = [("picture", whole.pixels[place].numpy()), ("crop", crops.pixels[place].numpy())]
        for who, drawings in zip(("model", "reference"), both, strict=True):
            for picture in drawings.pictures[place]:
                row.append((f"by the {who}", picture.mul(255).round().byte().permute(1, 2, 0).numpy()))
            row.append(("nearest public", public.pixels[int(drawings.nearest[place, 0])].numpy()))
        rows.append(row)
    return page(rows, whole.pixels.shape[1])
