"""Odd containers each end in the right frames or in one reason; clips are those of a slow loop."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_videos import av, made, number_of, sounds
from places import SHARED

from granary.curation.images.decode import DecodeError
from granary.curation.videos.decode import Frame, Video, facts_of, read_clip
from granary.curation.videos.limits import VideoLimits

CLIPS = SHARED / "video_clips_dev.zip"
REASONS = ("NotAVideo", "NoVideo", "NoFrames", "UnknownCodec", "Damaged", "Truncated", "TooLong", "TooManyPixels",
           "TooManyFrames", "TooManyStreams")  # fmt: skip


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("matroska", "libx264"), ("mpegts", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"),
     ("h264", "libx264"), ("mov", "mpeg4"), ("matroska", "ffv1")],
)  # fmt: skip
def test_every_frame_of_every_container_is_counted_at_its_time(container: str, codec: str) -> None:
    shown: list[int] = []
    facts = facts_of(made(20, container, codec), look=lambda frame: shown.append(number_of(np.asarray(frame.image()))))
    assert shown == list(range(20))
    rate = 25 if container == "h264" else 10  # bare frames have no times; 25 is what FFmpeg takes then
    assert facts.times == pytest.approx(np.arange(20) / rate, abs=0.051)
    assert facts.frames == 20
    assert (facts.width, facts.height, facts.streams) == (64, 48, 1)
    assert facts.seconds == pytest.approx(20 / rate, abs=0.06)


def test_a_file_without_an_index_is_counted_and_read() -> None:
    """A live stream: fragments, no index at the end; and MPEG-TS, which has none at all."""
    for data in (
        made(20, options={"movflags": "frag_keyframe+empty_moov"}),
        made(20, "mpegts"),
        made(20, "matroska", options={"live": "1"}),
    ):
        assert facts_of(data).frames == 20
        assert [number_of(frame) for frame in read_clip(data, [0.3, 1.85], 24)] == [3, 18]


def test_frames_of_a_variable_rate_are_shown_until_the_next_one() -> None:
    ticks = [0, 1, 2, 30, 31, 60, 100]
    data = made(7, ticks=ticks)
    facts = facts_of(data)
    assert facts.times == pytest.approx(np.array(ticks) / 10)
    assert [number_of(frame) for frame in read_clip(data, [0.25, 2.9, 3.0, 5.99, 6.0, 99.0, -1], 24)] == [
        2,
        2,
        3,
        4,
        5,
        6,
        0,
    ]


def test_of_two_streams_the_first_is_the_video() -> None:
    facts = facts_of(made(20, size=(64, 48), further=[(96, 80)], sound=True))
    assert (facts.width, facts.height, facts.frames, facts.streams) == (64, 48, 20, 3)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_turned_video_is_put_upright_as_opencv_does(rotation: int, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    data, images = made(3, rotation=rotation, size=(64, 48)), []
    facts = facts_of(data, look=lambda frame: images.append(np.asarray(frame.image())))
    assert (facts.width, facts.height) == ((64, 48) if rotation == 180 else (48, 64))
    (tmp_path / "turned.mp4").write_bytes(data)
    capture = cv2.VideoCapture(str(tmp_path / "turned.mp4"))
    _, theirs = capture.read()
    assert theirs.shape == images[0].shape
    assert np.abs(theirs[..., ::-1].astype(int) - images[0]).mean() < 6


def refused(data: bytes, **limits: float) -> str:
    with pytest.raises(DecodeError) as caught:
        facts_of(data, VideoLimits(**limits))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value.kind


def test_what_has_no_pictures_is_refused() -> None:
    assert refused(sounds()) == "NoVideo"
    assert refused(b"") == "EmptyFile"
    assert refused(b"no video at all" * 99) == "NotAVideo"
    assert refused(made(0, "matroska")) in ("NoFrames", "NotAVideo")
    assert refused(made(0, "mp4", options={"movflags": "empty_moov"})) in ("NoFrames", "NoVideo", "NotAVideo")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("place", ["begin", "end"])
def test_a_truncated_file_is_refused(share: float, place: str) -> None:
    data = made(60, gop=10, options={"movflags": "faststart"} if place == "begin" else {})
    assert refused(data[: int(share * len(data))]) in ("Truncated", "NotAVideo", "NoVideo")


def test_a_truncated_file_of_frames_alone_has_the_frames_that_are_there_or_is_refused() -> None:
    whole = made(60, "matroska", "ffv1")
    assert refused(whole[: len(whole) // 2]) in ("Truncated", "NotAVideo", "Damaged")
    stream = made(60, "mpegts")
    assert counted(stream[: len(stream) // 2]) in (*range(20, 32), "Truncated", "Damaged")


def counted(data: bytes) -> int | str:
    """The number of frames, or why there is none."""
    try:
        return facts_of(data).frames
    except DecodeError as error:
        return error.kind


def test_a_damaged_file_never_ends_in_anything_but_frames_or_a_reason() -> None:
    data = made(30, gop=5)
    for seed in range(40):
        random, broken = np.random.default_rng(seed), bytearray(data)
        for place in random.integers(0, len(data), int(random.integers(1, 60))):
            broken[place] = int(random.integers(256))
        assert counted(bytes(broken)) in (*range(61), *REASONS)


def test_limits_are_kept() -> None:
    data = made(20)
    assert refused(data, max_frames=19) == "TooManyFrames"
    assert refused(made(20, "mpegts"), max_frames=19) == "TooManyFrames"
    assert refused(data, max_pixels=64 * 48 - 1) == "TooManyPixels"
    assert refused(data, max_seconds=1.5) == "TooLong"
    assert refused(made(20, "h264"), max_seconds=0.5) == "TooLong"
    assert refused(data, max_bytes=len(data) - 1) == "TooManyBytes"
    assert refused(made(5, further=[(32, 32)]), max_streams=1) in ("TooManyStreams", "NotAVideo")
    assert facts_of(data, VideoLimits(max_frames=20, max_pixels=64 * 48, max_bytes=len(data))).frames == 20


def test_a_file_that_names_other_files_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(made(5))
    listing = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"
    for data in (listing, f"ffconcat version 1.0\nfile '{other}'\n", f"concat:{other}"):
        assert refused(data.encode()) == "NotAVideo"


def slow_clip(data: bytes, times: list[float]) -> list[int]:
    """The frame shown at each time, by decoding everything."""
    with Video(data) as video:
        frames = [(frame.time, number_of(np.asarray(frame.image()))) for frame in video.frames()]
    return [max((entry for entry in frames if entry[0] <= time), default=frames[0])[1] for time in times]


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_clips_are_those_of_a_loop_over_all_frames(container: str) -> None:
    """25 frames over 25 s: some of the times are far apart, so that a reader jumps."""
    data = made(25, container, "mpeg4" if container == "avi" else "libx264", rate=1, gop=4)
    times = [20.5, 3.0, 3.2, 11.9, 24.0, 0.0, 17.01, 3.0]
    clip = read_clip(data, times, 32)
    assert clip.shape == (8, 32, 32, 3)
    assert [number_of(frame) for frame in clip] == slow_clip(data, times)
    assert read_clip(data, [], 32).shape == (0, 32, 32, 3)


def test_times_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DecodeError, match="not a number"):
        read_clip(made(3), [float("nan")], 32)


def test_the_same_file_gives_the_same_pixels() -> None:
    data = made(20)
    digests = {hashlib.sha256(read_clip(data, [0.1, 1.5], 40).tobytes()).hexdigest() for _ in range(3)}
    assert len(digests) == 1


@pytest.mark.skipif(not CLIPS.exists(), reason="../shared/data is not there")
def test_clips_of_many_cameras_have_the_frames_that_were_counted() -> None:
    with zipfile.ZipFile(CLIPS) as archive:
        for line in archive.read("manifest.jsonl").decode().splitlines():
            told = json.loads(line)
            facts = facts_of(archive.read(told["file"]))
            assert facts.frames == told["frames"], told["file"]
            assert (facts.width, facts.height) == (told["width"], told["height"])
            assert facts.seconds == pytest.approx(told["seconds"], abs=0.06)


def test_thumbnails_are_small_frames() -> None:
    seen: list[Frame] = []
    facts_of(made(3), look=seen.append)
    assert [number_of(frame.small(8, 6)) for frame in seen] == [0, 1, 2]
    assert seen[0].small(8, 6).shape == (6, 8, 3)
    assert av.open(io.BytesIO(made(3))).streams.video[0].frames == 3
