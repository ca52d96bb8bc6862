"""granary:PATH: a backbone trained with `training/`: a training directory (its last checkpoint) or a folder.

Options: pool (cls, the default, or mean of the patch tokens), batch. Pictures are scaled to the model's side by their
short edge and cut to a square in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from granary.curation.encoders.inference import (
    UNLOADABLE,
    fingerprint,
    finite_unit_rows,
    normalised,
    reason,
    torch_device,
    workable,
)
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.curation.store.storage import join


class TrainedEncoder:
    """A model of granary's own; a row agrees to 1e-5 whatever its batch."""

    squeezes = False
    copy_threshold = 0.6
    leak_threshold = 0.45

    def __init__(self, spec: EncoderSpec, device: str = "auto") -> None:
        """Load the model; raises UserError when the folder or an option is wrong."""
        from granary.training.models.build import load_backbone
        from granary.training.models.registry import model_folder

        spec.check_options("pool", "batch")
        self.name = spec.text
        self.pool = spec.choice("pool", "cls", "cls", "mean")
        self.batch = spec.positive("batch", 64)
        self.device = torch_device(device)
        try:
            folder = model_folder(spec.target)
            self.model = load_backbone(folder, self.device).eval()
        except (UserError, *UNLOADABLE) as error:
            raise UserError(
                f"encoder '{spec.text}': '{spec.target}' holds no config.json and model.safetensors of a model "
                f"saved by granary ({reason(error)})"
            ) from error
        self.dimension = self.model.config.width
        self.side: int | None = self.model.config.img_size
        files = [join(folder, name) for name in ("config.json", "model.safetensors")]
        self.fingerprint = fingerprint(files, "granary-1", self.pool)

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, dimension) float32 unit rows for n RGB pictures."""
        rows = [self._vectors(images[i : i + self.batch]) for i in range(0, len(images), self.batch)]
        return np.concatenate(rows) if rows else np.empty((0, self.dimension), np.float32)

    @torch.inference_mode()
    def _vectors(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed one batch."""
        pixels = torch.from_numpy(np.stack([self._pixels(image) for image in images])).to(self.device)
        tokens = self.model(pixels.permute(0, 3, 1, 2).contiguous())
        return finite_unit_rows(tokens.cls if self.pool == "cls" else tokens.patches.mean(dim=1))

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """Resize, crop and normalise: (side, side, 3) float32."""
        config = self.model.config
        square = ImageOps.fit(workable(image), (config.img_size, config.img_size), Image.Resampling.BICUBIC)
        return normalised(square, config.mean, config.std)
