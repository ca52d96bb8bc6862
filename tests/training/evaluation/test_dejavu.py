"""The déjà vu protocol on tiny trainings: its numbers by hand, and everything that would be taken for memorisation."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from measuring import measure
from PIL import Image
from tiny_parts import parted_run
from tiny_trainings import tiny_training

from granary.curation.errors import UserError
from granary.pipelines.command import main
from granary.training.data.augment import normalised, to_unit
from granary.training.evaluation.memorisation import ranked
from granary.training.evaluation.periphery import periphery
from granary.training.evaluation.projections import load_projected, projector_of
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols import dejavu
from granary.training.evaluation.trained import check_twins, trained, trained_ids
from granary.training.models.training import load_training

RESNET = {"kind": "resnet", "widths": [8, 16], "depths": [1, 1], "stem": "small", "img_size": 16}
FAST: dict[str, Any] = {"min_side": 5, "k": 12, "percent": [50, 100]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return parted_run(tmp_path_factory.mktemp("parted"), 240, per_class=12)


@pytest.fixture(scope="module")
def models(run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the training directories of twins, and of others."""
    root, settings = tmp_path_factory.mktemp("models"), {"model": RESNET, "checkpoints": {"every": 2, "keep": 9}}
    for part in "AB":
        tiny_training("simclr", run, root / part, split=f"part={part}", steps=6, **settings)
    tiny_training("simclr", run, root / "public", split="part=B,X", steps=6, **settings)
    tiny_training("simclr", run, root / "half", split="part=B & place=a", steps=6, **settings)
    tiny_training("simclr", run, root / "other", split="part=B", steps=6, **{**settings, "seed": 1})
    tiny_training("simclr", run, root / "short", split="part=B", steps=4, **settings)
    tiny_training("mae", run, root / "mae-A", split="part=A")
    tiny_training("mae", run, root / "mae-B", split="part=B")
    return {path.name: str(path) for path in root.iterdir()}


def rows_of(run: str, part: str) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(Path(run, "dataset", "data").iterdir())]
    return [row for row in pa.concat_tables(tables).to_pylist() if row["part"] == part]


@torch.no_grad()
def slow_vectors(model: str, rows: list[dict[str, Any]], crops: bool, site: str) -> dict[str, np.ndarray]:
    """Return the vector of each picture or crop by id, one picture at a time, in evaluation mode."""
    method = load_training(model)
    found = {}
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        if crops:
            box = periphery(24, 24, [tuple(b) for b in row["boxes"]], 5)
            if box is None:
                continue
            left, top, right, bottom = (int(x) for x in box)
            side = min(right - left, bottom - top)
            x, y = left + (right - left - side) // 2, top + (bottom - top - side) // 2
            pixels = pixels[y : y + side, x : x + side]
        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        if pixels.shape[0] != 16:
            planes = torch.nn.functional.interpolate(planes, (16, 16), mode="bicubic", antialias=True)
        unit = normalised(to_unit(planes.permute(0, 2, 3, 1)), method.config.mean, method.config.std)
        vector = method.encoder(unit).cls  # type: ignore[operator,union-attr]
        found[row["id"]] = (method.projector(vector) if site == "projector" else vector)[0].double().numpy()  # type: ignore[operator]
    return found


def slow_score(models: dict[str, str], run: str, site: str, k: int) -> float:
    """Return the score over all crops; equal votes are decided as ours are."""
    public, classes = rows_of(run, "X"), ["circle", "cross", "square", "triangle"]
    accuracy = {}
    for name in "AB":
        bank = slow_vectors(models[name], public, False, site)
        for part in "AB":
            members = rows_of(run, part)
            labels = {row["id"]: row["label"] for row in (*members, *public)}
            right = []
            for identity, crop in slow_vectors(models[name], members, True, site).items():
                near = sorted(bank, key=lambda other: float(((bank[other] - crop) ** 2).sum()))[:k]
                tally = torch.tensor([[sum(labels[n] == label for n in near) for label in classes]])
                right.append(classes[int(ranked(tally, [identity], 0)[0, 0])] == labels[identity])
            accuracy[name + part] = float(np.mean(right))
    return (accuracy["AA"] + accuracy["BB"] - accuracy["BA"] - accuracy["AB"]) / 2


