"""Videos with a mask for every frame: a zip file, read and never extracted, or a folder."""

from __future__ import annotations

import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.store import storage

FRAME = re.compile(r"(?:^|.*/)(frames|JPEGImages(?:/[^/]+)?)/([^/]+)/([^/]+)\.(?:jpg|jpeg|png)", re.IGNORECASE)
MASK = re.compile(r"(?:^|.*/)(masks|Annotations(?:/[^/]+)?)/([^/]+)/([^/]+)\.png", re.IGNORECASE)
LIMITS = DecodeLimits()
VOID = 255  # in DAVIS's palettes: not judged; here it is background

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Video:
    """The frames of a sequence in order, and the masks of those that have one."""

    name: str
    frames: list[str]
    masks: dict[str, str]  # frame -> mask


class Videos:
    """Sequences in a zip file, read and never extracted, or in a folder: frames/SEQ and masks/SEQ, or DAVIS's own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.archive: zipfile.ZipFile | None = None
        if path.endswith(".zip"):
            try:
                self.archive = zipfile.ZipFile(storage.open_read(path))
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"data: {path} cannot be read as a zip file ({error})") from error
        self.sequences = list(_sequences(self._names()))
        if not self.sequences:
            raise UserError(
                f"data: {path} has no sequence with a mask of its first frame; give a folder or zip with frames/NAME "
                "and masks/NAME, or JPEGImages/480p/NAME and Annotations/480p/NAME"
            )

    def _names(self) -> list[str]:
        if self.archive is not None:
            return self.archive.namelist()
        fs, root = storage.filesystem(self.path)
        return [name.removeprefix(root).lstrip("/") for name in fs.find(root)] if fs.exists(root) else []

    def read(self, name: str) -> bytes:
        """Return the bytes of a frame or mask."""
        if self.archive is None:
            return storage.read_bytes(storage.join(self.path, name))
        if self.archive.getinfo(name).file_size > LIMITS.max_bytes:
            raise DecodeError("TooLarge", f"{name} has more than {LIMITS.max_bytes:,} bytes")
        return self.archive.read(name)

    def frame(self, name: str) -> Image.Image:
        """Return a frame as RGB. Raises DecodeError."""
        return decode(self.read(name), LIMITS).image

    def mask(self, name: str) -> Labels:
        """Return the object numbers (h, w) of a mask: a palette's indices; anything else is 1 where it is not black.

        Raises:
            DecodeError: the file is damaged, or has an orientation.
        """
        data = self.read(name)
        size = decode(data, LIMITS).image.size  # refuses what is too large or broken
        with Image.open(io.BytesIO(data)) as image:
            labels = np.asarray(image if image.mode == "P" else image.convert("L"))
            labels = labels if image.mode == "P" else labels > 0
        if labels.shape != size[::-1]:
            raise DecodeError("Turned", f"{name} has an orientation, which a mask cannot have")
        return np.where(labels == VOID, 0, labels).astype(np.uint8)


def _sequences(names: list[str]) -> Iterator[Video]:
    """Yield the sequences among file names; of several resolutions of DAVIS the first by name."""
    files: dict[str, dict[str, dict[str, str]]] = {"frames": defaultdict(dict), "masks": defaultdict(dict)}
    for kind, pattern in (("frames", FRAME), ("masks", MASK)):
        for name in sorted(names):
            match = pattern.fullmatch(name)
            if match:
                files[kind][match[2]].setdefault(match[3], name)
    for name, frames in sorted(files["frames"].items()):
        masks = files["masks"].get(name, {})
        ordered = sorted(frames)
        if len(ordered) > 1 and ordered[0] in masks:
            paths = {frames[number]: masks[number] for number in ordered if number in masks}
            yield Video(name, [frames[number] for number in ordered], paths)
