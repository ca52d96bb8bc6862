"""Winoground, order, POPE, CLIPScore and bias: closed forms of constant, random and knowing models, and real ones."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from fake_models import FakeGenerator, FakePair, at_random, coloured, constant, seen, two_colours, write_table
from measuring import measure
from tiny_clip import COLOURS, png, tiny_clip
from tiny_shards import shapes, write_shards
from tiny_trainings import tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.store.language import poll_feature
from granary.training.evaluation.generators import GeneratedPairs
from granary.training.evaluation.negatives import CHANGES, WORD, negative
from granary.training.evaluation.pairs import load_image_text_model
from granary.training.evaluation.protocols import bias, clipscore, order, pope, winoground

WINOGROUND = Features(
    {
        "id": Value("int32"),
        "image_0": ImageFeature(),
        "image_1": ImageFeature(),
        "caption_0": Value("string"),
        "caption_1": Value("string"),
        "tag": Value("string"),
        "secondary_tag": Value("string"),
        "num_main_preds": Value("int32"),
        "collapsed_tag": Value("string"),
    }
)
PAIRS = list(itertools.combinations(COLOURS, 2))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A CLIP of `transformers`, and trainings of SigLIP and Llip."""
    folder = tmp_path_factory.mktemp("models")
    tiny_clip().save(str(folder / "hub"))
    run = tiny_run(folder / "run")
    trained = {kind: str(tiny_training(kind, run, folder / kind)) for kind in ("siglip", "llip")}
    return {"hub": f"hf:{folder / 'hub'}", **trained}


MODELS = ("hub", "siglip", "llip")


def is_true(picture: Tensor, text: str) -> float:
    """Know what is left and what is right."""
    left, right = seen(picture)
    return float(text == f"{left} left of {right}")


def bag_of_words(picture: Tensor, text: str) -> float:
    """Know what is there, not where."""
    return float(all(colour in text for colour in seen(picture)))


def only_says_left(picture: Tensor, text: str) -> float:
    """Know the picture, not the caption: its left colour decides."""
    return float(list(COLOURS).index(seen(picture)[0]))


def use(model: object, protocol: ModuleType, monkeypatch: pytest.MonkeyPatch, loader: str = "load_pair_scorer") -> None:
    monkeypatch.setattr(protocol, loader, lambda *_: model)


# -- winoground --------------------------------------------------------------------------------------------------------


def quad(number: int, one: str, other: str, **columns: Any) -> dict[str, Any]:
    """Return a row in the published format."""
    return {
        "id": number,
        "image_0": {"bytes": png(two_colours(one, other)), "path": f"ex_{number}_img_0.png"},
        "image_1": {"bytes": png(two_colours(other, one)), "path": f"ex_{number}_img_1.png"},
        "caption_0": f"{one} left of {other}",
        "caption_1": f"{other} left of {one}",
        "tag": ("Adjective-Color", "Noun")[number % 2],
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": "Object",
        **columns,
    }


def quads(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    write_table(folder / "test-00000-of-00001.parquet", rows, WINOGROUND)
    return str(folder)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (is_true, (1, 1, 1)),
        (constant, (0, 0, 0)),
        (bag_of_words, (0, 0, 0)),
        (only_says_left, (0, 0, 0)),
        (lambda picture, text: -is_true(picture, text), (0, 0, 0)),
    ],
)
def test_quads_of_models_that_know_and_that_do_not(
    score: Any, expected: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakePair(score), winoground, monkeypatch)
    found = measure(winoground, "", quads(tmp_path, [quad(n, *pair) for n, pair in enumerate(PAIRS)]), batch=6)
    assert (found["text"], found["image"], found["group"]) == expected
    assert found["group.Noun"] == found["group.Adjective-Color"] == expected[2]
    assert found["ties"] == (0 if score(torch.zeros(3, 8, 8), "x") != 0.3 and expected[0] else found["ties"])
    assert found["quads"] == 28
    assert (found["text.chance"], found["image.chance"], found["group.chance"]) == (0.25, 0.25, 1 / 6)


