"""Déjà vu of image-text models: its numbers by loops and by hand, and everything that would be taken for memory."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import List, Value
from measuring import measure
from PIL import Image
from tiny_shards import shapes, write_shards
from tiny_trainings import tiny_training

from granary.curation.errors import UserError
from granary.curation.store.sampling import priority
from granary.pipelines.command import main
from granary.training.data.augment import normalised, to_unit
from granary.training.evaluation.memorisation import ranked
from granary.training.evaluation.partition import write_partition
from granary.training.evaluation.partition_recipe import PartitionRecipe
from granary.training.evaluation.protocols import caption_dejavu
from granary.training.evaluation.recovery import (
    MEASURES,
    Asked,
    Recovered,
    better,
    gap,
    most_memorised,
    names_of,
    nearest_pictures,
    recovered,
)
from granary.training.models.training import load_training

NAMES = ("cat", "dog", "car", "tree", "boat")
EXTRA = {"objects": List({"name": Value("string"), "box": List(Value("int32"))}), "place": Value("string")}
FAST: dict[str, Any] = {"k": 3, "most": 2, "percent": [50, 100]}


def drawn(count: int, seed: int) -> list[frozenset[str]]:
    """Return sets of one to three names."""
    rng = np.random.default_rng(seed)
    return [frozenset(rng.choice(NAMES, int(rng.integers(1, 4)), replace=False).tolist()) for _ in range(count)]


def answers(scores: torch.Tensor, shown: Any, present: Any, ids: list[str], k: int = 3, most: int = 2) -> Recovered:
    public = [f"x{number}" for number in range(len(shown))]
    neighbours, best = nearest_pictures(scores, public, k)
    return recovered(neighbours, best.mean(dim=1), shown, present, ids, most)


def by_hand(said: set[str], present: frozenset[str]) -> tuple[float, float, float]:
    hits = len(said & present)
    precision, recall = hits / len(said) if said else 0.0, hits / len(present)
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def test_objects_are_those_that_most_of_the_nearest_pictures_show() -> None:
    torch.manual_seed(0)
    shown, present, ids = (
        drawn(20, 0),
        drawn(9, 1),
        [f"p{number}" for number in np.random.default_rng(2).permutation(9)],
    )
    scores = torch.randn(20, 9)
    found = answers(scores, shown, present, ids)
    assert found.ids == sorted(ids)
    for place, name in enumerate(found.ids):
        column = ids.index(name)
        near = sorted(range(20), key=lambda row: -float(scores[row, column]))[:3]
        cast = {word: sum(word in shown[row] for row in near) for word in NAMES}
        order = ranked(torch.tensor([[cast[word] for word in sorted(NAMES)]]), [name], 0, 2)[0].tolist()
        said = {sorted(NAMES)[number] for number in order if cast[sorted(NAMES)[number]]}
        assert found.said[place] == said
        values = found.precision[place], found.recall[place], found.f1[place]
        assert values == pytest.approx(by_hand(said, present[column]))
        assert found.confidence[place] == pytest.approx(np.mean([float(scores[row, column]) for row in near]))


def test_a_constant_model_asks_the_same_pictures_for_every_caption_and_has_no_gap() -> None:
    shown, present, ids = drawn(20, 0), drawn(9, 1), [f"p{number}" for number in range(9)]
    one, other = (answers(torch.full((20, 9), value), shown, present, ids, most=9) for value in (0.0, 7.0))
    public = [f"x{number}" for number in range(20)]
    first = sorted(range(20), key=lambda row: int(priority(0, [public[row]], "captions")[0]))[:3]
    said = frozenset[str]().union(*(shown[row] for row in first))
    assert set(one.said) == {said}
    assert one.recall == pytest.approx([len(said & some) / len(some) for some in present])
    for measure_of in MEASURES:
        for share in (0.2, 1.0):
            found = gap([Asked(one, other), Asked(other, one)], measure_of, share)
            assert found.score == 0
            assert found.directions == (0, 0)
    assert better([Asked(one, other)], "recall") == {"target_better": 0, "reference_better": 0}
    assert most_memorised(Asked(one, other), dict(zip(ids, present, strict=True)), 5) == []


def test_a_model_that_knows_all_by_heart_has_the_whole_gap() -> None:
    """Its captions lead to pictures of just their objects, those of the reference to pictures without any of them."""
    shown = [frozenset([name]) for name in NAMES]
    present = [frozenset([NAMES[number % 5]]) for number in range(10)]
    ids = [f"p{number}" for number in range(10)]
    same = torch.tensor([[float(some == one) for some in present] for one in shown])
    target = answers(same, shown, present, ids, k=1)
    reference = answers(same.roll(1, 0), shown, present, ids, k=1)
    for measure_of in MEASURES:
        found = gap([Asked(target, reference)] * 2, measure_of, 0.5)
        assert found == (1, 0, 1, 0, (1, 1), (5, 5))
        assert better([Asked(target, reference)], measure_of) == {"target_better": 1, "reference_better": 0}
    known = most_memorised(Asked(target, reference), dict(zip(ids, present, strict=True)), 3)
    assert [row["objects"] for row in known] == [row["target_says"] for row in known]
    assert all(row["objects"] != row["reference_says"] for row in known)
    assert most_memorised(Asked(reference, target), dict(zip(ids, present, strict=True)), 3) == []


def test_each_model_ranks_by_its_own_confidence() -> None:
    def model(values: list[float], confidence: list[float]) -> Recovered:
        array = np.array(values)
        return Recovered(list("abcd"), array, array, array, np.array(confidence), [frozenset()] * 4)

    target = model([1, 0.5, 0, 0], [0.9, 0.8, 0.1, 0.2])
    reference = model([0, 0, 0.5, 0.5], [0.1, 0.2, 0.8, 0.9])
    found = gap([Asked(target, reference)], "recall", 0.5)
    assert (found.target, found.reference, found.score) == (0.75, 0.5, 0.25)
    assert found.error == pytest.approx(np.sqrt(0.0625 / 2))
    assert gap([Asked(target, reference)], "recall", 1.0).score == pytest.approx(0.125)
    assert better([Asked(target, reference)], "recall") == {"target_better": 0.5, "reference_better": 0.5}


def test_the_order_of_pictures_and_captions_changes_nothing() -> None:
    shown, present, ids = drawn(20, 0), drawn(9, 1), [f"p{number}" for number in range(9)]
    scores = torch.randint(0, 3, (20, 9), generator=torch.Generator().manual_seed(0)).double()
    public = [f"x{number}" for number in range(20)]
    rows, columns = (np.random.default_rng(seed).permutation(size) for seed, size in ((0, 20), (1, 9)))
    found = []
    for some, others in ((np.arange(20), np.arange(9)), (rows, columns)):
        near, best = nearest_pictures(scores[some][:, others], [public[row] for row in some], 4)
        moved = [shown[row] for row in some], [present[row] for row in others], [ids[row] for row in others]
        found.append(recovered(near, best.mean(dim=1), *moved, 2))
    assert found[0].said == found[1].said
    for measure_of in (*MEASURES, "confidence"):
        assert getattr(found[0], measure_of).tolist() == getattr(found[1], measure_of).tolist()


def test_names_are_texts_numbers_or_records_with_a_name() -> None:
    assert names_of("cat", "c") == {"cat"}
    assert names_of([{"name": "cat", "box": [1]}, {"label": "dog"}, None, " "], "c") == {"cat", "dog"}
    assert names_of([1, 2.5], "c") == {"1", "2.5"}
    assert names_of(None, "c") == names_of([], "c") == names_of({"name": None}, "c") == frozenset()
    with pytest.raises(UserError, match=r"objects: things of RUN is not right: \{'colour': 'red'\} is no name"):
        names_of([{"colour": "red"}], "things of RUN")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shapes in parts with captions that do not say what is there; every ninth shows something that has no name."""
    folder, rows = tmp_path_factory.mktemp("captioned"), []
    for number, row in enumerate(shapes(160, 16)):
        objects = [{"name": row["label"], "box": [0, 0, 9, 9]}, {"name": NAMES[number % 5], "box": None}]
        nameless = [{"name": None, "box": [0, 0, 9, 9]}]
        columns = {"objects": nameless if number % 9 == 0 else objects, "place": "ab"[number % 3 == 0]}
        rows.append({**row, **columns, "captions": [f"picture {number}", "a shape"]})
    write_shards(folder / "run", rows, extra=EXTRA)
    given = {"data": str(folder / "run"), "out": str(folder / "out"), "per_class": 8, "threshold": 0.99}
    write_partition(PartitionRecipe.model_validate(given), lambda _: None)
    return str(folder / "out")


