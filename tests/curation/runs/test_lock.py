"""The lock of a run directory: one wins, the dead lose it, and nobody else's is touched."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import pytest

from granary.curation.errors import UserError
from granary.curation.runs.lock import LOCK, Holder, Lock, begun_of
from granary.curation.store import storage


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def held_by(process: int, out: str, **changed: str) -> Lock:
    """Return the lock of a directory that a process of this machine holds, or one that differs in something."""
    lock = Lock(out)
    begun = begun_of(process)
    lock.holder = dataclasses.replace(lock.holder, **{"process": process, "begun": begun, **changed})
    lock.acquire()
    return lock


@pytest.fixture(params=["disk", "memory"])
def out(request, tmp_path) -> str:
    return str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run"


def test_a_lock_is_held_until_it_is_released(out):
    first, second = Lock(out), Lock(out)
    first.acquire()
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* since .*--steal-lock"):
        second.acquire()
    second.release()  # of somebody else's lock nothing is removed
    assert storage.names(out) == [LOCK]
    first.release()
    assert storage.names(out) == []
    second.acquire()


def test_the_lock_of_a_process_that_runs_is_respected(other, out):
    held_by(other.pid, out)
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        Lock(out).acquire()
    os.kill(other.pid, signal.SIGSTOP)  # one that sleeps is not dead
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        Lock(out).acquire()


@pytest.mark.parametrize("stage", ["ended", "another with its id"])
def test_the_lock_of_a_dead_process_is_taken_over(other, out, stage):
    held_by(other.pid, out, **({"begun": "earlier"} if stage != "ended" else {}))
    if stage == "ended":
        other.kill()
        other.wait()
    mine = Lock(out)
    mine.acquire()
    assert Holder.parse(storage.read_bytes(mine.url)) == mine.holder


@pytest.mark.parametrize("changed", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_of_another_machine_nothing_is_known_and_the_lock_can_be_stolen(other, out, changed):
    theirs = held_by(other.pid, out, **{"begun": "earlier", **changed})
    mine = Lock(out)
    with pytest.raises(UserError, match="--steal-lock"):
        mine.acquire()
    mine.acquire(steal=True)
    theirs.release()
    assert Holder.parse(storage.read_bytes(mine.url)) == mine.holder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "a"}', b"\xff"])
def test_a_lock_that_says_nothing_is_respected(out, content):
    storage.create(storage.join(out, LOCK), content)
    with pytest.raises(UserError, match="another process"):
        Lock(out).acquire()
    Lock(out).acquire(steal=True)


def test_of_many_threads_one_wins(out):
    gate = threading.Barrier(8)

    def attempt(_: int) -> bool:
        gate.wait()
        try:
            Lock(out).acquire()
        except UserError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def race(out: str, gate: Barrier, answers: SimpleQueue[bool]) -> None:
    gate.wait()
    try:
        Lock(out).acquire()
    except UserError:
        answers.put(False)
        return
    answers.put(True)
    gate.wait()  # the winner stays alive until all have tried


def test_of_many_processes_one_takes_over_what_a_dead_one_left(tmp_path):
    out, context, count = str(tmp_path / "run"), multiprocessing.get_context("spawn"), 6
    gate, answers = context.Barrier(count), context.SimpleQueue()
    stale = Lock(out)
    stale.holder = dataclasses.replace(stale.holder, begun="earlier")
    stale.acquire()
    racers = [context.Process(target=race, args=(out, gate, answers)) for _ in range(count)]
    for racer in racers:
        racer.start()
    assert sorted(answers.get() for _ in racers) == [False] * (count - 1) + [True]
    for racer in racers:
        racer.kill()
        racer.join()
