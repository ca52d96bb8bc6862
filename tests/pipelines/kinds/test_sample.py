"""The sampling pipeline with a sampler that draws at once: what it is asked for, what it writes, what it survives."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pools
import pytest
from PIL import Image
from rich.console import Console

from granary.curation.errors import UserError
from granary.pipelines import command
from granary.pipelines.engine.recipe import load_recipe
from granary.pipelines.engine.units import Engine, Runner
from granary.pipelines.kinds.sample import sample, write_report
from granary.synth.feedback import lending, sampler
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.plan import Cell, plan_rows, row_seed, shortfalls
from granary.synth.feedback.recipe import SampleRecipe
from granary.synth.feedback.requests import Drawn, Request

COUNTS = {"ant": 9, "bee": 4, "cow": 1}
SMALL = ("--unit_rows", "4", "--pairs", "3", "--shards.rows", "8", "--shards.row_group", "3", "--sampling.batch", "3")


class FakeSampler:
    """Draws pictures that are a hash of the request; the classifier's classes are in another order than the model's."""

    classes: ClassVar[list[str] | None] = ["cow", "bee", "ant"]
    classifier_classes: ClassVar[list[str]] = ["bee", "ant", "cow", "yak"]
    needs: ClassVar[tuple[str, ...]] = ("label",)
    broken: ClassVar[Callable[[Request], bool]] = staticmethod(lambda request: False)
    picture: ClassVar[Callable[[Request], np.ndarray | None]] = staticmethod(lambda request: None)
    asked: ClassVar[list[tuple[float, Request]]] = []
    models = "fake-1"

    def __init__(self, model: str, classifier: str, guidance: GuidanceOptions, *_: Any) -> None:
        self.guidance = guidance

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def draw(self, requests: Sequence[Request], batch: int = 16) -> list[Drawn]:
        type(self).asked += [(self.guidance.omega, request) for request in requests]
        return [self._drawn(request) for request in requests]

    def _drawn(self, request: Request) -> Drawn:
        image = self.picture(request)
        if image is None:
            image = np.asarray(pools.picture(request.seed % 2**32, 24))
        bad = math.nan if request.seed % 2 else math.inf
        value = bad if self.broken(request) else request.target + self.guidance.omega
        return Drawn(request.row_id, image, value, (0.5, 0.25 + self.guidance.omega), request.target, 0.75, 0, False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSampler]:
    class Fake(FakeSampler):
        asked: ClassVar[list[tuple[float, Request]]] = []

    monkeypatch.setattr(sampler, "Sampler", Fake)
    monkeypatch.setattr(lending, "_idle", {})
    return Fake


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sub-folder for each class; pictures of a class are told by their seed."""
    folder = tmp_path_factory.mktemp("data")
    numbers = {label: 100 * i for i, label in enumerate(COUNTS)}
    return pools.write(
        folder,
        {
            f"{label}/{i}.png": pools.picture(1_000_000 + numbers[label] + i, 24)
            for label, count in COUNTS.items()
            for i in range(count)
        },
    )


def run(out: Path, data: Path, *words: str, workers: int = 2, beam: bool = False) -> dict[str, Any]:
    """Run the pipeline; its units run in a loop unless `beam`."""
    named = ["--data", str(data), "--model", "m", "--classifier", "c", "--out", str(out), *SMALL, *words]
    recipe = load_recipe(SampleRecipe, None, named)
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", pools.run_in_a_loop)
        return sample(recipe, Engine(workers=workers), Console(file=io.StringIO()))


def rows(out: Path, what: str = "dataset/data") -> list[dict[str, Any]]:
    return pools.Run(str(out)).table(what)


def files(out: Path, what: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / what).iterdir()) if path.is_file()}


# -- what is made ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    patch = pytest.MonkeyPatch()
    patch.setattr(sampler, "Sampler", FakeSampler)
    patch.setattr(lending, "_idle", {})
    out = tmp_path_factory.mktemp("run") / "out"
    facts = run(out, data, "--guidance.omega", "0.5", beam=True)
    patch.undo()
    return out, facts