def scores(run: str, models: dict[str, str], **given: Any) -> Any:
    return measure(dejavu, models["A"], run, device="cpu", **{"reference": models["B"], **FAST, **given})


@pytest.fixture(scope="module")
def found(run: str, models: dict[str, str]) -> Any:
    return scores(run, models)


@pytest.mark.parametrize("site", ["projector", "backbone"])
def test_scores_are_those_of_the_definition(found: Any, run: str, models: dict[str, str], site: str) -> None:
    assert found[f"{site}.score_100"] == pytest.approx(slow_score(models, run, site, 12), abs=1e-9)
    assert 0 < found[f"{site}.ties"] < 0.5
    shares = [found[f"{site}.{name}"] for name in ("memorised", "misrepresented", "correlated", "unassociated")]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] - shares[1] == pytest.approx(found[f"{site}.score_100"], abs=1e-12)
    target, reference = (found[f"{site}.score_50.{name}"] for name in ("target", "reference"))
    assert found[f"{site}.score_50"] == pytest.approx(target - reference)
    directions = found[f"{site}.score_50.A"], found[f"{site}.score_50.B"]
    assert found[f"{site}.score_50"] == pytest.approx(np.mean(directions))
    assert found[f"{site}.score_100.pictures"] == found["pictures"]


def test_what_was_measured_is_written_down(found: Any, run: str) -> None:
    assert found.settings["widths"] == {"projector": 4, "backbone": 16}  # trap: one layer taken for the other
    assert found.settings["site"] == "projector"
    covered = [row for part in "AB" for row in rows_of(run, part) if row["boxes"][0] == [0, 0, 24, 24]]
    assert found["pictures"] + found["pictures.without_crop"] == 96
    assert found["pictures.without_crop"] >= len(covered) > 0
    assert found["pictures.public"] == len(rows_of(run, "X"))
    assert found["linear"] > 0.1
    assert found["linear.chance"] == 0.25
    assert set(found.settings["memorised"]) == {"A", "B"}
    assert not found.notes
    json.dumps(found.settings)


def test_shares_are_of_the_crops_that_are_there(found: Any) -> None:
    """Trap: pictures without a crop leave after the cut, so that p is of others."""
    sizes = [found["pictures.A"], found["pictures.B"]]
    assert sum(sizes) == found["pictures"] == sum(row["crops"] for row in found.settings["by_class"].values())
    assert found["projector.score_50.pictures"] == sum(math.floor(0.5 * size + 0.5) for size in sizes)


def test_pictures_beside_one_another_change_nothing(found: Any, run: str, models: dict[str, str]) -> None:
    """Trap: BatchNorm in training mode."""
    alone = scores(run, models, batch=1)
    for name, value in found.items():
        assert alone[name] == pytest.approx(value, abs=0.02), name


def test_one_model_twice_is_exactly_nothing(run: str, models: dict[str, str]) -> None:
    same = {"A": f"random:{models['A']}", "B": f"random:{models['B']}"}
    found = scores(run, same)
    for site in ("projector", "backbone"):
        assert found[f"{site}.score_50"] == found[f"{site}.score_100"] == 0
        assert found[f"{site}.memorised"] == found[f"{site}.misrepresented"] == 0
    assert len(found.notes) == 2  # what they were trained on cannot be read
    apart = scores(run, same, reference_seed=1)
    assert apart["projector.misrepresented"] > 0


def test_every_step_of_both(run: str, models: dict[str, str], found: Any) -> None:
    swept = scores(run, models, checkpoints=True)
    steps = {name.partition(".")[0] for name in swept if name.startswith("step_")}
    assert steps == {"step_2", "step_4", "step_6"}
    assert swept["step_6.projector.score_50"] == found["projector.score_50"]
    assert {name: swept[name] for name in found} == dict(found)


