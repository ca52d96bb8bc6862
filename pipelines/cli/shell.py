"""The commands for shells and editors: completion, and the JSON schema of a recipe."""

from __future__ import annotations

import json
from typing import cast

import click
from click.shell_completion import get_completion_class
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import BeforeValidatorFunctionSchema, ModelSchema, TaggedUnionSchema

from granary.curation.options import Options
from granary.pipelines.cli.plain_command import VARIABLE, PlainCommand
from granary.pipelines.kinds.registry import KINDS, PACK_INSTRUCTIONS, PACK_VIDEOS, load

RECIPES = {  # the recipes that can be written, and where their models are
    **{name: kind.recipe for name, kind in KINDS.items()},
    "train": "granary.training.recipe:TrainRecipe",
    "evaluate": "granary.pipelines.engine.protocols:EvaluateRecipe",
    "compare": "granary.training.evaluation.comparison_recipe:CompareRecipe",
    "partition": "granary.training.evaluation.partition_recipe:PartitionRecipe",
}

SCHEMAS = {  # `granary pack` has other recipes for videos and for instructions
    **RECIPES,
    "pack-videos": PACK_VIDEOS.recipe,
    "pack-instructions": PACK_INSTRUCTIONS.recipe,
}


def _completion(shell: str) -> int:
    source = get_completion_class(shell)
    assert source is not None, shell
    print(source(click.Group(), {}, "granary", VARIABLE).source())
    return 0


completion = PlainCommand(
    "completion",
    _completion,
    "Print the script that lets a shell complete commands, options and their values.",
    [click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
    [
        'eval "$(granary completion bash)"          # in ~/.bashrc',
        'eval "$(granary completion zsh)"           # in ~/.zshrc',
        "granary completion fish > ~/.config/fish/completions/granary.fish",
    ],
)


class RecipeSchema(GenerateJsonSchema):
    """The schema of what may stand in a recipe, with the shorter ways to write that validators spell out.

    A validator sees the value first where a list may be written as its only entry or as a line, a source as its path,
    a factor as its values.
    """

    def function_before_schema(self, schema: BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Return the schema of a field that a validator sees first."""
        inner = super().function_before_schema(schema)
        values = inner.get("additionalProperties")
        if isinstance(values, dict) and values.get("type") == "array":
            return {**inner, "additionalProperties": _or_one_entry(values)}
        return _or_one_entry(inner) if inner.get("type") == "array" else inner

    def tagged_union_schema(self, schema: TaggedUnionSchema) -> JsonSchemaValue:
        """Return the schema of a group that is a union by `kind`, which may be left out: any that fits will do."""
        inner = super().tagged_union_schema(schema)
        return {"anyOf": inner["oneOf"]}

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        """Return the schema of a group; one with a validator of its own may be written as a list or a text too."""
        whole, inner = super().model_schema(schema), schema["schema"]
        validators = set[str]()
        while inner["type"] == "function-before":
            validators.add(inner["function"]["function"].__name__)
            inner = inner["schema"]
        if not validators:
            return whole
        for name, field in whole.get("properties", {}).items():
            if field.get("type") == "array" and "$ref" in field.get("items", {}):
                whole["properties"][name] = _or_one_entry(field)
        if validators <= set(Options.__pydantic_decorators__.model_validators):  # they read fields, not the group
            return whole
        return {"anyOf": [whole, {"type": "array"}, {"type": "string"}, {"type": "number"}]}


def _or_one_entry(array: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a list whose entries, or which itself, may be written as one entry or as text."""
    entry: list[JsonSchemaValue] = [array.get("items", {}), {"type": "string"}]
    described: JsonSchemaValue = {key: array[key] for key in ("title", "description", "default") if key in array}
    return {"anyOf": [{**array, "items": {"anyOf": entry}}, *entry], **described}


def schema_of(model: type[BaseModel]) -> JsonSchemaValue:
    """Return the JSON schema of a recipe, by the names that stand in YAML."""
    schema = model.model_json_schema(by_alias=True, schema_generator=RecipeSchema)
    whole = schema.pop("anyOf", [{}])[0]  # whatever a group may be, a recipe is a mapping
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, **schema}


def _schema(recipe: str) -> int:
    model = cast(type[BaseModel], load(SCHEMAS[recipe]))
    print(json.dumps(schema_of(model), indent=2, ensure_ascii=False))
    return 0


schema = PlainCommand(
    "schema",
    _schema,
    "Print the JSON schema of a recipe, by which an editor completes and checks its YAML: in many editors by a first "
    "line `# yaml-language-server: $schema=FILE`.",
    [click.Argument(["recipe"], type=click.Choice(list(SCHEMAS)))],
    ["granary schema curate > curate.schema.json"],
)
