"""The fields of a recipe by their dotted names: what `--help`, completion and error messages know of them."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from granary.curation.values import members

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
PLAIN_TYPES: dict[object, str] = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT"}


class RecipeField(NamedTuple):
    """One field of a recipe, nested or not.

    Attributes:
        key: dotted name, for example "dedup.threshold".
        section: description of the group it belongs to; "" for a field of the recipe itself.
        default: as YAML on one line, or "required".
        text: what it means.
        info: pydantic's own view of it.
        kinds: of a group that is a union by `kind`: the kinds that have it; () where all do, or outside of one.
    """

    key: str
    section: str
    default: str
    text: str
    info: FieldInfo
    kinds: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The group of the recipe it stands in, for example "dedup"; "" for a field of the recipe itself."""
        return self.key.partition(".")[0] if "." in self.key or self.section else ""

    @property
    def choices(self) -> list[str]:
        """The values that can be written, where they are few and known."""
        return [value for option in members(self.info.annotation) for value in _choices(option)]

    @property
    def type_name(self) -> str:
        """What can be written: the choices, or INTEGER, NUMBER, TEXT, PATH, LIST, MAPPING."""
        return "|".join(dict.fromkeys(map(_type_name, members(self.info.annotation))))

    @property
    def bounds(self) -> str:
        """The interval of a number, for example ">= 1, < 10"; "" when there is none, or it is that of 64 bits."""
        limits = [(name, getattr(rule, name, None)) for rule in self.info.metadata for name in BOUNDS]
        return ", ".join(f"{BOUNDS[name]} {limit}" for name, limit in limits if limit is not None and limit != 2**63)


def fields(model: type[BaseModel], prefix: str = "", section: str = "") -> Iterator[RecipeField]:
    """Yield every field of a recipe in order; those of a group come with dots, a list of groups after its fields.

    A group that a path alone stands for comes after its fields too.

    The groups of a mapping have names of the user's own: their fields come as `factors.NAME.values`.

    Args:
        model: of the recipe, or of a group in it.
        prefix: what comes before the names, with its dot.
        section: description of the group that the fields belong to.
    """
    for name, info in model.model_fields.items():
        key, text = prefix + (info.alias or name), info.description or ""
        inner = _model_of(info.annotation)
        origin = typing.get_origin(info.annotation)
        if info.discriminator is not None:
            yield from _fields_of_union(info, key, section or text)
            continue
        if inner is not None:
            yield from fields(inner, key + (".NAME." if origin is dict else "."), section or text)
        if inner is None or origin in (list, tuple, dict) or "path" in inner.model_fields:
            default = info.get_default(call_default_factory=True)
            written = "required" if default is PydanticUndefined else _plain(default)
            yield RecipeField(key, section or (text if inner else ""), written, text, info)


def _members(info: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return the groups that a union by `kind` is one of, by kind."""
    models = [member for member in members(info.annotation) if isinstance(member, type)]
    return {str(model.model_fields["kind"].default): model for model in models if issubclass(model, BaseModel)}


def _fields_of_union(info: FieldInfo, key: str, section: str) -> Iterator[RecipeField]:
    """Yield the fields that any kind has, each once: those of the first kind, then those that only others have."""
    kinds, alike = _members(info), dict[str, list[RecipeField]]()
    for kind, model in kinds.items():
        for field in fields(model, f"{key}.", section):
            alike.setdefault(field.key, []).append(field._replace(kinds=(kind,)))
    usual = info.get_default(call_default_factory=True)
    for same in alike.values():
        field = _merged(same)
        if field.key == f"{key}.kind":
            field = field._replace(default=str(getattr(usual, "kind", field.default)))
        yield field._replace(kinds=()) if len(field.kinds) == len(kinds) else field


def _merged(same: Sequence[RecipeField]) -> RecipeField:
    """Return one field for those of the same name in several kinds, with all that can be written and all texts."""
    first, kinds = same[0], tuple(field.kinds[0] for field in same)
    default = " or ".join(dict.fromkeys(field.default for field in same))
    alike = len({field.text for field in same}) == 1
    text = first.text if alike else "; ".join(f"{field.kinds[0]}: {field.text}" for field in same)
    union: typing.Any = typing.Union[tuple(field.info.annotation for field in same)]  # noqa: UP007 of any number
    info = first.info if union == first.info.annotation else FieldInfo(annotation=union)
    return RecipeField(first.key, first.section, default, text, info, kinds)


class _OneLine(yaml.SafeDumper):
    """Writes a value on one line, without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _plain(default: object) -> str:
    """Write a default as YAML on one line."""
    text = yaml.dump(to_jsonable_python(default), Dumper=_OneLine, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def _model_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(_model_of, typing.get_args(annotation))), None)


def _choices(annotation: object) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    return [str(value) for value in typing.get_args(annotation)] if typing.get_origin(annotation) is Literal else []


def _type_name(annotation: object) -> str:
    if choices := _choices(annotation):
        return "|".join(choices)
    if annotation in PLAIN_TYPES:
        return PLAIN_TYPES[annotation]
    model = _model_of(annotation)
    if model is not None and "path" in model.model_fields:
        return "PATH"
    return "MAPPING" if typing.get_origin(annotation) is dict else "LIST"
