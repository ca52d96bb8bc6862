"""A missing extra is one sentence."""

from __future__ import annotations

import sys

import pytest

from granary.curation.errors import UserError, needs


def test_a_missing_package_is_one_sentence_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    with (
        pytest.raises(UserError, match=r"^kornia is not installed; run: pip install 'granary-data\[train\]'$"),
        needs("train"),
    ):
        import kornia.augmentation  # noqa: F401


def test_a_module_of_granary_that_is_missing_is_a_fault_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError), needs("train"):
        import granary.training.nothing  # type: ignore[import-not-found]  # noqa: F401


def test_what_else_goes_wrong_passes() -> None:
    with pytest.raises(ValueError, match="other"), needs("train"):
        raise ValueError("other")
