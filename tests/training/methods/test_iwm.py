"""IWM against a slow reference, against I-JEPA, and every trap of the method as a fact."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_trainings import goes_on, two_processes_train_what_one_does
from PIL import Image, ImageEnhance
from places import CONFIGS
from slow_ijepa import slow_block, slow_encoder, slow_positions
from torch import Tensor

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.augment import IDENTITY, NEEDED, ORDERS, Photometric, to_unit
from granary.training.method import Moment
from granary.training.methods.ijepa import IJEPA, IJEPAOptions, prediction_loss
from granary.training.methods.iwm import ACTION, IWM, IWMOptions, Views, action, changes_of_both
from granary.training.models.conditioned_predictor import ConditionedPredictor, Spelt
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe

CONFIG = ViTConfig(img_size=32, patch_size=4, width=24, depth=2, heads=2, **IWM.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"predictor_width": 16, "predictor_depth": 2, "predictor_heads": 2}
STRONG = {"jitter": 1.0, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
OFF = {"flip": 0.0, "jitter": 0.0, "blur": 0.0, "grey": 0.0, "solarize": 0.0}
DESTROYED = {"blur": 1.0, "grey": 1.0, "solarize": 1.0}
MODES = ("feature", "sequence", "none")
NOW = Moment(3, 10, 7)


def method(**changes: Any) -> IWM:
    """A method whose weights are far from their initial values, the target another model than the context."""
    torch.manual_seed(0)
    return moved(IWM(CONFIG, IWMOptions(**{**OPTIONS, **changes})))


def moved(built: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "positions" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def batch_of(count: int = 4) -> dict[str, Any]:
    torch.manual_seed(2)
    pixels = torch.randint(0, 256, (count, 1, 32, 32, 3), dtype=torch.uint8)
    draws = torch.rand(count, 1, 2 * NEEDED)
    return {"image": pixels, "image_draws": draws, "id": [f"picture {number}" for number in range(count)]}


def inputs(count: int = 3) -> tuple[Views, Tensor, Tensor]:
    """Views, and masks of 40 patches that are seen and 24 that are predicted."""
    torch.manual_seed(3)
    order = torch.stack([torch.randperm(64) for _ in range(count)])
    views = Views(torch.randn(count, 3, 32, 32), torch.randn(count, 3, 32, 32), torch.randn(count, len(ACTION)))
    return views, order[:, :40].sort(dim=1).values, order[None, :, 40:].sort(dim=2).values


def slow_loss(iwm: IWM, views: Views, seen: Tensor, targets: Tensor) -> Tensor:
    """The loss of the paper by loops over pictures, patches and the numbers of an action."""
    total, positions, predictor = torch.zeros(()), slow_positions(16), iwm.predictor
    for picture in range(len(seen)):
        with torch.no_grad():
            whole = slow_encoder(iwm.target, views.target[picture], list(range(64)))
            whole = torch.stack([(t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt() for t in whole])
        kept, wanted = seen[picture].tolist(), targets[0, picture].tolist()
        context = predictor.embed(slow_encoder(iwm.context, views.source[picture], kept)) + positions[kept]
        asked = []
        for place in wanted:
            token = positions[place] + predictor.mask_token[0, 0]
            if predictor.mixed is not None:
                hidden = torch.cat([token, views.actions[picture]])
                for number, layer in enumerate(predictor.mixed.layers):
                    hidden = layer.weight @ hidden + layer.bias
                    hidden = hidden.clamp(min=0) if number < 2 else hidden
                token = hidden
            asked.append(token)
        x = torch.cat([context, torch.stack(asked)])
        if predictor.spelt is not None:
            numbers = enumerate(views.actions[picture])
            told = [number * predictor.spelt.weight[k] + predictor.spelt.bias[k] for k, number in numbers]
            x = torch.cat([x, torch.stack(told)])  # at the other end: a Transformer knows no order but positions
        for layer in predictor.blocks:
            x = slow_block(layer, x)
        guess = predictor.out(predictor.norm(x))[len(kept) : len(kept) + len(wanted)]
        for place, number in enumerate(wanted):
            total = total + ((guess[place] - whole[number]) ** 2).sum()
    return total / len(seen)


def loss_of(iwm: IWM, views: Views, seen: Tensor, targets: Tensor) -> Tensor:
    predicted, truth, _ = iwm.compare_views(views, seen, targets)
    return prediction_loss(predicted, truth, "l2")


@pytest.mark.parametrize("conditioning", MODES)
def test_loss_and_gradients_equal_the_slow_reference(conditioning: str) -> None:
    fast, given = method(conditioning=conditioning), inputs(2)
    slow = copy.deepcopy(fast)
    loss, reference = loss_of(fast, *given), slow_loss(slow, *given)
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    loss.backward()
    reference.backward()
    trained = 0
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            scale = float(theirs.grad.abs().max())
            torch.testing.assert_close(
                ours.grad, theirs.grad, atol=1e-4 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
            trained += 1
    assert trained == len([p for p in fast.parameters() if p.requires_grad])


# -- the reduction to I-JEPA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l2", "smooth_l1"])
def test_without_changes_and_conditioning_it_is_ijepa_in_loss_and_all_gradients(kind: str) -> None:
    iwm = method(conditioning="none", **OFF)
    torch.manual_seed(0)
    ijepa = moved(IJEPA(CONFIG, IJEPAOptions(**OPTIONS, min_keep=4)))
    ours, theirs = iwm.state_dict(), ijepa.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    views, (_, seen, targets) = iwm.pair(batch_of(3)), inputs(3)
    losses, gradients = [], []
    for model, compared in ((iwm, iwm.compare_views(views, seen, targets)), (ijepa, None)):
        predicted, truth, _ = compared or ijepa.compare(views.target, seen, targets)
        losses.append(prediction_loss(predicted, truth, kind))
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(losses[-1], trained))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=0)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_the_union_is_predicted_in_one_pass_and_everything_else_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: a pass for each of the four blocks, as I-JEPA has."""
    iwm, calls = method(), []
    forward = iwm.predictor.forward
    monkeypatch.setattr(iwm.predictor, "forward", lambda *given: calls.append(given) or forward(*given))
    iwm(batch_of(), NOW)
    ((tokens, seen, targets, actions),) = calls
    assert targets.shape[0] == 1
    assert tokens.shape == (4, seen.shape[1], 24)
    assert actions.shape == (4, 7)
    for picture in range(4):
        assert sorted([*seen[picture].tolist(), *targets[0, picture].tolist()]) == list(range(64))
    assert targets.shape[2] > 0.2 * 64  # more than a block of at most 20 % has


