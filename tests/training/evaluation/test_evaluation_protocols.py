"""kNN, linear, few-shot, features and factors on small shards: what they measure, leave out and say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import places
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Value
from measuring import measure
from PIL import Image
from tiny_shards import encoded, sample, shapes, write_shards

from granary.curation.errors import UserError
from granary.pipelines.command import main
from granary.training.data import passes
from granary.training.data.crops import Crop
from granary.training.data.passes import in_order
from granary.training.data.shards import open_dataset
from granary.training.evaluation import features
from granary.training.evaluation.collapse import rank_me
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.evaluation.features import encode, extract, features_of, shared_features
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols import by_factor, fewshot, knn, linear, statistics
from granary.training.evaluation.protocols.fewshot import classify, drawn
from granary.training.evaluation.protocols.statistics import alignment, uniformity
from granary.training.evaluation.subjects import load_subject
from granary.training.evaluation.tasks import train_and_test
from granary.training.models.checkpoint import step_folder, write_checkpoint
from granary.training.models.vit import VisionTransformer, ViTConfig
from granary.training.models.weights import to_transformers

TINY = ViTConfig(img_size=16, patch_size=4, width=16, depth=3, heads=2, layer_scale=0.0)
CONFIGS = places.CONFIGS / "train"
SPLIT = {"split": Value("string")}


def colours(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return rows whose label is their colour, red or blue, which raw pixels tell apart at once."""
    rng = np.random.default_rng(first)
    rows = []
    for number in range(first, first + count):
        name, ground = (("red", (200, 40, 40)), ("blue", (40, 40, 200)))[number % 2]
        noise = rng.integers(-40, 40, (24, 20, 3))
        image = Image.fromarray(np.clip(np.array(ground) + noise, 0, 255).astype(np.uint8))
        rows.append(sample(encoded(image, "PNG"), image.size, label=name))
    return rows


def split(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "split": "test" if number % 4 < 2 else "train"} for number, row in enumerate(rows)]


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(write_shards(tmp_path / "run", split(colours(80)), extra=SPLIT))


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(5)
    VisionTransformer(TINY).save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_features_are_those_of_the_model_in_order(run: str, model: str) -> None:
    dataset = open_dataset(run)
    found = extract(
        load_subject(model), dataset, Measured(model, run, device="cpu", batch=7), ("blue", "red"), layers=2
    )
    part = next(in_order(dataset, Crop(1, 16, centre=True), ("image", "label"), ("blue", "red"), batch=10))
    mean, deviation = (np.array(x, np.float32) for x in (TINY.mean, TINY.std))
    pixels = torch.from_numpy((part["image"][:, 0].numpy() / 255 - mean) / deviation).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        second, third = load_subject(model).intermediate(pixels, [1, 2])  # type: ignore[misc]
    torch.testing.assert_close(found.cls[:10, -2:], torch.stack([second.cls, third.cls], dim=1), atol=1e-5, rtol=1e-4)
    assert found.mean is not None
    torch.testing.assert_close(found.mean[:10], third.patches.mean(dim=1), atol=1e-5, rtol=1e-4)
    assert found.ids[:10] == part["id"]
    assert found.labels[:10].tolist() == part["label"].tolist()
    assert found.cls.shape == (80, 2, 16)


def test_every_way_to_name_a_model_gives_the_same_scores(run: str, model: str, tmp_path: Path) -> None:
    subject = VisionTransformer.load(model)
    to_transformers(subject).save_pretrained(tmp_path / "hf")
    for step, weights in ((1, VisionTransformer(TINY)), (2, subject)):
        write_checkpoint(step_folder(str(tmp_path / "train"), step), TINY, weights.state_dict(), {}, {"step": step})
    expected = measure(statistics, model, run, device="cpu")
    last = step_folder(str(tmp_path / "train"), 2)
    for name in (str(tmp_path / "train"), last, f"hf:{tmp_path / 'hf'}"):
        scores = measure(statistics, name, run, device="cpu")
        assert scores == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}
    assert measure(statistics, str(tmp_path / "train"), run, device="cpu").settings["model"] == last


