"""SimCLR against a slow reference, its views and colours, and a training that goes on."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import RESNET, VIT, check_near, one_and_two, whole_and_cut
from slow_pairs import slow_nt_xent

from granary.curation.errors import UserError
from granary.training import two_views
from granary.training.data.augment import Photometric
from granary.training.method import Moment
from granary.training.methods.simclr import SimCLR, SimCLROptions
from granary.training.models.vit_config import ViTConfig

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **SimCLR.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16], "projector_width": 8, "temperature": 0.2}
PLAIN = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}
NOW = Moment(0, 10, 0)


class Precise(SimCLR):
    """In float64, so that references can be compared to many digits."""

    def pixels(self, batch: dict[str, Any], name: str = "image") -> torch.Tensor:
        return super().pixels(batch, name).double()


def method(**changes: Any) -> SimCLR:
    torch.manual_seed(0)
    return Precise(CONFIG, SimCLROptions(**{**OPTIONS, **changes})).double()


def batch_of(count: int = 4, local: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    batch = {"image": torch.randint(0, 256, (count, 2, 16, 16, 3), dtype=torch.uint8)}
    if local:
        batch["local"] = torch.randint(0, 256, (count, local, 8, 8, 3), dtype=torch.uint8)
    return batch | {f"{name}_draws": torch.rand(*views.shape[:2], 16) for name, views in batch.items()}


def projections(model: SimCLR, views: torch.Tensor) -> list[torch.Tensor]:
    """All views of a kind (B, V, S, S, 3), first views first, through backbone and projector as one batch."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (CONFIG.mean, CONFIG.std))
    pixels = (torch.cat(views.unbind(1)).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return list(model.projector(model.encoder(pixels.double()).cls).chunk(views.shape[1]))


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    fast, batch = method(**PLAIN), batch_of()
    slow = copy.deepcopy(fast)
    loss = fast(batch, NOW)["loss"]
    reference = slow_nt_xent(*projections(slow, batch["image"]), 0.2)
    torch.testing.assert_close(loss, reference, atol=1e-9, rtol=1e-9)
    loss.backward()
    reference.backward()
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_small_crops_are_pairs_with_both_large_ones() -> None:
    model, batch = method(**PLAIN, local_crops=3, local_size=8), batch_of(local=3)
    first, second = projections(copy.deepcopy(model), batch["image"])
    local = projections(copy.deepcopy(model), batch["local"])
    pairs = [(first, second), *((large, small) for small in local for large in (first, second))]
    expected = torch.stack([slow_nt_xent(*pair, 0.2) for pair in pairs]).mean()
    torch.testing.assert_close(model(batch, NOW)["loss"], expected, atol=1e-9, rtol=1e-9)
    assert {name: (crop.count, crop.side) for name, crop in model.views().items()} == {
        "image": (2, 16),
        "local": (3, 8),
    }


def test_crops_may_be_smaller_than_what_the_model_is_for() -> None:
    assert method(crop_size=8).views()["image"].side == 8
    for wrong in ({"crop_size": 10}, {"local_crops": 1, "local_size": 6}):
        with pytest.raises(UserError, match=r"must be a multiple of patch_size, 4"):
            method(**wrong)


def test_batchnorm_sees_both_views_together() -> None:
    model, batch = method(**PLAIN), batch_of()
    joint = projections(model, batch["image"])
    alone = [projections(model, batch["image"][:, view : view + 1])[0] for view in range(2)]
    assert not any(torch.allclose(one, two) for one, two in zip(joint, alone, strict=True))


def test_pictures_that_are_all_one_have_the_loss_of_a_guess() -> None:
    batch = batch_of(8)
    batch["image"].fill_(90)
    assert float(method(**PLAIN, projector_norm=False)(batch, NOW)["loss"].detach()) == pytest.approx(
        math.log(15), abs=1e-6
    )


@pytest.mark.parametrize("s", [0.5, 1.0])
def test_the_strength_scales_all_four_colour_changes(s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[Photometric] = []
    monkeypatch.setattr(two_views, "photometric", lambda pixels, draws, options: changes.append(options) or pixels)
    method(strength=s, jitter=0.7, grey=0.3, blur=0.1)(batch_of(), NOW)
    (used,) = changes
    assert (used.brightness, used.contrast, used.saturation, used.hue) == (0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
    assert (used.flip, used.jitter, used.grey, used.blur) == (0.5, 0.7, 0.3, 0.1)


def test_each_view_is_changed_by_its_own_numbers() -> None:
    model, batch = method(blur=0.0, grey=0.0), batch_of()
    batch["image"] = batch["image"][:, :1].expand(-1, 2, -1, -1, -1).clone()
    pixels = model.pixels(batch)
    assert not torch.isclose(pixels[0], pixels[1]).flatten(1).all(dim=1).any()
    again = model.pixels({name: rows[2:3] for name, rows in batch.items()})
    torch.testing.assert_close(again[:, 0], pixels[:, 2])


def test_the_second_view_may_be_blurred_and_solarized_by_chances_of_its_own() -> None:
    model = method(blur=1.0, second_blur=0.1, second_solarize=0.2, saturation=0.4, strength=0.5)
    first, second, third = (model.changes(view) for view in range(3))
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert first == third
    assert (first.brightness, first.saturation, first.hue) == (0.4, 0.2, 0.1)


def test_batchnorm_may_see_each_view_alone() -> None:
    model, batch = method(**PLAIN, joint_norm=False), batch_of()
    expected = [projections(model, batch["image"][:, view : view + 1])[0] for view in range(2)]
    torch.testing.assert_close([*model.embedded(model.pixels(batch))[1]], expected)


def test_what_is_evaluated_is_the_backbone_and_not_the_projector() -> None:
    model = method()
    output = model(batch_of(), NOW)
    assert model.evaluated_model() is model.encoder
    assert output["features"].shape == (4, 24)
    assert not output["features"].requires_grad
    assert method(projector_hidden=[]).projector[0].weight.shape == (8, 24)  # type: ignore[union-attr]


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_training_with_running_statistics_goes_on_as_if_it_had_not_stopped(
    model: dict[str, Any], tmp_path: Path
) -> None:
    options = {**OPTIONS, "local_crops": 1, "local_size": 8}
    whole, again = whole_and_cut({"method": "simclr", "model": model, "options": options}, tmp_path)
    assert any("running_mean" in name for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "model"), [("ddp", RESNET), ("fsdp", VIT), ("fsdp", RESNET)])
def test_two_processes_train_what_one_does(strategy: str, model: dict[str, Any], tmp_path: Path) -> None:
    """Every row is compared with those of both processes, and BatchNorm sees both.

    Momentum, the sum of the gradients, is compared too. Another convolution on one process moves it by 0.8 %: where
    pictures are flat, a sum of rounding errors decides on which side of 0 a ReLU is.
    """
    tree = {"method": "simclr", "model": model, "options": OPTIONS, "optimiser": {"kind": "sgd", "lr": 1e-4}}
    check_near(*one_and_two(tree, tmp_path, strategy), share=2e-2)
