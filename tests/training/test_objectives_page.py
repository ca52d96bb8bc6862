"""Every command of docs/objectives.md runs, in the order it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from places import ROOT
from test_collapses import CASES
from tiny_trainings import tiny_run

from granary.pipelines.command import main
from granary.training.methods import METHODS

PAGE = (ROOT / "docs" / "objectives.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().splitlines()]


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path / "runs" / "pictures", 100)
    monkeypatch.chdir(tmp_path)
    assert COMMANDS
    for command in COMMANDS:
        assert main(shlex.split(command)[1:]) == 0, f"{command}\n{capsys.readouterr().err}"


def test_the_page_names_methods_that_are_there_and_what_the_alarm_says() -> None:
    table = PAGE.partition("| wanted | take |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[2])}
    assert named <= {*METHODS, "dino", "ibot"}  # recipes of dinov2
    assert set(METHODS) - named <= {"supervised", "dci_lora", "generator_lora", "rcdm", "nnclr", "moco_v3", "xrm"}
    for case in CASES.values():
        assert case.says is None or f'"{case.says}"' in PAGE
