"""What a model answers to the instructions of a run, and to the same about the pictures of other rows.

The data are the columns `instructions` and `image` or `images` of `granary pack --format instructions`.
Shapes: n pictures of a row at most, S their side.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data import shards
from granary.training.data.columns import SEVERAL
from granary.training.data.crops import Crop
from granary.training.data.instructions import COLUMN, Form, Instruction, instructions_of
from granary.training.data.passes import undecoded
from granary.training.data.pasted import pasted_views
from granary.training.evaluation.generators import check_dtype
from granary.training.evaluation.protocol import Measured, SplitOptions
from granary.training.evaluation.scores import DeadLetter, dead_letter
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.instructed import Instructed
from granary.training.models.training import load_training

Size = tuple[int, int]  # width and height


class InstructedOptions(SplitOptions, frozen=True):
    """Options of protocols that give instructions."""

    free: bool = Field(False, description="decode any token, in the place of those that the form of the answer allows")
    permuted: bool = Field(True, description="ask the same about the pictures of other rows too")


class Reply(NamedTuple):
    """What a model answers.

    Args:
        instruction: that was given.
        sizes: of the pictures it was given about, the row's own.
        text: the answer.
        other: the answer about the pictures of another row; None where nobody asked.
    """

    instruction: Instruction
    sizes: Sequence[Size]
    text: str
    other: str | None


class _Shown(NamedTuple):
    """The pictures of a row: (n, S, S, 3) uint8, how many there are, their sizes; and what is asked of them."""

    pictures: NDArray[np.uint8]
    shown: int
    sizes: list[Size]
    asked: list[Instruction]


class _Asked(NamedTuple):
    """An instruction about the pictures of its row, and about those of another one."""

    instruction: Instruction
    own: _Shown
    other: _Shown | None


@dataclass
class Replies:
    """Asks a model.

    Args:
        measured: what is measured.
        options: how.
        why: what the data are needed for.
        config: of the dataset.
        wanted: which instructions are given.

    Attributes:
        rows: with such instructions.
        without: rows that have none.
        dead: pictures that cannot be decoded; their rows are left out.
    """

    measured: Measured
    options: InstructedOptions
    why: str
    config: str
    wanted: Callable[[Instruction], bool]
    rows: int = 0
    without: int = 0
    dead: list[DeadLetter] = field(default_factory=list)

    def __post_init__(self) -> None:
        measured = self.measured
        check_dtype(measured.dtype)
        model = load_training(measured.model)
        if not isinstance(model, Instructed):
            raise UserError(f"model: {measured.model} follows no instructions; give a training of vistallm")
        self.device = torch_device(measured.device)
        self.model: Any = model.to(self.device).eval()
        self.coding = model.coding
        autocast = partial(torch.autocast, self.device.type, DTYPES[measured.dtype])
        self.autocast = partial(autocast, enabled=measured.dtype != "float32")
        split = measured.split, self.options.holdout
        needs = (SEVERAL, COLUMN)
        self.dataset = shards.open_dataset(
            measured.data, needs, *split, self.why, measured.columns, config=self.config
        )  # fmt: skip

    def all(self) -> Iterator[Reply]:
        """Yield the answers to all instructions, those of one form together.

        Raises:
            UserError: no row has any.
        """
        waiting = defaultdict[Form, list[_Asked]](list)
        for asked in self._asked():
            some = waiting[asked.instruction.form]
            some.append(asked)
            if len(some) == self.measured.batch:
                yield from self._answered(waiting.pop(asked.instruction.form))
        for some in waiting.values():
            yield from self._answered(some)
        if not self.rows:
            example = f", for example {self.dead[0]['uri']} cannot be decoded" if self.dead else ""
            raise UserError(f"data: {self.dataset.path} has no row with what {self.why} asks{example}")

    def _asked(self) -> Iterator[_Asked]:
        half = sum(1 for _ in self._shown(lambda row, error: None)) // 2 if self.options.permuted else 0
        others: Iterator[_Shown | None] = itertools.repeat(None)
        if half:
            ignore = lambda row, error: None  # noqa: E731 the same pictures are told of once
            others = itertools.chain(
                itertools.islice(self._shown(ignore), half, None), itertools.islice(self._shown(ignore), half)
            )
        self.without = 0
        for own, other in zip(self._shown(self._lost), others, strict=False):
            self.rows += 1
            yield from (_Asked(instruction, own, other) for instruction in own.asked)

    def _lost(self, row: dict[str, Any], error: DecodeError) -> None:
        self.dead.append(dead_letter(str(row["uri"]), error.kind, str(error)))

    def _shown(self, lost: Callable[[dict[str, Any], DecodeError], None]) -> Iterator[_Shown]:
        """Yield the rows that have instructions and can be decoded, in order."""
        crop, unused = {"image": Crop(self.model.most, self.model.side)}, np.random.default_rng(0)
        self.without = 0
        for row in undecoded(self.dataset, [SEVERAL, COLUMN], self.measured.limit):
            asked = [one for one in instructions_of(row[COLUMN]) if self.wanted(one)]
            if not asked:
                self.without += 1
                continue
            try:
                views = pasted_views(row, unused, crop, DecodeLimits())
            except DecodeError as error:
                lost(row, error)
                continue
            count = int(views["image_count"])
            yield _Shown(views["image"], count, [(int(w), int(h)) for w, h in views["image_sizes"][:count]], asked)

    def _answered(self, some: Sequence[_Asked]) -> Iterator[Reply]:
        instructions = [asked.instruction for asked in some]
        own = self._say([asked.own for asked in some], instructions)
        shown = [asked.other for asked in some if asked.other is not None]
        other = self._say(shown, instructions) if len(shown) == len(some) else [None] * len(some)
        for asked, text, another in zip(some, own, other, strict=True):
            yield Reply(asked.instruction, asked.own.sizes, text, another)

    def _say(self, shown: Sequence[_Shown], instructions: Sequence[Instruction]) -> list[str]:
        pictures = torch.from_numpy(np.stack([one.pictures for one in shown])).to(self.device)
        questions, forms = [one.question for one in instructions], [one.form for one in instructions]
        with self.autocast():
            said: list[str] = self.model.answers(
                pictures, [one.shown for one in shown], questions, forms, self.options.free
            )
        return said

    def counts(self) -> dict[str, float | None]:
        """Return how many rows were asked about, and how many left out: without instructions, and unreadable."""
        left = {"rows.without_instructions": self.without, "rows.unreadable": len({one["uri"] for one in self.dead})}
        return {"rows": self.rows, **left}
