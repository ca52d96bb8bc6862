"""Zeros of features: exact ones, by picture and by unit, and what probes read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Value
from measuring import measure
from tiny_shards import shapes, write_shards

from granary.training.evaluation.features import Features
from granary.training.evaluation.protocols import sparsity
from granary.training.evaluation.protocols.sparsity import binarised, random_features, zeros
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig


def features(count: int = 50, width: int = 16) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0)).relu()


def test_zeros_are_counted_by_picture_and_by_unit() -> None:
    x = torch.tensor([[0.0, 1, 0, 2], [0, 3, 4, 5], [0, 0, 0, 6], [0, 7, 8, 9]])
    found = zeros(x)
    assert found["zeros"] == pytest.approx(np.mean([0.5, 0.25, 0.75, 0.25]))
    assert found["zeros.q50"] == pytest.approx(np.median([0.5, 0.25, 0.75, 0.25]))
    assert found["zeros.half"] == 0.5
    assert found["dead_units"] == 0.25  # the first column
    assert found["dead_units.q75"] == pytest.approx(np.quantile([1, 0.25, 0.5, 0], 0.75))


def test_a_small_feature_is_no_zero() -> None:
    """Trap: a tolerance makes small dense features sparse."""
    assert zeros(torch.full((4, 4), 1e-30))["zeros"] == 0
    assert zeros(torch.zeros(4, 4))["zeros"] == 1


def test_the_order_of_pictures_and_of_units_changes_nothing() -> None:
    x = features()
    assert zeros(x[torch.randperm(50)]) == pytest.approx(zeros(x))
    assert zeros(x[:, torch.randperm(16)]) == pytest.approx(zeros(x))
    transposed = zeros(x.T)  # by picture and by unit are not the same
    assert transposed["zeros"] == pytest.approx(zeros(x)["zeros"])
    assert transposed["zeros.q90"] != pytest.approx(zeros(x)["zeros.q90"])


def test_binarisation_is_idempotent_and_knows_no_scale() -> None:
    x = features()
    assert torch.equal(binarised(binarised(x)), binarised(x))
    assert torch.equal(binarised(0.001 * x), binarised(x))
    assert set(binarised(x).unique().tolist()) == {0.0, 1.0}


def test_a_random_projection_is_fixed_by_its_seed_and_has_no_negative_numbers() -> None:
    x = features()
    wide = random_features(x, 64, seed=3)
    assert torch.equal(wide, random_features(x, 64, seed=3))
    assert not torch.equal(wide, random_features(x, 64, seed=4))
    torch.testing.assert_close(wide[:5], random_features(x[:5], 64, seed=3))
    assert float(wide.min()) == 0
    assert 0.3 < zeros(wide)["zeros"] < 0.7


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{**row, "split": "test" if n % 5 == 0 else "train"} for n, row in enumerate(shapes(100, 16))]
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, extra={"split": Value("string")}))


def planted(run: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Features of which only the zeros tell the classes apart: their sizes are noise."""
    original = sparsity.train_and_test

    def task(*arguments: Any, **options: Any) -> Any:
        made = original(*arguments, **options)

        def part(old: Features, seed: int) -> Features:
            size = torch.rand(len(old.labels), 4, 8, generator=torch.Generator().manual_seed(seed)) + 0.1
            size[torch.arange(len(old.labels)), old.labels] = 0
            return Features(size.flatten(1)[:, None], None, old.labels, old.ids, [])

        return type(made)(**{**vars(made), "train": part(made.train, 1), "test": part(made.test, 2)})

    monkeypatch.setattr(sparsity, "train_and_test", task)
    return measure(sparsity, "pixels", run, random_width=64)


def test_a_probe_of_the_zeros_reads_what_is_in_them(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = planted(run, monkeypatch)
    assert scores["accuracy_binary"] == 1
    assert scores["zeros"] == scores["zeros.q10"] == scores["zeros.q90"] == 0.25
    assert scores["dead_units"] == 0
    assert scores["accuracy.chance"] == 0.25
    assert not [note for note in scores.notes if "negative" in note]


@pytest.mark.parametrize("solver", ["ridge", "lbfgs"])
def test_features_without_a_relu_are_said_to_be_so(run: str, solver: str, tmp_path: Path) -> None:
    config = ViTConfig(img_size=16, patch_size=4, width=16, depth=1, heads=2)
    VisionTransformer(config).save(str(tmp_path / "model"))
    scores = measure(sparsity, str(tmp_path / "model"), run, solver=solver)
    assert any("negative" in note for note in scores.notes)
    assert "accuracy_random" not in scores