def test_worker_processes_change_nothing(run: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, measured = open_dataset(run), Measured(model, run, device="cpu", limit=33)
    alone = extract(load_subject(model), dataset, measured, ("blue", "red"))
    monkeypatch.setattr(passes, "MANY", 10)
    several = extract(load_subject(model), dataset, measured, ("blue", "red"))
    assert torch.equal(alone.cls, several.cls)
    assert alone.ids == several.ids
    assert len(alone.ids) == 33


def test_the_command_measures_and_says_what_is_wrong(
    run: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "scores.json")
    words = ["evaluate", "knn,linear", "--data", run, "--split", "test", "--device", "cpu"]
    assert main([*words, "--model", model, "--options.k", "5,1", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "knn\n  accuracy " in said
    assert "accuracy_k1 " in said
    assert set(json.loads(Path(out).read_text())) == {"knn", "linear", "settings"}
    assert main([*words, "--model", str(tmp_path / "none")]) == 2
    assert main([*words, "--model", model, "--options.neighbours", "5"]) == 2
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 2
    assert "is neither a training directory" in problems[0]
    assert "options.neighbours: no such option; the options are head, hidden, holdout, iterations, k," in problems[1]


def test_an_mlp_may_be_the_head_of_the_linear_probe(run: str) -> None:
    scores = measure(linear, "pixels", run, head="mlp", iterations=60, hidden=8, mlp_lrs=[1e-3, 1e-2])
    assert scores["accuracy"] == 1
    assert scores["accuracy.learning_rate"] in (1e-3, 1e-2)
    assert scores.settings["solver"] == "mlp"
    with pytest.raises(UserError, match="mlp_lrs"):
        measure(linear, "pixels", run, head="mlp", mlp_lrs=[])


def test_features_are_computed_once_for_all_protocols(run: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = features.extract
    monkeypatch.setattr(features, "extract", lambda *given: calls.append(given[1].path) or real(*given))
    recipe = EvaluateRecipe(protocols=["knn", "linear", "few-shot"], model=model, data=run, device="cpu")
    evaluate(recipe, lambda _: None)
    assert len(calls) == 2  # train and test
    features_of(Measured(model, run, device="cpu"), open_dataset(run), None)
    features_of(Measured(model, run, device="cpu"), open_dataset(run), None)
    assert len(calls) == 4  # outside of a command nothing is kept
    monkeypatch.setattr(features, "ROOM", 0)
    with shared_features():
        widths = [
            features_of(Measured(model, run, device="cpu"), open_dataset(run), None, (), n).cls.shape[1]
            for n in (1, 3, 2)
        ]
    assert widths == [1, 3, 2]
    assert len(calls) == 6


def test_pixels_tell_colours_apart_and_settings_stand_beside_the_scores(run: str, tmp_path: Path) -> None:
    said = list[str]()
    out = tmp_path / "scores.json"
    names = ["knn", "linear", "few-shot"]
    options = {"k": "3,500", "solver": "ridge", "shots": [1, 5]}
    evaluate(EvaluateRecipe(protocols=names, model="pixels", data=run, out=str(out), options=options), said.append)
    scores = json.loads(out.read_text())
    for protocol, metric in (("knn", "accuracy"), ("linear", "accuracy"), ("few-shot", "accuracy_5")):
        assert scores[protocol][metric] == 1.0
    assert scores["knn"]["accuracy.chance"] == 0.5
    assert (scores["knn"]["accuracy.train"], scores["knn"]["accuracy.test"]) == (40, 40)
    used = scores["settings"]["used"]
    assert (used["knn"]["k"], used["knn"]["temperature"]) == ([3, 500], 0.07)
    assert used["knn"]["test"] == {"data": run, "split": "test"}
    assert used["linear"]["chosen"]["layers"] == 1
    assert any("k = 500: there are only 40 training pictures" in text for text in said)
    again = tmp_path / "again.json"
    recipe = EvaluateRecipe(protocols=names, model="pixels", data=run, out=str(again), options=options)
    evaluate(recipe, said.append)
    assert again.read_text().replace("again.json", "scores.json") == out.read_text()


@pytest.mark.parametrize("solver", ["lbfgs", "sgd", "auto"])
def test_every_solver_learns(run: str, solver: Any) -> None:
    scores = measure(linear, "pixels", run, solver=solver, iterations=60, device="cpu")
    assert scores["accuracy"] == 1.0
    assert ("accuracy.learning_rate" in scores) == (solver == "sgd")


def test_a_winner_at_the_edge_of_the_grid_is_pointed_out(run: str) -> None:
    grids = (1e3, 1e2, 1e1), (1e2, 1e1)
    edge, short = (measure(linear, "pixels", run, solver="ridge", penalties=grid, device="cpu") for grid in grids)
    assert edge.settings["chosen"]["penalty"] == short.settings["chosen"]["penalty"] == 1e1
    assert edge.notes == ("the best point of the grid, 10, is at its edge: give more",)
    assert short.notes == ()  # two points are all edge


def test_a_split_is_drawn_by_hash_where_there_is_none_and_that_is_said(tmp_path: Path) -> None:
    data = str(write_shards(tmp_path, colours(100)))
    task = train_and_test(Measured("pixels", data, device="cpu"), 0.3)
    assert 15 < len(task.test.ids) < 45
    assert len(task.train.ids) + len(task.test.ids) == 100
    assert not task.shared
    scores = measure(knn, "pixels", data, holdout=0.3, device="cpu")
    assert any("no column split: 30% of the ids, drawn by hash" in note for note in scores.notes)
    assert scores.settings["drawn_by_hash"] == 0.3


def test_a_table_of_others_is_measured_by_the_names_of_its_columns(tmp_path: Path) -> None:
    """Labels as pandas writes them, no ids, no split: as in a file of the Hub whose columns have other names."""
    rows = colours(60)
    names = sorted({row["label"] for row in rows})
    columns = {"img": [{"bytes": row["image"]["bytes"], "path": None} for row in rows]}
    columns |= {"fine_label": [float(names.index(row["label"])) for row in rows], "size": ["a", "b", "c"] * 20}
    folder = tmp_path / "hub"
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "data.parquet", 16)
    out = tmp_path / "scores.json"
    words = ["--model", "pixels", "--data", str(folder), "--device", "cpu", "--options.holdout", "0.3"]
    named = ["--data.label", "fine_label", "--options.by", "size", "--out", str(out)]
    assert main(["evaluate", "knn,few-shot,features,factors", *words, *named]) == 0
    scores = json.loads(out.read_text())
    assert scores["settings"]["data"] == {"path": str(folder), "label": "fine_label"}
    assert scores["knn"]["accuracy"] == 1.0
    assert scores["factors"]["size=a.pictures"] > 0


def test_names_of_columns_are_refused_where_there_is_no_table(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sdci", "binary-choice", "video-segmentation"):
        assert main(["evaluate", name, "--model", "pixels", "--data", run, "--data.label", "x"]) == 2
        assert f"data: {name} reads no table with columns to be named" in capsys.readouterr().err


def test_another_run_to_test_on(run: str, tmp_path: Path) -> None:
    other = str(write_shards(tmp_path / "other", colours(30, first=1000)))
    scores = measure(knn, "pixels", run, test_data=other, device="cpu")
    assert (scores["accuracy.train"], scores["accuracy.test"]) == (40, 30)
    assert scores.settings["test"] == {"data": other, "split": None}
    assert scores["accuracy"] == 1.0


def test_training_and_test_on_the_same_pictures(run: str, tmp_path: Path) -> None:
    rows = colours(60)
    for number, row in enumerate(rows):
        row["label"] = str(number % 3)  # labels that pixels do not show: only cheating is right
    plain = str(write_shards(tmp_path / "plain", rows))
    scores = measure(knn, "pixels", plain, test_data=plain, k=(1,), device="cpu")
    assert scores["accuracy"] is not None
    assert scores["accuracy"] < 0.7
    with pytest.raises(UserError, match="training and test pictures are the same; the linear probe needs others"):
        measure(linear, "pixels", plain, test_data=plain, device="cpu")
    part = str(write_shards(tmp_path / "part", rows[:6] + colours(10, first=500)))
    found = measure(fewshot, "pixels", plain, test_data=part, device="cpu", draws=2, shots=(1,))
    assert any("6 training pictures are test pictures too" in note for note in found.notes)
    assert (found["accuracy_1.train"], found["accuracy_1.train_in_test"]) == (54, 6)


def test_unlabelled_and_broken_pictures_are_counted_and_named(tmp_path: Path) -> None:
    rows = split(colours(80))
    for row, label in zip(rows[:6], [None, "-1", "", None, "-1", ""], strict=True):
        row["label"] = label
    rows[10]["image"] = {"bytes": b"no picture", "path": "x.png"}
    data = str(write_shards(tmp_path, rows, extra=SPLIT))
    scores = measure(knn, "pixels", data, device="cpu")
    assert (scores["accuracy.test_unlabelled"], scores["accuracy.train_unlabelled"]) == (4, 2)
    lost = [scores.get(f"accuracy.{part}_unreadable", 0) for part in ("train", "test")]
    assert lost == [1, 0]
    assert [row["uri"] for row in scores.settings["dead"]] == [rows[10]["source"]["uri"]]
    assert scores["accuracy"] == 1.0
    assert scores["accuracy.classes"] == 2


def test_classes_without_training_pictures_are_said(tmp_path: Path) -> None:
    rows = split(colours(40))
    rows[0]["label"] = "green"
    scores = measure(knn, "pixels", str(write_shards(tmp_path, rows, extra=SPLIT)), device="cpu")
    assert "1 classes of the test pictures have no training picture, for example 'green'" in scores.notes
    assert scores["accuracy"] == pytest.approx(19 / 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "labels of .* are all missing; kNN needs two classes"),
        ({"label": "cat"}, "labels of .* have one class, 'cat'"),
        ({"split": "train"}, "has no rows in split 'test'"),
        ({"image": {"bytes": b"x", "path": "x"}}, r"none of the \d+ pictures of .* can be decoded"),
    ],
)
def test_data_that_cannot_be_measured(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [row | change for row in split(colours(20))]
    with pytest.raises(UserError, match=message):
        measure(knn, "pixels", str(write_shards(tmp_path, rows, extra=SPLIT)), device="cpu")


def test_models_and_options_that_are_not_right(run: str, model: str, tmp_path: Path) -> None:
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"width": 32}))
    (tmp_path / "bad.yaml").write_text("method: nonsense\n")
    for name, message in [
        (model, "holds no model that granary can read"),  # weights of another architecture
        (str(tmp_path / "none"), "is neither a training directory"),
        ("random:" + str(tmp_path / "none"), "is neither a training directory"),
        ("random:tiny?img_size=33", "must be a multiple of patch"),
        ("random:tiny?depth=3", "unknown option 'depth'"),
        ("random:" + str(tmp_path / "bad.yaml"), "is not a training recipe"),
    ]:
        with pytest.raises(UserError, match=message):
            measure(knn, name, run, device="cpu")
    for module, given, message in [
        (knn, {"k": (0,)}, "must be above 0"),
        (linear, {"rates": ()}, "at least one of each"),
        (fewshot, {"draws": 0}, "give numbers above 0"),
        (by_factor, {}, "options.by: missing"),
        (knn, {"dtype": "int8"}, "dtype: 'int8' is not right"),
    ]:
        settings = {"solver": "sgd"} if "rates" in given else {}
        with pytest.raises(UserError, match=message):
            measure(module, "pixels", run, **{"device": "cpu", **given, **settings})
    recipe = EvaluateRecipe(protocols=["knn"], model="pixels", data=run, options={"k": "many"})
    with pytest.raises(UserError, match=r"options\.k"):
        evaluate(recipe, lambda _: None)


