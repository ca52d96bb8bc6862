"""YAML and JSON as plain trees, or one line that says why a text is none: no file's content ends in a traceback."""

from __future__ import annotations

import json

import yaml

from granary.curation.store import yaml_nodes

# What building a value raises that the grammar lets pass: a date of month 99, a number of 5,000 digits, `!!bool maybe`.
BUILDING = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


def yaml_tree(text: bytes | str) -> object:
    """Return what a YAML text holds; raises ValueError with one line that says why it cannot be read."""
    try:
        return yaml_nodes.load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(one_line(error)) from None
    except BUILDING as error:
        raise ValueError(f"one of its values cannot be read: {one_line(error)}") from None


def mapping(name: str, text: bytes | str) -> dict[str, object]:
    """Return the mapping that a file holds, JSON or YAML by the ending of its name.

    Raises:
        ValueError: it cannot be read, or it holds something else; one line that says why.
    """
    tree = json_tree(text) if name.endswith(".json") else yaml_tree(text)
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__} where a mapping of keys to values is expected")
    return tree


def json_tree(text: bytes | str) -> object:
    """Return what a JSON text holds; raises ValueError with one line that says why it cannot be read."""
    try:
        tree: object = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(one_line(error)) from None
    return tree


def one_line(error: BaseException) -> str:
    """Return what an error says in one line, its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
