"""Supervised training: its losses against loops, labels that are none, and the prior of the mixture."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tiny_shards import encoded, sample, shapes, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.shards import class_names, class_shares, open_dataset
from granary.training.losses.classification import labelled_scores
from granary.training.method import Moment
from granary.training.methods.supervised import Supervised, SupervisedOptions
from granary.training.models.checkpoint import usable
from granary.training.models.vit import VisionTransformer, ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run import loop
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=16, patch_size=4, width=16, depth=1, heads=2, layer_scale=0.0)
SHARES = {"circle": 0.5, "cross": 0.3, "square": 0.2}
RECIPE: dict[str, Any] = {
    "method": "supervised",
    "model": {"width": 32, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4},
    "steps": 4,
    "batch": 8,
    "workers": 0,
    "window": 16,
    "optimiser": {"lr": 3e-3},
    "logs": {"every": 1, "tensorboard": False},
    "checkpoints": {"every": 2},
    "device": {"accelerator": "cpu", "threads": 1},
}


def method(config: ViTConfig = CONFIG, **options: Any) -> Supervised:
    torch.manual_seed(0)
    return Supervised(config, SupervisedOptions(**options), SHARES)


def slow_loss(logits: Tensor, labels: Tensor, prior: list[float]) -> Tensor:
    """-log of n_y exp(z_y) / sum_k n_k exp(z_k), picture by picture, class by class; no label is no term."""
    terms = []
    for z, y in zip(logits, labels.tolist(), strict=True):
        if y >= 0:
            masses = [n * torch.exp(z[k]) for k, n in enumerate(prior)]
            terms.append(-torch.log(masses[y] / sum(masses)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    ("loss", "prior"), [("cross-entropy", [1.0, 1.0, 1.0]), ("balanced-softmax", list(SHARES.values()))]
)
def test_losses_and_gradients_equal_a_loop_that_skips_what_has_no_label(loss: str, prior: list[float]) -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(7, 3, requires_grad=True), torch.tensor([0, 2, -1, 1, 1, -1, 0])
    found = labelled_scores(loss, logits, labels, method().counts)  # type: ignore[arg-type]
    expected = slow_loss(logits, labels, prior)
    torch.testing.assert_close(found["loss"], expected)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (found["loss"], expected))
    torch.testing.assert_close(ours, theirs)
    assert not ours[labels < 0].any()
    assert float(found["unlabelled"]) == pytest.approx(2 / 7)
    right = (logits.argmax(dim=1) == labels)[labels >= 0]
    assert float(found["accuracy"]) == pytest.approx(float(right.float().mean()))


def test_a_uniform_prior_is_plain_softmax() -> None:
    uniform = Supervised(CONFIG, SupervisedOptions(loss="balanced-softmax"), dict.fromkeys("abc", 0.2))
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    found = labelled_scores("balanced-softmax", logits, labels, uniform.counts)
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, labels))


def test_a_batch_without_labels_has_no_loss_and_moves_nothing() -> None:
    built = method()
    batch = {
        "image": torch.randint(0, 256, (3, 1, 16, 16, 3), dtype=torch.uint8),
        "image_draws": torch.rand(3, 1, 16),
        "label": torch.full((3,), -1),
    }
    found = built(batch, Moment(0, 10, 0))
    assert float(found["loss"].detach()) == 0
    assert float(found["unlabelled"]) == 1
    found["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in built.parameters() if p.requires_grad and p.numel())


def test_the_class_token_or_the_mean_of_the_patches_is_classified() -> None:
    batch = {
        "image": torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8),
        "image_draws": torch.ones(2, 1, 16),  # no flip, no change
        "label": torch.tensor([0, 1]),
    }
    for class_token in (True, False):
        built = method(ViTConfig(**{**CONFIG.__dict__, "class_token": class_token}))
        features = built(batch, Moment(0, 10, 0))["features"]
        pixels = batch["image"][:, 0].permute(0, 3, 1, 2) / 255
        mean, deviation = (torch.tensor(part).view(1, 3, 1, 1) for part in (CONFIG.mean, CONFIG.std))
        tokens = built.encoder((pixels - mean) / deviation)
        expected = tokens.cls if class_token else tokens.patches.mean(dim=1)
        torch.testing.assert_close(features, expected.detach())


# -- shares of the mixture -------------------------------------------------------------------------------------------


def labelled(folder: Path, counts: dict[str | None, int], first: int = 0) -> str:
    rows = shapes(sum(counts.values()), 16, first)
    labels = [label for label, count in counts.items() for _ in range(count)]
    return str(write_shards(folder, [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]))


def test_shares_are_those_of_the_mixture(tmp_path: Path) -> None:
    one = open_dataset(labelled(tmp_path / "one", {"a": 6, "b": 2, None: 2}))
    two = open_dataset(labelled(tmp_path / "two", {"b": 3, "10": 1, "9": 1, "-1": 15}))
    shares = class_shares([one, two], [3.0, 1.0])
    assert list(shares) == ["9", "10", "a", "b"] == class_names([one, two])
    expected = {"9": 0.25 / 20, "10": 0.25 / 20, "a": 0.75 * 6 / 10, "b": 0.75 * 2 / 10 + 0.25 * 3 / 20}
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [({"-1": 12}, r"the column label has no row with a label \(-1 is none\)"), ({"a": 12}, "has one class, 'a'")],
)
def test_labels_that_teach_nothing_are_a_sentence(counts: dict[str | None, int], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        train(recipe_of(labelled(tmp_path / "run", counts), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values", [[0.0, 1.0, None, 1.0], [True, False, None, True], [0, 1, -1, 1]])
def test_labels_that_are_no_texts_teach(values: list[Any], tmp_path: Path) -> None:
    """Tables have floats, where integers have gaps, and truth values."""
    folder = tmp_path / "run"
    folder.mkdir()
    pictures = [{"bytes": row["image"]["bytes"], "path": "x.png"} for row in shapes(16, 16)]
    pq.write_table(pa.table({"image": pictures, "label": values * 4}), folder / "data.parquet")
    facts = train(recipe_of(str(folder), tmp_path / "out"))
    assert facts["metrics"]["loss"] > 0
    assert facts["metrics"]["unlabelled"] < 0.6


def test_dinov2_is_a_start(run: str, tmp_path: Path) -> None:
    """It has a mask token and LayerScale, a supervised model has neither."""
    source = VisionTransformer(ViTConfig(**{**CONFIG.__dict__, "layer_scale": 0.1, "mask_token": True}))
    source.save(str(tmp_path / "source"))
    model = {"width": 16, "depth": 1, "heads": 2, "img_size": 24, "patch_size": 4}
    said = io.StringIO()
    recipe = recipe_of(run, tmp_path / "out", init=str(tmp_path / "source"), model=model)
    train(recipe, Console(file=said, width=200))
    assert "init: left out: mask_token" in said.getvalue()
    assert "init: positions of 4 x 4 patches are now of 6 x 6" in said.getvalue()


# -- in the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(40, 16), group=8))


def recipe_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({**RECIPE, "data": run, "out": str(out), **changes})


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(next(iter(usable(str(out)))) + "/training.safetensors")


def test_a_run_that_fails_goes_on_as_if_it_had_not(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe_of(run, tmp_path / "whole"))
    original = loop.TrainingSession._update

    def failing(self: Any, step: int) -> None:
        if step == 3:
            raise MemoryError
        original(self, step)

    monkeypatch.setattr(loop.TrainingSession, "_update", failing)
    with pytest.raises(MemoryError):
        train(recipe_of(run, tmp_path / "broken"))
    monkeypatch.setattr(loop.TrainingSession, "_update", original)
    train(recipe_of(run, tmp_path / "broken"))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_unlabelled_rows_are_counted_and_the_others_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(32):  # every fourth is grey and has no label, the others are red, green or blue
        colour = np.full(3, 100) + 100 * (np.arange(3) == number % 4)
        pixels = np.clip(colour + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        rows.append(sample(encoded(Image.fromarray(pixels), "PNG"), (16, 16), label=("r", "g", "b", "-1")[number % 4]))
    data = str(write_shards(tmp_path / "run", rows))
    train(recipe_of(data, tmp_path / "out", steps=20, batch=16, optimiser={"lr": 3e-3, "warmup": 5}))
    found = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert sum(float(row["unlabelled"]) for row in found) / len(found) == pytest.approx(0.25, abs=0.01)
    assert weights(tmp_path / "out")["method/head.weight"].shape == (3, 32)
    first, last = (sum(float(row["loss"]) for row in part) / 5 for part in (found[:5], found[-5:]))
    assert last < 0.5 * first
    assert first == pytest.approx(math.log(3), rel=0.3)
