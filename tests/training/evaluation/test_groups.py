"""Accuracy by group: a training's own classifier and probes, against loops over the test pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Value
from measuring import measure
from scipy.stats import binomtest
from tiny_shards import shapes, write_shards
from tiny_trainings import tiny_training

from granary.curation.errors import UserError
from granary.pipelines.command import main
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols import groups
from granary.training.evaluation.protocols.classifier import classified
from granary.training.evaluation.protocols.groups import by_group, groups_of

EXTRA = {"split": Value("string"), "environment": Value("string"), "light": Value("int32")}
PAIR = ["label", "environment"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = []
    for number, row in enumerate(shapes(120, 16)):
        columns = {"split": "test" if number % 3 == 0 else "train", "light": number % 2}
        rows.append({**row, **columns, "environment": None if number == 6 else "01"[number % 5 == 0]})
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, extra=EXTRA))


@pytest.fixture(scope="module")
def model(run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_training("supervised", run, tmp_path_factory.mktemp("model"), steps=20, split="train")


def rows_of(run: str) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(Path(run, "dataset", "data").iterdir())]
    return {row["id"]: row for table in tables for row in table.to_pylist() if row["split"] == "test"}


def slow(run: str, said: dict[str, str]) -> dict[tuple[str, str], list[bool]]:
    """Return by label and environment whether each test picture was classified rightly."""
    right: dict[tuple[str, str], list[bool]] = {}
    for name, row in rows_of(run).items():
        if row["environment"] is not None:
            right.setdefault((row["label"], row["environment"]), []).append(said[name] == row["label"])
    return right


def test_the_groups_of_a_training_are_those_of_a_loop(run: str, model: str) -> None:
    found = measure(groups, model, run, device="cpu", by=PAIR)
    answers = classified(Measured(model, run, device="cpu"), 0.1)
    numbers = answers.logits.cls[:, 0].argmax(dim=1).tolist()
    said = {name: answers.classes[number] for name, number in zip(answers.logits.ids, numbers, strict=True)}
    right = slow(run, said)
    assert found["accuracy.groups"] == len(right) == 8
    for (label, environment), values in right.items():
        name = f"label={label},environment={environment}"
        assert found[name] == pytest.approx(np.mean(values))
        assert found[f"{name}.pictures"] == len(values)
        interval = binomtest(sum(values), len(values)).proportion_ci(method="wilson")
        assert (found[f"{name}.low"], found[f"{name}.high"]) == pytest.approx(tuple(interval), abs=1e-6)
    shares = [float(np.mean(values)) for values in right.values()]
    assert found["worst_group"] == min(shares)
    assert found["accuracy.mean_of_groups"] == pytest.approx(np.mean(shares))
    assert found["accuracy"] == pytest.approx(np.mean([value for values in right.values() for value in values]))
    worst = found.settings["worst_group"]
    assert {key: found[f"worst_group.{key}"] for key in ("low", "high", "pictures")} == {
        key: found[f"{worst}.{key}"] for key in ("low", "high", "pictures")
    }
    assert (found["accuracy.test"], found["accuracy.chance"], found["accuracy.classes"]) == (39, 0.25, 4)
    assert found.notes == ("1 pictures have no value in label or environment and are in no group",)
    json.dumps(found.settings)


def test_a_probe_has_groups_too_and_numbers_are_values(run: str) -> None:
    probed = measure(groups, "pixels", run, device="cpu", by=["light"], classifier="ridge")
    assert {name for name in probed if name.startswith("light=") and "." not in name} == {"light=0", "light=1"}
    assert probed["light=0.pictures"] == probed["light=1.pictures"] == 20
    assert probed["accuracy"] == pytest.approx((probed["light=0"] + probed["light=1"]) / 2)
    assert probed["accuracy.train"] == 80
    nearest = measure(groups, "pixels", run, device="cpu", by="label,light", classifier="knn")
    assert nearest["accuracy.groups"] == 4
    assert nearest["worst_group"] <= nearest["accuracy.mean_of_groups"]


def test_one_model_of_the_shortcut_alone_fails_in_the_groups_that_contradict_it() -> None:
    """A classifier that answers with the environment: 0 and 1 by hand, and of equal groups the larger is the worst."""
    labels, places = np.array([0, 0, 0, 1, 1, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 0, 0])
    names = groups_of({"label": labels.tolist(), "place": [str(place) for place in places]})
    scores, worst = by_group(places, labels, [name for name in names if name])
    assert worst == "label=1,place=0"
    assert scores["worst_group"] == 0
    assert scores["worst_group.pictures"] == 2
    assert scores["accuracy"] == 5 / 8
    assert scores["accuracy.mean_of_groups"] == 0.5
    assert scores["label=0,place=0"] == scores["label=1,place=1"] == 1


def test_another_run_is_measured_and_a_split(run: str, model: str) -> None:
    one = measure(groups, model, run, device="cpu", by=PAIR, split="train & light=1")
    other = measure(groups, model, "nowhere", test_data=run, device="cpu", by=PAIR, split="train & light=1")
    assert dict(one) == dict(other)
    assert one["accuracy.test"] == 40


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"options.by: missing; give the columns that make a group, for example --options.by label,environ"),
        ({"by": "label,weather"}, "options.by: .* has no column 'weather'"),
        ({"by": "environment", "split": "light=9"}, "has no rows with light '9'"),
    ],
)
def test_what_is_wrong_is_a_sentence(given: dict[str, Any], message: str, run: str, model: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(groups, model, run, device="cpu", **given)


def test_without_a_classifier_a_probe_is_named(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    training = str(Path(run).parent / "mae")
    tiny_training("mae", run, Path(training), steps=1)
    words = ["evaluate", "groups", "--model", training, "--data", run, "--device", "cpu"]
    assert main([*words, "--options.by", "label,environment"]) == 2
    assert "has no classifier; give a training of supervised or predictor_tuning, or ask for ridge, by --options" in (
        capsys.readouterr().err
    )
    assert main([*words, "--options.by", "label,environment", "--options.classifier", "ridge"]) == 0
    assert "worst_group" in capsys.readouterr().out


def test_columns_without_values_make_no_groups(tmp_path: Path, model: str) -> None:
    rows = [{**row, "split": "test", "environment": None} for row in shapes(8, 16)]
    empty = str(write_shards(tmp_path / "run", rows, extra=EXTRA))
    with pytest.raises(UserError, match=r"options.by: no picture has a value in label and environment"):
        measure(groups, model, empty, device="cpu", by=PAIR)
