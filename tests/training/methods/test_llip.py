"""Llip: its loss against loops over pairs, its limits (SigLIP, a uniform mixture), its runs, its evaluation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from caption_batches import batch_of
from caption_trainings import CAPTIONS, NOW, SHAPE, TOKENIZER, check_evaluated, check_half_precision, check_silence
from masked_trainings import disturbed
from measuring import measure
from places import CONFIGS
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_clip import scene_rows, write_pairs
from tiny_trainings import OPTIONS, TEXT, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.evaluation import pairs
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.evaluation.pairs import load_image_text_model, load_pair_scorer
from granary.training.evaluation.protocols import retrieval
from granary.training.methods.clip import CLIP, CLIPOptions
from granary.training.methods.llip import Llip, LlipOptions
from granary.training.models.export import export
from granary.training.models.registry import load_model
from granary.training.models.training import load_training
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe


def llip(registers: int = 3, class_token: bool = True, seed: int = 0, **options: Any) -> Llip:
    torch.manual_seed(seed)
    config = ViTConfig(**{**SHAPE, **Llip.MODEL, "registers": registers, "class_token": class_token})
    given = LlipOptions(**{**TEXT, "dimension": 8, "heads": 2, "temperature": 0.7, "bias": -2.0, **options})
    return Llip(config, given, TOKENIZER)


BATCH = [["a red dog"], ["two cats"], [], ["a red dog"], ["a boat"], ["the old man at sea"]]


def loss_of(model: CLIP, batch: dict[str, Any]) -> Tensor:
    """The loss of a model in float64: its own forward pass, but with pictures of that precision."""
    pixels, tokens, keys = model.inputs(batch, NOW)
    return model.compared(model.images(pixels.double()), model.texts(tokens), keys)[0]


# -- the loss ----------------------------------------------------------------------------------------------------------


def slow_loss(model: Llip, batch: dict[str, Any], negatives: bool = False) -> Tensor:
    """Pair by pair, head by head, token by token, from the outputs of both encoders on."""
    weights, config = dict(model.named_parameters()), model.config
    pixels = batch["image"][:, 0].permute(0, 3, 1, 2).double() / 255
    pixels = (pixels - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    h = model.image(pixels).registers
    there = [i for i, own in enumerate(batch["captions"]) if own]
    captions = {i: batch["captions"][i][0] for i in there}
    vectors = model.text.pooled(model.tokenizer.numbers([captions[i] for i in there]))
    g = dict(zip(there, vectors, strict=True))
    heads, tau, size = model.options.heads, model.options.temperature, 8 // model.options.heads
    a, b = weights["scale"].exp(), weights["bias"]
    total = torch.zeros((), dtype=torch.float64)
    for i in there:
        for j in there:
            if i != j and captions[i] == captions[j] and not negatives:
                continue
            parts = []
            for m in range(heads):
                rows = slice(m * size, (m + 1) * size)
                q = weights["pool.query.weight"][rows] @ g[j]
                logits = [q @ (weights["pool.key.weight"][rows] @ token) / (tau * math.sqrt(size)) for token in h[i]]
                shares = [logit.exp() / sum(other.exp() for other in logits) for logit in logits]
                values = [weights["pool.value.weight"][rows] @ token for token in h[i]]
                parts.append(sum(share * value for share, value in zip(shares, values, strict=True)))
            z = weights["pool.out.weight"] @ torch.cat(parts)  # type: ignore[arg-type]
            t = weights["text.out.weight"] @ g[j]
            s = (z @ t) / (z.norm() * t.norm())
            y = 1 if i == j else -1
            total = total - torch.log(1 / (1 + torch.exp(-y * (a * s + b))))[0]
    return total / len(there)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("duplicates", ["masked", "negatives"])
def test_loss_and_gradients_equal_loops_over_pairs(duplicates: str, chunk: int | None) -> None:
    fast, slow = (disturbed(llip(duplicates=duplicates, chunk=chunk, crop_scale=(1.0, 1.0))) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    batch = batch_of(BATCH)
    loss, expected = loss_of(fast, batch), slow_loss(slow, batch, negatives=duplicates == "negatives")
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)  # pixels are scaled in float32
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        if ours.requires_grad:
            assert theirs.grad is not None, name
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_with_one_token_it_is_siglip_on_clips_encoders() -> None:
    """The register in the place of the class token, and the projection W_O W_V: loss and gradients are SigLIP's."""
    ours = disturbed(llip(registers=1, class_token=False))
    config = ViTConfig(**{**SHAPE, **CLIP.MODEL})
    options = CLIPOptions(**{**TEXT, "dimension": 8, "bias": -2.0, "loss": "sigmoid"})
    theirs = CLIP(config, options, TOKENIZER).double()
    state = {name: w for name, w in ours.state_dict().items() if not name.startswith("pool.")}
    state |= {"image.cls": state["image.registers"], "image.registers": state["image.cls"]}
    state["pool.weight"] = (ours.pool.out.weight @ ours.pool.value.weight).detach()
    theirs.load_state_dict(state)
    losses = [loss_of(model, batch_of(BATCH)) for model in (ours, theirs)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(ours.image.registers.grad, theirs.image.cls.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.text.out.weight.grad, theirs.text.out.weight.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.image.embed.weight.grad, theirs.image.embed.weight.grad, atol=1e-6, rtol=0)


def test_a_caption_changes_its_own_column_of_similarities() -> None:
    model, other = disturbed(llip()), list(CAPTIONS)
    other[3] = "a dog at sea"
    pictures = model.images(torch.randn(5, 3, 16, 16).double())
    rows = [model.scores(pictures, model.texts(model.tokenizer.numbers(texts))) for texts in (CAPTIONS, other)]
    differs = (rows[0] - rows[1]).abs() > 1e-9
    assert differs[:, 3].all()
    assert not differs[:, [0, 1, 2, 4]].any()
    assert (rows[0].abs() <= 1).all()


def test_a_large_temperature_is_the_uniform_mixture() -> None:
    hot, even = disturbed(llip(temperature=1e9)), llip(mixing="uniform").double()
    idle = ("pool.query.weight", "pool.key.weight")
    even.load_state_dict({name: weight for name, weight in hot.state_dict().items() if name not in idle})
    losses = [loss_of(model, batch_of(BATCH)) for model in (hot, even)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [16, 24, 32])
@pytest.mark.parametrize("class_token", [True, False])
def test_a_picture_has_its_tokens_whatever_its_size(side: int, class_token: bool) -> None:
    model = llip(registers=3, class_token=class_token)
    assert model.images(torch.randn(2, 3, side, side)).shape == (2, 3, 16)


@pytest.mark.parametrize("mixing", ["text", "uniform"])
def test_every_weight_gets_a_gradient(mixing: str) -> None:
    model = llip(mixing=mixing)
    output = model(batch_of([*([text] for text in CAPTIONS), []]), NOW)
    assert float(output["skipped"]) == 1
    output["loss"].backward()
    idle = [name for name, p in model.named_parameters() if p.numel() and (p.grad is None or not p.grad.abs().sum())]
    assert idle == []
    assert output["features"].shape == (6, 16)
    assert not output["features"].requires_grad


def test_a_batch_without_any_caption_moves_nothing() -> None:
    check_silence(llip())


def test_half_precision_is_compared_in_float32() -> None:
    check_half_precision(llip(chunk=2), batch_of(BATCH))


def test_sizes_that_do_not_fit_are_sentences() -> None:
    with pytest.raises(UserError, match=r"model.registers: 0 is not right: Llip mixes the registers"):
        llip(registers=0)
    with pytest.raises(UserError, match=r"options.dimension: 8 must be a multiple of options.heads"):
        llip(heads=3)


# -- runs --------------------------------------------------------------------------------------------------------------

TREE = {"method": "llip", "model": {**VIT, "registers": 3}, "options": OPTIONS["llip"]}


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    check_same(*whole_and_cut({**TREE, "model": {**TREE["model"], "drop_path": 0.2}}, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    """Every picture is mixed for the captions of both processes, some of which are equal."""
    options = {**OPTIONS["llip"], "chunk": 3, "bias": -2.0}
    check_near(*one_and_two({**TREE, "options": options, "optimiser": SGD}, tmp_path, strategy))


def test_recipes_have_the_published_sizes() -> None:
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "llip_vitb16.yaml"), ["--data", "RUN", "--out", "TRAIN"])
    config, options = recipe.config(), LlipOptions.model_validate(recipe.options)
    assert (config.width, config.depth, config.patch_size, config.registers, config.class_token) == (
        *(768, 12, 16, 64),
        True,
    )
    assert recipe.batch * (recipe.steps or 0) == 12_800_000_000
    assert (options.text_width, options.text_depth, options.dimension, options.bias) == (512, 12, 512, -10)
    assert options.loss == "sigmoid"


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def training(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "llip"
    model = {"width": 16, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4, "registers": 3}
    tiny_training("llip", run, out, model=model, optimiser={"lr": 1e-2})
    return out


def test_a_training_comes_back_whole(training: Path) -> None:
    model = load_training(str(training))
    assert isinstance(model, Llip)
    assert model.options.heads == 2
    vision = load_model(str(training))
    assert all(torch.equal(w, model.image.state_dict()[name]) for name, w in vision.state_dict().items())
    assert model.images(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16)


def test_granary_evaluate_takes_a_training(training: Path, run: str, tmp_path: Path) -> None:
    check_evaluated(training, run, tmp_path)
    given = {"model": str(training), "data": run, "out": str(tmp_path / "scores.json"), "device": "cpu"}
    texts = write_pairs(tmp_path / "pairs", scene_rows(9))
    evaluate(EvaluateRecipe(protocols=["sdci", "binary-choice"], **{**given, "data": texts}), lambda _: None)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["binary-choice"]["questions"] == 18
    assert scores["sdci"]["All-SCM.entries"] == 9


def test_retrieval_mixes_every_picture_for_every_caption(
    training: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is that of all pairs one by one, in chunks of any size: nothing is proposed by an index."""
    found = measure(retrieval, str(training), run, device="cpu")
    monkeypatch.setattr(pairs, "PAIRS", 30)
    assert measure(retrieval, str(training), run, device="cpu") == found
    model, scorer = load_training(str(training)), load_image_text_model(str(training), "cpu")
    assert isinstance(model, Llip)
    torch.manual_seed(0)
    pictures, texts = torch.randn(7, 3, 16), torch.randn(9, 16)
    with torch.no_grad():
        z = torch.stack([torch.stack([model.pool(p[None], t[None])[0, 0] for t in texts]) for p in pictures])
        expected = F.cosine_similarity(z, model.text.out(texts)[None], dim=2)
    torch.testing.assert_close(scorer.scores(pictures, texts), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(scorer.scores(pictures, texts).argmax(dim=1), expected.argmax(dim=1))


def test_texts_of_a_pictures_own_score_as_among_all_and_equal_ones_tie(training: Path) -> None:
    scorer = load_pair_scorer(str(training), "cpu")
    torch.manual_seed(0)
    pictures, texts = torch.randn(6, 3, 16), torch.randn(6, 16)
    own = torch.stack([texts, texts.roll(1, 0), texts], dim=1)  # (6, 3, 16)
    logits = scorer.logits(pictures, texts)
    found = scorer.own_logits(pictures, own)
    expected = torch.stack([logits.diag(), logits.gather(1, (torch.arange(6) - 1)[:, None] % 6)[:, 0]], dim=1)
    torch.testing.assert_close(found[:, :2], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, 0], found[:, 2])


def test_sentences_are_averaged_as_vectors_of_a_text() -> None:
    model = llip()
    texts = torch.randn(4, 3, 16)
    torch.testing.assert_close(model.ensemble(texts[:, :1]), texts[:, 0])
    mean, longer = model.ensemble(texts), model.ensemble(texts * torch.tensor([1.0, 2.0, 3.0])[:, None])
    torch.testing.assert_close(F.normalize(mean, dim=1), F.normalize(longer, dim=1))  # by direction
    torch.testing.assert_close(mean.norm(dim=1), texts.norm(dim=2).mean(dim=1))


def test_no_other_library_has_such_a_model(training: Path, tmp_path: Path) -> None:
    for format in ("transformers", "open_clip"):
        with pytest.raises(UserError, match="export: llip mixes the tokens of a picture for every text"):
            export(str(training), str(tmp_path / format), format)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_loss_of_the_cpu() -> None:
    model, batch = llip(chunk=2), batch_of(BATCH)
    here = model(batch, NOW)["loss"].detach()
    there = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in batch.items()}
    torch.testing.assert_close(model.cuda()(there, NOW)["loss"].detach().cpu(), here, atol=1e-4, rtol=1e-4)
