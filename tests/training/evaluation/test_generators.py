"""Generators: log probabilities against loops over tokens, greedy answers, and protocols that score pairs by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from measuring import measure
from tiny_clip import scene_rows, write_pairs
from tiny_shards import shapes, write_shards
from tiny_speaker import TEXTS, Speaker
from tiny_trainings import tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.training.data.augment import normalised
from granary.training.evaluation import generators
from granary.training.evaluation.generators import GeneratedPairs, TrainedGenerator, load_generator
from granary.training.evaluation.protocols import binary_choice, retrieval, zeroshot
from granary.training.models.generative import Generative


def slow_loglikelihood(model: Generative, picture: Tensor, text: str, question: str | None) -> tuple[float, int]:
    """One picture (3, S, S) uint8, one text, one token after another, nothing padded; and the number of tokens."""
    pixels = normalised(picture[None] / 255, model.seen.mean, model.seen.std)
    so_far, total = list(model.prompt(question))[: model.longest - 1], 0.0
    words = model.words(text)[: model.longest - len(so_far)]
    for word in words:
        logits = model.next_logits(model.memory(pixels), torch.tensor([so_far]))[0, -1].double()
        total += float(logits[word] - logits.exp().sum().log())
        so_far.append(word)
    return total, len(words)


def slow_greedy(model: Generative, picture: Tensor, question: str | None, tokens: int) -> str:
    pixels = normalised(picture[None] / 255, model.seen.mean, model.seen.std)
    so_far = list(model.prompt(question))[: model.longest - 1]
    said: list[int] = []
    while len(said) < tokens and len(so_far) < model.longest:
        token = int(model.next_logits(model.memory(pixels), torch.tensor([so_far]))[0, -1].argmax())
        if token == model.end:
            break
        so_far.append(token)
        said.append(token)
    return model.spoken(said).strip()


def some_pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> TrainedGenerator:
    """Pictures come two at a time, and texts of pictures three."""
    monkeypatch.setattr(generators, "ROWS", 3)
    return TrainedGenerator(Speaker(), torch.device("cpu"), batch=2)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("question", [None, "what is it?"])
def test_log_probabilities_equal_a_loop_over_tokens(
    speaker: TrainedGenerator, question: str | None, mean: bool
) -> None:
    pictures = some_pictures(5)
    found = speaker.loglikelihood(pictures, TEXTS, question, mean)
    assert found.shape == (5, len(TEXTS))
    with torch.no_grad():
        for n, picture in enumerate(pictures):
            for t, text in enumerate(TEXTS):
                total, count = slow_loglikelihood(speaker.model, picture, text, question)
                assert float(found[n, t]) == pytest.approx(total / (count if mean else 1), rel=1e-5)


def test_texts_of_a_pictures_own_score_as_among_all_and_equal_ones_tie(speaker: TrainedGenerator) -> None:
    pictures, asked = some_pictures(4), ["what is it?", "a circle", "two shapes", "the left"]
    own = [[TEXTS[n], TEXTS[(2 * n) % 6], TEXTS[n]] for n in range(4)]
    found = speaker.own_loglikelihood(pictures, own, asked)
    for n, texts in enumerate(own):
        expected = speaker.loglikelihood(pictures[n : n + 1], texts, asked[n])
        torch.testing.assert_close(found[n], expected[0])
    assert torch.equal(found[:, 0], found[:, 2])


def test_probabilities_of_all_short_texts_and_their_beginnings_sum_to_one() -> None:
    """All ends of a text of one token: those of every token in its place make the probability of the beginning."""
    model = Speaker()
    memory, rows = torch.randn(1, 1, 3), [[token] for token in range(model.vocabulary)]
    one = generators.word_loglikelihood(model, memory.expand(len(rows), -1, -1), [model.prompt(None)] * len(rows), rows)
    assert float(one[0].exp().sum().detach()) == pytest.approx(1, abs=1e-5)


def test_answers_are_the_likeliest_token_after_another(speaker: TrainedGenerator) -> None:
    pictures = some_pictures(5)
    asked = ["what is it?", "a red circle on the left of two shapes", "a", "is it?", "two"]
    with torch.no_grad():
        answers = [slow_greedy(speaker.model, p, q, 6) for p, q in zip(pictures, asked, strict=True)]
        texts = [slow_greedy(speaker.model, picture, None, 100) for picture in pictures]
    assert speaker.answer(pictures, asked, 6) == answers
    assert len(set(answers)) > 1
    assert speaker.describe(pictures, 100) == texts
    assert speaker.describe(pictures.flip(0), 100) == texts[::-1]


def test_texts_beyond_the_context_are_cut_and_counted() -> None:
    generator = TrainedGenerator(Speaker(longest=6), torch.device("cpu"))
    assert generator.cut(TEXTS) == sum(len(generator.model.words(text)) > 5 for text in TEXTS) > 0
    long = "the green triangle on the left " * 3
    scores = generator.loglikelihood(some_pictures(2), [long, long + "again"], long)
    assert torch.equal(scores[:, 0], scores[:, 1])
    scorer = GeneratedPairs(generator)
    scorer.texts([*TEXTS, long])
    assert scorer.truncated == generator.cut(TEXTS) + 1


def test_numbers_that_are_not_finite_are_a_sentence(speaker: TrainedGenerator) -> None:
    torch.nn.init.constant_(speaker.model.out.bias, float("nan"))  # type: ignore[union-attr, arg-type]
    with pytest.raises(UserError, match="probabilities that are not finite"):
        speaker.loglikelihood(some_pictures(1), TEXTS)


def test_damaged_files_are_said_to_be(speaker: TrainedGenerator) -> None:
    good, bad = speaker.pictures([shapes(1)[0]["image"]["bytes"], b"nothing"])
    assert isinstance(bad, DecodeError)
    assert isinstance(good, Tensor)
    assert good.shape == (3, 16, 16)


# -- the protocols of pairs --------------------------------------------------------------------------------------------


@pytest.fixture
def pairs_of(speaker: TrainedGenerator, monkeypatch: pytest.MonkeyPatch) -> TrainedGenerator:
    """The only model that there is."""
    for protocol, loader in (
        (retrieval, "load_image_text_model"),
        (zeroshot, "load_image_text_model"),
        (binary_choice, "load_pair_scorer"),
    ):
        monkeypatch.setattr(protocol, loader, lambda *_: GeneratedPairs(speaker))
    return speaker


def scored(speaker: TrainedGenerator, row: dict[str, dict[str, bytes]], texts: list[str]) -> list[float]:
    (picture,) = speaker.pictures([row["image"]["bytes"]])
    assert isinstance(picture, Tensor)
    with torch.no_grad():
        return [slow_loglikelihood(speaker.model, picture, text, None)[0] for text in texts]


def test_retrieval_goes_by_log_probabilities(pairs_of: TrainedGenerator, tmp_path: Path) -> None:
    rows = [{**row, "captions": [f"a {row['label']} {n}", f"{n} shapes"]} for n, row in enumerate(shapes(8))]
    found = measure(retrieval, "", str(write_shards(tmp_path / "run", rows, shards=1)), device="cpu")
    captions = [text for row in rows for text in row["captions"]]
    scores = torch.tensor([scored(pairs_of, row, captions) for row in rows])
    for k in (1, 5):
        by_text = [(scores[:, t] >= scores[t // 2, t]).sum() - 1 < k for t in range(16)]
        assert found[f"text_to_image_R@{k}"] == pytest.approx(sum(map(bool, by_text)) / 16)
        by_image = [
            sum(float(scores[i, t] >= scores[i, 2 * i : 2 * i + 2].max()) for t in range(16) if t // 2 != i) < k
            for i in range(8)
        ]
        assert found[f"image_to_text_R@{k}"] == pytest.approx(sum(by_image) / 8)


def test_zero_shot_takes_the_mean_over_the_sentences_of_a_class(pairs_of: TrainedGenerator, tmp_path: Path) -> None:
    rows = shapes(12)
    (tmp_path / "templates.txt").write_text("a red {}\nthe {} on the left\n")
    run, templates = str(write_shards(tmp_path / "run", rows, shards=1)), str(tmp_path / "templates.txt")
    found = measure(zeroshot, "", run, device="cpu", templates=templates)
    names = sorted({row["label"] for row in rows})
    right = 0
    for row in rows:
        means = [sum(scored(pairs_of, row, [f"a red {name}", f"the {name} on the left"])) / 2 for name in names]
        right += names[max(range(len(names)), key=means.__getitem__)] == row["label"]
    assert found["top1"] == pytest.approx(right / len(rows))


def test_binary_choice_goes_by_log_probabilities(pairs_of: TrainedGenerator, tmp_path: Path) -> None:
    rows = scene_rows(9)
    asked = measure(binary_choice, "", write_pairs(tmp_path, rows), device="cpu")
    wins = []
    for row in rows:
        own, *wrong = scored(pairs_of, row, [row["captions"][0], *(n["text"] for n in row["negatives"])])
        wins += [own > other for other in wrong]
    assert asked["accuracy"] == pytest.approx(sum(wins) / len(wins))
    assert asked["questions"] == 18


def test_a_model_that_says_no_texts_is_a_sentence(tmp_path: Path) -> None:
    training = tiny_training("clip", tiny_run(tmp_path / "data"), tmp_path / "out", {"dimension": 8})
    with pytest.raises(UserError, match=r"says no texts about a picture; give a training of a generative method"):
        load_generator(training, "cpu")
    with pytest.raises(UserError, match="dtype: 'int8' is not right"):
        load_generator(training, "cpu", "int8")
