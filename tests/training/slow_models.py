"""A method in float64 against a slow reference that has the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from granary.training.data.collate import Part
from granary.training.two_views import TwoViews

M = TypeVar("M", bound=TwoViews)


def precise(model: M, moved: Sequence[nn.Module] = ()) -> M:
    """Return a method with weights and pictures in float64.

    Args:
        model: is changed.
        moved: parts whose weights are moved away from where they begin, as those of a target after some steps.
    """
    pixels = model.pixels

    def of_double(batch: Part, name: str = "image") -> Tensor:
        return pixels(batch, name).double()

    model.pixels = of_double  # type: ignore[method-assign]
    model.double()
    with torch.no_grad():
        for part in moved:
            for parameter in part.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def check_gradients(fast: nn.Module, slow: nn.Module, loss: Tensor, reference: Tensor) -> None:
    """Fail where loss or gradients are not those of the reference, or where a target has any."""
    torch.testing.assert_close(loss, reference, atol=1e-9, rtol=1e-9)
    loss.backward()
    reference.backward()
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        trained = not name.startswith("target_") and theirs.requires_grad
        assert (ours.grad is not None) == trained, name
        if trained:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
