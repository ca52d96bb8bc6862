"""A job that does not fit its step is an error of the type checker, before anything runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT

# What the examples speak of; all else is passed over, so that the type checker needs seconds.
CHECKED = ("curation/runs/run.py", "curation/steps/dedup.py", "curation/steps/leaks.py", "pipelines/engine/stages.py")
HEAD = [
    "from granary.curation.steps.dedup import JoinPair, join_pair",
    "from granary.curation.steps.leaks import MergeRound, leaked",
    "from granary.pipelines.engine.stages import Stages",
    "def run(stages: Stages) -> None:",
]
EXAMPLES = {
    "right": ('stages.parallel("join", join_pair, [JoinPair(((0, 1), (1, 2)), 0.9, "cpu")], [])', ""),
    "a misspelt field": ('JoinPair(((0, 1), (1, 2)), treshold=0.9, device="cpu")', 'keyword argument "treshold"'),
    "a field of another type": ('JoinPair(((0, 1), (1, 2)), "high", "cpu")', 'expected "float"'),
    "the job of another step": ('stages.parallel("join", join_pair, [MergeRound(0)], [])', "JoinPair"),
    "a misspelt option": ('stages.parallel("a", leaked, [MergeRound(0)], [], core="idle")', '"core"'),
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Let mypy look at all examples at once; returns its errors by example."""
    folder = tmp_path_factory.mktemp("examples")
    example = folder / "example.py"
    example.write_text("\n".join([*HEAD, *(f"    {line}" for line, _ in EXAMPLES.values())]) + "\n")
    words = ["--follow-imports=skip", "--config-file=", "--ignore-missing-imports", "--cache-dir", str(folder)]
    files = [f"granary/{file}" for file in CHECKED]
    command = [sys.executable, "-m", "mypy", *words, *files, str(example)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = dict.fromkeys(EXAMPLES, "")
    for line in done.stdout.splitlines():
        where, _, error = line.partition(": error: ")
        if error and where.startswith(str(example)):
            errors[list(EXAMPLES)[int(where.rpartition(":")[2]) - len(HEAD) - 1]] += error
    return errors


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_type_checker_sees(name: str, complaints: dict[str, str]) -> None:
    _, expected = EXAMPLES[name]
    assert expected in complaints[name]
    assert bool(complaints[name]) == bool(expected)
