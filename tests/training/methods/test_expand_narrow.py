"""Expand/Narrow is a recipe of SimCLR: what changes with the width D of the last block, and two classes in a batch."""

from __future__ import annotations

import itertools
from pathlib import Path

import places
import pytest
import torch
from datasets import Value
from tiny_shards import shapes, write_shards

from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.loader import Process, batches
from granary.training.methods.simclr import SimCLR, SimCLROptions
from granary.training.recipe import TrainRecipe
from granary.training.run.setup import open_plan

CONFIG = str(places.CONFIGS / "train" / "expand_narrow" / "simclr_tiny.yaml")


def recipe_of(*words: str, data: str = "RUN") -> TrainRecipe:
    return load_recipe(TrainRecipe, CONFIG, ["--data", data, "--out", "TRAIN", *words])


def method_of(width: int, projector: int) -> SimCLR:
    recipe = recipe_of("--model.last_width", str(width), "--options.projector_width", str(projector))
    torch.manual_seed(0)
    return SimCLR(recipe.config(), SimCLROptions.model_validate(recipe.options))


@pytest.fixture(scope="module")
def narrow() -> SimCLR:
    return method_of(32, 16)


@pytest.fixture(scope="module")
def wide() -> SimCLR:
    return method_of(512, 16)


def test_two_widths_differ_in_the_last_block_and_the_projector_alone(narrow: SimCLR, wide: SimCLR) -> None:
    """Trap: every stage widened. All earlier tensors have the same shapes and, for a seed, the same initial values."""
    before, after = narrow.state_dict(), wide.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    last = f"encoder.layers.{len(narrow.encoder.layers) - 1}.0."  # type: ignore[arg-type]
    assert changed <= {name for name in before if name.startswith((f"{last}branch.2.", f"{last}shortcut."))} | {
        "projector.0.weight"
    }
    assert f"{last}branch.2.0.weight" in changed
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith((last, "projector")))


def test_the_width_of_the_projector_is_held_while_that_of_the_backbone_changes(narrow: SimCLR, wide: SimCLR) -> None:
    """Trap: K tied to D."""
    assert [tuple(m.projector[0].weight.shape) for m in (narrow, wide, method_of(32, 256))] == [  # type: ignore[union-attr]
        (16, 32),
        (16, 512),
        (256, 32),
    ]
    assert not narrow.projector[0].bias  # type: ignore[union-attr]


def test_weights_grow_linearly_with_the_width() -> None:
    counts = [sum(p.numel() for p in method_of(width, 16).parameters()) for width in (33, 34, 35, 36)]
    assert len({after - before for before, after in itertools.pairwise(counts)}) == 1


def test_what_is_probed_is_d_wide_and_not_negative(wide: SimCLR) -> None:
    features = wide.eval().encoder(torch.randn(4, 3, 24, 24)).cls.detach()
    assert features.shape == (4, 512)
    assert float(features.min()) >= 0


def test_each_batch_has_two_classes(tmp_path: Path) -> None:
    """Trap: other classes come in by the shuffle or from another process."""
    rows = [{**row, "split": "train"} for row in shapes(80, 32)]
    run = str(write_shards(tmp_path / "run", rows, extra={"split": Value("string")}))
    recipe = recipe_of(
        "--batch", "16", "--streams", "4", "--epochs", "null", "--steps", "8", "--workers", "0", data=run
    )
    method = method_of(32, 16)
    for processes in (1, 2):
        plan = open_plan(recipe, SimCLR.reads(method.options), processes)._replace(crops=method.views())
        parts = [list(batches(plan, range(8), Process(rank, processes), 0)) for rank in range(processes)]
        pairs = [
            frozenset(label for part in step for label in part["label"].tolist()) for step in zip(*parts, strict=True)
        ]
        assert all(len(pair) == 2 for pair in pairs)
        assert len(set(pairs)) > 1
