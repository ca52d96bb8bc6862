"""Captioning, hallucination, VQA, selective prediction, blind audit: closed forms, models that see and that do not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import List, Value
from fake_models import FakeGenerator, FakePair, coloured, constant, seen
from measuring import measure
from tiny_clip import COLOURS
from tiny_shards import shapes, write_shards
from tiny_speaker import Speaker
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.store.language import question_feature
from granary.training.evaluation import questions as questions_module
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.evaluation.generators import TrainedGenerator
from granary.training.evaluation.protocols import blind, captioning, clipscore, hallucination, selective, vqa
from granary.training.evaluation.questions import Question
from granary.training.evaluation.text_only import Bigrams, usual_answers

PAIRS = list(itertools.permutations(COLOURS, 2))  # 56
QUESTIONS = {
    "questions": question_feature(),
    "objects": List({"name": Value("string"), "box": List(Value("int32")), "pixels": Value("int32")}),
}
Says = Callable[[Tensor, str | None], str]


def use(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for protocol in (captioning, vqa, selective, blind):
        monkeypatch.setattr(protocol, "load_generator", lambda *_: model)


def question(kind: str, text: str, answer: str, answers: Sequence[str] = ()) -> dict[str, Any]:
    return {"id": f"{kind} of it", "kind": kind, "question": text, "answer": answer, "answers": list(answers)}


def rows(pairs: Sequence[tuple[str, str]] = PAIRS) -> list[dict[str, Any]]:
    """Ten people say what is left, seven of them right; one says what is right; how many is always two."""
    return [
        coloured(
            left,
            right,
            captions=[f"there is a {left} block to the left of a {right} block"],
            objects=[{"name": f"{name} block", "box": [0, 0, 4, 8], "pixels": 32} for name in (left, right)],
            questions=[
                question("left", "What colour is on the left?", left, [left] * 7 + ["none"] * 3),
                question("right", "What colour is on the right?", right),
                question("count", "How many blocks are there?", "2", ["2"] * 10),
            ],
        )
        for left, right in pairs
    ]


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(write_shards(tmp_path / "run", rows(), extra=QUESTIONS))


def sees(picture: Tensor, asked: str | None) -> str:
    left, right = seen(picture)
    if asked is None:
        return f"There is a {left} block to the left of a {right} block."
    return {"left?": left, "right?": right}.get(asked.split()[-1], "two")


def says(text: str) -> Says:
    return lambda picture, asked: text


# -- captioning --------------------------------------------------------------------------------------------------------


def test_captions_of_a_model_that_sees(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(says=sees), monkeypatch)
    found = measure(captioning, "", run, batch=5, out=str(tmp_path / "texts.json"))
    assert [found[name] for name in ("bleu_4", "rouge_l", "cider_d")] == pytest.approx([1, 1, 10])
    for name in ("bleu_4", "rouge_l", "cider_d"):
        assert 0 < (found[f"{name}.other"] or 0) < 0.9 * (found[name] or 0)
    assert found["words"] == 12
    assert found["pictures"] == found["pictures.different_texts"] == 56
    written = json.loads((tmp_path / "texts.json").read_text())
    assert [set(one) for one in written] == [{"image_id", "caption"}] * 56
    assert clipscore.read_results(str(tmp_path / "texts.json")).keys() == {row["id"] for row in rows()}


def test_captions_that_are_always_the_same_are_as_good_for_other_pictures(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeGenerator(says=says("there is a red block to the left of a blue block")), monkeypatch)
    found = measure(captioning, "", run)
    for name in ("bleu_4", "rouge_l", "cider_d"):
        assert found[name] == pytest.approx(found[f"{name}.other"])
    assert found["pictures.different_texts"] == 1
    use(FakeGenerator(says=says("")), monkeypatch)
    silent = measure(captioning, "", run)
    assert [silent[name] for name in ("bleu_4", "rouge_l", "cider_d", "words")] == [0, 0, 0, 0]


def test_pictures_that_cannot_be_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = rows(PAIRS[:4])
    some[1]["captions"] = [" "]
    some[2]["image"]["bytes"] = b"broken"
    use(FakeGenerator(says=sees), monkeypatch)
    found = measure(captioning, "", str(write_shards(tmp_path / "run", some, extra=QUESTIONS)))
    assert (found["pictures"], found["pictures.without_captions"], found["pictures.unreadable"]) == (2, 1, 1)
    assert [letter["error"] for letter in found.settings["dead"]] == ["UnidentifiedImageError"]  # type: ignore[attr-defined]


# -- hallucination -----------------------------------------------------------------------------------------------------


def test_a_model_that_sees_makes_nothing_up(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(says=sees), monkeypatch)
    found = measure(hallucination, "", run)
    assert (found["chair_i"], found["chair_s"], found["recall"]) == (0, 0, 1)
    assert found["chair_i.other"] > 0.5  # type: ignore[operator]
    assert (found["mentioned"], found["things"], found["pictures"]) == (2, 8, 56)


def test_constant_descriptions_make_up_what_their_frequency_says(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A red block is in 14 of 56 pictures; a red and a blue one are together in 2, neither in 30."""
    use(FakeGenerator(says=says("red blocks")), monkeypatch)
    found = measure(hallucination, "", run)
    assert (found["chair_i"], found["chair_s"], found["recall"]) == (0.75, 0.75, 14 / 112)
    assert found["chair_i.other"] == 0.75
    use(FakeGenerator(says=says("a red block, a blue block")), monkeypatch)
    found = measure(hallucination, "", run)
    assert (found["chair_i"], found["chair_s"]) == (0.75, pytest.approx(54 / 56))
    use(FakeGenerator(says=says("nothing")), monkeypatch)
    assert measure(hallucination, "", run)["chair_i"] is None


