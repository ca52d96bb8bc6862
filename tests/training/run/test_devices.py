"""Processes of one training meet at a port of their own, and nothing of it is left for the next one."""

from __future__ import annotations

import os

import pytest
from lightning_fabric.plugins.environments import LightningEnvironment

from granary.curation.ports import OFFERED
from granary.training.run.devices import meeting_port

NAMES = ("MASTER_PORT", "STANDALONE_PORT")


def test_a_port_is_chosen_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with meeting_port():
        assert LightningEnvironment().main_port in OFFERED
        os.environ["MASTER_PORT"] = "29500"  # as Fabric does when it starts processes
    assert not set(NAMES) & set(os.environ)


def test_a_port_that_is_given_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29511")
    with meeting_port():
        assert LightningEnvironment().main_port == 29511
    assert os.environ["MASTER_PORT"] == "29511"
