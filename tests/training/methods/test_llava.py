"""LLaVA and Frozen: their loss against loops and against transformers, what learns, their runs, what they answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import caption_batches
import pytest
import torch
from caption_trainings import check_evaluated
from datasets import List, Value
from masked_trainings import compare_gradients, disturbed
from places import CONFIGS
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_language import TEXTS, language_config, tiny_language
from tiny_shards import shapes, write_shards
from tiny_trainings import OPTIONS, tiny_recipe, tiny_run, tiny_training
from torch import Tensor
from torch.nn import functional as F

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.conversations import Exchange, draw_conversations
from granary.training.data.tokenizer import train_tokenizer
from granary.training.evaluation.generators import TrainedGenerator, load_generator
from granary.training.method import Moment
from granary.training.methods.llava import Llava, LlavaOptions, Parts, read_stage
from granary.training.models import weights
from granary.training.models.answers import framed, turns
from granary.training.models.build import build
from granary.training.models.language import PICTURE, LanguageModel, LanguageTokenizer, load_language
from granary.training.models.training import load_training
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe

NOW = Moment(0, 10, 0)
SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 12, "depth": 2, "heads": 2}
TINY = "tiny?width=16&depth=1&heads=2"
WORDS = train_tokenizer(TEXTS, 300)


def llava(of: LanguageModel | None = None, **options: Any) -> Llava:
    torch.manual_seed(0)
    given = LlavaOptions(**{"language": TINY, "context": 40, "columns": ("captions", "questions"), **options})
    config = ViTConfig(**SHAPE)
    return Llava(config, given, Parts(build(config), of or load_language(given.language, WORDS)))


def batch_of(captions: list[list[str]], questions: list[list[tuple[str, str]]]) -> dict[str, Any]:
    asked = [[{"question": q, "answer": a} for q, a in own] for own in questions]
    return {**caption_batches.batch_of(captions), "questions": asked}


BATCH = batch_of(
    [["a red circle"], [], [], ["two shapes"], ["a blue square"]],
    [[], [("what is it?", "a red circle")], [], [("is there a circle?", "yes")], []],
)

# -- the loss ----------------------------------------------------------------------------------------------------------


def slow_loss(model: Llava, batch: dict[str, Any]) -> Tensor:
    """Answer by answer, token by token: the language model is given no more than the vectors so far."""
    pixels = batch["image"][:, 0].permute(0, 3, 1, 2).double() / 255
    pixels = (pixels - torch.tensor(model.config.mean).view(3, 1, 1)) / torch.tensor(model.config.std).view(3, 1, 1)
    words, network = model.language.tokenizer, model.language.network
    table: Tensor = network.get_input_embeddings().weight  # type: ignore[assignment]
    terms = []
    for n, name in enumerate(batch["id"]):
        only = {"id": [name], **{key: [batch[key][n]] for key in ("captions", "questions")}}
        (chat,) = model_draws(model, only)
        if chat is None:
            continue
        vectors = [*table[words.begin], *model.memory(pixels[n : n + 1])[0]]
        for question, answer in chat:
            asked = model.options.describe if question is None else question
            vectors += list(table[words.plain(asked)])
            for token in [*words.plain(answer), words.end]:
                logits = network(inputs_embeds=torch.stack(vectors)[None]).logits[0, -1]
                terms.append(logits.exp().sum().log() - logits[token])
                vectors.append(table[token])
    return sum(terms) / len(terms)  # type: ignore[return-value]


def model_draws(model: Llava, batch: dict[str, Any]) -> list[Any]:
    return draw_conversations(batch, model.options.columns, NOW)


@pytest.mark.parametrize("options", [{}, {"train_encoder": True, "projector": "prefix"}, {"projector": "linear"}])
def test_loss_and_gradients_equal_loops_over_answers(options: dict[str, Any]) -> None:
    fast, slow = (disturbed(llava(**options)) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    memory = fast.memory
    fast.memory = lambda pixels: memory(pixels.double())
    loss, expected = fast(BATCH, NOW)["loss"], slow_loss(slow, BATCH)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)  # pixels are scaled in float32
    loss.backward()
    expected.backward()
    compare_gradients(fast, slow, atol=1e-6)
    assert fast.skipped == 1


def test_it_computes_what_llava_of_transformers_does() -> None:
    """With equal weights: the loss of an answer, and its gradients to the projector and the language model."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=12, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    torch.manual_seed(0)
    tokenizer = LanguageTokenizer.of_captions(WORDS)
    text = language_config(300)
    theirs = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=299, image_seq_length=16)
    ).eval()
    theirs.requires_grad_(True)
    encoder = weights.from_transformers(theirs.model.vision_tower)
    language = LanguageModel(load_like(theirs, text), tokenizer)
    options = LlavaOptions(language="given", layer=2, template="USER: <image> {question} ASSISTANT:", context=40)
    ours = Llava(encoder.config, options, Parts(encoder, language))
    projector = theirs.model.multi_modal_projector
    ours.projector.first.load_state_dict(projector.linear_1.state_dict())
    assert ours.projector.second is not None
    ours.projector.second.load_state_dict(projector.linear_2.state_dict())
    pixels = torch.randn(2, 3, 16, 16)
    chats = [[Exchange("what is it?", "a red circle")], [Exchange(None, "two shapes")]]
    tokens, targets = framed(ours, chats, ours.longest)
    logits = ours.next_logits(ours.memory(pixels), tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten())
    rows = []
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        place = row.index(PICTURE)
        rows.append(
            ([*row[:place], *[299] * 16, *row[place + 1 :]], [*target[:place], *[-100] * 16, *target[place + 1 :]])
        )
    ids, labels = (torch.tensor(some) for some in zip(*rows, strict=True))
    expected = theirs(input_ids=ids, pixel_values=pixels, labels=labels).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.projector.first.weight.grad, projector.linear_1.weight.grad)
    torch.testing.assert_close(ours.projector.second.bias.grad, projector.linear_2.bias.grad)
    down = "model.layers.0.mlp.down_proj.weight"
    gradient = dict(language.network.named_parameters())[down].grad
    torch.testing.assert_close(gradient, theirs.model.language_model.layers[0].mlp.down_proj.weight.grad)


