"""Fine-tuning in part, and groups: what is frozen, learning rates by layer, robust losses, the worst group."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Value
from places import ROOT
from safetensors.torch import load_file
from tiny_shards import shapes, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.method import Moment, standard_groups
from granary.training.methods.supervised import Supervised, SupervisedOptions
from granary.training.models.checkpoint import usable
from granary.training.models.groups import Groups
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.training import load_training
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

VIT = ViTConfig(img_size=16, patch_size=4, width=16, depth=3, heads=2, layer_scale=0.0)
RESNET = ResNetConfig(img_size=16, widths=(8, 16), depths=(1, 1), stem="small")
CLASSES = {"circle": 0.5, "cross": 0.3, "square": 0.2}
KNOWN = {"classes": CLASSES, "rows": [[3, 1], [0, 2], [2, 2]]}


def method(config: Any = VIT, known: Any = CLASSES, **options: Any) -> Supervised:
    torch.manual_seed(0)
    return Supervised(config, SupervisedOptions(**options), known)


def batch(count: int = 6) -> dict[str, Any]:
    return {
        "image": torch.randint(0, 256, (count, 1, 16, 16, 3), dtype=torch.uint8),
        "image_draws": torch.rand(count, 1, 16),
        "label": torch.arange(count) % 3,
        "tint": torch.arange(count) % 2,
    }


# -- what is trained -------------------------------------------------------------------------------------------------


def test_learning_rates_decay_from_the_head_to_the_embedding() -> None:
    built = method(layer_decay=0.5)
    scales = {id(p): group.lr_scale for group in built.parameter_groups() for p in group.params}
    decayed = {id(p) for group in built.parameter_groups() for p in group.params if group.decay}
    layers = {"head.": 1.0, "encoder.norm.": 1.0, "encoder.embed.": 0.5**4, "encoder.cls": 0.5**4}
    layers |= {f"encoder.blocks.{i}.": 0.5 ** (3 - i) for i in range(3)} | {"encoder.positions": 0.5**4}
    named = [(name, p) for name, p in built.named_parameters() if p.requires_grad]
    assert len(named) == len(scales)
    for name, parameter in named:
        assert scales[id(parameter)] == next(scale for part, scale in layers.items() if name.startswith(part)), name
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name
    resnet = method(RESNET, layer_decay=0.5)
    scales = {id(p): group.lr_scale for group in resnet.parameter_groups() for p in group.params}
    assert sorted({scales[id(p)] for p in resnet.encoder.parameters()}) == [0.125, 0.25, 0.5]
    assert {scales[id(p)] for p in resnet.head.parameters()} == {1.0}


def test_without_layer_decay_the_groups_are_the_two_of_before() -> None:
    built = method()
    assert built.parameter_groups() == standard_groups(built)


@pytest.mark.parametrize(
    ("config", "freeze", "learns"), [(VIT, 2, {3, 4}), (RESNET, 1, {2}), (VIT, "all", set()), (RESNET, "all", set())]
)
def test_what_is_frozen_does_not_move_and_gathers_no_statistics(config: Any, freeze: Any, learns: set[int]) -> None:
    built = method(config, freeze=freeze)
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    built.train()
    optimiser = torch.optim.SGD([p for group in built.parameter_groups() for p in group.params], lr=1.0)
    built(batch(), Moment(0, 10, 0))["loss"].backward()
    optimiser.step()
    changed = {name for name, tensor in built.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"head.weight", "head.bias"} <= changed
    inside = {name.removeprefix("encoder.") for name in changed if name.startswith("encoder.")}
    assert {built.encoder.layer_of(name) for name in inside} == learns


def test_what_is_frozen_stays_so_after_a_probe(run: str, tmp_path: Path) -> None:
    model = {"kind": "resnet", "widths": [8, 16], "depths": [1, 1], "stem": "small", "img_size": 16}
    probe = {"every": 1, "train": 20, "test": 10, "k": 3}
    train(recipe_of(run, tmp_path, model=model, options={"freeze": 1}, probe=probe, steps=3))
    kept = weights(tmp_path)
    means = {name: tensor for name, tensor in kept.items() if name.endswith("running_mean")}
    assert {"encoder.layers.1." in name for name in means} == {True, False}
    for name, tensor in means.items():
        assert tensor.any() == ("encoder.layers.1." in name), name


def test_freezing_more_than_there_is_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"options.freeze: 4 is not right: the model has 3 stages; give fewer, or all"):
        method(freeze=4)


# -- groups ----------------------------------------------------------------------------------------------------------


def test_groups_are_label_and_value_and_those_that_do_not_occur_have_no_weight() -> None:
    groups = Groups([[3, 1], [0, 2]], 0.1)
    assert groups.of(torch.tensor([0, 1, 1, -1, 0]), torch.tensor([1, 0, 1, 0, -1])).tolist() == [1, 2, 3, -1, -1]
    torch.testing.assert_close(groups.weights, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]))


def test_the_loss_is_that_of_the_groups_and_their_weights_move_with_the_step() -> None:
    built = method(known=KNOWN, groups="tint", robust="groupdro", group_step=0.5)
    built.encoder.eval()
    given = batch(12)
    logits = built.head(built.encoder(_pixels(built, given)).cls)
    losses = -logits.log_softmax(dim=1).gather(1, given["label"][:, None])[:, 0]
    q = np.where(np.array(KNOWN["rows"]).flatten() > 0, 0.2, 0.0)
    means = [float(losses[(given["label"] == g // 2) & (given["tint"] == g % 2)].mean().detach()) for g in range(6)]
    moved = q * np.exp(0.5 * np.array(means))
    expected = float((moved / moved.sum() * means).sum())
    torch.manual_seed(1)
    output = built(given, Moment(0, 10, 0))
    assert float(output["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert built.groups is not None
    np.testing.assert_allclose(built.groups.weights.numpy(), q, rtol=1e-6)  # not before the step was taken
    built(given, Moment(0, 10, 0))  # as when the step is not taken: its loss was not finite
    built.after_step(Moment(0, 10, 0))
    np.testing.assert_allclose(built.groups.weights.numpy(), moved / moved.sum(), rtol=1e-5)
    built.eval()
    built(given, Moment(0, 10, 0))
    built.after_step(Moment(0, 10, 0))  # a validation does not move them
    np.testing.assert_allclose(built.groups.weights.numpy(), moved / moved.sum(), rtol=1e-5)


def _pixels(built: Supervised, given: dict[str, Any]) -> Tensor:
    """Return the normalised pictures, flipped as their draws say."""
    pixels = photometric(
        to_unit(given["image"][:, 0]), given["image_draws"][:, 0], Photometric(jitter=0, grey=0, blur=0)
    )
    return normalised(pixels, built.config.mean, built.config.std)


def test_the_accuracy_of_the_worst_group_over_batches() -> None:
    groups = Groups([[1, 1], [1, 1]], 0.1)
    numbers = [torch.tensor([0, 0, 1, -1]), torch.tensor([0, 1, 1, 3])]
    right = [torch.tensor([True, False, True, False]), torch.tensor([True, False, True, True])]
    groups.eval()
    parts = [float(groups.worst(r, n, Moment(i, 2, 0))) for i, (r, n) in enumerate(zip(right, numbers, strict=True))]
    assert parts[0] == 0.5  # group 0: 1 of 2
    assert sum(parts) / 2 == pytest.approx(2 / 3)  # groups 0 and 1: 2 of 3, group 3: 1 of 1
    groups.train()
    groups.counts.zero_()
    assert float(groups.worst(right[0], numbers[0], Moment(0, 2, 0))) == 0.5
    lately = float(groups.worst(right[1], numbers[1], Moment(1, 2, 0)))
    assert lately == pytest.approx((0.99 + 1) / (0.99 + 2), abs=1e-6)  # group 1: the batch before counts a little less
    assert float(Groups([[1]], 0.1).worst(right[0], torch.tensor([-1] * 4), Moment(0, 1, 0))) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"robust": "groupdro"}, "robust: groupdro needs groups, the column that makes them"),
        ({"freeze": -1}, "greater than or equal to 0"),
        ({"robust": "dro", "groups": "tint"}, "options.robust: 'dro' is not right"),
    ],
)
def test_wrong_options_are_sentences(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recipe_of("run", Path("out"), options=options)


# -- in the loop -----------------------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "method": "supervised",
    "model": {"width": 16, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4},
    "steps": 4,
    "batch": 8,
    "workers": 0,
    "window": 16,
    "optimiser": {"lr": 3e-3},
    "logs": {"every": 1, "tensorboard": False},
    "checkpoints": {"every": 2},
    "device": {"accelerator": "cpu", "threads": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 shapes of two kinds, warm or cold, which goes with the kind in five of six."""
    rows = [row for row in shapes(96, 16) if row["label"] in ("circle", "square")]
    for number, row in enumerate(rows):
        row["tint"] = "warm" if (row["label"] == "circle") == (number // 2 % 6 > 0) else "cold"
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, group=8, extra={"tint": Value("string")}))


