"""Name, run and remember the stages of a pipeline: what every pipeline of granary is written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, Generic, Literal, TypedDict, TypeVar, Unpack

from granary.curation.runs.chosen import ChosenGroup, WriteChosen
from granary.curation.runs.run import DEAD, LOST, J, Marker, Output, Run, Stage, Unit, digest
from granary.curation.runs.splits import Shard, shard_names
from granary.pipelines.engine.merge import A, Merge
from granary.pipelines.engine.units import Runner

C = TypeVar("C")  # what a combine computes
Step = Callable[Concatenate[Run, J, Output, ...], None]


@dataclasses.dataclass(frozen=True)
class Combine(Generic[J, A, C]):
    """How the outputs of a stage are merged into one, and the stage of one unit that writes the result.

    Args:
        function: over the URLs of the outputs.
        stage: name of the stage that writes what it returns.
        write: `write(run, job, output, combined)`.
        job: what `write` is told beside.
    """

    function: Merge[A, C]
    stage: str
    write: Callable[[Run, J, Output, C], None]
    job: J


class StageOptions(TypedDict, total=False):
    """Further fields of a `granary.curation.runs.run.Stage`."""

    cores: Literal["one", "all", "idle"]
    processes: bool
    target: str


def _with_losses(digest_: str, markers: Sequence[Marker]) -> str:
    """Return the digest that later stages name as their input: parts with losses are told apart by what they hold.

    A unit that lost something has other rows when it is tried again, from the same inputs.
    """
    lossy = [(n, marker.sha256) for n, marker in enumerate(markers) if marker.counters.keys() & {LOST, DEAD}]
    return digest(digest_, lossy) if lossy else digest_


@dataclasses.dataclass
class Stages:
    """Runs stages in the order they are called, and keeps the digest and the markers of each by name.

    Args:
        runner: runs one stage.
    """

    runner: Runner
    digests: dict[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    markers: dict[str, list[Marker]] = dataclasses.field(default_factory=dict, kw_only=True)
    written: dict[str, list[Shard]] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def run_directory(self) -> Run:
        """The run directory."""
        return self.runner.run

    def parallel(
        self,
        name: str,
        step: Step[J],
        jobs: Sequence[J],
        inputs: Iterable[str],
        noun: str = "units",
        weights: Sequence[int] | None = None,
        combine: Combine[Any, Any, Any] | None = None,
        names: Sequence[str] = (),
        **options: Unpack[StageOptions],
    ) -> None:
        """Run a stage of many units.

        Args:
            name: of the stage.
            step: what a unit calls.
            jobs: what each unit is told.
            inputs: names of the stages it reads.
            noun: what the weights count.
            weights: number of items in each unit; one each by default.
            combine: merges the outputs.
            names: of the units' files, where they are not parts.
            options: further fields of the stage.
        """
        units = [Unit(i, job, weights[i] if weights else 1, names[i] if names else "") for i, job in enumerate(jobs)]
        stage = Stage(name, step, units, [self.digests[i] for i in inputs], noun=noun, **options)
        self.digests[name] = stage.digest
        merged = None
        if combine is not None:
            target = Stage(combine.stage, combine.write, [Unit(0, combine.job)], [stage.digest])
            self.digests[combine.stage] = target.digest
            merged = (combine.function, target)
        self.markers[name] = self.runner.stage(stage, merged)
        self.digests[name] = _with_losses(stage.digest, self.markers[name])

    def write_shards(
        self,
        name: str,
        step: Step[J],
        jobs: Sequence[J],
        splits: Sequence[str],
        inputs: Iterable[str],
        noun: str = "units",
        weights: Sequence[int] | None = None,
        **options: Unpack[StageOptions],
    ) -> None:
        """Run a stage whose units write the shards of a config, each of one split; they are kept in `written`.

        Args:
            splits: of each unit's samples.
            options: further fields of the stage; `target` must be there.
        """
        names = shard_names(splits)
        self.parallel(name, step, jobs, inputs, noun, weights, names=names, **options)
        self.written[name] = [Shard(*one) for one in zip(splits, self.markers[name], strict=True)]

    def write_chosen(
        self, name: str, chosen: str, step: Callable[[Run, WriteChosen, Output], None], row_group: int
    ) -> None:
        """Write the shards of a config put together from rows of `shards`; none where nothing was chosen.

        Args:
            name: of the config.
            chosen: the stage that chose, by `granary.curation.runs.chosen.write_chosen`.
            step: writes one shard.
            row_group: rows in a row group.
        """
        groups = [ChosenGroup(*note) for note in self.markers[chosen][0].notes]
        if groups:
            jobs = [WriteChosen(unit, row_group) for unit in range(len(groups))]
            splits, weights = [group.split for group in groups], [group.rows for group in groups]
            self.write_shards(name, step, jobs, splits, [chosen, "shards"], name, weights, target=f"dataset/{name}")

    def serial(self, name: str, step: Step[J], inputs: Iterable[str], job: J) -> Marker:
        """Run a stage of one unit, which may use every core."""
        stage = Stage(name, step, [Unit(0, job)], [self.digests[i] for i in inputs], cores="all")
        self.digests[name] = stage.digest
        self.markers[name] = self.runner.stage(stage)
        return self.markers[name][0]
