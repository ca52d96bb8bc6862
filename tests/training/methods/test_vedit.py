"""VEDIT: what is generated knows what is seen alone, noise makes candidates, and a training learns procedures."""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import SHARED
from pydantic import ValidationError
from safetensors.torch import load_file
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_procedures import STEPS, procedure_rows, write_procedures
from tiny_shards import write_shards
from torch import Tensor

import granary
from granary.curation.errors import UserError
from granary.training.data import clip_latents, computed
from granary.training.data.clip_windows import WindowViews
from granary.training.data.collate import Part, stacked
from granary.training.losses.flow_matching import TIMES, sigmas_of
from granary.training.method import Moment
from granary.training.methods.vedit import Vedit, VeditOptions
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

SMALL: dict[str, Any] = {"width": 16, "blocks": 1, "heads": 2, "euler_steps": 2}
CONFIG = ViTConfig(img_size=16, patch_size=4, width=8, depth=1, heads=2)
MOMENT = Moment(0, 10, 0)


def method(**options: Any) -> Vedit:
    """With weights that are nowhere zero, and statistics that are not 0 and 1."""
    torch.manual_seed(0)
    given = VeditOptions(latents="latents", **{**SMALL, **options})
    names = ["task"] if given.task == "classification" else given.fields
    found = Vedit(CONFIG, given, {"classes": {n: list("012345") for n in names}, "dimension": 8, "encoder": None})
    with torch.no_grad():
        for parameter in found.diffusion.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    found.mean.fill_(0.1)
    found.std.fill_(0.5)
    return found


def batch(model: Vedit, count: int = 5) -> Part:
    """The first window of each of some videos."""
    options = model.options
    views = WindowViews(options.windows, options.fields, "latents")
    samples = []
    for row in procedure_rows(count):
        latents = np.array(row["latents"], np.float32)[:, None]
        window = options.windows.every(6)[1 if options.windows.every(6)[1:] else 0]
        samples.append(({"key": row["id"], "label": np.int64(0)}, views.cut(row["clips"], latents, window)))
    return stacked(samples)


# -- the sheet's invariants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["forecasting", "planning", "anticipation"])
def test_what_is_told_never_enters_the_network(task: str) -> None:
    model = method(task=task)
    given = batch(model)
    noise = torch.randn(given["targets"].shape)
    before = model.generated(given, noise)
    assert torch.equal(model.generated({**given, "targets": torch.full_like(given["targets"], 1e6)}, noise), before)
    weights = model.forward(given, MOMENT)["step_accuracy"], model.answers(before)["step"]
    changed = {**given, "targets": given["targets"] + 3}
    assert torch.equal(model.forward(changed, MOMENT)["step_accuracy"], weights[0])


def test_a_clip_that_is_seen_changes_what_is_told_and_one_that_is_absent_does_not() -> None:
    model = method()
    given = batch(model)
    noise = torch.randn(given["targets"].shape)
    before = model.generated(given, noise)
    for place, there in enumerate(given["present"][0].tolist()):
        observed = given["observed"].clone()
        observed[:, place] += 1
        moved = (model.generated({**given, "observed": observed}, noise) - before).abs().max()
        assert (moved > 1e-4) == there


def test_candidates_are_as_many_as_there_are_noises() -> None:
    model = method(task="anticipation")
    given = batch(model)
    plans = [model.generated(given, torch.randn(given["targets"].shape)) for _ in range(3)]
    assert min((one - other).abs().max() for one, other in itertools.combinations(plans, 2)) > 1e-3


def test_noise_is_that_of_the_video_in_any_batch() -> None:
    model = method()
    given = batch(model)
    half = {name: value[2:4] for name, value in given.items()}
    noise, sigma = model._drawn(given["id"], MOMENT, 0, given["targets"])
    part, level = model._drawn(half["id"], MOMENT, 0, half["targets"])
    assert torch.equal(noise[2:4], part)
    assert torch.equal(sigma[2:4], level)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, model._drawn(given["id"], MOMENT._replace(step=1), 0, given["targets"])[0])


