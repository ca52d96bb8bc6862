"""I-JEPA's predictor that is told what was done to the picture: the world model of IWM (arXiv 2403.00504).

Shapes: B pictures, Kc patches of the context, M target blocks of Kp patches, A numbers of an action, D and P widths of
encoder and predictor.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granary.training.models.predictor import Predictor
from granary.training.models.vit_config import ViTConfig

Conditioning = Literal["feature", "sequence", "none"]


class ConditionedPredictor(Predictor):
    """A predictor g: context tokens, target positions and an action -> predicted target tokens.

    Args:
        config, width, depth, heads: as of `Predictor`.
        numbers: A.
        conditioning: feature: the action is mixed into every mask token; sequence: each number of it is a token more;
            none: it is not looked at, and the predictor is I-JEPA's.
    """

    def __init__(
        self, config: ViTConfig, width: int, depth: int, heads: int, numbers: int, conditioning: Conditioning
    ) -> None:
        super().__init__(config, width, depth, heads)
        self.numbers = numbers
        self.mixed = Mixed(width, numbers) if conditioning == "feature" else None
        self.spelt = Spelt(width, numbers) if conditioning == "sequence" else None

    def forward(self, context: Tensor, places: Tensor, targets: Tensor, actions: Tensor | None = None) -> Tensor:
        """Predict each block in a pass of its own.

        Args:
            context: (B, Kc, D) tokens of the context encoder.
            places: (B, Kc) int64, their patch numbers.
            targets: (M, B, Kp) int64, patch numbers to predict.
            actions: (B, A); None is the null action, zeros, after which target and source are the same picture.

        Returns:
            (M * B, Kp, D), block-major.
        """
        if actions is None:
            actions = context.new_zeros(len(context), self.numbers)
        count = targets.shape[2]
        x = self.conditioned(self.tokens(context, places, targets), actions.repeat(len(targets), 1), count)
        return self.predicted(x, count)

    def conditioned(self, x: Tensor, actions: Tensor, count: int) -> Tensor:
        """Return tokens that know the action: (R, T, P), the last `count` of them mask tokens, and (R, A)."""
        if self.mixed is not None:
            kept = x.shape[1] - count
            return torch.cat([x[:, :kept], self.mixed(x[:, kept:], actions)], dim=1)
        return x if self.spelt is None else torch.cat([self.spelt(actions), x], dim=1)


class Mixed(nn.Module):
    """Feature conditioning: an action beside a token, through an MLP of three layers back to the token's width."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in (width + numbers, width, width))
        self.restart()

    def forward(self, tokens: Tensor, actions: Tensor) -> Tensor:
        """(R, K, P) and (R, A) -> (R, K, P), the same layers for every token."""
        first, second, third = self.layers
        x = torch.cat([tokens, actions[:, None].expand(-1, tokens.shape[1], -1)], dim=2)
        return third(F.relu(second(F.relu(first(x)))))

    def restart(self) -> None:
        """Draw weights that keep the size of a token, whose position would drown in the context's else; biases are 0.

        As He et al. 2015 (arXiv 1502.01852): a variance of 2 / fan-in where rectified numbers come out, 1 / fan-in at
        the end. The paper says nothing of it.
        """
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if number < 2 else "linear")
            nn.init.zeros_(layer.bias)


class Spelt(nn.Module):
    """Sequence conditioning: a token for every number of an action, each with a projection of its own.

    Were it one projection, the Transformer could not tell the numbers apart. A bias is not 0 at first: the layer norm
    of a block would leave of a multiple of one vector nothing but its sign.
    """

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(numbers, width))  # about as large as positions
        self.bias = nn.Parameter(torch.randn(numbers, width))

    def forward(self, actions: Tensor) -> Tensor:
        """(R, A) -> (R, A, P)."""
        return actions[..., None] * self.weight + self.bias
