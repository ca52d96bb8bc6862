"""Zero-shot classification and retrieval against brute force, by hand, and on models of both kinds."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measuring import measure
from PIL import Image
from places import CONFIGS, SHARED
from tiny_clip import COLOURS, png, rectangles, tiny_clip, tokenizer
from tiny_shards import sample, shape, shapes, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.evaluation import pairs as dual_encoder
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.evaluation.pairs import load_image_text_model
from granary.training.evaluation.protocols import retrieval, zeroshot
from granary.training.evaluation.protocols.retrieval import hit_chance, ranks, recalls
from granary.training.evaluation.protocols.zeroshot import class_vectors, top_accuracies, wrong_above
from granary.training.models.export import export
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

FLICKR = SHARED / "captions_flickr8k_dev.tar"


def of_scores(scores: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Vectors of pictures and captions whose products are given: pictures by captions."""
    matrix = torch.tensor(scores, dtype=torch.float64)
    return matrix, torch.eye(matrix.shape[1], dtype=torch.float64)


# -- retrieval ---------------------------------------------------------------------------------------------------------


def test_two_pictures_and_four_captions_by_hand() -> None:
    images, texts = of_scores([[0.9, 0.1, 0.4, 0.2], [0.3, 0.95, 0.5, 0.4]])
    found = recalls(images, texts, torch.tensor([0, 0, 1, 1]), (1, 2))
    assert found["image_to_text_R@1"] == 0.5
    assert found["text_to_image_R@1"] == 0.75
    assert found["image_to_text_R@2"] == 1.0
    assert found["text_to_image_R@2"] == 1.0


def slow_recalls(scores: np.ndarray, owner: list[int], k: int) -> tuple[float, float]:
    """Sort, look at the first k: pictures by captions -> text to image, image to text."""
    right = sum(owner[t] in np.argsort(-scores[:, t])[:k] for t in range(len(owner)))
    hit = sum(any(owner[t] == i for t in np.argsort(-scores[i])[:k]) for i in range(len(scores)))
    return right / len(owner), hit / len(scores)


@pytest.mark.parametrize("seed", range(4))
def test_recalls_equal_a_sort(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CELLS", 40)  # a few rows at a time
    random = np.random.default_rng(seed)
    images = F.normalize(torch.from_numpy(random.normal(size=(13, 3))))
    owner = np.sort(np.concatenate([np.arange(13), random.integers(0, 13, 25)]))
    texts = F.normalize(images[owner] + torch.from_numpy(random.normal(size=(38, 3))))
    found = recalls(images, texts, torch.from_numpy(owner), (1, 3, 5, 38))
    for k in (1, 3, 5, 38):
        right, hit = slow_recalls((images @ texts.T).numpy(), owner.tolist(), k)
        assert found[f"text_to_image_R@{k}"] == pytest.approx(right)
        assert found[f"image_to_text_R@{k}"] == pytest.approx(hit)
    order = torch.from_numpy(random.permutation(38))
    assert recalls(images, texts[order], torch.from_numpy(owner)[order], (1, 3, 5, 38)) == found


def test_one_hit_is_enough_and_the_directions_differ() -> None:
    """Five captions a picture, one of them good: R@1 of pictures is 1, of captions a fifth."""
    owner = torch.arange(4).repeat_interleave(5)
    scores = torch.full((4, 20), 0.5, dtype=torch.float64)
    scores[torch.arange(4), torch.arange(0, 20, 5)] = 0.9
    found = recalls(scores, torch.eye(20).double(), owner)
    assert found["image_to_text_R@1"] == found["image_to_text_R@5"] == 1.0
    assert found["text_to_image_R@1"] == pytest.approx(0.2)


def test_a_model_that_gives_everything_the_same_score_finds_nothing() -> None:
    found = recalls(torch.ones(12, 1), torch.ones(24, 1), torch.arange(12).repeat(2), (1, 5, 10))
    assert [value for name, value in found.items() if not name.endswith(".chance")] == [0.0] * 6


@pytest.mark.parametrize(("each", "k"), [([1, 2, 3], 2), ([2, 2], 1), ([1, 1, 1], 5), ([3, 1], 3)])
def test_the_chance_of_a_hit_is_that_of_all_orders(each: list[int], k: int) -> None:
    owner = [number for number, count in enumerate(each) for _ in range(count)]
    orders = list(itertools.permutations(owner))
    hits = sum(number in order[:k] for order in orders for number in range(len(each)))
    assert hit_chance(each, len(owner), k) == pytest.approx(hits / len(orders) / len(each))


def test_random_vectors_score_at_chance() -> None:
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(400, 16)), F.normalize(torch.randn(2000, 16))
    found = recalls(images, texts, torch.arange(400).repeat_interleave(5))
    for name in ("text_to_image_R@10", "image_to_text_R@10"):
        chance = found[f"{name}.chance"] or 0.0
        assert found[name] == pytest.approx(chance, abs=5 * (chance / 400) ** 0.5)
    assert found["text_to_image_R@10.chance"] == pytest.approx(10 / 400)