# -- actions and views ------------------------------------------------------------------------------------------------


def changes_of(count: int = 200, **options: Any) -> Any:
    torch.manual_seed(4)
    draws = torch.rand(count, 2 * NEEDED)
    return changes_of_both(draws, Photometric(**{**STRONG, "solarize": 0.3, **options}))


def test_equal_changes_are_the_zero_action_and_swapped_ones_its_negative() -> None:
    """Trap: the sign of the action."""
    source, target = changes_of(blur=0.0, grey=0.0, solarize=0.0)
    assert torch.equal(action(target, target), torch.zeros(200, 7))
    assert torch.equal(action(source, target), -action(target, source))
    assert (action(source, target)[:, :4].abs().amax(dim=0) > 0.3).all()


def test_an_action_is_the_targets_factors_less_the_sources_and_what_the_source_lost() -> None:
    source, target = changes_of(jitter=0.6)
    told = action(source, target)
    for picture in range(200):
        x, y = source.factors[picture].tolist(), target.factors[picture].tolist()
        expected = [y[0] - x[0], y[1] - x[1], y[2] - x[2], (y[3] - x[3]) / (2 * math.pi)]
        expected += [float(source.grey[picture]), float(source.sigma[picture] > 0), float(source.solarize[picture])]
        assert told[picture].tolist() == pytest.approx(expected, abs=1e-6)
    plain = (source.factors == torch.tensor(IDENTITY)).all(dim=1)  # no jitter is factor 1 and hue 0
    assert 0.3 < float(plain.float().mean()) < 0.5
    torch.testing.assert_close(told[plain][:, :3], target.factors[plain][:, :3] - 1)
    assert set(told[:, 4:].flatten().tolist()) == {0.0, 1.0}
    assert float(told[:, 3].abs().max()) <= 0.4 + 1e-6  # turns, not radians