@pytest.fixture(scope="module")
def models(run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        **{part: tiny_training("clip", run, root / part, split=f"part={part}", steps=6) for part in "AB"},
        "siglip-A": tiny_training("siglip", run, root / "siglip-A", split="part=A"),
        "public": tiny_training("clip", run, root / "public", split="part=B,X", steps=6),
    }


def rows_of(run: str, part: str) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(Path(run, "dataset", "data").iterdir())]
    return [row for row in pa.concat_tables(tables).to_pylist() if row["part"] == part]


@torch.no_grad()
def slow(models: dict[str, str], run: str, k: int, most: int) -> dict[str, float]:
    """Return the gaps over all captions, one picture and one caption at a time."""
    public, means = rows_of(run, "X"), dict[str, tuple[float, float, float]]()
    names = sorted({thing["name"] for row in public for thing in row["objects"] if thing["name"]})
    for name in "AB":
        model: Any = load_training(models[name])
        bank = []
        for row in public:
            pixels = torch.from_numpy(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")).copy())
            bank.append(model.encode_pixels(normalised(to_unit(pixels[None]), model.config.mean, model.config.std))[0])
        for part in "AB":
            values = []
            for row in rows_of(run, part):
                if row["objects"][0]["name"]:
                    text = model.encode_tokens(model.tokenizer.numbers(row["captions"][:1]))[0]
                    near = sorted(range(len(bank)), key=lambda place: -float(bank[place] @ text))[:k]
                    shown = [{thing["name"] for thing in public[place]["objects"]} for place in near]
                    cast = torch.tensor([[sum(word in some for some in shown) for word in names]])
                    best = ranked(cast, [row["id"]], 0, most)[0].tolist()
                    said = {names[number] for number in best if cast[0, number]}
                    values.append(by_hand(said, frozenset(thing["name"] for thing in row["objects"])))
            means[name + part] = tuple(np.mean(values, axis=0).tolist())
    both = zip(means["AA"], means["BB"], means["BA"], means["AB"], strict=True)
    return dict(zip(MEASURES, [(aa + bb - ba - ab) / 2 for aa, bb, ba, ab in both], strict=True))


def scores(run: str, models: dict[str, str], **given: Any) -> Any:
    return measure(caption_dejavu, models["A"], run, device="cpu", **{"reference": models["B"], **FAST, **given})


def test_gaps_are_those_of_the_definition(run: str, models: dict[str, str]) -> None:
    found, expected = scores(run, models), slow(models, run, 3, 2)
    for measure_of in MEASURES:
        name = f"{measure_of}.gap_100"
        assert found[name] == pytest.approx(expected[measure_of], abs=1e-9)
        assert found[name] == pytest.approx(found[f"{name}.target"] - found[f"{name}.reference"])
        assert found[name] == pytest.approx((found[f"{name}.A"] + found[f"{name}.B"]) / 2)
        assert 0 < found[f"{name}.error"] < 0.2
    shares = [found[f"recall.population.{name}"] for name in ("target_better", "reference_better")]
    assert found["recall.population"] == pytest.approx(shares[0] - shares[1])
    bare = sum(not row["objects"][0]["name"] for part in "AB" for row in rows_of(run, part))
    assert found["pictures.without_objects"] == bare > 0
    assert found["pictures"] + bare == 64
    assert found["pictures.public"] == len(rows_of(run, "X"))
    assert found.settings["objects"] == ["objects"]
    assert not found.notes
    json.dumps(found.settings)
    assert dict(scores(run, models, batch=1)) == pytest.approx(dict(found), abs=1e-6)
    assert scores(run, models, split="place=a")["pictures"] < found["pictures"]


def test_any_columns_name_what_is_there(run: str, models: dict[str, str]) -> None:
    found = scores(run, models, objects="label,place", k=1000)
    assert found["pictures"] == 64
    assert found["recall.gap_100"] == 0  # all public pictures vote, and say the same to both
    assert found.notes == (f"k = 1000: there are only {found['pictures.public']} public pictures; all vote",)


@pytest.mark.parametrize(
    ("reference", "given", "message"),
    [
        (None, {}, "options.reference: missing"),
        ("B", {"percent": [0]}, r"options.percent: \(0,\) is not right"),
        ("B", {"objects": "things"}, "options.objects: .* has no column 'things'; it has"),
        ("A", {}, "A.* was trained on 32 pictures of part A"),
        ("siglip-A", {}, "siglip-A.* is no twin of .*: method is 'siglip', not 'clip'"),
        ("public", {}, r"public.* was trained on \d+ pictures of part X"),
    ],
)
def test_what_would_be_taken_for_memory_is_refused(
    reference: str | None, given: dict[str, Any], message: str, run: str, models: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=message):
        scores(run, {**models, "B": models[reference] if reference else None}, **given)  # type: ignore[dict-item]


def test_pictures_without_captions_or_objects_are_said(tmp_path: Path, models: dict[str, str], run: str) -> None:
    tables = [pq.read_table(path) for path in sorted(Path(run, "dataset", "data").iterdir())]
    table = pa.concat_tables(tables)
    for name, change, message in (
        ("bare", {"objects": []}, "has a caption and objects in objects: 0 have no caption, 32 no objects"),
        ("blank", {"captions": [" "]}, "has a caption and objects in objects: 32 have no caption, 0 no objects"),
    ):
        rows = [{**row, **change} if row["part"] == "A" else row for row in table.to_pylist()]
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / name / "a.parquet", row_group_size=50)
        with pytest.raises(UserError, match=message):
            scores(str(tmp_path / name), models)


def test_the_command_tells_it(run: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "caption-dejavu", "--model", models["A"], "--data", run, "--device", "cpu"]
    assert main([*words, "--options.reference", models["B"], "--options.k", "3"]) == 0
    printed = capsys.readouterr().out
    assert "recall.gap_100" in printed
    assert "population" in printed
