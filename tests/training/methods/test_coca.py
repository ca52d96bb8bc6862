"""CoCa: both losses against loops, what sees what, its runs, what it says of pictures that it was trained on."""

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
from masked_trainings import compare_gradients, disturbed
from places import CONFIGS
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_clip import scene_rows, write_pairs
from tiny_trainings import OPTIONS, TEXT, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.evaluation.generators import GeneratedPairs, TrainedGenerator, load_generator
from granary.training.evaluation.pairs import TrainedPair, load_image_text_model, load_pair_scorer
from granary.training.evaluation.protocol import Scorer
from granary.training.methods.coca import CoCa, CoCaOptions
from granary.training.models.export import export
from granary.training.models.training import load_training
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe

BATCH = [["a red dog"], ["two cats on a mat"], [], ["a red dog"], ["a boat"], ["the old man at sea"]]


def coca(seed: int = 0, **options: Any) -> CoCa:
    torch.manual_seed(seed)
    given = {
        **TEXT,
        "context": 32,
        "dimension": 8,
        "decoder_depth": 2,
        "queries": 3,
        "crop_scale": (1.0, 1.0),
        **options,
    }
    return CoCa(ViTConfig(**{**SHAPE, **CoCa.MODEL}), CoCaOptions(**given), TOKENIZER)


# -- the losses --------------------------------------------------------------------------------------------------------


