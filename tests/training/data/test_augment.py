"""Facts about photometric augmentation: each picture by its own numbers, each change against an independent formula."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from granary.training.data import augment
from granary.training.data.augment import Photometric, blurred, photometric, to_unit

NOTHING = Photometric(flip=0, jitter=0, grey=0, blur=0, solarize=0)


def pictures(count: int = 6, side: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator), torch.rand(count, 16, generator=generator)


def set_draws(draws: Tensor, **numbers: float) -> Tensor:
    draws = draws.clone()
    for name, value in numbers.items():
        draws[:, getattr(augment, name.upper())] = value
    return draws


def test_a_picture_does_not_depend_on_the_others_of_its_batch() -> None:
    pixels, draws = pictures(12)
    options = Photometric(solarize=0.3)
    together = photometric(pixels, draws, options)
    alone = torch.cat([photometric(pixels[i : i + 1], draws[i : i + 1], options) for i in range(12)])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=1e-6)
    order = torch.randperm(12)
    torch.testing.assert_close(photometric(pixels[order], draws[order], options), together[order], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(together, pixels)


def test_torchs_own_generator_is_not_touched() -> None:
    pixels, draws = pictures()
    before = torch.get_rng_state()
    photometric(pixels, draws, Photometric(solarize=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_done_can_be_seen_and_done_again_by_hand() -> None:
    pixels, draws = pictures(40)
    options = Photometric(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2, solarize=0.3)
    changes = augment.parameters(draws, options)
    again = torch.where(changes.flip[:, None, None, None], pixels.flip(3), pixels)
    again = augment.jittered(again, changes.factors, changes.order)
    luma = (again * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    again = torch.where(changes.grey[:, None, None, None], luma.expand_as(again), again)
    for place in changes.sigma.nonzero()[:, 0]:
        again[place] = blurred(again[place, None], changes.sigma[place, None], options.sigma[1])[0]
    inverted = torch.where(again >= options.threshold, 1 - again, again)
    again = torch.where(changes.solarize[:, None, None, None], inverted, again)
    torch.testing.assert_close(photometric(pixels, draws, options), again, atol=1e-5, rtol=0)
    assert 0 < (changes.sigma > 0).sum() < 40
    assert ((changes.sigma == 0) | ((changes.sigma >= 0.1) & (changes.sigma <= 2))).all()


def test_factors_are_uniform_in_their_ranges_and_nothing_where_there_is_no_jitter() -> None:
    draws = torch.rand(4000, 16, generator=torch.Generator().manual_seed(1))
    found = augment.factors(draws, Photometric(jitter=0.8, brightness=0.4, contrast=0.3, saturation=2.0, hue=0.1))
    plain = (found == torch.tensor(augment.IDENTITY)).all(dim=1)
    assert torch.equal(plain, draws[:, augment.JITTER] >= 0.8)
    expected = [(0.6, 1.4), (0.7, 1.3), (0.0, 3.0), (-0.2 * np.pi, 0.2 * np.pi)]
    for column, (low, high) in zip(found[~plain].T, expected, strict=True):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < column.max() <= high
    halves = augment.factors(draws.repeat(1, 2)[:, 16:], Photometric())
    assert torch.equal(halves, augment.factors(draws, Photometric()))  # a second set of numbers is used alike


def test_two_views_may_share_the_order_of_their_changes() -> None:
    pixels, draws = pictures(12)
    order = augment.orders(draws)
    assert order.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 12
    one = torch.tensor([[1.3, 0.7, 1.2, 0.4]]).expand(12, -1)
    by_hand = torch.cat([augment.jittered(pixels[i : i + 1], one[:1], order[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(augment.jittered(pixels, one, order), by_hand, atol=1e-6, rtol=1e-6)
    assert torch.equal(augment.jittered(pixels, torch.tensor([augment.IDENTITY]).expand(12, -1), order), pixels)


def test_nothing_changes_nothing_and_values_stay_in_range() -> None:
    pixels, draws = pictures(64)
    assert torch.equal(photometric(pixels, draws, NOTHING), pixels)
    strong = Photometric(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, solarize=0.5)
    changed = photometric(pixels, draws, strong)
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6


def test_chances_are_the_share_of_the_pictures() -> None:
    pixels, draws = pictures(4000, 4)
    for name in ("flip", "grey", "solarize"):
        changed = photometric(pixels, draws, Photometric(**{**NOTHING.__dict__, name: 0.3}))
        share = (changed != pixels).flatten(1).any(dim=1).float().mean()
        assert share == pytest.approx(0.3, abs=0.03)


def test_flip_grey_and_solarize_are_their_formulas() -> None:
    pixels, draws = pictures()
    one = lambda **changes: photometric(pixels, draws, Photometric(**{**NOTHING.__dict__, **changes}))  # noqa: E731
    assert torch.equal(one(flip=1), torch.flip(pixels, [3]))
    luma = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(one(grey=1), luma.expand(-1, 3, -1, -1), atol=1e-5, rtol=0)
    assert torch.equal(one(solarize=1), torch.where(pixels >= 128 / 255, 1 - pixels, pixels))


def pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


@pytest.mark.parametrize(
    ("name", "enhancer", "factor"),
    [
        ("brightness", ImageEnhance.Brightness, 0.7),
        ("contrast", ImageEnhance.Contrast, 1.3),
        ("saturation", ImageEnhance.Color, 0.6),
    ],
)
def test_colour_changes_are_those_of_pillow(name: str, enhancer: type, factor: float) -> None:
    pixels, draws = pictures(2, 32)
    draws = set_draws(draws, jitter=0, **{name: (factor - 1) / 0.8 + 0.5})  # 1 + (2 u - 1) 0.4
    weak = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.4}
    changed = photometric(pixels, draws, Photometric(**{**NOTHING.__dict__, **weak, "jitter": 1.0}))
    for ours, original in zip(changed, pixels, strict=True):
        expected = np.asarray(enhancer(pil(original)).enhance(factor)).astype(float) / 255
        assert np.abs(ours.permute(1, 2, 0).numpy() - expected).max() < 3 / 255


def test_hue_turns_the_colour_circle() -> None:
    pixels, draws = pictures(1, 5)
    draws = set_draws(draws, jitter=0, hue=0.8)  # (2 * 0.8 - 1) * 0.5 turns = 0.3
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.5, "jitter": 1.0}
    changed = photometric(pixels, draws, Photometric(**{**NOTHING.__dict__, **strengths}))
    for row, column in itertools.product(range(5), repeat=2):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[0, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb((hue + 0.3) % 1, saturation, value)
        assert changed[0, :, row, column].tolist() == pytest.approx(list(expected), abs=1e-4)


def test_the_order_of_colour_changes_is_each_pictures_own() -> None:
    pixels, draws = pictures(1)
    draws = set_draws(draws, jitter=0).expand(24, -1).clone()
    draws[:, augment.ORDER] = (torch.arange(24) + 0.5) / 24
    changed = photometric(pixels.expand(24, -1, -1, -1), draws, Photometric(**{**NOTHING.__dict__, "jitter": 1.0}))
    distinct = {tuple(row.flatten().mul(1e4).round().int().tolist()) for row in changed}
    assert len(distinct) > 6
    assert torch.isfinite(photometric(pixels, set_draws(draws[:1], order=1.0), Photometric())).all()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    impulse = torch.zeros(2, 3, 25, 25)
    impulse[:, :, 12, 12] = 1
    found = blurred(impulse, torch.tensor([sigma, 0.1]), 2.0)
    axis = np.exp(-((np.arange(25) - 12) ** 2) / (2 * sigma**2)) * (np.abs(np.arange(25) - 12) <= 4)
    expected = np.outer(axis / axis.sum(), axis / axis.sum())
    assert np.abs(found[0, 1].numpy() - expected).max() < 1e-5
    assert found[1, 0, 12, 12] > 0.999  # the other picture has its own sigma


def test_blur_looks_like_pillows() -> None:
    pixels, _ = pictures(1, 64)
    smooth = torch.nn.functional.avg_pool2d(pixels, 5, 1, 2)
    ours = blurred(smooth, torch.tensor([1.5]), 2.0)[0].permute(1, 2, 0).numpy()
    theirs = np.asarray(pil(smooth[0]).filter(ImageFilter.GaussianBlur(1.5))).astype(float) / 255
    assert np.abs(ours - theirs)[8:-8, 8:-8].max() < 0.02


def test_pixels_become_planes_in_the_unit_range() -> None:
    pixels = torch.randint(0, 256, (2, 5, 5, 3), dtype=torch.uint8)
    planes = to_unit(pixels)
    assert planes.is_contiguous()
    assert torch.equal((planes * 255).round().to(torch.uint8).permute(0, 2, 3, 1), pixels)
