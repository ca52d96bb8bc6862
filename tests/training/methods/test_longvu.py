"""LongVU: its loss against loops over videos and answers, what learns, its runs, what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from masked_trainings import compare_gradients, disturbed
from places import CONFIGS
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_trainings import OPTIONS, tiny_recipe, tiny_run, tiny_training
from tiny_videos import video, write_videos
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.pipelines import command
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.collate import Part
from granary.training.data.frames import FrameViews
from granary.training.data.tokenizer import train_tokenizer
from granary.training.evaluation.generators import load_generator
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols.video_vqa import PROTOCOL, chance
from granary.training.evaluation.questions import Question
from granary.training.evaluation.video_generator import VideoGenerator, load_video_generator
from granary.training.method import Moment
from granary.training.methods.longvu import LongVU, LongVUOptions, Parts
from granary.training.models.build import build
from granary.training.models.compression import compress
from granary.training.models.language import load_language
from granary.training.models.training import load_training
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe

NOW = Moment(0, 10, 0)
SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 12, "depth": 2, "heads": 2}
WORDS = train_tokenizer(["what is it?", "circle square triangle cross"], 300)
SIZES: dict[str, Any] = {"high": 2, "low": 1, "patches": 2, "width": 8, "depth": 1, "heads": 2, "context": 32}
OWN: dict[str, Any] = {"language": "tiny?width=16&depth=1&heads=2", "columns": ("questions",), **SIZES}


def longvu(second: bool = False, **options: Any) -> LongVU:
    torch.manual_seed(0)
    given = LongVUOptions(**{**OWN, "budget": 14, **options})
    config = ViTConfig(**SHAPE)
    comparer = build(ViTConfig(**{**SHAPE, "img_size": 24, "width": 8})) if second else None
    return LongVU(config, given, Parts(build(config), comparer, load_language(given.language, WORDS)))


def as_read(row: dict[str, Any]) -> Part:
    """Return a row with its pictures as it is read."""
    return {**row, "pictures": [file["bytes"] for file in row["images"]]}


def batch_of(numbers: list[int], frames: int = 8, most: int = 10) -> Part:
    """Return videos as a worker makes them."""
    views, crops = FrameViews("images"), {"image": longvu(frames=most).views()["image"]}
    rows = [video(number, frames - number % 3) for number in numbers]
    made = [views(as_read(row), None, crops, DecodeLimits()) for row in rows]  # type: ignore[arg-type]
    batch: Part = {name: torch.stack([torch.as_tensor(one[name]) for one in made]) for name in ("image", "frames")}
    return {**batch, "id": [row["id"] for row in rows], "questions": [row["questions"] for row in rows]}


BATCH = batch_of([0, 1, 2, 3])

# -- the loss ----------------------------------------------------------------------------------------------------------


def slow_loss(model: LongVU, batch: Part) -> Tensor:
    """One video at a time through `compress`, one answer token at a time: the model is given the vectors so far."""
    network, words = model.language.network, model.language.tokenizer
    table: Tensor = network.get_input_embeddings().weight  # type: ignore[assignment]
    terms = []
    for n in range(len(batch["id"])):
        frames = batch["image"][n, : int(batch["frames"][n])]
        maps = [features.unflatten(1, (int(features.shape[1] ** 0.5),) * 2) for features in model.encoded(frames)]
        (asked,) = batch["questions"][n]
        question = table[words.plain(asked["question"])]
        seen = compress(
            model.aggregator(maps), maps[-1], question.detach(), model.options.limits, model.newline, model.projector
        )
        vectors = [*table[words.begin], *seen.tokens.values, *question]
        for token in [*words.plain(asked["answer"]), words.end]:
            logits = network(inputs_embeds=torch.stack(vectors)[None]).logits[0, -1]
            terms.append(logits.exp().sum().log() - logits[token])
            vectors.append(table[token])
    return sum(terms) / len(terms)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"second": True},
        {"newlines": "none", "budget": 9},
        {"budget": 500},
        {"budget": 6, "newlines": "first", "similar": 2.0, "same": 0.99},
    ],
)
def test_loss_and_gradients_equal_loops_over_videos_and_answers(options: dict[str, Any]) -> None:
    fast, slow = (disturbed(longvu(**options)) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    for model in (fast, slow):
        encoded = model.encoded
        model.encoder.float()
        if model.comparer is not None:
            model.comparer.float()
        model.encoded = lambda frames, encoded=encoded: [one.double() for one in encoded(frames)]
    given, expected = fast(BATCH, NOW), slow_loss(slow, BATCH)
    torch.testing.assert_close(given["loss"], expected, atol=1e-7, rtol=1e-7)
    given["loss"].backward()
    expected.backward()
    compare_gradients(fast, slow, atol=1e-7)
    assert given["tokens"] <= fast.options.budget


@pytest.mark.parametrize("reduction", ["uniform", "temporal", "query", "full"])
def test_no_way_reads_more_than_the_budget(reduction: str) -> None:
    batch = batch_of(list(range(6)), frames=40, most=40)
    model = longvu(reduction=reduction, frames=40, budget=20)
    watched = model.watch(model._features(batch), ["what is it?"] * 6)
    assert (watched.counts <= 20).all()
    everything = longvu(reduction="all", frames=40).watch(model._features(batch), ["what is it?"] * 6)
    assert everything.counts.tolist() == [6 * count for count in batch["frames"].tolist()]


def test_another_question_makes_other_frames_sharp() -> None:
    """Two frames of which each is like one word; the words decide which of them keeps its resolution."""
    model = longvu(newlines="none", budget=5, window=2, similar=2.0)
    table: Any = model.language.network.get_input_embeddings()
    one, other = model.language.tokenizer.plain("circle"), model.language.tokenizer.plain("square")
    with torch.no_grad():
        table.weight.zero_()
        table.weight[one, 0], table.weight[other, 1] = 1.0, 1.0
    model.aggregator.forward = lambda maps: maps[0][:, :2, :2]
    model.projector = torch.nn.Identity()
    features = torch.zeros(2, 16, 16)
    features[0, :, 0], features[1, :, 1] = 1.0, 1.0
    sharp = [model.watch([[features]], [text]).videos[0].sharp.tolist() for text in ("circle", "square")]
    assert sharp == [[True, False], [False, True]]


def test_black_frames_after_the_last_change_nothing() -> None:
    model = longvu().eval()
    short, long = batch_of([0, 1, 2], most=8), batch_of([0, 1, 2], most=30)
    torch.testing.assert_close(model(short, NOW)["loss"], model(long, NOW)["loss"])


# -- what learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [False, True])
def test_what_learns_gets_gradients_and_the_encoders_do_not(second: bool) -> None:
    model = longvu(second)
    model.train()
    model(BATCH, NOW)["loss"].backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in learnt} == {"aggregator", "projector", "newline", "language"}
    assert not any(encoder.training for encoder in model._seeing)


def test_half_precision_is_summed_in_float32() -> None:
    model = longvu()
    whole = float(model(BATCH, NOW)["loss"].detach())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(BATCH, NOW)["loss"]
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(whole, rel=0.05)


def test_it_answers_what_it_was_asked_in_training() -> None:
    """Four videos by heart whose frames are alike but for one, which the answer hangs on."""
    model = longvu(budget=40)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(120):
        optimiser.zero_grad()
        model(BATCH, NOW._replace(step=step))["loss"].backward()
        optimiser.step()
    generator, names = VideoGenerator(model, torch.device("cpu")), ["circle", "square", "triangle", "cross"]
    videos = [BATCH["image"][n, : int(BATCH["frames"][n])] for n in range(4)]
    answers = [generator.answer(one[None], ["what is it?"])[0] for one in videos]
    assert answers == names
    scores = [generator.loglikelihood(one[None], names, "what is it?")[0] for one in videos]
    assert [int(row.argmax()) for row in scores] == [0, 1, 2, 3]
    assert max(generator.tokens) <= 40


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"template": "{question}"}, "it must have <image> once"),
        ({"tuning": "frozen"}, "a tiny language model knows nothing yet: give whole"),
        ({"low": 3}, "low is 3; it must be at most high, 2"),
        ({"heads": 3}, "heads is 3; it must divide width, 8"),
        ({"reduction": "uniform", "budget": 5}, "budget is 5; a frame at high resolution takes 6"),
    ],
)
def test_options_that_do_not_fit_are_sentences(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"options") as caught:
        tiny_recipe("longvu", "RUN", "TRAIN", {**SIZES, **wrong})
    assert sentence in str(caught.value)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_videos(tmp_path_factory.mktemp("videos"), [video(number, 8) for number in range(24)])


def tree_of(run: str) -> dict[str, Any]:
    options = {**OPTIONS["longvu"], "source": "images", "columns": ["questions"], "frames": 6}
    return {"method": "longvu", "model": VIT, "data": run, "window": 16, "options": options}


def test_a_training_goes_on_as_if_it_had_not_stopped(run: str, tmp_path: Path) -> None:
    check_same(*whole_and_cut(tree_of(run), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, run: str, tmp_path: Path) -> None:
    check_near(*one_and_two({**tree_of(run), "optimiser": SGD}, tmp_path, strategy))


def test_a_second_stage_begins_with_the_parts_of_the_first(run: str, tmp_path: Path) -> None:
    """Single pictures, then videos; what does not fit is a sentence."""
    pictures, options = tiny_run(tmp_path / "pictures"), {**tree_of(run)["options"], "heads": 2}
    first = tiny_training("longvu", pictures, tmp_path / "first", optimiser={"lr": 1e-2})
    given = {**options, "begin": first}
    second = tiny_training("longvu", run, tmp_path / "second", given, optimiser={"lr": 1e-9})
    one, two = (load_training(path).state_dict() for path in (first, second))
    for name in one:
        torch.testing.assert_close(two[name], one[name], msg=name)
    with pytest.raises(UserError, match=r"options.heads: that of .* is 2, not 1"):
        tiny_training("longvu", run, tmp_path / "third", {**given, "heads": 1})
    llava = tiny_training("llava", pictures, tmp_path / "llava")
    with pytest.raises(UserError, match=r"options.begin: .* is no training of longvu"):
        tiny_training("longvu", run, tmp_path / "third", {**given, "begin": llava})


def test_a_training_on_kept_features_is_that_on_frames(run: str, tmp_path: Path) -> None:
    encoder = tiny_training("simclr", tiny_run(tmp_path / "pictures"), tmp_path / "encoder", model=VIT)
    tree = {**tree_of(run), "model": VIT, "steps": 3}
    given = {key: value for key, value in tree.items() if key not in ("method", "data", "options")}
    kept = tiny_training("longvu", run, tmp_path / "kept", tree["options"], **given, features={"model": encoder})
    seen = tiny_training("longvu", run, tmp_path / "seen", tree["options"], **given, init=encoder)
    one, other = (load_training(path).state_dict() for path in (kept, seen))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], atol=1e-6, rtol=1e-4, msg=name)
    options = {**tree["options"], "comparer": encoder}
    with pytest.raises(UserError, match=r"features: those of options.comparer cannot be read"):
        tiny_training("longvu", run, tmp_path / "two", options, **given, features={"model": encoder})


def test_questions_about_videos_are_counted_and_damaged_ones_named(run: str, tmp_path: Path) -> None:
    model = tiny_training("longvu", run, tmp_path / "model", {**tree_of(run)["options"], "columns": ["questions"]})
    rows = [video(number, 8) for number in range(4)]
    rows[1]["images"][4] = {"bytes": b"no picture", "path": "broken.png"}
    rows[2]["questions"] = []
    data = write_videos(tmp_path / "data", rows)
    for way in ("answer", "rank"):
        found = PROTOCOL.evaluate(Measured(model, data, device="cpu"), PROTOCOL.read({"way": way}))
        assert (found["videos"], found["videos.without_questions"], found["videos.unreadable"]) == (2, 1, 1)
        assert found["questions"] == 2
        assert found["accuracy.chance"] == found["accuracy.prior"] == 0.5
        assert 0 < found["tokens"] <= 14  # type: ignore[operator]
        assert found["tokens.share"] == found["tokens"] / (6 * 6)  # type: ignore[operator]
        (dead,) = found.settings["dead"]
        assert "cannot be" in dead["message"] or dead["error"]
    out = tmp_path / "scores.json"
    assert command.main(["evaluate", "video-vqa", "--model", model, "--data", data, "--out", str(out)]) == 0
    assert "tokens.share" in out.read_text()


def test_an_answer_drawn_among_those_of_its_kind_is_right_by_chance() -> None:
    questions = [Question("a", "what", "?", [name]) for name in ("cat", "dog", "dog", "owl")]
    assert chance(questions) == pytest.approx(1 / 3)
    assert chance([*questions, Question("b", "world", "?", ["sea"])]) == pytest.approx((4 / 3 + 1) / 5)


def test_a_training_comes_back_and_answers_about_pictures_too(run: str, tmp_path: Path) -> None:
    model = tiny_training("longvu", run, tmp_path / "model", tree_of(run)["options"])
    generator, again = load_video_generator(model), load_video_generator(model)
    frames = torch.randint(0, 256, (1, 5, 16, 16, 3), dtype=torch.uint8)
    assert generator.answer(frames, ["what is it?"]) == again.answer(frames, ["what is it?"])
    of_frame = generator.own_loglikelihood(frames[:, :1], [["circle"]], ["what is it?"])
    picture = frames[0, :1].permute(0, 3, 1, 2)
    torch.testing.assert_close(load_generator(model).loglikelihood(picture, ["circle"], "what is it?"), of_frame)
    with pytest.raises(UserError, match="has not learnt to see videos"):
        load_video_generator(tiny_training("llava", tiny_run(tmp_path / "run"), tmp_path / "llava"))


def test_frames_are_cut_to_as_many_as_are_asked_for_and_nothing_is_no_video() -> None:
    row, limits = as_read(video(7, 9)), DecodeLimits()
    views = FrameViews("images")
    every = views.read(row, 9, 16, limits)
    assert views.read(row, 3, 16, limits).tolist() == every[[0, 4, 8]].tolist()
    with pytest.raises(DecodeError, match="the row has no frames"):
        views.read({**row, "pictures": []}, 3, 16, limits)
    with pytest.raises(DecodeError):
        views.read({**row, "pictures": [*row["pictures"][:8], b""]}, 9, 16, limits)


def test_recipes_have_the_published_parts() -> None:
    given = ["--data", "RUN", "--out", "TRAIN"]
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "longvu_qwen2_7b.yaml"), given)
    options = LongVUOptions.model_validate(recipe.options)
    assert (options.high, options.low, options.patches, options.width, options.depth) == (12, 8, 2, 1024, 3)
    assert (options.window, options.patch_window, options.same, recipe.batch) == (8, 8, 0.8, 64)
    assert options.budget + options.context <= 8192


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_loss_of_the_cpu() -> None:
    model = longvu()
    here = model(BATCH, NOW)["loss"].detach()
    there = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in BATCH.items()}
    torch.testing.assert_close(model.cuda()(there, NOW)["loss"].detach().cpu(), here, atol=1e-4, rtol=1e-4)