def test_the_jitters_of_both_views_are_independent_and_their_order_is_the_sources() -> None:
    source, target = changes_of(4000)
    assert torch.equal(source.order, target.order)
    assert len({tuple(row) for row in source.order.tolist()}) == len(ORDERS)
    for column in range(4):
        pair = torch.stack([source.factors[:, column], target.factors[:, column]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.05


@pytest.mark.parametrize("side", ["source", "target"])
def test_recorded_factors_applied_by_hand_give_the_view(side: str) -> None:
    """Trap: a jitter whose factors or order are others than those of the action. Pillow does it once more."""
    options = {**STRONG, "hue": 0.0, "flip": 0.5, "blur": 0.0, "grey": 0.0, "solarize": 0.0, "contrast": 0.0}
    iwm, batch = method(**options), batch_of(12)
    number = 0 if side == "source" else 1
    changes = changes_of_both(batch["image_draws"][:, 0], iwm.changes())[number]
    view = iwm.pair(batch)[number] * torch.tensor(CONFIG.std).view(3, 1, 1) + torch.tensor(CONFIG.mean).view(3, 1, 1)
    for picture in range(12):
        image = Image.fromarray(batch["image"][picture, 0].numpy())
        if changes.flip[picture]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for turn in changes.order[picture].tolist():
            if turn in (0, 2):
                enhancer = (ImageEnhance.Brightness, None, ImageEnhance.Color)[turn]
                image = enhancer(image).enhance(float(changes.factors[picture, turn]))  # type: ignore[misc]
        again = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(view[picture], again, atol=2.5 / 255, rtol=0)  # Pillow rounds twice, and its grey


def test_the_target_loses_nothing() -> None:
    """Trap: destructive changes of the target."""
    batch = batch_of(20)
    plain, lossy = method(**STRONG, **dict.fromkeys(DESTROYED, 0.0)), method(**STRONG, **DESTROYED)
    assert torch.equal(plain.pair(batch).target, lossy.pair(batch).target)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.mean, CONFIG.std))
    source, target = (view * std + mean for view in lossy.pair(batch)[:2])
    assert float((source[:, 0] - source[:, 1]).abs().max()) < 1e-5  # grey
    assert float((target[:, 0] - target[:, 1]).abs().amax(dim=(1, 2)).min()) > 0.2
    assert torch.equal(lossy.pair(batch).actions[:, 4:], torch.ones(20, 3))


def test_both_views_are_the_same_crop_mirrored_alike() -> None:
    """Trap: another crop or another mirroring of the target."""
    batch = batch_of(16)
    for flip in (0.0, 0.5, 1.0):
        iwm = method(**{**OFF, "flip": flip})
        views = iwm.pair(batch)
        assert torch.equal(views.source, views.target)
        assert torch.equal(views.actions, torch.zeros(16, 7))
    assert list(iwm.views()) == ["image"]
    assert iwm.views()["image"].count == 1
    unit = to_unit(batch["image"][:, 0]).flip(3)
    assert torch.allclose(views.target[:, 0] * CONFIG.std[0] + CONFIG.mean[0], unit[:, 0], atol=1e-6)


# -- conditioning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", MODES)
def test_actions_of_other_pictures_change_the_loss_only_where_they_are_read(conditioning: str) -> None:
    """Trap: conditioning that is not used."""
    iwm, (views, seen, targets) = method(conditioning=conditioning), inputs(4)
    shuffled = views._replace(actions=views.actions.roll(1, 0))
    losses = [loss_of(iwm, one, seen, targets) for one in (views, shuffled)]
    assert torch.equal(*losses) == (conditioning == "none")


def test_the_columns_of_the_action_have_a_gradient() -> None:
    iwm, given = method(), inputs()
    loss_of(iwm, *given).backward()
    first = iwm.predictor.mixed.layers[0].weight.grad  # type: ignore[union-attr]
    assert first.shape == (16, 16 + 7)
    assert (first[:, 16:].abs().sum(dim=0) > 1e-3).all()
    spelt = method(conditioning="sequence")
    loss_of(spelt, *given).backward()
    assert (spelt.predictor.spelt.weight.grad.abs().sum(dim=1) > 0).all()  # type: ignore[union-attr]


def test_only_mask_tokens_are_conditioned() -> None:
    predictor, (views, seen, targets) = method().predictor, inputs()
    x = predictor.tokens(torch.randn(3, 40, 24), seen, targets)
    told = predictor.conditioned(x, views.actions, 24)
    assert torch.equal(told[:, :40], x[:, :40])
    assert not torch.isclose(told[:, 40:], x[:, 40:]).all(dim=2).any()
    alone = predictor.conditioned(x[:, [*range(40), 47]], views.actions, 1)  # token by token
    torch.testing.assert_close(alone[:, 40], told[:, 47])


def test_the_numbers_of_an_action_are_told_apart() -> None:
    """Trap: one projection for all, under which another order of the numbers would be the same action."""
    iwm, (views, seen, targets) = method(conditioning="sequence"), inputs()
    tokens = iwm.context(views.source, keep=seen).patches
    permuted = views.actions[:, torch.randperm(7)]

    def answers() -> tuple[Tensor, Tensor]:
        one, two = (iwm.predictor(tokens, seen, targets, actions) for actions in (views.actions, permuted))
        return one, two

    assert not torch.allclose(*answers(), atol=1e-3)
    spelt = iwm.predictor.spelt
    assert isinstance(spelt, Spelt)
    with torch.no_grad():
        for parameter in spelt.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    torch.testing.assert_close(*answers(), atol=1e-5, rtol=1e-5)


def test_how_large_a_number_is_can_be_told_from_its_token() -> None:
    """The layer norm of the first block would make multiples of one vector equal, were there no bias at first."""
    iwm = IWM(CONFIG, IWMOptions(**OPTIONS, conditioning="sequence"))
    spelt, norm = iwm.predictor.spelt, iwm.predictor.blocks[0].norm1
    small, large = (norm(spelt(torch.full((1, 7), size))).detach() for size in (0.1, 0.4))  # type: ignore[misc]
    assert float((small - large).abs().amax(dim=2).min()) > 0.1


