"""Completion in a shell, and the JSON schema of recipes against what is shipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

from granary.pipelines import command
from granary.pipelines.cli.shell import RECIPES, SCHEMAS, schema_of
from granary.pipelines.engine.fields import fields
from granary.pipelines.kinds.registry import INSTRUCTIONS, VIDEO_FORMATS, load

CONFIGS = sorted(path for name in RECIPES for path in (ROOT / "configs" / name).glob("*.yaml"))
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def completions(words: str, shell: str = "bash") -> list[str]:
    """Return what a shell would offer for the last word of a line."""
    place = str(len(words.split(" ")) - 1)
    environment = {"_GRANARY_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": place}
    call = [sys.executable, "-m", "granary"]
    done = subprocess.run(call, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_commands_options_and_values_are_completed() -> None:
    assert completions("granary cu") == ["plain,curate"]
    assert completions("granary curate --dedup.th") == ["plain,--dedup.threshold"]
    assert completions("granary curate --pool photos --shards.order ") == ["plain,auto", "plain,hash", "plain,pool"]
    assert completions("granary curate --pool ph") == ["file,ph"]
    assert completions("granary evaluate knn,few") == ["plain,knn,few-shot"]
    assert completions("granary demo ") == ["plain,curate", "plain,render", "plain,sample", "plain,train"]
    assert completions("granary schema tr") == ["plain,train"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert command.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_GRANARY_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_has_every_field(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert command.main(["schema", name]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    model = load(SCHEMAS[name])
    assert isinstance(model, type)
    for key in (field.key for field in fields(model)):
        here = schema
        for part in key.split("."):
            here = next(entry for entry in alternatives(schema, here) if part in properties(entry))
            here = properties(here)[part]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_shipped_fits_its_schema(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    others = {INSTRUCTIONS: "pack-instructions", **dict.fromkeys(VIDEO_FORMATS, "pack-videos")}
    model = load(SCHEMAS[others.get(recipe.get("format"), path.parent.name)])
    assert isinstance(model, type)
    schema = schema_of(model)
    asked = set(schema.pop("required", ()))  # what the user adds on the command line
    assert list(misfits(schema, schema, recipe)) == []
    assert list(misfits(schema, schema, {**recipe, "no_such_key": 1})) != []
    assert asked


def test_a_wrong_value_does_not_fit() -> None:
    model = load(RECIPES["curate"])
    assert isinstance(model, type)
    schema = schema_of(model)
    right = {"pool": "photos", "out": "runs/mine", "dedup": {"threshold": 0.9}}
    assert list(misfits(schema, schema, right)) == []
    for wrong in ({"pool": 3}, {"dedup": 3}, {"dedup": {"threshold": "high"}}, {"shards": {"order": "alphabet"}}):
        assert list(misfits(schema, schema, {**right, **wrong})) != []
    assert list(misfits(schema, schema, {"out": "runs/mine"})) == ["missing pool"]


def test_a_group_of_several_kinds_fits_one_of_them() -> None:
    model = load(RECIPES["train"])
    assert isinstance(model, type)
    schema, recipe = schema_of(model), {"method": "supervised", "data": "runs/mine", "out": "out"}
    for right in ({"img_size": 32}, {"kind": "vit", "depth": 2}, {"kind": "resnet", "widths": [8, 16]}):
        assert list(misfits(schema, schema, {**recipe, "model": right})) == []
    for wrong in ({"kind": "vit", "widths": [8]}, {"kind": "resnet", "depth": 2}, {"kind": "forest"}):
        assert list(misfits(schema, schema, {**recipe, "model": wrong})) != []


def alternatives(root: Any, schema: Any) -> Iterator[Any]:
    """Yield a schema and all that it refers to or offers, down to the entries of lists."""
    if "$ref" in schema:
        yield from alternatives(root, root["$defs"][schema["$ref"].rpartition("/")[2]])
    yield schema
    for option in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())):
        yield from alternatives(root, option)


def properties(schema: Any) -> dict[str, Any]:
    """Return the schemas of the keys of a mapping; NAME stands for keys of the user's own."""
    further = schema.get("additionalProperties")
    return {**schema.get("properties", {}), **({"NAME": further} if isinstance(further, dict) else {})}


def misfits(root: Any, schema: Any, value: Any) -> Iterator[str]:
    """Yield what does not fit: the part of JSON Schema that pydantic writes, read independently of it."""
    if "$ref" in schema:
        yield from misfits(root, root["$defs"][schema["$ref"].rpartition("/")[2]], value)
    if "anyOf" in schema and all(list(misfits(root, option, value)) for option in schema["anyOf"]):
        yield f"{value!r} is none of the alternatives"
    if "type" in schema and (
        not isinstance(value, JSON_TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        yield f"{value!r} is no {schema['type']}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{value!r} is not {schema['const']}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{value!r} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{value!r} is not {schema['const']!r}"
    if isinstance(value, dict):
        yield from misfits_of_object(root, schema, value)
    elif isinstance(value, list):
        for place, entry in enumerate(value):
            front = schema.get("prefixItems", [])
            yield from misfits(root, front[place] if place < len(front) else schema.get("items", {}), entry)
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{value!r} has too few or too many entries"
    elif isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value) or len(value) < schema.get("minLength", 0):
            yield f"{value!r} is not of the pattern"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        above = value > schema.get("exclusiveMinimum", value - 1)
        if not (low <= value <= high and above and value < schema.get("exclusiveMaximum", value + 1)):
            yield f"{value!r} is out of bounds"


def misfits_of_object(root: Any, schema: Any, value: dict[str, Any]) -> Iterator[str]:
    """Yield what does not fit of a mapping."""
    known, further = schema.get("properties", {}), schema.get("additionalProperties", True)
    yield from (f"missing {key}" for key in schema.get("required", ()) if key not in value)
    for key, entry in value.items():
        if key in known:
            yield from misfits(root, known[key], entry)
        elif further is False:
            yield f"no key {key}"
        elif isinstance(further, dict):
            yield from misfits(root, further, entry)