def slow_losses(model: CoCa, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Pair by pair, and prefix by prefix: the text model sees nothing but the tokens so far."""
    pixels = batch["image"][:, 0].permute(0, 3, 1, 2).double() / 255
    pixels = (pixels - torch.tensor(model.config.mean).view(3, 1, 1)) / torch.tensor(model.config.std).view(3, 1, 1)
    there = [i for i, own in enumerate(batch["captions"]) if own]
    texts = {i: [model.tokenizer.start, *model.words(batch["captions"][i][0])] for i in there}
    u, v, terms = {}, {}, []
    for i in there:
        patches = model.image(pixels[i : i + 1]).patches
        u[i] = F.normalize(model.pool(patches)[0, 0], dim=0)
        memory = model.gather(patches)
        for length in range(1, len(texts[i])):
            states = model.text.states(torch.tensor([texts[i][:length]]))
            logits = model.decoder(states, memory, model.text.embed.weight)[0, -1]
            terms.append(logits.exp().sum().log() - logits[texts[i][length]])
        whole = torch.tensor([texts[i]])
        v[i] = F.normalize(model.text.out(model.text.norm(model.text.states(whole)[0, -1])), dim=0)
    scale, contrastive = model.scale.exp()[0], torch.zeros((), dtype=torch.float64)
    for i in there:
        rivals = [j for j in there if j == i or texts[j] != texts[i]]
        for row in ([u[i] @ v[j] for j in rivals], [u[j] @ v[i] for j in rivals]):
            logits = scale * torch.stack(row)
            contrastive = contrastive - logits.log_softmax(dim=0)[rivals.index(i)] / (2 * len(there))
    return contrastive, sum(terms) / len(terms)  # type: ignore[return-value]


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.5, 0.0), (0.0, 1.0)])
def test_loss_and_gradients_equal_loops_over_pairs_and_prefixes(weights: tuple[float, float]) -> None:
    options = dict(zip(("contrastive_weight", "caption_weight"), weights, strict=True))
    fast, slow = (disturbed(coca(**options)) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    batch = batch_of(BATCH)
    inputs = fast.inputs
    fast.inputs = lambda *given: (inputs(*given)[0].double(), *inputs(*given)[1:])
    output = fast(batch, NOW)
    contrastive, caption = slow_losses(slow, batch)
    torch.testing.assert_close(output["contrastive"], contrastive.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output["caption"], caption.detach(), atol=1e-6, rtol=1e-6)
    expected = weights[0] * contrastive + weights[1] * caption
    torch.testing.assert_close(output["loss"], expected, atol=1e-6, rtol=1e-6)
    output["loss"].backward()
    expected.backward()
    compare_gradients(fast, slow, atol=1e-6)
    assert float(output["skipped"]) == 1


def test_the_papers_weights_are_the_defaults() -> None:
    options = CoCaOptions()
    assert (options.contrastive_weight, options.caption_weight) == (1, 2)


def test_a_token_hangs_on_the_picture_and_on_what_came_before_it() -> None:
    model = disturbed(coca())
    memory = model.memory(torch.randn(2, 3, 16, 16).double())
    tokens = torch.tensor([model.prompt("a red dog runs to the boat")] * 2)
    logits, other = model.next_logits(memory, tokens), tokens.clone()
    other[:, 4:] = model.end
    assert torch.allclose(model.next_logits(memory, other)[:, :4], logits[:, :4])
    assert not torch.allclose(model.next_logits(memory, other)[:, 4:], logits[:, 4:])
    assert not torch.allclose(logits[0], logits[1])
    torch.testing.assert_close(model.next_logits(memory.flip(0), tokens), logits.flip(0))


def test_every_weight_gets_a_gradient_and_pictures_without_captions_none() -> None:
    model = coca()
    output = model(batch_of([*([text] for text in CAPTIONS), []]), NOW)
    output["loss"].backward()
    idle = [name for name, p in model.named_parameters() if p.numel() and (p.grad is None or not p.grad.abs().sum())]
    assert idle == []
    check_silence(coca())


def test_half_precision_is_compared_in_float32() -> None:
    check_half_precision(coca(), batch_of(BATCH))


def test_sizes_that_do_not_fit_are_sentences() -> None:
    with pytest.raises(UserError, match=r"options.dimension: 9 must be a multiple of options.text_heads"):
        coca(dimension=9)


def test_an_untrained_model_knows_nothing_of_the_next_token() -> None:
    """Products of normalised states with a table of deviation 0.02: nearly ln V."""
    model = coca(text_width=64, text_heads=4)
    assert float(model(batch_of(BATCH), NOW)["caption"]) == pytest.approx(math.log(model.vocabulary), rel=0.02)


# -- what it learns ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_says_the_captions_of_pictures_that_it_was_trained_on() -> None:
    """Five pictures by heart: greedily word by word, not for the pictures of others, and the same every time."""
    model, batch = coca(), batch_of([[caption] for caption in CAPTIONS])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        optimiser.zero_grad()
        model(batch, NOW._replace(step=step))["loss"].backward()
        optimiser.step()
        model.after_step(NOW)
    generator = TrainedGenerator(model, torch.device("cpu"))
    pictures = batch["image"][:, 0].permute(0, 3, 1, 2)
    assert generator.describe(pictures) == CAPTIONS
    assert generator.describe(pictures) == generator.describe(pictures.flip(0))[::-1]
    assert generator.answer(pictures[:1], ["a red"]) == ["dog runs"]
    scores = generator.loglikelihood(pictures, CAPTIONS)
    assert scores.argmax(dim=1).tolist() == list(range(5))
    with torch.no_grad():
        _, tokens, keys = model.inputs(batch, NOW)
        vectors = F.normalize(model.texts(tokens), dim=1)
        pixels = model.inputs(batch, NOW)[0]
        assert (model.encode_pixels(pixels) @ vectors.T).argmax(dim=1).tolist() == list(range(5))
    assert len(keys) == 5


# -- runs --------------------------------------------------------------------------------------------------------------

TREE = {"method": "coca", "model": VIT, "options": OPTIONS["coca"]}


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    check_same(*whole_and_cut({**TREE, "model": {**VIT, "drop_path": 0.2}}, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    check_near(*one_and_two({**TREE, "optimiser": SGD}, tmp_path, strategy))


def test_the_recipe_has_the_published_sizes() -> None:
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "coca_vitb18.yaml"), ["--data", "RUN", "--out", "TRAIN"])
    config, options = recipe.config(), CoCaOptions.model_validate(recipe.options)
    assert (config.width, config.depth, config.heads, config.patch_size, config.grid) == (768, 12, 12, 18, 16)
    assert (options.text_width, options.text_depth, options.decoder_depth, options.text_heads) == (768, 12, 12, 12)
    assert recipe.batch * (recipe.steps or 0) == 65536 * 500_000
    assert options.queries == 256


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def training(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "coca"
    tiny_training("coca", run, out, optimiser={"lr": 1e-2})
    return out


def test_a_training_comes_back_whole_and_says_texts(training: Path) -> None:
    model = load_training(str(training))
    assert isinstance(model, CoCa)
    generator = load_generator(str(training), "cpu")
    picture = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    (text,) = generator.describe(picture, 4)
    assert isinstance(text, str)
    assert generator.loglikelihood(picture, ["a circle"]).shape == (1, 1)


def test_granary_evaluate_takes_a_training(training: Path, run: str, tmp_path: Path) -> None:
    check_evaluated(training, run, tmp_path)
    given = {"model": str(training), "data": run, "out": str(tmp_path / "scores.json"), "device": "cpu"}
    texts, options = write_pairs(tmp_path / "pairs", scene_rows(9)), {"scorer": "likelihood"}
    recipe = EvaluateRecipe(protocols=["sdci", "binary-choice"], **{**given, "data": texts}, options=options)
    evaluate(recipe, lambda _: None)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["binary-choice"]["questions"] == 18
    assert scores["settings"]["used"]["sdci"]["scorer"] == "likelihood"


@pytest.mark.parametrize("scorer", ["likelihood", "mean_likelihood"])
def test_pairs_are_scored_by_what_is_said(training: Path, scorer: Scorer) -> None:
    texts, picture = ["a circle", "a red square"], torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    expected = load_generator(str(training), "cpu").loglikelihood(picture, texts, mean=scorer == "mean_likelihood")
    model = load_pair_scorer(str(training), "cpu", scorer=scorer)
    assert torch.equal(model.logits(model.images(picture), model.texts(texts)), expected)
    assert isinstance(load_image_text_model(str(training), "cpu", scorer=scorer), GeneratedPairs)
    assert isinstance(load_pair_scorer(str(training), "cpu"), TrainedPair)
    assert isinstance(load_pair_scorer(str(training), "cpu", scorer="vectors"), TrainedPair)


def test_no_other_library_has_such_a_model(training: Path, tmp_path: Path) -> None:
    for format in ("transformers", "open_clip"):
        with pytest.raises(UserError, match="export: coca gathers patches by learnt queries"):
            export(str(training), str(tmp_path / format), format)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_loss_of_the_cpu_and_the_same_words() -> None:
    model, batch = coca(), batch_of(BATCH)
    here, pictures = model(batch, NOW)["loss"].detach(), batch["image"][:, 0].permute(0, 3, 1, 2)
    said = TrainedGenerator(model, torch.device("cpu")).loglikelihood(pictures, CAPTIONS)
    there = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in batch.items()}
    torch.testing.assert_close(model.cuda()(there, NOW)["loss"].detach().cpu(), here, atol=1e-4, rtol=1e-4)
    found = TrainedGenerator(model, torch.device("cuda")).loglikelihood(pictures, CAPTIONS)
    torch.testing.assert_close(found, said, atol=1e-3, rtol=1e-4)
