"""Predictor fine-tuning against a slow reference, what stays and what learns, and how a training comes back."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import SGD, VIT, check_near, one_and_two, whole_and_cut
from slow_ijepa import slow_block, slow_encoder, slow_positions
from tiny_shards import shapes, write_shards
from tiny_trainings import SETTINGS, tiny_recipe, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.methods.iwm import IWM, IWMOptions
from granary.training.methods.predictor_tuning import PredictorTuning, PredictorTuningOptions, World
from granary.training.models.training import load_training
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.directory import write_recipe
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=32, patch_size=4, width=24, depth=2, heads=2, **IWM.MODEL)  # type: ignore[arg-type]
SIZES: dict[str, Any] = {"predictor_width": 16, "predictor_depth": 2, "predictor_heads": 2}
CLASSES = {"cat": 0.5, "dog": 0.3, "owl": 0.2}


def world(**changes: Any) -> IWM:
    """A world model whose weights are far from their initial values, the target another model than the context."""
    torch.manual_seed(0)
    iwm = IWM(CONFIG, IWMOptions(**{**SIZES, **changes}))
    with torch.no_grad():
        for name, parameter in iwm.named_parameters():
            if "positions" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return iwm


def method(taught: IWM | None = None, **options: Any) -> PredictorTuning:
    taught = taught or world()
    known = World(CLASSES, "iwm", taught.options.model_dump(mode="json"), taught.state_dict())
    torch.manual_seed(1)
    return PredictorTuning(CONFIG, PredictorTuningOptions(teacher="IWM", **{"heads": 2, "flip": 0.0, **options}), known)


def batch_of(count: int = 3) -> dict[str, Any]:
    torch.manual_seed(2)
    pixels = torch.randint(0, 256, (count, 1, 32, 32, 3), dtype=torch.uint8)
    labels = torch.tensor([0, 2, -1, 1, 1, 0])[:count]
    return {"image": pixels, "image_draws": torch.rand(count, 1, 16), "label": labels, "id": list("abcdef")[:count]}


def pixels_of(batch: dict[str, Any]) -> Tensor:
    unit = batch["image"][:, 0].permute(0, 3, 1, 2) / 255
    return (unit - torch.tensor(CONFIG.mean).view(3, 1, 1)) / torch.tensor(CONFIG.std).view(3, 1, 1)


def slow_logits(tuning: PredictorTuning, picture: Tensor) -> Tensor:
    """Encoder, predictor under the action of zeros and head, token by token."""
    every, positions, predictor = list(range(64)), slow_positions(16), tuning.predictor
    context = predictor.embed(slow_encoder(tuning.encoder, picture, every)) + positions
    asked = []
    for place in every:
        hidden = torch.cat([positions[place] + predictor.mask_token[0, 0], torch.zeros(7)])
        for number, layer in enumerate(predictor.mixed.layers):
            hidden = layer.weight @ hidden + layer.bias
            hidden = hidden.clamp(min=0) if number < 2 else hidden
        asked.append(hidden)
    x = torch.cat([context, torch.stack(asked)])
    for block in predictor.blocks:
        x = slow_block(block, x)
    told = predictor.out(predictor.norm(x))[64:]
    head: Any = tuning.head
    if tuning.options.head == "mean":
        return head.weight @ (sum(told) / 64) + head.bias
    keys_values = head.keys_values(head.norm(told))
    pooled = []
    for number in range(head.heads):
        size = 24 // head.heads
        own = slice(number * size, (number + 1) * size)
        keys, values = keys_values[:, :24][:, own], keys_values[:, 24:][:, own]
        weights = torch.exp(keys @ head.query[number, 0] / size**0.5)
        pooled.append((weights / weights.sum()) @ values)
    return head.classifier(torch.cat(pooled))


@pytest.mark.parametrize(("head", "freeze"), [("attentive", True), ("mean", True), ("attentive", False)])
def test_loss_and_gradients_equal_the_slow_reference(head: str, freeze: bool) -> None:
    fast, batch = method(head=head, freeze=freeze), batch_of(3)
    slow = copy.deepcopy(fast)
    terms = []
    for picture, label in zip(pixels_of(batch), batch["label"].tolist(), strict=True):
        logits = slow_logits(slow, picture)
        if label >= 0:
            terms.append(torch.log(torch.exp(logits).sum()) - logits[label])
    found, expected = fast(batch, Moment(0, 10, 0)), sum(terms) / len(terms)
    torch.testing.assert_close(found["loss"], expected, atol=1e-5, rtol=1e-5)
    found["loss"].backward()
    expected.backward()  # type: ignore[union-attr]
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            scale = float(theirs.grad.abs().max())
            torch.testing.assert_close(
                ours.grad, theirs.grad, atol=1e-4 * scale + 1e-7, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
    learns = {name.split(".")[0] for name, p in fast.named_parameters() if p.grad is not None}
    assert learns == {"head", "predictor"} | (set() if freeze else {"encoder"})
    assert float(found["unlabelled"]) == pytest.approx(1 / 3)


# -- what is taken, and what stays ------------------------------------------------------------------------------------


def test_the_predictor_reads_the_target_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: the features of the context encoder, which training reads."""
    taught = world()
    tuning, pixels = method(taught), pixels_of(batch_of())
    seen: list[Tensor] = []
    forward = tuning.predictor.forward
    monkeypatch.setattr(tuning.predictor, "forward", lambda *given: seen.extend(given) or forward(*given))
    tuning.logits(pixels)
    assert torch.equal(seen[0], taught.target(pixels).patches)
    assert not torch.allclose(seen[0], taught.context(pixels).patches, atol=1e-2)
    assert seen[1].tolist() == [list(range(64))] * 3
    assert torch.equal(seen[2][0], seen[1])  # all patches are seen, and all are asked for


