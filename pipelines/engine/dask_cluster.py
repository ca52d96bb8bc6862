"""A Dask cluster as an engine: which one is meant, whether it can do the work, and what it says when it cannot.

Beam's DaskRunner computes what the last step of a pipeline depends on, and nothing else. A stage is one chain, so that
is all of it; and a stage that lacks the marker of a unit cannot be closed, so nothing is left out in silence.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from granary.curation.errors import UserError
from granary.curation.runs import summary
from granary.curation.runs.run import Run
from granary.curation.store import storage
from granary.pipelines.engine.profiles import last_value

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"
ADDRESS, FILE, SECONDS = "--dask_client_address", "--dask_scheduler_file", "--dask_connection_timeout"
TIMEOUT = 30  # seconds for the first answer of a scheduler


def is_dask(options: Sequence[str]) -> bool:
    """Say whether Beam's options name its runner for Dask."""
    return (last_value(options, "--runner") or "").rpartition(".")[2] == "DaskRunner"


def check_cluster_options(options: Sequence[str]) -> None:
    """Raise UserError when options for Dask name no scheduler, or two, or when Dask is not installed."""
    if not is_dask(options):
        return
    if importlib.util.find_spec("distributed") is None or importlib.util.find_spec("dask") is None:
        raise UserError("dask is not installed; run: pip install 'granary-data[dask]'")
    if bool(last_value(options, ADDRESS)) == bool(last_value(options, FILE)):
        raise UserError(
            f"runner: Dask takes one of {ADDRESS}=tcp://HOST:8786 and {FILE}=FILE, to say where its scheduler is; "
            "write it after `--`"
        )
    seconds = last_value(options, SECONDS)
    if seconds is not None and not seconds.isdecimal():
        raise UserError(f"beam: {SECONDS}={seconds} is not right: give whole seconds")


def check_cluster(options: Sequence[str], run: Run) -> str | None:
    """Ask a scheduler and its workers whether they can do the units of a run.

    Args:
        options: Beam's, which name the Dask runner.
        run: whose recipe.yaml is written.

    Returns:
        What the user should know; None for nothing.

    Raises:
        UserError: no scheduler answers, or a worker has other packages or does not see the run directory.
    """
    address, file = last_value(options, ADDRESS), last_value(options, FILE)
    from distributed import Client

    seconds = int(last_value(options, SECONDS) or TIMEOUT)
    try:
        client = Client(address or _address_in(str(file)), timeout=seconds, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"runner: no Dask scheduler answers at {address or file} ({_line(error)}); start one with `dask "
            f"scheduler`, or correct {ADDRESS if address else FILE}"
        ) from None
    with client:
        answers = client.run(_see, run.path("recipe.yaml"), on_error="return")
    ours = summary.versions()
    for worker, answer in answers.items():
        _check_worker(worker, answer, run, ours)
    return None if answers else f"the Dask scheduler at {address or file} has no worker yet; work begins with the first"


def _see(path: str) -> tuple[bool, Mapping[str, str]]:
    """Return whether this worker sees a file, and the versions of its packages."""
    return storage.exists(path), summary.versions()


def _check_worker(worker: str, answer: Any, run: Run, ours: Mapping[str, str]) -> None:
    if isinstance(answer, BaseException):
        raise UserError(
            f"runner: the Dask worker {worker} cannot load granary ({_line(answer)}); start it in the environment of "
            "this command"
        )
    sees, theirs = answer
    for package in sorted(ours.keys() & theirs.keys()):  # what an extra brings, a worker may do without
        parts = 2 if package == "python" else None
        if ours[package].split(".")[:parts] != theirs[package].split(".")[:parts]:
            raise UserError(
                f"runner: the Dask worker {worker} has {package} {theirs[package]} and this command {ours[package]}; "
                "give both the same environment"
            )
    if not sees:
        raise UserError(
            f"out: the Dask worker {worker} does not see {run.url}; give a folder that all its machines share, or an "
            "address such as s3://"
        )


def _address_in(file: str) -> str:
    """Return the address in a file of `dask scheduler --scheduler-file`; ValueError, OSError where there is none."""
    written = json.loads(storage.read_bytes(file))
    if not isinstance(written, dict) or not isinstance(written.get("address"), str):
        raise ValueError("the file holds no address")
    return str(written["address"])


def close(result: PipelineResult | None) -> None:
    """Close the connection that Beam opened for a pipeline and leaves open; other runners have none."""
    client = getattr(result, "client", None)
    if client is not None:
        client.close()


def cause_of(error: BaseException) -> str | None:
    """Return in one line why Dask itself gave up; None where the error is another."""
    kind = type(error).__name__  # by name: without Dask there are no such errors
    if kind == "KilledWorker":
        _, worker, failures = error.args
        return f"{kind}: {failures + 1} workers of Dask died of one unit, the last {getattr(worker, 'address', worker)}"
    if kind in ("CancelledError", "FutureCancelledError", "FuturesCancelledError"):
        return f"{kind}: the Dask scheduler ended, or the work was cancelled there"
    return None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