def test_random_scores_are_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times the same pictures with other texts."""
    rows = [
        quad(n, *pair, caption_0=f"{n} left {k}", caption_1=f"{n} right {k}")
        for k in range(20)
        for n, pair in enumerate(PAIRS)
    ]
    use(FakePair(at_random), winoground, monkeypatch)
    found = measure(winoground, "", quads(tmp_path, rows))
    for name, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)):
        assert found[name] == pytest.approx(chance, abs=3.5 * (chance * (1 - chance) / 560) ** 0.5)
    assert found["ties"] == 0


def test_a_model_that_ties_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakePair(only_says_left), winoground, monkeypatch)
    assert measure(winoground, "", quads(tmp_path, [quad(0, "red", "blue")]))["ties"] == 1


def test_broken_pictures_and_missing_captions_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [quad(n, *pair) for n, pair in enumerate(PAIRS[:6])]
    rows[2]["image_1"] = {"bytes": b"broken", "path": "b.png"}
    rows[3]["image_0"] = None
    rows[4]["caption_1"] = None
    use(FakePair(is_true), winoground, monkeypatch)
    found = measure(winoground, "", quads(tmp_path, rows), batch=2)
    assert (found["quads"], found["quads.unreadable"], found["quads.without_captions"]) == (3, 2, 1)
    assert [letter["uri"] for letter in found.settings["dead"]] == ["2", "3"]  # type: ignore[attr-defined]
    assert found["group"] == 1
    assert measure(winoground, "", str(tmp_path), limit=2)["quads"] == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nothing to measure on: no row has caption_0 and caption_1"):
        measure(winoground, "", quads(tmp_path / "empty", rows[4:5]))
    with pytest.raises(UserError, match="nothing to measure on: its pictures cannot be decoded, for example 2"):
        measure(winoground, "", quads(tmp_path / "empty", rows[2:3]))


def test_quads_of_a_run_lie_beside_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_shards(tmp_path / "run", shapes(4))
    quads(run / "dataset" / "quads", [quad(0, "red", "blue")])
    use(FakePair(is_true), winoground, monkeypatch)
    assert measure(winoground, "", str(run))["quads"] == 1
    with pytest.raises(
        UserError, match="has no quads; give a run with dataset/quads, or Parquet files with the columns"
    ):
        measure(winoground, "", str(write_shards(tmp_path / "other", shapes(4))))
    with pytest.raises(UserError, match="has no column 'image_0', which Winoground needs"):
        measure(winoground, "", str(tmp_path / "other" / "dataset" / "data"))


@pytest.mark.parametrize("kind", MODELS)
def test_quads_by_real_models_are_scored_pair_by_pair(kind: str, models: dict[str, str], tmp_path: Path) -> None:
    rows = [quad(n, *pair) for n, pair in enumerate(PAIRS[:5])]
    found = measure(winoground, models[kind], quads(tmp_path, rows), device="cpu", batch=4)
    model, right = load_image_text_model(models[kind], "cpu"), {"text": 0, "image": 0}
    for row in rows:
        vectors = [model.pictures([row[f"image_{n}"]["bytes"]])[0] for n in (0, 1)]
        texts = model.texts([row["caption_0"], row["caption_1"]])
        (a, b), (c, d) = model.scores(torch.stack(vectors), texts).tolist()  # type: ignore[arg-type]
        right["text"] += a > b and d > c
        right["image"] += a > c and d > b
    assert found["text"] == right["text"] / 5
    assert found["image"] == right["image"] / 5


def test_a_generator_scores_quads_by_likelihood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(GeneratedPairs(FakeGenerator(is_true)), winoground, monkeypatch)
    data = quads(tmp_path, [quad(n, *pair) for n, pair in enumerate(PAIRS)])
    assert measure(winoground, "", data)["group"] == 1


# -- order -------------------------------------------------------------------------------------------------------------

CAPTION = "There is a small red block to the left of a big blue block, above it a Cat."


@pytest.mark.parametrize("kind", CHANGES)
def test_negatives_have_the_same_words_in_other_places(kind: str) -> None:
    wrong = negative(CAPTION, kind, "row 7")
    assert wrong is not None
    assert wrong != CAPTION
    assert WORD.split(wrong) == WORD.split(CAPTION)  # punctuation and spaces
    ours, theirs = (sorted(word.lower() for word in WORD.findall(text)) for text in (CAPTION, wrong))
    assert (ours == theirs) == (kind != "relations")
    assert negative(CAPTION, kind, "row 7") == wrong
    assert len({negative(CAPTION, kind, f"row {n}") for n in range(20)}) == (1 if kind == "relations" else 20) or (
        kind in ("attributes", "within_trigrams", "trigrams")
    )


def test_what_each_change_does() -> None:
    relations = "There is a small red block to the right of a big blue block, below it a Cat."
    assert negative(CAPTION, "relations", "") == relations
    assert negative("A Left one", "relations", "") == "A Right one"
    assert negative("red cat, Blue dog", "attributes", "") == "blue cat, Red dog"
    triples = "a b c d e f g"
    found = {negative(triples, "trigrams", str(n)) for n in range(100)}
    assert found == {"a b c g d e f", "d e f a b c g", "d e f g a b c", "g a b c d e f", "g d e f a b c"}
    within = {negative(triples, "within_trigrams", str(n)) or "" for n in range(300)}
    assert {tuple(sorted(text.split()[:3])) for text in within} == {("a", "b", "c")}
    assert len(within) == 35


@pytest.mark.parametrize(
    ("text", "kind"), [("a red block and a red ball", "attributes"), ("a block", "relations"), ("block", "order")]
)
def test_what_cannot_be_made_wrong_is_not(text: str, kind: str) -> None:
    assert negative(text, kind, "") is None


def test_a_negative_is_no_other_caption_of_the_picture() -> None:
    assert negative("a b", "order", "") == "b a"
    assert negative("a b", "order", "", ["B a"]) is None


def ordered(folder: Path, count: int = 28) -> str:
    rows = [coloured(*pair, captions=[f"{pair[0]} left of {pair[1]}"]) for pair in PAIRS[:count]]
    return str(write_shards(folder, rows))


@pytest.mark.parametrize(("score", "expected"), [(is_true, 1), (constant, 0), (bag_of_words, 0)])
def test_order_of_models_that_know_and_that_do_not(
    score: Any, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakePair(score), order, monkeypatch)
    found = measure(order, "", ordered(tmp_path / "run"))
    assert {found[kind] for kind in ("order", "trigrams", "within_trigrams", "attributes")} == {expected}
    assert found["hardest"] == expected
    assert found["pictures"] == found["attributes.questions"] == 28


def test_random_scores_of_order_are_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [coloured(*pair, captions=[f"{n} a red {n} and a blue {n} left"]) for n in range(15) for pair in PAIRS]
    use(FakePair(at_random), order, monkeypatch)
    found = measure(order, "", str(write_shards(tmp_path / "run", rows)))
    for kind in CHANGES:
        assert found[kind] == pytest.approx(0.5, abs=3.5 * 0.5 / 420**0.5)
    chance = found["hardest.chance"] or 0
    assert 1 / 6 - 1e-9 <= chance < 1 / 5
    assert found["hardest"] == pytest.approx(chance, abs=3.5 * (chance * (1 - chance) / 420) ** 0.5)


def test_negatives_may_stand_in_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        coloured("red", "blue", captions=["red left of blue"], wrong=[{"kind": "swap", "text": "blue left of red"}]),
        coloured("red", "cyan", captions=["red left of cyan"], wrong=[]),
        coloured("red", "cyan", captions=[], wrong=[{"kind": "swap", "text": "cyan"}]),
    ]
    feature = {"wrong": List({"kind": Value("string"), "text": Value("string")})}
    run = str(write_shards(tmp_path / "run", rows, extra=feature))
    use(FakePair(is_true), order, monkeypatch)
    found = measure(order, "", run, negatives="wrong")
    assert (found["swap"], found["swap.questions"], found["pictures"], found["hardest.chance"]) == (1, 1, 1, 0.5)
    assert found["pictures.without_negatives"] == 2
    with pytest.raises(UserError, match=r"options.kinds: 'nouns' is not right; the kinds are order, trigrams"):
        measure(order, "", run, kinds="nouns")
    with pytest.raises(UserError, match=r"options.negatives: the column width has 8; give texts"):
        measure(order, "", run, negatives="width")


# -- POPE --------------------------------------------------------------------------------------------------------------

POLLS = {"polls": poll_feature()}


def poll(name: str, there: bool, kind: str = "random") -> dict[str, str]:
    answer = "yes" if there else "no"
    return {"kind": kind, "object": name, "question": f"Is there a {name} in the image?", "answer": answer}


def polls(folder: Path) -> str:
    """Four questions about each picture, two of them with the answer yes."""
    rows = []
    for n, pair in enumerate(PAIRS):
        absent = [colour for colour in COLOURS if colour not in pair]
        asked = [poll(name, True, kind) for name, kind in zip(pair, ("random", "popular"), strict=True)]
        asked += [poll(absent[n % 6], False), poll(absent[(n + 3) % 6], False, "popular")]
        rows.append(coloured(*pair, polls=asked))
    return str(write_shards(folder, rows, extra=POLLS))


def names_what_is_there(picture: Tensor, text: str) -> float:
    return float(any(colour in text for colour in seen(picture)))


def test_pope_by_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakePair(names_what_is_there), pope, monkeypatch)
    found = measure(pope, "", polls(tmp_path / "run"))
    assert [found[name] for name in ("accuracy", "precision", "recall", "f1", "yes_rate")] == [1, 1, 1, 1, 0.5]
    assert found["bound"] == 0.5
    assert 0 < (found["polls"] or 0) < 112
    assert found["f1.popular"] == found["f1.random"] == 1
    assert found["pictures"] == 28


def test_pope_of_a_constant_score_is_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakePair(constant), pope, monkeypatch)
    found = measure(pope, "", polls(tmp_path / "run"))
    assert found["accuracy"] == found["accuracy.chance"] == found["yes_rate.truth"] == 0.5
    assert found["yes_rate"] in (0, 1)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("Yes, there is.", [0.5, 0.5, 1, pytest.approx(2 / 3), 1]),
        ("no", [0.5, None, 0, 0, 0]),
        ("Perhaps", [0.5, None, 0, 0, 0]),
    ],
)
def test_pope_of_constant_answers(
    says: str, expected: list[float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(GeneratedPairs(FakeGenerator(says=lambda picture, question: says)), pope, monkeypatch)
    found = measure(pope, "", polls(tmp_path / "run"))
    assert [found[name] for name in ("accuracy", "precision", "recall", "f1", "yes_rate")] == expected
    assert found["polls"] == 112
    assert found["polls.neither"] == (112 if says == "Perhaps" else 0)
    assert "bound" not in found


def test_pope_of_a_generator_that_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(picture: Tensor, question: str | None) -> str:
        return "Yes." if any(colour in str(question) for colour in seen(picture)) else "No."

    use(GeneratedPairs(FakeGenerator(says=says)), pope, monkeypatch)
    assert measure(pope, "", polls(tmp_path / "run"))["f1"] == 1


@pytest.mark.parametrize(("likelier", "expected"), [("yes", (1, 0)), ("no", (0, 0)), ("", (0, 112))])
def test_pope_by_the_likelier_answer(
    likelier: str, expected: tuple[float, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(GeneratedPairs(FakeGenerator(lambda picture, text: -2.0 + (text == likelier))), pope, monkeypatch)
    found = measure(pope, "", polls(tmp_path / "run"), way="rank")
    assert (found["yes_rate"], found["polls.neither"], found["accuracy"]) == (*expected, 0.5)


def test_polls_that_are_none_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakePair(constant), pope, monkeypatch)
    one = write_shards(tmp_path / "one", [coloured("red", "blue", polls=[poll("red", True)])], 1, extra=POLLS)
    with pytest.raises(UserError, match="1 polls are too few to set a dual encoder's bound on some and test others"):
        measure(pope, "", str(one))
    wrong = [coloured("red", "blue", polls=[{**poll("red", True), "answer": "maybe"}])]
    with pytest.raises(UserError, match="a poll has question, and answer yes or no"):
        measure(pope, "", str(write_shards(tmp_path / "two", wrong, 1, extra=POLLS)))
    unnamed = [coloured("red", "blue", polls=[{**poll("red", True), "object": ""}])]
    with pytest.raises(UserError, match="names no object, which a dual encoder is to score"):
        measure(pope, "", str(write_shards(tmp_path / "three", unnamed, 1, extra=POLLS)))
    with pytest.raises(UserError, match=r"options.sentence: 'red' is not right"):
        measure(pope, "", str(one), sentence="red")


# -- CLIPScore ---------------------------------------------------------------------------------------------------------


class Angles:
    """A picture and a text are unit vectors at the angle (of a text, in degrees; of a picture, 0)."""

    truncated = 0

    def pictures(self, files: Sequence[bytes]) -> list[Tensor]:
        return [torch.tensor([1.0, 0.0]) for _ in files]

    def texts(self, texts: Sequence[str]) -> Tensor:
        angles = torch.tensor([math.radians(float(text.split()[-1])) for text in texts])
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        return pictures @ texts.T


def test_clipscore_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions at 0, 60 and 120 degrees: 2.5, 1.25 and 0; references 60 degrees off, and none."""
    rows = [
        coloured("red", "blue", captions=["0", "60"], others=["60", "-90"]),
        coloured("red", "cyan", captions=["120"], others=[]),
        coloured("red", "cyan", captions=[]),
    ]
    run = str(write_shards(tmp_path / "run", rows, extra={"others": List(Value("string"))}))
    use(Angles(), clipscore, monkeypatch, "load_image_text_model")
    found = measure(clipscore, "", run)
    assert found["clipscore"] == pytest.approx((2.5 + 1.25 + 0) / 3)
    assert found["clipscore.other"] == found["clipscore"]  # all pictures are alike
    assert (found["captions"], found["pictures"], found["pictures.without_captions"]) == (3, 2, 1)
    assert "refclipscore" not in found
    found = measure(clipscore, "", run, references="others")
    first, second = 2 * 2.5 * 0.5 / 3, 2 * 1.25 * 1 / 2.25
    assert found["refclipscore"] == pytest.approx((first + second) / 2)
    assert found["refclipscore.captions"] == 2


