"""Models trained here in all protocols of texts, also where a score depends on the pair: against loops over pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measuring import measure
from tiny_clip import COLOURS, caption, rectangles, scene_rows, tiny_clip, write_pairs
from tiny_shards import shapes, write_shards
from tiny_trainings import TEXT, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.tokenizer import train_tokenizer
from granary.training.evaluation import pairs
from granary.training.evaluation.pairs import TrainedPair, load_image_text_model, load_pair_scorer
from granary.training.evaluation.protocols import binary_choice, retrieval, sdci, zeroshot
from granary.training.evaluation.protocols.retrieval import ranks
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.clip_weights import load_clip
from granary.training.models.dual_encoder import DualEncoder, DualEncoderOptions
from granary.training.models.pair_scores import mean_direction, own_products, products
from granary.training.models.vit import ViTConfig


class Nearest(DualEncoder):
    """A picture has a vector for each patch, and a text is compared with the one that is nearest to it."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return 3 * self.pool(self.image(pixels).patches)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        return 2 * self.texts(tokens)

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        assert len(pictures) * len(texts) <= pairs.PAIRS
        return (F.normalize(pictures, dim=2) @ F.normalize(texts, dim=1).T).amax(dim=1)

    def own_scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        return (F.normalize(pictures, dim=2)[:, :, None] * F.normalize(texts, dim=2)[:, None]).sum(dim=3).amax(dim=1)

    def ensemble(self, texts: Tensor) -> Tensor:
        return texts.mean(dim=1)


@pytest.fixture
def nearest(monkeypatch: pytest.MonkeyPatch) -> TrainedPair:
    """The only model that there is; five pictures with five texts are compared at once."""
    torch.manual_seed(0)
    config = ViTConfig(img_size=16, patch_size=4, width=16, depth=1, heads=2)
    words = train_tokenizer([caption(tuple(COLOURS)[:3])], 600)
    options = DualEncoderOptions(
        context=24, text_width=16, text_depth=1, text_heads=2, dimension=8, loss="sigmoid", bias=-2.0
    )
    model = Nearest("clip", config, options, words)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    scorer = TrainedPair(model, torch.device("cpu"))
    monkeypatch.setattr(pairs, "PAIRS", 25)
    for protocol, loader in (
        (retrieval, "load_image_text_model"),
        (zeroshot, "load_image_text_model"),
        (sdci, "load_pair_scorer"),
        (binary_choice, "load_pair_scorer"),
    ):
        monkeypatch.setattr(protocol, loader, lambda *_: scorer)
    return scorer


def slow_score(model: DualEncoder, picture: Tensor, text: Tensor) -> float:
    """The score of one pair: a loop over the patches."""
    return max(float((patch / patch.norm()) @ (text / text.norm())) for patch in picture)


def test_scores_of_all_pairs_and_of_own_ones_come_in_chunks(nearest: TrainedPair) -> None:
    torch.manual_seed(1)
    pictures, texts = torch.randn(13, 16, 8), torch.randn(11, 8)
    expected = torch.tensor([[slow_score(nearest.model, picture, text) for text in texts] for picture in pictures])
    torch.testing.assert_close(nearest.scores(pictures, texts), expected)
    own = torch.stack([texts[[n % 11, (3 * n) % 11]] for n in range(13)])
    chosen = torch.stack([expected[n, [n % 11, (3 * n) % 11]] for n in range(13)])
    scale = float(nearest.model.scale.detach().exp())
    torch.testing.assert_close(nearest.own_logits(pictures, own), scale * chosen + float(nearest.model.bias.detach()))
    logits = nearest.logits(pictures, texts)
    torch.testing.assert_close(logits, scale * expected + float(nearest.model.bias.detach()))


