"""A server that stalls, resets, refuses or garbles now and then: no row pays for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FAULTS, FaultyProxy
from rendering import FACTORS, Result, recipe_of, render
from unreal_stand_in import StandIn

from granary.curation.runs.run import UnitError
from granary.synth.pug.renderer import servers
from granary.synth.pug.renderer.connection import SocketConnection

NINETY_SIX = {**FACTORS, "character_scale": [0.5, 0.75, 1.0, 1.25, 1.5, 2.0]}
EIGHT_CAPTURES = {"settle": {"enabled": True, "discard": 1}, "timeout": 1.0}  # with depth, of every row


@pytest.fixture(params=["package", "socket"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The client of the `unrealcv` package, and ours, through the same faults."""
    if request.param == "socket":
        monkeypatch.setattr(servers, "open_connection", lambda at, timeout, package: SocketConnection(at, timeout))
    return str(request.param)


def through_faults(faults: Sequence[str], captures: int, out: Path, stall: float, **changes: Any) -> Result:
    """Render through a proxy with single faults, spread evenly over so many captures."""
    places = [round((i + 0.5) * captures / len(faults)) for i in range(len(faults))]
    schedule = dict(zip(places, faults, strict=True))
    with StandIn() as server, FaultyProxy(server.port, schedule, stall) as proxy:
        result = render(recipe_of(proxy.address, **changes), out, checkpoint=16)
    assert proxy.happened == list(faults)
    return result


@pytest.mark.parametrize("fault", FAULTS)
def test_a_single_fault_costs_no_row_even_without_further_attempts(fault: str, client: str, tmp_path: Path) -> None:
    retries = int(fault == "garbled")  # a picture that came whole and is none was sent by a healthy server
    options = {"timeout": 0.4, "retries": retries, "backoff": 0.05}
    result = through_faults([fault], 12, tmp_path, stall=1.0, renderer=options)
    result.check()
    assert not result.lost


@pytest.mark.slow
def test_many_faults_in_a_long_render_cost_no_row(tmp_path: Path) -> None:
    options = {**EIGHT_CAPTURES, "timeout": 0.5}
    result = through_faults(FAULTS, 32 * 8, tmp_path, stall=1.2, outputs={"depth": True}, renderer=options)
    result.check()
    assert (len(result.samples), result.lost) == (32, [])


@pytest.mark.slow
@pytest.mark.parametrize("start", range(4))
def test_fourteen_faults_in_768_captures_cost_no_row(start: int, client: str, tmp_path: Path) -> None:
    faults = list(itertools.islice(itertools.cycle(FAULTS), start * 5, start * 5 + 14))
    changes: dict[str, Any] = {"factors": NINETY_SIX, "outputs": {"depth": True}, "renderer": EIGHT_CAPTURES}
    result = through_faults(faults, 96 * 8, tmp_path, stall=4.0, **changes)
    result.check()
    assert (len(result.samples), result.lost) == (96, [])


def test_a_row_that_loses_every_connection_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    class Poisoned(StandIn):
        def lit(self, state: str) -> bytes:
            if '"Dog"' in state and '"Sky"' in state:
                raise EOFError
            return super().lit(state)

    with Poisoned() as server:
        result = render(recipe_of(server, renderer={"retries": 2, "backoff": 0.01}), tmp_path, checkpoint=8)
    result.check()
    assert result.counters == {"Closed": 8}
    assert len(result.samples) == 24


def test_the_run_stops_when_the_patience_ends_and_no_row_is_charged(tmp_path: Path) -> None:
    with StandIn(dies_at=6) as server:
        recipe = recipe_of(server, renderer={"retries": 0, "backoff": 0.05, "patience": 0.6})
        start = time.monotonic()
        with pytest.raises(UnitError, match=r"no server answered for \d+ seconds \(renderer.patience: 0.6\)"):
            render(recipe, tmp_path)
        assert 0.3 < time.monotonic() - start < 20
    with StandIn(port=server.port) as server:
        result = render(recipe, tmp_path)
    result.check()
    assert (len(result.samples), result.lost) == (32, [])
