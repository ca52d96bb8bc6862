"""A model attacks the pictures of two parts by crops of them: what it says of each, at every site.

Shapes: n public pictures, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data import shards
from granary.training.data.boxes import USUAL, boxes_column
from granary.training.data.collate import Dead
from granary.training.data.crops import views_of
from granary.training.evaluation.features import Features, distinct, encoded_by
from granary.training.evaluation.memorisation import Answers, attacked
from granary.training.evaluation.parts import Parts
from granary.training.evaluation.periphery import CORNER, PeripheryViews
from granary.training.evaluation.projections import Projected, load_projected
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.tasks import labelled

LEAST = 100.0  # pixels that the shorter side of a crop must exceed (the authors' code)


class CropOptions(Options, frozen=True):
    """Options of what attacks pictures by crops of them."""

    crop: Literal["boxes", "corner"] = Field(
        "boxes", description="boxes: a place beside the boxes of a picture; corner: its lower left corner"
    )
    boxes: str | None = Field(None, description=f"column of boxes; default: the first of {', '.join(USUAL)}")
    min_side: float = Field(LEAST, ge=0, description="pixels that the shorter side of a place beside boxes must exceed")
    corner: float = Field(CORNER, gt=0, le=1, description="share of each side that is the corner")


def crop_views(measured: Measured, options: CropOptions, parts: Parts) -> PeripheryViews:
    """Return what makes the crops. Raises UserError where boxes are wanted and there are none."""
    if options.crop == "corner":
        return PeripheryViews(None, 0.0, options.corner, measured.data)
    column = boxes_column(parts.public, options.boxes)
    if column is None:
        raise UserError(
            f"data: {measured.data} has no column of boxes ({', '.join(USUAL)}); name it by --options.boxes, or attack "
            "by --options.crop corner"
        )
    return PeripheryViews(column, options.min_side, where=measured.data)


class Attack(NamedTuple):
    """How pictures are attacked.

    Args:
        sites: where the models are looked at; none stands for all that a model has.
        views: makes the crops.
        k: public neighbours that vote.
    """

    sites: Sequence[str]
    views: PeripheryViews
    k: int


class Knowledge(NamedTuple):
    """What a model says.

    Args:
        answers: site -> part -> answers.
        public: site -> features (n, D) of the public pictures.
        labels, ids: of these.
        dead: part -> what there is no crop of, as (uri, error, message).
    """

    answers: Mapping[str, Mapping[str, Answers]]
    public: Mapping[str, Tensor]
    labels: Tensor
    ids: list[str]
    dead: Mapping[str, list[Dead]]


def knowledge(measured: Measured, parts: Parts, attack: Attack, name: str, seed: int) -> Knowledge:
    """Return what a model says of the crops of the attacked parts.

    Args:
        measured: device, dtype, batch, limit, and the seed of ties.
        parts: what is attacked.
        attack: how.
        name: of the model.
        seed: of its weights, where they are random.

    Raises:
        UserError: there is no such model, it has no such site, or no picture of a part has a crop.
    """
    model, device = load_projected(measured, name, seed), torch_device(measured.device)
    sites = attack.sites or model.sites
    missing = [site for site in sites if site not in model.sites]
    if missing:
        raise UserError(f"options.sites: {missing[0]} is not right: {name} has none; give backbone")
    widths = model.widths(sites)
    seen = _seen(model, parts.public, measured, sites, parts.classes)
    public = labelled(seen, f"{measured.data}, part X")
    crops = {
        part: _seen(model, dataset, measured, sites, parts.classes, attack.views)
        for part, dataset in parts.attacked.items()
    }
    banks = dict(zip(sites, public.last.split(list(widths.values()), dim=1), strict=True))
    answers: dict[str, dict[str, Answers]] = {site: {} for site in sites}
    for part, some in crops.items():
        for site, vectors in zip(sites, some.last.split(list(widths.values()), dim=1), strict=True):
            bank = banks[site].to(device)
            k = min(attack.k, len(bank))
            labels = public.labels.to(device)
            answers[site][part] = attacked(
                vectors.to(device), some.labels, distinct(some.ids), bank, labels, len(parts.classes), k, measured.seed
            )
    dead = {"X": public.dead, **{part: some.dead for part, some in crops.items()}}
    return Knowledge(answers, banks, public.labels, public.ids, dead)


def _seen(
    model: Projected,
    dataset: shards.Dataset,
    measured: Measured,
    sites: Sequence[str],
    classes: Sequence[str],
    views: PeripheryViews | None = None,
) -> Features:
    """Return the features of pictures, or of their crops, at some sites, side by side."""

    def vectors(pixels: Tensor) -> tuple[Tensor, None]:
        return torch.cat(model.at(sites, pixels), dim=1)[:, None], None

    further = (views.column,) if views is not None and views.column else ()
    side = model.subject.config.img_size
    return encoded_by(vectors, side, dataset, measured, classes, views or views_of, further)
