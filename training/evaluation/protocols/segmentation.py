"""Video object segmentation by label propagation, as in DINO (Jabri et al. 2020; Caron et al. 2021, arXiv 2104.14294).

Nothing is trained: the mask of the first frame is handed on from patch to patch along the cosine of frozen features.

Shapes: h, w pixels of a frame; r, c rows and columns of patches, N = r c; D width; O labels, the background first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.options import Options
from granary.training.data.augment import normalised, to_unit
from granary.training.evaluation.davis import boundary_accuracy, over_time, region_similarity
from granary.training.evaluation.features import load
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.scores import DeadLetter, Scores, dead_letter
from granary.training.evaluation.subjects import Subject
from granary.training.evaluation.videos import Labels, Video, Videos
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.registry import resolved

NOTES = (
    "J and F as DAVIS defines them, without the first frame, whose mask is given, and the last.",
    "first_mask: the mask of the first frame kept for all frames; what a model must beat.",
)
T = TypeVar("T")
Values = dict[str, list[float]]  # of one object, frame by frame: J, F, first_J, first_F
TARGETS = 1024  # patches whose neighbours are sought at once


class SegmentationOptions(Options, frozen=True):
    """How labels are handed on; the defaults are DINO's."""

    rows: int = Field(30, description="rows of patches that a frame is scaled to; 30 of 16 pixels are DAVIS's 480")
    before: int = Field(7, description="frames before this one that are asked, beside the first")
    radius: int = Field(12, description="patches that a neighbour may be away, in rows and in columns")
    k: int = Field(5, description="neighbours that vote")
    temperature: float = Field(0.1, description="T of their weights exp(cosine / T)")


def evaluate(measured: Measured, options: SegmentationOptions) -> Scores:
    """Propagate the first mask of every sequence and compare with the others.

    The data are a folder or zip of frames and masks. Of the model the patches are used, at any size of the picture. A
    limit counts sequences.

    Returns:
        J&F, J and F: the mean over objects, with `.recall`, `.decay`, `.first_mask` of J and F; then for each sequence
        its J, with `.F` and `.objects`.
    """
    if min(options.rows, options.k) < 1 or min(options.before, options.radius) < 0 or options.temperature <= 0:
        raise UserError("rows, k, temperature: must be above 0; before and radius at least 0")
    videos = Videos(measured.data)
    propagator = Propagator(load(measured), options, torch_device(measured.device), measured.dtype)
    results: dict[str, list[Values]] = {}
    dead: list[DeadLetter] = []
    with torch.inference_mode():
        for video in videos.sequences[: measured.limit]:
            results[video.name] = judged(videos, video, propagator, dead)
    if not any(results.values()):
        why = dead[0]["message"] if dead else "their masks show no object"
        raise UserError(f"data: no sequence of {measured.data} could be measured: {why}")
    notes = [f"{len(dead)} frames or masks cannot be decoded, for example {dead[0]['uri']}"] if dead else []
    return Scores(summary(results), notes, {"model": resolved(measured.model), "dead": dead})


PROTOCOL = Protocol(evaluate, SegmentationOptions, ("limit", "seed"), notes=NOTES, table=False)


def summary(results: Mapping[str, list[Values]]) -> dict[str, float | None]:
    """Return the means over all objects, then those of each sequence.

    Args:
        results: for each sequence, and each of its objects, the values of all frames.
    """
    objects = [one for values in results.values() for one in values]
    times = {name: [over_time(one[name]) for one in objects] for name in ("J", "F", "first_J", "first_F")}
    means = {name: float(np.mean([one["mean"] for one in measures])) for name, measures in times.items()}
    scores: dict[str, float | None] = {
        "J&F": (means["J"] + means["F"]) / 2,
        "J&F.first_mask": (means["first_J"] + means["first_F"]) / 2,
        "J&F.sequences": len(results),
        "J&F.objects": len(objects),
        "J&F.frames": sum(len(values[0]["J"]) for values in results.values() if values),
    }
    for name in ("J", "F"):
        scores |= {name: means[name], f"{name}.first_mask": means[f"first_{name}"]}
        scores |= {f"{name}.{key}": float(np.mean([one[key] for one in times[name]])) for key in ("recall", "decay")}
    for sequence, values in results.items():
        if values:
            scores[sequence] = float(np.mean([np.mean(one["J"]) for one in values]))
            scores |= {f"{sequence}.F": float(np.mean([np.mean(one["F"]) for one in values]))}
    return scores


def judged(videos: Videos, video: Video, propagator: Propagator, dead: list[DeadLetter]) -> list[Values]:
    """Return for each object of the first mask J and F of every frame with a mask but the first and the last.

    Args:
        videos: that the sequence is of.
        video: the sequence.
        propagator: hands the labels on.
        dead: what cannot be decoded is added: a frame or a mask, and with the first one the whole sequence.
    """
    read = Reading(videos, dead)
    start, first = read.frame(video.frames[0]), read.mask(video.masks[video.frames[0]])
    if start is None or first is None:
        return []
    objects: dict[int, Values] = {
        number: {"J": [], "F": [], "first_J": [], "first_F": []} for number in np.unique(first).tolist() if number
    }
    middle = set(video.frames[1:-1] or video.frames[1:])
    propagator.begin(start, first)
    for frame in video.frames[1:]:
        image = read.frame(frame)
        if image is None:
            continue
        answer = propagator.follow(image)
        truth = read.mask(video.masks[frame], first.shape) if frame in middle and frame in video.masks else None
        if truth is not None:
            for number, values in objects.items():
                for prefix, labels in (("", answer), ("first_", first)):
                    values[f"{prefix}J"].append(region_similarity(labels == number, truth == number))
                    values[f"{prefix}F"].append(boundary_accuracy(labels == number, truth == number))
    return [values for values in objects.values() if values["J"]]