@pytest.mark.parametrize("conditioning", MODES)
def test_no_action_is_the_action_of_zeros(conditioning: str) -> None:
    iwm, (views, seen, targets) = method(conditioning=conditioning), inputs()
    tokens = iwm.context(views.source, keep=seen).patches
    assert torch.equal(
        iwm.predictor(tokens, seen, targets), iwm.predictor(tokens, seen, targets, torch.zeros(3, len(ACTION)))
    )
    both = torch.cat([targets, (targets + 1) % 64])  # two blocks: rows stay with their actions
    blocks = iwm.predictor(tokens, seen, both, views.actions).unflatten(0, (2, 3))
    torch.testing.assert_close(blocks[1], iwm.predictor(tokens, seen, both[1:], views.actions), atol=1e-5, rtol=1e-5)


def test_conditioned_mask_tokens_begin_as_large_as_unconditioned_ones() -> None:
    torch.manual_seed(0)
    wide = ViTConfig(img_size=32, patch_size=4, width=24, depth=1, heads=2, **IWM.MODEL)  # type: ignore[arg-type]
    predictor = IWM(wide, IWMOptions(predictor_width=384, predictor_depth=1, predictor_heads=2)).predictor
    tokens = predictor.queries(predictor.positions[None])[0]  # (1, N, P)
    told = predictor.mixed(tokens, torch.zeros(1, 7)).detach()  # type: ignore[misc]
    assert 0.5 < float(told.std() / tokens.detach().std()) < 1.5


# -- the method as a whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [12, 18])
def test_the_papers_predictors_have_the_weights_of_a_hand_count(depth: int) -> None:
    encoder = ViTConfig.named("base", img_size=224, patch_size=16, **IWM.MODEL)
    with torch.device("meta"):
        predictor = ConditionedPredictor(encoder, 384, depth, 12, 7, "feature")
    block = 12 * 384**2 + 13 * 384
    assert block == 1_774_464
    ends = (768 * 384 + 384) + 384 + 2 * 384 + (384 * 768 + 768)  # in, mask token, norm, out
    mixed = (384 + 7) * 384 + 384 + 2 * (384**2 + 384)
    assert sum(p.numel() for p in predictor.parameters() if p.requires_grad) == depth * block + ends + mixed


def test_masks_and_losses_hang_on_nothing_but_the_id_and_the_step() -> None:
    iwm, batch = method(loss="smooth_l1"), batch_of(6)
    whole, masks = iwm(batch, NOW)["loss"], iwm.masks(batch, NOW)
    assert all(torch.equal(a, b) for a, b in zip(masks, iwm.masks(batch, NOW._replace(steps=99)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(masks, iwm.masks(batch, NOW._replace(seed=1)), strict=True))
    halves = [
        iwm({name: rows[part] for name, rows in batch.items()}, NOW._replace(rank=rank, part=rank))["loss"]
        for rank, part in enumerate((slice(0, 3), slice(3, 6)))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole, atol=1e-6, rtol=1e-5)
    assert not torch.equal(iwm(batch, NOW._replace(step=4))["loss"], whole)
    assert iwm(batch, NOW)["features"].shape == (6, 24)


def test_no_gradient_reaches_the_target_encoder_and_everything_else_learns() -> None:
    iwm = method()
    iwm(batch_of(), NOW)["loss"].backward()
    assert all(parameter.grad is None for parameter in iwm.target.parameters())
    trained = {id(p) for group in iwm.parameter_groups() for p in group.params}
    for model in (iwm.context, iwm.predictor):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert id(parameter) in trained, name
                assert parameter.grad is not None, name
                assert float(parameter.grad.abs().sum()) > 0, name
    assert iwm.evaluated_model() is iwm.target


@pytest.mark.parametrize("conditioning", MODES)
def test_conditioning_may_be_given_on_the_command_line(conditioning: str) -> None:
    """There `none` is how other options are left out."""
    words = ["--data", "RUN", "--out", "TRAIN", "--options.conditioning", conditioning]
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "iwm_tiny.yaml"), words)
    assert recipe.options["conditioning"] == conditioning


def test_blocks_that_do_not_fit_are_sentences() -> None:
    with pytest.raises(UserError, match=r"options.target_scale: \[0.5, 0.5\] is not right: 4 blocks of 36 patches can"):
        method(target_scale=(0.5, 0.5))
    with pytest.raises(UserError, match=r"options.target_scale: .* a block of the 8 x 8 grid can be empty"):
        method(target_scale=(0.001, 0.2))


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    goes_on("iwm", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    two_processes_train_what_one_does("iwm", strategy, tmp_path)
