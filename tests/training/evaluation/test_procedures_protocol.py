"""The protocol of procedures: a training is scored on every window, and by baselines that know nothing of pictures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_procedures import ORDERS, procedure_rows, write_procedures
from tiny_trainings import tiny_recipe

from granary.curation.errors import UserError
from granary.training.data.shards import open_dataset
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols.procedures import PROTOCOL, of_kind
from granary.training.evaluation.scores import Scores
from granary.training.evaluation.told_clips import TellWindows, Told
from granary.training.methods.vedit import Vedit
from granary.training.models.training import load_training
from granary.training.run.loop import train

SIZES: dict[str, Any] = {"width": 32, "blocks": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 videos of one of three orders, of 4 to 6 steps."""
    return write_procedures(tmp_path_factory.mktemp("run"), 60, least=4)


def scored(model: Path | str, run: str, seed: int = 0, batch: int = 64, **options: object) -> Scores:
    return PROTOCOL.evaluate(Measured(str(model), run, "train", batch=batch, seed=seed), PROTOCOL.read(options))


@pytest.fixture(scope="module")
def forecaster(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in seconds to say the next step."""
    out = tmp_path_factory.mktemp("forecaster") / "out"
    optimiser = {"lr": 5e-3, "warmup": 10}
    train(tiny_recipe("vedit", run, out, SIZES, steps=120, batch=32, optimiser=optimiser, alarm={"every": 0}))
    return out


def test_the_next_step_is_told_far_above_what_knows_no_history(forecaster: Path, run: str) -> None:
    """Of a step alone the next one is not known: the orders differ."""
    scores = scored(forecaster, run)
    rows = procedure_rows(60, least=4)
    test = open_dataset(run, ("clips",), "train").count
    assert scores["windows.videos"] == test < len(rows)
    assert scores["step_accuracy"] > scores["step_accuracy.most_common"] + 0.3
    assert scores["step_accuracy.copy_last"] == 0  # no step comes twice in a row
    assert scores["step_accuracy.chance"] == pytest.approx(1 / 6)
    assert scores["windows.unreadable"] == scores["windows.too_few_clips"] == 0
    assert scores.settings["task"] == "forecasting"


def test_neither_batch_nor_repetition_changes_a_score_and_a_seed_does(forecaster: Path, run: str) -> None:
    first = scored(forecaster, run, batch=7, temperature=1.0)
    assert first == scored(forecaster, run, batch=64, temperature=1.0)
    model = load_training(str(forecaster))
    assert isinstance(model, Vedit)
    dataset = open_dataset(run, ("clips", "latents"), "train")
    told = [TellWindows(model, 3, 2.0, seed).told(dataset)["step"].candidates for seed in (0, 1)]
    assert (told[0] != told[1]).any()
    assert (told[0][:, 0] != told[0][:, 1]).any()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"task": "recognition"}, {"step_accuracy"}),
        ({"task": "planning", "ahead": 3}, {"step_accuracy", "step_success", "step_iou"}),
        ({"task": "anticipation", "ahead": 2, "fields": ["verb", "noun"]}, {"verb_edit", "noun_edit"}),
        ({"task": "classification"}, {"task_accuracy"}),
    ],
    ids=lambda value: value["task"] if isinstance(value, dict) else "",
)
def test_every_task_has_its_scores(options: dict[str, Any], names: set[str], run: str, tmp_path: Path) -> None:
    train(tiny_recipe("vedit", run, tmp_path / "out", options))
    scores = scored(tmp_path / "out", run)
    assert {name for name in scores if "." not in name} == {*names, "windows"}
    for name in names:
        assert 0 <= scores[name] <= 1
    if options["task"] == "anticipation":
        assert scores["verb_edit"] <= scores["verb_edit.one_candidate"]
        assert scored(tmp_path / "out", run, candidates=1)["verb_edit"] == scores["verb_edit.one_candidate"]


def test_scores_by_hand() -> None:
    """Windows of which a clip is not said are left out; a step that the training does not know is told wrong."""
    truth = np.array([[0, 1, 2], [1, 1, 3], [-1, 0, 0]])
    likeliest = np.array([[0, 1, 2], [1, 1, 0], [0, 0, 0]])
    told = Told(likeliest[:, None], likeliest, truth, np.array([0, 0, 0]), 3)
    scores = of_kind("step", told, "planning")
    assert scores["step_accuracy"] == pytest.approx(5 / 6)
    assert scores["step_success"] == pytest.approx(1 / 2)
    assert scores["step_success.chance"] == pytest.approx(1 / 27)
    assert scores["step_iou"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["step_accuracy.most_common"] == pytest.approx(1 / 2)
    assert scores["step_accuracy.unsaid"] == 1
    assert of_kind("step", told._replace(truth=np.full((3, 3), -1)), "planning")["step_accuracy"] is None


def test_draws_are_those_of_the_softmax() -> None:
    model = load_training("random:configs/train/vedit_tiny.yaml")
    assert isinstance(model, Vedit)
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(4000, 1, 1, 3)
    ids = [str(number) for number in range(4000)]
    teller = TellWindows(model, 1, 2.0, 0)
    shares = np.bincount(teller._chosen(logits, ids).ravel(), minlength=3) / 4000
    np.testing.assert_allclose(shares, (logits[0, 0, 0] / 2).softmax(0).numpy(), atol=0.03)
    assert (TellWindows(model, 1, 0.0, 0)._chosen(logits, ids) == 2).all()


def test_what_cannot_be_told_is_a_sentence(forecaster: Path, run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tells no clips; give a training of vedit"):
        scored("random:tiny?img_size=16&patch_size=4", run)
    train(tiny_recipe("vedit", run, tmp_path / "long", {"task": "planning", "ahead": 6}))
    short = write_procedures(tmp_path / "short", 9, least=2)
    rows = [len(row["clips"]) for row in procedure_rows(9, least=2)]
    assert min(rows) < 6
    assert scored(tmp_path / "long", short)["windows.too_few_clips"]


def test_the_orders_can_only_be_told_from_history() -> None:
    """What the tiny videos are: each step is followed by several others, and never by itself."""
    following: dict[int, set[int]] = {}
    for order in ORDERS:
        for one, other in itertools.pairwise(order):
            following.setdefault(one, set()).add(other)
    assert all(step not in others for step, others in following.items())
    assert sum(len(others) > 1 for others in following.values()) >= 4