def test_random_models_have_the_architecture_and_depend_on_the_seed(model: str, tmp_path: Path) -> None:
    first, again, other = (load_subject(f"random:{model}", seed=seed) for seed in (0, 0, 1))
    assert first.config == TINY
    weights = [m.state_dict()["blocks.0.mlp.up.weight"] for m in (first, again, other, load_subject(model))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    state = torch.get_rng_state()
    tree = {"method": "ijepa", "model": {"width": 32, "depth": 2, "heads": 2, "img_size": 32, "patch_size": 4}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**tree, "options": {"init_std": 0.5, "min_keep": 1}}))
    for name in (f"random:{tmp_path}/recipe.yaml", f"random:{tmp_path}"):
        started = load_subject(name)
        assert not started.config.class_token
        spread = float(started.state_dict()["blocks.0.mlp.up.weight"].std())
        assert spread == pytest.approx(0.5, rel=0.2)  # as its method starts it
    assert torch.equal(torch.get_rng_state(), state)
    assert load_subject("random:tiny?img_size=16&patch_size=8").config.width == 192


# Begin from a training that is named.
TAUGHT = ("clip_kd_tiny", "predictor_tuning_tiny", "rcdm_tiny", "rob_tiny", "simreg_tiny")


@pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("*_tiny.yaml")), ids=lambda path: path.stem)
def test_every_tiny_recipe_has_a_random_baseline(recipe: Path) -> None:
    if recipe.stem in TAUGHT:
        with pytest.raises(UserError, match=r"recipe \(options.teacher: missing; give --options.teacher or"):
            load_subject(f"random:{recipe}")
        return
    subject = load_subject(f"random:{recipe}")
    tokens = subject(torch.zeros(1, 3, subject.config.img_size, subject.config.img_size))
    assert tokens.cls.shape == (1, subject.config.width)


