"""The two encoders of CLIP and SigLIP: pictures and texts in one space (arXiv 2103.00020, 2303.15343).

Shapes: B pictures, T texts of L tokens, P patches, W width, D dimensions of the shared space.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.data.tokenizer import TextTokenizer
from granary.training.models.pair_scores import mean_direction, own_products, products
from granary.training.models.text import TextConfig, TextTransformer, initialise_blocks
from granary.training.models.vit import MLP, VisionTransformer
from granary.training.models.vit_config import ViTConfig

Kind = Literal["clip", "siglip"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class DualEncoderOptions(BaseModel, frozen=True):
    """What the options of an image-text method say of its architecture; the others are ignored.

    Args:
        context: tokens of a text at most.
        text_width, text_depth, text_heads: of the text encoder.
        dimension: D; None for the width of the image encoder.
        loss: "sigmoid" has a bias beside the scale.
        bias: its initial value.
    """

    context: int
    text_width: int
    text_depth: int
    text_heads: int
    dimension: int | None = None
    loss: Literal["contrastive", "sigmoid"]
    bias: float


class AttentionPool(nn.Module):
    """A learnt query that attends to the patches, then an MLP: (B, P, W) -> (B, W) (SigLIP's pooling, "MAP")."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, int(config.mlp_ratio * width), config.mlp == "quick_gelu")
        for layer in (self.q, self.kv, self.out, self.mlp.up, self.mlp.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, W) -> (B, W)."""
        q = self.q(self.query).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (1, heads, 1, W / heads)
        k, v = self.kv(patches).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, P, W / heads)
        x = self.out(F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]


class DualEncoder(nn.Module):
    """An image encoder and a text encoder of one space, with the scale (and bias) of their logits.

    "clip" projects the class token and reads a causal text at its end; "siglip" pools the patches by attention and
    reads a text that sees itself whole at its last place; its shared space has the width of the image encoder.

    Args:
        kind: "clip" or "siglip".
        config: of the image encoder.
        options: of the text encoder and the shared space.
        tokenizer: the JSON of a tokenizer, see `TextTokenizer`.
    """

    def __init__(self, kind: Kind, config: ViTConfig, options: DualEncoderOptions, tokenizer: str) -> None:
        super().__init__()
        self.kind, self.config = kind, config
        self.tokenizer = TextTokenizer(tokenizer, options.context, causal=kind == "clip")
        self.image = VisionTransformer(config)
        initialise_blocks(self.image.blocks, config.width)
        self.text = TextTransformer(_text_config(config, options, self.tokenizer))
        self.pool = _pool(kind, config, self.text.config.dimension)
        sigmoid = options.loss == "sigmoid"
        self.scale = nn.Parameter(torch.tensor([math.log(10 if sigmoid else 1 / 0.07)]))  # t' or alpha
        if sigmoid:
            self.bias = nn.Parameter(torch.tensor([options.bias]))

    def images(self, pixels: Tensor) -> Tensor:
        """Encode normalised pictures, (B, 3, S, S) -> (B, D), not of unit length."""
        tokens = self.image(pixels)
        return self.pool(tokens.cls if self.kind == "clip" else tokens.patches)

    def texts(self, tokens: Tensor) -> Tensor:
        """Encode token numbers, (T, L) -> (T, D), not of unit length."""
        return self.text(tokens)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return what scores take of normalised pictures: (B, D) unit rows, float32.

        A model whose scores depend on the pair returns (B, K, D), as it likes, and has its own `scores`,
        `own_scores` and `ensemble`.
        """
        return F.normalize(self.images(pixels).float(), dim=1)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return what scores take of texts: (T, D) unit rows, float32."""
        return F.normalize(self.texts(tokens).float(), dim=1)

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return the cosines of all pairs, (N, T), of what both `encode` methods gave: the products of the vectors."""
        return products(pictures, texts)

    def own_scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return the cosines of pictures with texts of their own, (N, T, D): (N, T); equal texts tie exactly."""
        return own_products(pictures, texts)

    def ensemble(self, texts: Tensor) -> Tensor:
        """Return what scores take of several sentences as if they were one text: (C, P, D) -> (C, D)."""
        return mean_direction(texts)

    def logits(self, cosines: Tensor) -> Tensor:
        """Return exp(scale) * cosine, with the bias where there is one."""
        scaled = cosines * self.scale.to(cosines.device).exp()
        return scaled + self.bias.to(cosines.device) if hasattr(self, "bias") else scaled


def _pool(kind: Kind, config: ViTConfig, dimension: int) -> nn.Module:
    """Return what makes one vector of the tokens of a picture; raises UserError for tokens it would leave unused."""
    if kind == "siglip":
        if config.class_token or config.registers:
            raise UserError("model: SigLIP has no class token and no registers")
        return AttentionPool(config)
    projection = nn.Linear(config.width, dimension, bias=False)
    nn.init.normal_(projection.weight, std=config.width**-0.5)
    return projection


def _text_config(config: ViTConfig, options: DualEncoderOptions, tokenizer: TextTokenizer) -> TextConfig:
    """Return the architecture of the text encoder; raises UserError for heads that do not divide the width."""
    if options.text_width % options.text_heads or options.text_width % 4:
        raise UserError(f"options.text_width: {options.text_width} must be a multiple of 4 and of options.text_heads")
    return TextConfig(
        vocabulary=tokenizer.vocabulary,
        context=options.context,
        width=options.text_width,
        depth=options.text_depth,
        heads=options.text_heads,
        dimension=options.dimension or config.width,
        causal=tokenizer.causal,
        end=tokenizer.end,
        mlp="gelu" if config.mlp == "swiglu" else config.mlp,
        norm_eps=config.norm_eps,
    )
