"""Image-text models by name, and the rows of a dataset through their image encoder: what zero-shot scores start from.

PATH is a training directory or a checkpoint of an image-text method, or a model of `transformers`, hf:ID_OR_PATH.
Shapes: B or N pictures, T texts, D dimensions of the shared space; vectors have unit length. A model whose score
depends on the pair keeps K vectors of a picture, (K, D), and texts as it likes: only its own methods compare them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.training.data import shards
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Part
from granary.training.data.loader import read_row
from granary.training.data.tokenizer import filled
from granary.training.evaluation.generators import GeneratedPairs, check_dtype, generator_of, load_generator
from granary.training.evaluation.picture_views import central_views, decoded_by, opened_views
from granary.training.evaluation.protocol import Scorer
from granary.training.evaluation.scores import DeadLetter, dead_letter
from granary.training.models.checkpoint import checkpoint_folder
from granary.training.models.clip_transformers import DTYPES, ClipModel
from granary.training.models.clip_weights import dual_encoder
from granary.training.models.dual_encoder import DualEncoder
from granary.training.models.hub_generative import says_texts
from granary.training.models.pair_scores import mean_direction, products
from granary.training.models.registry import read_name
from granary.training.models.training import load_training

COLUMNS = ("id", "row_id", "source")
LIKELIHOODS = ("likelihood", "mean_likelihood")
PAIRS = 1 << 16  # compared at once, where a score depends on the pair


class ImageTextModel(Protocol):
    """An image encoder and a text encoder of one space, or a generator, see `GeneratedPairs`."""

    @property
    def truncated(self) -> int:
        """Texts cut to the context so far."""

    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        """Return for each file its vector (D,), or what else `scores` takes, on the CPU, or why it has none."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return (T, D) on the CPU."""

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return the scores of all pairs, (N, T), of (N, D) or (N, K, D) and (T, D), all on the CPU."""

    def ensemble(self, texts: Tensor) -> Tensor:
        """Return what `scores` takes of several sentences as if they were one text: (C, P, D) -> (C, D)."""


class PairScorer(Protocol):
    """A model that scores pictures against texts of their own, as `ClipModel` does."""

    @property
    def truncated(self) -> int:
        """Texts cut to the context so far."""

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open and prepare pictures: (3, h, w) for each, None for one that raises DecodeError."""

    def images(self, pixels: Tensor) -> Tensor:
        """Return (B, D) or (B, K, D) for prepared pictures (B, 3, h, w)."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return (T, D)."""

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the logits of all pairs, (B, T), of what `images` and `texts` gave."""

    def own_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the logits of pictures with texts of their own, (B, N, D): (B, N); equal texts tie exactly."""