def test_things_have_synonyms_and_are_in_captions_too(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things = tmp_path / "things.json"
    things.write_text(json.dumps({name: [f"{name} cube"] for name in COLOURS}))
    use(FakeGenerator(says=lambda picture, asked: f"a {seen(picture)[0]} cube and a red cube"), monkeypatch)
    found = measure(hallucination, "", run, things=str(things))
    assert found["chair_s"] == 42 / 56
    for content in ("[]", "{}", '{"a": "b"}', '{"a": [1]}'):
        things.write_text(content)
        with pytest.raises(UserError, match="must be an object, thing -> list of synonyms"):
            measure(hallucination, "", run, things=str(things))
    things.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        measure(hallucination, "", run, things=str(things))
    with pytest.raises(UserError, match="has no column 'objects', which captioning needs"):
        measure(hallucination, "", str(write_shards(tmp_path / "other", shapes(4))))


# -- VQA ---------------------------------------------------------------------------------------------------------------


def test_answers_of_a_model_that_sees(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(says=sees), monkeypatch)
    found = measure(vqa, "", run, batch=9)
    assert [found[name] for name in ("accuracy", "accuracy.left", "accuracy.right", "accuracy.count")] == [1] * 4
    # of the prior: of `none`, said by 3 of 10 of each left one, 7 leave-one-outs with three of nine and 3 with two
    assert found["accuracy.prior"] == pytest.approx(((0.7 + 0.3 * 2 / 3) + 1 / 8 + 1) / 3)
    assert (found["questions"], found["pictures"]) == (168, 56)


def test_a_constant_answer_is_as_good_as_the_prior(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(says=says("Two.")), monkeypatch)
    found = measure(vqa, "", run, kinds="count,right")
    assert (found["accuracy"], found["accuracy.count"], found["accuracy.right"]) == (0.5, 1, 0)
    assert (found["questions"], found["questions.different_answers"]) == (112, 1)
    use(FakeGenerator(says=says("black")), monkeypatch)
    assert measure(vqa, "", run)["accuracy"] == 0


def test_ranked_answers_are_those_of_the_kind(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(score=lambda picture, text: float(text == seen(picture)[1])), monkeypatch)
    found = measure(vqa, "", run, way="rank")
    assert found["accuracy.right"] == found["accuracy.count"] == 1
    monkeypatch.setattr(questions_module, "MOST", 1)  # the most frequent one alone
    found = measure(vqa, "", run, way="rank")
    assert found["accuracy"] == pytest.approx(found["accuracy.prior"])


def test_questions_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(says=sees), monkeypatch)
    some = rows(PAIRS[:3])
    some[0]["questions"] = [question("left", "And?", "")]
    some[1]["questions"] = None
    found = measure(vqa, "", str(write_shards(tmp_path / "run", some, extra=QUESTIONS)))
    assert (found["questions"], found["pictures.without_questions"]) == (3, 2)
    with pytest.raises(UserError, match="the column width has 8; a question has question, answer and answers"):
        measure(vqa, "", str(tmp_path / "run"), column="width")
    with pytest.raises(UserError, match="nothing to measure on: no row has questions"):
        measure(vqa, "", str(tmp_path / "run"), kinds="colour")


