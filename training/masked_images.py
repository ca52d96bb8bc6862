"""What masked image models share: one crop of a picture, and its mask, which depends on its id and the step alone.

Shapes: B pictures, N patches of a picture.
"""

from __future__ import annotations

import abc
import math

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.method import Method, Moment
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

MASKS = 1  # purpose of random draws


class MaskedOptions(Options, frozen=True):
    """Options of a crop and its mask; defaults are MAE's for ImageNet (arXiv 2111.06377)."""

    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that are masked")
    crop_scale: tuple[float, float] = Field((0.2, 1.0), description="share of the picture's area in a crop")
    flip: float = Field(0.5, ge=0, le=1, description="chance that a crop is mirrored")


class MaskedImages(Method):
    """An encoder, which is evaluated, and for each picture a crop and a mask of its patches.

    Attributes:
        masked_patches: of every picture.
    """

    Options = MaskedOptions
    kinds = ("vit",)
    columns = ("image",)
    evaluated = "encoder"
    config: ViTConfig

    def __init__(self, config: ViTConfig, options: MaskedOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        if config.stem == "conv":
            raise UserError("model.stem: conv is not right: its tokens would have seen the patches that are predicted")
        self.options = options
        self.masked_patches, patches = int(self.draw_mask(np.random.default_rng(0)).sum()), config.grid**2
        if not 0 < self.masked_patches < patches:
            raise UserError(
                f"options.mask_ratio: {options.mask_ratio} is not right: it masks {self.masked_patches} of {patches} "
                "patches"
            )
        self.encoder = VisionTransformer(config)

    @abc.abstractmethod
    def draw_mask(self, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Return the mask of a picture, (N,), true where a patch is masked; every mask has as many."""

    def views(self) -> dict[str, Crop]:
        """One random crop."""
        return {"image": Crop(1, self.config.img_size, self.options.crop_scale)}

    def changes(self) -> Photometric:
        """Return what is done to a crop: it may be mirrored."""
        return Photometric(flip=self.options.flip, jitter=0.0, grey=0.0, blur=0.0)

    def pixels(self, batch: Part) -> Tensor:
        """Return the crops of a batch, (B, 3, S, S), normalised."""
        changed = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], self.changes())
        return normalised(changed, self.config.mean, self.config.std)

    def masks(self, batch: Part, moment: Moment) -> Tensor:
        """Return the masks of a batch, (B, N) bool: those of other pictures and processes change none."""
        drawn = [self.draw_mask(moment.picture_generator(identity, MASKS)) for identity in batch["id"]]
        return torch.from_numpy(np.stack(drawn)).to(batch["image"].device, non_blocking=True)


class MaskTokens(MaskedImages):
    """An encoder through which mask tokens go in the place of masked patches, with BEiT's initial weights."""

    MODEL = {"mask_token": True, "layer_scale": 0.1}  # noqa: RUF012 read only

    def __init__(self, config: ViTConfig, options: MaskedOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        if not config.mask_token:
            raise UserError("model.mask_token: False is not right: it takes the place of masked patches; leave it out")
        nn.init.trunc_normal_(self.encoder.mask_token, std=0.02)
        rescale_branches(self.encoder)


@torch.no_grad()
def rescale_branches(encoder: VisionTransformer) -> None:
    """Divide the last matrices of both branches of block l, from 1, by sqrt(2 l) (BEiT, arXiv 2106.08254, section 2.5).

    Args:
        encoder: with initial weights.
    """
    for name, weight in encoder.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            weight.div_(math.sqrt(2 * int(name.split(".")[1]) + 2))  # blocks.0 is block 1
