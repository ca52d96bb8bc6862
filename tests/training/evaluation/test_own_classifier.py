"""The accuracy of a training's own classifier: by hand, of known classes alone, and of nothing that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Value
from tiny_shards import sample, shapes, write_shards
from tiny_trainings import tiny_run, tiny_training

from granary.curation.errors import UserError
from granary.training.data.augment import normalised, to_unit
from granary.training.data.crops import Crop
from granary.training.data.passes import in_order
from granary.training.data.shards import open_dataset
from granary.training.evaluation.protocol import Measured, SplitOptions
from granary.training.evaluation.protocols.classifier import PROTOCOL
from granary.training.evaluation.scores import Scores
from granary.training.methods.predictor_tuning import PredictorTuning
from granary.training.methods.supervised import Supervised
from granary.training.models.training import load_training


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"), 40)


def scores(model: str, data: str, split: str | None = None, dtype: str = "float32") -> Scores:
    return PROTOCOL.evaluate(Measured(model, data, split, device="cpu", batch=7, dtype=dtype), SplitOptions())


@pytest.fixture(scope="module")
def trained(run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Trainings with a classifier, and one without."""
    made = {name: tiny_training(name, run, tmp_path_factory.mktemp(name), steps=20) for name in ("supervised", "iwm")}
    options = {"teacher": made["iwm"], "heads": 2}
    made["predictor_tuning"] = tiny_training("predictor_tuning", run, tmp_path_factory.mktemp("tuned"), options)
    return made


@pytest.mark.parametrize("method", ["supervised", "predictor_tuning"])
def test_the_accuracy_is_that_of_the_classifier_on_the_middle_of_every_picture(
    method: str, run: str, trained: dict[str, str]
) -> None:
    model = load_training(trained[method])
    assert isinstance(model, Supervised | PredictorTuning)
    right, per_class = [], {name: list[bool]() for name in model.classes}
    dataset = open_dataset(run, ("image", "label"), "train")
    for part in in_order(dataset, Crop(1, 16, centre=True), ("image", "label"), model.classes):
        pixels = normalised(to_unit(part["image"][:, 0]), model.config.mean, model.config.std)
        with torch.no_grad():
            predicted = model.logits(pixels).argmax(dim=1)
        for answer, label in zip(predicted.tolist(), part["label"].tolist(), strict=True):
            right.append(answer == label)
            per_class[model.classes[label]].append(answer == label)
    found = scores(trained[method], run, "train")
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    means = [sum(answers) / len(answers) for answers in per_class.values() if answers]
    assert found["accuracy.mean_per_class"] == pytest.approx(sum(means) / len(means))
    assert (found["accuracy.chance"], found["accuracy.classes"]) == (0.25, 4)
    assert found["accuracy.test"] == len(right)


def test_without_a_split_the_test_pictures_are_classified(run: str, trained: dict[str, str]) -> None:
    assert scores(trained["supervised"], run)["accuracy.test"] == open_dataset(run, ("image",), "test").count


def test_pictures_of_classes_that_it_does_not_know_are_left_out(trained: dict[str, str], tmp_path: Path) -> None:
    rows = [{**row, "split": "test"} for row in shapes(12, 16)]
    for row in rows[:5]:
        row["label"] = "spiral"
    rows.append(sample(b"no picture", (16, 16), label="circle", split="test"))
    run = str(write_shards(tmp_path / "run", rows, shards=1, extra={"split": Value("string")}))
    found = scores(trained["supervised"], run)
    assert found["accuracy.test"] == 7
    assert len(found.settings["dead"]) == 1
    assert found.notes == ("5 pictures have no label, or one that the training does not know",)


def test_what_has_no_classifier_is_a_sentence(run: str, trained: dict[str, str]) -> None:
    with pytest.raises(UserError, match="has no classifier; give a training of supervised or predictor_tuning"):
        scores(trained["iwm"], run)
    with pytest.raises(UserError, match="dtype: 'float8' is not right"):
        scores(trained["supervised"], run, dtype="float8")
