"""The clips of a packed video as vectors of a frozen encoder: what VEDIT (arXiv 2410.03478) learns on.

Shapes: C clips of a video, F frames of a clip that are looked at, L tokens of a clip, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from granary.curation.images.decode import DecodeError
from granary.curation.store import storage
from granary.curation.videos.decode import read_clip
from granary.curation.videos.limits import VideoLimits
from granary.training.data.collate import Dead, Part
from granary.training.data.computed import Computed, compute_parts, read_dead, read_part, stretches
from granary.training.data.frozen import digest_of, encoded
from granary.training.data.passes import undecoded
from granary.training.data.shards import Dataset
from granary.training.models.backbone import Backbone

PART = 256  # videos of a part, at least, but for the last


class ClipLook(NamedTuple):
    """How a clip is looked at.

    Args:
        frames: F.
        mean: whether it is the mean of what the encoder says of them, L = 1; else each is a token, L = F.
    """

    frames: int = 8
    mean: bool = True


LOOK = ClipLook()


def clip_times(clip: Mapping[str, float], frames: int) -> NDArray[np.float64]:
    """Return the middles of equal parts of a clip, (F,) seconds.

    Args:
        clip: with `start` and `end`, as `granary pack` writes them.
        frames: F.
    """
    return clip["start"] + (clip["end"] - clip["start"]) * (np.arange(frames) + 0.5) / frames


def clip_latents(
    encoder: Backbone,
    data: bytes,
    clips: Sequence[Mapping[str, float]],
    look: ClipLook = LOOK,
    limits: VideoLimits | None = None,
) -> Tensor:
    """Return what an encoder says of each clip, (C, L, D) float32 on the CPU.

    Args:
        encoder: in evaluation mode; it is not changed, and nothing has a gradient.
        data: the video's original bytes.
        clips: with `start` and `end` in seconds; one or more.
        look: at which frames.
        limits: on what is decoded.

    Raises:
        DecodeError: the video cannot be decoded.
        UserError: PyAV is not installed.
    """
    times = np.array([clip_times(clip, look.frames) for clip in clips]).reshape(-1)
    shown = read_clip(data, times.tolist(), encoder.config.img_size, limits)
    pixels = shown.reshape(len(clips), look.frames, *shown.shape[1:])
    latents = encoded(encoder, torch.from_numpy(pixels), "cls").reshape(len(clips), look.frames, -1)
    return latents.mean(dim=1, keepdim=True) if look.mean else latents


@dataclass(frozen=True)
class ClipSet:
    """The latents of the clips of a dataset's n videos.

    Args:
        folder: where they are.
        starts: number of the first row of each part, and n.
        dead: row -> (uri, error, message) of the videos that could not be decoded.
    """

    folder: str
    starts: tuple[int, ...]
    dead: Mapping[int, Dead]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to a worker, which maps the files itself."""
        return {"folder": self.folder, "starts": self.starts, "dead": self.dead}

    @cached_property
    def parts(self) -> list[dict[str, Tensor]]:
        """Of each part `latents` (clips, L, D) float32, and `ends` (rows,) int64, where those of a row end."""
        return [read_part(self.folder, number) for number in range(len(self.starts) - 1)]

    def row(self, number: int) -> Tensor:
        """Return the latents of the clips of a row, (C, L, D). Raises DecodeError for what could not be decoded."""
        if number in self.dead:
            raise DecodeError(*self.dead[number][1:])
        place = int(np.searchsorted(self.starts, number, side="right")) - 1
        part, within = self.parts[place], number - self.starts[place]
        return part["latents"][int(part["ends"][within - 1]) if within else 0 : int(part["ends"][within])]


def kept_latents(
    encoder: Backbone,
    dataset: Dataset,
    look: ClipLook,
    folder: str,
    say: Callable[[str], object] = lambda sentence: None,
) -> ClipSet:
    """Return the latents of the clips of every video of a dataset, computed where they are not there yet.

    Args:
        encoder: in evaluation mode, on the device to compute on.
        dataset: of `open_dataset`, with the columns video and clips.
        look: at which frames of a clip.
        folder: of features, of any encoder and dataset; a path or URL.
        say: is told of damaged files.

    Raises:
        UserError: another process computes the same just now, or PyAV is not installed.
    """
    settings = [asdict(encoder.config), "clips", *look]
    target = storage.join(folder, digest_of(encoder, dataset, settings, ["clips"]))
    parts = stretches(dataset.groups, PART)
    compute_parts(target, parts, dataset, lambda part: _latents(encoder, part, look), say)
    starts = np.cumsum([0, *(sum(group.rows for group in groups) for groups in parts)])
    return ClipSet(target, tuple(starts.tolist()), read_dead(target, len(parts)))


def _latents(encoder: Backbone, dataset: Dataset, look: ClipLook) -> Computed:
    """Return the latents of the videos of a part, one after another, and where those of each end."""
    tokens = 1 if look.mean else look.frames
    made, ends, dead = [torch.zeros(0, tokens, encoder.config.width)], list[int](), dict[int, Dead]()
    for number, row in enumerate(undecoded(dataset, ("video", "clips"))):
        try:
            made.append(row_latents(encoder, row, look))
        except DecodeError as error:
            dead[dataset.groups[0].start + number] = (row["uri"], error.kind, str(error))
        ends.append(sum(len(some) for some in made))
    return Computed({"latents": torch.cat(made), "ends": torch.tensor(ends)}, dead)


def row_latents(encoder: Backbone, row: Part, look: ClipLook) -> Tensor:
    """Return the latents of the clips of a row with the columns video and clips, (C, L, D). Raises DecodeError."""
    clips, data = row["clips"] or [], (row["video"] or {}).get("bytes")
    if not clips or not data:
        raise DecodeError("NoClips" if data else "NoVideo", "the row has no " + ("clip" if data else "video"))
    return clip_latents(encoder, data, clips, look)
