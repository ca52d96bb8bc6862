"""RCDM: noise and drawings as diffusers makes them, the loss, what learns, what comes back, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from same_training import SETTINGS, check_same, whole_and_cut
from tiny_shards import shapes, write_shards
from tiny_trainings import tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.methods.rcdm import RCDM, RCDMOptions
from granary.training.models.conditioned_unet import NOISE, ConditionedUNet
from granary.training.models.registry import load_model
from granary.training.models.training import load_training
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

SMALL: dict[str, Any] = {"size": 16, "channels": 8, "multipliers": [1, 2], "attention": [8], "blocks": 1}
SCHEDULE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": NOISE[0], "beta_end": NOISE[1]}
NOW = Moment(0, 10, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(24)))


@pytest.fixture(scope="module")
def told_by(run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A training with a projector."""
    return tiny_training("simclr", run, tmp_path_factory.mktemp("simclr"))


def network(**changes: Any) -> ConditionedUNet:
    torch.manual_seed(0)
    return ConditionedUNet(**{**SMALL, "condition": 5, **changes}).eval()


def rcdm(told_by: str, **options: Any) -> RCDM:
    torch.manual_seed(0)
    given = RCDMOptions.model_validate({"teacher": told_by, **SMALL, **options})
    return RCDM(load_model(told_by).config, given)


def batch_of(count: int, model: RCDM) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = {"image": model.options.size, "seen": model.seen}
    return {
        name: torch.randint(256, (count, 1, side, side, 3), generator=generator, dtype=torch.uint8)
        for name, side in sides.items()
    }


def test_pictures_are_noised_and_drawn_as_by_diffusers() -> None:
    model, generator = network(), torch.Generator().manual_seed(0)
    pictures, noise = (torch.randn(3, 3, 16, 16, generator=generator) for _ in range(2))
    steps = torch.tensor([0, 400, 999])
    expected = DDPMScheduler(**SCHEDULE).add_noise(pictures, noise, steps)
    torch.testing.assert_close(model.noised(pictures, noise, steps), expected, rtol=1e-5, atol=1e-5)
    scheduler = DDIMScheduler(**SCHEDULE, timestep_spacing="trailing", clip_sample=True)
    scheduler.set_timesteps(10)
    vectors, x = torch.randn(3, 5, generator=generator), noise
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(model(x, step.expand(3), vectors), step, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(model.drawn(vectors, noise, 10), (x / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_the_network_hears_its_own_vector_and_step_alone() -> None:
    model = network()
    x, vectors = torch.randn(2, 3, 16, 16), torch.randn(2, 5)
    with torch.no_grad():
        both = model(x, torch.tensor([3, 700]), vectors)
        alone = model(x[1:], torch.tensor([700]), vectors[1:])
        other = model(x[1:], torch.tensor([700]), vectors[:1])
        later = model(x[1:], torch.tensor([800]), vectors[1:])
    torch.testing.assert_close(both[1:], alone)
    assert (other - alone).abs().max() > 1e-4
    assert (later - alone).abs().max() > 1e-4


def test_the_loss_is_the_noise_that_is_not_found(told_by: str) -> None:
    model = rcdm(told_by)
    batch = batch_of(4, model)
    torch.manual_seed(7)
    loss = model(batch, NOW)["loss"]
    torch.manual_seed(7)
    steps, noise = torch.randint(1000, (4,)), torch.randn(4, 3, 16, 16)
    pictures = batch["image"][:, 0].permute(0, 3, 1, 2).float() / 127.5 - 1
    total = 0.0
    for n in range(4):
        noisy = DDPMScheduler(**SCHEDULE).add_noise(pictures[n : n + 1], noise[n : n + 1], steps[n : n + 1])
        found = model.network(noisy, steps[n : n + 1], model.vectors(batch["seen"][n : n + 1, 0]))
        total += float((found - noise[n]).detach().square().mean()) / 4
    assert float(loss.detach()) == pytest.approx(total, rel=1e-4)


def test_what_is_told_is_backbone_and_projector_of_the_training(told_by: str) -> None:
    model, frozen = rcdm(told_by), load_training(told_by)
    pictures = batch_of(3, model)["seen"][:, 0]
    x = model.shown(pictures)
    with torch.no_grad():
        behind = frozen.evaluated_model()(x).cls
        expected = torch.cat([behind, frozen.projector(behind)], dim=1)  # type: ignore[operator]
    torch.testing.assert_close(model.vectors(pictures), expected)
    assert rcdm(told_by, projector=False).vectors(pictures).shape == behind.shape


def test_the_diffusion_model_alone_learns_and_its_average_follows(told_by: str) -> None:
    model = rcdm(told_by, momentum=0.5).train()
    assert not model.teacher.training
    learning = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"network"}
    before = model.drawing.told.weight.clone()
    with torch.no_grad():
        model.network.told.weight += 1
    model.after_step(NOW)
    torch.testing.assert_close(model.drawing.told.weight, before + 0.5)


def test_it_learns_to_find_noise() -> None:
    model, told = network(size=8, channels=16, multipliers=[1], attention=[]).train(), torch.eye(5)[:2].repeat(8, 1)
    pictures = torch.tensor([[0.8, -0.8, -0.8], [-0.8, 0.8, 0.8]])[:, :, None, None].expand(2, 3, 8, 8)
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(40):
        steps, noise = torch.randint(1000, (16,)), torch.randn(16, 3, 8, 8)
        found = model(model.noised(pictures.repeat(8, 1, 1, 1), noise, steps), steps, told)
        loss = (found - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])


def test_cut_in_two_it_ends_as_if_never_stopped_and_comes_back(told_by: str, run: str, tmp_path: Path) -> None:
    options = {"teacher": told_by, **SMALL, "momentum": 0.5}
    check_same(*whole_and_cut({"method": "rcdm", "options": options}, tmp_path / "cut"))
    recipe = TrainRecipe.model_validate(
        {**SETTINGS, "method": "rcdm", "options": options, "data": run, "out": str(tmp_path / "out"), "steps": 2}
        | {"batch": 8}
    )
    train(recipe)
    model = load_training(recipe.out)
    assert isinstance(model, RCDM)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(load_model(recipe.out)(x).cls, load_model(told_by)(x).cls)
    assert set(dict(model.teacher.method.named_children())) == {"encoder", "projector"}


def test_mistakes_are_sentences(run: str, told_by: str, tmp_path: Path) -> None:
    without = tiny_training("mae", run, tmp_path / "mae")
    with pytest.raises(UserError, match=r"options\.projector: .* has none; give --options\.projector false"):
        rcdm(without)
    assert rcdm(without, projector=False).config.width == 16
    with pytest.raises(ValueError, match="size is 18; it must be a multiple of 2 to the number of levels less one"):
        rcdm(told_by, size=18, multipliers=[1, 1, 1])