def load_like(theirs: Any, text: Any) -> Any:
    """Return the language model of a LLaVA of transformers, alone."""
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM(text)
    network.model.load_state_dict(theirs.model.language_model.state_dict())
    network.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return network.eval()


def test_no_target_is_a_question_and_later_turns_have_no_picture() -> None:
    model = llava()
    chat = [Exchange("what is it?", "a red circle"), Exchange("is there a circle?", "yes")]
    tokens, answers = turns(model, chat, model.longest)
    plain = model.language.tokenizer.plain
    assert tokens.count(PICTURE) == 1
    said = [token for token, answer in zip(tokens, answers, strict=True) if answer]
    assert said == [*plain("a red circle"), model.end, *plain("yes"), model.end]
    asked = [token for token, answer in zip(tokens, answers, strict=True) if not answer]
    start = model.language.tokenizer.begin
    assert asked == [*start, PICTURE, *plain("what is it?"), *plain("is there a circle?")]
    long, counted = turns(model, [Exchange("what is it?", "a red circle " * 30)], model.longest)
    assert len(long) == len(counted) == 40


def test_the_stage_before_the_last_is_read_without_the_final_norm() -> None:
    model = llava()
    pixels, encoder = torch.randn(2, 3, 16, 16), model.encoder
    x = encoder.blocks[0](encoder.tokens(pixels))  # type: ignore[operator, index]
    torch.testing.assert_close(read_stage(encoder, pixels, 2).patches, x[:, 1:])
    torch.testing.assert_close(read_stage(encoder, pixels, 1).patches, encoder(pixels).patches)


