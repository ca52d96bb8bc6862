"""`granary compare`: the numbers against CKA of vectors computed apart, and the page that shows them."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Value
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.pipelines.command import main
from granary.training.data.shards import open_dataset
from granary.training.evaluation import comparison
from granary.training.evaluation.comparison import activations, compare, matches, summaries
from granary.training.evaluation.comparison_recipe import CompareRecipe
from granary.training.evaluation.features import load
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.similarity import cka_map, minibatch_cka
from granary.training.evaluation.site_features import columns_of, joined_features
from granary.training.evaluation.sites import Site
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig
from granary.training.report.compare import compare_page

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "drop_path": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run, two ViTs of other depths, and a ResNet."""
    root = tmp_path_factory.mktemp("compare")
    rows = [{**row, "split": "test" if n % 2 == 0 else "train"} for n, row in enumerate(shapes(80, 16))]
    write_shards(root / "run", rows, extra={"split": Value("string")})
    write_shards(root / "unlabelled", [{**row, "label": None} for row in rows], extra={"split": Value("string")})
    torch.manual_seed(0)
    for name, changes in (("one", {}), ("deep", {"depth": 4, "img_size": 24})):
        vit = VisionTransformer(ViTConfig(**{**TINY, **changes}))
        for parameter in vit.parameters():  # so that class tokens differ by more than rounding
            torch.nn.init.normal_(parameter, std=0.3) if parameter.numel() else None
        vit.save(str(root / name))
    ResNet(ResNetConfig(img_size=16, widths=(8, 16), depths=(1, 1), stem="half")).save(str(root / "resnet"))
    return root


def recipe(folder: Path, *models: str, **changes: Any) -> CompareRecipe:
    given = {"data": str(folder / "run"), "out": str(folder / "page.html"), "cka_batch": 8, "device": "cpu"}
    return CompareRecipe.model_validate({**given, "models": list(models), **changes})


@pytest.fixture(scope="module")
def tree(folder: Path) -> Any:
    models = [f"{name}={folder / name}" for name in ("one", "deep", "resnet")]
    return compare(recipe(folder, *models), lambda _: None)


def pair(tree: Any, one: str, other: str, reduction: str) -> Any:
    return next(p for p in tree["pairs"] if (p["one"], p["other"], p["reduction"]) == (one, other, reduction))


def test_every_pair_and_reduction_that_both_have_is_compared(tree: Any) -> None:
    compared = [(p["one"], p["other"], p["reduction"]) for p in tree["pairs"]]
    both = {("one", "one"), ("one", "deep"), ("deep", "deep")}
    assert {c[:2] for c in compared if c[2] == "cls"} == both
    assert {c[:2] for c in compared if c[2] == "mean"} == both | {
        ("one", "resnet"),
        ("deep", "resnet"),
        ("resnet",) * 2,
    }
    assert len(compared) == 9


@pytest.mark.parametrize("name", ["one", "deep", "resnet"])
def test_a_model_is_one_with_itself(tree: Any, name: str) -> None:
    values = pair(tree, name, name, "mean")["values"]
    for i, j in itertools.product(range(len(values)), repeat=2):
        assert values[i][j] == pytest.approx(values[j][i], abs=1e-9)
        assert (values[i][j] == pytest.approx(1, abs=1e-9)) or i != j
    assert pair(tree, name, name, "mean")["mean"] == pytest.approx(1)


def test_a_map_has_the_cka_of_the_vectors_in_an_order_that_is_not_that_of_the_data(tree: Any, folder: Path) -> None:
    vectors, ids = {}, {}
    for name in ("one", "deep"):
        measured = Measured(str(folder / name), str(folder / "run"), device="cpu")
        subject, dataset = load(measured), open_dataset(str(folder / "run"), split="test")
        columns = [column for column in columns_of(subject) if str(column) in ("1.block.cls", "2.mlp.cls")]
        found = joined_features(subject, dataset, measured, columns, [])
        vectors[name], ids[name] = found.last, found.ids
        seen = activations(subject, dataset, measured, 8)
    assert ids["one"] == ids["deep"]
    assert sorted(seen.ids) == sorted(ids["one"])
    assert list(seen.ids) != ids["one"]
    order = torch.tensor([ids["one"].index(name) for name in seen.ids])
    one, deep = (vectors[name][order] for name in ("one", "deep"))
    found = pair(tree, "one", "deep", "cls")
    row, column = found["rows"].index("1.block"), found["columns"].index("2.mlp")
    assert found["values"][row][column] == pytest.approx(minibatch_cka(one[:, :16], deep[:, 16:], 8), abs=1e-5)


