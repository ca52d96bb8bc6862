"""Classifiers that give feedback: their own preprocessing, differentiable in the picture.

A classifier is written `granary:PATH` (trained with granary) or as an id or folder of a `transformers` image
classifier (`hf:` before it is allowed).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from granary.curation.encoders.inference import UNLOADABLE, fingerprint, reason, torch_device
from granary.curation.errors import UserError
from granary.curation.store.storage import join, local_folder
from granary.synth.feedback.diffusion.checkpoints import model_files, no_progress_bars, refuse_pickles

RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class ImageClassifier(Protocol):
    """What gives feedback.

    Attributes:
        classes: names in the order of the logits.
        fingerprint: sha256 (hex) of weights and preprocessing.
    """

    classes: list[str]
    fingerprint: str

    def logits(self, images: Tensor) -> Tensor:
        """Return (n, classes) for pictures (n, 3, h, w) float in 0..1, differentiable."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Return (n, d), what the last layer reads, differentiable."""
        ...


def load_classifier(spec: str, device: str | torch.device = "auto", dtype: str = "float32") -> ImageClassifier:
    """Load a classifier, frozen and in evaluation mode; raises UserError when it cannot be used."""
    where = torch_device(device) if isinstance(device, str) else device
    if spec.startswith("granary:"):
        return TrainedClassifier(spec.removeprefix("granary:"), where, dtype)
    return TransformersClassifier(spec.removeprefix("hf:"), where, dtype)


class TrainedClassifier:
    """A classifier trained with `training/`."""

    def __init__(self, folder: str, device: torch.device, dtype: str = "float32") -> None:
        """Load it; raises UserError when the folder holds none."""
        from granary.training.models.classifier import Classifier

        try:
            model = Classifier.load(folder, device)
        except UNLOADABLE as error:
            raise UserError(
                f"classifier: '{folder}' holds no config.json and model.safetensors of a classifier saved by granary "
                f"({reason(error)})"
            ) from error
        self.model = model.to(getattr(torch, dtype)).eval().requires_grad_(False)
        self.classes = list(model.classes)
        self.dtype: torch.dtype = getattr(torch, dtype)
        files = [join(folder, name) for name in ("config.json", "model.safetensors")]
        self.fingerprint = fingerprint(files, "classifier-1", dtype)

    def logits(self, images: Tensor) -> Tensor:
        """Return (n, classes)."""
        return self.model(images.to(self.dtype)).float()

    def features(self, images: Tensor) -> Tensor:
        """Return (n, d)."""
        return self.model.features(images.to(self.dtype)).float()


