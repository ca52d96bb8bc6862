"""What a training of a masked image model must withstand: a cut, and more than one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from places import ROOT
from safetensors.torch import load_file
from tiny_trainings import tiny_recipe, tiny_run

from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

SCRIPT = """
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
if __name__ == "__main__":
    train(TrainRecipe.model_validate_json(open({recipe!r}).read()))
"""


def goes_on(method: str, folder: Path) -> None:
    """Train six steps, and again the last two of them: the weights are the same to the bit."""
    recipe = tiny_recipe(method, tiny_run(folder / "run"), folder / "out", steps=6, checkpoints={"every": 2})
    last = folder / "out" / "checkpoints" / "step-000000006"
    train(recipe)
    whole = load_file(last / "training.safetensors")
    (last / "state.json").unlink()
    train(recipe)
    again = load_file(last / "training.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def two_processes_train_what_one_does(method: str, strategy: str, folder: Path) -> None:
    """Train on one process and on two: masks and losses are those of the whole batch, and so are the weights."""
    run, changes = tiny_run(folder / "run", 40), dict[str, Any](steps=4, streams=4, optimiser={"lr": 1e-3, "eps": 1e-4})
    train(tiny_recipe(method, run, folder / "one", **changes))
    device = {"accelerator": "cpu", "threads": 1, "devices": 2, "strategy": strategy}
    recipe: TrainRecipe = tiny_recipe(method, run, folder / "two", device=device, **changes)
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    (folder / "script.py").write_text(SCRIPT.format(recipe=str(folder / "recipe.json")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(folder / "script.py")], check=True, timeout=300, env=environment)
    last = "checkpoints/step-000000004/training.safetensors"
    one, two = (load_file(folder / name / last) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
