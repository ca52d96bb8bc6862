"""A port that is offered is one that nobody has and that the system gives to no outgoing connection."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence

import pytest

from granary.curation import ports


def test_a_port_is_of_the_range_that_connections_never_take() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.free_port()))
        assert listener.getsockname()[1] in ports.OFFERED


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = ports.free_port(), ports.free_port()
    picks = iter([taken, taken, free])

    def pick(offered: Sequence[int]) -> int:
        return next(picks)

    monkeypatch.setattr(secrets, "choice", pick)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        assert ports.free_port() == free


def test_where_all_are_taken_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(ports, "OFFERED", [listener.getsockname()[1]])
        with pytest.raises(OSError, match="none of 100 ports"):
            ports.free_port()
