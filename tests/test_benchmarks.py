"""The benchmarks that compare steps still know the models they measure: one round of each."""

from __future__ import annotations

import importlib
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_trainings import tiny_run

from tests.benchmarks import cookbook, dejavu, dinov2, expand_narrow, ijepa, iwm, llip, objectives, rob, stop_noise, xrm
from tests.benchmarks.__main__ import MODULES
from tests.benchmarks.cells import Cells, Numbers, recipe_of, shown
from tests.benchmarks.planted import CLASSES, GLYPH, SIDE, copy_of, planted


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_is_there(module: str) -> None:
    assert importlib.util.find_spec(f"tests.benchmarks.{module}")


def test_a_step_of_ijepa_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    ijepa.compare("tiny, 8 x 8 patches", 1)
    assert "losses agree" in capsys.readouterr().out


def test_the_losses_of_dinov2_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    dinov2.compare("tiny, K 2,048, batch 64", 1, {"reference": dinov2.reference})
    assert "granary is" in capsys.readouterr().out


def test_cells_are_measured_once_and_kept(tmp_path: Path) -> None:
    path, calls = tmp_path / "cells.json", list[str]()
    for _ in range(2):
        numbers = Cells(path).measured("one", lambda: calls.append("one") or {"a": 0.5})
        assert numbers == {"a": 0.5}
    assert calls == ["one"]
    assert Cells(path).measured("two", lambda: {"a": 1.5}) == {"a": 1.5}
    assert set(Cells(path).values) == {"one", "two"}


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    assert shown([0.1, 0.2, 0.3], 100) == "20.00 ± 10.00"
    assert shown([0.25], 100) == "25.00"


@pytest.mark.parametrize("falls", [True, False])
def test_the_trend_of_stops_norms_must_be_there_for_every_seed(falls: bool, capsys: pytest.CaptureFixture[str]) -> None:
    table = {
        (std, seed): {
            "a_norm": 5 - std if falls or seed == 0 else 5 + std,
            "token_norm": 1 + std,
            "knn.accuracy": 0.4,
            "linear.accuracy": 0.5 + std / 100,
        }
        for std in (0.0, 0.25, 0.5)
        for seed in (0, 1)
    }
    stop_noise.report(table, [0.0, 0.25, 0.5], [0, 1])
    printed = capsys.readouterr().out
    assert f"BAR {'holds' if falls else 'DOES NOT HOLD'}: the norm of A falls" in printed
    assert "BAR holds: that of the token grows" in printed
    assert "0.25 ± 0.00 points" in printed


