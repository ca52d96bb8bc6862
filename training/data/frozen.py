"""Features of a frozen encoder, computed once for every picture of a dataset and read again by row.

They lie in a folder of their own, named by a hash of all that decides them: the encoder's architecture and weights, the
rows of the dataset, the crop. See `granary.training.data.computed`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.curation.store import storage
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Dead, Part
from granary.training.data.computed import Computed, compute_parts, read_dead, read_part, stretches
from granary.training.data.crops import Crop, views_of
from granary.training.data.passes import pieces
from granary.training.data.reads import Views
from granary.training.data.shards import Dataset, RowGroup, read_group
from granary.training.models.backbone import Backbone

Output = Literal["cls", "mean", "patches"]
PART = 8192  # rows of a part, at least, but for the last
PART_BYTES = 1 << 30  # of a part of frames, about: their features are large
BATCH = 256  # pictures that are encoded at once


@dataclass(frozen=True)
class FeatureSet:
    """The features of a dataset's n rows.

    Args:
        folder: where they are.
        ends: number of the row after the last of each part.
        dead: row -> (uri, error, message) of the pictures that could not be decoded; their features are 0.
    """

    folder: str
    ends: tuple[int, ...]
    dead: Mapping[int, Dead]

    def __len__(self) -> int:
        return self.ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to a worker, which maps the files itself."""
        return {"folder": self.folder, "ends": self.ends, "dead": self.dead}

    @cached_property
    def parts(self) -> list[Tensor]:
        """The features of each part, (rows, ...) float32."""
        return [read_part(self.folder, number)["features"] for number in range(len(self.ends))]

    def row(self, number: int) -> Tensor:
        """Return the features of a row: (D,), of patches (N, D), with the crops before where there are several."""
        part = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[part][number - (self.ends[part - 1] if part else 0)]

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """Return the features of some rows, (b, ...)."""
        return torch.stack([self.row(number) for number in numbers])


