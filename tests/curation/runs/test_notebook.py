"""Progress in a notebook: one output for each stage that is written over, with nothing of others' names as markup."""

from __future__ import annotations

import dataclasses
import sys
import time
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from granary.curation.runs.notebook import CellBar
from granary.curation.runs.run import Output, Run, Stage, Unit
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.units import Engine, Runner
from granary.training.run.logs import Bar


class Displayed:
    """What a cell shows: each output, and how often it was written over."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def display(self, shown: str, display_id: bool = False) -> Any:
        assert display_id
        output = [shown]
        self.outputs.append(output)
        return types.SimpleNamespace(update=output.append)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Displayed:
    displayed = Displayed()
    module = types.ModuleType("IPython.display")
    module.display, module.HTML = displayed.display, str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return displayed


@dataclasses.dataclass(frozen=True)
class Nap:
    seconds: float


def wait(run: Run, job: Nap, output: Output) -> None:
    """Take a moment."""
    time.sleep(job.seconds)
    output.write(pa.table({"waited": [job.seconds]}))


def test_a_stage_is_one_output_that_fills(cell: Displayed, tmp_path: Path) -> None:
    console = Console(force_jupyter=True)
    runner = Runner(Run(str(tmp_path)), Engine(workers=1), Progress(console))
    runner.stage(Stage("slow", wait, [Unit(n, Nap(0.4 + n / 10)) for n in range(3)], noun="naps"))
    (output,) = cell.outputs
    assert 'value="0" max="3"' in output[0]
    assert 'value="3" max="3"' in output[-1]
    assert "3/3 naps" in output[-1]


def test_names_are_text(cell: Displayed) -> None:
    CellBar("<b>", 2).show(1, "<i>")
    assert [line.count("<b>") + line.count("<i>") for line in cell.outputs[0]] == [0, 0]


def test_a_training_is_one_output_too(cell: Displayed) -> None:
    with Bar(Console(force_jupyter=True), 0, 4, 8) as bar:
        bar.show(3, 0.5)
    ((_, last),) = cell.outputs
    assert "3/4 loss 0.5000" in last
