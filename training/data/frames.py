"""The frames of a row: of a column of pictures, of a video's file at a rate, or of a single picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.curation.videos.decode import read_clip
from granary.training.data.collate import Part
from granary.training.data.crops import Crop, cut_views

Source = Literal["images", "video", "image"]
COLUMNS: Mapping[Source, tuple[str, ...]] = {"images": ("images",), "video": ("video", "seconds"), "image": ("image",)}
CONFIGS: Mapping[Source, str] = {
    "images": "videos",
    "video": "data",
    "image": "data",
}  # folders, as granary writes them


@dataclass(frozen=True)
class FrameViews:
    """Makes the frames of a row, its view `image`, see `Reads.views`.

    Args:
        source: images, a list of pictures; video, the file of one, with its `seconds`; image, a picture alone.
        rate: frames of a second of a video's file.
    """

    source: Source
    rate: float = 1.0

    def __call__(
        self, row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits
    ) -> Part:
        """Return `image` (count, side, side, 3) uint8, black after the last frame, and `frames`, how many there are.

        Raises:
            DecodeError: the row has no frames, or one that cannot be decoded.
        """
        crop = crops["image"]
        found = self.read(row, crop.count, crop.side, limits)
        padded = np.zeros((crop.count, crop.side, crop.side, 3), np.uint8)
        padded[: len(found)] = found
        return {"image": padded, "frames": np.int64(len(found))}

    def read(self, row: Part, most: int, side: int, limits: DecodeLimits) -> NDArray[np.uint8]:
        """Return the middles of at most so many frames, in equal steps: (T, side, side, 3). Raises DecodeError."""
        if self.source == "video":
            seconds = float(row["seconds"] or 0.0)
            times = np.arange(max(1, int(seconds * self.rate))) / self.rate
            file = row["video"]
            return read_clip(bytes(file["bytes"] if file else b""), times[stepped(len(times), most)].tolist(), side)
        files = [row["data"]] if self.source == "image" else row["pictures"]
        if not files:
            raise DecodeError("NoFrames", "the row has no frames")
        return _decoded([files[place] for place in stepped(len(files), most)], side, limits)


def stepped(count: int, most: int) -> list[int]:
    """Return at most so many of the numbers 0 .. count - 1, in equal steps from the first to the last."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def _decoded(files: Sequence[bytes], side: int, limits: DecodeLimits) -> NDArray[np.uint8]:
    """Return the middle of each picture, (T, side, side, 3); one that stands still is decoded once."""
    crop, unused = {"image": Crop(1, side, centre=True)}, np.random.default_rng(0)
    made = {file: cut_views(file, None, crop, unused, limits)["image"][0] for file in dict.fromkeys(files)}
    return np.stack([made[file] for file in files])
