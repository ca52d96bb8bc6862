"""XRM: who holds an example in, when labels flip, what is found on a toy, and trainings that go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from tiny_shards import shapes, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.losses.cross_risk import cross_mistakes, flip_chance
from granary.training.method import Moment
from granary.training.methods.xrm import XRM, XRMOptions, sides
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=16, patch_size=4, width=16, depth=1, heads=2, layer_scale=0.0)
NOW = Moment(3, 10, 0)


def method(labels: list[int], classes: int = 2, config: ViTConfig = CONFIG, **options: Any) -> XRM:
    torch.manual_seed(0)
    known = {"classes": {str(n): 1 / classes for n in range(classes)}, "labels": np.array(labels)}
    return XRM(config, XRMOptions(**options), known)


def batch_of(vectors: Tensor, labels: list[int]) -> dict[str, Any]:
    rows = torch.arange(len(vectors))
    return {"features": vectors, "id": [f"id-{n}" for n in rows], "row": rows, "label": torch.tensor(labels)}


def sure(model: XRM, head: int, answer: int) -> None:
    """Let a network answer one class, whatever it sees, with certainty."""
    with torch.no_grad():
        model.heads[head].bias.copy_(torch.full((len(model.classes),), -60.0).index_fill(0, torch.tensor(answer), 60.0))


LABELS = [0, 1] * 8


def test_networks_that_know_nothing_flip_nothing() -> None:
    model = method(LABELS)
    loss = model(batch_of(torch.randn(16, 16), LABELS), NOW)["loss"]
    model.after_step(NOW)
    assert float(loss.detach()) == pytest.approx(2 * np.log(2))
    assert torch.equal(model.current, model.original)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_network_flips_the_labels_of_what_it_holds_out_and_no_others(constant: int) -> None:
    model, mine = method(LABELS), sides(NOW.seed, [f"id-{n}" for n in range(16)])
    held_out = ~mine if constant == 0 else mine
    assert 3 < held_out.sum() < 13
    sure(model, constant, 1)
    model(batch_of(torch.randn(16, 16), LABELS), NOW)
    assert torch.equal(model.current, model.original)  # until the step is taken
    model.after_step(NOW)
    expected = np.where(held_out, 1, LABELS)
    assert model.current.tolist() == expected.tolist()
    assert float(model.flip_rate()) == pytest.approx((expected != LABELS).mean())


def test_a_flip_can_be_undone() -> None:
    model = method(LABELS)
    for answer in (1, 0):
        sure(model, 0, answer)
        sure(model, 1, answer)
        model(batch_of(torch.randn(16, 16), LABELS), NOW)
        model.after_step(NOW)
        assert model.current.tolist() == [answer] * 16


def test_flips_of_a_step_that_was_not_taken_are_forgotten() -> None:
    model = method(LABELS)
    sure(model, 0, 1)
    model(batch_of(torch.randn(16, 16), LABELS), NOW)
    with torch.no_grad():
        model.heads[0].bias.zero_()
    model(batch_of(torch.randn(16, 16), LABELS), NOW)
    model.after_step(NOW)
    assert torch.equal(model.current, model.original)


def test_labels_flip_as_often_as_they_should() -> None:
    count = 20_000
    labels = [0] * count
    model = method(labels, classes=3)
    logits = torch.tensor([0.2, 1.4, 0.0])
    with torch.no_grad():
        for head in model.heads:
            head.bias.copy_(logits)
    model(batch_of(torch.zeros(count, 16), labels), NOW)
    model.after_step(NOW)
    chance = float(flip_chance(logits[None]))
    share = float((model.current == 1).float().mean())
    assert abs(share - chance) < 4 * (chance * (1 - chance) / count) ** 0.5


def test_each_network_learns_from_what_it_holds_in_alone() -> None:
    model, vectors = method(LABELS, flips=False), torch.randn(16, 16)
    model(batch_of(vectors, LABELS), NOW)["loss"].backward()
    mine = torch.from_numpy(sides(NOW.seed, [f"id-{n}" for n in range(16)]))
    labels, held = torch.tensor(LABELS), [mine, ~mine]
    for head, inside in zip(model.heads, held, strict=True):
        expected = torch.zeros(16)  # at logits of 0 an example of class 1 of m pulls by -1/2 of it over m
        for label in (0, 1):
            expected += ((0.5 - label) * vectors[inside & (labels == label)]).sum(dim=0) / (labels == label).sum()
        torch.testing.assert_close(head.weight.grad[1], expected)


def test_the_loss_is_balanced_by_the_labels_of_now() -> None:
    model, vectors = method(LABELS), torch.randn(16, 16)
    model.current.fill_(1)
    assert float(model(batch_of(vectors, LABELS), NOW)["loss"].detach()) == pytest.approx(np.log(2))
    model.current.fill_(-1)
    assert float(model(batch_of(vectors, LABELS), NOW)["loss"].detach()) == 0


def test_no_column_but_the_label_is_read() -> None:
    reads = XRM.reads(XRMOptions())
    assert set(reads.all_columns) == {"image", "label"}
    assert reads.all_categories in ([], ["label"], ("label",))


def test_evaluation_reads_the_labels_of_its_rows_and_changes_nothing() -> None:
    model = method(LABELS).eval()
    sure(model, 0, 1)
    sure(model, 1, 1)
    output = model(batch_of(torch.randn(4, 16), [1, 1, 1, 1]), NOW)
    assert float(output["loss"].detach()) == pytest.approx(0, abs=1e-6)
    model.after_step(NOW)
    assert torch.equal(model.current, model.original)


def test_features_under_backbones_that_learn_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"options\.frozen: false is not right: features are of one frozen model"):
        method(LABELS, frozen=False)(batch_of(torch.randn(4, 16), [0, 1, 0, 1]), NOW)
    with pytest.raises(UserError, match="1 classes; XRM needs at least two"):
        method([0, 0], classes=1)


# -- the toy -----------------------------------------------------------------------------------------------------------

ROWS, WIDTH, STEPS = 600, 20, 200


def toy(shortcut: float, invariant: float, flips: bool = True, seed: int = 0) -> tuple[float, float, float]:
    """Return recall and precision of environment 1 for the examples that contradict the shortcut, and the flip rate."""
    rng = np.random.default_rng(seed)
    y = np.arange(ROWS) % 2
    a = np.where(rng.random(ROWS) < 0.95, y, 1 - y)
    x = rng.standard_normal((ROWS, WIDTH))
    x[:, 0] += invariant * (2 * y - 1)
    x[:, 1] += shortcut * (2 * a - 1)
    model = method(y.tolist(), config=ViTConfig(img_size=16, patch_size=4, width=WIDTH, depth=1, heads=1), flips=flips)
    optimiser, batch = torch.optim.SGD(model.heads.parameters(), lr=1.5), batch_of(torch.tensor(x).float(), y.tolist())
    for step in range(STEPS):
        optimiser.zero_grad()
        model(batch, Moment(step, STEPS, seed))["loss"].backward()
        optimiser.step()
        model.after_step(Moment(step, STEPS, seed))
    with torch.no_grad():
        logits = [head(batch["features"]) for head in model.heads]
    found = cross_mistakes(logits[0], logits[1], batch["label"]).numpy() == 1
    against = a != y
    return (
        float(found[against].mean()),
        float((found & against).sum() / max(1, found.sum())),
        float(model.flip_rate()),
    )


def test_on_the_toy_the_minority_is_found_where_the_shortcut_is_easier() -> None:
    recall, precision, rate = toy(3, 1)
    assert recall > 0.95
    assert precision > 0.9
    assert 0.035 < rate < 0.065
    assert recall - toy(3, 1, flips=False)[0] > 0.2


def test_on_the_toy_nothing_is_found_where_the_class_is_easier_and_the_flip_rate_says_so() -> None:
    recall, _, rate = toy(1, 3)
    assert recall < 0.1
    assert rate < 0.01


# -- trainings ---------------------------------------------------------------------------------------------------------

RESNET = {"kind": "resnet", "widths": [8, 16], "depths": [1, 1], "stem": "small", "img_size": 16}


def tree_of(run: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "method": "xrm",
        "model": RESNET,
        "options": {"frozen": False},
        "data": str(run),
        "out": str(out),
        "steps": 6,
        "batch": 8,
        "streams": 4,
        "workers": 0,
        "logs": {"every": 1, "tensorboard": False},
        "optimiser": {"lr": 1e-2, "eps": 1e-4},
        "device": {"accelerator": "cpu", "threads": 1},
        "checkpoints": {"every": 2},
        **changes,
    }


def two_classes(folder: Path, count: int = 40) -> Path:
    rows = [row for row in shapes(2 * count, 16) if row["label"] in ("circle", "cross")]
    return write_shards(folder, rows[:count], group=8)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    recipe = TrainRecipe.model_validate(tree_of(two_classes(tmp_path / "run"), tmp_path / "out"))
    last = tmp_path / "out" / "checkpoints" / "step-000000006"
    train(recipe)
    whole = load_file(last / "training.safetensors")
    (last / "state.json").unlink()
    train(recipe)
    again = load_file(last / "training.safetensors")
    assert not torch.equal(whole["method/current"], whole["method/original"])
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    run, rest = two_classes(tmp_path / "run"), {"steps": 4, "optimiser": {"kind": "sgd", "lr": 0.1}}
    train(TrainRecipe.model_validate(tree_of(run, tmp_path / "one", **rest)))
    device = {"accelerator": "cpu", "threads": 1, "devices": 2, "strategy": strategy}
    recipe = TrainRecipe.model_validate(tree_of(run, tmp_path / "two", device=device, **rest))
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(recipe=str(tmp_path / "recipe.json")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], check=True, timeout=300, env=environment)
    last = "checkpoints/step-000000004/training.safetensors"
    one, two = (load_file(tmp_path / name / last) for name in ("one", "two"))
    assert torch.equal(one["method/current"], two["method/current"])
    assert not torch.equal(one["method/current"], one["method/original"])
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


SCRIPT = """
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
if __name__ == "__main__":
    train(TrainRecipe.model_validate_json(open({recipe!r}).read()))
"""
