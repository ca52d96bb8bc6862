"""Docstrings have one form: the sections of Google's style, each once, and nothing left over between them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from places import ROOT

FOLDERS = ("curation", "pipelines", "synth", "training")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$", re.MULTILINE)
ORDER = ("Args", "Attributes", "Returns", "Yields", "Raises")
INLINE = re.compile(r"[.;] [a-z_]+(, [a-z_]+)?: ")  # an argument told of in the first line


def docstrings(text: str) -> Iterator[str]:
    """Yield the docstrings of a module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def faults(text: str) -> Iterator[str]:
    """Yield what is wrong with a docstring."""
    sections = SECTION.findall(text)
    if len(set(sections)) < len(sections):
        yield f"a section twice: {text}"
    if sections != sorted(sections, key=ORDER.index):
        yield f"sections out of order: {text}"
    if any(line.strip() == "." for line in text.splitlines()):
        yield f"a full stop alone: {text}"
    if "\n" not in text and INLINE.search(text):
        yield f"arguments in the first line: {text}"


def test_docstrings_have_one_form() -> None:
    wrong = {str(path.relative_to(ROOT)): list(told) for path in FILES if (told := _told(path.read_text()))}
    assert not wrong


def _told(text: str) -> list[str]:
    return [fault for docstring in docstrings(text) for fault in faults(docstring)]


@pytest.mark.parametrize(
    "text",
    [
        "Do it.\n\nArgs:\n    a: one.\n\nArgs:\n    b: two.\n",
        "Do it.\n\nRaises:\n    ValueError: no.\n\nArgs:\n    a: one.\n",
        "Do it.\n\nArgs:\n    a: one.\n.\n",
        "Do it. a: one.",
        "Do it; a, b: two.",
    ],
)
def test_what_is_wrong_is_seen(text: str) -> None:
    assert list(faults(text))
