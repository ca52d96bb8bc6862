"""The examples in docstrings run, each as it stands there."""

from __future__ import annotations

import doctest
import importlib

import pytest
from places import ROOT

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("curation", "granary", "pipelines", "synth", "training")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_what_users_call_has_an_example() -> None:
    from granary import threshold_join

    assert MODULES
    assert ">>> " in (threshold_join.__doc__ or "")


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    name = module if module.startswith("granary") else f"granary.{module}"
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0