def test_retrieval_of_a_model_whose_score_depends_on_the_pair(nearest: TrainedPair, tmp_path: Path) -> None:
    rows = [
        {**row, "captions": [f"red {row['label']} {n}", f"{n} blue", "a block"]} for n, row in enumerate(shapes(12))
    ]
    run = str(write_shards(tmp_path / "run", rows, shards=1))
    found = measure(retrieval, "", run, device="cpu")
    pictures = torch.stack(nearest.pictures([row["image"]["bytes"] for row in rows]))  # type: ignore[arg-type]
    captions = [text for row in rows for text in row["captions"]]
    vectors = nearest.texts(list(dict.fromkeys(captions)))
    of = dict(zip(dict.fromkeys(captions), vectors, strict=True))
    scores = np.array([[slow_score(nearest.model, p, of[text]) for text in captions] for p in pictures])
    near = 1e-6  # equal captions tie: they count as misses
    for k in (1, 5, 10):
        by_text = [(scores[:, t] >= scores[t // 3, t] - near).sum() - 1 < k for t in range(36)]
        assert found[f"text_to_image_R@{k}"] == pytest.approx(np.mean(by_text))
        by_image = [
            (np.delete(scores[i], [3 * i, 3 * i + 1, 3 * i + 2]) >= scores[i, 3 * i : 3 * i + 3].max() - near).sum() < k
            for i in range(12)
        ]
        assert found[f"image_to_text_R@{k}"] == pytest.approx(np.mean(by_image))


def test_scores_of_pairs_are_made_once_where_they_fit_and_in_parts_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images, texts = torch.randn(6, 3, 4), torch.randn(15, 4)
    owner, asked = torch.arange(15) % 6, list[int]()

    def score(some: Tensor, others: Tensor) -> Tensor:
        asked.append(len(some) * len(others))
        return (some @ others.T).amax(dim=1).round(decimals=1)  # with ties

    whole = ranks(images, texts, owner, score)
    assert asked == [90]
    monkeypatch.setattr(retrieval, "CELLS", 60)
    parts = ranks(images, texts, owner, score)
    assert len(asked) > 3
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_zero_shot_of_a_model_whose_score_depends_on_the_pair(nearest: TrainedPair, tmp_path: Path) -> None:
    rows = shapes(12)
    run = str(write_shards(tmp_path / "run", rows, shards=1))
    (tmp_path / "templates.txt").write_text("red {}\nthe {} on the left\n")
    found = measure(zeroshot, "", run, device="cpu", templates=str(tmp_path / "templates.txt"))
    names = sorted({row["label"] for row in rows})
    classes = [nearest.texts([f"red {name}", f"the {name} on the left"]).mean(dim=0) for name in names]
    right = 0
    for row in rows:
        (picture,) = nearest.pictures([row["image"]["bytes"]])
        assert isinstance(picture, Tensor)
        right += names[int(np.argmax([slow_score(nearest.model, picture, text) for text in classes]))] == row["label"]
    assert found["top1"] == pytest.approx(right / len(rows))


def test_sdci_and_choices_of_a_model_whose_score_depends_on_the_pair(nearest: TrainedPair, tmp_path: Path) -> None:
    rows = scene_rows(9)
    run = write_pairs(tmp_path, rows)
    found, asked = measure(sdci, "", run, device="cpu"), measure(binary_choice, "", run, device="cpu")

    def score(row: dict[str, Any], text: str) -> float:
        (picture,) = nearest.pictures([row["image"]["bytes"]])
        assert isinstance(picture, Tensor)
        return slow_score(nearest.model, picture, nearest.texts([text])[0])

    own = [score(row, row["captions"][0]) for row in rows]
    wins = [mine > score(row, row["negatives"][0]["text"]) for row, mine in zip(rows, own, strict=True)]
    assert found["All-Neg"] == pytest.approx(np.mean(wins))
    matches = [own[i] > max(score(rows[i], rows[j]["captions"][0]) for j in range(8) if j != i) for i in range(8)]
    assert found["All-SCM"] == pytest.approx((sum(matches) + 1) / 9)  # the ninth is alone in its batch
    choices = [mine > score(row, n["text"]) for row, mine in zip(rows, own, strict=True) for n in row["negatives"]]
    assert asked["accuracy"] == pytest.approx(np.mean(choices))


@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_a_training_answers_sdci_and_binary_choice(method: str, tmp_path: Path) -> None:
    options = TEXT if method == "siglip" else {**TEXT, "dimension": 8}
    training = tiny_training(method, tiny_run(tmp_path / "data"), tmp_path / "out", options)
    rows = scene_rows(9)
    run = write_pairs(tmp_path / "pairs", rows)
    found = measure(sdci, str(tmp_path / "out"), run, device="cpu")
    asked = measure(binary_choice, training, run, device="cpu")
    model = load_image_text_model(training, "cpu")
    pictures = torch.stack(model.pictures([row["image"]["bytes"] for row in rows]))  # type: ignore[arg-type]
    cosines = pictures @ model.texts([row["captions"][0] for row in rows]).T
    wrong = [(pictures[n] * model.texts([row["negatives"][0]["text"]])[0]).sum() for n, row in enumerate(rows)]
    assert found["All-Neg"] == pytest.approx(float((cosines.diag() > torch.stack(wrong)).double().mean()))
    best = cosines[:8, :8].argmax(dim=1) == torch.arange(8)
    assert found["All-SCM"] == pytest.approx((int(best.sum()) + 1) / 9)
    assert asked["questions"] == 18
    trained, scorer = load_clip(training), load_pair_scorer(training, "cpu")
    logits = scorer.logits(pictures, model.texts(["a circle"]))
    with torch.no_grad():
        expected = trained.scale.exp() * pictures @ model.texts(["a circle"]).T + getattr(trained, "bias", 0)
    torch.testing.assert_close(logits, expected)


def test_a_picture_is_prepared_as_its_file_is(tmp_path: Path) -> None:
    training = tiny_training("clip", tiny_run(tmp_path / "data"), tmp_path / "out")
    scorer, model = load_pair_scorer(training, "cpu"), load_image_text_model(training, "cpu")
    wide = rectangles(("red", "blue", "green"), 1, 40).crop((0, 5, 40, 30))
    wide.save(tmp_path / "wide.png")
    (pixels,) = scorer.prepared([lambda: wide])
    assert pixels is not None
    assert pixels.shape == (3, 16, 16)
    (vector,) = model.pictures([(tmp_path / "wide.png").read_bytes()])
    assert isinstance(vector, Tensor)
    assert torch.equal(scorer.images(pixels[None])[0], vector)


def test_products_are_what_they_were() -> None:
    """Bit for bit the expressions that protocols had of their own, whatever the sides of the matrices."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        n, extra, d = (int(torch.randint(1, most, (1,), generator=generator)) for most in (40, 60, 70))
        images, texts = (F.normalize(torch.randn(k, d, generator=generator), dim=1) for k in (n, n + extra))
        owner = torch.cat([torch.arange(n), torch.randint(0, n, (extra,), generator=generator)])
        scores = texts @ images.T
        by_text = (scores >= scores.gather(1, owner[:, None])).sum(dim=1) - 1
        scores = images @ texts.T
        belongs = owner == torch.arange(n)[:, None]
        right = scores.masked_fill(~belongs, -torch.inf).amax(dim=1, keepdim=True)
        found = ranks(images, texts, owner)
        assert torch.equal(found[0], by_text)
        assert torch.equal(found[1], ((scores >= right) & ~belongs).sum(dim=1))
        assert torch.equal(products(images, texts), scores)
    own = torch.randn(n, 3, d, generator=generator)
    assert torch.equal(own_products(images, own), (own * images[:, None]).sum(dim=2))
    assert torch.equal(mean_direction(own), F.normalize(own.mean(dim=1), dim=1))


def test_a_training_without_texts_is_a_sentence_and_a_written_model_is_taken(tmp_path: Path) -> None:
    training = tiny_training("simclr", tiny_run(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(UserError, match="has no text encoder"):
        load_pair_scorer(training, "cpu")
    tiny_clip(width=16, layers=(1, 1)).save(str(tmp_path / "out" / "model"))
    assert isinstance(load_pair_scorer(str(tmp_path / "out"), "cpu"), ClipModel)
