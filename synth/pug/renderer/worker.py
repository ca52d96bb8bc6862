"""What a work unit does with a renderer: attempts, checks, frames rendered twice, and rows that are given up."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from granary.curation.runs.run import Run
from granary.curation.store import storage
from granary.synth.pug.plan.plans import uniform
from granary.synth.pug.planning import Planned, PlannedRow
from granary.synth.pug.recipe import Checks, RendererOptions
from granary.synth.pug.renderer.capture import UnrealCVRenderer
from granary.synth.pug.renderer.connection import RenderError
from granary.synth.pug.renderer.frames import (
    Frame,
    InvalidFrame,
    NotRepeatable,
    NotVisible,
    boxes,
    check_frame,
    difference,
    png,
)
from granary.synth.pug.renderer.pools import Pool, pool_of


class ServersLost(OSError):
    """Row after row was lost to dead connections: there is no server any more."""


class Lost(NamedTuple):
    """A row without a picture.

    Args:
        row_id: of the row.
        error: class of the last error.
        message: what it says, and the row.
    """

    row_id: str
    error: str
    message: str


@dataclasses.dataclass(frozen=True)
class Service:
    """How work units reach a renderer: nothing that decides a picture.

    Args:
        renderer: who renders.
        meshes: absolute paths of the user's meshes by name.
        workers: servers to start at most in one process, where the options leave it open; 0 for one for each core.
        checkpoint: rows rendered between two saves.
    """

    renderer: RendererOptions
    meshes: Mapping[str, str]
    workers: int
    checkpoint: int

    def pool(self, work: Planned) -> Pool:
        """Return this process's servers for a recipe."""
        outputs = work.recipe.outputs
        modes = ["lit", "mask", *(["depth"] if outputs.depth else []), *(["normals"] if outputs.normals else [])]
        return pool_of(self.renderer, modes, self.meshes, self.workers)


class Worker:
    """Renders rows with a leased renderer, which it takes when the first one is needed.

    Args:
        run: where refused frames are kept, in quarantine/.
        work: the recipe and its plan.
        service: how a renderer is reached.
        stack: gives the renderer back when it is left.
    """

    def __init__(self, run: Run, work: Planned, service: Service, stack: ExitStack) -> None:
        self.run, self.work, self.service, self.stack = run, work, service, stack
        self.options = service.renderer
        self.dead_in_succession = 0
        self._renderer: UnrealCVRenderer | None = None

    @property
    def renderer(self) -> UnrealCVRenderer:
        """The leased renderer."""
        if self._renderer is None:
            self._renderer = self.stack.enter_context(self.service.pool(self.work).lease())
        return self._renderer

    def render(self, rows: Sequence[PlannedRow]) -> tuple[dict[str, Frame], list[Lost]]:
        """Render rows in order.

        Returns:
            The frames by row id, and the rows that have none.

        Raises:
            ServersLost: too many rows in succession were lost to dead connections.
        """
        frames: dict[str, Frame] = {}
        failures: dict[str, RenderError] = {}
        for row in rows:
            self._attempt(row, frames, failures)
        for row in reversed([row for row in rows if row.id in frames and self._is_repeated(row)]):
            self._repeat(row, frames, failures)
        return frames, [_lost(row, failures[row.id]) for row in rows if row.id in failures]

    def _attempt(self, row: PlannedRow, frames: dict[str, Frame], failures: dict[str, RenderError]) -> None:
        try:
            frames[row.id] = self._frame(row, "")
            self.dead_in_succession = 0
        except RenderError as error:
            self._lose(row, error, failures)

    def _lose(self, row: PlannedRow, error: RenderError, failures: dict[str, RenderError]) -> None:
        failures[row.id] = error
        if isinstance(error, InvalidFrame) and error.picture:
            storage.write_bytes(self.run.path("quarantine", f"{row.id}.png"), error.picture)
        self.dead_in_succession = self.dead_in_succession + 1 if error.lost else 0
        if self.dead_in_succession >= self.options.give_up:
            raise ServersLost(
                f"{self.dead_in_succession} rows in succession were lost to dead connections, the last one: {error}. "
                "Start the servers again"
            ) from error

    def _is_repeated(self, row: PlannedRow) -> bool:
        return uniform(self.work.recipe.seed, f"twice/{row.id}", row.index) < self.work.recipe.checks.twice

    def _repeat(self, row: PlannedRow, frames: dict[str, Frame], failures: dict[str, RenderError]) -> None:
        """Render a row again after others; what differs from the first time is quarantined."""
        first = frames[row.id]
        try:
            second = self._frame(row, "again")
            bound = self.options.settle.bound if self.options.kind == "unrealcv" else 0.0
            if (apart := difference(first, second)) > bound:
                raise NotRepeatable(f"rendered again, the picture differs by {apart:.2f} of 255", png(first.lit))
        except RenderError as error:
            del frames[row.id]
            self._lose(row, error, failures)

    def _frame(self, row: PlannedRow, purpose: str) -> Frame:
        """Return a checked frame, after as many attempts as the options allow; raises RenderError."""
        scene = self.work.scene(row)
        for attempt in range(self.options.retries + 1):
            try:
                frame = self.renderer.render(scene, f"{row.id}/{purpose}/{attempt}")
                check(frame, len(scene.actors), self.work.recipe.checks)
                return frame
            except RenderError as error:
                if attempt == self.options.retries:
                    raise
                if error.lost:
                    time.sleep(self.options.backoff * 2**attempt)
        raise AssertionError("unreachable")


def check(frame: Frame, actors: int, checks: Checks) -> None:
    """Raise InvalidFrame when a frame cannot be right: blank, depth not finite, a character not to be seen."""
    try:
        check_frame(frame, checks.blank)
        counts = {slot: pixels for slot, (_, pixels) in boxes(frame.mask).items()}
        if sum(pixels >= checks.visible for pixels in counts.values()) < actors:
            listed = ", ".join(f"character {slot + 1} {pixels}" for slot, pixels in counts.items())
            raise NotVisible(f"pixels in the mask: {listed or 'none'}; each needs {checks.visible}")
    except InvalidFrame as error:
        error.picture = error.picture or png(frame.lit)
        raise


def _lost(row: PlannedRow, error: RenderError) -> Lost:
    values = json.dumps(row.values, ensure_ascii=False)
    return Lost(row.id, type(error).__name__, f"{error}; row {row.index}: {values}")