def test_sites_corner_and_split_narrow_it(run: str, models: dict[str, str], found: Any) -> None:
    one = scores(run, models, sites=["backbone"])
    assert not any(name.startswith("projector") for name in one)
    assert one["backbone.score_100"] == found["backbone.score_100"]
    cornered = scores(run, models, crop="corner", corner=0.5)
    assert cornered["pictures"] == 96
    some = scores(run, models, split="place=a")
    assert some["pictures"] < found["pictures"]
    assert some["pictures.public"] == found["pictures.public"]
    few = scores(run, models, k=10_000)
    assert few.notes == (f"k = 10000: there are only {found['pictures.public']} public pictures; all vote",)
    assert scores(run, models, limit=20)["pictures"] <= 40


def test_models_without_projector_are_looked_at_behind_the_backbone(run: str, models: dict[str, str]) -> None:
    pair = {"A": models["mae-A"], "B": models["mae-B"]}
    assert set(scores(run, pair).settings["widths"]) == {"backbone"}
    with pytest.raises(UserError, match=r"options.sites: projector is not right: .*mae-A has none; give backbone"):
        scores(run, pair, sites=["projector"])
    with pytest.raises(UserError, match=r"options.sites: one of pixels and .*B has no projector"):
        measure(dejavu, "pixels", run, device="cpu", reference=models["B"], **FAST)
    assert measure(dejavu, "pixels", run, device="cpu", reference="pixels", **FAST)["backbone.score_100"] == 0


@pytest.mark.parametrize(
    ("method", "projector"),
    [("simclr", "projector"), ("byol", "projector"), ("msn", "target_projector"), ("mae", None), ("clip", None)],
)
def test_the_projector_is_that_of_what_is_evaluated(
    method: str, projector: str | None, run: str, tmp_path: Path
) -> None:
    training = load_training(tiny_training(method, run, tmp_path / "out", steps=1, split="part=X"))
    assert projector_of(training) is (None if projector is None else training.get_submodule(projector))


@pytest.mark.parametrize(
    ("model", "reference", "message"),
    [
        ("A", "A", r"A was trained on 48 pictures of part A; train it with --split part=B"),
        ("B", "A", r"B was trained on 48 pictures of part B; train it with --split part=A"),
        ("A", "public", r"public was trained on \d+ pictures of part X"),
        ("A", "half", r"half was not trained on \d+ pictures of part B"),
        ("A", "other", r"options.reference: .*other is no twin of .*A: seed is 1, not 0"),
        ("A", "short", r"short is no twin of .*A: steps is 4, not 6"),
        ("A", "mae-B", r"mae-B is no twin of .*: method is 'mae', not 'simclr'"),
    ],
)
def test_trainings_that_know_what_they_should_not_are_refused(
    model: str, reference: str, message: str, run: str, models: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=message):
        scores(run, {"A": models[model], "B": models[reference]})


def test_checkpoints_of_other_steps_are_no_twins(models: dict[str, str]) -> None:
    check_twins(models["A"], models["B"])
    with pytest.raises(UserError, match="checkpoint at step is 4, not 6"):
        check_twins(models["A"], f"{models['B']}/checkpoints/step-000000004")
    check_twins("pixels", models["B"])
    assert trained("pixels") is None
    assert trained_ids(f"random:{models['A']}") is None


