"""MoCo v2 and v3 against slow references; queue, key encoder, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from same_training import RESNET, SGD, VIT, check_near, one_and_two, whole_and_cut
from slow_info_nce import slow_info_nce, slow_queue_info_nce
from slow_models import check_gradients, precise
from tiny_trainings import tiny_recipe, tiny_run
from torch import Tensor
from torch.nn.functional import normalize
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.methods.moco import MoCo, MoCoOptions, MoCoV3, MoCoV3Options
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit_config import ViTConfig
from granary.training.run.loop import Stopped, train

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **MoCo.MODEL)  # type: ignore[arg-type]
V2: dict[str, Any] = {"projector_hidden": [16], "projector_width": 8, "queue": 12}
V3: dict[str, Any] = {"projector_hidden": [16, 16], "projector_width": 8, "predictor_hidden": [16]}
OPTIONS: dict[str, dict[str, Any]] = {"moco": V2, "moco_v3": V3}
UNCHANGED = {**PLAIN, "second_blur": None, "second_solarize": None}
NOW = Moment(0, 10, 0)


def method(**changes: Any) -> MoCo:
    torch.manual_seed(0)
    model = MoCo(CONFIG, MoCoOptions(**{**V2, **PLAIN, **changes}))
    return precise(model, [model.target_encoder, model.target_projector])


def method_v3(**changes: Any) -> MoCoV3:
    torch.manual_seed(0)
    model = MoCoV3(CONFIG, MoCoV3Options(**{**V3, **UNCHANGED, **changes}))
    return precise(model, [model.target_encoder, model.target_projector])


def test_loss_and_gradients_of_v2_equal_the_slow_reference() -> None:
    fast, batch = method(), batch_of()
    fast.queue.rows.copy_(normalize(fast.queue.rows, dim=1))  # unit rows in float64 too
    slow = copy.deepcopy(fast)
    first, second = (plain_pixels(batch, CONFIG, view).double() for view in range(2))
    queries = slow.projector(slow.encoder(first).cls)
    with torch.no_grad():
        keys = slow.target_projector(slow.target_encoder(second).cls)
    reference = slow_queue_info_nce(queries, keys, slow.queue.rows, 0.2)
    check_gradients(fast, slow, fast(batch, NOW)["loss"], reference)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_loss_and_gradients_of_v3_equal_the_slow_reference(temperature: float) -> None:
    """Each view goes through the networks alone; the loss is 2 t times the sum of both ways."""
    fast, batch = method_v3(temperature=temperature), batch_of()
    slow = copy.deepcopy(fast)
    views = [plain_pixels(batch, CONFIG, view).double() for view in range(2)]
    first, second = (slow.predictor(slow.projector(slow.encoder(view).cls)) for view in views)
    with torch.no_grad():
        first_keys, second_keys = (slow.target_projector(slow.target_encoder(view).cls) for view in views)
    both = slow_info_nce(first, second_keys, temperature) + slow_info_nce(second, first_keys, temperature)
    check_gradients(fast, slow, fast(batch, NOW)["loss"], 2 * temperature * both)


def test_views_that_change_places_leave_the_loss_of_v3_as_it_is() -> None:
    batch = batch_of()
    swapped = {name: rows.flip(1) for name, rows in batch.items()}
    torch.testing.assert_close(method_v3()(batch, NOW)["loss"], method_v3()(swapped, NOW)["loss"])
    assert not torch.isclose(method()(batch, NOW)["loss"], method()(swapped, NOW)["loss"])


def test_batchnorm_sees_each_view_alone_or_both_together() -> None:
    alone, joint = (method_v3(joint_norm=joint)(batch_of(), NOW)["loss"] for joint in (False, True))
    assert not torch.isclose(alone, joint)
    with pytest.raises(ValueError, match="joint_norm"):
        MoCoOptions(joint_norm=True)  # type: ignore[arg-type]


def test_projections_and_predictions_of_v3_are_standardised() -> None:
    model = method_v3()
    outputs = []
    for part in (model.projector, model.predictor, model.target_projector):
        part.register_forward_hook(lambda module, given, said: outputs.append(said))
    model(batch_of(16), NOW)
    assert len(outputs) == 6  # three networks, two views
    for said in outputs:
        torch.testing.assert_close(said.mean(dim=0), torch.zeros(8, dtype=torch.float64), atol=1e-6, rtol=0)
        torch.testing.assert_close(said.var(dim=0, correction=0), torch.ones(8, dtype=torch.float64), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("make", "momenta"), [(method, [0.999, 0.999]), (method_v3, [0.99, 0.995])])
def test_the_key_encoder_is_the_average_of_weights_and_statistics(make: Any, momenta: list[float]) -> None:
    """MoCo v2's momentum is constant, v3's a half cosine from 0.99 to 1; there is one at every step."""
    model = make(projector_norm=True)
    for moment, momentum in zip((Moment(0, 10, 0), Moment(5, 10, 0)), momenta, strict=True):
        model(batch_of(), moment)
        before, target = copy.deepcopy(model), {}
        model.after_step(moment)
        for name, tensor in before.state_dict().items():
            if name.startswith("target_") and tensor.is_floating_point():
                online = before.state_dict()[name.removeprefix("target_")]
                target[name] = momentum * tensor + (1 - momentum) * online
        assert any("running_mean" in name for name in target)
        for name, expected in target.items():
            torch.testing.assert_close(model.state_dict()[name], expected, msg=lambda m, n=name: f"{n}: {m}")


def test_keys_enter_the_queue_after_the_step() -> None:
    model, batch = method(), batch_of()
    before = model.queue.rows.clone()
    (keys,) = model.targets(model.pixels(batch)[1:])
    model(batch, NOW)
    assert torch.equal(model.queue.rows, before)
    model.after_step(NOW)
    expected = torch.cat([normalize(keys, dim=1), before[4:]])
    torch.testing.assert_close(model.queue.rows, expected)
    assert int(model.queue.place) == 4


def test_what_is_evaluated_is_the_encoder_that_is_trained() -> None:
    for model in (method(), method_v3()):
        output = model(batch_of(), NOW)
        assert model.evaluated_model() is model.encoder
        assert output["features"].shape == (4, 24)
        assert not output["features"].requires_grad


def test_a_frozen_patch_embedding_stays_as_it_is() -> None:
    model = method_v3(freeze_patches=True)
    model(batch_of(), NOW)["loss"].backward()
    assert all(parameter.grad is None for parameter in model.encoder.embed.parameters())  # type: ignore[operator, union-attr]
    with pytest.raises(UserError, match=r"options\.freeze_patches: True is not right: a resnet has no patches"):
        MoCoV3(ResNetConfig(img_size=16), MoCoV3Options(**V3, freeze_patches=True))


# -- in a training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_goes_on_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    whole, again = whole_and_cut({"method": name, "model": RESNET, "options": OPTIONS[name]}, tmp_path)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert any(key.startswith("method/target_encoder") and "running_mean" in key for key in whole)
    if name == "moco":
        assert int(whole["method/queue.place"]) == 6 * 8 % 12


def trained(run: str, out: Path, **changes: Any) -> dict[str, Tensor]:
    """Return all tensors of the last checkpoint of a training of MoCo v2."""
    facts = train(tiny_recipe("moco", run, out, V2, **changes))
    return load_file(f"{facts['checkpoint']}/training.safetensors")


def test_a_batch_in_parts_is_the_whole_batch(tmp_path: Path) -> None:
    """Without BatchNorm the parts of a batch see what the whole sees, and fill the queue alike."""
    run = tiny_run(tmp_path / "run")
    one, two = (trained(run, tmp_path / str(parts), accumulate=parts, steps=4) for parts in (1, 2))
    assert not any("running" in key for key in one)
    check_near(one, two)
    torch.testing.assert_close(one["method/queue.rows"], two["method/queue.rows"], atol=1e-4, rtol=1e-3)


def test_the_queue_of_a_training_in_bfloat16_has_unit_rows_in_float32(tmp_path: Path) -> None:
    device = {"accelerator": "cpu", "threads": 1, "precision": "bf16-mixed"}
    rows = trained(tiny_run(tmp_path / "run"), tmp_path / "out", device=device)["method/queue.rows"]
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(12))


def test_steps_that_are_not_taken_leave_queue_and_statistics_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = MoCo.forward

    def breaking(self: MoCo, batch: Any, moment: Moment) -> dict[str, Tensor]:
        output = forward(self, batch, moment)
        return output | {"loss": output["loss"] * (torch.nan if moment.step >= 2 else 1.0)}

    run, out = tiny_run(tmp_path / "run"), tmp_path / "broken"
    trained(run, tmp_path / "whole", model=RESNET, steps=4, checkpoints={"every": 1, "keep": 4})
    before = load_file(tmp_path / "whole/checkpoints/step-000000002/training.safetensors")
    monkeypatch.setattr(MoCo, "forward", breaking)
    with pytest.raises(Stopped, match="not finite for 2 steps"):
        trained(run, out, model=RESNET, steps=4, alarm={"non_finite": 2})
    kept = load_file(out / "checkpoints/step-000000004/training.safetensors")
    assert all(torch.equal(kept[key], before[key]) for key in before)


def test_a_queue_that_cannot_hold_a_batch_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options\.queue: 7 is not right: it must hold the 8 pictures of a batch"):
        train(tiny_recipe("moco", tiny_run(tmp_path / "run"), tmp_path / "out", {"queue": 7}))
    assert not (tmp_path / "out" / "recipe.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy", "model"),
    [("moco", "ddp", RESNET), ("moco", "fsdp", VIT), ("moco_v3", "ddp", RESNET), ("moco_v3", "fsdp", VIT)],
)
def test_two_processes_train_what_one_does(name: str, strategy: str, model: dict[str, Any], tmp_path: Path) -> None:
    tree = {"method": name, "model": model, "options": OPTIONS[name], "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))
