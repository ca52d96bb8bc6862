"""SimCLR: two changed views of a picture are nearer to one another than to those of all others of the batch.

Chen et al. 2020 (arXiv 2002.05709). Smaller crops (multi-crop) are each a pair with each of the two large ones too.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from granary.training.data.collate import Part
from granary.training.losses.pairs import nt_xent
from granary.training.method import Moment
from granary.training.two_views import MultiCropOptions, TwoViews, watched


class SimCLROptions(MultiCropOptions, frozen=True):
    """Options of SimCLR; defaults are the paper's for ImageNet."""

    temperature: float = Field(0.1, gt=0, description="divides the cosines")


class SimCLR(TwoViews):
    """Backbone and projector under NT-Xent."""

    Options = SimCLROptions
    options: SimCLROptions

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, its mean over pairs of views of which one is large."""
        features, (first, second) = self.embedded(self.pixels(batch))
        pairs = [(first, second)]
        if self.options.local_crops:
            local = self.embedded(self.pixels(batch, "local"))[1]
            pairs += [(large, small) for small in local for large in (first, second)]
        losses = [nt_xent(*pair, self.options.temperature) for pair in pairs]
        return {"loss": torch.stack(losses).mean(), **watched(features, first)}
