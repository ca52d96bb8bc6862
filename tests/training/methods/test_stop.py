"""StoP against a slow reference, against I-JEPA, and every trap of the method as a fact."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from slow_ijepa import slow_loss
from tiny_shards import shapes, write_shards
from torch import Tensor

from granary.training.masking.multi_block import draw_masks
from granary.training.method import Moment
from granary.training.methods.ijepa import IJEPA, IJEPAOptions, prediction_loss
from granary.training.methods.stop import StochasticPredictor, StoP, StoPOptions
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=32, patch_size=4, width=24, depth=2, heads=2, **StoP.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"predictor_width": 16, "predictor_depth": 2, "predictor_heads": 2, "min_keep": 4}
PLAIN = {"flip": 0.0, "grey": 0.0, "blur": 0.0}
NOISE = 5  # seed of torch's generator


def method(**changes: Any) -> StoP:
    """A method whose weights are far from their initial values, the target another model than the context."""
    torch.manual_seed(0)
    return moved(StoP(CONFIG, StoPOptions(**{**OPTIONS, **changes})))


def moved(built: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "positions" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    drawn = draw_masks(method().blocks, batch, np.random.default_rng(1), np.random.default_rng(2))
    return torch.randn(batch, 3, 32, 32), torch.from_numpy(drawn.context), torch.from_numpy(drawn.targets)


def loss_of(stop: IJEPA, seed: int = NOISE) -> Tensor:
    """The loss of the same batch, masks and noise."""
    batch = inputs()
    torch.manual_seed(seed)
    predicted, truth, _ = stop.compare(*batch)
    return prediction_loss(predicted, truth, "smooth_l1")


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of all trained weights, by name."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("shared_bias", [False, True])
def test_loss_and_gradients_equal_the_slow_reference(shared_bias: bool) -> None:
    """Token by token: A n + m~ + psi with the mask token m~, or A n + b + psi with the context's bias."""
    fast, (pixels, context, targets) = method(shared_bias=shared_bias), inputs(2)
    slow = copy.deepcopy(fast)
    torch.manual_seed(NOISE)
    predicted, truth, _ = fast.compare(pixels, context, targets)
    torch.manual_seed(NOISE)
    noise = 0.25 * torch.randn(*targets.shape, 24)
    embed, token = slow.predictor.embed, slow.predictor.mask_token[0, 0]

    def tokens(block: int, picture: int, count: int) -> Tensor:
        added = embed.bias if shared_bias else token
        return torch.stack([(embed.weight * noise[block, picture, k]).sum(dim=1) + added for k in range(count)])

    loss = prediction_loss(predicted, truth, "smooth_l1")
    reference = slow_loss(slow, pixels, context, targets, "smooth_l1", tokens)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(fast, loss), gradients(slow, reference)
    assert ("predictor.mask_token" in ours) is not shared_bias
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# -- the reduction to I-JEPA ------------------------------------------------------------------------------------------


def test_without_noise_it_is_ijepa_in_inputs_loss_and_all_gradients() -> None:
    stop = method(noise_std=0.0)
    torch.manual_seed(0)
    ijepa = moved(IJEPA(CONFIG, IJEPAOptions(**OPTIONS)))
    for name, weight in ijepa.state_dict().items():
        assert torch.equal(weight, stop.state_dict()[name]), name  # initial weights are I-JEPA's
    pixels, context, targets = inputs()
    tokens = ijepa.context(pixels, keep=context).patches
    seen = [model.predictor.tokens(tokens, context, targets) for model in (stop, ijepa)]
    torch.testing.assert_close(seen[0], seen[1], atol=1e-6, rtol=0)
    losses = loss_of(stop), loss_of(ijepa)
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)
    ours, theirs = gradients(stop, losses[0]), gradients(ijepa, losses[1])
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


def test_the_mask_token_is_part_of_the_reduction() -> None:
    """Trap: without m~ the predictor's inputs are not those of I-JEPA."""
    predictor = method(noise_std=0.0).predictor
    positions = torch.randn(2, 3, 5, 16)
    assert float(predictor.mask_token.detach().abs().max()) > 0.01
    torch.testing.assert_close(predictor.queries(positions), positions + predictor.mask_token)


