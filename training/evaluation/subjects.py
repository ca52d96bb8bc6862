"""What can be measured: any model that has a name, and as a baseline the pixels themselves, which learned nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from granary.training.models.backbone import Backbone, Tokens
from granary.training.models.registry import load_model, read_name
from granary.training.models.vit_config import ViTConfig

SIDE, PATCH = 32, 8  # of the raw pixels


class Pixels(nn.Module):
    """Raw pixels in the place of a model: `cls` is the whole picture in a row, a patch its own 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ViTConfig(
            img_size=SIDE,
            patch_size=PATCH,
            width=3 * PATCH**2,
            depth=1,
            heads=1,
            class_token=False,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )

    def forward(self, pixels: Tensor) -> Tokens:
        """Return cls (B, 3 * h * w) and patches (B, N, 192) of pictures (B, 3, h, w)."""
        patches = nn.functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
        return Tokens(pixels.flatten(1), patches[:, :0], patches)

    def last(self, pixels: Tensor, count: int) -> list[Tokens]:
        """Return the same: there is one layer, however many are asked for."""
        return [self(pixels)]


Subject = Backbone | Pixels


def load_subject(name: str, device: torch.device | str = "cpu", seed: int = 0) -> Subject:
    """Return what a name stands for, in evaluation mode.

    Args:
        name: any of those of `granary.training.models.registry`.
        device: where the weights are put.
        seed: of random weights.

    Raises:
        UserError: there is no such model; the message says what is wrong.
    """
    return Pixels().to(device) if read_name(name).way == "pixels" else load_model(name, device, seed)
