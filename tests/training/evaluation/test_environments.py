"""Environments of a dataset: every picture once, by its id, against the labels it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Value, load_dataset
from tiny_shards import shapes, write_shards
from tiny_trainings import SETTINGS, tiny_training

from granary.curation.errors import UserError
from granary.pipelines.command import run as command
from granary.training.data.augment import normalised, to_unit
from granary.training.data.crops import Crop
from granary.training.data.passes import in_order
from granary.training.data.shards import open_dataset
from granary.training.evaluation import environments
from granary.training.evaluation.environments import Discovery, chosen, degeneracy, discover, write_environments
from granary.training.methods.xrm import XRM
from granary.training.models.training import load_training


def found(flip_rate: float, degenerate: str = "") -> Discovery:
    return Discovery("m", flip_rate, {}, {}, degenerate)


def test_the_largest_flip_rate_decides_but_no_degenerate_one() -> None:
    assert chosen([found(0.1), found(0.3), found(0.9, "all one class")]).flip_rate == 0.3
    with pytest.raises(UserError, match="all one class, so that there are no groups"):
        chosen([found(0.9, "all one class")])


def test_a_class_in_one_environment_is_degenerate_in_every_split_but_test() -> None:
    both = {("train", label, number): 3 for label in ("a", "b") for number in ("0", "1")}
    assert degeneracy(both) == ""
    assert degeneracy({**both, ("validation", "a", "0"): 4}).startswith("no picture of class a in split validation")
    assert degeneracy({**both, ("test", "a", "0"): 4}) == ""
    assert "environment 0" in degeneracy({**both, ("train", "b", "0"): 0})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row for row in shapes(60, 16) if row["label"] in ("circle", "cross")]
    splits = [{**row, "split": "test" if n % 5 == 0 else "train"} for n, row in enumerate(rows)]
    splits[3] |= {"label": None}
    splits[4]["image"] = {"bytes": b"no picture", "path": "broken.jpg"}
    folder: Path = tmp_path_factory.mktemp("run")
    return write_shards(folder, splits, group=8, extra={"split": Value("string")})


@pytest.fixture(scope="module")
def trained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("xrm")
    return tiny_training("xrm", str(run), out, split="train", steps=3, optimiser={"lr": 0.01})


def columns(folder: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((folder / "dataset" / "data").iterdir())]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def test_environments_are_the_mistakes_of_either_network_by_id(
    run: Path, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_training(trained)
    assert isinstance(model, XRM)
    torch.manual_seed(0)
    for head in model.heads:
        torch.nn.init.normal_(head.weight)
    model.current.copy_(model.original)
    monkeypatch.setattr(environments, "load_training", lambda path, device: model)
    monkeypatch.setattr(environments, "degeneracy", lambda counts: "")
    lines: list[str] = []
    best = write_environments([trained], str(run), str(tmp_path / "out"), lines.append)
    assert any("no shortcut that is easier than the class" in line for line in lines)
    expected = {}
    dataset = open_dataset(str(run))
    for part in in_order(dataset, Crop(1, 16, centre=True), ["image", "label"], model.classes):
        pixels = normalised(to_unit(part["image"][:, 0]), model.config.mean, model.config.std)
        with torch.no_grad():
            answers = [head(model.vectors(pixels)[n]).argmax(dim=1) for n, head in enumerate(model.heads)]
        wrong = (answers[0] != part["label"]) | (answers[1] != part["label"])
        rows = zip(part["id"], wrong.tolist(), part["label"].tolist(), strict=True)
        expected |= {name: str(int(mistake)) for name, mistake, label in rows if label >= 0}
    assert best.environments == expected
    before, after = columns(run), columns(tmp_path / "out")
    assert len(expected) == len(before) - 2
    assert [{**row, "environment": expected.get(row["id"])} for row in before] == after
    assert json.loads((tmp_path / "out" / "environments.json").read_text())["flip_rate"] == best.flip_rate
    shards = sorted(map(str, (tmp_path / "out").rglob("*.parquet")))
    typed = load_dataset("parquet", data_files=shards, split="train", cache_dir=str(tmp_path / "cache"))
    assert typed.features["environment"] == Value("string")
    tiny_training(
        "supervised",
        str(tmp_path / "out"),
        tmp_path / "dro",
        {"groups": "environment", "robust": "groupdro"},
        split="train",
    )


def test_a_constant_answer_is_degenerate_and_nothing_is_written(run: Path, trained: str, tmp_path: Path) -> None:
    assert discover(trained, open_dataset(str(run))).flip_rate >= 0
    out = tmp_path / "zero"
    tiny_training("xrm", str(run), out, split="train", steps=1, optimiser={"lr": 1e-30, "final_lr": 0})
    with pytest.raises(UserError, match="model: no picture of class"):
        command(["environments", "--model", str(out), "--data", str(run), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_mistakes_are_sentences(run: Path, trained: str, tmp_path: Path) -> None:
    other = tiny_training("supervised", str(run), tmp_path / "other", model=SETTINGS["model"])
    with pytest.raises(UserError, match="it is no training of method xrm"):
        write_environments([other], str(run), str(tmp_path / "out"))
    with pytest.raises(UserError, match="there is something in it"):
        write_environments([trained], str(run), str(run))
