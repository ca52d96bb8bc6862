"""StoP, stochastic positional embeddings: I-JEPA that is unsure where the patches to predict are.

Bar et al., "Stochastic positional embeddings improve masked image modeling" (arXiv 2308.00566; its first version is
FlexPredict). The position of a mask token is a Gaussian whose covariance is learned, std^2 A A^T, with the A that
projects the context tokens: were it another matrix, the noise would learn to be 0 (propositions A.1 and 3.1).

Shapes as in `granary.training.methods.ijepa`; A is (P, D), without its bias b.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.training.data.augment import Photometric, photometric
from granary.training.data.collate import Part
from granary.training.method import Moment
from granary.training.methods.ijepa import IJEPA, IJEPAOptions
from granary.training.models.predictor import Predictor
from granary.training.models.vit_config import ViTConfig


class StoPOptions(IJEPAOptions, frozen=True):
    """Options of StoP: those of I-JEPA, the noise, and the augmentation of the authors' recipes."""

    noise_std: float = Field(
        0.25, ge=0, description="standard deviation of the noise before A (the authors' var is one); 0 is I-JEPA"
    )
    shared_bias: bool = Field(
        False, description="as the authors' code: the bias of the context's projection is the mask token"
    )
    flip: float = Field(0.5, ge=0, le=1, description="chance that a picture is mirrored")
    grey: float = Field(0.2, ge=0, le=1, description="chance that a picture is grey")
    blur: float = Field(0.5, ge=0, le=1, description="chance that a picture is blurred")


class StoP(IJEPA):
    """I-JEPA with noise in the positions of the mask tokens. The encoders, what is evaluated, have none."""

    Options = StoPOptions
    options: StoPOptions

    def build_predictor(self) -> Predictor:
        """Return the predictor with its initial weights, those of I-JEPA for the same seed."""
        options = self.options
        heads = options.predictor_heads or self.config.heads
        sizes = options.predictor_width, options.predictor_depth, heads
        return StochasticPredictor(self.config, *sizes, options.noise_std, options.shared_bias)

    def pictures(self, batch: Part) -> Tensor:
        """Return the crops of a batch, (B, 3, S, S) in 0..1, mirrored, grey and blurred by chance."""
        options = self.options
        changes = Photometric(flip=options.flip, jitter=0.0, grey=options.grey, blur=options.blur)
        return photometric(super().pictures(batch), batch["image_draws"][:, 0], changes)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return what I-JEPA does, and the sizes of A and of the mask token: noise makes A small, the token large."""
        predictor = self.predictor
        token = predictor.embed.bias if self.options.shared_bias else predictor.mask_token
        norms = {"noise_norm": predictor.embed.weight.detach().norm(), "token_norm": token.detach().norm()}
        return super().forward(batch, moment) | norms


class StochasticPredictor(Predictor):
    """I-JEPA's predictor whose mask tokens stand at positions of which only the distribution is known.

    Noise comes from torch's generator, which the loop seeds for every step, process and part.

    Args:
        config, width, depth, heads: as of `Predictor`.
        noise_std: standard deviation of n.
        shared_bias: m = A n + b + psi with the bias of the context tokens, as in the authors' code, which has a mask
            token and leaves it out; else m = A n + psi + m~.
    """

    def __init__(
        self, config: ViTConfig, width: int, depth: int, heads: int, noise_std: float, shared_bias: bool
    ) -> None:
        super().__init__(config, width, depth, heads)
        self.noise_std, self.shared_bias = noise_std, shared_bias
        self.mask_token.requires_grad_(not shared_bias)

    def queries(self, positions: Tensor) -> Tensor:
        """Return mask tokens (M, B, Kp, P): the noise of each block, picture and patch is its own."""
        size = (*positions.shape[:-1], self.embed.in_features)
        noise = self.noise_std * torch.randn(size, device=positions.device, dtype=positions.dtype)
        if self.shared_bias:
            return positions + self.embed(noise)
        return positions + F.linear(noise, self.embed.weight) + self.mask_token