def recipe_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({**RECIPE, "data": run, "out": str(out), **changes})


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(next(iter(usable(str(out)))) + "/training.safetensors")


@pytest.mark.parametrize("robust", ["erm", "groupdro", "rwg", "subg"])
def test_a_robust_training_goes_on_exactly_and_comes_back_whole(robust: str, run: str, tmp_path: Path) -> None:
    options = {"groups": "tint", "robust": robust, "group_step": 0.5}
    train(recipe_of(run, tmp_path / "whole", options=options))
    train(recipe_of(run, tmp_path / "out", options=options))
    Path(next(iter(usable(str(tmp_path / "out")))), "state.json").unlink()
    train(recipe_of(run, tmp_path / "out", options=options))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    moved = not torch.allclose(one["method/groups.weights"], torch.full((4,), 0.25))
    assert moved == (robust == "groupdro")
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert all(0 <= float(row["worst_group"]) <= 1 for row in rows)
    again = load_training(str(tmp_path / "out"))
    assert isinstance(again, Supervised)
    assert again.known["rows"] == [[20, 4], [4, 20]] or again.known["rows"] == [[4, 20], [20, 4]]  # type: ignore[index]


@pytest.mark.parametrize(("robust", "kind"), [("rwg", "balanced"), ("subg", "subsample")])
def test_rwg_and_subg_order_the_samples_as_the_recipe_can(robust: str, kind: str, run: str, tmp_path: Path) -> None:
    train(recipe_of(run, tmp_path / "a", options={"groups": "tint", "robust": robust}))
    train(recipe_of(run, tmp_path / "b", options={"groups": "tint"}, order={"kind": kind, "by": "label,tint"}))
    one, two = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match=rf"order: few_classes is not right: these options of supervised .*{kind} by"):
        train(
            recipe_of(run, tmp_path / "c", options={"groups": "tint", "robust": robust}, order={"kind": "few_classes"})
        )


def test_a_column_of_groups_that_is_not_there_is_a_sentence(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'shade', which supervised needs"):
        train(recipe_of(run, tmp_path / "out", options={"groups": "shade"}))


@pytest.mark.slow
def test_two_processes_weigh_groups_as_one(run: str, tmp_path: Path) -> None:
    plain = {"options": {"groups": "tint", "robust": "groupdro", "group_step": 0.5}, "streams": 4}
    device = {**RECIPE["device"], "devices": 2, "strategy": "ddp_spawn"}
    train(recipe_of(run, tmp_path / "one", **plain))
    recipe = recipe_of(run, tmp_path / "two", **plain, device=device)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    script = tmp_path / "script.py"
    script.write_text(
        "from granary.training.run.loop import train\n"
        "from granary.training.recipe import TrainRecipe\n"
        "if __name__ == '__main__':\n"
        f"    train(TrainRecipe.model_validate_json(open({str(tmp_path / 'recipe.json')!r}).read()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], check=True, timeout=300, env=environment)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(one["method/groups.counts"], two["method/groups.counts"])
