"""Filters: measures against independent libraries, thresholds, reasons, and independence of DCT scaling."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image, ImageFilter
from places import SHARED
from scipy import ndimage, stats

from granary.curation.images.decode import decode
from granary.curation.images.filters import MEASURES, SIDE, Filters, Quality, measure, small_copy
from granary.curation.images.filters.blur import laplacian_variance
from granary.curation.images.limits import DecodeLimits

LIMITS = DecodeLimits()


def looks(image: Image.Image, width: int = 0, height: int = 0) -> Quality:
    return measure([small_copy(image)], [(width or image.width, height or image.height)])[0]


def texture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_all_off_by_default_and_thresholds_are_checked():
    assert Filters().reject(looks(Image.new("RGB", (1, 5000)))) is None
    wrong = ({"min_side": 0}, {"max_aspect": 0.5}, {"blank": 200}, {"blur": -1}, {"dark": 256}, {"bright": 255})
    for fields in (*wrong, {"entropy": 8}, {"sharp": 1}):
        with pytest.raises(ValueError, match="validation error"):
            Filters(**fields)
    assert all(field.description for field in Filters.model_fields.values())


def test_size_filters_use_the_original_size():
    quality = looks(Image.new("RGB", (50, 25)), 400, 200)
    assert (quality.size, quality.aspect) == (200, 2)
    assert Filters(min_side=200, max_aspect=2).reject(quality) is None
    assert Filters(min_side=201).reject(quality) == "min_side: 200 px, less than 201"
    assert Filters(max_aspect=1.99).reject(quality) == "max_aspect: 2.00, more than 1.99"


def test_measures_agree_with_numpy_and_scipy():
    """Pictures that are measured as they are, several at once and of several sizes."""
    pictures = [texture(w, h, seed).convert("L") for seed, (w, h) in enumerate([(64, 64), (40, 30), (64, 64), (9, 64)])]
    for picture, quality in zip(pictures, measure(pictures, [image.size for image in pictures]), strict=True):
        grey = np.asarray(picture)
        laplacian = ndimage.laplace(grey.astype(np.float64))[1:-1, 1:-1]
        assert quality.blur == pytest.approx(laplacian.var(), rel=1e-12)
        assert quality.deviation == pytest.approx(grey.std(), rel=1e-12)
        assert quality.entropy == pytest.approx(stats.entropy(np.bincount(grey.ravel()), base=2), rel=1e-12)
        assert quality.dark == np.quantile(grey, 0.99, method="inverted_cdf")
        assert quality.bright == np.quantile(grey, 0.05, method="inverted_cdf")
        assert (quality.width, quality.height) == picture.size
    assert laplacian_variance(np.zeros((3, 2, 9), np.uint8)).tolist() == [np.inf] * 3


def test_each_filter_drops_on_its_side_of_the_limit():
    half = np.full((64, 64, 3), 100, np.uint8)
    half[:, 32:] = 110  # two levels in equal parts: standard deviation 5, entropy 1 bit
    quality = looks(Image.fromarray(half))
    for kept, dropped, reason in (
        (dict(blank=4.8), dict(blank=5.1), "blank: standard deviation 5.00, less than 5.1"),
        (dict(entropy=0.9), dict(entropy=1.1), "entropy: 1.00 bits, less than 1.1"),
        (dict(dark=110), dict(dark=111), "dark: 99 of 100 pixels are at most 110, less than 111"),
        (dict(bright=100), dict(bright=99), "bright: 19 of 20 pixels are at least 100, more than 99"),
    ):
        assert Filters(**kept).reject(quality) is None
        assert Filters(**dropped).reject(quality) == reason
    assert Filters(blank=0.1).reject(looks(Image.new("RGB", (300, 300), "red")))
    assert looks(Image.new("RGB", (80, 80), "red")).entropy == 0


def test_blur_orders_pictures_by_their_blur():
    sharp = texture(300, 200).filter(ImageFilter.GaussianBlur(1))
    found = [looks(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 2, 4, 8)]
    values = [quality.blur for quality in found]
    assert values == sorted(values, reverse=True)
    filters = Filters(blur=(values[1] + values[2]) / 2)
    assert [filters.reject(quality) is None for quality in found] == [True, True, False, False]


def test_small_pictures_are_never_enlarged():
    assert small_copy(Image.new("RGB", (100_000, 20))).size == (SIDE, 20)
    assert small_copy(Image.new("RGB", (100, 70))).size == (SIDE, SIDE)
    assert Filters(blur=1).reject(looks(Image.new("RGB", (1, 1)))) is None


@pytest.mark.skipif(not SHARED.exists(), reason="the real-image folder ../shared is not here")
def test_dct_scaling_does_not_change_the_answer_much():
    """On 24 photos, spread by DCT scaling stays far below the spread between photos."""
    pairs = []
    with zipfile.ZipFile(SHARED / "photos_original_size_dev.zip") as archive:
        for name in archive.namelist():
            if name.lower().endswith((".jpg", ".jpeg")):
                data = archive.read(name)
                pairs.append([looks(decode(data, LIMITS, side).image) for side in (None, SIDE)])
    assert len(pairs) == 24
    ratios = np.log([scaled.blur / whole.blur for whole, scaled in pairs])
    print("blur, scaled / whole:", np.exp([ratios.min(), np.median(ratios), ratios.max()]).round(3))
    assert np.abs(ratios).max() < np.log(1.35)
    assert np.std(np.log([whole.blur for whole, _ in pairs])) > 3 * np.abs(ratios).mean()
    for name, most in (("deviation", 1), ("dark", 6), ("bright", 3), ("entropy", 0.06)):
        assert max(abs(getattr(whole, name) - getattr(scaled, name)) for whole, scaled in pairs) < most, name


def test_the_recommended_limits_are_limits_that_filters_take():
    recommended = {measure.option: measure.recommended for measure in MEASURES}
    assert Filters.model_validate(recommended).model_dump(exclude_none=True) == recommended