def test_draws_of_few_pictures_are_balanced_nested_and_the_seed_s() -> None:
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * 3)
    train = features.Features(torch.zeros(43, 1, 2), None, labels, [f"id{n}" for n in range(43)], [])
    five, ten = (list(drawn(train, shots, 4, 0)) for shots in (5, 10))
    for few, more in zip(five, ten, strict=True):
        assert labels[few].bincount().tolist() == [5, 5, 3]
        assert labels[more].bincount().tolist() == [10, 10, 3]
        assert set(few.tolist()) <= set(more.tolist())
    assert len({tuple(draw.tolist()) for draw in five}) == 4
    assert five[0].tolist() != next(drawn(train, 5, 1, 1)).tolist()
    order = torch.randperm(43, generator=torch.Generator().manual_seed(0))
    shuffled = features.Features(train.cls, None, labels[order], [train.ids[n] for n in order], [])
    chosen = {shuffled.ids[n] for n in next(drawn(shuffled, 5, 1, 0)).tolist()}
    assert chosen == {train.ids[n] for n in five[0].tolist()}  # ids decide, not their order


def test_nearest_centroid_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 2, 2, 2])  # no picture of class 1
    train, test = torch.randn(6, 5, generator=generator) + 3, torch.randn(20, 5, generator=generator) + 3
    centre = train.mean(dim=0)
    unit = [(row - centre) / (row - centre).norm() for row in train]
    means = {c: sum(u for u, label in zip(unit, labels, strict=True) if label == c) / 3 for c in (0, 2)}
    expected = []
    for row in test:
        query = (row - centre) / (row - centre).norm()
        expected.append(min(means, key=lambda c: float((query - means[c]).norm())))
    assert classify(train, labels, test, 3, "centroid").tolist() == expected
    assert set(classify(train, labels, test, 3, "logistic").tolist()) <= {0, 1, 2}