# -- what learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["whole", "lora", "frozen"])
@pytest.mark.parametrize("train_encoder", [True, False])
def test_what_learns_gets_gradients_and_nothing_else_does(tuning: str, train_encoder: bool, tmp_path: Path) -> None:
    given = {"tuning": tuning, "train_encoder": train_encoder, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}
    model = llava(of=load_language(tiny_language(tmp_path)), language=str(tmp_path), **given)
    model.train()
    model(BATCH, NOW)["loss"].backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith("encoder.") for name in learnt) == train_encoder
    of_language = {name for name in learnt if name.startswith("language.")}
    assert all("lora_" in name for name in of_language) if tuning == "lora" else True
    assert bool(of_language) == (tuning != "frozen")
    assert {name for name in learnt if name.startswith("projector.")}
    assert model.encoder.training == train_encoder
    assert model.language.training == (tuning != "frozen")


def test_adapters_begin_as_nothing(tmp_path: Path) -> None:
    folder = tiny_language(tmp_path)
    plain = llava(load_language(folder), language=folder)
    adapted = llava(load_language(folder), language=folder, tuning="lora")
    adapted.projector.load_state_dict(plain.projector.state_dict())
    adapted.encoder.load_state_dict(plain.encoder.state_dict())
    losses = [float(model.eval()(BATCH, NOW)["loss"].detach()) for model in (plain, adapted)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_it_answers_what_it_was_asked_in_training() -> None:
    """Five pictures by heart, two questions about each: the answer hangs on both."""
    answers = [("red", "one"), ("blue", "two"), ("green", "one"), ("red", "two"), ("blue", "one")]
    questions = [[("what colour?", colour), ("how many?", count)] for colour, count in answers]
    batch = batch_of([[] for _ in answers], questions)
    model = llava(columns=("questions",), train_encoder=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        optimiser.zero_grad()
        model(batch, NOW._replace(step=step))["loss"].backward()
        optimiser.step()
    generator = TrainedGenerator(model, torch.device("cpu"))
    pictures = batch["image"][:, 0].permute(0, 3, 1, 2)
    assert generator.answer(pictures, ["what colour?"] * 5) == [colour for colour, _ in answers]
    assert generator.answer(pictures, ["how many?"] * 5) == [count for _, count in answers]
    assert generator.answer(pictures.flip(0), ["how many?"] * 5) == [count for _, count in answers[::-1]]
    scores = generator.loglikelihood(pictures, ["one", "two"], "how many?")
    assert scores.argmax(dim=1).tolist() == [0, 1, 0, 1, 0]


def test_half_precision_is_summed_in_float32() -> None:
    model = llava()
    whole = float(model(BATCH, NOW)["loss"].detach())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(BATCH, NOW)["loss"]
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"template": "{question}"}, "template is '{question}'; it must have <image> once"),
        ({"template": "{question} <image>"}, "it must have <image> once, and {question} after it"),
        ({"tuning": "frozen"}, "tuning is frozen; a tiny language model knows nothing yet: give whole"),
        ({"train_encoder": True, "layer": 2}, "layer must be 1 where the encoder learns"),
    ],
)
def test_options_that_do_not_fit_are_sentences(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"options") as caught:
        tiny_recipe("llava", "RUN", "TRAIN", wrong)
    assert sentence in str(caught.value)


# -- runs --------------------------------------------------------------------------------------------------------------

TREE = {"method": "llava", "model": VIT, "options": OPTIONS["llava"]}


@pytest.mark.parametrize("tuning", ["whole", "lora", "frozen"])
def test_a_training_goes_on_as_if_it_had_not_stopped(tuning: str, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(OPTIONS["llava"])
    if tuning != "whole":
        options |= {"language": tiny_language(tmp_path / "language"), "tuning": tuning, "lora": {"rank": 2, "alpha": 4}}
    check_same(*whole_and_cut({**TREE, "options": options}, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    check_near(*one_and_two({**TREE, "optimiser": SGD}, tmp_path, strategy))


def test_recipes_have_the_published_parts() -> None:
    given = ["--data", "RUN", "--out", "TRAIN"]
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "llava_vitl14.yaml"), given)
    options = LlavaOptions.model_validate(recipe.options)
    assert (options.encoder, options.layer, options.projector) == ("hf:openai/clip-vit-large-patch14-336", 2, "mlp")
    assert (options.train_encoder, options.tuning, recipe.batch) == (False, "whole", 128)
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "llava_frozen_resnet50.yaml"), given)
    options = LlavaOptions.model_validate(recipe.options)
    assert (options.projector, options.prefix, options.tuning, options.train_encoder) == ("prefix", 2, "frozen", True)


