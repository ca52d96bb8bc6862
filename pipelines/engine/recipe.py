"""Read a recipe: YAML, then command-line overrides, then one validation that speaks in sentences."""

from __future__ import annotations

import difflib
import importlib.resources
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.trees import yaml_tree
from granary.pipelines.engine.fields import RecipeField, fields

M = TypeVar("M", bound=BaseModel)
MOST_SHOWN = 200  # characters of a wrong value in a message


def shipped(name: str) -> str:
    """Return the path of a recipe that comes with granary, for example `curate/folder.yaml`.

    Args:
        name: path inside `configs/`, which travels in the package.
    """
    path = pathlib.Path(str(importlib.resources.files("granary") / "configs" / name))
    if not path.is_file():
        raise UserError(f"config: granary ships no recipe named {name!r}")
    return str(path)


def load_recipe(model: type[M], config: str | None, overrides: Sequence[str]) -> M:
    """Read and validate a recipe.

    Args:
        model: the recipe's pydantic model.
        config: path or URL of a YAML file; None takes the defaults. A name under granary's own `configs/` works too.
        overrides: `--any.field value` or `--any.field=value` words; a field named twice becomes a list.

    Raises:
        UserError: naming the key, the value and what would be right.
    """
    return validated(model, read_tree(config, overrides))


def validated(model: type[M], tree: Mapping[str, Any]) -> M:
    """Return the recipe that a tree of values makes; raises UserError as `load_recipe` does."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(dict.fromkeys(_sentences(model, error)))) from None


def read_tree(config: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a recipe as it was written, with the overrides set, before any of it is checked."""
    return merged(config, dict(parse_overrides(overrides)))


def merged(config: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe as it was written, with values set by their dotted names."""
    tree = _read_yaml(config) if config else {}
    for key, value in sorted(values.items(), key=lambda pair: pair[0].count(".")):
        _set(tree, key.split("."), value, key)
    return tree


def _read_yaml(config: str) -> dict[str, Any]:
    if not storage.exists(config):
        name = config.removeprefix("configs/")
        try:
            config = shipped(name)
        except UserError:
            raise UserError(f"config: there is no file {config!r}; give the path of a recipe (.yaml)") from None
    try:
        tree = yaml_tree(storage.read_bytes(config).decode())
    except OSError as error:
        raise UserError(f"config: cannot read {config}: {error.strerror or error}; give a recipe (.yaml)") from None
    except ValueError as error:
        raise UserError(f"config: {config} is not YAML of a recipe: {error}") from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"config: {config} holds a {type(tree).__name__}; a recipe is a mapping of keys to values")
    return tree or {}


def parse_overrides(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Split `--a.b value` words into keys and values; a value given several times comes as a list."""
    overrides: dict[str, list[Any]] = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--") or len(word) == 2:
            raise UserError(
                f"command line: {word!r} stands where an option was expected, such as --dedup.threshold 0.9"
            )
        key, equals, value = word[2:].partition("=")
        position += 1
        if not equals:
            if position == len(words) or words[position].startswith("--"):
                raise UserError(f"command line: --{key} needs a value")
            value, position = words[position], position + 1
        overrides.setdefault(key.replace("-", "_"), []).append(_value(key, value))
    return iter((key, values if len(values) > 1 else values[0]) for key, values in overrides.items())


def _value(key: str, text: str) -> Any:
    if text.lower() in ("null", "none"):
        return None
    if text[:1] in "[{":
        try:
            return yaml_tree(text)
        except ValueError as error:
            raise UserError(f"{key}: {shortened(text)} is not a YAML list or mapping: {error}") from None
    return text


def _set(tree: Any, path: list[str], value: Any, key: str) -> None:
    """Set a field; a field of a list of sources is set on each; a path written for a source gets its fields."""
    name, rest = path[0], path[1:]
    if not isinstance(tree, dict):
        raise UserError(f"{key}: it would be set in {tree!r}, which has no fields")
    if not rest:
        tree[name] = value
        return
    below = tree.get(name)
    if isinstance(below, str):
        below = tree[name] = {"path": below}
    if isinstance(below, list):
        below = tree[name] = [{"path": entry} if isinstance(entry, str) else entry for entry in below]
        for entry in below:
            _set(entry, rest, value, key)
        return
    if below is None:
        below = tree[name] = {}
    _set(below, rest, value, key)


def _sentences(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    known = list(fields(model))
    for problem in error.errors():
        words, kind = _place(known, [str(word) for word in problem["loc"] if not isinstance(word, int)])
        key = ".".join(words) or "recipe"
        if problem["type"] == "extra_forbidden":
            there = [field.key for field in known if kind in field.kinds or not (kind and field.kinds)]
            yield f"{key}: there is no such key{_of_kind(known, key, kind)}; {_hint(there, words)}"
        elif problem["type"] == "union_tag_invalid":
            yield f"{key}.kind: {problem['ctx']['tag']!r} is not right: the kinds are {problem['ctx']['expected_tags']}"
        elif problem["type"] in ("list_type", "tuple_type"):
            yield f"{key}: {shortened(problem['input'])} is not right: it takes a list; write it as [..., ...]"
        elif problem["type"] == "missing":
            yield f"{key}: missing; give --{key} or write it in the recipe"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            shown = "" if problem["loc"] == () else f" {shortened(problem['input'])} is not right:"
            yield f"{key}:{shown} {text[0].lower() + text[1:]}"


def _place(known: Sequence[RecipeField], words: list[str]) -> tuple[list[str], str]:
    """Return a place without the kinds that pydantic writes into it, and the last of those; "" for none."""
    choices = {field.key: field.choices for field in known if field.key.endswith(".kind")}
    place, kind = list[str](), ""
    for word in words:
        if word in choices.get(".".join([*place, "kind"]), ()):
            kind = word
        else:
            place.append(word)
    return place, kind


def _of_kind(known: Sequence[RecipeField], key: str, kind: str) -> str:
    """Say of which kind a key is no key, and of which it is one; "" outside of a union by kind."""
    others = [other for field in known if field.key == key for other in field.kinds]
    return f" in kind {kind}" + (f", only in {' and '.join(others)}" if others else "") if kind else ""


def shortened(value: object) -> str:
    """Return a value as it is written in a sentence: of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text):,} characters)"


def _hint(known: list[str], words: list[str]) -> str:
    """Name the key that was meant: one of the same group, or for a key without a group any."""
    siblings = {key.rpartition(".")[2]: key for key in _siblings(known, words)}
    close = [siblings[name] for name in difflib.get_close_matches(words[-1], siblings, 1, 0.6)]
    if len(words) == 1:
        close += difflib.get_close_matches(words[0], known, 1, 0.6)
    return f"did you mean {close[0]}?" if close else f"the keys are {', '.join(siblings.values())}"


def _siblings(known: list[str], words: list[str]) -> list[str]:
    prefix = ".".join([*words[:-1], ""]) if len(words) > 1 else ""
    return sorted({prefix + key[len(prefix) :].split(".")[0] for key in known if key.startswith(prefix)})


def dump_recipe(recipe: BaseModel) -> str:
    """Return the recipe as YAML with every default filled in."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
