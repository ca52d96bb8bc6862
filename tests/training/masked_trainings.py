"""What a training of a masked image model must withstand: a cut, and more than one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_trainings import OPTIONS
from torch import nn

from granary.training.masked_images import MaskedImages
from granary.training.method import Method, Moment


def batch_of(count: int = 6) -> dict[str, Any]:
    """Return a batch of pictures of 16 px."""
    torch.manual_seed(2)
    pixels = torch.randint(0, 256, (count, 1, 16, 16, 3), dtype=torch.uint8)
    return {"image": pixels, "image_draws": torch.rand(count, 1, 16), "id": [f"picture {n}" for n in range(count)]}


def disturbed(model: Method) -> Any:
    """Return a method in float64 whose weights are far from their initial values: references are told apart."""
    with torch.no_grad():
        for name, parameter in model.double().named_parameters():
            if parameter.requires_grad and not name.endswith("positions"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def masks_hang_on_nothing_but_the_id_and_the_step(model: MaskedImages) -> None:
    """The mask of a picture is the same beside other pictures, in another place, process and length of the run."""
    batch, now = batch_of(), Moment(3, 10, 0)
    masks = model.masks(batch, now)
    assert (masks.sum(dim=1) == model.masked_patches).all()
    assert len({tuple(row.tolist()) for row in masks}) > 1
    mates = {name: rows[4:1:-1] if isinstance(rows, list) else rows[2:5].flip(0) for name, rows in batch.items()}
    assert torch.equal(model.masks(mates, Moment(3, 77, 0, rank=1, part=2)), masks[2:5].flip(0))
    assert not torch.equal(model.masks(batch, now._replace(step=4)), masks)
    assert not torch.equal(model.masks(batch, now._replace(seed=1)), masks)


def compare_gradients(fast: nn.Module, slow: nn.Module, atol: float = 1e-7) -> None:
    """Every trained weight has the gradient of the reference."""
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        if ours.requires_grad:
            assert theirs.grad is not None, name
            torch.testing.assert_close(
                ours.grad, theirs.grad, atol=atol, rtol=10 * atol, msg=lambda m, n=name: f"{n}: {m}"
            )


def goes_on(method: str, folder: Path) -> None:
    """Train six steps, and again the last two of them: the weights are the same to the bit."""
    check_same(*whole_and_cut(_tree(method), folder))


def two_processes_train_what_one_does(method: str, strategy: str, folder: Path) -> None:
    """Train on one process and on two: masks and losses are those of the whole batch, and so are the weights."""
    check_near(*one_and_two({**_tree(method), "optimiser": SGD}, folder, strategy))


def _tree(method: str) -> dict[str, Any]:
    return {"method": method, "model": VIT, "options": OPTIONS[method]}
