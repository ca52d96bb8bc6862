"""The small-scale setting of the sheet: explicit negatives teach a tiny CLIP what contrast alone does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_clip import pretrain, scene_rows, tiny_clip, write_pairs

from granary.training.data.pairs import read_entries
from granary.training.evaluation.protocols import sdci
from granary.training.models.clip_transformers import ClipModel
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

pytestmark = pytest.mark.slow


def recipe_of(folder: Path, data: str, out: str, **changes: Any) -> TrainRecipe:
    options = {"clip": str(folder), "captions": "pick1", **changes.pop("options", {})}
    lr = changes.pop("lr", 1e-3)
    settings: dict[str, Any] = {"method": "dci_lora", "options": options, "data": data, "out": out, "split": "train"}
    settings |= {"optimiser": {"lr": lr, "final_lr": lr, "weight_decay": 0.01}, "drop_last": True, "workers": 0}
    settings |= {"logs": {"every": 1, "tensorboard": False}, "device": {"accelerator": "cpu", "threads": 1}}
    return TrainRecipe.model_validate({**settings, **changes})


def test_two_processes_train_what_one_does_in_two_parts(tmp_path: Path) -> None:
    """Losses compare within the share of a process, so it is that of a part of an accumulated batch."""
    tiny_clip(width=16, layers=(1, 1)).save(str(tmp_path / "model"))
    data = write_pairs(tmp_path, scene_rows(40))
    shared = {"options": {"lora": {"dropout": 0.0}}, "batch": 10, "streams": 2, "epochs": 1}
    one = recipe_of(tmp_path / "model", data, str(tmp_path / "one"), accumulate=2, **shared)
    device = {"accelerator": "cpu", "threads": 1, "devices": 2, "strategy": "ddp_spawn"}
    two = recipe_of(tmp_path / "model", data, str(tmp_path / "two"), device=device, **shared)
    for recipe in (one, two):
        train(recipe)
    left, right = (load_file(f"{recipe.out}/model/model.safetensors") for recipe in (one, two))
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=1e-6, rtol=1e-5)


def score(folder: Path, data: str, split: str) -> tuple[float, float, float]:
    """Return All-SCM, All-Neg and the mean logit of the first summary above its first negative."""
    clip = ClipModel.load(str(folder), "cpu")
    entries = list(read_entries(data, split))
    scores = sdci.benchmark(clip, entries)
    images = clip.images(clip.pixels([entry.image() for entry in entries]))
    pairs = [clip.texts([entry.captions[0], entry.negatives[0].text]) for entry in entries]
    logits = clip.own_logits(images, torch.stack(pairs))
    return scores["All-SCM"] or 0, scores["All-Neg"] or 0, float((logits[:, 0] - logits[:, 1]).mean())


def test_explicit_negatives_teach_what_contrast_does_not(tmp_path: Path) -> None:
    """40 pictures of rectangles, LoRA of rank 2, 300 steps: All-Neg on them above 0.9 with beta = 1, not with 0.

    The base model tells pictures apart (All-SCM) but not the order of colours (All-Neg near chance): its logits of a
    summary and of its negative are nearly equal. With beta = 1 they part; with beta = 0 they barely do. On pictures
    with other colours All-Neg stays near chance either way: 40 pictures are learnt by heart.
    """
    base = tiny_clip()
    pretrain(base, 200)
    base.save(str(tmp_path / "base"))
    data = write_pairs(tmp_path, [*scene_rows(40), *scene_rows(44, split="held-out", start=40)])
    found = {"base": [score(tmp_path / "base", data, split) for split in ("train", "held-out")]}
    for beta in (0, 1):
        options = {"lora": {"rank": 2}, "negative_choice": "random", "beta": beta}
        out = str(tmp_path / f"beta{beta}")
        train(recipe_of(tmp_path / "base", data, out, options=options, batch=20, steps=300, lr=3e-3))
        name = f"beta = {beta}"
        found[name] = [score(tmp_path / f"beta{beta}", data, split) for split in ("train", "held-out")]
    for name, ((scm, neg, margin), (scm2, neg2, margin2)) in found.items():
        print(f"{name:<9} 40 trained on: SCM {scm:.3f} Neg {neg:.3f} margin {margin:+.2f}; ", end="")
        print(f"44 others: SCM {scm2:.3f} Neg {neg2:.3f} margin {margin2:+.2f}")
    (scm, neg, margin), (_, neg0, margin0), (_, neg1, margin1) = (found[name][0] for name in found)
    assert scm > 0.9
    assert 0.3 < neg < 0.7
    assert neg1 > 0.9
    assert neg0 < 0.85
    assert abs(margin0 - margin) < 0.1 * (margin1 - margin)
