"""Which clips of a video are seen, and which are to be told from them: the tasks of VEDIT (arXiv 2410.03478).

Shapes: O clips are observed, N are told, L tokens of a clip, d numbers of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.clip_latents import ClipSet
from granary.training.data.collate import Part
from granary.training.data.crops import Crop

Task = Literal["recognition", "forecasting", "planning", "anticipation", "classification"]
TASKS: tuple[Task, ...] = get_args(Task)
Latents = NDArray[np.float32]


class Window(NamedTuple):
    """Clips of a video by their numbers: those that are observed, and those that are told."""

    observed: list[int]
    targets: list[int]


@dataclass(frozen=True)
class Windows:
    """What a task asks of a video: a clip itself, the next one, those between two, all that follow, or its task.

    Args:
        task: recognition: each clip, among those around it; forecasting: the one after those seen; planning: `ahead`
            clips of which the first and the last are seen; anticipation: the next `ahead` clips; classification: what
            is done in the video, of `history` clips evenly spread over it, some of them twice if it has fewer.
        history: clips that are observed at most.
        ahead: N of planning and anticipation.
    """

    task: Task
    history: int
    ahead: int

    @property
    def observed(self) -> int:
        """O, clips that a window has room for."""
        return 2 if self.task == "planning" else self.history

    @property
    def told(self) -> int:
        """N."""
        return {"planning": self.ahead, "anticipation": self.ahead, "classification": self.history}.get(self.task, 1)

    @property
    def least(self) -> int:
        """Clips that a video must have."""
        return {"forecasting": 2, "planning": self.ahead, "anticipation": self.ahead + 1}.get(self.task, 1)

    def every(self, clips: int) -> list[Window]:
        """Return the windows of a video, in the order of its clips; none where it has too few of them."""
        if clips < self.least:
            return []
        if self.task == "classification":
            spread = np.linspace(0, clips - 1, self.history).round().astype(int).tolist()
            return [Window(spread, spread)]
        if self.task == "recognition":
            starts = [min(max(0, clip - self.history // 2), max(0, clips - self.history)) for clip in range(clips)]
            around = [list(range(start, min(clips, start + self.history))) for start in starts]
            return [Window(seen, [clip]) for clip, seen in enumerate(around)]
        if self.task == "planning":
            spans = [list(range(start, start + self.ahead)) for start in range(clips - self.ahead + 1)]
            return [Window([span[0], span[-1]], span) for span in spans]
        cuts = range(1, clips - self.told + 1)
        return [Window(list(range(max(0, c - self.history), c)), list(range(c, c + self.told))) for c in cuts]

    def drawn(self, clips: int, generator: np.random.Generator) -> Window:
        """Return one of the windows, all equally likely. Raises DecodeError where there is none."""
        windows = self.every(clips)
        if not windows:
            raise DecodeError("TooFewClips", f"{clips} clips; {self.task} needs {self.least}")
        return windows[int(generator.integers(len(windows)))]


@dataclass(frozen=True)
class WindowViews:
    """What a training on clips has in the place of pictures: a window of each video, see `Reads.views`.

    A row has `clips`, as `granary pack` writes them, and latents: in a column, or of an encoder.

    Args:
        windows: that may be drawn.
        fields: of a clip, whose values are to be told: step, or verb and noun.
        column: of the latents, (C, d) or (C, L, d) in a cell; None for those of `sets`.
        sets: latents of an encoder, of each dataset of the mixture.
    """

    windows: Windows
    fields: tuple[str, ...]
    column: str | None = None
    sets: tuple[ClipSet, ...] = ()

    def of(self, sets: Sequence[ClipSet]) -> WindowViews:
        """Return the same with the latents of an encoder."""
        return replace(self, sets=tuple(sets))

    def __call__(
        self, row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits
    ) -> Part:
        """Return a window of a row, drawn; raises DecodeError where it has none, or no latents."""
        clips = row["clips"] or []
        window = self.windows.drawn(len(clips), generator)
        return self.cut(clips, self.latents(row), window)

    def latents(self, row: Part) -> Latents:
        """Return the latents of all clips of a row, (C, L, d). Raises DecodeError."""
        if self.column is not None:
            return latents_of(row[self.column], len(row["clips"] or []))
        number = int(row["row"])
        for clips in self.sets:
            if number < len(clips):
                return clips.row(number).numpy()
            number -= len(clips)
        raise IndexError(f"row {row['row']} is in none of the sets")

    def cut(self, clips: Sequence[Mapping[str, Any]], latents: Latents, window: Window) -> Part:
        """Return what a model is given and asked.

        Args:
            clips: of the video.
            latents: (C, L, d).
            window: numbers of clips.

        Returns:
            observed (O, L, d), 0 where fewer are; present (O,) bool; observed_positions (O,) int64; targets (N, L, d);
            positions (N,) int64; told, for each field the texts of the N clips, None where nothing is said.
        """
        room, seen = self.windows.observed, len(window.observed)
        observed = np.zeros((room, *latents.shape[1:]), np.float32)
        observed[:seen] = latents[window.observed]
        places = np.zeros(room, np.int64)
        places[:seen] = window.observed
        return {
            "observed": observed,
            "present": np.arange(room) < seen,
            "observed_positions": places,
            "targets": latents[window.targets],
            "positions": np.array(window.targets, np.int64),
            "told": [[clips[place].get(name) or None for place in window.targets] for name in self.fields],
        }


def latents_of(cell: object, clips: int) -> Latents:
    """Return what a cell of latents holds, (C, L, d). Raises DecodeError where it is not that of so many clips."""
    try:
        latents = np.asarray(cell, np.float32)
    except (TypeError, ValueError):
        raise DecodeError("WrongLatents", "the latents are not numbers in lists of one length") from None
    latents = latents[:, None] if latents.ndim == 2 else latents
    if latents.ndim != 3 or len(latents) != clips or not latents.size:
        raise DecodeError("WrongLatents", f"latents of shape {latents.shape} for {clips} clips")
    if not np.isfinite(latents).all():
        raise DecodeError("WrongLatents", "a latent is not a number")
    return latents