def test_the_right_answer_has_no_rank_of_its_own() -> None:
    by_text, by_image = ranks(torch.eye(3), torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2))
    assert by_text.tolist() == [0] * 6
    assert by_image.tolist() == [0] * 3


# -- zero-shot classification ------------------------------------------------------------------------------------------


def words_as_vectors(texts: Sequence[str]) -> Tensor:
    """A text is the unit vector that its characters draw."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=8) for text in texts]
    return F.normalize(torch.from_numpy(np.stack(rows)), dim=1)


def test_the_classifier_is_the_renormalised_mean_of_unit_vectors() -> None:
    names, templates = ["cat", "dog", "grey owl"], ["a {}.", "the {} here", "{}", "one {} and no {}"]
    found = class_vectors(words_as_vectors, names, templates)
    for row, name in zip(found, names, strict=True):
        mean = sum(words_as_vectors([template.replace("{}", name)])[0] for template in templates) / 4
        torch.testing.assert_close(row, mean / mean.norm())  # type: ignore[union-attr, operator]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3).double())


def test_embeddings_are_averaged_and_not_scores() -> None:
    """Two sentences of class 0 that cancel out leave what they share; their mean score would not."""
    vectors = {"a x": [0.6, 0.8], "b x": [0.6, -0.8], "a y": [0.8, 0.6], "b y": [0.8, 0.6]}
    found = class_vectors(lambda texts: torch.tensor([vectors[text] for text in texts]), ["x", "y"], ["a {}", "b {}"])
    image = torch.tensor([[1.0, 0.0]])
    assert wrong_above(image @ found.T, torch.tensor([0])).tolist() == [0]
    scores = torch.stack([torch.tensor([vectors[f"{t} {n}"] for t in "ab"]) @ image[0] for n in "xy"]).mean(dim=1)
    assert scores.argmax() == 1


def test_accuracies_equal_those_of_scikit_learn() -> None:
    from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

    random = np.random.default_rng(0)
    labels, scores = np.append(random.integers(0, 8, 72), np.arange(8)), random.normal(size=(80, 8))
    scores[np.arange(80), labels] += 1
    found = top_accuracies(wrong_above(torch.from_numpy(scores), torch.from_numpy(labels)), torch.from_numpy(labels), 8)
    assert found["top1"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert found["top1.mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
    assert (found["top1.chance"], found["top5.chance"]) == (1 / 8, 5 / 8)


def test_ties_are_wrong_wherever_the_right_class_stands() -> None:
    ranks = wrong_above(torch.ones(3, 4), torch.tensor([0, 1, 3]))
    assert top_accuracies(ranks, torch.tensor([0, 1, 3]), 4)["top1"] == 0


# -- on datasets -------------------------------------------------------------------------------------------------------

MODEL: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "img_size": 32, "patch_size": 8}
TEXT: dict[str, Any] = {"text_width": 16, "text_depth": 1, "text_heads": 2, "context": 16}


def recipe_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    simple = {"method": "clip", "model": MODEL, "options": {**TEXT, "dimension": 16}, "steps": 2, "batch": 8}
    simple |= {"workers": 0, "logs": {"tensorboard": False}, "device": {"accelerator": "cpu", "threads": 1}}
    return TrainRecipe.model_validate({**simple, "data": run, "out": str(out), **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{**row, "captions": [f"a {row['label']}", "", "a picture"]} for row in shapes(24)]
    rows[3] |= {"label": None, "captions": []}
    rows[8] = sample(b"no picture", (32, 32), label="cross", captions=["a cross"])
    return str(write_shards(tmp_path_factory.mktemp("run"), rows))


@pytest.fixture(scope="module")
def models(run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of each kind: trained here, and saved by transformers with random weights."""
    folder = tmp_path_factory.mktemp("models")
    train(recipe_of(run, folder / "clip"))
    train(recipe_of(run, folder / "siglip", method="siglip", options=TEXT))
    tiny_clip().save(str(folder / "hf-clip"))
    tiny_siglip(folder / "hf-siglip")
    return {
        "clip": str(folder / "clip"),
        "siglip": str(folder / "siglip"),
        "hf-clip": f"hf:{folder / 'hf-clip'}",
        "hf-siglip": f"hf:{folder / 'hf-siglip'}",
    }