class TrainedPair:
    """A model trained here, by an image-text method."""

    def __init__(self, model: DualEncoder, device: torch.device, dtype: str = "float32", batch: int = 256) -> None:
        self.model, self.device, self.batch = model.to(device).eval(), device, batch
        self.autocast = partial(torch.autocast, device.type, DTYPES[dtype], enabled=dtype != "float32")

    @property
    def truncated(self) -> int:
        """Texts cut to the context so far."""
        return self.model.tokenizer.truncated

    @torch.inference_mode()
    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        """Cut the middle out of each picture, its short edge at the model's side, and encode."""
        decoded = central_views(files, self.model.config.img_size)
        views = [view for view in decoded if isinstance(view, np.ndarray)]
        if not views:
            return [error for error in decoded if isinstance(error, DecodeError)]
        vectors = iter(self._encoded(np.stack(views)))
        return [view if isinstance(view, DecodeError) else next(vectors) for view in decoded]

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open pictures on threads and cut their middle out: (3, side, side) uint8 each; None for a DecodeError."""
        return opened_views(pictures, self.model.config.img_size)

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """Encode what `prepared` gave: (B, 3, side, side) uint8."""
        return self._encoded(pixels.permute(0, 2, 3, 1).numpy())

    def _encoded(self, views: NDArray[np.uint8]) -> Tensor:
        """Encode views (B, side, side, 3)."""
        config = self.model.config
        pixels = to_unit(torch.from_numpy(views).to(self.device))
        with self.autocast():
            return _finite(self.model.encode_pixels(normalised(pixels, config.mean, config.std)).cpu())

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts, a batch at a time."""
        vectors = []
        for start in range(0, len(texts), self.batch):
            tokens = self.model.tokenizer.numbers(texts[start : start + self.batch])
            with self.autocast():
                vectors.append(_finite(self.model.encode_tokens(tokens.to(self.device)).cpu()))
        return torch.cat(vectors)

    @torch.inference_mode()
    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Score all pairs; those of a model whose score depends on the pair on the device, `PAIRS` at a time."""
        if pictures.ndim == 2:
            return self.model.scores(pictures, texts)
        side = math.isqrt(PAIRS)
        rows = []
        for some in pictures.split(side):
            there = some.to(self.device)
            with self.autocast():
                row = [self.model.scores(there, part.to(self.device)).float().cpu() for part in texts.split(side)]
            rows.append(torch.cat(row, dim=1))
        return torch.cat(rows)

    @torch.inference_mode()
    def ensemble(self, texts: Tensor) -> Tensor:
        """Average the sentences of each class as the model does."""
        return self.model.ensemble(texts)

    @torch.inference_mode()
    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return exp(scale) * cosine + bias of all pairs."""
        return self.model.logits(self.scores(images, texts))

    @torch.inference_mode()
    def own_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return exp(scale) * cosine + bias of pictures with texts of their own."""
        with self.autocast():
            cosines = self.model.own_scores(images.to(self.device), texts.to(self.device))
        return self.model.logits(cosines.float().cpu())


class TransformersPair:
    """A CLIP or SigLIP of `transformers`."""

    def __init__(self, model: ClipModel) -> None:
        self.model = model

    @property
    def truncated(self) -> int:
        """Texts cut to the context so far."""
        return self.model.truncated

    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        """Prepare each picture as the model's processor does, and encode."""
        prepared = decoded_by(files, lambda image: self.model.pixels([image])[0])
        pixels = [picture for picture in prepared if isinstance(picture, Tensor)]
        if not pixels:
            return [error for error in prepared if isinstance(error, DecodeError)]
        vectors = iter(_finite(self.model.images(torch.stack(pixels)).cpu()))
        return [picture if isinstance(picture, DecodeError) else next(vectors) for picture in prepared]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts, a batch at a time."""
        return _finite(self.model.texts(texts).cpu())

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return the cosines of all pairs."""
        return products(pictures, texts)

    def ensemble(self, texts: Tensor) -> Tensor:
        """Return the mean directions."""
        return mean_direction(texts)


def _finite(vectors: Tensor) -> Tensor:
    if not torch.isfinite(vectors).all():
        raise UserError("model: it gives vectors that are not finite; check its weights, or the dtype")
    return vectors


def load_image_text_model(
    source: str, device: str = "auto", dtype: str = "float32", scorer: Scorer = "auto"
) -> ImageTextModel:
    """Return the image-text model that PATH names; `scorer` as in `ScorerOptions`. Raises UserError."""
    check_dtype(dtype)
    folder = checkpoint_folder(source) if read_name(source).way == "path" else None
    if scorer in LIKELIHOODS:
        return GeneratedPairs(load_generator(source, device, dtype), scorer == "mean_likelihood")
    if folder is None and scorer == "auto" and says_texts(read_name(source).target):
        return GeneratedPairs(load_generator(source, device, dtype))
    if folder is None:
        return TransformersPair(ClipModel.load(source, device, dtype))
    return _trained(folder, device, dtype, scorer)