def test_every_class_is_filled_up_to_the_largest(made: tuple[Path, dict[str, Any]]) -> None:
    found = rows(made[0])
    assert Counter(row["class"] for row in found) == {"bee": 5, "cow": 8}
    planned = plan_rows(shortfalls({Cell(label): count for label, count in COUNTS.items()}), 0)
    assert [row["row_id"] for row in found] == [row.row_id for row in planned]
    assert [row["seed"] for row in found] == [row_seed(0, row.row_id) for row in planned]


def test_a_sample_has_the_columns_of_the_design(made: tuple[Path, dict[str, Any]]) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(made[0] / "dataset"), split="train")
    assert len(loaded) == 13
    first = loaded[0]
    assert first["image"].size == (24, 24)
    wanted = {"omega": 0.5, "criterion": "entropy", "predicted_label": first["class"], "group": "", "prompt": ""}
    assert {key: first[key] for key in wanted} == wanted
    assert first["criterion_value"] == FakeSampler.classifier_classes.index(first["class"]) + 0.5
    assert first["criterion_trace"] == [0.5, 0.75]
    assert first["conditioning_id"] is None
    assert first["copy"] is False


def test_ids_are_of_the_bytes_and_images_are_png(made: tuple[Path, dict[str, Any]]) -> None:
    for row in rows(made[0]):
        data = row["image"]["bytes"]
        assert row["id"] == hashlib.sha256(data).hexdigest()[:32]
        image = Image.open(io.BytesIO(data))
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.asarray(pools.picture(row["seed"] % 2**32, 24)))


