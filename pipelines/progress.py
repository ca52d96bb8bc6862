"""Progress of a stage: a bar with rate and time left on a terminal, plain lines in a log.

Progress is read from the `.done` markers in the run directory, so it is right on every Beam runner.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from curation import storage
from curation.parts import Run, Stage, Unit


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['noun']}/s" if speed else "", style="dim")


class Progress:
    """Shows stages as they run.

    Args:
        console: where to write; a terminal gets a bar, anything else a line at the end of each stage and every 30 s.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, markup=False)

    @contextlib.contextmanager
    def stage(self, run: Run, stage: Stage, missing: Sequence[Unit]) -> Iterator[None]:
        """Show a stage while the block runs."""
        done, stop = len(stage.units) - len(missing), threading.Event()
        total = sum(unit.weight for unit in missing)
        resumed = f" ({done} of {len(stage.units)} units were done)" if done and missing else ""
        show = self._bar if self.console.is_terminal else self._lines
        weights = {stage.stem(unit) + ".done": unit.weight for unit in missing}
        began = time.time() - 1
        watcher = threading.Thread(target=show, args=(run, stage, weights, total, resumed, began, stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()

    def _bar(
        self,
        run: Run,
        stage: Stage,
        weights: dict[str, int],
        total: int,
        resumed: str,
        began: float,
        stop: threading.Event,
    ) -> None:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Bar(*columns, console=self.console) as bar:
            task = bar.add_task(stage.name + resumed, total=total, noun=stage.noun)
            while not stop.wait(0.3 if storage.is_local(run.url) else 10):
                bar.update(task, completed=_completed(run, stage, weights, began))
            bar.update(task, completed=_completed(run, stage, weights, began))

    def _lines(
        self,
        run: Run,
        stage: Stage,
        weights: dict[str, int],
        total: int,
        resumed: str,
        began: float,
        stop: threading.Event,
    ) -> None:
        started, ended = time.monotonic(), False
        while not ended:
            ended = stop.wait(30)
            completed, seconds = _completed(run, stage, weights, began), time.monotonic() - started
            rate = completed / seconds if seconds > 0 else 0.0
            left = "" if ended or not rate else f", {(total - completed) / rate:,.0f} s left"
            rate_text = f"{rate:,.0f} {stage.noun}/s" if rate >= 10 else f"{rate:.2f} {stage.noun}/s"
            self.console.print(
                f"{stage.name:<12} {completed:,}/{total:,} {stage.noun}, {seconds:.1f} s, {rate_text}{left}{resumed}",
                soft_wrap=True,
            )


def _completed(run: Run, stage: Stage, weights: dict[str, int], began: float) -> int:
    fs, path = storage.filesystem(run.path(stage.name))
    done = 0
    for name, weight in weights.items():
        with contextlib.suppress(OSError):
            info = fs.info(f"{path}/{name}")
            done += weight if info.get("mtime", began) >= began else 0
    return done