@pytest.mark.parametrize(("wide", "holds"), [(0.50, True), (0.43, False)])
def test_a_wide_backbone_must_gain_more_than_its_weights_alone(
    wide: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    corners = [(32, 16), (32, 256), (2048, 16), (2048, 256)]

    def numbers(corner: tuple[int, int]) -> dict[str, float]:
        accuracy = wide if corner == (2048, 16) else 0.4
        values = dict.fromkeys(expand_narrow.COLUMNS.values(), accuracy)
        return values | {"sparsity.accuracy_random": 0.42, "sparsity.zeros": corner[0] / 4096}

    expand_narrow.report({(corner, seed): numbers(corner) for corner in corners for seed in (0, 1)}, corners, [0, 1])
    printed = capsys.readouterr().out
    assert f"BAR {'holds' if holds else 'DOES NOT HOLD'}: D 2048, K 16 against D 32, K 256: linear gains" in printed
    assert f"BAR {'holds' if holds else 'DOES NOT HOLD'}: of that a random projection" in printed
    assert "BAR holds: with K 16 the share of zeros rises with D" in printed


@pytest.mark.parametrize("base", ["dinov2", "dino", "ibot", "swav", "msn"])
def test_the_arms_of_rob_have_one_student_one_batch_and_the_same_large_views(base: str) -> None:
    for student, arm in itertools.product(rob.STUDENTS, rob.ARMS):
        if rob.fits(base, student):
            fields = rob.fields_of(base, student, arm, "TEACHER")
            recipe, whole = recipe_of(rob.config_of(base, arm), "RUN", "OUT", **fields), rob.tiny(base)
            assert recipe.batch == whole.batch
            assert recipe.model.kind == student
            assert recipe.model.img_size == whole.model.img_size
            if arm == "features":
                large = whole.options.get("crop_size", whole.options.get("global_size"))
                assert recipe.options["crop_size"] == large


@pytest.mark.parametrize(("gain", "holds"), [(0.04, True), (0.02, False)])
def test_rob_must_gain_three_points_over_scratch_and_lose_none_to_features(
    gain: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = {"scratch": 0.40, "features": 0.43, "rob": 0.40 + gain}
    table = {
        (base, student, arm, seed): {"linear.accuracy": linear[arm], "knn.accuracy": 0.3, "kl": 0.5}
        for base, student in (("dinov2", "vit"), ("dinov2", "resnet"), ("msn", "vit"))
        for arm in rob.ARMS
        for seed in ((0, 1) if base == "dinov2" else (0,))
    }
    rob.report(table, ["dinov2", "msn"], ["vit", "resnet"], [0, 1])
    printed = capsys.readouterr().out
    verdict = "holds" if holds else "DOES NOT HOLD"
    assert f"BAR {verdict}: dinov2, vit: linear of RoB is 3 points above scratch, {100 * gain:.1f}" in printed
    assert f"BAR {verdict}: dinov2, resnet: linear of RoB is not below regression of features" in printed
    assert f"BAR holds: msn, vit: linear of RoB is above scratch, {100 * gain:.1f}" in printed
    assert printed.count("BAR") == 5


@pytest.mark.parametrize(("gain", "holds"), [(0.13, True), (0.11, False)])
def test_contrastive_methods_must_be_twelve_points_above_their_random_weights(
    gain: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = {f"{of}{probe}.accuracy": 0.4 for of in ("", "random.") for probe in ("knn", "linear")}
    numbers |= {"knn.accuracy": 0.4 + gain, "share": 0.2}
    table = {(method, seed): numbers for method in ("simclr", "mae") for seed in (0, 1)}
    cookbook.report(table, {"simclr": 120.0, "mae": 200.0}, [0, 1])
    printed = capsys.readouterr().out
    assert f"BAR {'holds' if holds else 'DOES NOT HOLD'}: simclr is 12 points of kNN" in printed
    assert "BAR holds: mae is 5 points of kNN" in printed
    assert "BAR holds: RankMe of mae is above a tenth of the width, 20.0%" in printed


def test_the_pace_is_that_of_the_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 7.0, 100.0, 117.0])  # five steps in 7 s, of which 4.5 to begin with; 25 in 17 s
    monkeypatch.setattr(cookbook.time, "process_time", lambda: next(clock))
    monkeypatch.setattr(cookbook, "trained", lambda *_, **__: "")
    monkeypatch.setattr(cookbook, "batch_of", lambda _: 256)
    assert cookbook.pace("x", "data", tmp_path) == {"pictures": 512.0}


@pytest.mark.parametrize(("noise", "holds"), [(0.01, True), (0.2, False)])
def test_families_are_apart_only_by_more_than_twice_the_spread(
    noise: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """CKA 0.8 within joint embedding, 0.5 across, with a noise of the seeds; 0.6 after fine-tuning."""
    sites = (*objectives.ATTENTION, *objectives.OTHERS, "layer 0", "layer 1", "layer 2")

    def numbers(seed: int) -> dict[str, float]:
        values = {f"{m}|{key}": 0.5 for m in ("one", "two", "mae") for key in ("linear", "position")}
        values |= {f"mae|{key}": score for key, score in (("linear", 0.4), ("position", 0.9))}
        for site in sites:
            values[f"one|two|{site}"] = 0.8 - (site in objectives.OTHERS) * 0.1
            for joint in ("one", "two"):
                values[f"{joint}|mae|{site}"] = 0.5 + noise * (seed - 1)
                values[f"{joint}|mae{objectives.TUNED}|{site}"] = 0.6 + noise * (seed - 1)
        return values | {f"{m}|{objectives.RANDOM}|block": 0.3 for m in ("one", "two", "mae")}

    found = objectives.Families(["one", "two"], ["mae"], {seed: numbers(seed) for seed in range(3)})
    assert found.gap("norm1") == pytest.approx([0.3 + noise, 0.3, 0.3 - noise])
    objectives.report(found)
    printed = capsys.readouterr().out
    assert f"BAR {'holds' if holds else 'DOES NOT HOLD'}: 1: within joint embedding" in printed
    assert "BAR holds: 2a: the gap is there after the first block, 0.300 of 0.300" in printed
    assert "BAR holds: 3: the linear probe of joint embedding is above by 10.00 ± 0.00" in printed
    assert "BAR holds: 4: the probe of positions of reconstruction is above by 40.00 ± 0.00" in printed
    assert "BAR holds: 5: fine-tuned, reconstruction is nearer to joint embedding by 0.10 ± 0.00" in printed


@pytest.mark.parametrize(("deep", "holds"), [(0.5, True), (0.3, False)])
def test_a_deep_world_model_must_apply_actions_and_help_with_classes(
    deep: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [iwm.Arm("none", 6), iwm.Arm("feature", 2), iwm.Arm("feature", 6)]
    mrr = dict(zip(arms, (0.074, 0.4, deep), strict=True))

    def numbers(arm: iwm.Arm) -> dict[str, float]:
        rise = 1 + max(0.0, mrr[arm] - 0.3)
        return dict.fromkeys(iwm.COLUMNS.values(), 0.5) | {
            "mrr.mrr": mrr[arm],
            "loss": 100,
            "loss.shuffled": 100 * rise,
        }

    table = {(arm, seed): numbers(arm) for arm in arms for seed in (0, 1)}
    accuracy = {"pretrained": 0.4 + deep / 10, "random": 0.435}
    tunings = {(kind, seed): {"classifier.accuracy": accuracy[kind]} for kind in iwm.TUNED for seed in (0, 1)}
    iwm.report(table, tunings, arms, [0, 1])
    printed, said = capsys.readouterr().out, f"BAR {'holds' if holds else 'DOES NOT HOLD'}"
    assert f"{said}: MRR of feature-6 is 0.37 or more, {deep:.3f}" in printed
    assert f"{said}: MRR of feature-6 is above that of feature-2" in printed
    assert f"{said}: actions of other pictures raise the loss of feature-6" in printed
    assert f"{said}: a pretrained predictor is a point or more above a random one" in printed
    assert "BAR holds: MRR of none-6 is 0.15 or less" in printed
    assert "BAR holds: actions of other pictures raise the loss of feature-2 by 5 % or more, 10.0%" in printed


@pytest.mark.slow
def test_a_world_model_is_trained_measured_and_tuned(tmp_path: Path) -> None:
    data = tiny_run(tmp_path / "run", 160)
    found = iwm.cell(data, tmp_path / "iwm", iwm.Arm("feature", 1), 0, 3, pictures=1)
    assert set(iwm.COLUMNS.values()) <= found.keys()
    assert found["loss"] != found["loss.shuffled"]
    plain = iwm.cell(data, tmp_path / "none", iwm.Arm("none", 1), 0, 3, pictures=1)
    assert plain["loss"] == plain["loss.shuffled"]
    assert plain["mrr.mrr"] == pytest.approx(plain["mrr.mrr.chance"], abs=1e-3)
    tuned = iwm.tuning(data, tmp_path / "tuned", tmp_path / "iwm", "pretrained", 0, 3)
    assert 0 <= tuned["classifier.accuracy"] <= 1


@pytest.mark.parametrize(("gain", "gap", "share"), [(0.05, 0.0, 0.6), (0.02, 0.03, 0.4)])
def test_llip_must_gain_where_captions_name_one_thing_alone(
    gain: float, gap: float, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    table: dict[llip.Cell, Numbers] = {(arm, "one", seed): {"mAP": 0.5} for arm in llip.ARMS for seed in (0, 1)}
    for seed in (0, 1):
        table["Llip", "one", seed] = {"mAP": 0.5 + gain, "strongest": share}
        table["SigLIP", "all", seed] = {"mAP": 0.7}
        table["Llip", "all", seed] = {"mAP": 0.7 + gap, "strongest": 0.1}
    llip.report(table, [0, 1])
    printed, seen = capsys.readouterr().out, "holds" if gain == 0.05 else "DOES NOT HOLD"
    assert f"BAR {seen}: Llip is 3 points of mAP above SigLIP, {100 * gain:.2f} ± 0.00" in printed
    assert f"BAR {seen}: where captions name everything the gap is within 1.5 points" in printed
    assert f"BAR {seen}: two captions choose another token in most pictures" in printed


def test_average_precision_is_that_of_scikit_learn_and_ties_are_wrong() -> None:
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(0)
    scores, right = random.normal(size=(20, 12)), np.argsort(random.random((20, 12)), axis=1) < 2
    expected = np.mean([average_precision_score(own, row) for own, row in zip(right, scores, strict=True)])
    assert llip.average_precision(torch.from_numpy(scores), torch.from_numpy(right)) == pytest.approx(expected)
    two = torch.tensor([[True, True, False, False]])
    assert llip.average_precision(torch.zeros(1, 4), two) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert llip.average_precision(torch.tensor([[3.0, 1, 2, 0]]), two) == pytest.approx((1 + 2 / 3) / 2)


def test_things_are_held_out_as_pairs_that_captions_name(tmp_path: Path) -> None:
    """Every thing is in training, and a picture of a render becomes the same row but for its captions."""
    held = [pair for pair in itertools.combinations(llip.THINGS, 2) if llip.held_out(*pair)]
    assert len(held) == 11
    assert all(llip.held_out(other, one) for one, other in held)
    assert all(sum(thing in pair for pair in held) < 11 for thing in llip.THINGS)
    table = {
        "id": ["a", "b"],
        "image": [{"bytes": b"x", "path": "a.png"}, {"bytes": b"y", "path": "b.png"}],
        "character_name": ["Camel", "Zebra"],
        "character2_name": ["Car", "Cat"],
    }
    (tmp_path / "renders" / "dataset" / "data").mkdir(parents=True)
    pq.write_table(pa.table(table), tmp_path / "renders" / "dataset" / "data" / "one.parquet")
    kinds: tuple[llip.Captions, ...] = ("one", "all")
    for kind in kinds:
        run = Path(llip.write_run(tmp_path / kind, tmp_path / "renders", kind))
        (file,) = (run / "dataset" / "data").glob("*.parquet")
        rows = pq.read_table(file).to_pylist()
        assert [row["split"] for row in rows] == ["test", "train"]
        assert [row["image"]["bytes"] for row in rows] == [b"x", b"y"]
        captions = {
            "one": ["there is the camel", "there is the car"],
            "all": ["there is the camel and the car", "there is the car and the camel"],
        }
        assert rows[0]["captions"] == captions[kind]


@pytest.mark.slow
@pytest.mark.parametrize("arm", llip.ARMS)
def test_every_arm_of_llip_is_trained_and_measured(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llip, "SIDE", 32)
    columns: dict[str, list[Any]] = {"id": [], "image": [], "character_name": [], "character2_name": []}
    for number in range(160):
        one, other = (llip.THINGS[(number * step + number // 12) % 12] for step in (1, 5))
        picture = io.BytesIO()
        Image.new("RGB", (32, 32), (number, 255 - number, 99)).save(picture, "PNG")
        if one != other:
            values = (str(number), {"bytes": picture.getvalue(), "path": None}, one, other)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    (tmp_path / "renders" / "dataset" / "data").mkdir(parents=True)
    pq.write_table(pa.table(columns), tmp_path / "renders" / "dataset" / "data" / "one.parquet")
    run = llip.write_run(tmp_path / "run", tmp_path / "renders", "one")
    numbers = llip.cell({"one": run, "all": run}, tmp_path / "out", (arm, "one", 0), 2, 1.0)
    assert 0 < numbers["mAP"] < 1
    assert numbers["pictures"] > 5
    assert ("strongest" in numbers) == (arm == "Llip")


def knowing(whole: float, first: float = 0.02, pictures: int = 2000) -> Numbers:
    """Return the numbers of twins that know so much by heart, in the form of `granary evaluate dejavu`."""
    numbers: Numbers = {"linear": 0.5, "linear.reference": 0.49, "pictures.public": 3000}
    for site, share in (("projector", 1.0), ("backbone", 0.5)):
        for percent in (20, 100):
            key, value = f"{site}.score_{percent}", share * whole * (1 if percent == 20 else 0.5)
            details = {"error": 0.01, "target": 0.1 + value, "reference": 0.1, "pictures": pictures * percent / 100}
            numbers |= {key: value, **{f"{key}.{name}": number for name, number in details.items()}}
            for step, part in ((160, first), (800, value)):
                numbers |= {f"step_{step}.{key}": part, f"step_{step}.{key}.error": 0.01}
        numbers |= {f"{site}.memorised": share * whole}
    return numbers


@pytest.mark.parametrize(("whole", "holds"), [(0.2, True), (0.08, False)])
def test_deja_vu_must_be_ten_points_and_the_removal_of_copies_takes_some_away(
    whole: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    every, some = dejavu.Layout(1.0, 4), dejavu.Layout(0.25, 16)
    nothing = {"projector.score_20": 0.02 if holds else 0.04, "projector.score_20.error": 0.01}
    clean = knowing(whole) | {f"{name}.{key}": v for name in ("once", "untrained") for key, v in nothing.items()}
    clean |= {} if holds else {"linear": 0.6, "projector.score_100.reference": 0.15, "backbone.score_20": 0.3}
    counts = {"copies": 8000, "copies.left": 7, "originals.moved": 2}
    table = {(dejavu.Arm(None, "clean"), seed): clean for seed in (0, 1)}
    for layout, kind, value in itertools.product((every, some), ("kept", "removed"), (whole,)):
        known = knowing(value) | counts
        for prefix, part in (("copied", 0.4 if kind == "kept" else value), ("single", 0.02)):
            known |= dejavu.prefixed(prefix, knowing(part))
        table |= {(dejavu.Arm(layout, kind), seed): known for seed in (0, 1)}
    dejavu.report(table, [every, some], [0, 1])
    printed, said = capsys.readouterr().out, f"BAR {'holds' if holds else 'DOES NOT HOLD'}"
    assert f"{said}: déjà vu of the surest fifth is 10 points or more, {100 * whole:.1f} ± 0.7" in printed
    assert f"{said}: that of untrained twins is within 3 standard errors of 0" in printed
    assert f"{said}: that of twins of one pass is within" in printed
    assert f"{said}: the reference is within 3 standard errors of chance, 100 % of the crops" in printed
    assert f"{said}: that of the backbone, {10 if holds else 30}.0 ± 0.7, is below that of the projector" in printed
    assert f"{said}: linear probes of both are within 3 standard errors" in printed
    assert f"{said}: déjà vu grows with the steps" in printed
    assert printed.count("1x4: of 16,000 copies 14 are left, 4 originals changed their part") == 1
    half = 50 * whole
    with_copies = f"  with copies, 100 % of the crops: 20.0 ± 0.7 with copies, {half:.1f} ± 0.7 without"
    assert f"{with_copies}: {20 - half:.1f} ± 1.0 points, {(20 - half) / 20:.0%} taken away" in printed
    assert f"  all, 100 % of the crops, after as many passes: {half:.1f} ± 0.7 with copies, 2.0 ± 0.7" in printed
    assert "BAR holds: removal takes away from what is known of pictures with copies" in printed


def test_a_gap_is_clear_beyond_three_of_its_errors() -> None:
    assert dejavu.Gap(-0.31, 0.1).clear
    assert not dejavu.Gap(-0.31, 0.1).clear_gain
    assert not dejavu.Gap(0.29, 0.1).clear
    assert dejavu.Gap(0.5, 0.03) - dejavu.Gap(0.2, 0.04) == pytest.approx((0.3, 0.05))
    assert dejavu.layouts_of("1x4,0.25x16") == [(1.0, 4), (0.25, 16)]
    assert [layout.times for layout in dejavu.layouts_of("1x4,0.25x16")] == [5, 5]
    assert str(dejavu.Setting(100, 300, 800, 20, ("options.blur=0",))) == "100-300-800-20-options.blur=0"


@pytest.mark.slow
def test_grounds_of_planted_pictures_say_nothing_of_their_garments() -> None:
    """Classes are as frequent as asked for, boxes hold the garment, copies are smaller and nearly the same."""
    rows = list(planted(3, 0))
    assert sorted(str(row["label"]) for row in rows) == sorted(3 * list(CLASSES))
    pixels = {row["id"]: np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows}  # type: ignore[index]
    other = {row["id"]: row for row in planted(3, 0)}
    assert other == {row["id"]: row for row in rows}
    assert len({file.tobytes() for file in pixels.values()}) == 30
    for row in rows:
        ((left, top, right, bottom),) = row["boxes"]  # type: ignore[misc]
        assert (right - left, bottom - top) == (GLYPH, GLYPH)
        assert 0 <= min(left, top) <= max(right, bottom) <= SIDE
        copy = copy_of(row, 1, 0)
        image = Image.open(io.BytesIO(copy["image"]["bytes"]))  # type: ignore[index]
        assert image.width * image.height < SIDE * SIDE
        assert image.size == (copy["width"], copy["height"])
        near = np.asarray(image.resize((SIDE, SIDE)), np.float64) - pixels[row["id"]]
        assert np.abs(near).mean() < 40
        assert copy["label"] == row["label"]


@pytest.mark.slow
def test_twins_are_trained_with_copies_and_without(tmp_path: Path) -> None:
    setting, layout = dejavu.Setting(4, 6, 2, 5, ("options.strength=0.25",)), dejavu.Layout(0.5, 2)
    cells = {}
    for arm, work in dejavu.works(tmp_path, setting, [layout], 0):
        cells[arm, 0] = work()
    clean, kept, removed = cells.values()
    assert {"once.projector.score_20", "untrained.projector.score_20", "step_2.projector.score_100"} <= clean.keys()
    assert 0.9 * clean["pictures"] <= removed["pictures"] == kept["pictures"] <= 80
    assert removed["copied.pictures"] + removed["single.pictures"] == removed["pictures"]
    assert removed["copies"] == 2 * removed["copied.pictures"]
    assert removed["copies.left"] == removed["originals.moved"] == 0
    rows = {
        kind: dejavu.read_rows(tmp_path / "pictures" / f"seed-0-4-6-{layout}" / kind) for kind in ("keep", "remove")
    }
    members = {kind: {row["id"]: row["part"] for row in rows[kind] if row["part"] in ("A", "B")} for kind in rows}
    assert all(members["keep"][name.partition("-")[0]] == part for name, part in members["keep"].items())
    assert members["remove"] == {name: part for name, part in members["keep"].items() if "-" not in name}
    dejavu.report(cells, [layout], [0])


def test_renders_agree_with_the_class_in_training_and_no_pose_is_in_both_splits() -> None:
    rows = xrm.plan(["Cat", "Penguin"], 2400, 0)
    assert len(rows) == 2400 + xrm.TESTS == len({tuple(row.values()) for row in rows})
    for some, agree, every in ((rows[:2400], 0.95, 0), (rows[2400:], 0.5, 1)):
        agrees = [row["world_name"] == xrm.WORLDS[row["character_name"] == "Penguin"] for row in some]
        assert np.mean(agrees) == pytest.approx(agree, abs=0.03)
        assert sum(row["character_name"] == "Cat" for row in some) == len(some) / 2
        assert {int(row["character_rotation_yaw"]) // 5 % 2 for row in some} == {every}
    assert rows == xrm.plan(["Cat", "Penguin"], 2400, 0) != xrm.plan(["Cat", "Penguin"], 2400, 1)


def test_the_world_of_a_render_is_its_strip(tmp_path: Path) -> None:
    table = {
        "id": ["a", "b"],
        "image": [{"bytes": b"x", "path": "a.png"}, {"bytes": b"y", "path": "b.png"}],
        "world_name": ["Snow", "Meadow"],
        "character_name": ["Cat", "Penguin"],
        "character_rotation_yaw": [10.0, 355.0],
    }
    (tmp_path / "dataset" / "data").mkdir(parents=True)
    pq.write_table(pa.table(table), tmp_path / "dataset" / "data" / "one.parquet")
    run = xrm.write_run(tmp_path / "run", lambda: xrm.render_rows(tmp_path))
    (file,) = (Path(run) / "dataset" / "data").glob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    told = [(row["id"], row["label"], row["strip"], row["split"], row["image"]["bytes"]) for row in rows]
    assert told == [("a", "Cat", "1", "train", b"x"), ("b", "Penguin", "0", "test", b"y")]
    assert xrm.found(run, {"a": "1"}, ["Cat", "Penguin"]) == {"recall": 1, "precision": 1}