def test_the_loss_is_that_of_a_loop_in_value_and_gradient() -> None:
    """Euler steps, cross-entropy of each clip, and the flow at one level of each video, one after another."""
    model = method(task="planning", flow_weight=0.3, latent_weight=0.7, fields=("verb", "noun"))
    given = batch(model)
    given["told"][0][0] = [None, "0", "1"]
    loss = model.forward(given, MOMENT)["loss"]
    noise, _ = model._drawn(given["id"], MOMENT, 0, given["targets"])
    other, sigma = model._drawn(given["id"], MOMENT, 1, given["targets"])
    levels, total, flow, error = sigmas_of(2).tolist(), {"verb": [], "noun": []}, [], []
    for row in range(5):
        clean = (given["targets"][row] - 0.1) / 0.5
        known = ((given["observed"][row : row + 1] - 0.1) / 0.5, given["positions"][row : row + 1])
        known = (*known, given["observed_positions"][row : row + 1], given["present"][row : row + 1])
        x = noise[row]
        for level, following in itertools.pairwise(levels):
            x = x + (following - level) * model.diffusion(x[None], torch.tensor([TIMES * level]), *known)[0]
        error.append((x - clean) ** 2)
        point = (1 - sigma[row]) * clean + sigma[row] * other[row]
        velocity = model.diffusion(point[None], TIMES * sigma[row : row + 1], *known)[0]
        flow.append((velocity - (other[row] - clean)) ** 2)
        for place, name in enumerate(("verb", "noun")):
            for clip in range(3):
                text = given["told"][row][place][clip]
                if text is not None:
                    logits = model.classifiers[name](x[clip][None])[0]
                    total[name].append(-logits.log_softmax(0)[int(text)])
    slow = sum(torch.stack(some).mean() for some in total.values())
    slow = slow + 0.3 * torch.stack(flow).mean() + 0.7 * torch.stack(error).mean()
    torch.testing.assert_close(loss, slow)
    wanted = [*model.diffusion.parameters(), *model.classifiers.parameters()]
    for one, two in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(slow, wanted), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)


def test_by_flow_matching_the_classifier_learns_on_clips_as_they_are() -> None:
    model = method(training="fm")
    given = batch(model)
    output = model.forward(given, MOMENT)
    clean = (given["targets"] - 0.1) / 0.5
    logits = model.classifiers["step"](clean.flatten(0, 1))
    truth = torch.tensor([int(told[0][0]) for told in given["told"]])
    noise, sigma = model._drawn(given["id"], MOMENT, 1, given["targets"])
    torch.testing.assert_close(output["loss"], F.cross_entropy(logits, truth) + model.flow(given, noise, sigma))
    assert "features" not in output


@pytest.mark.parametrize("tokens", ["mean", "frames"])
def test_whole_videos_are_told_by_one_answer(tokens: Any) -> None:
    model = method(task="classification", tokens=tokens)
    given = batch(model)
    answers = model.answers(model.generated(given, torch.randn(given["targets"].shape)))
    assert answers["task"].shape == (5, 1, 6)
    assert model.forward(given, MOMENT)["task_accuracy"] <= 1


