"""SimCLR against a slow reference, its views and colours, and a training that goes on."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from slow_pairs import slow_nt_xent
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.training import two_views
from granary.training.data.augment import Photometric
from granary.training.method import Moment
from granary.training.methods.simclr import SimCLR, SimCLROptions
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

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


VIT = {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4}
RESNET = {"kind": "resnet", "widths": [8, 16], "depths": [1, 1], "stem": "small", "img_size": 16}


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_training_with_running_statistics_goes_on_as_if_it_had_not_stopped(
    model: dict[str, Any], tmp_path: Path
) -> None:
    run = write_shards(tmp_path / "run", shapes(40, 16), group=8)
    tree = {
        "method": "simclr",
        "model": model,
        "options": {**OPTIONS, "local_crops": 1, "local_size": 8},
        "data": str(run),
        "out": str(tmp_path / "out"),
        "steps": 6,
        "batch": 8,
        "workers": 0,
        "device": {"accelerator": "cpu", "threads": 1},
        "checkpoints": {"every": 2},
    }
    recipe, last = TrainRecipe.model_validate(tree), tmp_path / "out" / "checkpoints" / "step-000000006"
    train(recipe)
    whole = load_file(last / "training.safetensors")
    (last / "state.json").unlink()
    train(recipe)
    again = load_file(last / "training.safetensors")
    assert any("running_mean" in name for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "model"), [("ddp", RESNET), ("fsdp", VIT), ("fsdp", RESNET)])
def test_two_processes_train_what_one_does(strategy: str, model: dict[str, Any], tmp_path: Path) -> None:
    """Every row is compared with those of both processes, and BatchNorm sees both."""
    run = write_shards(tmp_path / "run", shapes(40, 16), group=8)
    tree = {
        "method": "simclr",
        "model": model,
        "options": OPTIONS,
        "data": str(run),
        "steps": 4,
        "batch": 8,
        "streams": 4,
        "workers": 0,
        "logs": {"every": 1, "tensorboard": False},
        "optimiser": {"lr": 1e-3, "eps": 1e-4},
    }
    device = {"accelerator": "cpu", "threads": 1}
    train(TrainRecipe.model_validate({**tree, "out": str(tmp_path / "one"), "device": device}))
    device |= {"devices": 2, "strategy": strategy}
    recipe = TrainRecipe.model_validate({**tree, "out": str(tmp_path / "two"), "device": device})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(recipe=str(tmp_path / "recipe.json")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], check=True, timeout=300, env=environment)
    one, two = (load_file(tmp_path / name / LAST / "training.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


LAST = "checkpoints/step-000000004"
SCRIPT = """
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
if __name__ == "__main__":
    train(TrainRecipe.model_validate_json(open({recipe!r}).read()))
"""