def test_few_shot_states_mean_and_deviation_over_draws(run: str) -> None:
    scores = measure(fewshot, run and "random:tiny?img_size=16&patch_size=8", run, shots=(1, 30), draws=3, device="cpu")
    assert scores["accuracy_1.low"] <= scores["accuracy_1"] <= scores["accuracy_1.high"]  # type: ignore[operator]
    assert scores["accuracy_30.std"] == 0.0  # a class has 20: every draw is all of them
    assert any("smallest class has 20 training pictures, fewer than 30" in note for note in scores.notes)
    assert measure(fewshot, "pixels", run, shots=(1,), draws=1, device="cpu")["accuracy_1.std"] is None


def test_closed_forms_of_the_statistics() -> None:
    found = statistics.statistics(torch.eye(32))
    assert found["rank_me"] == pytest.approx(32, rel=1e-4)
    assert found["effective_rank"] == pytest.approx(31, rel=1e-4)  # centring takes one direction
    assert found["participation_ratio"] == pytest.approx(31)
    assert statistics.statistics(torch.ones(10, 4))["participation_ratio"] is None
    assert found["rank_me.most"] == 32
    assert found["uniformity"] == pytest.approx(-4)  # all pairs at squared distance 2
    assert rank_me(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(2 * math.sqrt(2), rel=1e-4)
    assert statistics.statistics(torch.ones(10, 4))["uniformity"] == pytest.approx(0, abs=1e-6)
    assert statistics.statistics(torch.ones(10, 4))["feature_std"] == 0
    rows = torch.nn.functional.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = [math.exp(-2 * float((rows[i] - rows[j]).square().sum())) for i in range(50) for j in range(i)]
    assert uniformity(rows) == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert alignment(rows, 3 * rows) == pytest.approx(0, abs=1e-6)
    assert alignment(rows, -rows) == pytest.approx(4, rel=1e-6)


def test_uniformity_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.nn.functional.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    whole = uniformity(rows)
    monkeypatch.setattr(statistics, "ROWS", 7)
    assert uniformity(rows) == pytest.approx(whole, rel=1e-6)


def test_statistics_need_no_labels(tmp_path: Path, model: str) -> None:
    rows = [row | {"label": None} for row in shapes(30, 16)] + [*shapes(1, 16)] * 2  # with copies
    data = str(write_shards(tmp_path / "run", rows))
    scores = measure(statistics, model, data, device="cpu", samples=25)
    assert scores["rank_me.pictures"] == 25
    assert 1 < scores["rank_me"] <= 16  # type: ignore[operator]
    assert scores["alignment.pictures"] == 32
    assert 0 < scores["alignment"] < 4  # type: ignore[operator]
    assert scores == measure(statistics, model, data, device="cpu", samples=25)
    assert "alignment" not in measure(statistics, model, data, device="cpu", views=0)
    single = str(write_shards(tmp_path / "one", rows[:1], shards=1))
    with pytest.raises(UserError, match=r"1 picture in .* give two pictures or more"):
        measure(statistics, model, single, device="cpu")


def test_a_class_token_model_in_bfloat16_is_near_float32(model: str) -> None:
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    subject, cpu = load_subject(model), torch.device("cpu")
    exact, near = (encode(subject, pixels, cpu, 2, kind)[0] for kind in ("float32", "bfloat16"))
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, atol=0.1, rtol=0.1)
    assert not torch.equal(near, exact)


