"""Curate on a Dask scheduler and workers in network namespaces of their own, one of which is cut off in the middle."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pools
import pytest
from dask_cluster import OUTPUTS, RECIPE, Cluster, ended, killed_at_last, start, until

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'granary-data[dask]'")
pytestmark = pytest.mark.slow

BRIDGE = "granary-br"
SPACES = ("granary-s", "granary-a", "granary-b")
HOSTS = tuple(f"10.77.31.{number}" for number in (1, 2, 3))
# How soon a peer that is silent is given up; by default after minutes.
IMPATIENT = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "20s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "20s"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def removed() -> None:
    for words in (*(("netns", "del", space) for space in SPACES), ("link", "del", BRIDGE)):
        with contextlib.suppress(subprocess.CalledProcessError):
            ip(*words)


@pytest.fixture
def network() -> Iterator[None]:
    """Three namespaces on a bridge, on which this one is too. Skips where that is not allowed."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    removed()
    try:
        try:
            ip("link", "add", BRIDGE, "type", "bridge")
            ip("addr", "add", "10.77.31.254/24", "dev", BRIDGE)
            ip("link", "set", BRIDGE, "up")
            for space, host in zip(SPACES, HOSTS, strict=True):
                ip("netns", "add", space)
                ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
                ip("link", "set", space, "master", BRIDGE, "up")
                ip("-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "eth0", "up")
                ip("-n", space, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        yield
    finally:
        removed()


def test_a_worker_whose_link_is_cut_costs_nothing(roles: dict[str, Path], network: None, tmp_path: Path) -> None:
    local = pools.curate(roles, tmp_path / "local", *RECIPE)
    cluster = Cluster(tmp_path / "dask", tuple(zip(HOSTS, SPACES, strict=True)), IMPATIENT)
    try:
        cluster.complete()
        victim, other = cluster.workers
        held, process = cluster.hold("join"), start(roles, tmp_path / "run", cluster)
        with killed_at_last(process):
            until(lambda: cluster.begun("join", victim), "the victim has a unit")
            ip("link", "set", SPACES[1], "down")
            held.unlink()
            ended(process)
        lost = {unit for unit in cluster.done()[victim.pid] if unit.startswith("join")}
        assert lost <= set(cluster.done()[other.pid])  # they were done again
    finally:
        cluster.end()
    there, stages = pools.Run(str(tmp_path / "run")), [row["stage"] for row in local.facts["stages"]]
    assert there.hashes(*OUTPUTS, *stages) == local.hashes(*OUTPUTS, *stages)
