"""Processes beside this one, for steps that spend their time in the interpreter, where threads would take turns.

They are started once and serve every stage; they import what the steps need, which is neither Beam nor torch. A script
that runs such a pipeline needs the usual `if __name__ == "__main__":`, since a process begins by importing it.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

from granary.curation.runs.run import J, Run, Stage, Unit, run_unit
from granary.curation.store.threads import limit_blas

_lock = threading.Lock()
_pools: dict[int, concurrent.futures.ProcessPoolExecutor] = {}


def run_in_child(workers: int, run: Run, stage: Stage[J], unit: Unit[J]) -> None:
    """Run a unit in one of `workers` processes, or here when one of them was killed; raises what the unit raised."""
    with _lock:
        if workers not in _pools:
            context = multiprocessing.get_context("spawn")  # a fork would copy the locks that Beam's threads hold
            _pools[workers] = concurrent.futures.ProcessPoolExecutor(workers, context, _begin)
        pool = _pools[workers]
    try:
        pool.submit(run_unit, run, stage, unit).result()
    except BrokenProcessPool:  # out of memory, perhaps: one at a time, and a new pool for what comes next
        with _lock:
            if _pools.get(workers) is pool:
                del _pools[workers]
            run_unit(run, stage, unit)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    limit_blas(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent says nothing, and its children would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