def test_the_nearest_real_picture_is_that_of_brute_force(made: tuple[Path, dict[str, Any]], data: Path) -> None:
    encoder = pools.encoder_of("builtin:copy")
    real = sorted(data.rglob("*.png"))
    names = [hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in real]
    vectors = encoder.embed([Image.open(path).convert("RGB") for path in real])
    for row in rows(made[0]):
        cosines = vectors @ encoder.embed([Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")])[0]
        assert row["nearest_real_similarity"] == pytest.approx(cosines.max(), abs=2e-3)  # stored as float16
        assert cosines[names.index(row["nearest_real_id"])] == pytest.approx(cosines.max(), abs=2e-3)


def test_the_ledger_has_every_row_and_every_real_picture(made: tuple[Path, dict[str, Any]]) -> None:
    found = Counter((row["role"], row["status"]) for row in rows(made[0], "ledger"))
    assert found == {("sample", "kept"): 13, ("data", "kept"): 14}


def test_nothing_of_the_machine_is_in_the_dataset(made: tuple[Path, dict[str, Any]], data: Path) -> None:
    for folder in ("dataset", "dataset/data", "ledger"):
        for name, content in files(made[0], folder).items():
            assert str(data).encode() not in content, name
            assert str(made[0]).encode() not in content, name


def test_facts_tell_samples_by_class_and_the_gain_of_feedback(made: tuple[Path, dict[str, Any]]) -> None:
    facts = made[1]
    assert facts["flow"][0] == {"stage": "draw", "in": 13, "kept": 13, "dropped": 0, "dead": 0}
    by_class = {row["label"]: row for row in facts["classes"]}
    assert (by_class["cow"]["real"], by_class["cow"]["planned"], by_class["cow"]["kept"]) == (1, 8, 8)
    assert by_class["cow"]["value"] == 2.5
    assert by_class["bee"]["agreed"] == 1.0
    assert facts["pairs"]["count"] == 3
    assert facts["pairs"]["guided"] - facts["pairs"]["unguided"] == pytest.approx(0.5)
    assert facts["trace"]["guided"][:2] == [0.5, 0.75]
    assert facts["trace"]["unguided"][:2] == [0.5, 0.25]
    assert any("cow" in note for note in facts["notes"])  # one image only


def test_the_report_stands_alone_and_is_escaped(made: tuple[Path, dict[str, Any]]) -> None:
    path = Path(write_report(str(made[0])))
    html = path.read_text()
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("data:image/png") >= 2 * 3
    assert "<script" not in html
    for word in ("cow", "bee", "without feedback", "Along the steps", "Closest to a real image"):
        assert word in html


def test_class_names_cannot_smuggle_markup_into_the_report(
    fake: type[FakeSampler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pools.write(tmp_path / "d", {"<b>x/0.png": pools.picture(1, 24), "ant/0.png": pools.picture(2, 24)})
    monkeypatch.setattr(fake, "classes", ["<b>x", "ant"])
    monkeypatch.setattr(fake, "classifier_classes", ["<b>x", "ant"])
    run(tmp_path / "out", folder, "--plan.fill", "2")
    html = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "<b>x" not in html
    assert "&lt;b&gt;x" in html


# -- what the sampler is asked for -----------------------------------------------------------------------------------


def test_classes_go_by_name_to_model_and_classifier(fake: type[FakeSampler], data: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", data)
    pairs = {(request.label, request.target) for _, request in fake.asked}
    assert pairs == {(1, 0), (0, 2)}  # bee, cow


def test_unguided_pictures_come_from_the_same_seeds(fake: type[FakeSampler], data: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", data, "--guidance.omega", "0.25")
    seeds = {omega: {r.row_id: r.seed for o, r in fake.asked if o == omega} for omega in (0.0, 0.25)}
    assert len(seeds[0.0]) == 3
    assert seeds[0.0].items() <= seeds[0.25].items()


def test_prompts_and_conditioning_pictures(
    fake: type[FakeSampler], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "classes", None)
    monkeypatch.setattr(fake, "needs", ("prompt", "condition"))
    monkeypatch.setattr(fake, "classifier_classes", ["the bee", "ant", "cow"])
    held = pools.write(tmp_path / "held", {"x.png": pools.picture(1_000_100, 24)})  # one of the four bees
    words = ["--plan.names", "{bee: the bee}", "--holdout", str(held), "--plan.fill", "12"]
    facts = run(tmp_path / "out", data, *words)
    names = {hashlib.sha256(path.read_bytes()).hexdigest()[:32]: path for path in data.rglob("*.png")}
    secret = hashlib.sha256((held / "x.png").read_bytes()).hexdigest()[:32]
    found = rows(tmp_path / "out")
    assert Counter(row["class"] for row in found) == {"ant": 3, "bee": 9, "cow": 11}  # three bees are left
    for row in found:
        assert names[row["conditioning_id"]].parent.name == row["class"]
        assert row["conditioning_id"] != secret
        name = "the bee" if row["class"] == "bee" else row["class"]
        assert row["prompt"] == f"a photo of a {name}"
        assert row["captions"] == [row["prompt"]]
    shown = {request.row_id: request.condition for _, request in fake.asked}
    for row in found:
        assert np.array_equal(np.asarray(shown[row["row_id"]]), np.asarray(Image.open(names[row["conditioning_id"]])))
    assert len({row["conditioning_id"] for row in found if row["class"] == "bee"}) > 1
    assert any("held out" in note for note in facts["notes"])


def test_groups_are_filled_up(fake: type[FakeSampler], tmp_path: Path) -> None:
    counts = {"snow/ant": 4, "sand/ant": 1, "snow/bee": 2}
    folder = pools.write(
        tmp_path / "d",
        {
            f"{name}/{i}.png": pools.picture(300 + 10 * number + i, 24)
            for number, (name, count) in enumerate(counts.items())
            for i in range(count)
        },
    )
    pattern = "/(?P<group>[^/]+)/(?P<class>[^/]+)/[^/]+$"
    words = ["--plan.groups.by", "path", "--plan.groups.pattern", pattern, "--plan.empty_cells", "true"]
    run(tmp_path / "out", folder, *words)
    found = Counter((row["class"], row["group"]) for row in rows(tmp_path / "out"))
    assert found == {("ant", "sand"): 3, ("bee", "snow"): 2, ("bee", "sand"): 4}


# -- the same bytes --------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_workers_or_place(
    made: tuple[Path, dict[str, Any]], fake: type[FakeSampler], data: Path, tmp_path: Path
) -> None:
    run(tmp_path / "elsewhere", data, "--guidance.omega", "0.5", workers=1)
    for folder in ("dataset", "dataset/data", "ledger"):
        assert files(tmp_path / "elsewhere", folder) == files(made[0], folder)


def test_a_killed_run_goes_on_where_it_stopped(
    made: tuple[Path, dict[str, Any]], fake: type[FakeSampler], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    victim = rows(made[0])[5]["row_id"]  # in the second unit

    def dies(request: Request) -> np.ndarray | None:
        if request.row_id == victim:
            raise OSError("no space left")
        return None

    monkeypatch.setattr(fake, "picture", staticmethod(dies))
    with pytest.raises(UserError, match="stage draw"):
        run(tmp_path / "out", data, "--guidance.omega", "0.5", workers=1)
    before = {request.row_id for _, request in fake.asked}
    finished = {row["row_id"] for row in rows(tmp_path / "out", "draw")}
    assert finished
    fake.asked.clear()
    monkeypatch.setattr(fake, "picture", staticmethod(lambda request: None))
    run(tmp_path / "out", data, "--guidance.omega", "0.5")
    again = {request.row_id for omega, request in fake.asked if omega}
    assert again.isdisjoint(finished)
    assert victim in again
    assert before
    for folder in ("dataset", "dataset/data", "ledger"):
        assert files(tmp_path / "out", folder) == files(made[0], folder)


def test_a_finished_run_draws_nothing_and_a_changed_one_everything(
    fake: type[FakeSampler], data: Path, tmp_path: Path
) -> None:
    run(tmp_path / "out", data)
    fake.asked.clear()
    run(tmp_path / "out", data)
    assert fake.asked == []
    run(tmp_path / "out", data, "--guidance.omega", "0.75")
    assert len([omega for omega, _ in fake.asked if omega == 0.75]) == 13


# -- bad luck --------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_drawn_once_more(
    fake: type[FakeSampler], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = staticmethod(lambda request: request.target == 0 and request.seed == row_seed(0, request.row_id))
    monkeypatch.setattr(fake, "broken", first)
    run(tmp_path / "out", data)
    found = rows(tmp_path / "out")
    assert len(found) == 13
    for row in found:
        assert row["seed"] == row_seed(0, row["row_id"], attempt=int(row["class"] == "bee"))


def test_what_is_never_finite_is_a_dead_letter_and_the_run_goes_on(
    fake: type[FakeSampler], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "broken", staticmethod(lambda request: request.target == 0))
    facts = run(tmp_path / "out", data)
    assert Counter(row["class"] for row in rows(tmp_path / "out")) == {"cow": 8}
    dead = rows(tmp_path / "out", "dead-letter")
    assert {(row["stage"], row["error"]) for row in dead} == {("draw", "NotFinite")}
    assert len(dead) == 5
    ledger = {row["uri"]: row["status"] for row in rows(tmp_path / "out", "ledger") if row["role"] == "sample"}
    assert Counter(ledger.values()) == {"kept": 8, "dead": 5}
    assert {row["uri"] for row in dead} == {uri for uri, status in ledger.items() if status == "dead"}
    assert facts["flow"][0]["dead"] == 5
    assert {row["label"]: row["kept"] for row in facts["classes"]} == {"ant": 0, "bee": 0, "cow": 8}


@pytest.mark.parametrize("drop", [False, True])
def test_copies_are_flagged_or_left_out(
    fake: type[FakeSampler], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drop: bool
) -> None:
    stolen = np.asarray(Image.open(data / "cow" / "0.png").convert("RGB"))
    monkeypatch.setattr(fake, "picture", staticmethod(lambda request: stolen if request.target == 2 else None))
    facts = run(tmp_path / "out", data, "--copies.drop", str(drop).lower())
    copies = [row for row in rows(tmp_path / "out") if row["copy"]]
    original = hashlib.sha256((data / "cow" / "0.png").read_bytes()).hexdigest()[:32]
    assert len(copies) == (0 if drop else 8)
    assert all(row["nearest_real_id"] == original and row["nearest_real_similarity"] > 0.999 for row in copies)
    dropped = [row for row in rows(tmp_path / "out", "ledger") if row["status"] == "dropped"]
    assert [row["representative"] for row in dropped] == [original] * (8 if drop else 0)
    assert facts["flow"][1]["dropped"] == (8 if drop else 0)


def test_unreadable_and_unlabelled_pictures_are_told_and_not_counted(
    fake: type[FakeSampler], data: Path, tmp_path: Path
) -> None:
    folder = pools.write(
        tmp_path / "d",
        {
            "ant/0.png": pools.picture(1, 24),
            "ant/1.png": pools.picture(2, 24),
            "ant/bad.png": b"no picture",
            "bee/0.png": pools.picture(3, 7),  # smaller than anything drawn
            "stray.png": pools.picture(4, 24),
        },
    )
    facts = run(tmp_path / "out", folder)
    assert Counter(row["class"] for row in rows(tmp_path / "out")) == {"bee": 1}
    [dead] = rows(tmp_path / "out", "dead-letter")
    assert dead["uri"] == "data/ant/bad.png"
    ledger = {row["uri"]: (row["status"], row["reason"]) for row in rows(tmp_path / "out", "ledger")}
    assert ledger["data/stray.png"] == ("dropped", "no label")
    assert ledger["data/ant/bad.png"][0] == "dead"
    assert any("no label" in note for note in facts["notes"])


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"classes": ["cow", "ant", "wasp"]}, [], r"model: 'm'.*'bee'.*plan\.names"),
        ({"classifier_classes": ["cow", "ant"]}, [], r"classifier: 'c'.*'bee'.*plan\.names"),
        ({}, ["--plan.fill", "1"], r"plan\.fill: every class has 1 images or more"),
        ({}, ["--data", "nowhere"], "data.*nothing there"),
        ({}, ["--copies.encoder", "builtin:none"], "encoder 'builtin:none'"),
    ],
)
def test_mistakes_are_one_sentence_and_draw_nothing(
    fake: type[FakeSampler],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: Mapping[str, Any],
    words: list[str],
    message: str,
) -> None:
    for name, value in changes.items():
        monkeypatch.setattr(fake, name, value)
    overrides = ["--model", "m", "--classifier", "c", "--out", str(tmp_path / "out"), *words]
    if "--data" not in words:
        overrides += ["--data", str(data)]
    recipe = load_recipe(SampleRecipe, None, overrides)
    with pytest.raises(UserError, match=message):
        sample(recipe, Engine(workers=1), Console(file=io.StringIO()))
    assert fake.asked == []


def test_a_run_inside_its_data_is_refused(fake: type[FakeSampler], data: Path) -> None:
    with pytest.raises(UserError, match="lies inside data"):
        run(data / "ant" / "out", data)


def test_data_without_labels_is_one_sentence(fake: type[FakeSampler], tmp_path: Path) -> None:
    folder = pools.write(tmp_path / "d", {"0.png": pools.picture(1, 24)})
    with pytest.raises(UserError, match="no readable image with a label"):
        run(tmp_path / "out", folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guidance.omega", "nan"], "guidance.omega"),
        (["--guidance.criterion", "margin"], "guidance.criterion"),
        (["--guidance.omegga", "1"], "did you mean guidance.omega"),
        (["--plan.templates", "a photo"], "plan.templates"),
    ],
)
def test_wrong_options_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", "d", "--model", "m", "--classifier", "c", "--out", str(tmp_path / "out")]
    assert command.main(["sample", *common, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_facts_are_plain_json(made: tuple[Path, dict[str, Any]]) -> None:
    facts = json.loads((made[0] / "run.json").read_text())
    assert facts["kind"] == "sample"
    assert facts["samples"] == 13
    assert facts["shards"] == 2
