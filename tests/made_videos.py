"""Videos made by PyAV for tests: each frame is one grey, so that it is known again after coding."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="PyAV (extra video) is not installed")

Stream = tuple[int, int]  # width, height


def grey(number: int) -> int:
    """The grey of a frame, 8 apart from its neighbours."""
    return 16 + 8 * (number % 25)


def picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A frame: its grey, and a white corner at the top left."""
    pixels = np.full((height, width, 3), grey(number), np.uint8)
    pixels[: height // 4, : width // 4] = 255
    return pixels


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The frame, of the first 25, that a decoded one shows in its middle."""
    middle = float(np.asarray(pixels, np.float64)[len(pixels) // 2, len(pixels) // 2].mean())
    return round((middle - 16) / 8)


def made(
    frames: int = 20,
    container: str = "mp4",
    codec: str = "libx264",
    size: Stream = (64, 48),
    rate: int = 10,
    ticks: Sequence[int] | None = None,
    rotation: int = 0,
    gop: int = 5,
    pictures: Sequence[NDArray[np.uint8]] | None = None,
    further: Sequence[Stream] = (),
    sound: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return a video file.

    Args:
        frames: how many.
        container, codec: of FFmpeg.
        size: width, height.
        rate: frames a second; of the time base too.
        ticks: when each frame is shown, in 1 / rate seconds.
        rotation: in degrees, against the clock, of the display.
        gop: frames from key frame to key frame.
        pictures: what the frames show.
        further: sizes of further picture streams.
        sound: whether there is a second of silence too.
        options: of the container.
    """
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "made")  # on disk: some containers are written in two passes
    with folder, av.open(str(path), "w", format=container, options=options or {}) as out:
        streams = [_stream(out, codec, shape, rate, gop) for shape in (size, *further)]
        if rotation:
            streams[0].set_display_rotation(rotation)
        voice = out.add_stream("aac", rate=8000) if sound else None
        out.start_encoding()
        for number in range(frames):
            for stream in streams:
                pixels = pictures[number] if pictures else picture(number, stream.width, stream.height)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = (ticks[number] if ticks else number), Fraction(1, rate)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode())
        if voice:
            _silence(out, voice)
        out.close()
        return path.read_bytes()


def sounds() -> bytes:
    """Return a file with sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        _silence(out, out.add_stream("aac", rate=8000))
    return file.getvalue()


def _stream(out: Any, codec: str, size: Stream, rate: int, gop: int) -> Any:
    stream = out.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
    stream.codec_context.thread_count = 1
    if codec == "libx264":
        stream.options = {"crf": "5", "preset": "ultrafast", "x264-params": f"keyint={gop}:scenecut=0"}
    return stream


def _silence(out: Any, voice: Any) -> None:
    for start in range(0, 8000, 1000):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        out.mux(voice.encode(frame))
    out.mux(voice.encode())
