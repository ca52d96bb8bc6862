"""I-JEPA against a slow reference written from the paper, and every trap of the method as a fact."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slow_ijepa import slow_loss
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.masking.multi_block import draw_masks
from granary.training.method import Moment
from granary.training.methods.ijepa import IJEPA, IJEPAOptions, prediction_loss
from granary.training.models.vit import ViTConfig

CONFIG = ViTConfig(img_size=32, patch_size=4, width=24, depth=2, heads=2, **IJEPA.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"predictor_width": 16, "predictor_depth": 2, "predictor_heads": 2, "min_keep": 4}


def method(**changes: Any) -> IJEPA:
    """A method whose weights are far from their initial values, the target another model than the context."""
    torch.manual_seed(0)
    built = IJEPA(CONFIG, IJEPAOptions(**{**OPTIONS, **changes}))
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "positions" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def inputs(batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    drawn = draw_masks(method().blocks, batch, np.random.default_rng(seed), np.random.default_rng(seed + 1))
    return torch.randn(batch, 3, 32, 32), torch.from_numpy(drawn.context), torch.from_numpy(drawn.targets)


@pytest.mark.parametrize("kind", ["smooth_l1", "l2"])
def test_loss_and_gradients_equal_the_slow_reference(kind: str) -> None:
    fast, (pixels, context, targets) = method(loss=kind), inputs(2)
    slow = copy.deepcopy(fast)
    predicted, wanted, _ = fast.compare(pixels, context, targets)
    loss = prediction_loss(predicted, wanted, kind)
    reference = slow_loss(slow, pixels, context, targets, kind)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    loss.backward()
    reference.backward()
    compared = 0
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            compared += 1
    assert compared == len([p for p in fast.parameters() if p.requires_grad])


def test_losses_equal_torch_and_a_loop_over_blocks() -> None:
    torch.manual_seed(2)
    predicted, wanted = torch.randn(12, 9, 24), torch.randn(12, 9, 24)  # M = 4, B = 3
    assert torch.equal(prediction_loss(predicted, wanted, "smooth_l1"), F.smooth_l1_loss(predicted, wanted))
    per_picture = [sum(((predicted - wanted)[m * 3 + b] ** 2).sum() for m in range(4)) / 4 for b in range(3)]
    torch.testing.assert_close(prediction_loss(predicted, wanted, "l2"), sum(per_picture) / 3)


# -- the traps of the method sheet -----------------------------------------------------------------------------------


def test_no_gradient_reaches_the_target_encoder() -> None:
    ijepa, (pixels, context, targets) = method(), inputs()
    before = {name: weight.clone() for name, weight in ijepa.target.state_dict().items()}
    predicted, wanted, _ = ijepa.compare(pixels, context, targets)
    prediction_loss(predicted, wanted, "smooth_l1").backward()
    assert all(parameter.grad is None for parameter in ijepa.target.parameters())
    trained = [p for p in (*ijepa.context.parameters(), *ijepa.predictor.parameters()) if p.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    optimiser = torch.optim.SGD([p for g in ijepa.parameter_groups() for p in g.params], 0.1)
    optimiser.step()
    assert all(torch.equal(before[name], weight) for name, weight in ijepa.target.state_dict().items())


def test_targets_depend_on_the_whole_picture_and_the_context_does_not() -> None:
    ijepa, (pixels, context, targets) = method().eval(), inputs(1)
    _, wanted, _ = ijepa.compare(pixels, context, targets)
    tokens = ijepa.context(pixels, keep=context).patches
    in_context, in_target = pixels.clone(), pixels.clone()
    paint(in_context, int(context[0, 0]))
    paint(in_target, int(targets[0, 0, 0]))
    assert not torch.allclose(ijepa.compare(in_context, context, targets)[1], wanted)
    assert torch.equal(ijepa.context(in_target, keep=context).patches, tokens)


def paint(pixels: Tensor, number: int) -> None:
    row, column = divmod(number, 8)
    pixels[:, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 3


def test_the_order_of_kept_patches_only_permutes_tokens() -> None:
    ijepa, (pixels, context, _) = method().eval(), inputs()
    order = torch.randperm(context.shape[1])
    tokens = ijepa.context(pixels, keep=context).patches
    shuffled = ijepa.context(pixels, keep=context[:, order]).patches
    torch.testing.assert_close(shuffled, tokens[:, order], atol=1e-5, rtol=1e-5)


def test_a_block_is_predicted_without_knowing_the_others() -> None:
    ijepa, (pixels, context, targets) = method().eval(), inputs()
    changed = targets.clone()
    changed[1] = (changed[1] + 1) % 64
    one, two = (ijepa.compare(pixels, context, t)[0].unflatten(0, (4, 3)) for t in (targets, changed))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[2:], two[2:])
    assert not torch.allclose(one[1], two[1])
    alone = ijepa.compare(pixels, context, targets[2:3])[0]
    torch.testing.assert_close(alone, one[2], atol=1e-5, rtol=1e-5)


def test_predictions_and_targets_are_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stubs that return patch numbers (and the picture's), row by row they agree."""
    ijepa, (pixels, context, targets) = method(), inputs()
    numbers = (torch.arange(64) + 1000 * torch.arange(3)[:, None]).float()[..., None].expand(-1, -1, 24)  # (B, N, D)

    class Whole(torch.nn.Module):
        def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Any:
            return type("Tokens", (), {"patches": numbers})

    class Echo(torch.nn.Module):
        def forward(self, context: Tensor, places: Tensor, targets: Tensor) -> Tensor:
            rows = targets + 1000 * torch.arange(3)[:, None]
            return rows.flatten(0, 1).float()[..., None].expand(-1, -1, 24)

    monkeypatch.setattr(ijepa, "target", Whole())
    monkeypatch.setattr(ijepa, "predictor", Echo())
    layer_norm = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda x, *rest: layer_norm(x, *rest) if len(rest) > 1 else x)
    predicted, wanted, _ = ijepa.compare(pixels, context, targets)
    assert torch.equal(predicted, wanted)