class TransformersClassifier:
    """An image classifier of `transformers` behind the preprocessing of its image processor."""

    def __init__(self, name: str, device: torch.device, dtype: str = "float32") -> None:
        """Load it; raises UserError for pickled weights, a missing head or preprocessing that cannot be followed."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

        folder = Path(local_folder(name)).expanduser()
        source = str(folder) if folder.is_dir() else name
        refuse_pickles("classifier", folder, name)
        options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False}
        try:
            AutoConfig.from_pretrained(source, trust_remote_code=False)  # tells whether the Hub is there
            processor = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)
            with no_progress_bars():
                model, report = AutoModelForImageClassification.from_pretrained(
                    source, output_loading_info=True, **options
                )
        except UNLOADABLE as error:
            raise UserError(
                f"classifier: '{name}' is no image classifier of transformers with safetensors weights and an image "
                f"processor ({reason(error)}); a classifier trained with granary is written granary:PATH"
            ) from error
        if report["missing_keys"]:
            raise UserError(f"classifier: '{name}' lacks trained weights: {min(report['missing_keys'])}")
        self.model = model.to(device).eval().requires_grad_(False)
        self.dtype = model.dtype
        self.classes = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        self.preprocess = Preprocessing(processor, name)
        self.head = _last_layer(model, len(self.classes), name)
        commit = getattr(model.config, "_commit_hash", None)
        files = model_files(folder) if folder.is_dir() else []
        self.fingerprint = fingerprint(files, "transformers-1", dtype, commit, processor.to_json_string())

    def logits(self, images: Tensor) -> Tensor:
        """Return (n, classes)."""
        return self.model(pixel_values=self.preprocess(images).to(self.dtype)).logits.float()

    def features(self, images: Tensor) -> Tensor:
        """Return (n, d), the input of the last linear layer."""
        inputs: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        try:
            self.logits(images)
        finally:
            hook.remove()
        return inputs[0].flatten(1).float()


class PictureSize(TypedDict, total=False):
    """Pixels of a picture: of both edges, or of the shorter one."""

    height: int
    width: int
    shortest_edge: int


class ProcessorSettings(TypedDict, total=False):
    """The settings of an image processor that are followed; resample is a number of Pillow."""

    do_resize: bool
    size: PictureSize
    resample: int | None
    crop_pct: float | None
    do_center_crop: bool
    crop_size: PictureSize | None
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: list[float]
    image_std: list[float]


class ImageProcessor(Protocol):
    """What is used of an image processor of `transformers`."""

    def to_dict(self) -> ProcessorSettings:
        """Return its settings."""
        ...

    def __call__(self, images: Image.Image, return_tensors: str) -> Mapping[str, Tensor]:
        """Return {"pixel_values": (1, 3, h, w)}."""
        ...


class Preprocessing:
    """A Pillow image processor, followed with torch: resize, centre crop, rescale, normalise.

    torch's antialiased resize is Pillow's, but for the rounding to 8 bits in between, which has no gradient. The
    constructor compares both on a picture and raises UserError when the processor does anything else.
    """

    def __init__(self, processor: ImageProcessor, name: str) -> None:
        self.settings = processor.to_dict()
        self.resample = RESAMPLE.get(int(self.settings.get("resample") or 2), "bicubic")
        wave = np.add.outer(np.sin(np.arange(90) / 9), np.cos(np.arange(72) / 7))
        picture = np.stack([wave, -wave, wave * 0.5], axis=2)
        pixels = ((picture + 2) * 63).astype(np.uint8)
        theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        ours = self(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
        if ours.shape != theirs.shape or float((ours - theirs).abs().mean()) > 0.05:
            kind = type(processor).__name__
            raise UserError(f"classifier: '{name}' prepares pictures in a way that is not known here ({kind})")

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare pictures (n, 3, h, w) in 0..1."""
        x = self._cropped(self._resized(images))
        if self.settings.get("do_rescale", True):
            x = x * (255 * self.settings.get("rescale_factor", 1 / 255))
        if self.settings.get("do_normalize", True):
            mean, std = (x.new_tensor(self.settings[key])[:, None, None] for key in ("image_mean", "image_std"))
            x = (x - mean) / std
        return x

    def _resized(self, images: Tensor) -> Tensor:
        if not self.settings.get("do_resize", True):
            return images
        height, width = self._target(*images.shape[-2:])
        if (height, width) == images.shape[-2:]:
            return images
        if self.resample == "nearest":
            return F.interpolate(images, (height, width), mode="nearest-exact")
        return F.interpolate(images, (height, width), mode=self.resample, antialias=True)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Return the size after the resize."""
        size = self.settings["size"]
        if size.get("height"):
            return int(size["height"]), int(size["width"])
        edge = int(size["shortest_edge"])
        share = self.settings.get("crop_pct")  # ConvNeXt and kin: below 384 resize to more and crop
        if share and edge >= 384:
            return edge, edge
        edge = int(edge / share) if share else edge
        short, long = sorted((height, width))
        stretched = int(edge * long / short)
        return (edge, stretched) if height <= width else (stretched, edge)

    def _cropped(self, images: Tensor) -> Tensor:
        size = self.settings.get("crop_size") if self.settings.get("do_center_crop") else None
        if self.settings.get("crop_pct") and int(self.settings["size"]["shortest_edge"]) < 384:
            edge = int(self.settings["size"]["shortest_edge"])
            size = {"height": edge, "width": edge}
        if not size:
            return images
        height, width = int(size["height"]), int(size["width"])
        dy, dx = max(0, height - images.shape[-2]), max(0, width - images.shape[-1])
        if dy or dx:
            images = F.pad(images, ((dx + 1) // 2, dx // 2, (dy + 1) // 2, dy // 2))
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        return images[..., top : top + height, left : left + width]


def _last_layer(model: nn.Module, classes: int, name: str) -> nn.Linear:
    """Return the linear layer that gives the logits."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not layers:
        raise UserError(f"classifier: '{name}' does not end in a linear layer, so it has no features")
    return layers[-1]
