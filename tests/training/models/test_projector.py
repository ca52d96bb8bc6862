"""Facts about projectors: sizes, what is in them, and what a linear one lets through to the backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from granary.training.losses.pairs import nt_xent
from granary.training.models.projector import build_projector


@pytest.mark.parametrize(
    ("hidden", "norm", "count"),
    [
        ((), True, 24 * 8),
        ((32,), True, 24 * 32 + 2 * 32 + 32 * 8),
        ((32,), False, 24 * 32 + 32 + 32 * 8),
        ((32, 16), True, 24 * 32 + 2 * 32 + 32 * 16 + 2 * 16 + 16 * 8),
    ],
)
def test_a_projector_has_the_weights_of_its_formula(hidden: tuple[int, ...], norm: bool, count: int) -> None:
    projector = build_projector(24, hidden, 8, norm)
    assert sum(p.numel() for p in projector.parameters()) == count
    assert projector(torch.randn(5, 24)).shape == (5, 8)


def test_a_hidden_layer_is_normalised_over_the_batch_and_not_negative() -> None:
    torch.manual_seed(0)
    projector, x = build_projector(24, (16,), 8), 100 + 7 * torch.randn(64, 24)
    hidden = x @ projector[0].weight.T  # type: ignore[operator, union-attr]
    standard = (hidden - hidden.mean(dim=0)) / (hidden.var(dim=0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(projector(x), standard.relu() @ projector[3].weight.T, atol=1e-4, rtol=1e-4)  # type: ignore[operator, union-attr]


def gradient_at_features(projector: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """The gradient of SimCLR's loss at the backbone's output H, (n, D)."""
    features = features.clone().requires_grad_()
    first, second = projector(features).chunk(2)
    return torch.autograd.grad(nt_xent(first, second, 0.2), features)[0]


def test_a_linear_projector_lets_k_directions_of_the_gradient_through() -> None:
    """arXiv 2304.05369: dL/dH = (dL/dZ) W lies in the row space of W; its rank is at most min(n, D, K)."""
    torch.manual_seed(1)
    projector, features = build_projector(64, (), 8).double(), torch.randn(256, 64, dtype=torch.float64)
    gradient = gradient_at_features(projector, features)
    assert int(torch.linalg.matrix_rank(gradient, rtol=1e-9)) == 8
    rows = torch.linalg.qr(projector[0].weight.detach().T).Q  # type: ignore[union-attr]  # (D, K)
    outside = gradient - gradient @ rows @ rows.T
    assert float(outside.norm() / gradient.norm()) < 1e-5
    wide = gradient_at_features(build_projector(64, (), 128).double(), features)
    assert int(torch.linalg.matrix_rank(wide, rtol=1e-9)) == 64


def test_frozen_orthonormal_rows_leave_the_other_directions_of_a_linear_backbone_as_they_were() -> None:
    torch.manual_seed(2)
    projector = build_projector(32, (), 4).double()
    weight = projector[0].weight  # (K, D)
    with torch.no_grad():
        weight.copy_(torch.linalg.qr(torch.randn(32, 4, dtype=torch.float64)).Q.T)
    backbone, pictures = nn.Linear(12, 32, bias=False).double(), torch.randn(2, 20, 12, dtype=torch.float64)
    before = backbone.weight.detach().clone()
    optimiser = torch.optim.SGD(backbone.parameters(), lr=1.0, momentum=0.9)
    for _ in range(20):
        optimiser.zero_grad()
        nt_xent(*(projector(backbone(view)) for view in pictures), 0.2).backward()
        optimiser.step()
    moved = backbone.weight.detach() - before
    along = weight.detach().T @ weight.detach()  # (D, D), onto the row space of W
    assert float((moved - along @ moved).abs().max()) < 1e-12
    assert float(moved.abs().max()) > 1e-2