def test_clipscore_of_results_with_the_captions_as_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [coloured("red", "blue", captions=["90", "-60"]), coloured("red", "cyan", captions=["0"])]
    run, file = str(write_shards(tmp_path / "run", rows)), tmp_path / "results.json"
    file.write_text(json.dumps([{"image_id": rows[0]["id"], "caption": "60"}]))
    use(Angles(), clipscore, monkeypatch, "load_image_text_model")
    found = measure(clipscore, "", run, results=str(file))
    assert (found["clipscore"], found["captions"]) == (pytest.approx(1.25), 1)
    near = math.cos(math.radians(30))
    assert found["refclipscore"] == pytest.approx(2 * 1.25 * near / (1.25 + near))
    file.write_text('[{"image_id": "none", "caption": "60"}]')
    with pytest.raises(UserError, match="has no image_id that is an id of"):
        measure(clipscore, "", run, results=str(file))
    for content in (
        '{"a": 1}',
        '[{"caption": "x"}]',
        '[{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": ""}]',
    ):
        file.write_text(content)
        with pytest.raises(UserError, match="it must be a list of image_id, each once, and caption"):
            measure(clipscore, "", run, results=str(file))
    file.write_text("[")
    with pytest.raises(UserError, match="is not JSON"):
        measure(clipscore, "", run, results=str(file))
    with pytest.raises(UserError, match="it goes without candidates and references"):
        measure(clipscore, "", run, results=str(file), references="captions")


