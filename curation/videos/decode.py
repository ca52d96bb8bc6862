"""Decode untrusted videos by PyAV, under limits: the frames of one stream, upright, with their times.

Of several streams the first with pictures that is marked as the default is taken, else the first; cover pictures of
sound files are none. Only bytes are read: a file that names other files or addresses is refused.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from granary.curation.errors import needs
from granary.curation.images.decode import DecodeError
from granary.curation.videos.limits import VideoLimits

if TYPE_CHECKING:
    import av

FORMATS = "avi,flv,gif,h264,hevc,ivf,matroska,mov,mpeg,mpegts,mpegvideo,obu,ogg,asf,webm"
ATTACHED = 0x400  # AV_DISPOSITION_ATTACHED_PIC
MICROSECONDS = 1_000_000
LATE = 1.0  # seconds by which a video may end before its file says so
APART = 4.0  # seconds between two wanted frames from which on what lies between is jumped over

Pixels = NDArray[np.uint8]


class Frame:
    """A frame, converted when it is asked for.

    Args:
        inner: of PyAV.
        time: seconds since the video's beginning.
    """

    def __init__(self, inner: av.VideoFrame, time: float) -> None:
        self.inner, self.time = inner, time

    @property
    def turned(self) -> bool:
        """Whether width and height change places when the frame is put upright."""
        return bool(_quarters(self.inner) % 2)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        width, height = self.inner.width, self.inner.height
        return (height, width) if self.turned else (width, height)

    def image(self) -> Image.Image:
        """Return the frame as RGB, upright."""
        return Image.fromarray(
            np.ascontiguousarray(np.rot90(self.inner.to_ndarray(format="rgb24"), _quarters(self.inner)))
        )

    def small(self, width: int, height: int) -> Pixels:
        """Return a thumbnail (height, width, 3), not put upright."""
        return np.asarray(self.inner.reformat(width, height, "rgb24").to_ndarray(), np.uint8)


def _quarters(frame: av.VideoFrame) -> int:
    """Return the quarter turns, against the clock, that put a frame upright."""
    return round(frame.rotation / 90) % 4


class Facts(NamedTuple):
    """What a video is, found by decoding all of it.

    Args:
        times: (T,) float64 seconds since the beginning, never falling.
        seconds: to the end of the last frame.
        width, height: of the first frame, upright.
        codec: its name.
        streams: of the file.
    """

    times: NDArray[np.float64]
    seconds: float
    width: int
    height: int
    codec: str
    streams: int

    @property
    def frames(self) -> int:
        """How many there are."""
        return len(self.times)


class Video:
    """An opened video; use it in a `with` block.

    Args:
        data: the file.
        limits: on what is decoded.

    Raises:
        DecodeError: it cannot be opened, has no pictures or is above a limit.
        UserError: PyAV is not installed.
    """

    def __init__(self, data: bytes, limits: VideoLimits | None = None) -> None:
        with needs("video"):
            import av
        self.limits = limits or VideoLimits()
        if not data:
            raise DecodeError("EmptyFile", "no bytes")
        _within("TooManyBytes", len(data), self.limits.max_bytes, "bytes")
        self.size = len(data)
        options = {
            "format_whitelist": FORMATS,
            "protocol_whitelist": "none",
            "max_streams": str(self.limits.max_streams),
        }
        with _readable("NotAVideo"):
            self.container = av.open(io.BytesIO(data), "r", options=options, metadata_errors="replace")
        try:
            self.stream = self._chosen()
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _chosen(self) -> Any:
        """Return the stream whose pictures are the video's, checked."""
        _within("TooManyStreams", len(self.container.streams), self.limits.max_streams, "streams")
        moving = [stream for stream in self.container.streams.video if not int(stream.disposition) & ATTACHED]
        if not moving:
            raise DecodeError("NoVideo", f"none of the {len(self.container.streams)} streams has moving pictures")
        stream = next((each for each in moving if int(each.disposition) & 1), moving[0])
        if stream.codec_context is None:
            raise DecodeError("UnknownCodec", "there is no decoder for its pictures")
        _within("TooManyPixels", stream.width * stream.height, self.limits.max_pixels, "pixels a frame")
        _within("TooManyFrames", stream.frames, self.limits.max_frames, "frames")
        if self.container.duration:
            _within("TooLong", self.container.duration / MICROSECONDS, self.limits.max_seconds, "seconds")
        if any(entry.pos + entry.size > self.size for entry in stream.index_entries):
            raise DecodeError("Truncated", f"its index names frames beyond its {self.size} bytes")
        stream.codec_context.thread_count = 1  # a unit has one native thread
        return stream

    @property
    def codec(self) -> str:
        """Name of the stream's codec."""
        return str(self.stream.codec_context.codec.canonical_name)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames from where the file stands, in the order they are shown.

        Raises:
            DecodeError: a frame is damaged or too large, or there are too many.
        """
        count, last, shift = 0, 0.0, (self.container.start_time or 0) / MICROSECONDS
        frames = self.container.decode(self.stream)
        while True:
            with _readable("Damaged"):
                frame = next(frames, None)
            if frame is None:
                return
            count += 1
            _within("TooManyFrames", count, self.limits.max_frames, "frames")
            _within("TooManyPixels", frame.width * frame.height, self.limits.max_pixels, "pixels a frame")
            if frame.is_corrupt:
                raise DecodeError("Damaged", f"frame {count} is damaged")
            time = last if frame.time is None else frame.time - shift
            last = max(last, time)
            _within("TooLong", last, self.limits.max_seconds, "seconds")
            if frame.time is None:  # no times in the file: equal steps
                last = count / float(self.stream.average_rate or self.stream.guessed_rate or 25)
                yield Frame(frame, time)
            else:
                yield Frame(frame, last)

    def seek(self, time: float) -> bool:
        """Go to the last key frame that is not after a time, in seconds; returns False where the file cannot."""
        start = self.container.start_time or 0
        try:
            self.container.seek(max(start, start + int(time * MICROSECONDS)), backward=True)
        except (OSError, ValueError):  # errors of PyAV are both
            return False
        return True


@contextlib.contextmanager
def _readable(kind: str) -> Iterator[None]:
    """Turn what PyAV raises into DecodeError of a kind."""
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError, OverflowError, MemoryError, EOFError) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DecodeError(kind, str(words).splitlines()[0]) from error


def _within(kind: str, value: float, limit: float, unit: str) -> None:
    if value > limit:
        raise DecodeError(kind, f"{value:,.10g} {unit}, the limit is {limit:,.10g}")


def facts_of(data: bytes, limits: VideoLimits | None = None, look: Callable[[Frame], object] | None = None) -> Facts:
    """Decode a video to its end.

    Args:
        data: the file.
        limits: on what is decoded.
        look: called with every frame, in order.

    Raises:
        DecodeError: it is no video, is damaged, ends too early, has no frame or is above a limit.
        UserError: PyAV is not installed.
    """
    with Video(data, limits) as video:
        times, size = list[float](), (0, 0)
        for frame in video.frames():
            size = size if times else frame.size
            times.append(frame.time)
            if look is not None:
                look(frame)
        if not times:
            raise DecodeError("NoFrames", "its pictures stream has no frame")
        seconds = _end(video, times)
        _whole(video, seconds)
        return Facts(np.array(times), seconds, *size, video.codec, len(video.container.streams))


def _end(video: Video, times: Sequence[float]) -> float:
    """Return when the last frame ends: it lasts as long as the one before it, or as the rate says."""
    rate = float(video.stream.average_rate or video.stream.guessed_rate or 25)
    return times[-1] + (times[-1] - times[-2] if len(times) > 1 and times[-1] > times[-2] else 1 / rate)


def _whole(video: Video, seconds: float) -> None:
    """Raise DecodeError where the frames end long before the file says that they do."""
    stream, container = video.stream, video.container
    stated = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if not stated and len(container.streams) == 1 and container.duration:
        stated = container.duration / MICROSECONDS
    if stated - seconds > max(LATE, stated / 20):
        raise DecodeError("Truncated", f"its frames end after {seconds:.2f} of {stated:.2f} seconds")


def read_clip(data: bytes, times: Sequence[float], side: int, limits: VideoLimits | None = None) -> Pixels:
    """Return the frames that are shown at some times, the middle square of each.

    Before the first frame it is that one, after the last one the last.

    Args:
        data: the file.
        times: T seconds since the beginning, in any order.
        side: of the frames, in pixels.
        limits: on what is decoded.

    Returns:
        (T, side, side, 3) uint8.

    Raises:
        DecodeError: as `facts_of` does, for what had to be decoded.
        UserError: PyAV is not installed.
    """
    wanted = np.asarray(times, np.float64)
    if not np.isfinite(wanted).all():
        raise DecodeError("NoTime", "a time of a clip is not a number")
    if not len(wanted):
        return np.zeros((0, side, side, 3), np.uint8)
    shown = _shown(data, np.unique(wanted), side, limits or VideoLimits())
    return shown[np.searchsorted(np.unique(wanted), wanted)]


def _shown(data: bytes, wanted: NDArray[np.float64], side: int, limits: VideoLimits) -> Pixels:
    """Return the frames at rising times: by jumps where the file can, otherwise from its beginning."""
    out = np.zeros((len(wanted), side, side, 3), np.uint8)
    starts = np.flatnonzero(np.diff(wanted, prepend=-np.inf) > APART)
    with Video(data, limits) as video:
        for start, stop in zip(starts, [*starts[1:], len(wanted)], strict=True):
            if not (video.seek(wanted[start]) and _taken(video, wanted[start:stop], out[start:stop], jumped=True)):
                with Video(data, limits) as again:
                    _taken(again, wanted[start:stop], out[start:stop], jumped=False)
    return out


def _taken(video: Video, wanted: NDArray[np.float64], out: Pixels, jumped: bool) -> bool:
    """Fill `out` with the frames shown at rising times; False where a jump came out after the first of them."""
    before: Frame | None = None
    place = 0
    for frame in video.frames():
        if before is None and jumped and frame.time > max(wanted[0], 0):
            return False
        while place < len(wanted) and before is not None and frame.time > wanted[place]:
            out[place] = _squared(before, len(out[place]))
            place += 1
        if place == len(wanted):
            return True
        before = frame
    if before is None:
        if jumped:
            return False
        raise DecodeError("NoFrames", "its pictures stream has no frame")
    out[place:] = _squared(before, out.shape[1])
    return True


def _squared(frame: Frame, side: int) -> Pixels:
    return np.asarray(ImageOps.fit(frame.image(), (side, side), Image.Resampling.BILINEAR), np.uint8)