@dataclass
class Reading:
    """Reads frames and masks; notes in `dead` what cannot be decoded, and gives None for it."""

    videos: Videos
    dead: list[DeadLetter]

    def frame(self, name: str) -> Image.Image | None:
        """Return an RGB picture."""
        return self._tried(self.videos.frame, name)

    def mask(self, name: str, shape: tuple[int, ...] | None = None) -> Labels | None:
        """Return object numbers (h, w).

        Args:
            shape: what they must have.
        """
        return self._tried(lambda name: _of_shape(self.videos.mask(name), shape), name)

    def _tried(self, read: Callable[[str], T], name: str) -> T | None:
        try:
            return read(name)
        except DecodeError as error:
            uri = f"{self.videos.path}#{name}"
            self.dead.append(dead_letter(uri, error.kind, str(error)))
            return None


def _of_shape(mask: Labels, shape: tuple[int, ...] | None) -> Labels:
    if shape not in (None, mask.shape):
        raise DecodeError("OtherSize", f"a mask of {mask.shape} pixels, where the first of the sequence has {shape}")
    return mask


class Propagator:
    """Hands labels from frame to frame of one sequence after another."""

    def __init__(
        self, subject: Subject, options: SegmentationOptions, device: torch.device, dtype: str = "float32"
    ) -> None:
        self.subject, self.options, self.device, self.dtype = subject, options, device, dtype

    def begin(self, image: Image.Image, mask: Labels) -> None:
        """Start a sequence with its first frame and the object numbers (h, w) in it."""
        self.size, self.numbers = mask.shape, np.unique(np.append(mask, 0)).astype(np.uint8)  # the background first
        features = frame_features(image, self.subject, self.options.rows, self.device, self.dtype)
        labels = first_labels(mask, self.numbers, features.shape[:2]).to(self.device)
        self.first = features, labels
        self.last: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.options.before)

    def follow(self, image: Image.Image) -> Labels:
        """Return the object numbers (h, w) of the next frame."""
        features = frame_features(image, self.subject, self.options.rows, self.device, self.dtype)
        labels = propagate(features, [self.first, *self.last], self.options)
        self.last.append((features, labels))
        return self.numbers[full_size(labels, self.size).argmax(dim=0).cpu().numpy()]


def first_labels(mask: Labels, numbers: NDArray[np.uint8], grid: tuple[int, ...]) -> Tensor:
    """Return the labels of the patches (r, c, O), one-hot: of the pixel in the middle of each patch."""
    at = [((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(grid, mask.shape, strict=True)]
    middle = mask[at[0][:, None], at[1][None]]
    return torch.from_numpy((middle[..., None] == numbers).astype(np.float32))


def frame_features(
    image: Image.Image, subject: Subject, rows: int, device: torch.device, dtype: str = "float32"
) -> Tensor:
    """Return the unit features of the patches of a frame, (r, c, D) float32."""
    config = subject.config
    columns = max(1, round(rows * image.width / image.height))
    resized = image.resize((columns * config.patch_size, rows * config.patch_size), Image.Resampling.BICUBIC)
    pixels = to_unit(torch.from_numpy(np.array(resized))[None].to(device))
    with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32"):
        patches = subject(normalised(pixels, config.mean, config.std)).patches[0]
    return F.normalize(patches.float(), dim=1).unflatten(0, (rows, columns))


def propagate(features: Tensor, context: list[tuple[Tensor, Tensor]], options: SegmentationOptions) -> Tensor:
    """Return the labels of the patches of a frame: the mean of those of the k nearest, weighted by exp(cosine / T).

    Args:
        features: (r, c, D), unit.
        context: features (r, c, D) and labels (r, c, O) of other frames.
        options: see `SegmentationOptions`.

    Returns:
        (r, c, O), shares.
    """
    rows, columns = features.shape[:2]
    targets = features.flatten(0, 1)
    sources = torch.cat([frame.flatten(0, 1) for frame, _ in context])  # (S N, D)
    labels = torch.cat([shares.flatten(0, 1) for _, shares in context])  # (S N, O)
    down, across = _places(rows, columns, features.device)
    propagated = []
    for part in torch.arange(len(targets), device=features.device).split(TARGETS):
        near = (down[part, None] - down).abs().maximum((across[part, None] - across).abs()) <= options.radius
        cosine = (targets[part] @ sources.T).masked_fill(~near.repeat(1, len(context)), -torch.inf)
        nearest = cosine.topk(min(options.k, cosine.shape[1]), dim=1)
        weights = (nearest.values / options.temperature).softmax(dim=1)  # (n, k); 0 for what is too far
        propagated.append(torch.einsum("nk,nko->no", weights, labels[nearest.indices]))
    return torch.cat(propagated).unflatten(0, (rows, columns))


def _places(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the row and the column of every patch, (N,) each."""
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return down.flatten().to(device), across.flatten().to(device)


def full_size(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return labels (r, c, O) at the size of the mask, (O, h, w), each label scaled to 0..1 over the frame."""
    planes = F.interpolate(labels.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0]
    low, high = planes.amin(dim=(1, 2), keepdim=True), planes.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > 0, (planes - low) / (high - low).clamp(min=1e-12), planes)