@pytest.mark.parametrize("conditioning", ["feature", "sequence", "none"])
def test_the_action_is_the_one_of_equal_views(conditioning: str) -> None:
    """Trap: a null action that is not zeros."""
    taught = world(conditioning=conditioning)
    tuning, pixels = method(taught), pixels_of(batch_of())
    every = torch.arange(64).expand(3, -1)
    tokens = taught.target(pixels).patches
    zeros, ones = (taught.predictor(tokens, every, every[None], torch.full((3, 7), x)) for x in (0.0, 1.0))
    assert torch.equal(tuning.predicted(pixels), zeros)
    assert torch.allclose(zeros, ones) == (conditioning == "none")


def test_a_random_predictor_is_as_large_and_another() -> None:
    taught = world()
    given, random = (method(taught, predictor=kind).predictor.state_dict() for kind in ("pretrained", "random"))
    theirs = taught.predictor.state_dict()
    assert all(torch.equal(given[name], theirs[name]) for name in theirs)
    assert {name: w.shape for name, w in random.items()} == {name: w.shape for name, w in theirs.items()}
    assert not torch.equal(random["embed.weight"], theirs["embed.weight"])
    encoder = method(taught, predictor="random").encoder.state_dict()
    assert all(torch.equal(encoder[name], weight) for name, weight in taught.target.state_dict().items())


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, {"head": 1.0, "predictor": 0.1}),
        ({"predictor": "random"}, {"head": 1.0, "predictor": 1.0}),
        ({"freeze": False, "pretrained_lr": 0.2}, {"head": 1.0, "predictor": 0.2, "encoder": 0.2}),
    ],
)
def test_what_is_pretrained_learns_slower(options: dict[str, Any], rates: dict[str, float]) -> None:
    tuning = method(**options)
    names = {id(p): name.split(".")[0] for name, p in tuning.named_parameters()}
    found = {names[id(p)]: group.lr_scale for group in tuning.parameter_groups() for p in group.params}
    assert found == rates
    learnt = sum(len(group.params) for group in tuning.parameter_groups())
    assert learnt == len([p for p in tuning.parameters() if p.requires_grad])


def test_a_frozen_encoder_is_in_evaluation_mode_while_the_rest_trains() -> None:
    frozen, free = method().train(), method(freeze=False).train()
    assert not any(part.training for part in frozen.encoder.modules())
    assert frozen.head.training
    assert free.encoder.training
    assert not any(part.training for part in free.eval().modules())


# -- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def taught(run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(Path(tiny_training("iwm", run, tmp_path_factory.mktemp("iwm"), model=VIT)).parents[1])


