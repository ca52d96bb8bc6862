"""A small image classifier: a residual network for pictures of 8 to 128 pixels, and its supervised training.

He et al. 2016 (arXiv 1512.03385), the variant for small pictures: a 3 x 3 stem without pooling, three stages of
two-layer blocks, each stage half the size and twice the width of the one before, mean over the plane, one linear layer.

Shapes: B pictures, K classes, D = 4 width features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from granary.curation.store import storage
from granary.training.losses.classification import Loss, balanced_indices, classification_loss

FORMER = {"side": "img_size", "deviation": "std"}  # names in config.json of version 0.1


@dataclass(frozen=True)
class ClassifierConfig:
    """What `config.json` holds.

    Args:
        classes: names, in the order of the logits.
        img_size: pixels of the square picture.
        width: channels of the first stage.
        depth: blocks of a stage.
        mean, std: of the RGB channels in 0..1.
    """

    classes: tuple[str, ...]
    img_size: int = 32
    width: int = 32
    depth: int = 1
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        """Raise ValueError for classes or sizes that make no classifier."""
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes are {self.classes}; there must be two or more, each once")
        if self.img_size < 8 or self.width < 1 or self.depth < 1:
            raise ValueError(
                f"img_size {self.img_size} must be at least 8, width {self.width} and depth {self.depth} at least 1"
            )


class Residual(nn.Module):
    """x + conv(relu(conv(x))), each convolution with batch norm: (B, C, h, w) -> (B, C', h / stride, w / stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        same = channels == width and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the input."""
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.skip(x) + branch)


class Classifier(nn.Module):
    """The network: (B, 3, h, w) pictures in [0, 1], of any size -> (B, K) logits; differentiable in the pictures."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Conv2d(3, config.width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(config.width)
        widths = [config.width << stage for stage in range(3) for _ in range(config.depth)]
        before = [config.width, *widths]
        self.blocks = nn.Sequential(
            *(Residual(c, w, stride=1 if c == w else 2) for c, w in zip(before, widths, strict=False))
        )
        self.head = nn.Linear(4 * config.width, len(config.classes))

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        return list(self.config.classes)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize to the model's side (bilinear, antialiased) and normalise: (B, 3, h, w) in [0, 1] -> (B, 3, s, s)."""
        size = self.config.img_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.config.mean, self.config.std))
        return (images - mean) / std

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer reads: (B, 3, h, w) in [0, 1] -> (B, D)."""
        x = F.relu(self.norm(self.stem(self.preprocess(images))))
        return self.blocks(x).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.head(self.features(images))

    def save(self, folder: str) -> None:
        """Write config.json and model.safetensors into a folder (any fsspec URL)."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        storage.write_bytes(storage.join(folder, "model.safetensors"), save(weights))
        text = json.dumps({"model": "classifier", **asdict(self.config)}, indent=2)
        storage.write_bytes(storage.join(folder, "config.json"), text.encode())

    @classmethod
    def load(cls, folder: str, device: str | torch.device = "cpu") -> Classifier:
        """Read what `save` wrote.

        Raises:
            OSError, ValueError, TypeError, RuntimeError: the folder holds something else.
        """
        fields: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder, "config.json")))
        if fields.pop("model", None) != "classifier":
            raise ValueError("config.json is of another kind of model")
        named = {FORMER.get(name, name): value for name, value in fields.items()}
        tuples = {name: tuple(value) for name, value in named.items() if isinstance(value, list)}
        model = cls(ClassifierConfig(**{**named, **tuples}))
        model.load_state_dict(load(storage.read_bytes(storage.join(folder, "model.safetensors"))))
        return model.to(device).eval()


