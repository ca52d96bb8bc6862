"""The benchmark of LongVU's reductions compares what gives the same tokens."""

from __future__ import annotations

import pytest

from tests.benchmarks import compression


def test_reductions_give_the_tokens_of_their_loops(capsys: pytest.CaptureFixture[str]) -> None:
    compression.compare(10, 1)
    assert capsys.readouterr().out.count("times as fast") == 3