def test_a_batch_without_noise_and_changes_has_the_loss_of_ijepa() -> None:
    stop = method(noise_std=0.0, **PLAIN)
    torch.manual_seed(0)
    ijepa = moved(IJEPA(CONFIG, IJEPAOptions(**OPTIONS)))
    batch = {"image": torch.randint(0, 256, (4, 1, 32, 32, 3), dtype=torch.uint8), "image_draws": torch.rand(4, 1, 16)}
    moment = Moment(3, 10, 7)
    torch.testing.assert_close(stop(batch, moment)["loss"], ijepa(batch, moment)["loss"], atol=1e-6, rtol=0)
    changed = method(noise_std=0.0)(batch, moment)["loss"]
    assert not torch.allclose(changed, stop(batch, moment)["loss"], atol=1e-5)  # pictures are mirrored, grey, blurred


def test_an_identity_for_a_leaves_position_and_token() -> None:
    wide = StoP(CONFIG, StoPOptions(**{**OPTIONS, "predictor_width": 24, "noise_std": 0.0})).predictor
    with torch.no_grad():
        wide.embed.weight.copy_(torch.eye(24))
    positions = torch.randn(4, 2, 6, 24)
    assert torch.equal(wide.queries(positions), positions + wide.mask_token)


# -- the distribution of the noise ------------------------------------------------------------------------------------


def offsets(predictor: Any, tokens: int) -> Tensor:
    """What is added to psi + m~ for so many mask tokens of one block: (tokens, P)."""
    torch.manual_seed(NOISE)
    positions = torch.randn(1, 1, tokens, predictor.embed.out_features)
    return (predictor.queries(positions) - positions - predictor.mask_token).detach()[0, 0]


def test_the_covariance_is_std_squared_times_a_a_transposed() -> None:
    """Trap: the authors' entry named var is a standard deviation, so that 0.25 means 0.0625 A A^T."""
    predictor = method().predictor
    drawn = offsets(predictor, 200_000).double()
    gram = (predictor.embed.weight @ predictor.embed.weight.T).detach().double()

    def error(expected: Tensor) -> float:
        return float((drawn.T @ drawn / len(drawn) - expected).norm() / expected.norm())

    assert error(0.0625 * gram) < 0.02
    assert error(0.25 * gram) == pytest.approx(0.75, abs=0.01)
    fixed = 0.0625 * torch.eye(16, dtype=torch.float64)
    assert error(fixed) > 0.5  # noise drawn in the predictor's space, the fixed covariance of the ablation


def test_the_rank_of_the_noise_is_at_most_the_width_of_the_encoder() -> None:
    predictor = StochasticPredictor(CONFIG, 40, 1, 2, 0.25, False)
    assert int(torch.linalg.matrix_rank(offsets(predictor, 500), rtol=1e-4)) == 24


def test_noise_of_tokens_pictures_and_blocks_is_independent() -> None:
    """Trap: one vector for all tokens or blocks. Two blocks that hold the same patch see it at two places."""
    predictor = method().predictor
    torch.manual_seed(NOISE)
    positions = predictor.positions[0, :4].expand(2, 20_000, -1, -1)  # two blocks of the same four patches
    drawn = (predictor.queries(positions) - positions - predictor.mask_token).detach()
    tokens = drawn.permute(0, 2, 1, 3).flatten(0, 1)  # 2 blocks x 4 tokens, of 20,000 pictures each
    for first, second in itertools.combinations(tokens, 2):
        correlation = (first * second).sum() / (first.norm() * second.norm())
        assert abs(float(correlation)) < 0.02
    shifted = tokens[0].roll(1, 0)  # of neighbouring pictures
    assert abs(float((tokens[0] * shifted).sum() / tokens[0].square().sum())) < 0.02


def test_steps_draw_other_noise_and_the_same_seed_the_same() -> None:
    stop = method()
    assert torch.equal(loss_of(stop, 1), loss_of(stop, 1))
    assert not torch.equal(loss_of(stop, 1), loss_of(stop, 2))


def test_context_tokens_have_no_noise() -> None:
    stop, (pixels, context, targets) = method(), inputs()
    tokens = stop.context(pixels, keep=context).patches
    first, second = (stop.predictor.tokens(tokens, context, targets) for _ in range(2))
    count = context.shape[1]
    assert torch.equal(first[:, :count], second[:, :count])
    assert not torch.isclose(first[:, count:], second[:, count:]).all(dim=2).any()


