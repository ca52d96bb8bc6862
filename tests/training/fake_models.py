"""Models that are functions: of a picture's colours and a text a score, of a picture and a question an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features
from PIL import Image
from tiny_clip import COLOURS, png
from tiny_shards import sample
from torch import Tensor

from granary.curation.images.decode import DecodeError
from granary.curation.store.schema import arrow_schema

SIDE = 8


def two_colours(left: str, right: str) -> Image.Image:
    """Draw a picture whose left half has one colour, and its right half another."""
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] = COLOURS[left], COLOURS[right]
    return Image.fromarray(pixels)


def seen(picture: Tensor) -> tuple[str, str]:
    """Return the colours of both halves of a picture (3, S, S) uint8."""
    table = torch.tensor(list(COLOURS.values()))
    halves = [picture[:, SIDE // 2, at].long() for at in (1, SIDE - 2)]
    left, right = (list(COLOURS)[int((table - half).abs().sum(1).argmin())] for half in halves)
    return left, right


def coloured(left: str, right: str, **columns: Any) -> dict[str, Any]:
    """Return a row with such a picture."""
    return sample(png(two_colours(left, right)), (SIDE, SIDE), **columns)


def at_random(picture: Tensor, text: str) -> float:
    """Score by a hash of the pixels and the text."""
    digest = hashlib.sha256(picture.numpy().tobytes() + text.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def constant(picture: Tensor, text: str) -> float:
    return 0.3


class FakePair:
    """A scorer of pairs.

    Args:
        score: (picture (3, S, S) uint8, text) -> score.
    """

    truncated = 0

    def __init__(self, score: Callable[[Tensor, str], float]) -> None:
        self.score, self.known = score, list[str]()

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        ready = list[Tensor | None]()
        for picture in pictures:
            try:
                ready.append(torch.from_numpy(np.array(picture())).permute(2, 0, 1))
            except DecodeError:
                ready.append(None)
        return ready

    def images(self, pixels: Tensor) -> Tensor:
        return pixels

    def texts(self, texts: Sequence[str]) -> Tensor:
        self.known += texts
        return torch.arange(len(self.known) - len(texts), len(self.known))[:, None]

    def own_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        rows = zip(images, texts[..., 0].tolist(), strict=True)
        return torch.tensor([[self.score(image, self.known[n]) for n in some] for image, some in rows]).double()

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.own_logits(images, texts[None].expand(len(images), -1, -1))


class FakeGenerator(FakePair):
    """A generator: a score is a log probability.

    Args:
        score: (picture, text) -> log probability.
        says: (picture, question, None for a description) -> text.
    """

    def __init__(
        self,
        score: Callable[[Tensor, str], float] = constant,
        says: Callable[[Tensor, str | None], str] = lambda picture, question: "yes",
    ) -> None:
        super().__init__(score)
        self.says = says

    def cut(self, texts: Sequence[str], question: str | None = None) -> int:
        return 0

    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        raise NotImplementedError

    def loglikelihood(
        self, pictures: Tensor, texts: Sequence[str], question: str | None = None, mean: bool = False
    ) -> Tensor:
        return torch.tensor([[self.score(picture, text) for text in texts] for picture in pictures])

    def own_loglikelihood(
        self,
        pictures: Tensor,
        texts: Sequence[Sequence[str]],
        questions: Sequence[str] | None = None,
        mean: bool = False,
    ) -> Tensor:
        both = zip(pictures, texts, strict=True)
        return torch.tensor([[self.score(picture, text) for text in some] for picture, some in both])

    def answer(self, pictures: Tensor, questions: Sequence[str], tokens: int = 16) -> list[str]:
        return [self.says(picture, question) for picture, question in zip(pictures, questions, strict=True)]

    def describe(self, pictures: Tensor, tokens: int = 32) -> list[str]:
        return [self.says(picture, None) for picture in pictures]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], features: Features, group: int = 7) -> None:
    """Write rows as one Parquet file, as `datasets` types them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), arrow_schema(features)), path, row_group_size=group)