# -- evaluation --------------------------------------------------------------------------------------------------------

ASKED = List({name: Value("string") for name in ("question", "answer")})


def test_a_training_on_other_models_comes_back_without_them(tmp_path: Path) -> None:
    """The encoder of another training and a language model from a folder, both gone afterwards."""
    rows = [{**row, "questions": [{"question": "what is it?", "answer": row["label"]}]} for row in shapes(24, 16)]
    run = str(write_shards(tmp_path / "data", rows, group=8, extra={"questions": ASKED}))
    encoder = tiny_training("simclr", run, tmp_path / "encoder")
    language = tiny_language(tmp_path / "language")
    options = {"encoder": encoder, "language": language, "tuning": "lora", "columns": ["captions", "questions"]}
    options |= {"lora": {"rank": 2, "alpha": 4}, "projector": "linear"}
    model = {"kind": "vit", "width": 32, "depth": 1, "heads": 2, "img_size": 8, "patch_size": 4}
    out = tmp_path / "out"
    tiny_training("llava", run, out, options, model=model)
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    said = load_generator(str(out), "cpu").loglikelihood(pictures, ["a circle"], "what is it?")
    for folder in ("encoder", "language"):
        shutil.rmtree(tmp_path / folder)
    trained = load_training(str(out))
    assert isinstance(trained, Llava)
    assert (trained.config.width, trained.config.img_size) == (16, 16)
    generator = load_generator(str(out), "cpu")
    assert torch.equal(generator.loglikelihood(pictures, ["a circle"], "what is it?"), said)
    assert len(generator.answer(pictures, ["what is it?"] * 2, 3)) == 2


def test_granary_evaluate_takes_a_training(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    tiny_training("llava", run, tmp_path / "out")
    check_evaluated(tmp_path / "out", run, tmp_path)


def test_a_second_stage_begins_with_the_parts_of_the_first(tmp_path: Path) -> None:
    """Projector alone, then adapters too; what has adapters already is not begun with."""
    run, language = tiny_run(tmp_path / "run"), tiny_language(tmp_path / "language")
    first = {"language": language, "tuning": "frozen"}
    tiny_training("llava", run, tmp_path / "first", first, optimiser={"lr": 1e-2})
    shutil.rmtree(language)
    options = {"begin": str(tmp_path / "first"), "tuning": "lora", "lora": {"rank": 2, "alpha": 4}}
    tiny_training("llava", run, tmp_path / "second", options, optimiser={"lr": 1e-9})
    one, two = (load_training(str(tmp_path / name)) for name in ("first", "second"))
    assert isinstance(two, Llava)
    for part in ("encoder", "projector"):
        weights = one.get_submodule(part).state_dict()
        for name, weight in two.get_submodule(part).state_dict().items():
            torch.testing.assert_close(weight, weights[name], msg=f"{part}.{name}")
    for begin, sentence in ((str(tmp_path / "second"), "has adapters"), (run, "neither a training directory")):
        with pytest.raises(UserError, match=sentence):
            tiny_training("llava", run, tmp_path / "third", {**options, "begin": begin})
    with pytest.raises(UserError, match=r"options.projector: that of .* is mlp"):
        tiny_training("llava", run, tmp_path / "third", {"begin": str(tmp_path / "first"), "projector": "linear"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_loss_of_the_cpu() -> None:
    model = llava()
    here = model(BATCH, NOW)["loss"].detach()
    there = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in BATCH.items()}
    torch.testing.assert_close(model.cuda()(there, NOW)["loss"].detach().cpu(), here, atol=1e-4, rtol=1e-4)