@pytest.mark.parametrize("training", [True, False])
def test_features_of_the_encoders_are_deterministic(training: bool) -> None:
    stop, (pixels, _, _) = method().train(training), inputs()
    for encoder in (stop.context, stop.evaluated_model()):
        assert torch.equal(encoder(pixels).cls, encoder(pixels).cls)


def test_the_cosine_with_the_clean_position_falls_with_the_noise() -> None:
    cosines = []
    for std in (0.0, 0.1, 0.25, 0.5, 1.0):
        predictor = method(noise_std=std).predictor
        torch.manual_seed(NOISE)
        positions = predictor.positions[None].expand(4, 8, -1, -1)
        clean = positions + predictor.mask_token
        cosines.append(float(torch.cosine_similarity(predictor.queries(positions), clean, dim=3).mean().detach()))
    assert cosines[0] == pytest.approx(1)
    assert all(one > two + 0.001 for one, two in itertools.pairwise(cosines))


# -- A is one matrix in both places -----------------------------------------------------------------------------------


def test_a_scales_context_and_noise_alike() -> None:
    """Trap: two linear layers. There is one, and three times A is three times of both."""
    predictor = method().predictor
    assert [name for name, p in predictor.named_parameters() if p.shape == (16, 24)] == ["embed.weight"]
    before, context = offsets(predictor, 50), torch.randn(2, 5, 24)
    projected = predictor.embed(context) - predictor.embed.bias
    with torch.no_grad():
        predictor.embed.weight.mul_(3)
    torch.testing.assert_close(offsets(predictor, 50), 3 * before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predictor.embed(context) - predictor.embed.bias, 3 * projected, atol=1e-5, rtol=1e-4)


def test_the_noise_has_a_part_in_the_gradient_of_a() -> None:
    """Trap: A detached where it makes the noise. Finite differences of the whole loss know both of its uses."""
    stop, (pixels, context, targets) = method(noise_std=1.0).double(), inputs()
    weight, step = stop.predictor.embed.weight, 1e-6
    direction = torch.randn(16, 24, dtype=torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(NOISE)
        predicted, truth, _ = stop.compare(pixels.double(), context, targets)
        return (predicted - truth).square().mean()

    slope, values = float((torch.autograd.grad(loss(), weight)[0] * direction).sum()), []
    with torch.no_grad():
        for shift in (step, -2 * step):
            weight.add_(shift * direction)
            values.append(float(loss()))
        weight.add_(step * direction)
        kept = stop.predictor.queries
        stop.predictor.queries = lambda positions: kept(positions).detach()  # type: ignore[method-assign]
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)
    detached = float((torch.autograd.grad(loss(), weight)[0] * direction).sum())
    assert abs(detached - slope) > 1e-3 * abs(slope)


class Antithetic:
    """The same noise in turns n, -n in the place of torch.randn."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.noise = torch.randn(size, dtype=torch.float64)

    def __call__(self, *size: Any, **options: Any) -> Tensor:
        self.noise = -self.noise
        return self.noise


def at_zero(shared_bias: bool = False) -> StochasticPredictor:
    """A predictor in float64 whose A is 0."""
    predictor: StochasticPredictor = method(shared_bias=shared_bias).predictor.double()  # type: ignore[assignment]
    with torch.no_grad():
        predictor.embed.weight.zero_()
    return predictor


@pytest.mark.parametrize("shared_bias", [False, True])
def test_a_of_zero_is_no_trap(shared_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Propositions A.1 and 3.1 on the predictor itself: the noise's part of the gradient is odd in the noise, so that
    its mean is 0 (an untied A stays 0), and what is left is the gradient of a predictor without noise."""
    predictor = at_zero(shared_bias)
    _, places, targets = inputs()
    context, truth = torch.randn(*places.shape, 24).double(), torch.randn(12, targets.shape[2], 24).double()

    def gradient(std: float) -> Tensor:
        predictor.noise_std = std
        loss = (predictor(context, places, targets) - truth).square().mean()
        return torch.autograd.grad(loss, predictor.embed.weight)[0]

    monkeypatch.setattr(torch, "randn", Antithetic((*targets.shape, 24)))
    plus, minus, without = gradient(0.25), gradient(0.25), gradient(0.0)
    torch.testing.assert_close((plus + minus) / 2, without, atol=1e-12, rtol=0)
    assert float((plus - minus).abs().max()) > 1e-6
    assert float(without.norm()) > 1e-4


