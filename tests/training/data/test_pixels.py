"""The short way from a JPEG to pixels gives what Pillow gives, and leaves to it what it should."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.training.data import pixels
from granary.training.data.pixels import decode_pixels

LIMITS = DecodeLimits()
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 93, 3), dtype=np.uint8)).resize((186, 140))


def jpeg(image: Image.Image = PICTURE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def turned_by(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif)


KINDS = {
    "plain": jpeg(),
    "grey": jpeg(PICTURE.convert("L")),
    "cmyk": jpeg(PICTURE.convert("CMYK")),
    "progressive": jpeg(progressive=True),
    "4:4:4": jpeg(subsampling=0),
    "kept as RGB": jpeg(keep_rgb=True),
    "upright by EXIF": turned_by(1),
    "turned by EXIF": turned_by(6),
    "with a profile": jpeg(icc_profile=b"x" * 600),
}
SMOOTHED = ("plain", "progressive", "upright by EXIF", "with a profile")  # colours at half the size, the short way


@pytest.mark.parametrize("side", [None, 17, 35, 70, 140])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_sizes_are_those_of_pillow(kind: str, side: int | None) -> None:
    found, expected = decode_pixels(KINDS[kind], LIMITS, side), decode(KINDS[kind], LIMITS, side)
    assert (found.width, found.height) == (expected.width, expected.height)
    assert np.array_equal(found.pixels, np.asarray(expected.image))


@pytest.mark.parametrize("kind", ["plain", "grey", "progressive", "4:4:4", "upright by EXIF", "with a profile"])
def test_plain_files_take_the_short_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "decode", None)
    assert decode_pixels(KINDS[kind], LIMITS).pixels.shape == (140, 186, 3)


@pytest.mark.parametrize("side", [None, 35])
@pytest.mark.parametrize("kind", KINDS)
def test_fast_differs_only_where_colours_would_be_smoothed(kind: str, side: int | None) -> None:
    fast, exact = (decode_pixels(KINDS[kind], LIMITS, side, fast).pixels.astype(int) for fast in (True, False))
    assert np.array_equal(fast, exact) == (side is not None or kind not in SMOOTHED)
    assert np.abs(fast.mean(axis=(0, 1)) - exact.mean(axis=(0, 1))).max() < 1


def test_fast_pixels_of_a_smooth_picture_are_within_two_grey_levels() -> None:
    data = jpeg(PICTURE.resize((9, 7)).resize((900, 700), Image.Resampling.BICUBIC), quality=95)
    fast, exact = (decode_pixels(data, LIMITS, None, fast).pixels.astype(int) for fast in (True, False))
    assert 0 < np.abs(fast - exact).max() <= 2


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize("content", [b"MPF\0MM", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0 Orientation"])
def test_a_thumbnail_does_not_hide_what_comes_after_it(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thumbnail in an earlier segment has scans of its own."""
    data = jpeg()[:2] + segment(0xE1, b"thumbnail" + jpeg()) + segment(0xE2, content) + jpeg()[2:]
    assert content in pixels._header(data)
    assert content not in pixels._header(jpeg() + content)
    monkeypatch.setattr(pixels, "decode", lambda *_: pytest.fail("went the long way"))
    monkeypatch.setattr(pixels, "exif_orientation", lambda _: 3)
    with pytest.raises(pytest.fail.Exception):
        decode_pixels(data, LIMITS)


@pytest.mark.parametrize(
    ("data", "limits", "kind"),
    [
        (jpeg(), DecodeLimits(max_pixels=1000), "TooManyPixels"),
        (jpeg(), DecodeLimits(max_bytes=1000), "TooManyBytes"),
        (jpeg()[:-300], LIMITS, "TruncatedImage"),
        (b"\xff\xd8\xff\xe0", LIMITS, None),
        (jpeg(progressive=True) + b"\xff\xda" * 10_000, DecodeLimits(max_pixels=30_000), "TooManyScans"),
    ],
)
def test_what_is_refused_is_refused_by_name(data: bytes, limits: DecodeLimits, kind: str | None) -> None:
    with pytest.raises(DecodeError) as error:
        decode_pixels(data, limits)
    assert kind in (None, error.value.kind)


def outcome(data: bytes, side: int | None, short: bool) -> str:
    """Return a picture's size and pixels, or the kind of error."""
    try:
        found = decode_pixels(data, LIMITS, side).pixels if short else np.asarray(decode(data, LIMITS, side).image)
    except DecodeError as error:
        return error.kind
    return f"{found.shape} {found.tobytes().hex()}"


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(KINDS["plain"]) - 1), byte=st.integers(0, 255), side=st.sampled_from([None, 40]))
def test_a_damaged_byte_ends_as_with_pillow(place: int, byte: int, side: int | None) -> None:
    data = KINDS["plain"][:place] + bytes([byte]) + KINDS["plain"][place + 1 :]
    assert outcome(data, side, short=True) == outcome(data, side, short=False)
