"""Features of a dataset's pictures at the sites of a model, as one vector for each picture.

Two reductions of the tokens of a site: `cls`, the class token, and `mean`, the mean patch. They are never mixed: the
class token of an autoencoder has no loss of its own, and a model without a class token has only the mean patch.
Shapes: B pictures, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.augment import normalised, to_unit
from granary.training.evaluation.features import Features, encoded_by
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.sites import PARTS, Site, sites_of, tokens_at
from granary.training.evaluation.subjects import Subject
from granary.training.models.backbone import Tokens
from granary.training.models.clip_transformers import DTYPES

Reduction = Literal["cls", "mean"]
KINDS = ("embed", *PARTS, "norm", "stem", "stage", "pixels")


class Column(NamedTuple):
    """A site and how its tokens become a vector."""

    site: Site
    reduction: Reduction

    def __str__(self) -> str:
        return f"{self.site}.{self.reduction}"

    def of(self, tokens: Tokens) -> Tensor:
        """Return (B, D) float32."""
        vectors = tokens.cls if self.reduction == "cls" else tokens.patches.float().mean(dim=1)
        return vectors.float()


def sites_named(subject: Subject, kinds: Sequence[str] = ()) -> list[Site]:
    """Return the sites of a model that are of some kinds, in their order; none stands for all.

    Raises:
        UserError: there is no such kind of site, or the model has none of these.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"sites: {unknown[0]!r} is not right; the kinds of sites are {', '.join(KINDS)}")
    sites = [site for site in sites_of(subject) if not kinds or site.kind in kinds]
    if not sites:
        there = ", ".join(dict.fromkeys(site.kind for site in sites_of(subject)))
        raise UserError(f"sites: {', '.join(kinds)} is not right: the model has {there}")
    return sites


def columns_of(subject: Subject, kinds: Sequence[str] = ()) -> list[Column]:
    """Return what can be measured of a model, site by site; without a class token only mean patches.

    Args:
        subject: the model.
        kinds: of sites, as in `sites_named`, which raises.
    """
    reductions: tuple[Reduction, ...] = ("cls", "mean") if has_class_token(subject) else ("mean",)
    return [Column(site, reduction) for site in sites_named(subject, kinds) for reduction in reductions]


def has_class_token(subject: Subject) -> bool:
    """Say whether the vector of a picture is more than the mean of its map."""
    return subject.config.class_token


@torch.inference_mode()
def tokens_of(
    subject: Subject, pixels: Tensor, sites: Sequence[Site], device: torch.device, dtype: str = "float32"
) -> list[Tokens]:
    """Return the tokens of pictures at some sites, on the device.

    Args:
        subject: the model, on the device.
        pixels: (B, side, side, 3) uint8.
        sites: which.
        device: where.
        dtype: float32, or what autocast computes in.
    """
    config = subject.config
    x = normalised(to_unit(pixels.to(device, non_blocking=True)), config.mean, config.std)
    with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32"):
        return tokens_at(subject, x, sites)


def vectors_of(
    subject: Subject, pixels: Tensor, columns: Sequence[Column], device: torch.device, dtype: str = "float32"
) -> list[Tensor]:
    """Return the vectors of pictures in some columns: (B, D) float32 of each, on the CPU; arguments as `tokens_of`."""
    sites = list(dict.fromkeys(column.site for column in columns))
    tokens = dict(zip(sites, tokens_of(subject, pixels, sites, device, dtype), strict=True))
    return [column.of(tokens[column.site]).cpu() for column in columns]


def widths_of(subject: Subject, columns: Sequence[Column], device: torch.device) -> list[int]:
    """Return D of each column, from a black picture."""
    side = subject.config.img_size
    black = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    return [vectors.shape[1] for vectors in vectors_of(subject, black, columns, device)]


def in_room(widths: Mapping[Column, int], rows: int, room: int) -> Iterator[list[Column]]:
    """Yield columns in groups, one after another, whose vectors of all pictures fit into some bytes.

    Args:
        widths: D of each column.
        rows: pictures.
        room: bytes; a column that is larger is a group alone.
    """
    group, size = list[Column](), 0
    for column, width in widths.items():
        if group and size + 4 * rows * width > room:
            yield group
            group, size = [], 0
        group.append(column)
        size += 4 * rows * width
    yield group


def joined_features(
    subject: Subject, dataset: shards.Dataset, measured: Measured, columns: Sequence[Column], classes: Sequence[str]
) -> Features:
    """Return the vectors of a dataset's pictures in some columns, side by side: `cls` is (n, 1, sum of their D)."""
    device = torch_device(measured.device)

    def vectors(pixels: Tensor) -> tuple[Tensor, None]:
        joined = torch.cat(vectors_of(subject, pixels, columns, device, measured.dtype), dim=1)
        return joined[:, None], None

    return encoded_by(vectors, subject.config.img_size, dataset, measured, classes)