@pytest.mark.parametrize("kind", MODELS)
def test_clipscore_of_real_models_is_that_of_each_pair_alone(
    kind: str, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clipscore, "CHUNK", 2)
    rows = [coloured(*pair, captions=[f"a {pair[0]} block", f"{pair[1]}"]) for pair in PAIRS[:5]]
    found = measure(
        clipscore, models[kind], str(write_shards(tmp_path / "run", rows)), device="cpu", prompt="we see {}"
    )
    model, cosines = load_image_text_model(models[kind], "cpu"), {0: list[float](), 2: list[float]()}
    vectors = [model.pictures([row["image"]["bytes"]])[0] for row in rows]
    for n, row in enumerate(rows):
        for text in row["captions"]:
            for shift, into in cosines.items():
                vector = vectors[(n - shift) % 5]
                assert isinstance(vector, Tensor)
                into.append(float(model.scores(vector[None], model.texts([f"we see {text}"]))))
    for name, shift in (("clipscore", 0), ("clipscore.other", 2)):
        expected = np.mean([2.5 * max(cosine, 0) for cosine in cosines[shift]])
        assert found[name] == pytest.approx(expected, abs=1e-5)


# -- bias --------------------------------------------------------------------------------------------------------------


def grouped(folder: Path) -> str:
    rows = [coloured(*pair, people=("a" if "red" in pair else "b") if n else None) for n, pair in enumerate(PAIRS)]
    return str(write_shards(folder, rows, extra={"people": Value("string")}))


