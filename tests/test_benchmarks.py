"""The benchmarks that compare steps still know the models they measure: one round of each."""

from __future__ import annotations

import importlib

import pytest

from tests.benchmarks import dinov2, ijepa
from tests.benchmarks.__main__ import MODULES


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_is_there(module: str) -> None:
    assert importlib.util.find_spec(f"tests.benchmarks.{module}")


def test_a_step_of_ijepa_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    ijepa.compare("tiny, 8 x 8 patches", 1)
    assert "losses agree" in capsys.readouterr().out


def test_the_losses_of_dinov2_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    dinov2.compare("tiny, K 2,048, batch 64", 1, {"reference": dinov2.reference})
    assert "granary is" in capsys.readouterr().out
