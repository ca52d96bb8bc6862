"""Facts about the report of a training: it stands alone, has the numbers, escapes names, and is made in no time."""

from __future__ import annotations

import csv
import html.parser
import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_shards import sample, shapes, write_shards

from granary.curation.report.plot import plot
from granary.curation.store import storage
from granary.pipelines import command
from granary.training import methods
from granary.training.models.build import build
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.report import SHEET, report_page, training_facts
from granary.training.run.loop import Stopped, train
from granary.training.run.views import SIDE, by_picture, keeping_views, unnormalised

MODEL = {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4}
HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta", "img", "link", "br", "hr", "input", "path", "circle", "rect"}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "toy", "toy_method:Toy")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(40, 16), group=8))


def recipe_of(run: str, out: Path | str, **changes: Any) -> TrainRecipe:
    settings: dict[str, Any] = {"method": "toy", "model": MODEL, "steps": 6, "batch": 8, "workers": 0}
    settings |= {"logs": {"every": 1, "tensorboard": False}, "device": {"accelerator": "cpu", "threads": 1}}
    return TrainRecipe.model_validate({**settings, "data": run, "out": str(out), **changes})


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: tags that are closed in order, addresses, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(out: str) -> tuple[Page, str]:
    text = storage.read_bytes(storage.join(out, "report/index.html")).decode()
    return Page(text), text