def tuned(run: str, out: Path, teacher: str, steps: int = 2, **options: Any) -> str:
    tree = {**SETTINGS, "method": "predictor_tuning", "data": run, "out": str(out), "model": VIT, "steps": steps}
    recipe = TrainRecipe.model_validate({**tree, "options": {"teacher": teacher, **options}})
    return train(recipe)["checkpoint"]


@pytest.mark.parametrize("freeze", [True, False])
def test_a_training_changes_predictor_and_head_and_the_encoder_only_when_asked(
    freeze: bool, run: str, taught: str, tmp_path: Path
) -> None:
    before, after = load_training(taught), load_training(tuned(run, tmp_path, taught, freeze=freeze))
    assert isinstance(before, IWM)
    assert isinstance(after, PredictorTuning)
    encoder = after.encoder.state_dict()
    same = {name: torch.equal(encoder[name], weight) for name, weight in before.target.state_dict().items()}
    assert all(same.values()) == freeze
    theirs = before.predictor.state_dict()
    assert not torch.equal(after.predictor.state_dict()["out.weight"], theirs["out.weight"])
    assert after.evaluated_model() is after.encoder


def test_a_training_comes_back_without_its_teacher(run: str, taught: str, tmp_path: Path) -> None:
    copied = str(shutil.copytree(taught, tmp_path / "iwm"))
    checkpoint = tuned(run, tmp_path / "tuned", copied)
    shutil.rmtree(copied)
    back = load_training(checkpoint)
    assert isinstance(back, PredictorTuning)
    assert back.classes == ["circle", "cross", "square", "triangle"]
    assert back.logits(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert not any(p.requires_grad for p in back.encoder.parameters())


def test_the_predictor_of_ijepa_is_tuned_too(run: str, tmp_path: Path) -> None:
    taught = tiny_training("ijepa", run, tmp_path / "ijepa", model=VIT)
    back = load_training(tuned(run, tmp_path / "tuned", taught))
    assert isinstance(back, PredictorTuning)
    assert back.known.method == "ijepa"  # type: ignore[attr-defined]


def test_a_recipe_gives_initial_weights_by_seed(taught: str, tmp_path: Path) -> None:
    tree = {"method": "predictor_tuning", "data": "none", "out": str(tmp_path), "model": VIT, "steps": 1}
    write_recipe(TrainRecipe.model_validate({**tree, "options": {"teacher": taught}}))
    first, same, other = (load_training(f"random:{tmp_path}", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["encoder.embed.weight"], other["encoder.embed.weight"])
    assert not torch.equal(first["encoder.embed.weight"], load_training(taught).state_dict()["target.embed.weight"])


def test_teachers_and_data_that_do_not_fit_are_sentences(run: str, taught: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is neither a training directory"):
        tuned(run, tmp_path / "a", str(tmp_path))
    simclr = tiny_training("simclr", run, tmp_path / "simclr", model={**VIT, "class_token": True})
    with pytest.raises(UserError, match=r"options.teacher: .* has no predictor to tune; give a training of iwm"):
        tuned(run, tmp_path / "b", simclr)
    recipe = tiny_recipe("iwm", run, tmp_path / "wide", model={**VIT, "width": 32})
    write_recipe(recipe)
    with pytest.raises(UserError, match=r"model.width: 16 is not right: that of options.teacher, 32, is"):
        tuned(run, tmp_path / "c", f"random:{tmp_path}/wide")
    rows = [{**row, "label": "circle"} for row in shapes(16, 16)]
    with pytest.raises(UserError, match="the column label has 1 classes; at least two are needed"):
        tuned(str(write_shards(tmp_path / "one", rows)), tmp_path / "d", taught)


def test_a_training_goes_on_as_if_it_had_not_stopped(taught: str, tmp_path: Path) -> None:
    tree = {"method": "predictor_tuning", "model": VIT, "options": {"teacher": taught, "freeze": False}}
    whole, again = whole_and_cut(tree, tmp_path)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, taught: str, tmp_path: Path) -> None:
    tree = {"method": "predictor_tuning", "model": VIT, "options": {"teacher": taught}, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))
