"""Where in a joint-embedding training a picture is looked at: behind the backbone, or behind the projector.

Shapes: B pictures, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from granary.curation.encoders.inference import torch_device
from granary.training.data.augment import normalised, to_unit
from granary.training.evaluation.features import check_dtype
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.subjects import Pixels, Subject
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.registry import read_name
from granary.training.models.teacher import projector_of
from granary.training.models.training import load_training

PROJECTOR, BACKBONE = SITES = ("projector", "backbone")


@dataclass(frozen=True)
class Projected:
    """A model and what follows its backbone in training, in evaluation mode.

    Args:
        subject: the backbone, the one that is evaluated.
        projector: None where the training has none.
        device: where they are.
        dtype: float32, or what autocast computes in.
    """

    subject: Subject
    projector: nn.Module | None
    device: torch.device
    dtype: str = "float32"

    @property
    def sites(self) -> tuple[str, ...]:
        """Where it can be looked at, as the paper attacks first."""
        return (BACKBONE,) if self.projector is None else SITES

    @torch.inference_mode()
    def at(self, sites: Sequence[str], pixels: Tensor) -> list[Tensor]:
        """Return the vectors of pictures at some sites, each (B, D) float32 on the CPU.

        Args:
            sites: of `sites`.
            pixels: (B, side, side, 3) uint8.
        """
        config = self.subject.config
        x = normalised(to_unit(pixels.to(self.device, non_blocking=True)), config.mean, config.std)
        with torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "float32"):
            vectors = {BACKBONE: self.subject(x).cls}
            if PROJECTOR in sites and self.projector is not None:
                vectors[PROJECTOR] = self.projector(vectors[BACKBONE])
        return [vectors[site].float().cpu() for site in sites]

    def widths(self, sites: Sequence[str]) -> dict[str, int]:
        """Return D of each site, from a black picture."""
        side = self.subject.config.img_size
        black = self.at(sites, torch.zeros(1, side, side, 3, dtype=torch.uint8))
        return {site: vectors.shape[1] for site, vectors in zip(sites, black, strict=True)}


def load_projected(measured: Measured, name: str, seed: int) -> Projected:
    """Return a model with its projector, where it has one.

    Args:
        measured: device and dtype.
        name: of the model.
        seed: of random weights.

    Raises:
        UserError: there is no such model, or no such dtype.
    """
    device = torch_device(measured.device)
    check_dtype(measured.dtype)
    if read_name(name).way == "pixels":
        return Projected(Pixels(), None, device, measured.dtype)
    method = load_training(name, device, seed)
    return Projected(method.evaluated_model(), projector_of(method), device, measured.dtype)
