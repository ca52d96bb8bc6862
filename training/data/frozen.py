"""Features of a frozen encoder, computed once for every picture of a dataset and read again by row.

They lie in a folder of their own, named by a hash of all that decides them: the encoder's architecture and weights, the
rows of the dataset, the crop. A part holds the features of some row groups; a marker beside it, written after it, has
its hash and what could not be decoded. So an interrupted computation goes on where it stopped, and a damaged part is
computed again. One process computes at a time; any number may read, from memory-mapped files where they are local.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.lock import Lock
from granary.curation.store import storage
from granary.curation.store.trees import json_tree
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Dead, Part
from granary.training.data.crops import Crop
from granary.training.data.passes import pieces
from granary.training.data.shards import Dataset, RowGroup, read_group
from granary.training.models.backbone import Backbone

Output = Literal["cls", "mean", "patches"]
PART = 8192  # rows of a part, at least, but for the last
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
        return [_read(_part(self.folder, number)) for number in range(len(self.ends))]

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

    Raises:
        UserError: another process computes the same just now.
    """
    target = storage.join(folder, key_of(encoder, dataset, crop, output, seed))
    stretches = list(_stretches(dataset.groups))
    if not all([_marker(target, number, say) for number in range(len(stretches))]):
        lock = Lock(target)
        lock.acquire()
        try:
            for number, groups in enumerate(stretches):
                if _marker(target, number) is None:
                    _compute(target, number, encoder, replace(dataset, groups=groups), crop, output, seed)
        finally:
            lock.release()
    return open_features(target, stretches)


def open_features(folder: str, stretches: Sequence[Sequence[RowGroup]]) -> FeatureSet:
    """Return features that are all there.

    Args:
        folder: of these alone.
        stretches: the row groups of each part.
    """
    ends = tuple(itertools.accumulate(sum(group.rows for group in groups) for groups in stretches))
    dead: dict[int, Dead] = {}
    for number in range(len(ends)):
        dead |= {int(row): tuple(cells) for row, cells in (_marker(folder, number) or {})["dead"].items()}
    return FeatureSet(folder, ends, dead)


def key_of(encoder: Backbone, dataset: Dataset, crop: Crop, output: str, seed: int) -> str:
    """Return the name of the folder: a hash of all that decides the features."""
    digest = hashlib.sha256(json.dumps([asdict(encoder.config), asdict(crop), output, seed]).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for group in dataset.groups:
        digest.update(repr((group.url.rsplit("/", 1)[-1], group.number, group.rows, group.size)).encode())
        digest.update("\n".join(read_group(group, ["id"])["id"].to_pylist()).encode())
    return digest.hexdigest()[:32]


def _stretches(groups: Sequence[RowGroup]) -> Iterator[list[RowGroup]]:
    """Yield the row groups of each part."""
    stretch: list[RowGroup] = []
    for group in groups:
        stretch.append(group)
        if sum(member.rows for member in stretch) >= PART:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _part(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:05d}.safetensors")


def _read(url: str) -> Tensor:
    if storage.is_local(url):
        return load_file(storage.filesystem(url)[1])["features"]  # maps the file
    return load(storage.read_bytes(url))["features"]


def _marker(folder: str, number: int, say: Callable[[str], object] = lambda sentence: None) -> dict[str, Any] | None:
    """Return what the marker of a part says; None where part or marker are not there or not as they were written."""
    part = _part(folder, number)
    try:
        marker = json_tree(storage.read_bytes(f"{part}.json"))
        if isinstance(marker, dict) and marker["hash"] == _hash(storage.read_bytes(part)):
            return marker
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError):
        pass
    say(f"features: {part} is damaged; it is computed again")
    return None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _compute(
    folder: str, number: int, encoder: Backbone, dataset: Dataset, crop: Crop, output: Output, seed: int
) -> None:
    """Write a part and its marker.

    Args:
        folder, number: which part.
        encoder, crop, output, seed: see `frozen_features`.
        dataset: its row groups alone.
    """
    first = dataset.groups[0].start
    blank = torch.zeros(1, crop.count, crop.side, crop.side, 3, dtype=torch.uint8)
    features = torch.zeros(dataset.count, *encoded(encoder, blank, output).shape[1:])
    alive, dead = torch.zeros(dataset.count, dtype=torch.bool), list[Dead]()
    for piece in pieces(dataset, crop, seed=seed):
        dead += piece["dead"]
        if piece["id"]:
            rows = piece["row"] - first
            features[rows], alive[rows] = encoded(encoder, piece["image"], output), True
    lost = (~alive).nonzero()[:, 0].tolist()  # in the order of the rows, as what is dead is
    data = save({"features": features})
    storage.write_bytes(_part(folder, number), data)
    marker = {"hash": _hash(data), "dead": {row + first: cells for row, cells in zip(lost, dead, strict=True)}}
    storage.write_bytes(f"{_part(folder, number)}.json", json.dumps(marker).encode())


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
