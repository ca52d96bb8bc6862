"""CLIP and SigLIP against double loops, closed forms and transformers; their captions, tokenizer and runs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import places
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from places import ROOT
from safetensors.torch import load_file
from tiny_shards import encoded, sample, shape, shapes, write_shards
from tokenizers import Tokenizer
from torch import Tensor

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.tokenizer import SPECIAL, TextTokenizer, read_tokenizer, train_tokenizer
from granary.training.losses.contrastive import Pairs, contrastive_loss, gathered_pairs, sigmoid_loss
from granary.training.method import Moment
from granary.training.methods.clip import CLIP, SigLIP, SigLIPOptions, caption_keys, draw_captions
from granary.training.models.checkpoint import usable
from granary.training.models.clip_weights import load_clip, to_transformers
from granary.training.models.export import export
from granary.training.models.registry import load_model
from granary.training.models.text import TextConfig, TextTransformer
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run import loop
from granary.training.run.loop import train

TEXT: dict[str, Any] = {"text_width": 16, "text_depth": 2, "text_heads": 2, "context": 12}
SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
CAPTIONS = ["a red dog runs", "two cats on a mat", "a boat at sea", "the old man", "a red dog runs to the boat"]
TOKENIZER = train_tokenizer(CAPTIONS, 600)
SIMPLE: dict[str, Any] = {
    "method": "clip",
    "options": {**TEXT, "dimension": 8},
    "model": {**SHAPE, "drop_path": 0.2},
    "steps": 8,
    "batch": 8,
    "workers": 0,
    "window": 16,
    "optimiser": {"lr": 3e-3, "warmup": 2, "clip": 1.0},
    "logs": {"every": 1, "tensorboard": False},
    "checkpoints": {"every": 3},
    "device": {"accelerator": "cpu", "threads": 1},
}


def method(kind: type[CLIP] = CLIP, seed: int = 0, **options: Any) -> CLIP:
    torch.manual_seed(seed)
    config = ViTConfig(**{**SHAPE, **kind.MODEL})
    own = {"dimension": 8} if kind is CLIP else {}
    return kind(config, kind.Options(**{**TEXT, **own, **options}), TOKENIZER)


def features(n: int, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(n, d, dtype=torch.float64, generator=generator) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_()


def number(value: float, trained: bool = False) -> Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=trained)


def of_cosines(cosines: Tensor) -> Pairs:
    """Pairs whose images times texts are a given matrix: the rows need no unit length for that."""
    n = len(cosines)
    return Pairs(cosines, torch.eye(n, dtype=cosines.dtype), torch.arange(1, n + 1), 0, n)


# -- losses: double loops ----------------------------------------------------------------------------------------------


def slow_clip(images: Tensor, texts: Tensor, alpha: Tensor, keys: list[int]) -> Tensor:
    """Both directions, row by row, term by term; pairs without a caption (key 0) are not there."""
    u, v = [x / x.norm() for x in images], [x / x.norm() for x in texts]
    there = [i for i, key in enumerate(keys) if key]
    terms = []
    for i in there:
        columns = [j for j in there if j == i or keys[j] != keys[i]]
        for own, others in ((u[i], v), (v[i], u)):
            exponents = [torch.exp(alpha.exp() * (own * others[j]).sum()) for j in columns]
            terms.append(-torch.log(exponents[columns.index(i)] / sum(exponents)))
    return (sum(terms) / (2 * len(there))).squeeze()  # type: ignore[union-attr]


def slow_siglip(images: Tensor, texts: Tensor, t: Tensor, b: Tensor, keys: list[int]) -> Tensor:
    u, v = [x / x.norm() for x in images], [x / x.norm() for x in texts]
    there = [i for i, key in enumerate(keys) if key]
    terms = []
    for i in there:
        for j in there:
            if i == j or keys[i] != keys[j]:
                y = 1 if i == j else -1
                terms.append(-torch.log(1 / (1 + torch.exp(-y * (t.exp() * (u[i] * v[j]).sum() + b)))))
    return (sum(terms) / len(there)).squeeze()  # type: ignore[union-attr]


@pytest.mark.parametrize("keys", [[1, 3, 5, 7, 9], [1, 3, 1, 0, 9], [5, 5, 5, 5, 5], [0, 0, 7, 0, 9]])
@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip in chunks"])
def test_losses_and_gradients_equal_double_loops(kind: str, keys: list[int]) -> None:
    found = []
    for fast in (True, False):
        images, texts = features(5)
        scale, bias = number(1.3, trained=True), number(-2.0, trained=True)
        pairs = gathered_pairs(images, texts, torch.tensor(keys))
        if kind == "clip":
            loss = contrastive_loss(pairs, scale) if fast else slow_clip(images, texts, scale, keys)
            wanted = [images, texts, scale]
        else:
            chunk = 2 if "chunks" in kind else None
            loss = sigmoid_loss(pairs, scale, bias, chunk) if fast else slow_siglip(images, texts, scale, bias, keys)
            wanted = [images, texts, scale, bias]
        found.append([loss.detach(), *torch.autograd.grad(loss, wanted)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_losses_are_the_cross_entropies_of_torch() -> None:
    images, texts = features(7)
    pairs, alpha, bias = gathered_pairs(images, texts), number(2.0), number(-3.0)
    logits, n = alpha.exp() * F.normalize(images) @ F.normalize(texts).T, torch.arange(7)
    expected = (F.cross_entropy(logits, n) + F.cross_entropy(logits.T, n)) / 2
    torch.testing.assert_close(contrastive_loss(pairs, alpha), expected)
    expected = F.binary_cross_entropy_with_logits(logits + bias, torch.eye(7).double(), reduction="sum") / 7
    torch.testing.assert_close(sigmoid_loss(pairs, alpha, bias), expected)


# -- losses: closed forms and the traps of the method sheet ------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 8, 64])
def test_clip_of_features_that_say_nothing_is_ln_n(n: int) -> None:
    loss = contrastive_loss(of_cosines(torch.zeros(n, n, dtype=torch.float64)), number(math.log(1 / 0.07)))
    assert float(loss) == pytest.approx(math.log(n), abs=1e-12)


def test_siglip_at_its_start_has_the_closed_forms() -> None:
    t, b = number(math.log(10)), number(-10.0)
    for n, right in ((4, 0.6932833772575959), (8, 0.6934649728544633)):
        assert float(sigmoid_loss(of_cosines(torch.eye(n).double()), t, b)) == pytest.approx(right, abs=1e-12)
    assert float(sigmoid_loss(of_cosines(torch.zeros(4, 4).double()), t, b)) == pytest.approx(10.0001815956, abs=1e-9)


def test_siglip_is_divided_by_the_pictures_not_by_the_pairs() -> None:
    loss = sigmoid_loss(of_cosines(torch.ones(8, 8).double()), number(math.log(10)), number(-10.0))
    assert float(loss) == pytest.approx(8 * math.log(2), abs=1e-9)


def test_golden_values_of_two_pairs() -> None:
    images, texts = (torch.tensor(rows, dtype=torch.float64) for rows in ([[1, 0], [0.6, 0.8]], [[0.8, 0.6], [0, 1]]))
    pairs = gathered_pairs(images, texts)
    assert float(contrastive_loss(pairs, number(math.log(1 / 0.07)))) == pytest.approx(1.1912904354682, abs=1e-9)
    assert float(sigmoid_loss(pairs, number(math.log(10)), number(-10.0))) == pytest.approx(2.3834583366926, abs=1e-9)


def test_the_gradient_of_the_bias_at_the_start_has_the_closed_form() -> None:
    n, t, b = 5, number(math.log(10)), number(-10.0, trained=True)
    (gradient,) = torch.autograd.grad(sigmoid_loss(of_cosines(torch.eye(n).double()), t, b), b)
    assert float(gradient) == pytest.approx(-0.5 + (n - 1) * 4.5397868702434395e-5, abs=1e-12)


def test_the_scale_is_the_exponential_of_its_parameter_once() -> None:
    images, texts = features(4)
    cosines = F.normalize(images) @ F.normalize(texts).T
    expected = F.binary_cross_entropy_with_logits(10 * cosines - 10, torch.eye(4).double(), reduction="sum") / 4
    found = sigmoid_loss(gathered_pairs(images, texts), number(math.log(10)), number(-10.0))
    torch.testing.assert_close(found, expected)


def test_lengths_of_features_and_the_roles_of_image_and_text_do_not_matter() -> None:
    images, texts = features(6)
    scale, bias = number(2.0), number(-1.0)
    plain, longer, swapped = (gathered_pairs(*pair) for pair in ((images, texts), (3 * images, texts), (texts, images)))
    for other in (longer, swapped):
        torch.testing.assert_close(contrastive_loss(plain, scale), contrastive_loss(other, scale))
        torch.testing.assert_close(sigmoid_loss(plain, scale, bias), sigmoid_loss(other, scale, bias))


def test_equal_captions_are_negatives_or_masked() -> None:
    row = torch.tensor([[1.0, 2.0]]).double().expand(2, 2)
    pairs, scale = gathered_pairs(row, row, torch.tensor([7, 7])), number(math.log(50))
    assert float(contrastive_loss(pairs.distinct(), scale)) == pytest.approx(math.log(2), abs=1e-12)
    assert float(contrastive_loss(pairs, scale)) == 0
    assert float(sigmoid_loss(pairs.distinct(), number(0.0), number(-1.0))) == pytest.approx(2 * math.log(2), abs=1e-12)
    assert float(sigmoid_loss(pairs, number(0.0), number(-1.0))) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_siglip_in_chunks_is_siglip_and_clip_is_not_summable(chunk: int) -> None:
    images, texts = (x.detach() for x in features(7))
    pairs, scale, bias = gathered_pairs(images, texts), number(1.0), number(-1.0)
    whole = sigmoid_loss(pairs, scale, bias)
    torch.testing.assert_close(sigmoid_loss(pairs, scale, bias, chunk), whole, atol=1e-9, rtol=0)
    if chunk == 3:
        parts = [gathered_pairs(images[i : i + 3], texts[i : i + 3]) for i in (0, 3, 6)]
        summed = sum(contrastive_loss(part, scale) * part.size / 7 for part in parts)
        assert abs(float(summed - contrastive_loss(pairs, scale))) > 0.1


def test_rows_of_processes_average_to_the_whole_batch() -> None:
    """Without processes: the same pairs seen from the rows of two of them, one with a sample that has no caption."""
    images, texts = features(6)
    whole = gathered_pairs(images, texts, torch.tensor([1, 3, 0, 7, 7, 9]))
    halves = [whole._replace(first=first, size=3) for first in (0, 3)]
    scale, bias = number(1.0), number(-1.0)
    for loss in (lambda p: contrastive_loss(p, scale), lambda p: sigmoid_loss(p, scale, bias, 2)):
        torch.testing.assert_close(sum(loss(half) for half in halves) / 2, loss(whole))


def test_half_precision_features_are_compared_in_float32() -> None:
    images, texts = (x.detach().float() for x in features(8))
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(gathered_pairs(images, texts), torch.tensor([3.0]))
        halved = gathered_pairs(images.bfloat16(), texts.bfloat16())
    assert halved.images.dtype == torch.float32
    assert torch.equal(found, contrastive_loss(gathered_pairs(images, texts), torch.tensor([3.0])))


# -- the methods -------------------------------------------------------------------------------------------------------


def batch_of(count: int, captions: list[list[str]] | None = None, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (count, 1, 16, 16, 3), dtype=torch.uint8, generator=generator),
        "image_draws": torch.rand(count, 1, 16, generator=generator),
        "captions": captions or [[f"a picture of number {i}", f"it is {i}"] for i in range(count)],
        "id": [f"id{i}" for i in range(count)],
    }


@pytest.mark.parametrize(("changes", "start"), [({"dimension": 512}, math.log(64)), ({"loss": "sigmoid"}, 10.0)])
def test_untrained_models_start_where_orthogonal_features_would(changes: dict[str, Any], start: float) -> None:
    output = method(**{"dimension": 512, **changes})(batch_of(64, [[f"{i} dog"] for i in range(64)]), Moment(0, 10, 0))
    assert float(output["loss"].detach()) == pytest.approx(start, abs=0.4)
    assert float(output["scale"]) == pytest.approx(10 if "loss" in changes else 1 / 0.07)


def test_siglip_starts_at_ten_less_what_its_pairs_agree() -> None:
    """Few dimensions are not orthogonal: by the mean cosine c of the pairs the start is 10 (1 - c)."""
    model, batch = method(SigLIP).eval(), batch_of(64, [[f"{i} dog"] for i in range(64)])
    pixels = (batch["image"][:, 0].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        tokens = model.tokenizer.numbers([own for (own,) in batch["captions"]])
        cosine = F.cosine_similarity(model.images(pixels), model.texts(tokens)).mean()
        loss = model(batch, Moment(0, 10, 0))["loss"]
    assert float(loss) == pytest.approx(10 * (1 - float(cosine)), abs=0.3)
    assert (float(model.scale.detach().exp()), float(model.bias.detach())) == (pytest.approx(10), -10)


def test_alpha_stays_below_ln_100_whatever_the_steps() -> None:
    model = method()
    optimiser = torch.optim.SGD([model.scale], 1.0)
    for _ in range(30):
        model.scale.grad = -torch.ones(1)
        optimiser.step()
        model.after_step(Moment(0, 1, 0))
        assert float(model.scale.detach().exp()) <= 100 * (1 + 1e-6)
    assert float(model.scale.detach()) == pytest.approx(math.log(100))
    with torch.no_grad():
        model.scale.fill_(-1)
    model.after_step(Moment(0, 1, 0))
    assert float(model.scale.detach()) == 0


def test_scale_and_bias_have_no_decay() -> None:
    for kind in (CLIP, SigLIP):
        model = method(kind)
        decayed, plain = ({id(p) for p in group.params} for group in model.parameter_groups())
        own = [model.scale, *([model.bias] if kind is SigLIP else [])]
        assert all(id(parameter) in plain and id(parameter) not in decayed for parameter in own)
        assert len(decayed) + len(plain) == sum(p.requires_grad for p in model.parameters())


def test_siglips_loss_on_clips_encoders_is_an_option() -> None:
    model = method(loss="sigmoid")
    output = model(batch_of(4), Moment(0, 1, 0))
    assert float(output["scale"]) == pytest.approx(10)
    assert float(model.bias.detach()) == -10
    assert float(method(loss="sigmoid", bias=-4.0).bias.detach()) == -4
    assert not hasattr(method(), "bias")


@pytest.mark.parametrize("kind", [CLIP, SigLIP])
def test_every_weight_gets_a_gradient(kind: type[CLIP]) -> None:
    model = method(kind)
    model(batch_of(6), Moment(0, 1, 0))["loss"].backward()
    idle = [name for name, p in model.named_parameters() if p.numel() and (p.grad is None or not p.grad.abs().sum())]
    assert idle == []


# -- captions ----------------------------------------------------------------------------------------------------------


def test_a_caption_depends_on_seed_step_and_sample_alone() -> None:
    captions, ids = [["a", "b", "c", "d", "e"]] * 400, [f"x{i}" for i in range(400)]
    one = draw_captions(captions, ids, Moment(3, 10, 5))
    assert draw_captions(captions[::-1], ids[::-1], Moment(3, 10, 5, rank=1, part=2)) == one[::-1]
    assert draw_captions(captions, ids, Moment(4, 10, 5)) != one
    assert draw_captions(captions, ids, Moment(3, 10, 6)) != one
    counts = [one.count(letter) for letter in "abcde"]
    assert sum((count - 80) ** 2 / 80 for count in counts) < 18.5  # chi square, 4 degrees of freedom, p = 0.001
    over_steps = {draw_captions(captions[:1], ids[:1], Moment(step, 99, 5))[0] for step in range(40)}
    assert over_steps == set("abcde")
    assert draw_captions([["", " ", "x"], [], [""]], ["a", "b", "c"], Moment(0, 1, 0)) == ["x", None, None]


def test_samples_without_captions_are_left_out_and_counted() -> None:
    model = method().eval()
    captions = [["a red dog"], [], ["two cats"], ["  "], ["a boat"], ["the old man"]]
    whole = batch_of(6, captions)
    kept = [0, 2, 4, 5]
    rest = {k: v[kept] if isinstance(v, Tensor) else [v[i] for i in kept] for k, v in whole.items()}
    full = model(whole, Moment(0, 1, 0))
    assert float(full["skipped"]) == 2
    again = model(rest, Moment(0, 1, 0))
    torch.testing.assert_close(full["loss"], again["loss"])
    assert float(again["skipped"]) == 2  # so far
    assert float(model(whole, Moment(1, 2, 0))["skipped"]) == 4


def test_a_batch_without_any_caption_moves_nothing() -> None:
    for kind in (CLIP, SigLIP):
        model = method(kind)
        loss = model(batch_of(3, [[], [], []]), Moment(0, 1, 0))["loss"]
        loss.backward()
        assert float(loss) == 0
        assert all(p.grad is None or not p.grad.abs().sum() for p in model.parameters())


def test_keys_are_equal_where_tokens_are() -> None:
    tokenizer = TextTokenizer(TOKENIZER, 12, True)
    texts = ["A red dog", "a  red dog ", "a red", "a red dog runs"]
    keys = caption_keys([*texts[:3], None], tokenizer.numbers(texts), tokenizer.end).tolist()
    alone = caption_keys(texts[:1], tokenizer.numbers(texts[:1]), tokenizer.end).tolist()
    assert keys[0] == keys[1] == alone[0] != keys[2]
    assert keys[3] == 0
    assert all(key % 2 for key in keys[:3])


# -- tokenizer and text encoder ----------------------------------------------------------------------------------------


def test_a_trained_tokenizer_is_the_same_for_the_same_captions_and_gives_them_back() -> None:
    captions = [f"{a} {b} {c}" for a in ("a", "Two", "THE") for b in ("dogs", "cats", "größer") for c in ("run", "sit")]
    one = train_tokenizer(captions, 600)
    assert train_tokenizer(captions[::-1], 600) == one
    inner = Tokenizer.from_str(one)
    assert inner.get_vocab_size() <= 600
    assert inner.decode(inner.encode("Two  dogs 🐕 größer").ids).strip() == "two dogs 🐕 größer"
    assert len(inner.encode("two dogs").ids) == 2
    assert [inner.token_to_id(name) for name in SPECIAL] == [0, 1, 2]


def test_the_frame_of_a_text() -> None:
    causal, filled_up = TextTokenizer(TOKENIZER, 6, True), TextTokenizer(TOKENIZER, 6, False)
    short, long = "a boat", "a red dog runs to the boat at sea"
    rows = causal.numbers([short, long, ""]).tolist()
    assert [len(row) for row in rows] == [6, 6, 6]
    assert rows[0][0] == rows[2][0] == causal.start
    assert rows[0].index(causal.end) == 3
    assert set(rows[0][4:]) == {causal.pad}
    assert rows[1][-1] == causal.end
    assert rows[2][:2] == [causal.start, causal.end]
    assert causal.truncated == 1
    (row,) = filled_up.numbers([short]).tolist()
    assert row[2:] == [filled_up.end, *[filled_up.pad] * 3]
    assert causal.numbers([short]).shape == (1, 4)


@pytest.mark.parametrize("causal", [True, False])
def test_what_the_text_encoder_sees(causal: bool) -> None:
    torch.manual_seed(0)
    tokenizer = TextTokenizer(TOKENIZER, 12, causal)
    config = TextConfig(tokenizer.vocabulary, 12, 16, 2, 2, 8, causal, tokenizer.end)
    text = TextTransformer(config).eval()
    tokens = tokenizer.numbers(["a red dog", "a red dog runs"])
    padded = F.pad(tokens, (0, 12 - tokens.shape[1]), value=tokenizer.pad)
    other = torch.where(padded == tokenizer.pad, 5, padded)
    assert torch.allclose(text(padded), text(tokens), atol=1e-6)
    assert torch.allclose(text(other), text(padded), atol=1e-6) == causal  # SigLIP attends to its padding
    turned = tokens.clone()
    turned[0, [1, 2]] = turned[0, [2, 1]]
    assert not torch.allclose(text(turned)[0], text(tokens)[0], atol=1e-4)


def test_any_tokenizer_of_the_library_gets_the_frame(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"dog": 0, "cat": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        own = TextTokenizer(read_tokenizer(str(path)), 8, True)
        assert (own.start, own.end, own.pad, own.vocabulary) == (3, 4, 5, 6)
        assert own.numbers(["dog bird"]).tolist() == [[3, 0, 2, 4]]
    assert TextTokenizer(own.json, 8, True).json == own.json


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_tokenizer_that_is_none_is_a_sentence(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"options.tokenizer: .* holds no tokenizer"):
        read_tokenizer(str(tmp_path))


def test_sizes_that_do_not_fit_are_sentences() -> None:
    with pytest.raises(UserError, match=r"options.text_width: 18 must be a multiple of 4"):
        method(text_width=18)
    with pytest.raises(UserError, match="SigLIP has no class token"):
        SigLIP(ViTConfig(**SHAPE), SigLIPOptions(**TEXT), TOKENIZER)


# -- transformers ------------------------------------------------------------------------------------------------------


def shaken(model: CLIP) -> CLIP:
    """Move all weights away from their initial values, zeros and ones above all."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(CLIP, {}), (CLIP, {"mlp": "quick_gelu"}), (CLIP, {"pos_embed": "sincos"}), (SigLIP, {})],
)
def test_transformers_gives_the_same_vectors_and_logits(kind: type[CLIP], changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    own = {"dimension": 8} if kind is CLIP else {}
    config = ViTConfig(**{**SHAPE, **kind.MODEL, **changes})
    model = shaken(kind(config, kind.Options(**{**TEXT, **own}), TOKENIZER))
    theirs = to_transformers(model)
    pixels, tokens = torch.randn(3, 3, 16, 16), model.tokenizer.numbers(CAPTIONS)
    with torch.no_grad():
        images, texts = F.normalize(model.images(pixels)), F.normalize(model.texts(tokens))
        output = theirs(input_ids=tokens, pixel_values=pixels)
        bias = model.bias if kind is SigLIP else 0
        torch.testing.assert_close(output.image_embeds, images, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.text_embeds, texts, atol=1e-5, rtol=1e-5)
        logits = model.scale.exp() * images @ texts.T + bias
        torch.testing.assert_close(output.logits_per_image, logits, atol=1e-4, rtol=1e-5)
    assert images.std(dim=0).min() > 1e-3


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = shapes(40, 16)
    for i, row in enumerate(rows):
        row["captions"] = [] if i == 7 else [f"a {row['label']}", f"number {i}", f"this is a {row['label']}, {i}"]
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, group=8))