def test_wanted_tokens_are_normalised_without_affine_parameters() -> None:
    ijepa, (pixels, context, targets) = method(), inputs()
    with torch.no_grad():
        ijepa.target.norm.weight.mul_(7).add_(1)
    _, wanted, _ = ijepa.compare(pixels, context, targets)
    torch.testing.assert_close(wanted.mean(dim=2), torch.zeros(wanted.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(wanted.var(dim=2, unbiased=False), torch.ones(wanted.shape[:2]), atol=1e-3, rtol=0)


def test_the_target_is_the_geometric_mixture_of_all_contexts() -> None:
    ijepa, steps = method(momentum=0.9), 6
    target, history = ijepa.target.embed.weight.clone(), []
    for step in range(steps):
        with torch.no_grad():
            ijepa.context.embed.weight.add_(torch.randn_like(ijepa.context.embed.weight))
        history.append(ijepa.context.embed.weight.clone())
        ijepa.after_step(Moment(step, steps, 0))
    momenta = [0.9 + 0.1 * step / steps for step in range(steps)]
    expected = np.prod(momenta) * target
    for step, weight in enumerate(history):
        expected = expected + (1 - momenta[step]) * np.prod(momenta[step + 1 :]) * weight
    torch.testing.assert_close(ijepa.target.embed.weight, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("momentum", "copied"), [(1.0, False), (0.0, True)])
def test_momentum_one_holds_and_zero_copies(momentum: float, copied: bool) -> None:
    ijepa = method(momentum=momentum)
    before = ijepa.target.embed.weight.clone()
    ijepa.after_step(Moment(0, 10, 0))
    assert torch.equal(ijepa.target.embed.weight, ijepa.context.embed.weight if copied else before)


def test_target_starts_as_an_exact_copy() -> None:
    fresh = IJEPA(CONFIG, IJEPAOptions(**OPTIONS))
    for ours, theirs in zip(fresh.context.parameters(), fresh.target.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr() or not ours.numel()
    assert fresh.context.config.class_token is False


def test_the_patch_embedding_may_start_larger_than_the_rest() -> None:
    built = {}
    for deviation in (None, 0.5):
        torch.manual_seed(0)
        built[deviation] = IJEPA(CONFIG, IJEPAOptions(**OPTIONS, embed_std=deviation)).state_dict()
    changed = {name for name, tensor in built[None].items() if not torch.equal(tensor, built[0.5][name])}
    assert changed == {"context.embed.weight", "target.embed.weight"}
    assert torch.equal(built[0.5]["context.embed.weight"], built[0.5]["target.embed.weight"])
    assert 0.4 < float(built[0.5]["context.embed.weight"].std()) < 0.55


def test_a_batch_of_the_loader_gives_a_loss_that_depends_on_the_moment_alone() -> None:
    ijepa = method()
    batch = {"image": torch.randint(0, 256, (4, 1, 32, 32, 3), dtype=torch.uint8)}
    one, two = (ijepa(batch, Moment(3, 10, 7))["loss"] for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, ijepa(batch, Moment(4, 10, 7))["loss"])
    assert ijepa(batch, Moment(3, 10, 7))["features"].shape == (4, 24)
    assert list(ijepa.views()) == ["image"]


def test_biases_and_norms_have_no_decay() -> None:
    groups = method().parameter_groups()
    assert all((p.ndim > 1) == group.decay for group in groups for p in group.params)
    assert sum(len(group.params) for group in groups) == sum(p.requires_grad for p in method().parameters())


def test_the_predictor_alone_has_a_rate_of_its_own() -> None:
    ijepa = method(predictor_lr=5.0)
    rates = {id(p): group.lr_scale for group in ijepa.parameter_groups() for p in group.params}
    assert {rates[id(p)] for p in ijepa.predictor.parameters() if p.requires_grad} == {5.0}
    assert {rates[id(p)] for p in ijepa.context.parameters() if p.requires_grad} == {1.0}


def test_models_and_masks_that_do_not_fit_are_sentences() -> None:
    with pytest.raises(UserError, match="no class token"):
        IJEPA(ViTConfig(img_size=32, patch_size=4, width=24, depth=1, heads=2), IJEPAOptions(**OPTIONS))
    with pytest.raises(UserError, match=r"options.min_keep: min_keep is 10"):
        IJEPA(CONFIG, IJEPAOptions(predictor_width=16, predictor_heads=2))