@dataclass(frozen=True)
class Fit:
    """How a classifier is made and trained: AdamW, one warm-up and cosine decay over all steps.

    Args:
        steps, batch, lr, weight_decay: of the optimiser.
        loss: "cross-entropy" or "balanced-softmax" (its counts are those of the training mixture).
        sampling: "plain" (every picture as often) or "group-balanced" (every group as often).
        shift: pixels that a picture is moved at most.
        flip: mirror at random.
        width, depth: of the network.
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    loss: Loss = "cross-entropy"
    sampling: str = "plain"
    shift: int = 1
    flip: bool = False
    width: int = 32
    depth: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for a sampling that is not one."""
        if self.sampling not in ("plain", "group-balanced"):
            raise ValueError(f"sampling '{self.sampling}' is unknown; it is plain or group-balanced")


def fit_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    options: Fit = Fit(),
    *,
    seed: int,
    groups: np.ndarray | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Train a classifier from scratch; the same arguments give the same weights on one kind of machine.

    Args:
        images: (n, side, side, 3) uint8.
        labels: (n,) int, index in `classes`.
        classes: names.
        options: what is trained, and how.
        seed: decides the weights at the start, the batches and the augmentation.
        groups: (n,) int, for group-balanced sampling; the class where they are left out.
        device: where it is trained; the returned model is there too, in evaluation mode.
    """
    config = ClassifierConfig(tuple(classes), images.shape[1], options.width, options.depth, *_statistics(images))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(config)
    model = model.to(device).train()
    counts = torch.from_numpy(np.bincount(labels, minlength=len(classes))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps, pct_start=0.1)
    for pictures, targets in _batches(images, labels, labels if groups is None else groups, options, seed):
        logits = model(pictures.to(device))
        loss = classification_loss(options.loss, logits, targets.to(device), counts)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _statistics(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation (at least 0.05) of the channels in 0..1."""
    pixels = images.reshape(-1, 3).astype(np.float64) / 255
    mean, std = pixels.mean(axis=0).tolist(), np.maximum(pixels.std(axis=0), 0.05).tolist()
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _batches(
    images: np.ndarray, labels: np.ndarray, groups: np.ndarray, options: Fit, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `steps` batches: (batch, 3, side, side) in [0, 1] and (batch,) targets."""
    rng = np.random.default_rng(seed)
    pixels, targets = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long()
    for chosen in _order(groups, options, rng):
        yield augment(pixels[chosen].float() / 255, options.shift, options.flip, rng), targets[chosen]


def _order(groups: np.ndarray, options: Fit, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of each batch: epochs without replacement, or draws that favour no group."""
    n = len(groups)
    queue = np.empty(0, np.int64)
    for _ in range(options.steps):
        if options.sampling == "group-balanced":
            yield balanced_indices(groups, options.batch, rng)
            continue
        while len(queue) < options.batch:
            queue = np.concatenate([queue, rng.permutation(n)])
        yield queue[: options.batch]
        queue = queue[options.batch :]


def augment(images: Tensor, shift: int, flip: bool, rng: np.random.Generator) -> Tensor:
    """Move each picture by up to `shift` pixels, its edge repeated, and mirror half of them on request.

    Args:
        images: (B, 3, h, w).
        shift: pixels.
        flip: whether pictures are mirrored.
        rng: draws.

    Returns:
        (B, 3, h, w).
    """
    b, _, h, w = images.shape
    if flip:
        mirrored = torch.from_numpy(rng.random(b) < 0.5)[:, None, None, None]
        images = torch.where(mirrored, images.flip(-1), images)
    if not shift:
        return images
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    top, left = (torch.from_numpy(rng.integers(0, 2 * shift + 1, b)) for _ in range(2))
    rows = (top[:, None] + torch.arange(h))[:, None, :, None]  # (B, 1, h, 1)
    columns = (left[:, None] + torch.arange(w))[:, None, None, :]  # (B, 1, 1, w)
    return padded[torch.arange(b)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


@torch.inference_mode()
def predict(model: Classifier, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Return the most probable class of each picture: (n, h, w, 3) uint8 -> (n,) int64."""
    device = next(model.parameters()).device
    predicted = []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(images[start : start + batch]).to(device).permute(0, 3, 1, 2).float() / 255
        predicted.append(model(pixels).argmax(dim=1).cpu().numpy())
    return np.concatenate(predicted) if predicted else np.empty(0, np.int64)