def test_running_steps_again_backwards_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = method(recompute=recompute)
        loss = model.forward(batch(model), MOMENT)["loss"]
        gradients.append(torch.autograd.grad(loss, list(model.diffusion.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 20, "heads": 2}, "width is 20; it must be a multiple of four times the 2 heads"),
        ({"training": "fm", "task": "recognition"}, "recognition needs unrolled"),
        ({"training": "fm", "task": "classification"}, "classification needs unrolled"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        VeditOptions(**options)


# -- trainings -------------------------------------------------------------------------------------------------------


def recipe(run: str, out: Path, options: dict[str, Any], **changes: Any) -> TrainRecipe:
    tree = {
        "method": "vedit", "data": run, "out": str(out), "options": {**SMALL, **options}, "steps": 2, "batch": 8,
        "workers": 0, "model": {"width": 8, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4},
        "device": {"accelerator": "cpu", "threads": 1}, "logs": {"every": 1, "tensorboard": False},
        "alarm": {"every": 0},
    }  # fmt: skip
    return TrainRecipe.model_validate({**tree, **changes})


@pytest.mark.parametrize("task", ["forecasting", "classification"])
def test_a_training_that_is_cut_in_two_ends_the_same(task: str, tmp_path: Path) -> None:
    run = write_procedures(tmp_path / "videos")
    tree = {"method": "vedit", "model": VIT, "options": {**SMALL, "latents": "latents", "task": task}, "data": run}
    check_same(*whole_and_cut(tree, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("training", ["unrolled", "fm"])
def test_two_processes_train_what_one_does(training: str, tmp_path: Path) -> None:
    """Some steps are not said, so that processes have other numbers of classes."""
    rows = procedure_rows(40)
    for row in rows[::3]:
        row["clips"] = [{**clip, "step": "" if place % 2 else clip["step"]} for place, clip in enumerate(row["clips"])]
    run = str(write_shards(tmp_path / "videos", rows, group=8, extra=STEPS))
    options = {**SMALL, "latents": "latents", "training": training}
    tree = {"method": "vedit", "model": VIT, "options": options, "data": run, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path))


def test_videos_with_too_few_clips_are_dead_letters(tmp_path: Path) -> None:
    run = write_procedures(tmp_path / "run", least=3)
    facts = train(recipe(run, tmp_path / "out", {"latents": "latents", "task": "planning", "ahead": 5}, steps=6))
    assert facts["dead"]
    letters = (tmp_path / "out" / "dead-letter.csv").read_text()
    assert "TooFewClips" in letters
    assert "planning needs 5" in letters


def test_what_is_missing_is_a_sentence(tmp_path: Path) -> None:
    run = write_procedures(tmp_path / "run")
    with pytest.raises(UserError, match="have 0 values of 'tool'"):
        train(recipe(run, tmp_path / "a", {"latents": "latents", "fields": ["tool"]}))
    with pytest.raises(UserError, match="has no column 'vectors'"):
        train(recipe(run, tmp_path / "b", {"latents": "vectors"}))
    with pytest.raises(UserError, match=r"no clip of .* has a latent"):
        train(recipe(run, tmp_path / "c", {}))  # no row has a video


def state(out: Path, step: int) -> dict[str, Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:09d}" / "training.safetensors")


def packed(folder: Path) -> str:
    """Pack four real clips, each cut into four steps of one of two orders; returns the run."""
    (folder / "videos").mkdir(parents=True)
    lines = []
    with zipfile.ZipFile(SHARED / "video_clips_dev.zip") as archive:
        entries = [json.loads(line) for line in archive.read("manifest.jsonl").decode().splitlines()]
        for number, entry in enumerate(entries[:4]):
            name = Path(entry["file"]).name
            (folder / "videos" / name).write_bytes(archive.read(entry["file"]))
            bounds = np.linspace(0, entry["seconds"], 5).tolist()
            order = [0, 1, 2, 3] if number % 2 else [3, 2, 1, 0]
            steps = [
                {"step_id": step, "label": f"step {step}", "start": a, "end": b}
                for step, (a, b) in zip(order, itertools.pairwise(bounds), strict=True)
            ]
            lines.append({"video": name.rpartition(".")[0], "task": f"task {number % 2}", "steps": steps})
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, out = str(folder / "steps.jsonl"), str(folder / "run")
    granary.pack(out=out, annotations=steps, videos=str(folder / "videos"), format="lines", runner="threads")
    return out


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_the_way_from_real_videos_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are packed, encoded once by a frozen encoder, trained on, gone on with, and told."""
    run = packed(tmp_path)
    written: list[int] = []
    write = computed.write_part

    def counting(folder: str, number: int, *rest: Any) -> None:
        written.append(number)
        write(folder, number, *rest)

    monkeypatch.setattr(computed, "write_part", counting)
    monkeypatch.setattr(clip_latents, "PART", 1)
    out = tmp_path / "out"
    train(recipe(run, out, {"frames": 2}, batch=4, streams=2))
    assert written
    first, count = state(out, 2), len(written)
    train(recipe(run, out, {"frames": 2}, batch=4, streams=2, steps=4))
    assert len(written) == count  # latents are computed once
    second = state(out, 4)
    digests = [
        hashlib.sha256(b"".join(some[name].numpy().tobytes() for name in sorted(some) if "/encoder." in name)).digest()
        for some in (first, second)
    ]
    assert digests[0] == digests[1]
    assert not torch.equal(first["method/diffusion.out.weight"], second["method/diffusion.out.weight"])
    assert second["method/std"].min() > 0
    scores = granary.evaluate(["procedures"], model=str(out), data=run, split="train")["procedures"]
    assert scores["windows"] == 12
    assert 0 <= scores["step_accuracy"] <= 1
