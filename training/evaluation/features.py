"""Frozen features of a dataset: what every probe of a model starts from.

Shapes: n pictures, L layers, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Dead
from granary.training.data.crops import Crop, views_of
from granary.training.data.passes import pieces
from granary.training.data.reads import Views
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.scores import DeadLetter, dead_letter
from granary.training.evaluation.subjects import Subject, load_subject
from granary.training.method import Method
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.training import load_training

LAYERS = 4  # kept where there is room: they cost no more time than one
ROOM = 2 << 30  # bytes of features kept beyond what was asked for
BATCH = 256


@dataclass(frozen=True)
class Features:
    """Features of n pictures.

    Args:
        cls: (n, L, D) float32, class tokens after the last L blocks, or mean patches where there is no class token.
        mean: (n, D), the mean patch after the last block; None where cls is that.
        labels: (n,) int64, -1 for none.
        ids: n names.
        dead: what could not be decoded, as (uri, error, message).
    """

    cls: Tensor
    mean: Tensor | None
    labels: Tensor
    ids: list[str]
    dead: list[Dead]

    @property
    def last(self) -> Tensor:
        """(n, D): those of the last block."""
        return self.cls[:, -1]

    def rows(self, chosen: Tensor) -> Features:
        """Return the features of some pictures.

        Args:
            chosen: (n,) bool.
        """
        mean = None if self.mean is None else self.mean[chosen]
        ids = [name for name, kept in zip(self.ids, chosen.tolist(), strict=True) if kept]
        return Features(self.cls[chosen], mean, self.labels[chosen], ids, self.dead)


Key = tuple[Measured, str, str | None, int, tuple[str, ...]]  # how, dataset, split, rows, classes
_kept: ContextVar[dict[Key, tuple[int, Features]] | None] = ContextVar("features", default=None)


@contextlib.contextmanager
def shared_features() -> Iterator[None]:
    """Compute the features of a dataset once for all protocols inside of the block."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def features_of(
    measured: Measured, dataset: shards.Dataset, split: str | None, classes: Sequence[str] = (), layers: int = 1
) -> Features:
    """Return the features of a dataset's pictures, in its order; from memory inside of `shared_features`.

    Args:
        measured: see `Measured`.
        dataset, split: the opened dataset, and the split it was opened for.
        classes: names of the labels; none leaves all labels at -1.
        layers: the last so many blocks, fewer where the model has fewer.
    """
    kept, key = _kept.get(), (measured, dataset.path, split, dataset.count, tuple(classes))
    computed, features = (kept or {}).get(key, (0, None))
    if features is None or computed < layers:
        subject = load(measured)
        roomy = 4 * min(dataset.count, measured.limit or dataset.count) * subject.config.width * LAYERS <= ROOM
        computed = max(layers, LAYERS) if kept is not None and roomy else layers
        features = extract(subject, dataset, measured, classes, computed)
        if kept is not None:
            kept[key] = computed, features
    return dataclasses.replace(features, cls=features.cls[:, -layers:])


def load(measured: Measured) -> Subject:
    """Return the model to measure on its device. Raises UserError."""
    check_dtype(measured.dtype)
    return load_subject(measured.model, torch_device(measured.device), measured.seed)


def load_whole(measured: Measured) -> Method:
    """Return the training to measure with all its modules, on its device. Raises UserError."""
    check_dtype(measured.dtype)
    return load_training(measured.model, torch_device(measured.device), measured.seed)


def check_dtype(dtype: str) -> None:
    """Raise UserError where nothing can be computed in it."""
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not right; the types are {', '.join(sorted(DTYPES))}")


Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # (B, side, side, 3) uint8 -> cls and mean of `Features`


def extract(
    subject: Subject, dataset: shards.Dataset, measured: Measured, classes: Sequence[str] = (), layers: int = 1
) -> Features:
    """Run a model over a dataset: short edge to the model's side, the middle cut out, no augmentation."""
    config, device = subject.config, torch_device(measured.device)

    def vectors(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        cls, mean = encode(subject, pixels, device, layers, measured.dtype)
        return cls, mean if config.class_token else None

    return encoded_by(vectors, config.img_size, dataset, measured, classes)


def encoded_by(
    encode: Encode,
    side: int,
    dataset: shards.Dataset,
    measured: Measured,
    classes: Sequence[str] = (),
    views: Views = views_of,
    further: Sequence[str] = (),
) -> Features:
    """Return what a function makes of the pictures of a dataset, in its order.

    Args:
        encode: is given batches of pictures.
        side: of the pictures: short edge to it, the middle cut out, no augmentation.
        dataset, measured, classes: as in `features_of`.
        views: makes the view of a row in the place of that, see `Reads`.
        further: columns that it reads.

    Raises:
        UserError: no picture can be decoded.
    """
    encoded, labels, ids, dead = list[tuple[Tensor, Tensor | None]](), list[Tensor](), list[str](), list[Dead]()
    columns = ("image", *(("label",) if classes else ()), *further)
    for part in pieces(dataset, Crop(1, side, centre=True), columns, classes, measured.limit, measured.seed, views):
        dead += part["dead"]
        ids += part["id"]
        if part["id"]:
            labels.append(part.get("label", torch.full((len(part["id"]),), -1)))
            encoded += [encode(x) for x in part["image"][:, 0].split(measured.batch)]
    if not encoded:
        can = "be decoded" if views is views_of else "be used"
        raise UserError(f"data: none of the {len(dead):,} pictures of {dataset.path} can {can}: {dead[0][2]}")
    means = [mean for _, mean in encoded if mean is not None]
    cls = torch.cat([cls for cls, _ in encoded])
    return Features(cls, torch.cat(means) if means else None, torch.cat(labels), ids, dead)


def encode(
    subject: Subject, pixels: Tensor, device: torch.device, layers: int = 1, dtype: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Return the features of pictures.

    Args:
        subject: in evaluation mode.
        pixels: (B, side, side, 3) uint8.
        device: where the model is.
        layers: the last so many blocks.
        dtype: float32, or what autocast computes in.

    Returns:
        cls (B, L, D) and the mean patch of the last block (B, D), float32 on the CPU.
    """
    return encode_unit(subject, to_unit(pixels.to(device, non_blocking=True)), layers, dtype)


@torch.inference_mode()
def encode_unit(subject: Subject, unit: Tensor, layers: int = 1, dtype: str = "float32") -> tuple[Tensor, Tensor]:
    """Return the features of pictures (B, 3, side, side) in 0..1 that are where the model is; else as `encode`."""
    config = subject.config
    x = normalised(unit, config.mean, config.std)
    with torch.autocast(unit.device.type, DTYPES[dtype], enabled=dtype != "float32"):
        outputs = subject.last(x, layers)
    cls = torch.stack([tokens.cls.float() for tokens in outputs], dim=1)
    return cls.cpu(), outputs[-1].patches.float().mean(dim=1).cpu()


def dead_letters(part: Features) -> list[DeadLetter]:
    """Return what could not be decoded."""
    return [dead_letter(*dead) for dead in part.dead]


def distinct(ids: list[str]) -> list[str]:
    """Return ids made distinct, the second of equal ones with a number."""
    seen: dict[str, int] = {}
    names = []
    for name in ids:
        seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}/{seen[name]}" if seen[name] else name)
    return names
