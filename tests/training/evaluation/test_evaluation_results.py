"""The table of scores across models: text, CSV, plot, and what must not be compared."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from granary.curation.errors import UserError
from granary.training.evaluation.results import results


def scores(folder: Path, name: str, knn: float | None, linear: float | None = None, **used: Any) -> str:
    tree: dict[str, Any] = {"knn": {"accuracy": knn, "accuracy_k10": 0.25, "accuracy.chance": 0.1}}
    tree |= {"linear": {"accuracy": linear, "accuracy.chance": 0.1}} if linear is not None else {}
    settings = {"model": name, "test": {"data": "RUN"}, "k": [20, 10], "chosen": {"layers": len(name)}, **used}
    tree["settings"] = {"model": name, "used": {"knn": settings, "linear": settings}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return str(path)


def test_table_of_three_models(tmp_path: Path) -> None:
    paths = [scores(tmp_path, "random", 0.31, 0.4), scores(tmp_path, "ijepa", 0.52, 0.61)]
    lines = results([*paths, f"DINO v2={scores(tmp_path, 'dino', None)}"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "knn accuracy", "linear accuracy"]
    assert cells[2:4] == [["random", "0.31", "0.4"], ["ijepa", "0.52", "0.61"]]
    assert cells[4:] == [["DINO v2", "-", "-"], ["chance", "0.1", "0.1"]]
    assert len({len(line) for line in lines}) == 1


def test_metrics_are_chosen_by_name(tmp_path: Path) -> None:
    path = scores(tmp_path, "a", 0.5, 0.6)
    assert "knn accuracy_k10" in results([path], ["knn/accuracy*"])
    assert "knn" not in results([path], ["linear"])
    with pytest.raises(UserError, match=r"'knn/acuracy' is not right.* knn/accuracy"):
        results([path], ["knn/acuracy"])


def test_csv_has_all_digits_of_all_metrics(tmp_path: Path) -> None:
    paths = [scores(tmp_path, "a", 0.123456789), scores(tmp_path, "b", 0.5, 0.6)]
    results(paths, csv_path=str(tmp_path / "t.csv"))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert rows[0]["knn/accuracy"] == "0.123456789"
    assert rows[0]["linear/accuracy"] == ""
    assert (rows[1]["model"], rows[1]["linear/accuracy.chance"]) == ("b", "0.1")


def test_plots_are_pictures_and_the_same_every_time(tmp_path: Path) -> None:
    paths = [scores(tmp_path, "a", 0.5, 0.7), scores(tmp_path, "b", 0.25, None)]
    for kind in ("svg", "png"):
        drawn = []
        for number in range(2):
            results(paths, plot=str(tmp_path / f"{number}.{kind}"))
            drawn.append((tmp_path / f"{number}.{kind}").read_bytes())
        assert drawn[0] == drawn[1]
    text = (tmp_path / "0.svg").read_text()
    assert all(word in text for word in ("knn accuracy", "linear accuracy", "0.7", ">a<", ">b<", "chance 0.1"))
    with Image.open(tmp_path / "0.png") as image:
        assert min(image.size) > 100
    with pytest.raises(UserError, match=r"its ending must be \.svg, \.png or \.pdf"):
        results(paths, plot=str(tmp_path / "a.bmp"))


def test_models_measured_differently_are_pointed_out(tmp_path: Path) -> None:
    alike = [scores(tmp_path, "a", 0.5), scores(tmp_path, "bb", 0.6)]
    assert "do not compare" not in results(alike)  # what the grid chose may differ
    other = scores(tmp_path, "c", 0.7, test={"data": "OTHER"}, k=[10])
    assert "knn: the models were measured with different k, test; do not compare them" in results([*alike, other])


def test_folders_have_scores_or_an_online_probe(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    scores(tmp_path / "one", "scores", 0.5)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "run.json").write_text(json.dumps({"kind": "train", "probe": {"knn": 0.3, "linear": 0.4}}))
    table = results([str(tmp_path / "one"), str(tmp_path / "two")], ["knn", "online probe/*"])
    assert "| one " in table
    (tmp_path / "one").rename(tmp_path / "lr=0.1")
    assert "| lr=0.1 " in results([str(tmp_path / "lr=0.1")])
    assert "| slow " in results([f"slow={tmp_path / 'lr=0.1'}"])
    assert "online probe linear" in table
    (tmp_path / "three").mkdir()
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    for path, message in [
        (tmp_path / "three", "nor a folder with scores.json"),
        (tmp_path / "bad.json", "cannot be read as JSON"),
        (tmp_path / "list.json", "holds no scores"),
        (tmp_path / "missing.json", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            results([str(path)])
    with pytest.raises(UserError, match="nothing to show"):
        results([])


@pytest.mark.parametrize("kind", ["curate", "render", "sample", "pack"])
def test_a_run_that_has_no_scores_is_refused_by_its_kind(kind: str, tmp_path: Path) -> None:
    facts = {"kind": kind, "flow": {"kept": 3}, "thresholds": {"dedup": 0.6}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=rf"run\.json is of a run of granary {kind}, which has no scores; give"):
        results([str(tmp_path)])
