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

from granary.curation.runs.notebook import CellBar
from granary.curation.runs.run import J, Run, Stage, Unit
from granary.curation.sources.files import remote_stamp
from granary.curation.store import storage


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of a task."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['noun']}/s" if speed else "", style="dim")


class Watch:
    """Counts the items of the units that a stage finishes while it is watched.

    Args:
        run: the run directory.
        stage: being run.
        missing: the units that have yet to be done.
    """

    def __init__(self, run: Run, stage: Stage[J], missing: Sequence[Unit[J]]) -> None:
        self.stage, self.folder, self.local = stage, run.path(stage.name), storage.is_local(run.url)
        self.weights = {stage.stem(unit) + ".done": unit.weight for unit in missing}
        self.total, self.before = sum(self.weights.values()), self._markers()
        done = stage.total - len(missing)
        self.resumed = f" ({done} of {stage.total} units were done)" if done and missing else ""

    def completed(self) -> int:
        """Return the number of items done, from one listing of the stage's folder."""
        return sum(
            self.weights.get(name, 0) for name, state in self._markers().items() if self.before.get(name) != state
        )

    def _markers(self) -> dict[str, str]:
        """Return the state of each file in the folder: what is new there is told by it, whatever the clock says."""
        fs, path = storage.filesystem(self.folder)
        try:
            entries = fs.ls(path, detail=True, **({} if self.local else {"refresh": True}))
        except FileNotFoundError:
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: remote_stamp(entry) for entry in entries}


class Progress:
    """Shows stages as they run.

    Args:
        console: where to write; a terminal and a notebook get a bar, anything else a line at the end of each stage and
            every 30 s.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, markup=False)

    @contextlib.contextmanager
    def stage(self, run: Run, stage: Stage[J], missing: Sequence[Unit[J]]) -> Iterator[None]:
        """Show a stage while the block runs."""
        console, stop = self.console, threading.Event()
        notebook = console.is_jupyter and not console.quiet
        show = self._cell if notebook else self._bar if console.is_terminal else self._lines
        watcher = threading.Thread(target=show, args=(Watch(run, stage, missing), stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()

    def _bar(self, watch: Watch, stop: threading.Event) -> None:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Bar(*columns, console=self.console) as bar:
            task = bar.add_task(watch.stage.name + watch.resumed, total=watch.total, noun=watch.stage.noun)
            ended = False
            while not ended:
                ended = stop.wait(0.3 if watch.local else 10)
                bar.update(task, completed=watch.completed())

    def _cell(self, watch: Watch, stop: threading.Event) -> None:
        started, ended, noun = time.monotonic(), False, watch.stage.noun
        bar = CellBar(watch.stage.name + watch.resumed, watch.total)
        while not ended:
            ended = stop.wait(0.5 if watch.local else 10)
            completed = watch.completed()
            bar.show(completed, f"{noun}, {completed / max(1e-9, time.monotonic() - started):,.0f} {noun}/s")

    def _lines(self, watch: Watch, stop: threading.Event) -> None:
        started, ended, noun = time.monotonic(), False, watch.stage.noun
        while not ended:
            ended = stop.wait(30)
            completed, seconds = watch.completed(), time.monotonic() - started
            rate = completed / seconds if seconds > 0 else 0.0
            left = "" if ended or not rate else f", {(watch.total - completed) / rate:,.0f} s left"
            self.console.print(
                f"{watch.stage.name:<12} {completed:,}/{watch.total:,} {noun}, {seconds:.1f} s, "
                f"{rate:,.{0 if rate >= 10 else 2}f} {noun}/s{left}{watch.resumed}",
                soft_wrap=True,
            )
