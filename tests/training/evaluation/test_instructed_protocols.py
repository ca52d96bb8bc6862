"""The protocols referring and cosegmentation: a model that knows the truth, one that guesses, one that babbles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from made_scenes import scene, write_scenes
from torch import Tensor

import granary
from granary.curation.errors import UserError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.instructions import Coding, Form, Instruction, instructions_of
from granary.training.data.passes import undecoded
from granary.training.data.pasted import squared
from granary.training.data.pixels import decode_pixels
from granary.training.data.shards import open_dataset
from granary.training.evaluation import instructed
from granary.training.evaluation.instructed import InstructedOptions
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols import cosegmentation, referring
from granary.training.models.instructed import Instructed

SIDE = 32
Said = Callable[[Instruction, str], str]  # instruction, the right answer -> what is said


class Knowing(Instructed):
    """Answers by the pixels that it is shown: what is right about these very pictures, changed by `said`."""

    coding, side, most = Coding(101, 12, "douglas_peucker"), SIDE, 4  # type: ignore[assignment]

    def __init__(self, run: str, said: Said) -> None:
        super().__init__()
        self.said, self.free = said, list[bool]()
        self.known = dict[tuple[bytes, str, str], Instruction]()
        for config in ("data", "groups"):
            dataset = open_dataset(run, ("images", "instructions"), config=config)
            for row in undecoded(dataset, ["images", "instructions"]):
                pixels = [
                    squared(decode_pixels(data, DecodeLimits()).pixels, SIDE).tobytes() for data in row["pictures"]
                ]
                for one in instructions_of(row["instructions"]):
                    self.known[b"".join(pixels), one.form, one.question] = one

    def answers(
        self,
        pictures: Tensor,
        counts: Sequence[int],
        questions: Sequence[str],
        forms: Sequence[Form],
        free: bool = False,
    ) -> list[str]:
        self.free.append(free)
        said = []
        for some, count, question, form in zip(pictures, counts, questions, forms, strict=True):
            assert some.shape == (4, SIDE, SIDE, 3)
            one = self.known.get((some[:count].numpy().tobytes(), form, question))
            said.append("" if one is None else self.said(one, self.coding.answer(one)))
        return said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("instructed")
    scenes = write_scenes(folder / "scenes", [scene(n) for n in range(40)])
    return granary.pack(data=[scenes], out=folder / "run", format="instructions", groups={"count": 40}, quiet=True).url


def measured(
    monkeypatch: pytest.MonkeyPatch,
    run: str,
    said: Said,
    protocol: Any = referring,
    limit: int | None = None,
    **options: Any,
) -> tuple[dict[str, float | None], Knowing]:
    model = Knowing(run, said)
    monkeypatch.setattr(instructed, "load_training", lambda path: model)
    given = Measured("MODEL", run, None, device="cpu", batch=7, limit=limit)
    return protocol.evaluate(given, InstructedOptions(**options)), model


def right(one: Instruction, answer: str) -> str:
    return answer


def test_who_knows_the_pictures_is_right_and_wrong_about_those_of_other_rows(
    monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    scores, _ = measured(monkeypatch, run, right)
    assert scores["box.accuracy"] == scores["no_target"] == scores["box.target"] == scores["mask.no_target"] == 1
    assert scores["unreadable"] == 0
    assert scores["mask.polygon_miou"] == pytest.approx(1)
    assert 0.85 < (scores["mask.miou"] or 0) < 1  # what the points lose
    assert (scores["box.accuracy.permuted"] or 0) < 0.1
    assert (scores["mask.miou.permuted"] or 0) < 0.1
    assert (scores["instructions.box"], scores["rows"]) == (scores["instructions.mask"], 40)
    choice, _ = measured(monkeypatch, run, right, cosegmentation)
    assert (choice["choice"], choice["precision"], choice["recall"], choice["rows"]) == (1, 1, 1, 40)
    assert choice["choice.chance"] == pytest.approx(1 / 6)
    assert (choice["choice.permuted"] or 0) < 0.3
    assert (choice["miou"] or 0) > 0.85 > (choice["miou.permuted"] or 1)


def test_nothing_is_right_only_where_nothing_is(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    scores, _ = measured(monkeypatch, run, lambda one, answer: "")
    assert (scores["box.accuracy"], scores["mask.miou"], scores["no_target"], scores["box.target"]) == (0, 0, 1, 0)
    choice, _ = measured(monkeypatch, run, lambda one, answer: "", cosegmentation)
    assert (choice["choice"], choice["miou"], choice["recall"], choice["precision"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("nonsense", ["nothing", "<b_st><b_ed>", "<bin_3>", "<i_1>"])
def test_what_cannot_be_read_is_never_right_not_even_where_nothing_is(
    nonsense: str, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    scores, _ = measured(monkeypatch, run, lambda one, answer: nonsense)
    assert (scores["box.accuracy"], scores["mask.miou"], scores["no_target"], scores["unreadable"]) == (0, 0, 0, 1)
    choice, _ = measured(monkeypatch, run, lambda one, answer: nonsense, cosegmentation)
    assert (choice["choice"], choice["unreadable"]) == (0, 1)


def test_a_box_too_many_is_wrong_and_its_corners_may_be_exchanged(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    extra = "<b_sep><bin_0><bin_0><bin_1><bin_1><b_ed>"
    scores, _ = measured(monkeypatch, run, lambda one, answer: answer.replace("<b_ed>", extra))
    assert (scores["box.accuracy"], scores["box.no_target"]) == (0, 1)
    assert (scores["mask.miou"] or 0) > 0.85

    def turned(one: Instruction, answer: str) -> str:
        if one.form != "box" or len(one.targets) != 1:
            return answer
        tokens = answer.removeprefix("<b_st>").removesuffix("<b_ed>").split("><")
        left, top, right, bottom = (token.strip("<>") for token in tokens)
        return f"<b_st><{right}><{bottom}><{left}><{top}><b_ed>"

    assert measured(monkeypatch, run, turned)[0]["box.accuracy"] == 1


def test_masks_are_of_the_pictures_that_are_named(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    """The right pictures with each other's masks: the choice is right, the masks are not."""

    def exchanged(one: Instruction, answer: str) -> str:
        first, other = answer.removeprefix("<i_").split("<i_")
        (one_number, one_mask), (other_number, other_mask) = (part.split(">", 1) for part in (first, other))
        return f"<i_{one_number}>{other_mask}<i_{other_number}>{one_mask}"

    scores, _ = measured(monkeypatch, run, exchanged, cosegmentation)
    assert scores["choice"] == 1
    assert (scores["miou"] or 1) < 0.6


