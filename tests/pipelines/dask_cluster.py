"""A Dask scheduler with two workers that note what they do, and the curate command on them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pools
from places import CONFIGS, ROOT

from granary.curation.ports import free_port

PROFILE = str(CONFIGS / "runners" / "dask.yaml")
OUTPUTS = ("dataset", "ledger", "dead-letter")
RECIPE = (*pools.SMALL_UNITS, *pools.THRESHOLDS)
LIMIT = 480  # seconds, for whatever a test waits for
# What a worker loads before it begins: it notes each unit with its process, and waits in it where a file says so.
NOTES = """
import os, pathlib, time
from granary.pipelines.engine import here, transforms

folder = pathlib.Path(os.environ["GRANARY_TEST_NOTES"])

def noting(run, stage, unit, *combined, inner=transforms.run_unit):
    with open(folder / str(os.getpid()), "a") as notes:
        notes.write(f"{stage.name} {unit.index}\\n")
    deadline = time.monotonic() + 240
    while (folder / "hold" / stage.name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    inner(run, stage, unit, *combined)

if transforms.run_unit.__name__ != "noting":  # a preload is loaded twice
    transforms.run_unit = here.run_unit = noting
"""


class Cluster:
    """A scheduler and its workers, each the leader of a process group.

    Args:
        folder: for their logs and notes.
        places: address and network namespace of the scheduler and of each worker; no name is this namespace.
        settings: environment variables.
    """

    def __init__(
        self,
        folder: Path,
        places: Sequence[tuple[str, str]] = (("127.0.0.1", ""),) * 3,
        settings: Mapping[str, str] = {},
    ) -> None:
        self.folder, self.port, self.places, self.settings = folder, free_port(), places, settings
        self.address = f"tcp://{places[0][0]}:{self.port}"
        self.notes = folder / "notes"
        (self.notes / "hold").mkdir(parents=True)
        (folder / "noting.py").write_text(NOTES)
        self.file = folder / "scheduler.json"
        words = ("--port", str(self.port), "--scheduler-file", str(self.file), "--idle-timeout", "20 minutes")
        self.scheduler = self.start("scheduler", 0, *words)
        self.workers: list[subprocess.Popen] = []

    def start(self, kind: str, place: int, *words: str) -> subprocess.Popen:
        host, namespace = self.places[place]
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        call = [*inside, sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", host, "--no-dashboard", *words]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            call,
            cwd=self.folder,
            env={
                **os.environ,
                **self.settings,
                "GRANARY_TEST_NOTES": str(self.notes),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": paths,
            },
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / f"{kind}.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def complete(self) -> None:
        """Have two workers at work, no notes, and no hold on any stage."""
        for left in [path for path in self.notes.rglob("*") if path.is_file()]:
            left.unlink()
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        options = ("--nthreads", "1", "--no-nanny", "--death-timeout", "60", "--local-directory", str(self.folder))
        while len(self.workers) < 2:
            place, preload = len(self.workers) + 1, ("--preload", str(self.folder / "noting.py"))
            self.workers.append(self.start("worker", place, self.address, *options, *preload))
        from distributed import Client

        with Client(self.address, timeout=LIMIT, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=LIMIT)

    def hold(self, stage: str) -> Path:
        """Let units of a stage wait while the file that is returned stands."""
        path = self.notes / "hold" / stage
        path.touch()
        return path

    def done(self) -> dict[int, list[str]]:
        """Return the units that each process of this cluster has begun."""
        files = [path for path in self.notes.iterdir() if path.is_file()]
        return {int(path.name): path.read_text().splitlines() for path in files}

    def begun(self, stage: str, worker: subprocess.Popen | None = None) -> bool:
        """Say whether a worker, any where none is given, has begun a unit of a stage: they come in no order."""
        done = self.done()
        processes = list(done) if worker is None else [worker.pid]
        return any(unit.startswith(f"{stage} ") for process in processes for unit in done.get(process, []))

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)

    @property
    def words(self) -> list[str]:
        return ["--runner", PROFILE, "--", f"--dask_client_address={self.address}"]


def until(true, what: str) -> None:
    deadline = time.monotonic() + LIMIT / 2
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def ended(process: subprocess.Popen) -> str:
    """Wait for a command that ends well, without a traceback; returns what it said."""
    error = str(process.communicate(timeout=LIMIT)[1].decode())
    assert process.returncode == 0, error
    assert "Traceback" not in error
    return error


@contextlib.contextmanager
def killed_at_last(process: subprocess.Popen) -> Iterator[None]:
    """Leave nothing of a command's process group behind."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def start(roles, out: Path, cluster: Cluster) -> subprocess.Popen:
    """Start the command as a process group of its own."""
    main = "import sys; from granary.pipelines.command import main; sys.exit(main())"
    words = ["curate", *pools.sources(roles), "--out", str(out), *RECIPE, *cluster.words]
    return subprocess.Popen(
        [sys.executable, "-c", main, *words],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
