"""VistaLLM: its loss against loops, what the instruction and the pictures decide, its runs, what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_scenes import scene, write_scenes
from masked_trainings import compare_gradients, disturbed
from places import CONFIGS
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_language import TEXTS, tiny_language
from tiny_trainings import OPTIONS, tiny_recipe, tiny_run, tiny_training
from torch import Tensor

import granary
from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.bins import parsed, parsed_group
from granary.training.data.instructions import Instruction, draw_instructions
from granary.training.data.pasted import squared
from granary.training.data.tokenizer import train_tokenizer
from granary.training.evaluation.generators import TrainedGenerator
from granary.training.method import Moment
from granary.training.methods.vistallm import Parts, VistaLLM, VistaOptions
from granary.training.models.build import build
from granary.training.models.language import PICTURE, load_language
from granary.training.models.training import load_training
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe

NOW = Moment(0, 10, 0)
SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 12, "depth": 2, "heads": 2}
SMALL: dict[str, Any] = {
    "language": "tiny?width=16&depth=1&heads=2", "context": 60, "bins": 9, "points": 2, "items": 2, "pictures": 3,
    "pictures_by": {"queries": 2, "width": 16, "depth": 1, "heads": 2}, "train_encoder": True,
}  # fmt: skip
WORDS = train_tokenizer([*TEXTS, "where is it? which pictures show it?"], 300)


def vista(**changes: Any) -> VistaLLM:
    torch.manual_seed(0)
    options = VistaOptions(**{**SMALL, **changes})
    config = ViTConfig(**SHAPE)
    language = load_language(options.language, WORDS).extended(options.tokens)
    return VistaLLM(config, options, Parts(build(config), language))


def asked(form: str, question: str, answer: str = "", targets: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"task": form, "form": form, "question": question, "answer": answer, "targets": list(targets)}


def target(picture: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A thing as large as its box, in a picture of 16 pixels."""
    from granary.curation.dense import rle

    region = np.zeros((16, 16), bool)
    region[box[1] : box[3], box[0] : box[2]] = True
    return {"picture": picture, "box": list(box), "size": [16, 16], "counts": rle.compress(rle.run_lengths(region))}


def batch_of(cells: list[list[dict[str, Any]]], counts: list[int], seed: int = 0) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(cells), 3, 16, 16, 3), dtype=np.uint8)
    return {
        "image": torch.from_numpy(pixels), "image_count": torch.tensor(counts), "instructions": cells,
        "id": [str(n) for n in range(len(cells))],
    }  # fmt: skip


BATCH = batch_of(
    [
        [asked("text", "what is it?", "a red circle")],
        [asked("box", "where is it?", targets=[target(0, (1, 2, 9, 14))])],
        [asked("box", "where is it?")],
        [],
        [asked("mask", "where is it?", targets=[target(0, (1, 2, 9, 14)), target(0, (10, 2, 14, 5))])],
        [asked("group", "which pictures show it?", targets=[target(0, (1, 2, 9, 14)), target(2, (3, 3, 8, 8))])],
    ],
    [1, 1, 2, 1, 1, 3],
)

# -- the loss ----------------------------------------------------------------------------------------------------------


def slow_loss(model: VistaLLM, batch: dict[str, Any]) -> Tensor:
    """Row by row, token by token: the language model is given no more than the vectors so far."""
    words, network, terms = model.language.tokenizer, model.language.network, list[Tensor]()
    table: Tensor = network.get_input_embeddings().weight  # type: ignore[assignment]
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (model.config.mean, model.config.std))
    for row in range(len(batch["id"])):
        (one,) = draw_instructions({"id": [batch["id"][row]], "instructions": [batch["instructions"][row]]}, NOW)
        if one is None:
            continue
        question = words.plain(one.question)
        vectors = list(table[words.begin])
        for n in range(int(batch["image_count"][row])):
            pixels = (batch["image"][row, n].permute(2, 0, 1).double() / 255 - mean) / std
            patches = model.encoder(pixels[None]).patches
            ids = torch.tensor([question])
            visual = model.pictures_by(patches, ids, torch.ones_like(ids, dtype=torch.bool))[0]
            vectors += [table[model.numbers[n]], *visual]
        vectors += [*table[question], table[model.answer]]
        for token in [*words.plain(model.coding.answer(one)), words.end]:
            logits = network(inputs_embeds=torch.stack(vectors)[None]).logits[0, -1]
            terms.append(logits.exp().sum().log() - logits[token])
            vectors.append(table[token])
    return sum(terms) / len(terms)  # type: ignore[return-value]