def frozen_features(
    encoder: Backbone,
    dataset: Dataset,
    crop: Crop,
    folder: str,
    output: Output = "cls",
    seed: int = 0,
    say: Callable[[str], object] = lambda sentence: None,
    views: Views = views_of,
    columns: Sequence[str] = ("image",),
) -> FeatureSet:
    """Return the features of every picture of a dataset, computed where they are not there yet.

    Args:
        encoder: in evaluation mode, on the device to compute on.
        dataset: of `open_dataset`.
        crop: what is cut out of a picture; `centre=True` draws nothing.
        folder: of features, of any encoder and dataset; a path or URL.
        output: cls, the vector of the picture, (D,); mean, the mean of its patches; patches, all of them, (N, D).
        seed: of random crops.
        say: is told of damaged files.
        views: makes the view "image" of a row, see `Reads`: of several frames with `frames`, how many there are; the
            features of those beyond are 0.
        columns: that the views are made of.

    Raises:
        UserError: another process computes the same just now.
    """
    settings: list[object] = [asdict(encoder.config), asdict(crop), output, seed]
    parts = stretches(dataset.groups, PART)
    if views is not views_of:
        size = _blank(encoder, crop, output, 1).nbytes
        settings, parts = [*settings, repr(views), size], stretches(dataset.groups, max(1, PART_BYTES // size))
    target = storage.join(folder, digest_of(encoder, dataset, settings))

    def compute(part: Dataset) -> Computed:
        return _features(
            encoder, part, crop, output, partial(pieces, crop=crop, columns=columns, seed=seed, views=views)
        )

    compute_parts(target, parts, dataset, compute, say)
    return open_features(target, parts)


def open_features(folder: str, stretches: Sequence[Sequence[RowGroup]]) -> FeatureSet:
    """Return features that are all there.

    Args:
        folder: of these alone.
        stretches: the row groups of each part.
    """
    ends = tuple(itertools.accumulate(sum(group.rows for group in groups) for groups in stretches))
    return FeatureSet(folder, ends, read_dead(folder, len(ends)))


def key_of(encoder: Backbone, dataset: Dataset, crop: Crop, output: str, seed: int) -> str:
    """Return the name of the folder: a hash of all that decides the features."""
    return digest_of(encoder, dataset, [asdict(encoder.config), asdict(crop), output, seed])


def digest_of(encoder: Backbone, dataset: Dataset, settings: object, columns: Sequence[str] = ()) -> str:
    """Return a hash of weights, rows and whatever else decides features.

    Args:
        encoder, dataset: whose.
        settings: plain data.
        columns: whose values decide them too, beside the ids.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for group in dataset.groups:
        digest.update(repr((group.url.rsplit("/", 1)[-1], group.number, group.rows, group.size)).encode())
        rows = read_group(group, ["id", *columns])
        digest.update("\n".join(rows["id"].to_pylist()).encode())
        for name in columns:
            digest.update(json.dumps(rows[name].to_pylist()).encode())
    return digest.hexdigest()[:32]


def _blank(encoder: Backbone, crop: Crop, output: Output, rows: int) -> Tensor:
    """Return features of 0 of some rows."""
    one = encoded(encoder, torch.zeros(1, 1, crop.side, crop.side, 3, dtype=torch.uint8), output)[0]
    return torch.zeros(rows, *((crop.count,) if crop.count > 1 else ()), *one.shape)


def _features(
    encoder: Backbone, dataset: Dataset, crop: Crop, output: Output, read: Callable[[Dataset], Iterable[Part]]
) -> Computed:
    """Return the features of the rows of a dataset, 0 for those of pictures that cannot be decoded."""
    first, features = dataset.groups[0].start, _blank(encoder, crop, output, dataset.count)
    alive, dead = torch.zeros(dataset.count, dtype=torch.bool), list[Dead]()
    for piece in read(dataset):
        dead += piece["dead"]
        if piece["id"]:
            rows = piece["row"] - first
            made, alive[rows] = encoded(encoder, piece["image"], output), True
            if "frames" in piece and crop.count > 1:
                there = torch.arange(crop.count) < piece["frames"][:, None]
                made = made * there.view(*there.shape, *[1] * (made.ndim - 2))
            features[rows] = made
    lost = (~alive).nonzero()[:, 0].tolist()  # in the order of the rows, as what is dead is
    return Computed({"features": features}, {row + first: cells for row, cells in zip(lost, dead, strict=True)})


@torch.inference_mode()
def encoded(encoder: Backbone, pixels: Tensor, output: Output) -> Tensor:
    """Return the features of pictures on the CPU, float32.

    Args:
        encoder: in evaluation mode.
        pixels: (B, count, side, side, 3) uint8.
        output: see `frozen_features`.

    Returns:
        (B, D), for patches (B, N, D); where there are several crops (B, count, ...).
    """
    device, config = next(encoder.parameters()).device, encoder.config
    features = []
    for part in pixels.flatten(0, 1).split(BATCH):
        tokens = encoder(normalised(to_unit(part.to(device)), config.mean, config.std))
        patches = tokens.patches if output == "patches" else tokens.patches.mean(dim=1)
        features.append((tokens.cls if output == "cls" else patches).float().cpu())
    return torch.cat(features).unflatten(0, pixels.shape[:2]).squeeze(1)


class FrozenViews:
    """What a training on features has in the place of pictures: `features` of each row, see `Reads.views`.

    Args:
        sets: of each dataset of the mixture.
    """

    def __init__(self, sets: Sequence[FeatureSet]) -> None:
        self.sets = list(sets)
        self.ends = list(itertools.accumulate(len(features) for features in sets))

    def __call__(
        self, row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits
    ) -> Part:
        """Return the features of a row; raises DecodeError where its picture could not be decoded."""
        number = int(row["row"])
        place = int(np.searchsorted(self.ends, number, side="right"))
        features = self.sets[place]
        number -= self.ends[place - 1] if place else 0
        if number in features.dead:
            raise DecodeError(*features.dead[number][1:])
        return {"features": features.row(number).numpy()}