def test_options_and_limits_are_kept(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    scores, model = measured(monkeypatch, run, right, limit=5, free=True, permuted=False)
    assert scores["rows"] == 5
    assert scores["box.accuracy.permuted"] is None
    assert set(model.free) == {True}
    other, _ = measured(monkeypatch, run, right, limit=5)
    assert {key: value for key, value in other.items() if "permuted" not in key} == {
        key: value for key, value in scores.items() if "permuted" not in key
    }


def test_a_model_without_instructions_and_data_without_any_are_sentences(
    monkeypatch: pytest.MonkeyPatch, run: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(instructed, "load_training", lambda path: torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="MODEL follows no instructions"):
        referring.evaluate(Measured("MODEL", run), InstructedOptions())
    scenes = write_scenes(tmp_path / "scenes", [scene(n) for n in range(3)])
    texts = granary.pack(data=[scenes], out=tmp_path / "run", format="instructions", tasks=["caption"], quiet=True).url
    monkeypatch.setattr(instructed, "load_training", lambda path: Knowing(run, right))
    with pytest.raises(UserError, match="no row with what the protocol referring asks"):
        referring.evaluate(Measured("MODEL", texts), InstructedOptions())
    with pytest.raises(UserError, match=r"has no column 'images'|has no column 'instructions'"):
        referring.evaluate(Measured("MODEL", scenes), InstructedOptions())
