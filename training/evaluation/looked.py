"""Rows whose pictures a model looks at, and texts of a picture's own that it scores.

Shapes: N pictures, U texts asked together of a picture, P pictures of a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.passes import undecoded
from granary.training.evaluation.pairs import PairScorer
from granary.training.evaluation.scores import DeadLetter, dead_letter

ALONE = ("image",)
IDENTITY = ("id", "row_id", "source")


class Looks(Protocol):
    """A model that prepares pictures: a scorer of pairs or a generator."""

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open and prepare pictures: a tensor for each, None for one that raises DecodeError."""


class Opened:
    """A file that is decoded when called for, and remembers why it could not be.

    Args:
        data: the bytes; none are no picture.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.error: DecodeError | None = None

    def __call__(self) -> Image.Image:
        """Decode to RGB; raises DecodeError."""
        try:
            return decode(self.data, DecodeLimits()).image
        except DecodeError as error:
            self.error = error
            raise


class LookedAt:
    """Rows of a dataset that have what is asked for, with their pictures as a model takes them.

    Args:
        dataset: of `open_dataset`.
        columns: what is read beside the pictures.
        wanted: says whether a row has what is asked for.
        pictures: the columns of pictures.
        limit: rows at most.
        first: rows that have what is asked for and come at the end, after the others.

    Attributes:
        read: rows so far.
        without: those that lack what is asked for.
        unreadable: those with a picture that cannot be decoded, which are left out.
        dead: these pictures.
    """

    def __init__(
        self,
        dataset: shards.Dataset,
        columns: Sequence[str],
        wanted: Callable[[Part], object],
        pictures: Sequence[str] = ALONE,
        limit: int | None = None,
        first: int = 0,
    ) -> None:
        self.dataset, self.columns, self.wanted, self.names, self.limit = dataset, columns, wanted, pictures, limit
        self.first = first
        self.read = self.without = self.unreadable = 0
        self.dead: list[DeadLetter] = []

    def batches(self, model: Looks, batch: int) -> Iterator[tuple[list[Part], Tensor]]:
        """Yield rows, and their pictures (N, P, ...) on the CPU, in order, about `batch` pictures at a time.

        Raises:
            UserError: where no row is left at all.
        """
        rows, some = self._wanted(self.names), False
        if self.first:
            rows = itertools.chain(
                itertools.islice(rows, self.first, None), itertools.islice(self._wanted(self.names), self.first)
            )
        while chunk := list(itertools.islice(rows, max(1, batch // len(self.names)))):
            files = [Opened(_bytes(row, name)) for row in chunk for name in self.names]
            ready = model.prepared(files)
            kept, tensors = [], []
            for row, n in zip(chunk, range(0, len(files), len(self.names)), strict=True):
                own = ready[n : n + len(self.names)]
                alive = [picture for picture in own if picture is not None]
                self.dead += [_dead(row, file) for file in files[n : n + len(own)] if file.error is not None]
                if len(alive) < len(own):
                    self.unreadable += 1
                else:
                    kept.append(row)
                    tensors.append(torch.stack(alive))
            if kept:
                some = True
                yield kept, torch.stack(tensors)
        if not some:
            raise UserError(f"data: {self.dataset.path} has nothing to measure on: {self._why()}")

    def count(self) -> int:
        """Return how many rows have what is asked for; no picture is read."""
        return sum(1 for _ in LookedAt(self.dataset, self.columns, self.wanted, (), self.limit)._wanted(()))

    def _wanted(self, names: Sequence[str]) -> Iterator[Part]:
        columns = list(dict.fromkeys([*IDENTITY, *names, *self.columns]))
        for row in undecoded(self.dataset, columns, self.limit):
            self.read += 1
            if self.wanted(row):
                yield row
            else:
                self.without += 1

    def _why(self) -> str:
        if self.dead:
            return f"its pictures cannot be decoded, for example {self.dead[0]['uri']}"
        return f"no row has {' and '.join(self.columns)}"

    def counts(self, name: str, what: str) -> dict[str, float | None]:
        """Return how many rows were measured, and how many left out: without what is asked for, and unreadable.

        Args:
            name: of the metric.
            what: the detail that counts those without it.
        """
        measured = self.read - self.without - self.unreadable
        return {name: measured, f"{name}.{what}": self.without, f"{name}.unreadable": self.unreadable}


def listed(value: object) -> list[object]:
    """Return what a cell of a column of lists holds; what is no list is one thing alone, null is none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _bytes(row: Part, name: str) -> bytes:
    """Return the file of a picture of a row; none where there is none."""
    if name == "image":
        return bytes(row["data"])
    value = row[name]
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


def _dead(row: Part, file: Opened) -> DeadLetter:
    assert file.error is not None
    return dead_letter(row["uri"], file.error.kind, str(file.error))


def own_logits(model: PairScorer, pictures: Tensor, at: Sequence[int], texts: Sequence[Sequence[str]]) -> Tensor:
    """Return the logits of texts that are asked of one picture each, (n, U); equal texts tie exactly.

    Args:
        model: scores them.
        pictures: (N, ...), prepared.
        at: n, which of the pictures.
        texts: n times U of them.
    """
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
    places = {text: place for place, text in enumerate(distinct)}
    numbers = torch.tensor([[places[text] for text in some] for some in texts])
    return model.own_logits(model.images(pictures)[list(at)], model.texts(distinct)[numbers])
