"""Patches there and back, standardised patches, and errors of which only the masked ones count."""

from __future__ import annotations

import pytest
import torch
from slow_masked import numbers_of, patch_of, slow_standardised
from torch import Tensor

from granary.training.losses.reconstruction import (
    absolute_error,
    masked_mean,
    nearest_codes,
    patchify,
    squared_error,
    standardised,
    unpatchify,
)


def masks(*rows: list[int]) -> Tensor:
    return torch.tensor(rows).bool()


def test_patches_are_numbered_row_by_row_with_the_channels_of_a_pixel_together() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 6, 9)  # 2 rows and 3 columns of patches of 3
    patches = patchify(pixels, 3)
    assert patches.shape == (2, 6, 27)
    for number in range(6):
        row, column = divmod(number, 3)
        patch = pixels[1, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert torch.equal(patches[1, number], torch.stack(numbers_of(patch)))


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_unpatchify_is_the_inverse(patch: int) -> None:
    pixels = torch.randn(2, 3, 8, 8)
    assert torch.equal(unpatchify(patchify(pixels, patch), patch), pixels)


def test_patches_are_standardised_by_their_unbiased_variance() -> None:
    torch.manual_seed(1)
    pixels = 3 * torch.randn(1, 3, 4, 4).double() + 5
    ours = standardised(patchify(pixels, 2))
    for number in range(4):
        torch.testing.assert_close(
            ours[0, number], torch.stack(slow_standardised(numbers_of(patch_of(pixels[0], number, 2))))
        )
    torch.testing.assert_close(ours.var(dim=2), torch.ones(1, 4).double(), atol=1e-5, rtol=0)
    assert torch.equal(standardised(torch.full((1, 2, 12), 0.5)), torch.zeros(1, 2, 12))  # a plain patch


@pytest.mark.parametrize(("loss", "power"), [(squared_error, 2), (absolute_error, 1)])
def test_losses_equal_loops_over_masked_numbers(loss: object, power: int) -> None:
    torch.manual_seed(2)
    predicted, truth = torch.randn(2, 4, 12).double().requires_grad_(), torch.randn(2, 4, 12).double()
    masked = masks([1, 0, 1, 1], [0, 1, 0, 0])  # in unlike numbers: the mean is over patches, not over pictures
    ours = loss(predicted, truth, masked)  # type: ignore[operator]
    errors = [
        sum((predicted[b, n, i] - truth[b, n, i]).abs() ** power for i in range(12)) / 12
        for b in range(2)
        for n in range(4)
        if masked[b, n]
    ]
    expected = sum(errors) / 4
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, predicted)[0] for value in (ours, expected)))


def test_what_is_said_of_visible_patches_does_not_matter() -> None:
    torch.manual_seed(3)
    predicted, truth, masked = torch.randn(2, 4, 12), torch.randn(2, 4, 12), masks([1, 0, 1, 0], [0, 1, 0, 1])
    other = torch.where(masked[..., None], predicted, 100.0)
    for loss in (squared_error, absolute_error):
        assert torch.equal(loss(predicted, truth, masked), loss(other, truth, masked))
        assert loss(predicted + masked[..., None], truth, masked) != loss(predicted, truth, masked)


def test_the_mean_is_over_what_is_masked_and_exact_answers_cost_nothing() -> None:
    errors = torch.tensor([[4.0, 100.0], [100.0, 100.0], [2.0, 6.0]])
    assert masked_mean(errors, masks([1, 0], [0, 0], [1, 1])) == 4
    truth = standardised(torch.randn(2, 4, 12))
    assert squared_error(truth, truth, masks([1, 1, 1, 0], [1, 0, 0, 1])) == 0


def test_losses_are_in_float32_whatever_the_precision_of_the_step() -> None:
    torch.manual_seed(4)
    predicted, truth, masked = torch.randn(2, 4, 12), torch.randn(2, 4, 12), masks([1, 0, 1, 0], [0, 1, 0, 1])
    for loss in (squared_error, absolute_error):
        with torch.autocast("cpu", torch.bfloat16):
            low = loss(predicted.bfloat16(), truth, masked)
            assert torch.equal(loss(predicted, truth, masked), loss(predicted.float(), truth, masked))
        assert low.dtype == torch.float32
        assert torch.equal(low, loss(predicted.bfloat16().float(), truth, masked))


def test_the_nearest_code_is_that_of_a_search_over_all() -> None:
    torch.manual_seed(5)
    patches, codebook = torch.randn(2, 4, 12), torch.randn(7, 12) * torch.rand(7, 1) * 3
    expected = [
        [min(range(7), key=lambda k: float((patches[b, n] - codebook[k]).norm())) for n in range(4)] for b in range(2)
    ]
    assert nearest_codes(patches, codebook).tolist() == expected
    assert nearest_codes(codebook, codebook).tolist() == list(range(7))
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_codes(patches, codebook).tolist() == expected
