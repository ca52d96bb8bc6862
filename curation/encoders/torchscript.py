"""torchscript:PATH: a copy-detection descriptor exported with `torch.jit.save`, such as SSCD.

Pictures are scaled to a short edge of 288 pixels (`resize=short`, the default) or squeezed to 320 x 320
(`resize=square`), and normalised with ImageNet's mean and standard deviation: Pizzi et al. 2022 (arXiv 2202.10261) and
its released models.

Trust: a TorchScript file is a program. torch restricts its pickle to tensors and script classes, but the program
itself runs with the process's rights: load only files whose origin you trust, as you would a library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from granary.curation.encoders.inference import (
    fingerprint,
    finite_unit_rows,
    normalised,
    probed_dimension,
    torch_device,
    workable,
)
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError

SHORT_EDGE = 288
SQUARE = 320
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class TorchScriptEncoder:
    """A scripted module (n, 3, h, w) float32 -> (n, d); a row agrees to 1e-5 whatever its batch."""

    squeezes = False
    copy_threshold = 0.6
    leak_threshold = 0.45

    def __init__(self, spec: EncoderSpec, device: str = "auto") -> None:
        """Load the module; raises UserError when the file or an option is wrong."""
        spec.check_options("resize", "batch")
        self.name = spec.text
        self.batch = spec.positive("batch", 32)
        self.resize = spec.choice("resize", "short", "short", "square")
        self.side: int | None = SHORT_EDGE if self.resize == "short" else SQUARE
        self.device = torch_device(device)
        path = os.path.expanduser(spec.target)
        if not os.path.isfile(path):
            raise UserError(f"encoder '{spec.text}': there is no file '{path}'; give a file saved by torch.jit.save")
        try:
            self.module = torch.jit.load(path, map_location=self.device).eval()
        except RuntimeError as error:
            raise UserError(
                f"encoder '{spec.text}': '{path}' is not a TorchScript file; save the module by torch.jit.save"
            ) from error
        self.fingerprint = fingerprint([path], "torchscript-1", self.resize, SHORT_EDGE, SQUARE, MEAN, STD)
        self.dimension = probed_dimension(self.name, self._vectors)

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, dimension) float32 unit rows for n RGB pictures; pictures of one size share a batch."""
        rows = np.empty((len(images), self.dimension), np.float32)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(self._target_size(workable(image)), []).append(index)
        for members in groups.values():
            for start in range(0, len(members), self.batch):
                chosen = members[start : start + self.batch]
                rows[chosen] = self._vectors([images[index] for index in chosen])
        return rows

    def _target_size(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height in pixels as the module sees the picture."""
        if self.resize == "square":
            return SQUARE, SQUARE
        scale = SHORT_EDGE / min(image.size)
        return round(image.width * scale), round(image.height * scale)

    @torch.inference_mode()
    def _vectors(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed pictures whose target sizes agree."""
        pixels = np.stack([self._pixels(workable(image)) for image in images])  # (n, h, w, 3)
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).contiguous()
        return finite_unit_rows(self.module(batch))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """Resize and normalise: (h, w, 3) float32."""
        resized = image.resize(self._target_size(image), Image.Resampling.BILINEAR)
        return normalised(resized, MEAN, STD)
