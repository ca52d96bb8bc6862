"""Filters: thresholds, reasons, and independence of DCT scaling."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageFilter
from places import SHARED
from scipy import ndimage

from granary.curation.images.decode import Decoded, decode
from granary.curation.images.filters import SIDE, Filters, laplacian_variance, small_grey
from granary.curation.images.limits import DecodeLimits

LIMITS = DecodeLimits()


def decoded(image, width=None, height=None):
    return Decoded(image, width or image.width, height or image.height, "PNG", 1)


def texture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_all_off_by_default_and_thresholds_are_checked():
    assert Filters().reject(decoded(Image.new("RGB", (1, 5000)))) is None
    assert Filters().side is None
    for fields in ({"min_side": 0}, {"max_aspect": 0.5}, {"blank": 200}, {"blur": -1}, {"sharp": 1}):
        with pytest.raises(ValueError, match="validation error"):
            Filters(**fields)
    assert all(field.description for field in Filters.model_fields.values())


def test_size_filters_use_the_original_size():
    picture = decoded(Image.new("RGB", (50, 25)), 400, 200)
    assert Filters(min_side=200, max_aspect=2).reject(picture) is None
    assert Filters(min_side=201).reject(picture) == "min_side: 200 px, less than 201"
    assert Filters(max_aspect=1.99).reject(picture) == "max_aspect: 2.00, more than 1.99"


def test_blank():
    half = np.full((200, 200, 3), 100, np.uint8)
    half[:, 100:] = 110  # two levels in equal parts: the standard deviation is 5
    picture = decoded(Image.fromarray(half))
    assert Filters(blank=4.8).reject(picture) is None
    assert Filters(blank=5.1).reject(picture).startswith("blank: standard deviation")
    assert Filters(blank=0.1).reject(decoded(Image.new("RGB", (300, 300), "red")))


def test_laplacian_agrees_with_scipy():
    grey = np.random.default_rng(0).uniform(0, 255, (40, 30)).astype(np.float32)
    wanted = ndimage.laplace(grey.astype(np.float64))[1:-1, 1:-1].var()
    assert laplacian_variance(grey) == pytest.approx(wanted, rel=1e-5)
    assert laplacian_variance(np.zeros((2, 9))) == np.inf


def test_blur_orders_pictures_by_their_blur():
    sharp = texture(300, 200).filter(ImageFilter.GaussianBlur(1))
    values = [laplacian_variance(small_grey(sharp.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    threshold = (values[1] + values[2]) / 2
    kept = [Filters(blur=threshold).reject(decoded(sharp.filter(ImageFilter.GaussianBlur(r)))) for r in (0, 2, 4, 8)]
    assert [reason is None for reason in kept] == [True, True, False, False]


def test_long_strips_stay_cheap_and_tiny_pictures_pass():
    assert small_grey(Image.new("RGB", (100_000, 20))).shape == (20, 8 * SIDE)
    assert Filters(blur=1).reject(decoded(Image.new("RGB", (1, 1)))) is None


def test_a_picture_decoded_too_small_is_a_programming_error():
    filters = Filters(blur=1)
    assert filters.side == SIDE
    with pytest.raises(ValueError, match=f"side={SIDE}"):
        filters.reject(decoded(texture(100, 100), 800, 800))


@pytest.mark.skipif(not SHARED.exists(), reason="the real-image folder ../shared is not here")
def test_dct_scaling_does_not_change_the_answer_much():
    """On 24 photos, spread by DCT scaling stays far below the spread between photos."""
    blurs, deviations = [], []
    with zipfile.ZipFile(SHARED / "photos_original_size_dev.zip") as archive:
        for name in archive.namelist():
            if not name.lower().endswith((".jpg", ".jpeg")):
                continue
            data = archive.read(name)
            whole, scaled = (small_grey(decode(data, LIMITS, side).image) for side in (None, SIDE))
            blurs.append((laplacian_variance(whole), laplacian_variance(scaled)))
            deviations.append((float(whole.std()), float(scaled.std())))
    assert len(blurs) == 24
    ratios = np.log([b / a for a, b in blurs])
    print("blur, scaled / whole:", np.exp([ratios.min(), np.median(ratios), ratios.max()]).round(3))
    assert np.abs(ratios).max() < np.log(1.35)
    assert np.std(np.log([a for a, _ in blurs])) > 3 * np.abs(ratios).mean()
    assert max(abs(a - b) for a, b in deviations) < 0.5


def test_scaled_decoding_gives_the_same_decision_on_a_jpeg():
    file = io.BytesIO()
    texture(64, 64).resize((1024, 1024), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    whole, scaled = (decode(file.getvalue(), LIMITS, side) for side in (None, SIDE))
    assert scaled.image.size == (128, 128)
    values = [laplacian_variance(small_grey(one.image)) for one in (whole, scaled)]
    assert values[1] == pytest.approx(values[0], rel=0.1)