# -- selective prediction ----------------------------------------------------------------------------------------------


def half_right(sure: bool | None) -> FakeGenerator:
    """Answer what is on the right where the left is a warm colour; be surer there, less sure, or alike."""
    warm = ("red", "yellow", "orange", "purple")

    def answers(picture: Tensor, asked: str | None) -> str:
        left, right = seen(picture)
        return right if left in warm else "black"

    def score(picture: Tensor, text: str) -> float:
        right = text != "black"
        return -1.0 if sure is None else -0.1 if right == sure else -3.0

    return FakeGenerator(score, answers)


@pytest.mark.parametrize(("sure", "where"), [(True, "best"), (None, "chance")])
def test_a_model_that_knows_what_it_knows(
    sure: bool | None, where: str, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(half_right(sure), monkeypatch)
    found = measure(selective, "", run, kinds="right")
    assert found["risk"] == found["aurc.chance"] == 0.5
    assert found["aurc"] == pytest.approx(found[f"aurc.{where}"])
    assert found["coverage@1"] == (0.5 if sure else 0)
    assert found["reliability_10"] == (found["reliability_10.coverage"] if sure else 0)
    assert found["reliability_10.always"] < 0  # type: ignore[operator]
    oracle = sum((k - 28) / k for k in range(29, 57)) / 56
    assert found["aurc.best"] == pytest.approx(oracle)


def test_a_model_that_is_sure_of_what_is_wrong(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(half_right(False), monkeypatch)
    found = measure(selective, "", run, kinds="right", risks="50,60", costs="2")
    assert found["aurc"] > 0.5  # type: ignore[operator]
    assert found["coverage@50"] == 1
    assert found["reliability_2"] == 0
    with pytest.raises(UserError, match="1 questions are too few"):
        measure(selective, "", run, kinds="right", limit=1)


# -- blind -------------------------------------------------------------------------------------------------------------


def test_a_model_that_sees_loses_what_is_seen(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(says=sees), monkeypatch)
    found = [measure(blind, "", run, kinds="right", batch=batch) for batch in (4, 64)]
    assert found[0] == found[1]
    assert (found[0]["accuracy"], found[0]["pictures"]) == (1, 56)
    assert found[0]["accuracy.other"] < 0.5  # type: ignore[operator]
    assert found[0]["accuracy.text"] < 0.3  # type: ignore[operator]
    assert found[0]["seen"] > 0.5  # type: ignore[operator]


def test_questions_that_need_no_picture_are_found_out(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeGenerator(says=sees), monkeypatch)
    found = measure(blind, "", run, kinds="count")
    for name in ("accuracy", "accuracy.grey", "accuracy.other", "accuracy.text"):
        assert found[name] == 1
    assert found["seen"] == 0


def test_the_other_picture_is_that_of_half_the_data_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = rows(PAIRS[:6])
    some[1]["questions"] = []
    shown = list[tuple[str, str]]()
    use(FakeGenerator(says=lambda picture, asked: shown.append(seen(picture)) or "x"), monkeypatch)  # type: ignore[func-returns-value]
    found = measure(blind, "", str(write_shards(tmp_path / "run", some, extra=QUESTIONS)), kinds="right", batch=64)
    with_questions = [pair for n, pair in enumerate(PAIRS[:6]) if n != 1]
    assert shown[:5] == with_questions
    assert shown[10:] == [*with_questions[2:], *with_questions[:2]]
    assert len(set(shown[5:10])) == 1
    assert found["accuracy.other"] == 0
    alone = measure(blind, "", str(write_shards(tmp_path / "one", some[:1], 1, extra=QUESTIONS)), kinds="right")
    assert alone["accuracy.other"] is alone["accuracy.text"] is None


def test_order_is_audited_with_any_model(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words in another order are told by the texts alone; colours exchanged are not."""

    def is_true(picture: Tensor, text: str) -> float:
        return float(text == sees(picture, None).lower().rstrip("."))

    for score, expected in ((is_true, 1), (constant, 0)):
        monkeypatch.setattr(blind, "load_pair_scorer", lambda *_, score=score: FakePair(score))
        found = measure(blind, "", run, task="order", kinds="attributes")
        assert (found["accuracy"], found["accuracy.grey"], found["accuracy.chance"]) == (expected, 0, 0.5)
        assert found["accuracy.text"] < 0.8  # type: ignore[operator]
        shuffled = measure(blind, "", run, task="order", kinds="order")
        assert shuffled["accuracy.text"] > 0.9  # type: ignore[operator]
    with pytest.raises(UserError, match=r"options.kinds: 'left' is not right; the kinds are order"):
        measure(blind, "", run, task="order", kinds="left")


def test_bigrams_by_hand_and_their_sum() -> None:
    """After a: b twice, c once. Words alone, end among them: 9 of 4 kinds, and one for what is unknown."""
    model = Bigrams(["a b", "A b.", "a c"])
    alone = {"a": 4, "b": 3, "c": 2, "": 4, "x": 1}
    assert model.probability("a", "b") == pytest.approx((2 + 2 * 3 / 14) / 5)
    assert model.probability("x", "c") == pytest.approx(2 / 14)
    for before in ("a", "b", "", "x"):
        assert sum(model.probability(before, word) for word in alone) == pytest.approx(1)
    logs = [math.log(model.probability(*pair)) for pair in (("", "a"), ("a", "c"), ("c", ""))]
    assert model.score("a c") == pytest.approx(np.mean(logs))


def test_usual_answers_are_those_to_the_question_then_of_the_kind_then_of_all() -> None:
    def asked(kind: str, text: str, *people: str) -> Question:
        return Question("", kind, text, people)

    learned = [asked("what", "What is it?", "cat"), asked("what", "What is left?", "dog", "dog"), asked("n", "N?", "2")]
    found = usual_answers(learned, [asked("n", "what is it"), asked("what", "Where?"), asked("other", "Who?")])
    assert found == ["cat", "dog", "dog"]
    assert usual_answers([], [asked("n", "what?")]) == [""]


# -- a model of granary's ----------------------------------------------------------------------------------------------


def test_the_command_measures_a_trained_generator(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    use(TrainedGenerator(Speaker(), torch.device("cpu")), monkeypatch)
    protocols, lines = ["captioning", "hallucination", "vqa", "selective", "blind"], list[str]()
    recipe = EvaluateRecipe(protocols=protocols, model="m", data=run, device="cpu", limit=20, options={"tokens": 5})
    found = evaluate(recipe, lines.append)
    assert found["settings"]["used"]["vqa"]["tokens"] == 5
    assert found["settings"]["used"]["selective"]["costs"] == (1, 10, 100)
    assert found["vqa"]["questions"] == found["blind"]["questions"] == 60
    assert 0 <= found["selective"]["aurc.best"] <= found["selective"]["aurc"] <= 1
    assert "aurc" in lines[3]
