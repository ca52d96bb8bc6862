"""The clips of a packed video as vectors of a frozen encoder: what VEDIT (arXiv 2410.03478) learns on.

Shapes: C clips of a video, F frames of a clip that are looked at, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from granary.curation.videos.decode import read_clip
from granary.curation.videos.limits import VideoLimits
from granary.training.data.frozen import encoded
from granary.training.models.backbone import Backbone


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
    frames: int = 8,
    limits: VideoLimits | None = None,
) -> Tensor:
    """Return the mean over its frames of what an encoder says of each clip, (C, D) float32 on the CPU.

    Args:
        encoder: in evaluation mode; it is not changed, and nothing has a gradient.
        data: the video's original bytes.
        clips: with `start` and `end` in seconds.
        frames: F, looked at in each clip.
        limits: on what is decoded.

    Raises:
        DecodeError: the video cannot be decoded.
        UserError: PyAV is not installed.
    """
    times = np.array([clip_times(clip, frames) for clip in clips]).reshape(-1)
    shown = read_clip(data, times.tolist(), encoder.config.img_size, limits)
    pixels = shown.reshape(len(clips), frames, *shown.shape[1:])
    return encoded(encoder, torch.from_numpy(pixels), "cls").reshape(len(clips), frames, -1).mean(dim=1)