@pytest.mark.parametrize("options", [{}, {"pictures_by": {"kind": "linear", "width": 16, "heads": 2}}])
def test_loss_and_gradients_equal_loops_over_rows(options: dict[str, Any]) -> None:
    fast, slow = (disturbed(vista(**options)) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    read = fast._read
    fast._read = lambda pixels: read(pixels.double())  # type: ignore[method-assign]
    loss, expected = fast(BATCH, NOW)["loss"], slow_loss(slow, BATCH)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)  # pixels are scaled in float32
    loss.backward()
    expected.backward()
    compare_gradients(fast, slow, atol=1e-6)
    assert fast.skipped == 1


def test_only_answers_are_targets_and_long_questions_leave_room_for_them() -> None:
    model = vista()
    drawn = draw_instructions(BATCH, NOW)
    tokens, targets = model.framed(drawn, BATCH["image_count"].tolist())
    for row, one in enumerate(drawn):
        said = [int(token) for token in targets[row] if token >= 0]
        assert said == ([] if one is None else model.words(model.coding.answer(one)))
        assert (tokens[row] == PICTURE).sum() == BATCH["image_count"][row]
    long = Instruction("text", "text", "what is it? " * 40, "a red circle", ())
    tokens, targets = model.framed([long], [1])
    assert [int(token) for token in targets[0] if token >= 0] == model.words("a red circle")
    cut = Instruction("text", "text", "what?", "a red circle " * 40, ())
    assert model.framed([cut], [2])[0].shape[1] <= 60 + 4


def test_pictures_that_are_not_there_change_nothing_and_others_do() -> None:
    model = vista().eval()
    loss = model(BATCH, NOW)["loss"]
    other = {**BATCH, "image": BATCH["image"].clone()}
    for row, count in enumerate(BATCH["image_count"].tolist()):
        other["image"][row, count:] = 7
    torch.testing.assert_close(model(other, NOW)["loss"], loss)
    other["image"][5, 2] = 7
    patches = [model.patches(batch["image"], batch["image_count"]) for batch in (BATCH, other)]
    changed = (patches[0] - patches[1]).abs().amax(dim=(1, 2)) > 0
    assert changed.tolist() == [False] * (int(BATCH["image_count"].sum()) - 1) + [True]


def test_pictures_and_their_numbers_are_permuted_together() -> None:
    """The vectors of pictures in another order are the same ones: only their numbers tell which is which."""
    model = vista().eval()
    rows = [model.asked("which?", 3)]
    patches = model.patches(BATCH["image"][5:], torch.tensor([3]))
    one, other = (model.woven(some, torch.tensor(rows)).vectors for some in (patches, patches[[2, 0, 1]]))
    start, step = 1 + 1, 1 + 2
    blocks = [one[0, start + n * step : start + n * step + 2] for n in (2, 0, 1)]
    for place, block in enumerate(blocks):
        torch.testing.assert_close(other[0, start + place * step : start + place * step + 2], block)


def test_half_precision_is_summed_in_float32() -> None:
    model = vista()
    whole = float(model(BATCH, NOW)["loss"].detach())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(BATCH, NOW)["loss"]
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(whole, rel=0.05)


def test_the_encoder_learns_only_where_it_is_asked_to() -> None:
    for learns in (True, False):
        model = vista(train_encoder=learns)
        model.train()
        model(BATCH, NOW)["loss"].backward()
        gradients = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert any(name.startswith("encoder.") for name in gradients) == learns
        assert model.encoder.training == learns
        assert {name.partition(".")[0] for name in gradients} >= {"language", "pictures_by"}


