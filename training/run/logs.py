"""What a run writes down: its curves as CSV, TensorBoard events, optionally Weights & Biases; a progress bar."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from granary.curation.errors import UserError, needs
from granary.curation.runs.notebook import CellBar
from granary.curation.store import storage
from granary.training.recipe import TrainRecipe

if TYPE_CHECKING:  # in an extra
    from torch.utils.tensorboard import SummaryWriter

CURVES = ("metrics", "probe", "validation")
PAUSE = 30.0  # seconds between lines where there is no terminal


class Curve:
    """A CSV file of numbers by step, with every digit; going on after a step drops what was written later.

    Args:
        url: of the file.
        step: rows of later steps are dropped; all of them when it is 0.
    """

    def __init__(self, url: str, step: int) -> None:
        self.url, self.local = url, storage.is_local(url)
        self.rows: list[dict[str, str | float]] = []
        if storage.exists(url):
            rows = csv.DictReader(io.StringIO(storage.read_bytes(url).decode()))
            self.rows = [row for row in rows if step and (row["step"] or "").isdecimal() and int(row["step"]) <= step]
        if self.rows or storage.exists(url):
            self.flush()

    def add(self, row: Mapping[str, float]) -> None:
        """Add a row; a column that was not there before rewrites the file."""
        fits = bool(self.rows) and set(row) <= set(self.rows[0])
        self.rows.append(dict(row))
        if self.local and fits:
            with open(self.url.removeprefix("file://"), "a", newline="") as file:
                csv.DictWriter(file, list(self.rows[0])).writerow(row)
        elif self.local or len(self.rows) == 1:
            self.flush()

    def flush(self) -> None:
        """Write the whole file."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        storage.write_bytes(self.url, text.getvalue().encode())


class Remote(Protocol):
    """A run of Weights & Biases."""

    def log(self, data: dict[str, float], step: int) -> object:
        """Send numbers of a step."""

    def finish(self) -> object:
        """End the run."""


class LogWriter:
    """The logs of a run, on its first process.

    Args:
        recipe: of the run.
        step: the last step that was done before this session.
        active: whether this process writes.
    """

    def __init__(self, recipe: TrainRecipe, step: int, active: bool) -> None:
        self.active = active
        self.curves: dict[str, Curve] = {}
        self.board: SummaryWriter | None = None
        self.remote: Remote | None = None
        if active:
            self.curves = {name: Curve(storage.join(recipe.out, f"{name}.csv"), step) for name in CURVES}
            if recipe.logs.tensorboard and storage.is_local(recipe.out):
                with needs("train"):
                    from torch.utils.tensorboard import SummaryWriter
                self.board = SummaryWriter(storage.join(recipe.out, "tensorboard"), purge_step=step + 1)
            if recipe.logs.wandb:
                self.remote = _wandb(recipe)

    def add(self, curve: str, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step to a curve."""
        if not self.active:
            return
        self.curves[curve].add({"step": step, **values})
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{curve}/{name}", value, step)
        if self.remote is not None:
            self.remote.log({f"{curve}/{name}": value for name, value in values.items()}, step=step)

    def flush(self) -> None:
        """Write everything out."""
        for curve in self.curves.values():
            if not curve.local and curve.rows:
                curve.flush()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        """Write everything out and end."""
        self.flush()
        if self.board is not None:
            self.board.close()
        if self.remote is not None:
            self.remote.finish()


def _wandb(recipe: TrainRecipe) -> Remote:
    try:
        import wandb
    except ImportError:
        raise UserError("logs.wandb: the package wandb is missing; install it (pip install wandb)") from None
    remote: Remote = wandb.init(
        project=recipe.logs.wandb, name=recipe.name, config=recipe.model_dump(mode="json"), id=None
    )
    return remote


class Bar:
    """Progress: a bar on a terminal or in a notebook, a line every half minute elsewhere. A context manager."""

    def __init__(self, console: Console | None, start: int, steps: int, batch: int) -> None:
        self.console, self.start, self.steps, self.batch = console, start, steps, batch
        self.began = self.last = time.monotonic()
        self.bar: Progress | None = None
        self.cell = CellBar("train", steps) if console is not None and console.is_jupyter else None
        if console is not None and console.is_terminal:
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self.bar = Progress(*columns, TimeRemainingColumn(compact=True), console=console)
            self.task = self.bar.add_task("train", total=steps, completed=start, status="")

    @property
    def seconds(self) -> float:
        """The seconds of this session."""
        return max(1e-9, time.monotonic() - self.began)

    def rate(self, step: int) -> float:
        """Return the pictures per second of this session."""
        return (step - self.start) * self.batch / self.seconds

    def show(self, step: int, loss: float) -> None:
        """Tell that `step` steps are done."""
        status = f"loss {loss:.4f}, {self.rate(step):,.0f} pictures/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, status=status)
        elif self.cell is not None:
            self.cell.show(step, status)
        elif self.console is not None and time.monotonic() - self.last > PAUSE:
            self.last = time.monotonic()
            left = (self.steps - step) * (self.last - self.began) / max(1, step - self.start)
            self.console.print(f"train {step:,}/{self.steps:,} steps, {status}, {left:,.0f} s left", soft_wrap=True)

    def __enter__(self) -> Bar:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