def test_accuracy_by_factor_of_a_render(tmp_path: Path) -> None:
    rows = split(colours(80))
    for number, row in enumerate(rows):
        row |= {"world": ("Sand", "Snow")[number // 4 % 2], "size": (0.7, 1.0)[number // 8 % 2]}
        row["row_id"] = f"row{number}"
        if row["world"] == "Snow" and row["split"] == "test":
            row["label"] = {"red": "blue", "blue": "red"}[row["label"]]  # what is learned fails in the snow
    extra = {**SPLIT, "row_id": Value("string"), "world": Value("string"), "size": Value("float64")}
    data = str(write_shards(tmp_path, rows, extra=extra))
    for classifier in ("ridge", "knn"):
        scores = measure(by_factor, "pixels", data, by=("world", "size"), classifier=classifier, device="cpu")
        assert (scores["world=Sand"], scores["world=Snow"], scores["accuracy"]) == (1.0, 0.0, 0.5)
        assert scores["size=0.7"] == scores["size=1.0"] == 0.5
        assert (scores["world.spread"], scores["size.spread"]) == (1.0, 0.0)
        assert scores["world=Snow.pictures"] == 20
    with pytest.raises(UserError, match="has no column 'light'"):
        measure(by_factor, "pixels", data, by=("light",), device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_scores_are_those_of_the_cpu(run: str, model: str) -> None:
    for call in (knn.evaluate, linear.evaluate, fewshot.evaluate):
        ours, theirs = (call(model, run, device=device) for device in ("cuda", "cpu"))
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=0.05)