def test_data_that_have_moved_are_said_to_be_unknown(run: str, models: dict[str, str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    Path(run).rename(gone)
    try:
        assert trained_ids(models["A"]) is None
        assert len(scores(str(gone), models).notes) == 2
    finally:
        gone.rename(run)


def rewritten(run: str, folder: Path, change: Any) -> str:
    """Write the rows of a run again, each as `change` gives it."""
    tables = [pq.read_table(path) for path in sorted(Path(run, "dataset", "data").iterdir())]
    table = pa.concat_tables(tables)
    rows = [change(number, row) for number, row in enumerate(table.to_pylist())]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "a.parquet", row_group_size=50)
    return str(folder)


def test_hostile_data_are_sentences(run: str, models: dict[str, str], tmp_path: Path) -> None:
    pair = {"A": "pixels", "B": "pixels"}
    public = next(row for row in rows_of(run, "X"))
    attacked = next(row for row in rows_of(run, "A"))

    def leaking(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "image": public["image"]} if row["id"] == attacked["id"] else row

    with pytest.raises(UserError, match=r"parts A and X of .* share a picture, sha256:"):
        scores(rewritten(run, tmp_path / "leaking", leaking), pair)
    twice = rewritten(
        run, tmp_path / "twice", lambda n, row: {**row, "id": public["id"]} if row["id"] == attacked["id"] else row
    )
    with pytest.raises(UserError, match=f"parts A and X of .* share a picture, {public['id']}"):
        scores(twice, pair)
    no_a = rewritten(run, tmp_path / "no-a", lambda n, row: {**row, "part": "X" if row["part"] == "A" else row["part"]})
    with pytest.raises(UserError, match="has no rows with part 'A'; it has B, X"):
        scores(no_a, pair)
    covered = rewritten(run, tmp_path / "covered", lambda n, row: {**row, "boxes": [[0, 0, 24, 24]]})
    with pytest.raises(UserError, match=r"none of the 48 pictures of .* can be used: the gaps beside the boxes"):
        scores(covered, pair)
    bare = rewritten(run, tmp_path / "bare", lambda n, row: {**row, "boxes": []})
    with pytest.raises(UserError, match=r"can be used: .* has no boxes in column boxes"):
        scores(bare, pair)
    one = rewritten(run, tmp_path / "one", lambda n, row: {**row, "label": "circle"})
    with pytest.raises(UserError, match="have 1 classes; dejavu needs two or more"):
        scores(one, pair)
    table = pq.read_table(Path(bare, "a.parquet"))
    for name in ("boxes", "part"):
        (tmp_path / f"without-{name}").mkdir()
        pq.write_table(table.drop_columns([name]), tmp_path / f"without-{name}" / "a.parquet")
    with pytest.raises(UserError, match=r"has no column of boxes \(boxes, objects, masks\); name it by"):
        scores(str(tmp_path / "without-boxes"), pair)
    assert scores(str(tmp_path / "without-boxes"), pair, crop="corner")["pictures"] == 96
    with pytest.raises(UserError, match="has no column part; granary partition writes a run that has it"):
        scores(str(tmp_path / "without-part"), pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": None}, "options.reference: missing; give the model that was trained on part B"),
        ({"percent": [0, 20]}, r"options.percent: \(0, 20\) is not right"),
        ({"percent": [120]}, r"options.percent: \(120,\) is not right"),
        ({"sites": ["predictor"]}, "options.sites: 'predictor' is not right; the sites are projector, backbone"),
        ({"boxes": "regions"}, "boxes: .* has no column 'regions'"),
        ({"min_side": 400}, "can be used: the gaps beside the boxes .* not above 400"),
        ({"dtype": "int8"}, "dtype: 'int8' is not right"),
        ({"split": "place=c"}, "has no rows with place 'c'"),
    ],
)
def test_mistakes_are_sentences(options: dict[str, Any], message: str, run: str, models: dict[str, str]) -> None:
    with pytest.raises(UserError, match=message):
        scores(run, models, **options)


def test_checkpoints_of_what_has_none_are_a_sentence(run: str) -> None:
    with pytest.raises(UserError, match="are no trainings with checkpoints of one step"):
        measure(dejavu, "pixels", run, device="cpu", reference="pixels", checkpoints=True, **FAST)


def test_half_precision_is_near(run: str, models: dict[str, str], found: Any) -> None:
    near = scores(run, models, dtype="bfloat16")
    assert abs(near["projector.score_100"] - found["projector.score_100"]) < 0.2
    model = load_projected(Measured(models["A"], run, device="cpu"), models["A"], 0)
    assert model.widths(model.sites) == {"projector": 4, "backbone": 16}


def test_the_command_prints_and_writes_it(
    run: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], found: Any
) -> None:
    out = tmp_path / "scores.json"
    words = ["evaluate", "dejavu", "--model", models["A"], "--data", run, "--device", "cpu", "--out", str(out)]
    words += ["--options.reference", models["B"], "--options.min_side", "5", "--options.k", "12"]
    assert main([*words, "--options.percent", "50,100"]) == 0
    assert "projector.score_50" in capsys.readouterr().out
    tree = json.loads(out.read_text())
    assert tree["dejavu"]["projector.score_50"] == found["projector.score_50"]
    assert tree["settings"]["used"]["dejavu"]["reference"] == models["B"]
    assert main(words[:8]) == 2
    assert "options.reference: missing" in capsys.readouterr().err