# -- what it says ------------------------------------------------------------------------------------------------------


def answers(model: VistaLLM, free: bool = False) -> list[str]:
    drawn = draw_instructions(BATCH, NOW)
    rows = [n for n, one in enumerate(drawn) if one]
    some = [one for one in drawn if one]
    counts = [int(BATCH["image_count"][n]) for n in rows]
    questions, forms = [one.question for one in some], [one.form for one in some]
    return model.answers(BATCH["image"][rows], counts, questions, forms, free)


@pytest.mark.parametrize("seed", range(4))
def test_no_weights_at_all_leave_the_form_that_is_asked_for(seed: int) -> None:
    """Whatever the weights say, answers by the grammar are read; any token at all is seldom an answer."""
    model = vista().eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.language.parameters():
            parameter.copy_(torch.randn_like(parameter))
    text, box, nothing, mask, group = answers(model)
    assert "<" not in text
    for said, form in ((box, "box"), (nothing, "box"), (mask, "mask")):
        assert parsed(said, form, 2, 9) is not None  # type: ignore[arg-type]
    shown = parsed_group(group, 2, 9)
    assert shown is not None
    assert set(shown) <= {0, 1, 2}
    assert any(parsed(said, "box", 2, 9) is None for said in answers(model, free=True)[1:3])


def test_answers_do_not_hang_on_what_is_asked_beside_them() -> None:
    model = vista().eval()
    together = answers(model)
    drawn = [(n, one) for n, one in enumerate(draw_instructions(BATCH, NOW)) if one]
    for place, (row, one) in enumerate(drawn):
        alone = model.answers(
            BATCH["image"][row : row + 1], [int(BATCH["image_count"][row])], [one.question], [one.form]
        )
        assert alone == [together[place]]


@pytest.mark.slow
def test_it_learns_boxes_masks_and_what_is_not_there_by_heart() -> None:
    """Scenes of 16 pixels, asked for by name: the answers are right for their pictures, and change with them."""
    batch = batch_of(
        [
            [asked("box", "where is it?", targets=[target(0, (2, 2, 10, 14))])],
            [asked("box", "where is it?", targets=[target(0, (6, 0, 14, 8))])],
            [asked("box", "where is it?")],
            [asked("mask", "what shape?", targets=[target(0, (4, 4, 12, 10))])],
            [asked("group", "which show it?", targets=[target(1, (2, 2, 10, 10))])],
            [asked("text", "how many?", "two")],
        ],
        [1, 1, 1, 1, 2, 1],
    )
    model = vista(bins=17, points=4, sampler="douglas_peucker")
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        optimiser.zero_grad()
        model(batch, NOW._replace(step=step))["loss"].backward()
        optimiser.step()
    model.eval()
    drawn = [one for one in draw_instructions(batch, NOW) if one]
    arguments = [1, 1, 1, 1, 2, 1], [one.question for one in drawn], [one.form for one in drawn]
    expected = [model.coding.answer(one) for one in drawn]
    for free in (False, True):
        assert [said.replace(" ", "") for said in model.answers(batch["image"], *arguments, free)] == expected
    swapped = batch["image"][[1, 0, 2, 3, 4, 5]]
    assert [s.replace(" ", "") for s in model.answers(swapped, *arguments)[:2]] == expected[1::-1]
    generator = TrainedGenerator(model, torch.device("cpu"))  # as any generator, about one picture
    assert generator.answer(batch["image"][5:, 0].permute(0, 3, 1, 2), ["how many?"]) == ["two"]
    scores = generator.loglikelihood(batch["image"][5:, 0].permute(0, 3, 1, 2), ["two", "a circle"], "how many?")
    assert scores[0, 0] > scores[0, 1]


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sampler": "best"}, "sampler is 'best'; the samplers are uniform"),
        ({"template": "what?"}, "it must have {question} in it"),
        ({"train_encoder": True, "layer": 2}, "layer must be 1 where the encoder learns"),
        ({"pictures_by": {"width": 10, "heads": 4}}, "pictures_by.heads is 4; it must divide the width"),
    ],
)
def test_options_of_vistallm_that_do_not_fit_are_sentences(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"options|sampler|template|layer|heads") as caught:
        tiny_recipe("vistallm", "RUN", "TRAIN", wrong)
    assert sentence in str(caught.value)


