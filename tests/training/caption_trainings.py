"""What tests of trainings on captions share: captions and their tokenizer, and what every such method must do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from caption_batches import batch_of

from granary.training.data.tokenizer import train_tokenizer
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.method import Method, Moment

CAPTIONS = ["a red dog runs", "two cats on a mat", "a boat at sea", "the old man", "a red dog runs to the boat"]
TOKENIZER = train_tokenizer(CAPTIONS, 600)
SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
NOW = Moment(0, 10, 0)


def check_half_precision(model: Method, batch: dict[str, Any]) -> None:
    """Fail where the loss in bfloat16 is not float32, or far from the whole one."""
    whole = float(model(batch, NOW)["loss"].detach())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, NOW)
    assert output["loss"].dtype == torch.float32
    assert float(output["loss"].detach()) == pytest.approx(whole, rel=0.05)


def check_silence(model: Method) -> None:
    """Fail where a batch without any caption moves a weight."""
    loss = model(batch_of([[], [], []]), NOW)["loss"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.abs().sum() for p in model.parameters())


def check_evaluated(training: Path, run: str, folder: Path) -> None:
    """Fail where a training cannot be measured on the 24 pictures of a `tiny_run`."""
    given = {"model": str(training), "data": run, "out": str(folder / "scores.json"), "device": "cpu"}
    evaluate(EvaluateRecipe(protocols=["zero-shot", "retrieval", "knn"], **given), lambda _: None)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["zero-shot"]["top1.pictures"] == scores["retrieval"]["pictures"] == 24