def test_two_extractions_of_a_model_with_stochastic_depth_are_equal(folder: Path) -> None:
    measured = Measured(str(folder / "one"), str(folder / "run"), device="cpu", batch=5)
    first, second = (activations(load(measured), open_dataset(str(folder / "run")), measured, 16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.kernels, second.kernels, strict=True))
    found = cka_map(first.kernels, second.kernels).diagonal()
    assert ((found - 1).abs() < 1e-12).logical_or(found.isnan()).all()


def test_a_site_that_says_nothing_has_no_number(tree: Any, folder: Path) -> None:
    found = pair(tree, "one", "one", "cls")
    assert found["values"][0] == [None] * len(found["columns"])  # the class token before the blocks
    assert found["depth"][0] == (0, None)
    assert "NaN" not in (folder / "page.json").read_text()


def test_curves_and_attention_stand_beside_the_maps(tree: Any) -> None:
    curve = tree["models"]["one"]["layers"]
    assert [row[0] for row in curve["cls"]] == [0, 1, 2, 3]
    assert all(0 <= value <= 1 for row in curve["mean"] for value in row[1:])
    assert set(tree["models"]["resnet"]["layers"]) == {"mean"}
    assert [layer for layer, _ in tree["models"]["deep"]["attention"]["distance"]] == [1, 2, 3, 4]
    assert tree["models"]["resnet"]["attention"] == {}
    assert tree["settings"]["pictures"] == 40
    assert re.fullmatch("[0-9a-f]{64}", tree["settings"]["order_sha256"])


def test_equal_calls_write_equal_files_and_another_seed_another_order(folder: Path, tree: Any) -> None:
    page, numbers = folder / "again.html", folder / "again.json"
    for _ in range(2):
        compare(recipe(folder, f"one={folder / 'one'}", out=str(page), probes=False), lambda _: None)
        texts = page.read_text(), numbers.read_text()
    compare(recipe(folder, f"one={folder / 'one'}", out=str(page), probes=False), lambda _: None)
    assert (page.read_text(), numbers.read_text()) == texts
    first = json.loads(numbers.read_text())["settings"]["order_sha256"]
    assert first == tree["settings"]["order_sha256"]
    other = compare(recipe(folder, str(folder / "one"), out=str(page), probes=False, seed=1), lambda _: None)
    assert other["settings"]["order_sha256"] != first


def test_data_without_labels_have_no_curves(folder: Path) -> None:
    made: Any = compare(recipe(folder, f"a={folder / 'resnet'}", data=str(folder / "unlabelled")), lambda _: None)
    assert made["models"]["a"]["layers"] == {}
    assert 'id="layers"' not in (folder / "page.html").read_text()