def load_pair_scorer(source: str, device: str = "auto", dtype: str = "float32", scorer: Scorer = "auto") -> PairScorer:
    """Return the model that PATH names, to score pictures against texts of their own; `scorer` as in `ScorerOptions`.

    A training that wrote a model of `transformers`, in its folder `model`, is that one. Raises UserError with what is
    wrong.
    """
    check_dtype(dtype)
    name = read_name(source)
    folder = checkpoint_folder(name.target) if name.way == "path" else None
    written = os.path.isfile(os.path.join(os.path.expanduser(name.target), "model", "config.json"))
    if scorer in LIKELIHOODS:
        return GeneratedPairs(load_generator(source, device, dtype), scorer == "mean_likelihood")
    if folder is None and scorer == "auto" and says_texts(name.target):
        return GeneratedPairs(load_generator(source, device, dtype))
    if folder is None or (written and not says_texts(os.path.join(name.target, "model"))):
        return ClipModel.load(source, device, dtype)
    return _trained(folder, device, dtype, scorer)


def _trained(folder: str, device: str, dtype: str, scorer: Scorer) -> TrainedPair | GeneratedPairs:
    """Return what scores pairs by a training: its vectors where it has them, else what it says of pictures."""
    model = load_training(folder)
    generator = None if scorer != "auto" or isinstance(model, DualEncoder) else generator_of(model, device, dtype)
    if generator is not None:
        return GeneratedPairs(generator)
    return TrainedPair(dual_encoder(model, folder), torch_device(device), dtype)


class Encoded(NamedTuple):
    """What could be read of a dataset.

    Args:
        rows: n, as `training.data.loader.read_row` gives them, without data and blank captions.
        vectors: (n, D) or (n, K, D).
        dead: the pictures that cannot be decoded.
    """

    rows: list[Part]
    vectors: Tensor
    dead: list[DeadLetter]


def encode_rows(
    model: ImageTextModel,
    dataset: shards.Dataset,
    column: str,
    classes: Sequence[str] = (),
    batch: int = 64,
    limit: int | None = None,
    others: Sequence[str] = (),
) -> Encoded:
    """Encode the pictures of a dataset in its order.

    Args:
        model: see `load_image_text_model`.
        dataset: of `open_dataset`.
        column: "label" or "captions": read with the pictures; rows without a label or a caption are left out.
        classes: names of the labels.
        batch: pictures at once.
        limit: rows at most.
        others: further columns of the dataset that rows are to have.

    Raises:
        UserError: where no row is left.
    """
    kept: list[Part] = []
    vectors: list[Tensor] = []
    dead: list[DeadLetter] = []
    for chunk in _chunks(dataset, column, classes, batch, limit, others):
        for row, vector in zip(chunk, model.pictures([row.pop("data") for row in chunk]), strict=True):
            if isinstance(vector, DecodeError):
                dead.append(dead_letter(row["uri"], vector.kind, str(vector)))
            else:
                kept.append(row)
                vectors.append(vector)
    if not vectors:
        reason = f"its pictures cannot be decoded, for example {dead[0]['uri']}" if dead else f"no row has {column}"
        raise UserError(f"data: {dataset.path} has nothing to measure on: {reason}")
    return Encoded(kept, torch.stack(vectors), dead)


def _chunks(
    dataset: shards.Dataset, column: str, classes: Sequence[str], batch: int, limit: int | None, others: Sequence[str]
) -> Iterator[list[Part]]:
    """Yield the rows with a value in the column, `batch` at a time."""
    columns = ["image", *(name for name in (*COLUMNS, column, *others) if name in dataset.columns)]
    categories = {"label": classes} if column == "label" else {}
    left = dataset.count if limit is None else limit
    chunk: list[Part] = []
    for group in dataset.groups:
        rows = shards.GroupRows(shards.read_group(group, columns), categories)
        for number in range(min(rows.count, left)):
            row = read_row(rows, number, (column, *others))
            if column == "captions":
                row[column] = filled(row[column])
            if row[column] if column == "captions" else row[column] >= 0:
                chunk.append(row)
            if len(chunk) == batch:
                yield chunk
                chunk = []
        left -= min(rows.count, left)
    if chunk:
        yield chunk
