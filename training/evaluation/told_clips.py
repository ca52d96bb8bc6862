"""What a training of vedit tells of the clips of videos: every window of a dataset, candidate by candidate.

Shapes: n windows, N clips that are told in each, C candidates, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from granary.curation.images.decode import DecodeError
from granary.training.data.clip_latents import row_latents
from granary.training.data.clip_windows import Latents, WindowViews, latents_of
from granary.training.data.collate import Part, on_device, stacked
from granary.training.data.crops import sample_generator
from granary.training.data.passes import undecoded
from granary.training.data.shards import Dataset
from granary.training.evaluation.scores import DeadLetter, dead_letter
from granary.training.methods.vedit import VIDEO, Vedit
from granary.training.models.clip_transformers import DTYPES

Numbers = NDArray[np.int64]
DRAW = "draw"  # of a candidate's classes, beside its noise


class Told(NamedTuple):
    """What was told of one kind: steps, verbs, nouns or the tasks of videos.

    Args:
        candidates: (n, C, N) classes.
        likeliest: (n, N) classes, by the mean of the probabilities of all candidates.
        truth: (n, N); -1 where nothing is said, K for a class that the training does not know.
        last: (n,) what the last clip that is seen shows, as in `truth`.
        classes: K.
    """

    candidates: Numbers
    likeliest: Numbers
    truth: Numbers
    last: Numbers
    classes: int


@dataclass
class TellWindows:
    """Tells the clips of every window of a dataset.

    Args:
        method: the training, in evaluation mode.
        candidates: C, each from noise of its own.
        temperature: of the softmax that the classes of candidates are drawn from; 0 takes the likeliest.
        seed: of noise and draws.
        batch: windows at once.
        dtype: see `Measured`.

    Attributes:
        videos, few, dead: videos with a window, those with too few clips, and those that could not be read.
    """

    method: Vedit
    candidates: int
    temperature: float
    seed: int
    batch: int = 64
    dtype: str = "float32"
    videos: int = 0
    few: int = 0
    dead: list[DeadLetter] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """What is read of a row."""
        return list(self.method.reads(self.method.options).columns)

    def told(self, dataset: Dataset, limit: int | None = None) -> dict[str, Told]:
        """Return what is told of all windows, by kind; nothing where there is no window.

        Args:
            dataset: with `columns`.
            limit: videos at most.
        """
        parts: dict[str, list[tuple[Numbers, ...]]] = {name: [] for name in self.method.classes}
        windows = self._windows(dataset, limit)
        while some := list(itertools.islice(windows, self.batch)):
            for name, arrays in self._answers(some).items():
                parts[name].append(arrays)
        told = {}
        for name, kind in parts.items():
            if kind:
                candidates, likeliest, truth, last = (np.concatenate(arrays) for arrays in zip(*kind, strict=True))
                told[name] = Told(candidates, likeliest, truth, last, len(self.method.classes[name]))
        return told

    def _windows(self, dataset: Dataset, limit: int | None) -> Iterator[tuple[Part, Part]]:
        """Yield name and contents of every window."""
        options = self.method.options
        views = WindowViews(options.windows, options.fields, options.latents)
        for row in undecoded(dataset, self.columns, limit):
            clips = row["clips"] or []
            windows = options.windows.every(len(clips))
            self.few += not windows
            if not windows:
                continue
            try:
                latents = self._latents(row)
            except DecodeError as error:
                self.dead.append(dead_letter(row["uri"], error.kind, str(error)))
                continue
            self.videos += 1
            for number, window in enumerate(windows):
                last = [clips[max(window.observed)].get(name) or None for name in options.fields]
                part = {**views.cut(clips, latents, window), "last": last, "video": row.get("label") or None}
                yield {"key": f"{row['key']}/{number}"}, part

    def _latents(self, row: Part) -> Latents:
        """Return the latents of the clips of a row, (C, L, d). Raises DecodeError."""
        column = self.method.options.latents
        if column is not None:
            return latents_of(row[column], len(row["clips"]))
        return row_latents(self.method.encoder, row, self.method.options.look).numpy()

    @torch.inference_mode()
    def _answers(self, windows: Sequence[tuple[Part, Part]]) -> dict[str, tuple[Numbers, ...]]:
        """Return of each kind what `Told` has, but for the number of classes."""
        batch = stacked(windows)
        ids, device = batch["id"], self.method.mean.device
        given = on_device(device, batch)
        told: dict[str, list[Tensor]] = {name: [] for name in self.method.classes}
        for candidate in range(self.candidates):
            draws = [sample_generator(self.seed, candidate, identity) for identity in ids]
            noise = np.stack([draw.standard_normal(batch["targets"].shape[1:], dtype=np.float32) for draw in draws])
            with torch.autocast(device.type, DTYPES[self.dtype], enabled=self.dtype != "float32"):
                made = self.method.generated(given, torch.from_numpy(noise).to(device))
                answers = self.method.answers(made)
            for name, logits in answers.items():
                told[name].append(logits.float().cpu())
        return {name: self._of_kind(name, torch.stack(some, dim=1), batch) for name, some in told.items()}

    def _of_kind(self, name: str, logits: Tensor, batch: Part) -> tuple[Numbers, ...]:
        """Return candidates, likeliest, truth and last of a kind; logits are (n, C, N, K)."""
        classes = {text: number for number, text in enumerate(self.method.classes[name])}
        if name == VIDEO and self.method.options.task == "classification":
            truth, last = [[text] for text in batch["video"]], batch["video"]
        else:
            place = self.method.options.fields.index(name)
            truth, last = ([row[place] for row in batch[key]] for key in ("told", "last"))
        likeliest = logits.softmax(dim=3).mean(dim=1).argmax(dim=2)
        return (
            self._chosen(logits, batch["id"]),
            likeliest.numpy(),
            np.array([_codes(row, classes) for row in truth], np.int64),
            np.array(_codes(last, classes), np.int64),
        )

    def _chosen(self, logits: Tensor, ids: Sequence[str]) -> Numbers:
        """Return the classes of candidates, (n, C, N): the largest of logits and Gumbel noise draws from a softmax."""
        if self.temperature:
            draws = [sample_generator(self.seed, 0, f"{DRAW}/{identity}") for identity in ids]
            noise = np.stack([draw.gumbel(size=logits.shape[1:]) for draw in draws])
            logits = logits / self.temperature + torch.from_numpy(noise)
        chosen: Numbers = logits.argmax(dim=3).numpy()
        return chosen


def _codes(texts: Sequence[str | None], classes: Mapping[str, int]) -> list[int]:
    """Return the numbers of texts: -1 for none, K for one that is not among the classes."""
    return [-1 if text is None else classes.get(str(text), len(classes)) for text in texts]
