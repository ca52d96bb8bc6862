"""`--help` of every command: all that can be written, from the words of the models, without a heavy import."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from pydantic import BaseModel

from granary.pipelines import command
from granary.pipelines.cli.shell import RECIPES
from granary.pipelines.engine.fields import fields
from granary.pipelines.engine.protocols import PROTOCOLS
from granary.pipelines.kinds.registry import KINDS, load
from granary.training.evaluation.protocols.registry import load_protocol
from granary.training.methods import METHODS, load_method

HEAVY = ("apache_beam", "torch", "sklearn", "transformers", "datasets", "faiss", "diffusers", "pandas", "scipy")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a call prints, on one line so that wrapping does not matter."""
    assert command.main(list(words)) == 0
    return " ".join(capsys.readouterr().out.split())


def check_fields(text: str, model: type[BaseModel], prefix: str = "") -> None:
    for field in fields(model, prefix):
        assert field.text, f"{field.key} has no help text"
        _, there, entry = text.partition(f"--{field.key} {field.type_name} {' '.join(field.text.split())}")
        assert there, field.key
        if field.default not in ("null", "required"):
            assert entry.startswith(f" [default: {' '.join(field.default.split())}"), field.key


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str, flag: str) -> None:
    assert f"Usage: granary {name}" in told(capsys, name, flag)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_help_of_a_recipe_tells_every_field_its_type_its_default_and_its_meaning(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = load(RECIPES[name])
    assert isinstance(model, type)
    check_fields(told(capsys, name, "--help"), model)


def test_fields_stand_by_group_with_choices_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "curate", "--help")
    group = text.partition("dedup - ")[2].partition("leaks - ")[0]
    assert "--dedup.enabled true|false" in group
    assert "--dedup.threshold NUMBER" in group
    assert "--leaks" not in group
    assert "--shards.order auto|hash|pool" in text
    assert "[default: 5000; >= 1]" in text
    assert "--pool PATH" in text.partition("pool - ")[2].partition("--pool.name")[0]


def test_help_is_wrapped_to_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (80, 110):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert command.main(["curate", "--help"]) == 0
        lines = capsys.readouterr().out.partition("Examples:")[0].splitlines()
        assert columns - 15 < max(map(len, lines)) <= columns


@pytest.mark.parametrize("method", METHODS)
def test_the_options_of_a_method_that_is_named(capsys: pytest.CaptureFixture[str], method: str) -> None:
    text = told(capsys, "train", "--help", "--method", method)
    check_fields(text.partition(f"Options of {method}:")[2], load_method(method).Options, "options.")
    assert "--optimiser.lr" in text
    recipe = {"dci_lora": "sdci_lora", "generator_lora": "generator_lora_blip", "simclr": "simclr_resnet_tiny"}.get(
        method, f"{method}_tiny"
    )
    assert told(capsys, "train", "--config", f"train/{recipe}.yaml", "-h") == text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_options_of_a_protocol_that_is_named(capsys: pytest.CaptureFixture[str], protocol: str) -> None:
    text = told(capsys, "evaluate", protocol, "--help")
    check_fields(text.partition(f"Options of {protocol}:")[2], load_protocol(protocol, PROTOCOLS).options, "options.")


def test_several_protocols_are_told_of_and_unknown_ones_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "evaluate", "knn,linear,nothing", "--help")
    assert "Options of knn:" in text
    assert "Options of linear:" in text
    assert "Options of nothing" not in text


def test_every_example_is_a_call_that_is_understood(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the calls would start is left out; the recipes of all are read and checked."""
    ran = []
    for kind in KINDS.values():
        monkeypatch.setattr(kind.run.replace(":", "."), lambda *recipe, **flags: ran.append(recipe))
    monkeypatch.setattr("granary.training.evaluation.evaluate.evaluate", ran.append)
    monkeypatch.setattr("granary.training.evaluation.comparison.compare", ran.append)
    monkeypatch.setattr("granary.training.evaluation.partition.write_partition", ran.append)
    monkeypatch.setattr(
        "granary.training.run.loop.train", lambda *recipe: ran.append(recipe) or {"checkpoint": "", "finished": True}
    )
    for name in RECIPES:
        assert command.main([name, "--help"]) == 0
        examples = capsys.readouterr().out.partition("Examples:")[2].strip().splitlines()
        assert examples
        for example in examples:
            words = shlex.split(example)
            assert words[:2] == ["granary", name]
            status = command.main(words[1:])
            assert status == 0, capsys.readouterr().err
            capsys.readouterr()
    assert len(ran) >= len(RECIPES)


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys, granary.pipelines.command
for name in granary.pipelines.command.COMMANDS:
    assert granary.pipelines.command.main([name, "--help"]) == 0
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
