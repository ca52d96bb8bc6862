"""Text for image-text models: a byte-level BPE tokenizer, given or trained on the captions, and a small transformer.

The transformer is CLIP's (Radford et al. 2021, arXiv 2103.00020, section 2.4: causal, read at the end of the text) or
SigLIP's (Zhai et al. 2023, arXiv 2303.15343: bidirectional, texts filled up to the context, read at the last place).
Shapes: T texts, L tokens of a text, W width, D dimensions of the shared space.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.sampling import priority
from granary.training.data import shards
from granary.training.models.vit import Attention, Block, ViTConfig

START, END, PAD = SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|pad|>")
COLUMN = "captions"


@dataclass(frozen=True)
class TextConfig:
    """The architecture of a text transformer.

    vocabulary: tokens there are; context: L at most; width, depth, heads: W, blocks, heads; dimension: D; causal:
    CLIP's kind, else SigLIP's; end: number of the token that ends a text; mlp, norm_eps: as in `ViTConfig`.
    """

    vocabulary: int
    context: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    dimension: int = 512
    causal: bool = True
    end: int = 1
    mlp: str = "gelu"
    norm_eps: float = 1e-5


class CausalAttention(Attention):
    """Self-attention in which a token sees itself and what comes before it."""

    def forward(self, x: Tensor, angles: Tensor | None = None, first: int = 0) -> Tensor:
        """(T, L, W) -> (T, L, W); there are no rotary angles here, and no token is left out."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (T, heads, L, W / heads)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TextTransformer(nn.Module):
    """Token numbers (T, L) -> (T, D), not normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        block = ViTConfig(
            width=config.width, heads=config.heads, mlp=config.mlp, layer_scale=0.0, norm_eps=config.norm_eps
        )
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(1, config.context, config.width))
        self.blocks = nn.ModuleList(Block(block) for _ in range(config.depth))
        if config.causal:
            for each in self.blocks:
                each.attention = CausalAttention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.out = nn.Linear(config.width, config.dimension, bias=not config.causal)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.out.weight, std=config.width**-0.5)
        initialise_blocks(self.blocks, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts as `TextTokenizer.numbers` gives them: what follows the end of a causal text changes nothing."""
        x = self.embed(tokens) + self.positions[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        if self.config.causal:
            last = (tokens == self.config.end).int().argmax(dim=1)  # the first of several
            x = x[torch.arange(len(x), device=x.device), last]
        else:
            x = x[:, -1]
        return self.out(self.norm(x))


def initialise_blocks(blocks: nn.ModuleList, width: int) -> None:
    """Draw the weights of transformer blocks as CLIP's text encoder does; biases are 0.

    Deviations: W^-1/2 of queries, keys and values, (2 W)^-1/2 into the MLP, and W^-1/2 (2 depth)^-1/2 of what is added
    to the residual stream, whose variance would else grow with the depth.
    """
    added = width**-0.5 * (2 * len(blocks)) ** -0.5
    for name, parameter in blocks.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            nn.init.normal_(parameter, std=added)
        elif name.endswith("attention.qkv.weight"):
            nn.init.normal_(parameter, std=width**-0.5)
        elif name.endswith("mlp.up.weight"):
            nn.init.normal_(parameter, std=(2 * width) ** -0.5)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)


class TextTokenizer:
    """A tokenizer with the frame of the text encoder, `start text end` where it is causal, else `text end`.

    Args:
        source: the JSON of a `tokenizers` tokenizer; start, end and padding are added where it has none of their name.
        context: tokens of a text at most; what is beyond is cut off.
        causal: as in `TextConfig`.

    Attributes:
        json: of the tokenizer with its frame, for `transformers` too.
        truncated: texts cut so far.
    """

    def __init__(self, source: str, context: int, causal: bool) -> None:
        self.inner = Tokenizer.from_str(source)
        self.context, self.causal, self.truncated = context, causal, 0
        self.inner.add_special_tokens([name for name in SPECIAL if self.inner.token_to_id(name) is None])
        self.start, self.end, self.pad = (int(self.inner.token_to_id(name) or 0) for name in SPECIAL)
        self.inner.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}" if causal else f"$A {END}",
            special_tokens=[(START, self.start), (END, self.end)],
        )
        self.inner.no_padding()
        self.inner.enable_truncation(context)
        self.json = str(self.inner.to_str())

    @property
    def vocabulary(self) -> int:
        """Rows that the table of the text encoder needs."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (T, L) int64.

        L is the longest of them where the encoder is causal, since it does not see the padding; else the context.
        """
        encoded = [self.inner.encode(text) for text in texts]  # one by one: no threads, which forks do not survive
        self.truncated += sum(bool(each.overflowing) for each in encoded)
        length = max((len(each.ids) for each in encoded), default=1) if self.causal else self.context
        rows = [each.ids + [self.pad] * (length - len(each.ids)) for each in encoded]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), length)


def read_tokenizer(path: str) -> str:
    """Return the JSON of a tokenizer: a tokenizer.json or a folder with one, any URL. Raises UserError."""
    url = path if path.endswith(".json") else storage.join(path, "tokenizer.json")
    try:
        return str(Tokenizer.from_str(storage.read_bytes(url).decode()).to_str())
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"options.tokenizer: {path!r} holds no tokenizer ({reason}); give a tokenizer.json or a folder with one"
        ) from error


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> str:
    """Return the JSON of a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv 1508.07909) learnt from captions.

    Upper and lower case are one, as in CLIP. The same captions give the same bytes, in any order.

    Args:
        captions: texts.
        vocabulary: tokens at most, with 256 bytes and three special ones; few captions give fewer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of data workers
    tokenizer = Tokenizer(models.BPE())
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a first word is like any other
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(captions), trainer)
    return str(tokenizer.to_str())


def corpus(datasets: Sequence[shards.Dataset]) -> Iterator[str]:
    """Yield the captions of datasets that are not blank, row groups in an order drawn by hash.

    Raises UserError where the column holds no lists of texts, or no caption at all.
    """
    groups = [(dataset.path, group) for dataset in datasets for group in dataset.groups]
    found = False
    for place in priority(0, range(len(groups)), "corpus").argsort():
        path, group = groups[place]
        column = shards.read_group(group, [COLUMN])[COLUMN]
        check_captions(path, column.type)
        for caption in filled(column.flatten().to_pylist()):
            found = True
            yield caption
    if not found:
        paths = ", ".join(dataset.path for dataset in datasets)
        raise UserError(f"data: the column {COLUMN} of {paths} has no text in any row; image-text training needs some")


def check_captions(path: str, kind: pa.DataType) -> None:
    """Raise UserError where a column of captions does not hold lists of texts."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))):
        raise UserError(f"data: the column {COLUMN} of {path} is {kind}; it must be a list of texts")


def filled(captions: Iterable[Any] | None) -> list[str]:
    """Return the captions that are not blank."""
    return [caption for caption in captions or () if caption and caption.strip()]