def test_recipes_of_vistallm_have_the_published_parts() -> None:
    given = ["--data", "RUN", "--out", "TRAIN"]
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "vistallm_vitl14.yaml"), given)
    options = VistaOptions.model_validate(recipe.options)
    assert (options.bins, options.sampler, options.layer, options.context) == (1001, "adaptive", 2, 1024)
    assert (options.pictures_by.queries, options.train_encoder, recipe.batch, recipe.epochs) == (32, False, 256, 2)
    tiny = load_recipe(TrainRecipe, str(CONFIGS / "train" / "vistallm_tiny.yaml"), given)
    assert (tiny.options["bins"], tiny.options["train_encoder"]) == (101, True)


# -- runs --------------------------------------------------------------------------------------------------------------

TREE = {"method": "vistallm", "model": VIT, "options": OPTIONS["vistallm"]}


def test_a_training_of_vistallm_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    check_same(*whole_and_cut({**TREE, "data": tiny_run(tmp_path / "asked", 40)}, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_a_vistallm_as_one_does(strategy: str, tmp_path: Path) -> None:
    tree = {**TREE, "data": tiny_run(tmp_path / "asked", 40), "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))


def test_a_second_stage_begins_with_a_first_and_comes_back_without_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    first = tiny_training("vistallm", run, tmp_path / "first")
    language = {"language": tiny_language(tmp_path / "language"), "encoder": str(tmp_path / "first")}
    other = tiny_training("vistallm", run, tmp_path / "other", language)
    second = load_training(tiny_training("vistallm", run, tmp_path / "second", {"begin": first}, steps=1))
    earlier, again = load_training(first), load_training(other)
    assert isinstance(second, VistaLLM)
    assert isinstance(earlier, VistaLLM)
    assert isinstance(again, VistaLLM)
    distance = (second.pictures_by.queries - earlier.pictures_by.queries).abs().max()
    assert 0 < float(distance.detach()) < 0.01
    assert again.vocabulary == load_language(str(tmp_path / "language")).extended(again.options.tokens).vocabulary
    with pytest.raises(UserError, match=r"options.bins: that of .* is 17, not 9"):
        tiny_training("vistallm", run, tmp_path / "third", {"begin": first, "bins": 9})
    with pytest.raises(UserError, match="is no training of vistallm"):
        tiny_training("vistallm", run, tmp_path / "third", {"begin": tiny_training("simclr", run, tmp_path / "simclr")})


def test_groups_of_pictures_are_trained_beside_single_ones(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", [scene(n) for n in range(24)])
    run = granary.pack(
        data=[scenes], out=tmp_path / "run", format="instructions", groups={"count": 16, "pictures": 3}, quiet=True
    ).url
    with pytest.raises(UserError, match=r"100 samples in a row cannot be decoded.*3 pictures, not 1 to 2"):
        tiny_training("vistallm", f"{run}/dataset/groups", tmp_path / "few", steps=1, batch=2)
    options = {"pictures": 3, "context": 120}
    mixture = f"{run} * 2 + {run}/dataset/groups"
    folder = tiny_training("vistallm", mixture, tmp_path / "out", options, split="train")
    model = load_training(folder)
    assert isinstance(model, VistaLLM)
    assert model.skipped == 0
    picture = torch.from_numpy(squared(np.zeros((9, 16, 3), np.uint8), 16))
    assert len(model.answers(picture[None, None], [1], ["where is the ball?"], ["box"])) == 1