OPTIONS = {"group": "people", "a": "kind,good", "b": "bad,cruel", "sentence": "{}"}


def test_a_constant_scorer_has_no_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakePair(constant), bias, monkeypatch)
    found = measure(bias, "", grouped(tmp_path / "run"), **OPTIONS)
    assert (found["pictures"], found["pictures.without_group"]) == (27, 1)
    assert found["association_a"] is None
    assert found["association_a.p"] == 1
    for word in ("kind", "good", "bad", "cruel"):
        assert found[f"rate_{word}"] == found[f"rate_{word}.a"] == 0.25
        assert found[f"rate_{word}.difference"] == found[f"skew_{word}"] == 0
        assert found[f"rate_{word}.ratio"] == 1


def test_a_model_that_likes_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures with red, 6 of 27, score 1 with good words and 0 with bad ones; others the other way round."""

    def likes(picture: Tensor, text: str) -> float:
        return float(("red" in seen(picture)) == (text in ("kind", "good"))) + (text in ("kind", "bad")) / 8

    use(FakePair(likes), bias, monkeypatch)
    found = measure(bias, "", grouped(tmp_path / "run"), first=6, **OPTIONS)
    near = np.array([1.0] * 6 + [-1.0] * 21)
    assert found["association_a"] == pytest.approx(2 / near.std(ddof=1))
    assert found["association_b"] == pytest.approx(-2 / near.std(ddof=1))
    assert found["association_a.p"] < 0.01 < 0.9 < found["association_b.p"]  # type: ignore[operator]
    assert (found["rate_kind.a"], found["rate_kind.b"], found["rate_kind"]) == (1, 0, pytest.approx(6 / 27))
    assert (found["rate_kind.difference"], found["rate_bad.ratio"]) == (1, 0)
    assert found["skew_kind"] == pytest.approx(math.log(27 / 6))
    assert found["skew_bad"] == pytest.approx(math.log(27 / 21))


@pytest.mark.parametrize("kind", MODELS)
def test_bias_of_real_models_does_not_change_with_the_batch(kind: str, models: dict[str, str], tmp_path: Path) -> None:
    run, words = grouped(tmp_path / "run"), {**OPTIONS, "a": "red,blue", "b": "green,circle"}
    one, other = (measure(bias, models[kind], run, device="cpu", batch=n, **words) for n in (4, 64))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == (other[name] if other[name] is None else pytest.approx(other[name], rel=1e-3, abs=1e-4))
    assert one["association_a"] == pytest.approx(-(one["association_b"] or 0))
    assert sum(one[f"rate_{word}"] or 0 for word in ("red", "blue", "green", "circle")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group": None}, "options.group: missing"),
        ({"a": ()}, "options.a: missing"),
        ({"b": "kind"}, "options.b: 'kind' is there twice"),
        ({"sentence": "x"}, "options.sentence: 'x' is not right"),
        ({"group": "height"}, "the column height has the group '8' alone"),
    ],
)
def test_bias_without_what_it_needs(
    changes: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakePair(constant), bias, monkeypatch)
    with pytest.raises(UserError, match=sentence):
        measure(bias, "", grouped(tmp_path / "run"), **{**OPTIONS, **changes})
