"""The small-scale setting of the sheet: explicit negatives teach a tiny CLIP what contrast alone does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from tiny_clip import pretrain, scene_rows, tiny_clip, write_pairs

from granary.training.data.pairs import read_entries
from granary.training.evaluation.protocols import sdci
from granary.training.methods.dci_lora import FinetuneRecipe, finetune
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.lora import Lora

pytestmark = pytest.mark.slow

TWO_DEVICES = """
import sys
from granary.training.methods.dci_lora import FinetuneRecipe, finetune
model, data, out = sys.argv[1:]
places = {"model": model, "data": data, "out": out, "accelerator": "cpu"}
finetune(FinetuneRecipe(**places, devices=2, batch=5, epochs=1, validation=None))
"""


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """DDP over gloo: both see half of each batch; only the first writes."""
    tiny_clip(width=16, layers=(1, 1)).save(str(tmp_path / "model"))
    data = write_pairs(tmp_path, scene_rows(20))
    script = tmp_path / "train.py"
    script.write_text(TWO_DEVICES)
    words = [sys.executable, str(script), str(tmp_path / "model"), data, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "losses.csv").read_text().count("\n") == 3
    assert done.stdout.count("merged model in") == 1


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
        recipe = FinetuneRecipe(
            model=str(tmp_path / "base"),
            data=data,
            out=str(tmp_path / f"beta{beta}"),
            validation=None,
            lora=Lora(rank=2),
            captions="pick1",
            negative_choice="random",
            beta=beta,
            batch=20,
            epochs=150,
            steps=300,
            lr=3e-3,
            accelerator="cpu",
        )
        assert finetune(recipe, lambda line: None)["steps"] == 300
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