def test_the_gradients_of_the_propositions_in_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """J = (tanh(u p + v c) - y)^2 with p = psi + m~ + A n: at A = 0 untied 0, tied 2 (t - y) (1 - t^2) v s^T."""
    predictor, size = at_zero(), (1, 1, 1, 24)
    torch.manual_seed(3)
    u, v, psi = (torch.randn(16, dtype=torch.float64) / 4 for _ in range(3))
    s, y = torch.randn(24, dtype=torch.float64), 0.3
    monkeypatch.setattr(torch, "randn", Antithetic(size))
    weight = predictor.embed.weight

    def gradient(projection: Tensor) -> Tensor:
        total = weight.new_zeros(())
        for _ in range(2):
            p = predictor.queries(psi.expand(1, 1, 1, 16))[0, 0, 0]
            total = total + (torch.tanh(u @ p + v @ (projection @ s)) - y) ** 2 / 2
        return torch.autograd.grad(total, weight)[0]

    untied, tied = gradient(weight.detach().clone()), gradient(weight)
    t = torch.tanh(u @ (psi + predictor.mask_token[0, 0]))
    assert float(untied.abs().max()) < 1e-12
    torch.testing.assert_close(tied, (2 * (t - y) * (1 - t**2) * torch.outer(v, s)).detach(), atol=1e-12, rtol=0)
    assert float(tied.abs().max()) > 1e-3


@pytest.mark.parametrize("k", [0.5, 1.0, 1.5])
def test_the_best_answer_at_a_noisy_position_is_a_smoothed_one(k: float) -> None:
    """Proposition 3.2: sin(k r), asked for at r + n with n ~ N(0, 1), is best answered by exp(-k^2 / 2) sin(k p)."""
    config = ViTConfig(img_size=4, patch_size=4, width=4, depth=1, heads=1, **StoP.MODEL)  # type: ignore[arg-type]
    predictor = StochasticPredictor(config, 4, 1, 1, 1.0, False)
    with torch.no_grad():
        predictor.embed.weight.copy_(torch.eye(4))
        predictor.mask_token.zero_()
    torch.manual_seed(4)
    places = torch.rand(1, 1, 100_000, 4) * 8 * math.pi / k  # whole periods: a flat prior
    noisy = predictor.queries(places).detach()
    r, p = places.flatten().double(), noisy.flatten().double()
    waves = torch.stack([torch.sin(k * p), torch.cos(k * p)], dim=1)
    best = torch.linalg.lstsq(waves, torch.sin(k * r)[:, None]).solution[:, 0]
    assert best.tolist() == pytest.approx([math.exp(-(k**2) / 2), 0.0], abs=0.006)


# -- the options of the authors ---------------------------------------------------------------------------------------


def test_with_the_shared_bias_the_mask_token_is_left_out_and_not_trained() -> None:
    predictor = method(shared_bias=True).predictor
    torch.manual_seed(NOISE)
    positions = torch.randn(2, 3, 5, 16)
    torch.manual_seed(NOISE)
    queries = predictor.queries(positions)
    torch.manual_seed(NOISE)
    assert torch.equal(queries, positions + predictor.embed(0.25 * torch.randn(2, 3, 5, 24)))
    stop = method(shared_bias=True)
    assert not any(p is stop.predictor.mask_token for group in stop.parameter_groups() for p in group.params)


def test_a_batch_logs_the_sizes_of_a_and_of_the_token() -> None:
    stop = method()
    batch = {"image": torch.randint(0, 256, (4, 1, 32, 32, 3), dtype=torch.uint8), "image_draws": torch.rand(4, 1, 16)}
    output = stop(batch, Moment(0, 10, 0))
    weights = {name: weight.square().sum().sqrt() for name, weight in stop.predictor.state_dict().items()}
    assert float(output["noise_norm"]) == pytest.approx(float(weights["embed.weight"]))
    assert float(output["token_norm"]) == pytest.approx(float(weights["mask_token"]))
    assert output["features"].shape == (4, 24)


def test_a_training_that_goes_on_draws_the_noise_that_it_would_have(tmp_path: Path) -> None:
    """From the checkpoint of step 4, as if the one of step 6 had not been finished."""
    run = write_shards(tmp_path / "run", shapes(40, 16), group=8)
    sizes = {"predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2, "min_keep": 1}
    tree = {
        "method": "stop",
        "model": {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4, "drop_path": 0.3},
        "options": {**sizes, "target_scale": [0.2, 0.3]},
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
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