class Page(HTMLParser):
    """Tags that stay open, and everything a browser would fetch or run."""

    VOID = ("meta", "br", "img", "path", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.outside += [tag] if tag in ("script", "img", "link", "iframe") else []
        self.outside += [f"{k}={v}" for k, v in attrs if k in ("src", "href") and not (v or "").startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone_in_light_and_dark_and_escapes_names(folder: Path) -> None:
    made = folder / "names.html"
    models = [f"A b-1={folder / 'one'}", f"{folder / 'deep'}"]
    numbers: Any = compare(recipe(folder, *models, out=str(made)), lambda _: None)
    html = made.read_text()
    page = Page(html)
    assert page.open == []
    assert page.outside == []
    assert "prefers-color-scheme: dark" in html
    assert html.count('class="map"') == len(numbers["pairs"]) == 6
    for title in ("CKA by layer, class token", "Linear probe by layer, mean patch", "kNN by layer", "Mean attention"):
        assert title in html
    bad = json.loads(json.dumps(numbers).replace("A b-1", "<script>alert(1)</script>"))
    assert "<script>" not in compare_page(bad)
    assert "&lt;script&gt;" in compare_page(bad)


def test_layers_are_matched_by_their_relative_depth_and_kind() -> None:
    vit = [Site(0, "embed"), *(Site(n, kind) for n in range(1, 5) for kind in ("mlp", "block")), Site(5, "norm")]
    small = [Site(0, "embed"), *(Site(n, kind) for n in range(1, 3) for kind in ("mlp", "block")), Site(3, "norm")]
    resnet = [Site(0, "stem"), Site(1, "stage"), Site(2, "stage")]

    def named(rows: list[Site], columns: list[Site]) -> list[str]:
        return [f"{rows[i]} {columns[j]}" for i, j in matches(rows, columns)]

    assert matches(vit, vit) == [(n, n) for n in range(len(vit))]
    assert named(small, vit)[:3] == ["0.embed 0.embed", "1.mlp 2.mlp", "1.block 2.block"]
    assert named(small, vit)[-1] == "3.norm 5.norm"
    assert named(resnet, vit) == ["0.stem 0.embed", "1.stage 2.block", "2.stage 4.block"]
    assert named([Site(0, "pixels")], vit) == ["0.pixels 0.embed"]


def test_a_map_is_summed_up_by_depth_and_by_kind() -> None:
    sites = [Site(0, "embed"), Site(1, "mlp"), Site(1, "block"), Site(2, "mlp"), Site(2, "block"), Site(3, "norm")]
    values = torch.full((6, 6), 0.9, dtype=torch.float64)
    values.diagonal().copy_(torch.tensor([math.nan, 0.1, 0.2, 0.3, 0.4, 0.5]))
    made = summaries(values, sites, sites)
    assert made["depth"] == [(0, None), (1, pytest.approx(0.2)), (2, pytest.approx(0.4))]
    assert made["kinds"] == {
        "embed": None,
        "mlp": pytest.approx(0.2),
        "block": pytest.approx(0.3),
        "norm": pytest.approx(0.5),
    }
    assert made["mean"] == pytest.approx(0.3)


def test_names_are_given_before_the_equals_sign(folder: Path) -> None:
    texts = ["random:tiny?img_size=32", "b=random:tiny?img_size=32", str(folder / "one"), "two words=pixels"]
    named = recipe(folder, *texts).named()
    assert named == {texts[0]: texts[0], "b": texts[0], texts[2]: texts[2], "two words": "pixels"}
    with pytest.raises(UserError, match="two have the name 'a'; write NAME=pixels"):
        recipe(folder, "a=pixels", "a=pixels").named()


def test_the_command_takes_models_before_options_and_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(folder / "command.html")
    words = ["compare", f"a={folder / 'one'}", "c=pixels", "--data", str(folder / "run"), "--device", "cpu"]
    assert main([*words, "--out", out, "--probes", "false", "--samples", "8", "--cka_batch", "4"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| a x a +\| mean patch +\| +1\.000 \|", said)
    assert re.search(r"\| a x c +\| mean patch +\| +- \|", said)  # pixels have no layers
    assert json.loads(Path(out.replace(".html", ".json")).read_text())["settings"]["pictures"] == 8
    assert main([*words, "--out", "page.htm"]) == 2
    assert "give a file that ends with .html" in capsys.readouterr().err
    assert main([*words, "--out", out, "--samples", "3"]) == 2
    assert main(["compare", "--data", str(folder / "run"), "--out", out]) == 2
    assert "models" in capsys.readouterr().err


def test_other_pictures_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = comparison.activations, []

    def fewer(*given: Any) -> Any:
        calls.append(1)
        seen = real(*given)
        return seen if len(calls) == 1 else type(seen)(seen.columns, seen.kernels, seen.ids[::-1])

    monkeypatch.setattr(comparison, "activations", fewer)
    with pytest.raises(UserError, match="was given other pictures than a"):
        compare(recipe(folder, f"a={folder / 'one'}", f"b={folder / 'one'}", probes=False), lambda _: None)
