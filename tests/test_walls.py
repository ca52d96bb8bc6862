"""The walls of the house, drawn from the imports: they point down, go round in no circle, and Beam stays upstairs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

FLOORS = ("curation", "training", "synth", "pipelines")  # from the ground up; a floor imports what is below it
LOOSE = {"curation": 6, "training": 5, "pipelines": 3}  # files beside the rooms, at most


def modules() -> dict[str, Path]:
    """Return the file of every module of the four folders, by its dotted name below granary."""
    names = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imports(source: str) -> Iterator[str]:
    """Yield the dotted name of everything a module imports, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(source: str) -> set[str]:
    """Return the modules of granary that a module imports."""
    inside = [name.removeprefix("granary.") for name in imports(source) if name.startswith("granary.")]
    return {name if name in MODULES else name.rpartition(".")[0] for name in inside}


def named(source: str) -> set[str]:
    """Return the modules of granary whose names a module has as strings, alone or as `module:name`."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    names = {text.partition(":")[0] for text in texts if isinstance(text, str)}
    return {name for name in MODULES if f"granary.{name}" in names}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the circles of a graph: its strongly connected components of two nodes or more (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1 or node in graph.get(node, ()):
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_the_check_sees_a_circle_that_hides_in_a_function_or_behind_type_checking() -> None:
    hidden = (
        "def f():\n    from granary.curation.runs import run\nif TYPE_CHECKING:\n    import granary.curation.errors\n"
    )
    assert arrows(hidden) == {"curation.runs.run", "curation.errors"}
    assert named('X = {"a": "granary.curation.errors", "b": "granary.curation.runs.run:f"}') == {
        "curation.errors",
        "curation.runs.run",
    }
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"d"}}) == [["a", "b", "c"]]


def test_no_imports_go_round_in_a_circle() -> None:
    assert circles({name: arrows(path.read_text()) for name, path in MODULES.items()}) == []


def test_imports_point_down() -> None:
    """Names of modules in strings, which are imported when asked for, are arrows too."""
    up = [
        f"{name} -> {other}"
        for name, path in MODULES.items()
        for other in sorted(arrows(path.read_text()) | named(path.read_text()))
        if FLOORS.index(other.split(".")[0]) > FLOORS.index(name.split(".")[0])
    ]
    assert up == []


def test_beam_is_imported_in_pipelines_alone() -> None:
    users = {
        name for name, path in MODULES.items() if any(n.startswith("apache_beam") for n in imports(path.read_text()))
    }
    assert users
    assert {name.split(".")[0] for name in users} == {"pipelines"}


@pytest.mark.parametrize("floor", LOOSE)
def test_few_files_lie_loose(floor: str) -> None:
    loose = [path.name for path in (ROOT / floor).glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE[floor], loose


def test_every_file_has_its_tests_beside_it_in_the_mirror() -> None:
    rooms = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert [str(room) for room in sorted(rooms) if room != Path() and not (ROOT / room).is_dir()] == []


def test_test_files_have_names_of_their_own() -> None:
    """Pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()