def tiny_siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    torch.manual_seed(0)
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = tokenizer(16)
    text = {**shared, "vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = SiglipConfig(text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


KINDS = ["clip", "siglip", "hf-clip", "hf-siglip"]


@pytest.mark.parametrize("kind", KINDS)
def test_both_protocols_take_every_kind_of_model(kind: str, models: dict[str, str], run: str, tmp_path: Path) -> None:
    recipe = EvaluateRecipe(
        protocols=["zero-shot", "retrieval"], model=models[kind], data=run, out=str(tmp_path / "scores.json"), batch=7
    )
    lines: list[str] = []
    evaluate(recipe, lines.append)
    scores = json.loads((tmp_path / "scores.json").read_text())
    classes, found = scores["zero-shot"], scores["retrieval"]
    assert classes["top1.chance"] == 0.25
    assert classes["top1.pictures"] == 22
    assert classes["top1.unlabelled"] == 1
    assert classes["top1.unreadable"] == 1
    assert 0 <= classes["top1"] <= classes["top5"] == 1
    assert found["pictures"] == 22
    assert found["captions"] == 44
    assert found["pictures.without_captions"] == found["pictures.unreadable"] == 1
    assert found["text_to_image_R@1.chance"] == pytest.approx(1 / 22)
    assert found["captions.truncated"] == 0
    assert "text_to_image_R@10" in "\n".join(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_and_the_neighbours_do_not_change_a_vector(kind: str, models: dict[str, str]) -> None:
    model = load_image_text_model(models[kind], "cpu")
    files = [row["image"]["bytes"] for row in shapes(5)]
    together = model.pictures([*files[:2], b"broken", *files[2:]])
    assert isinstance(together[2], DecodeError)
    vectors = torch.stack([row for row in together if isinstance(row, Tensor)])
    alone = torch.cat([torch.stack(model.pictures([file])) for file in files])  # type: ignore[arg-type]
    torch.testing.assert_close(vectors, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    assert [type(each) for each in model.pictures([b"", b"broken"])] == [DecodeError, DecodeError]
    texts = ["a circle", "a red block", "a photo of the middle one"]
    torch.testing.assert_close(model.texts(texts)[:1], model.texts(texts[:1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_exported_model_gives_the_vectors_of_the_trained_one(
    kind: str, models: dict[str, str], tmp_path: Path
) -> None:
    """Pictures of the model's own side, which need no resize: Pillow's and the processor's differ a little."""
    export(models[kind], str(tmp_path))
    ours, theirs = load_image_text_model(models[kind], "cpu"), load_image_text_model(f"hf:{tmp_path}", "cpu")
    files, texts = [row["image"]["bytes"] for row in shapes(5)], ["a circle", "A  picture of the cross"]
    for mine, other in zip(ours.pictures(files), theirs.pictures(files), strict=True):
        assert isinstance(mine, Tensor)
        assert isinstance(other, Tensor)
        torch.testing.assert_close(other, mine, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.texts(texts), ours.texts(texts), atol=1e-5, rtol=1e-5)


class Knowing:
    """Knows every caption: a text and a picture of one word have the same vector."""

    truncated = 0

    def __init__(self, names: Sequence[str], of_file: dict[bytes, str]) -> None:
        self.names, self.of_file = list(names), of_file

    def texts(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self.vector(next(n for n in self.names if n in text)) for text in texts])

    def pictures(self, files: Sequence[bytes]) -> list[Tensor]:
        return [self.vector(self.of_file[file]) for file in files]

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        return pictures @ texts.T

    def ensemble(self, texts: Tensor) -> Tensor:
        return F.normalize(texts.mean(dim=1), dim=1)

    def vector(self, name: str) -> Tensor:
        return F.one_hot(torch.tensor(self.names.index(name)), len(self.names)).float()


def test_a_model_that_knows_finds_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
    rows = []
    for number, name in enumerate(names):
        picture = io.BytesIO()
        shape(number)[0].save(picture, "PNG")
        captions = [f"one {name}", f"{name} there", f"a {name}", f"this {name}", f"the {name}", "wrong: " + names[0]]
        rows.append(sample(picture.getvalue(), (32, 32), label=name, captions=captions))
    run = str(write_shards(tmp_path / "run", rows, shards=1))
    knowing = Knowing(names, {row["image"]["bytes"]: row["label"] for row in rows})
    for protocol in (zeroshot, retrieval):
        monkeypatch.setattr(protocol, "load_image_text_model", lambda *_: knowing)
    classes, found = measure(zeroshot, "", run), measure(retrieval, "", run)
    assert classes["top1"] == classes["top5"] == classes["top1.mean_per_class"] == 1
    assert found["captions"] == 35  # the sixth is not taken
    assert found["text_to_image_R@1"] == found["image_to_text_R@1"] == 1
    assert (measure(retrieval, "", run, captions=6)["text_to_image_R@1"] or 0) < 1
    (tmp_path / "names.json").write_text(json.dumps({"ant": "bee", "bee": "ant"}))
    assert measure(zeroshot, "", run, names=str(tmp_path / "names.json"))["top1"] == pytest.approx(5 / 7)
    (tmp_path / "templates.txt").write_text("a {}\n\n{} and dog\n")
    turned = measure(zeroshot, "", run, templates=str(tmp_path / "templates.txt"))
    assert turned.settings["templates"] == ["a {}", "{} and dog"]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "option", "sentence"),
    [
        ("a photo\n", "templates", r"options.templates: .* has a line without \{\}"),
        ("", "templates", r"options.templates: .* has a line without \{\}"),
        ("not json", "names", "options.names: .* is not JSON"),
        ("[" * 100_000, "names", "options.names: .* is not JSON .it is nested too deeply"),
        ('["a"]', "names", "options.names: .* must be an object"),
        ('{"circle": "cross"}', "names", "options.names: two classes have the name 'cross'"),
    ],
)
def test_wrong_files_are_sentences(
    content: str, option: str, sentence: str, run: str, models: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(UserError, match=sentence):
        measure(zeroshot, models["clip"], run, **{option: str(tmp_path / "file")})
    with pytest.raises(UserError, match=f"options.{option}: /nowhere cannot be read"):
        measure(zeroshot, models["clip"], run, **{option: "/nowhere"})


def test_models_and_data_that_do_not_fit_are_sentences(run: str, models: dict[str, str], tmp_path: Path) -> None:
    options = {"predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2, "min_keep": 1}
    masks = {"target_scale": [0.2, 0.3]}
    train(recipe_of(run, tmp_path / "ijepa", method="ijepa", options={**options, **masks}))
    with pytest.raises(UserError, match="has no text encoder; give a training of clip, siglip, llip, coca or flava"):
        measure(retrieval, str(tmp_path / "ijepa"), run)
    with pytest.raises(UserError, match="model"):
        measure(retrieval, f"hf:{tmp_path}/nothing", run)
    with pytest.raises(UserError, match="dtype: 'int8' is not right"):
        measure(retrieval, models["clip"], run, dtype="int8")
    bare = str(write_shards(tmp_path / "bare", [{**row, "captions": [" "], "label": "one"} for row in shapes(8)]))
    with pytest.raises(UserError, match="has nothing to measure on: no row has captions"):
        measure(retrieval, models["clip"], bare)
    with pytest.raises(UserError, match="have 1 classes; zero-shot classification needs two"):
        measure(zeroshot, models["clip"], bare)
    broken = [sample(f"x{i}".encode(), (8, 8), captions=["a dog"]) for i in range(4)]
    with pytest.raises(UserError, match="its pictures cannot be decoded, for example tests/"):
        measure(retrieval, models["clip"], str(write_shards(tmp_path / "broken", broken)))


def test_vectors_that_are_not_finite_are_a_sentence(run: str, tmp_path: Path) -> None:
    train(recipe_of(run, tmp_path))
    model = load_image_text_model(str(tmp_path), "cpu")
    assert isinstance(model, dual_encoder.TrainedPair)
    with torch.no_grad():
        model.model.text.out.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="vectors that are not finite"):
        model.texts(["a circle"])


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_colours_are_named_after_training(method: str, tmp_path: Path) -> None:
    """Training captions never have the words of the templates but the colour's name."""
    from datasets import Value

    rows = []
    for number in range(400):
        colour = list(COLOURS)[number % 8]
        data, split = png(rectangles([colour], number)), "test" if number % 5 == 0 else "train"
        captions = [f"{colour} block", f"we see {colour}", f"one {colour} side"]
        rows.append(sample(data, (32, 32), label=colour, captions=captions, split=split))
    run = str(write_shards(tmp_path / "run", rows, group=50, extra={"split": Value("string")}))
    small = {"model": {**MODEL, "width": 32}, "options": {**TEXT, "text_width": 32, "bias": -3.5}, "split": "train"}
    fast = {"optimiser": {"lr": 3e-3, "warmup": 10, "weight_decay": 0.1, "clip": 1.0}, "steps": 120, "batch": 32}
    train(recipe_of(run, tmp_path / "out", method=method, **small, **fast))
    found = measure(zeroshot, str(tmp_path / "out"), run, split="test")
    assert found["top1.chance"] == 0.125
    assert (found["top1"] or 0) > 0.5


@pytest.fixture(scope="module")
def flickr(tmp_path_factory: pytest.TempPathFactory) -> str:
    """600 pictures to train on and 100 to test, with five captions each."""
    from datasets import Value

    files: dict[str, dict[str, bytes]] = {}
    with tarfile.open(FLICKR) as archive:
        for member in archive:
            key, _, kind = member.name.partition(".")
            content = archive.extractfile(member)
            assert content is not None
            files.setdefault(key, {})[kind] = content.read()
    rows = []
    for number, key in enumerate(sorted(files)):
        size = Image.open(io.BytesIO(files[key]["jpg"])).size
        captions = json.loads(files[key]["json"])["captions"]
        rows.append(sample(files[key]["jpg"], size, captions=captions, split="test" if number % 7 == 0 else "train"))
    folder = tmp_path_factory.mktemp("flickr")
    return str(write_shards(folder, rows, group=50, extra={"split": Value("string")}))


@pytest.mark.slow
@pytest.mark.skipif(not FLICKR.exists(), reason="needs ../shared/data/captions_flickr8k_dev.tar")
@pytest.mark.parametrize("name", ["clip_tiny", "siglip_tiny"])
def test_the_tiny_recipes_find_captions_of_photographs(name: str, flickr: str, tmp_path: Path) -> None:
    """Measured R@10: see the recipes; among other pictures at least 1.7 times chance, among its own 10 times."""
    config = CONFIGS / "train" / f"{name}.yaml"
    train(load_recipe(TrainRecipe, str(config), ["--data", flickr, "--out", str(tmp_path / "out")]))
    for split, factor in (("test", 1.4), ("train", 5)):
        found = measure(retrieval, str(tmp_path / "out"), flickr, split=split)
        names = ("text_to_image_R@10", "image_to_text_R@10")
        chance = sum(found[f"{metric}.chance"] or 0 for metric in names)
        assert sum(found[metric] or 0 for metric in names) > factor * chance
