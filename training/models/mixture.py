"""Text-conditioned pooling: the caption decides how the tokens of a picture become one vector (Llip, arXiv 2405.00740).

Shapes: B pictures of K mixture tokens, T texts, N texts of a picture's own, W widths of the encoders, D dimensions of
the shared space, M heads of D / M dimensions each.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from granary.training.models.vit import attend

Mixing = Literal["text", "uniform"]


class TextMixture(nn.Module):
    """Cross-attention of a text over the mixture tokens of a picture: one vector for each pair.

    z_ij = concat_m(sum_k phi_ij^mk V_i^mk) W_O with phi_ij^m = softmax_k(<Q_j^m, K_i^mk> / (tau sqrt(D / M))), where
    queries are projections of the text alone, keys and values of the picture alone. There are no biases, and the text
    enters through phi only: a picture of zeros is zero for every text.

    Args:
        image_width, text_width: W of the mixture tokens and of the texts.
        dimension: D.
        heads: M, a divisor of D.
        temperature: tau.
        root: whether sqrt(D / M) is there.
        mixing: "uniform" is phi = 1 / K whatever the text says, without queries and keys.
    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        dimension: int,
        heads: int,
        temperature: float,
        root: bool = True,
        mixing: Mixing = "text",
    ) -> None:
        super().__init__()
        self.heads, self.dimension = heads, dimension
        self.sharpness = 1 / temperature if root else (dimension / heads) ** 0.5 / temperature  # `attend` has the root
        by_text = mixing == "text"
        self.query = _projection(text_width, dimension) if by_text else None
        self.key = _projection(image_width, dimension) if by_text else None
        self.value, self.out = _projection(image_width, dimension), _projection(dimension, dimension)

    def forward(self, tokens: Tensor, texts: Tensor) -> Tensor:
        """Return z of all pairs, or of pictures with texts of their own, not of unit length.

        Args:
            tokens: (B, K, W).
            texts: (T, W) or (B, N, W).

        Returns:
            (B, T, D) or (B, N, D).
        """
        return self.mixed(self.queries(texts), *self.memory(tokens))

    def queries(self, texts: Tensor) -> Tensor:
        """Return the queries of texts over tau, (1, M, T, D / M) for (T, W), (B, M, N, D / M) for (B, N, W)."""
        whole = texts if texts.ndim == 3 else texts[None]
        return self._split(whole, self.query) * self.sharpness

    def memory(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of pictures, (B, M, K, D / M) each."""
        return self._split(tokens, self.key), self._split(tokens, self.value)

    def mixed(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return z, (B, T, D), of what `queries` and `memory` gave."""
        mixed = attend(queries.expand(len(keys), -1, -1, -1), keys, values)  # (B, M, T, D / M)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def weights(self, tokens: Tensor, texts: Tensor) -> Tensor:
        """Return phi, (B, M, T, K): how much each token counts for each text; arguments as those of `forward`."""
        queries, (keys, _) = self.queries(texts), self.memory(tokens)
        return (queries * queries.shape[3] ** -0.5 @ keys.transpose(2, 3)).softmax(dim=3)

    def _split(self, x: Tensor, projection: nn.Linear | None) -> Tensor:
        """Project (B, K, W) and split into heads, (B, M, K, D / M); without a projection all zeros."""
        projected = x.new_zeros(*x.shape[:2], self.dimension) if projection is None else projection(x)
        return projected.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _projection(width: int, dimension: int) -> nn.Linear:
    """Return a projection without a bias that keeps variances."""
    projection = nn.Linear(width, dimension, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)
    return projection
