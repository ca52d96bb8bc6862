"""Packages of the extra `train` are imported where they are used; a missing one is one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_clip import tiny_clip

from granary.curation.errors import UserError
from granary.training.data.augment import Photometric, photometric
from granary.training.evaluation.results import ModelScores, drawn
from granary.training.models.lora import Lora, adapt
from granary.training.recipe import Device, TrainRecipe
from granary.training.run.devices import make_fabric
from granary.training.run.logs import LogWriter

HEAVY = ("torch", "numpy", "kornia", "lightning_fabric", "matplotlib", "sklearn", "tensorboard", "peft", "transformers")


@pytest.mark.parametrize("module", ["recipe", "evaluation.evaluate", "evaluation.results"])
def test_what_help_needs_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, granary.training.{module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _write_logs() -> None:
    tree = {"method": "ijepa", "data": "RUN", "out": str(Path.cwd() / "out"), "steps": 1}
    LogWriter(TrainRecipe.model_validate(tree), 0, active=True)


USES: dict[str, Callable[[], object]] = {
    "kornia": lambda: photometric(torch.zeros(2, 3, 4, 4), torch.zeros(2, 16), Photometric()),
    "lightning_fabric": lambda: make_fabric(Device(accelerator="cpu")),
    "matplotlib": lambda: drawn([ModelScores("a", {"knn": {"accuracy": 0.5}}, {})], ["knn/accuracy"], "png"),
    "peft": lambda: adapt(tiny_clip(), Lora()),
    "tensorboard": _write_logs,
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_package_is_one_sentence(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = [name for name in sys.modules if name.split(".")[0] == package]
    for name in (*loaded, "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        USES[package]()
    assert str(caught.value) == f"{package} is not installed; run: pip install 'granary-data[train]'"