def test_a_report_stands_alone_and_has_the_numbers(run: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    alarm = {"every": 2, "std": 5.0}
    probe = {"every": 3, "train": 20, "test": 10}
    facts = train(
        recipe_of(run, out, alarm=alarm, probe=probe, split="train", validation={"split": "test", "every": 3})
    )
    page, text = page_of(str(out))
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in page.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert {"script", "iframe", "link", "object"}.isdisjoint(page.tags)
    shown = " ".join(page.text)
    for row in csv.DictReader(io.StringIO((out / "metrics.csv").read_text())):
        assert row["loss"] in shown
    for name in ("knn", "linear", "relative_std", "effective_rank", "lr", "validation"):
        assert name in shown.lower()
    assert "features hardly differ" in shown
    assert "step 2" in shown
    assert f"{facts['pictures_per_second']:,}" in shown
    assert "toy" in shown
    assert facts["versions"]["torch"] in shown


def test_a_report_on_a_url_without_a_probe(run: str) -> None:
    out = "memory://report/training"
    train(recipe_of(run, out, steps=2))
    page, _ = page_of(out)
    assert "Probe" not in " ".join(page.text)
    assert storage.exists(f"{out}/{SHEET}")


def test_a_training_that_was_stopped_has_a_report(run: str, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(recipe_of(run, tmp_path / "out", options={"break_at": 3}, steps=50))
    page, _ = page_of(str(tmp_path / "out"))
    assert "Stopped before its end" in " ".join(page.text)


def test_a_training_without_a_step(tmp_path: Path) -> None:
    facts = {"kind": "train", "name": "none", "method": "toy", "step": 0, "steps": 9, "finished": False, "metrics": {}}
    facts |= {"probe": {}, "alarms": [], "dead": 0, "pictures_per_second": 0.0, "versions": {}}
    assert "of 9" in " ".join(Page(report_page(str(tmp_path), facts)).text)


def test_hostile_names_are_text(run: str, tmp_path: Path) -> None:
    bad = sample(b"no picture", (16, 16), label="circle") | {"source": {"name": "a", "uri": HOSTILE}}
    data = str(write_shards(tmp_path / HOSTILE.replace("/", "_"), [*shapes(40, 16), bad], group=8))
    out = tmp_path / "out"
    assert train(recipe_of(data, out))["dead"] == 1
    facts = training_facts(str(out))
    assert facts is not None
    (out / "metrics.csv").write_text(f'step,loss,"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n1,2,3\n2,,x\n')
    page = Page(report_page(str(out), facts | {"alarms": [HOSTILE], "name": HOSTILE, "versions": {HOSTILE: HOSTILE}}))
    assert "script" not in page.tags
    assert " ".join(page.text).count("<script>") >= 4


def test_ten_thousand_rows_make_a_small_page_at_once(tmp_path: Path) -> None:
    names = [f"metric {number}" for number in range(12)]
    rows = [",".join(["step", *names]), *(f"{step}" + f",{step % 97 / 7}" * 12 for step in range(10_000))]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    facts: dict[str, Any] = {"kind": "train", "name": "long", "method": "toy", "step": 9, "steps": 9, "finished": True}
    facts |= {"metrics": {}, "probe": {}, "alarms": [], "dead": 0, "pictures_per_second": 1.0, "versions": {}}
    start = time.process_time()
    page = report_page(str(tmp_path), facts)
    assert time.process_time() - start < 2
    assert len(page) < 300_000


def test_a_command_writes_the_report_again(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    train(recipe_of(run, out, steps=2))
    before = (out / "report" / "index.html").read_bytes()
    (out / "report" / "index.html").unlink()
    assert command.main(["report", str(out)]) == 0
    assert capsys.readouterr().out.strip() == f"{out}/report/index.html"
    assert (out / "report" / "index.html").read_bytes() == before


# -- drawings --------------------------------------------------------------------------------------------------------


def test_a_thinned_curve_keeps_its_spikes_and_gaps() -> None:
    points = [(float(x), 1.0) for x in range(10_000)]
    points[4321] = (4321.0, 50.0)
    points[7000:7100] = [(float(x), float("nan")) for x in range(7000, 7100)]
    drawing = plot(points)
    assert drawing is not None
    assert (drawing.lowest, drawing.highest, drawing.last) == (1.0, 50.0, 1.0)
    assert drawing.line.count("M") == 2
    assert " 10.0" in drawing.line  # the spike is at the top
    assert drawing.line.count("L") < 400


def test_curves_of_one_number_and_of_none() -> None:
    one = plot([(3.0, 0.5)])
    assert one is not None
    assert one.line.startswith("M")
    assert plot([]) is None
    assert plot([(0.0, float("inf"))]) is None


# -- views -----------------------------------------------------------------------------------------------------------


def test_views_are_those_that_the_model_was_given(tmp_path: Path) -> None:
    config = ViTConfig(**MODEL, mlp_ratio=2.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))  # type: ignore[arg-type]
    model = torch.nn.ModuleDict({"encoder": build(config)})
    pictures = torch.rand(10, 3, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    given = (pictures - mean) / std
    url = str(tmp_path / "views.jpg")
    with keeping_views(model, {"id": list("abcde")}, 1, url):
        model["encoder"](given)
    torch.testing.assert_close(unnormalised(by_picture(given, 5), config.mean, config.std)[1, 1], pictures[6])
    sheet = Image.open(url)
    assert sheet.size == (2 * (SIDE + 4) - 4, 4 * (SIDE + 4) - 4)  # two views of four pictures
    model["encoder"](given)  # is no longer watched


class Twins(torch.nn.Module):
    """Two encoders that are given each view alone."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.encoder, self.target = build(config), build(config)

    def forward(self, views: torch.Tensor) -> None:
        for view in views:
            self.encoder(view)
            self.target(view)


def test_views_that_are_given_one_by_one_are_on_the_sheet_once_each(tmp_path: Path) -> None:
    model, url = Twins(ViTConfig(**MODEL)), str(tmp_path / "views.jpg")  # type: ignore[arg-type]
    with keeping_views(model, {"id": list("abcdef")}, 2, url):
        model(torch.rand(2, 3, 3, 16, 16))
        model(torch.rand(2, 3, 3, 16, 16))  # the second part of the batch
    assert Image.open(url).size == (2 * (SIDE + 4) - 4, 3 * (SIDE + 4) - 4)  # two views of three pictures


def test_without_a_backbone_the_views_are_as_the_workers_cut_them(tmp_path: Path) -> None:
    url = str(tmp_path / "views.jpg")
    with keeping_views(
        torch.nn.Linear(1, 1), {"id": ["a"], "image": torch.zeros(1, 3, 8, 8, 3, dtype=torch.uint8)}, 1, url
    ):
        pass
    assert Image.open(url).size == (3 * (SIDE + 4) - 4, SIDE)
    with keeping_views(torch.nn.Linear(1, 1), {"id": ["a"]}, 1, str(tmp_path / "none.jpg")):
        pass
    assert not (tmp_path / "none.jpg").exists()
