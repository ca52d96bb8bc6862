"""What a work unit does with a renderer: attempts, checks, frames rendered twice, and rows that are given up.

A server that stalls, closes or refuses says nothing of a row. It is waited for, and the row is asked for again behind
the others; only one that loses its connection again and again, each time to a server that then answers, is given up.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from granary.curation.runs.run import Run
from granary.curation.store import storage
from granary.synth.pug.plan.plans import uniform
from granary.synth.pug.plan.scenes import SceneSpec
from granary.synth.pug.planning import Planned, PlannedRow
from granary.synth.pug.recipe import Checks, RendererOptions
from granary.synth.pug.renderer.capture import UnrealCVRenderer
from granary.synth.pug.renderer.connection import RenderError
from granary.synth.pug.renderer.frames import (
    Frame,
    InvalidFrame,
    NotRepeatable,
    NotShown,
    NotVisible,
    apart,
    boxes,
    check_frame,
    difference,
    png,
)
from granary.synth.pug.renderer.pools import Pool, pool_of

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 10.0  # seconds between two attempts to connect


class ServersLost(OSError):
    """There is no server any more, or none that serves."""


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
        self.lost_since: set[str] = set()  # rows that lost their connections since a server last replied to one
        self._renderer: UnrealCVRenderer | None = None

    @property
    def renderer(self) -> UnrealCVRenderer:
        """The leased renderer."""
        if self._renderer is None:
            self._renderer = self.stack.enter_context(self.service.pool(self.work).lease())
        return self._renderer

    def render(self, rows: Sequence[PlannedRow]) -> tuple[dict[str, Frame], list[Lost]]:
        """Render rows, and some of them again.

        Returns:
            The frames by row id, and the rows that have none.

        Raises:
            ServersLost: no server answered for longer than the patience, or row after row lost its connection.
        """
        frames: dict[str, Frame] = {}
        failures: dict[str, RenderError] = {}
        for row, outcome in self._outcomes(rows, ""):
            if isinstance(outcome, Frame):
                frames[row.id] = outcome
            else:
                self._lose(row, outcome, failures)
        for row, outcome in self._outcomes([row for row in reversed(rows) if self._is_repeated(row, frames)], "again"):
            if (trouble := self._disagreement(frames[row.id], outcome)) is not None:
                del frames[row.id]
                self._lose(row, trouble, failures)
        return frames, [_lost(row, failures[row.id]) for row in rows if row.id in failures]

    def _lose(self, row: PlannedRow, error: RenderError, failures: dict[str, RenderError]) -> None:
        failures[row.id] = error
        if isinstance(error, InvalidFrame) and error.picture:
            storage.write_bytes(self.run.path("quarantine", f"{row.id}.png"), error.picture)

    def _is_repeated(self, row: PlannedRow, frames: Mapping[str, Frame]) -> bool:
        share = self.work.recipe.checks.twice
        return row.id in frames and uniform(self.work.recipe.seed, f"twice/{row.id}", row.index) < share

    def _disagreement(self, first: Frame, second: Frame | RenderError) -> RenderError | None:
        """Return why a row is given up after it was rendered again, after others; None where both frames agree."""
        if isinstance(second, RenderError):
            return second
        bound = self.options.settle.bound if self.options.kind == "unrealcv" else 0.0
        apart = difference(first, second)
        if apart <= bound:
            return None
        return NotRepeatable(f"rendered again, the picture differs by {apart:.2f} of 255", png(first.lit))

    def _outcomes(self, rows: Sequence[PlannedRow], purpose: str) -> Iterator[tuple[PlannedRow, Frame | RenderError]]:
        """Give a frame or the last error of each row; one that lost its connection waits behind the others."""
        queue, losses = deque(rows), Counter[str]()
        while queue:
            row = queue.popleft()
            outcome = self._outcome(row, f"{row.id}/{purpose}/{losses[row.id]}")
            if self._has_lost(row, outcome) and losses[row.id] < max(self.options.retries, 1):
                losses[row.id] += 1
                queue.append(row)
            else:
                yield row, outcome

    def _has_lost(self, row: PlannedRow, outcome: Frame | RenderError) -> bool:
        """Say whether a row lost its connection; raises ServersLost where too many did in succession."""
        if isinstance(outcome, Frame) or not outcome.lost:
            self.lost_since.clear()
            return False
        self.lost_since.add(row.id)
        if len(self.lost_since) >= self.options.give_up:
            raise ServersLost(
                f"{len(self.lost_since)} rows in succession lost their connections, the last one: {outcome}. "
                "Start the servers again"
            ) from outcome
        return True

    def _outcome(self, row: PlannedRow, salt: str) -> Frame | RenderError:
        """Return a checked frame, after as many attempts as the options allow, or why there is none."""
        scene = self.work.scene(row)
        for attempt in range(self.options.retries + 1):
            outcome = self._attempt(scene, f"{salt}/{attempt}")
            if isinstance(outcome, Frame) or outcome.lost:
                break
        return outcome

    def _attempt(self, scene: SceneSpec, salt: str) -> Frame | RenderError:
        self._reach()
        try:
            frame = self.renderer.render(scene, salt)
            check(frame, len(scene.actors), self.work.recipe.checks)
            self._check_shown(scene, frame)
            return frame
        except RenderError as error:
            return error

    def _check_shown(self, scene: SceneSpec, frame: Frame) -> None:
        """Raise NotShown where a character could be taken away and none of its pixels would change."""
        least = self.work.recipe.checks.shown if self.options.kind == "unrealcv" else 0.0
        for actor in scene.actors if least else ():
            seen = frame.mask == 1 + actor.slot
            changes = (apart(frame.lit, picture, seen) for picture in self.renderer.without(scene, actor))
            if not any(change >= least for change in changes):
                raise NotShown(
                    f"character {actor.slot + 1} has {int(seen.sum())} pixels in the mask, and without it they change "
                    f"by less than {least:g} of 255 (checks.shown): the picture does not show it",
                    png(frame.lit),
                )

    def _reach(self) -> None:
        """Connect where there is no connection, as often as the patience allows; raises ServersLost."""
        start = time.monotonic()
        for pause in pauses(self.options.backoff):
            try:
                return self.renderer.reach()
            except RenderError as error:
                waited = time.monotonic() - start
                if waited + pause > self.options.patience:
                    raise ServersLost(
                        f"no server answered for {waited:.0f} seconds (renderer.patience: {self.options.patience:g}): "
                        f"{error}. Start the servers again"
                    ) from error
            time.sleep(pause)
        raise AssertionError("unreachable")


def pauses(first: float) -> Iterator[float]:
    """Give seconds between connections, doubled up to `LONGEST_PAUSE`, for ever."""
    pause = max(first, SHORTEST_PAUSE)
    while True:
        yield min(pause, LONGEST_PAUSE)
        pause = min(2 * pause, LONGEST_PAUSE)


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