def recipe_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({**SIMPLE, "data": run, "out": str(out), **changes})


def siglip_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    return recipe_of(run, out, method="siglip", options={**TEXT, "chunk": 3}, model=SHAPE, **changes)


def curve(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "metrics.csv").read_text())))


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(next(iter(usable(str(out)))) + "/training.safetensors")


@pytest.mark.parametrize("make", [recipe_of, siglip_of])
@pytest.mark.parametrize("at", [1, 7])
def test_a_run_that_fails_at_a_step_goes_on_as_if_it_had_not(
    make: Any, at: int, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(make(run, whole))
    original = loop.TrainingSession._update

    def failing(self: Any, step: int) -> None:
        if step == at:
            raise MemoryError
        original(self, step)

    monkeypatch.setattr(loop.TrainingSession, "_update", failing)
    with pytest.raises(MemoryError):
        train(make(run, broken))
    monkeypatch.setattr(loop.TrainingSession, "_update", original)
    assert train(make(run, broken))["finished"]
    one, two = weights(whole), weights(broken)
    assert curve(whole) == curve(broken)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert float(curve(whole)[-1]["skipped"]) >= 1  # sample 7 comes once in five steps


def test_the_tokenizer_of_a_run_is_kept_and_used_when_it_goes_on(run: str, tmp_path: Path) -> None:
    train(recipe_of(run, tmp_path / "out", steps=3))
    file = tmp_path / "out" / "tokenizer.json"
    kept = file.read_bytes()
    assert load_clip(next(usable(str(tmp_path / "out")))).tokenizer.json.encode() == kept
    other = train_tokenizer(CAPTIONS, 600)
    file.write_text(other)
    with pytest.raises(UserError, match="checkpoint of another architecture"):
        train(recipe_of(run, tmp_path / "out", steps=3))
    file.write_bytes(kept)
    assert train(recipe_of(run, tmp_path / "out", steps=3))["finished"]


def test_a_given_tokenizer_is_used(run: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    options = {**SIMPLE["options"], "tokenizer": str(tmp_path)}
    train(recipe_of(run, tmp_path / "out", steps=2, options=options))
    (tmp_path / "tokenizer.json").unlink()  # what the run needs lies in its own directory
    model = load_clip(next(usable(str(tmp_path / "out"))))
    assert model.tokenizer.json == TextTokenizer(TOKENIZER, 12, True).json


@pytest.mark.parametrize("make", [recipe_of, siglip_of])
def test_a_checkpoint_holds_both_encoders_and_the_tokenizer(make: Any, run: str, tmp_path: Path) -> None:
    train(make(run, tmp_path / "out", steps=3))
    (tmp_path / "moved").mkdir()
    folder = tmp_path / "moved" / "checkpoint"
    Path(next(usable(str(tmp_path / "out")))).rename(folder)
    model, state = load_clip(str(folder)), load_file(folder / "training.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[f"method/{name}"])
    vision = load_model(str(folder))
    assert all(torch.equal(w, model.image.state_dict()[name]) for name, w in vision.state_dict().items())


def test_a_whole_model_is_exported(run: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    for make, name in ((recipe_of, "CLIPModel"), (siglip_of, "SiglipModel")):
        train(make(run, tmp_path / name, steps=2))
        out = str(tmp_path / f"{name} out")
        assert export(str(tmp_path / name), out) == f"transformers.{name}.from_pretrained({out!r})"
        ours, theirs = load_clip(next(usable(str(tmp_path / name)))), AutoModel.from_pretrained(out)
        words = AutoTokenizer.from_pretrained(out)
        full = {"padding": "max_length", "max_length": 12} if name == "SiglipModel" else {"padding": True}
        found = words(CAPTIONS, truncation=True, return_tensors="pt", **full)
        assert torch.equal(found["input_ids"], ours.tokenizer.numbers(CAPTIONS))
        with torch.no_grad():
            features = theirs.get_text_features(input_ids=found["input_ids"])
        features = getattr(features, "pooler_output", features)
        torch.testing.assert_close(features, ours.texts(found["input_ids"]), atol=1e-5, rtol=1e-5)


def test_shards_without_captions_are_sentences(run: str, tmp_path: Path) -> None:
    rows = shapes(16, 16)
    bare = write_shards(tmp_path / "bare", rows, shards=1)
    (file,) = (bare / "dataset" / "data").iterdir()
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["captions"]), file)
    with pytest.raises(UserError, match="has no column 'captions', which clip needs"):
        train(recipe_of(str(bare), tmp_path / "out"))
    pq.write_table(table.set_column(table.schema.get_field_index("captions"), "captions", table["width"]), file)
    with pytest.raises(UserError, match=r"the column captions of .* is int32; it must be a list of texts, or a text"):
        train(recipe_of(str(bare), tmp_path / "out"))
    empty = write_shards(tmp_path / "empty", [{**row, "captions": ["", " "]} for row in rows])
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    for options in (SIMPLE["options"], {**SIMPLE["options"], "tokenizer": str(tmp_path)}):
        with pytest.raises(UserError, match=r"the column captions of .* has no text in any row"):
            train(recipe_of(str(empty), tmp_path / "out", options=options))
    with pytest.raises(UserError, match=r"options.tokenizer: '/nowhere' holds no tokenizer"):
        train(recipe_of(run, tmp_path / "out", options={**SIMPLE["options"], "tokenizer": "/nowhere"}))
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_decoded_is_a_dead_letter(tmp_path: Path) -> None:
    rows = shapes(16, 16)
    broken = encoded(shape(99, 16)[0], "PNG")[:60]
    rows[3] = sample(broken, (16, 16), captions=["a broken one"], source={"name": "tests", "uri": "tests/broken.png"})
    out = tmp_path / "out"
    assert train(recipe_of(str(write_shards(tmp_path / "run", rows)), out, steps=4))["dead"] == 1
    assert "tests/broken.png" in (out / "dead-letter.csv").read_text()


# -- recipes -----------------------------------------------------------------------------------------------------------

CONFIGS = [places.CONFIGS / "train" / f"{name}_vitb16.yaml" for name in ("clip", "siglip")]


def test_published_recipes_have_the_published_sizes() -> None:
    sizes = {}
    for config in CONFIGS:
        recipe = load_recipe(TrainRecipe, str(config), ["--data", "RUN", "--out", "TRAIN"])
        kind = CLIP if recipe.method == "clip" else SigLIP
        options = kind.Options.model_validate(recipe.options)
        with torch.device("meta"):
            text = TextTransformer(
                TextConfig(options.vocabulary, options.context, options.text_width, options.text_depth,
                           options.text_heads, getattr(options, "dimension", 768), kind.KIND == "clip")
            )  # fmt: skip
        vision = recipe.config()
        sizes[recipe.method] = (
            sum(p.numel() for p in text.parameters()),
            (vision.width, vision.depth, vision.patch_size),
        )
    assert sizes["clip"] == (63_428_096, (768, 12, 16))  # text tower of openai/clip-vit-base-patch16 with projection
    assert sizes["siglip"] == (110_271_744, (768, 12, 16))


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy"), [("clip", "ddp"), ("siglip", "ddp"), ("clip", "fsdp"), ("siglip", "fsdp")]
)
def test_two_processes_train_what_one_does(name: str, strategy: str, run: str, tmp_path: Path) -> None:
    """One of the samples has no caption, some captions are equal across processes, and no branch is dropped."""
    options = {**TEXT, "dimension": 8} if name == "clip" else {**TEXT, "chunk": 3}
    plain: dict[str, Any] = {"method": name, "options": options, "model": SHAPE, "steps": 6, "streams": 4}
    plain |= {"optimiser": {"lr": 1e-3, "clip": 0.5, "eps": 1e-4}}
    device = {**SIMPLE["device"], "devices": 2, "strategy": strategy}
    recipe = recipe_of(run, tmp_path / "two", **plain, device=device)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from granary.training.run.loop import train
            from granary.training.recipe import TrainRecipe
            if __name__ == "__main__":
                train(TrainRecipe.model_validate_json(open({str(tmp_path / "recipe.json")!r}).read()))
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], check=True, timeout=300, env=environment)
    train(recipe_of(run, tmp_path / "one", **plain))
    for left, right in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=1e-4)
        assert left["skipped"] == right["skipped"]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-4, rtol=2e-3, msg=lambda m, k=key: f"{k}: {m}")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["finished"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_losses_of_the_cpu() -> None:
    images, texts = (x.detach().float() for x in features(32, 16))
    keys = torch.tensor([1, 3, 3, 0, *range(5, 61, 2)])
    for loss in (lambda p, s: contrastive_loss(p, s), lambda p, s: sigmoid_loss(p, s, -s, 7)):
        here = loss(gathered_pairs(images, texts, keys), torch.tensor([2.0]))
        there = loss(gathered_pairs(images.cuda(), texts.cuda(), keys.cuda()), torch.tensor([2.0]).cuda())
        torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=1e-5)
