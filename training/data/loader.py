"""Batches from granary shards: read, decoded and cropped in worker processes, in an order that a step number fixes.

A batch is made of `streams` parts; part s of step k is a pure function of (seed, s, k), and a worker makes whole parts:
a run that goes on at step k sees the samples that the undisturbed run would, with any number of workers.
"""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.collate import Dead, Part, divided, joined, stacked
from granary.training.data.columns import SEVERAL, stored_pictures
from granary.training.data.crops import Crop, sample_generator, views_of
from granary.training.data.grouped import Balanced, Chosen, FewClasses, Rows, members_of, subsampled
from granary.training.data.order import Mixture, Order, Place
from granary.training.data.ordering import PLAIN, Ordering
from granary.training.data.reads import Views
from granary.training.data.ring import Ring

T = TypeVar("T")
PATIENCE = 100  # samples in a row that may be undecodable
RUN = 64  # pictures that a worker makes and hands over at a time: a message costs as much as several small pictures
RUN_BYTES = 2**22  # of their views at most
ROOM = 2**29  # bytes of row groups that a worker keeps of a dataset where its samples are drawn from all over
IMAGE_COLUMNS = ("id", "row_id", "width", "height", "source")


class BatchPlan(NamedTuple):
    """What the batches of a run are.

    Args:
        datasets, weights: the mixture.
        crops: the views by name.
        columns: what is read of a row: image, label, captions, any column of the shards.
        categories: label-like columns among them, each with the names of its classes (with their shares, of a run).
        batch: pictures of a step over all processes.
        streams: parts a step is made of.
        window: rows shuffled with one another, over all streams.
        seed: of the run.
        limits: of decoding.
        views: makes the views of a row, see `Reads`.
        ordering: the order.
        groups: (n,) the group of each row by its number, -1 for none; None where the order is plain.
        drop_last: end an epoch with its last whole batch.
    """

    datasets: Sequence[shards.Dataset]
    weights: Sequence[float]
    crops: Mapping[str, Crop]
    columns: Sequence[str] = ("image",)
    categories: Mapping[str, Mapping[str, float]] = {}
    batch: int = 64
    streams: int = 8
    window: int = 8192
    seed: int = 0
    limits: DecodeLimits = DecodeLimits()
    views: Views = views_of
    ordering: Ordering = PLAIN
    groups: NDArray[np.int32] | None = None
    drop_last: bool = False

    @property
    def classes(self) -> Mapping[str, float]:
        """Names of the labels, with their shares."""
        return self.categories.get("label", {})

    @property
    def rows(self) -> int:
        """Rows of an epoch: all of the data, or those that a subsampling order leaves."""
        if self.groups is not None and self.ordering.kind == "subsample":
            return len(subsampled(members_of(self.groups), self.seed))
        return sum(dataset.count for dataset in self.datasets)


def check_plan(plan: BatchPlan, processes: int = 1) -> None:
    """Raise UserError where batch, streams, processes, order and data do not fit together."""
    smallest = min(dataset.count for dataset in plan.datasets) if plan.groups is None else plan.rows
    if smallest < plan.batch and (len(plan.datasets) == 1 or plan.groups is not None):
        raise UserError(f"batch: {plan.batch} is not right: the data have {smallest} samples; give at most as many")
    if plan.drop_last and (len(plan.datasets) > 1 or plan.groups is not None):
        raise UserError("drop_last: true is not right: only one dataset in the plain order has epochs of whole batches")
    if smallest < plan.streams:
        raise UserError(f"data: {smallest} samples cannot feed {plan.streams} streams; give fewer streams")
    if plan.batch % plan.streams:
        raise UserError(f"streams: {plan.streams} is not right: it must divide the batch, {plan.batch}")
    if plan.streams % processes:
        raise UserError(f"streams: {plan.streams} is not right: it must be a multiple of the {processes} processes")


def order_of(plan: BatchPlan) -> Mixture | Chosen | Balanced | FewClasses:
    """Return the order of a plan."""
    sizes = [[group.rows for group in dataset.groups] for dataset in plan.datasets]
    share = max(1, plan.window // plan.streams)
    if plan.groups is None:
        part = plan.batch // plan.streams if plan.drop_last else None
        orders = [Order(rows, plan.seed, plan.streams, share, part) for rows in sizes]
        return Mixture(orders, plan.weights, plan.seed)
    rows, members = Rows(sizes), members_of(plan.groups)
    if plan.ordering.kind == "few_classes":
        return FewClasses(rows, members, plan.seed, plan.streams, plan.batch, plan.ordering.classes)
    if plan.ordering.kind == "balanced":
        return Balanced(rows, members, plan.seed, plan.streams, plan.window)
    return Chosen(rows, subsampled(members, plan.seed), plan.seed, plan.streams, share)


class Parts:
    """Makes the parts of a stream for a run of steps."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan, self.size = plan, plan.batch // plan.streams
        window = max(1, plan.window // plan.streams)
        self.order = order_of(plan)
        self.readers = [_reader(dataset, plan, window) for dataset in plan.datasets]
        self.first = list(itertools.accumulate((dataset.count for dataset in plan.datasets), initial=0))

    def __getitem__(self, key: tuple[int, int, int]) -> Part:
        """Return the parts of steps first .. first + count - 1 of a stream, end to end; key: (first, stream, count).

        It has the views (b, views, side, side, 3) uint8, `NAME_draws` (b, views, 16), ids, columns, `row` (b,) int64,
        the number of a row among all rows of all datasets, one after another, and `dead`, a list for each step: what
        cannot be decoded is in it (uri, error, message), and the next sample of the stream that can be takes its place.
        See `divided`.
        """
        first, stream, count = key
        dead: list[list[Dead]] = [[] for _ in range(count)]
        positions = range(first * self.size, (first + count) * self.size)
        samples = [self._alive(stream, p, dead[p // self.size - first]) for p in positions]
        return {**stacked(samples), "dead": dead}

    def _alive(self, stream: int, position: int, dead: list[Dead]) -> tuple[Part, Part]:
        """Return row and views of the first sample from a position on that can be decoded."""
        generator, plan = None, self.plan
        for place in (self.order.place(stream, position, i) for i in range(PATIENCE)):
            row = self._row(place)
            generator = generator or sample_generator(plan.seed, place.epoch, row["key"])
            try:
                return row, plan.views(row, generator, plan.crops, plan.limits)
            except DecodeError as error:
                dead.append((row["uri"], error.kind, str(error)))
        uri, _, message = dead[-PATIENCE]
        raise UserError(f"data: {PATIENCE} samples in a row cannot be decoded, the first of them {uri} ({message})")

    def _row(self, place: Place) -> Part:
        """Return the row at a place of the mixture."""
        dataset = self.plan.datasets[place.dataset]
        group = dataset.groups[place.group]
        row = read_row(self.readers[place.dataset].rows(group), place.row, self.plan.columns)
        row["path"], row["row"] = dataset.path, np.int64(self.first[place.dataset] + group.start + place.row)
        return row


def _reader(dataset: shards.Dataset, plan: BatchPlan, window: int) -> shards.GroupReader:
    """Return a reader that keeps the groups of one window of every stream; for orders by group what there is room for.

    Their samples lie further apart.
    """
    rows = max(1, dataset.count // len(dataset.groups))
    keep = plan.streams * (window // rows + 3)
    if plan.groups is not None:
        keep = max(keep, ROOM * len(dataset.groups) // max(1, sum(group.size for group in dataset.groups)))
    return shards.GroupReader(stored_columns(dataset, plan.columns), plan.categories, keep)


def stored_columns(dataset: shards.Dataset, columns: Sequence[str]) -> list[str]:
    """Return the columns to read: those asked for, and what views are made of and samples named by."""
    asked = [stored_pictures(name, dataset.columns) for name in columns]
    return list(dict.fromkeys([*asked, *(name for name in IMAGE_COLUMNS if name in dataset.columns)]))


def read_row(rows: shards.GroupRows, row: int, columns: Sequence[str]) -> Part:
    """Return one row: data, size, key (row_id or id), uri, and the columns but for pictures.

    Where several pictures are asked for, `pictures` has the bytes of each.
    """
    key = rows.cell("row_id", row) or rows.cell("id", row)
    sample: Part = {"data": rows.image(row), "size": rows.sizes[row], "key": key}
    sample["uri"] = rows.cell("source", row) or key
    if SEVERAL in columns:
        sample["pictures"] = rows.pictures(row)
    return sample | {name: rows.cell(name, row) for name in columns if name not in ("image", SEVERAL)}


class _Handed(Dataset[Part]):
    """`Parts` as a worker hands them over: pictures in a slot of the ring, other tensors as arrays.

    A worker would hand over each tensor by a file of its own.
    """

    def __init__(self, plan: BatchPlan, ring: Ring) -> None:
        self.plan, self.ring = plan, ring

    @cached_property
    def parts(self) -> Parts:
        """Made in the worker: what they keep of past reads cannot be sent to one."""
        return Parts(self.plan)

    def __getitem__(self, turn: tuple[int, tuple[int, int, int]]) -> Part:
        """Return the run of a key without its pictures, which are in a slot.

        Args:
            turn: (slot, key).
        """
        slot, key = turn
        run = self.ring.put(slot, self.parts[key])
        return {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in run.items()}


def _keys(steps: range, count: int, streams: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the keys of one process from a step on, in order: all streams for some steps, then for the next."""
    for step in steps[::count]:
        yield from ((step, stream, min(count, steps.stop - step)) for stream in streams)


class Process(NamedTuple):
    """A process among those that train together: number `rank` of `total`."""

    rank: int
    total: int


ALONE = Process(0, 1)


def batches(
    plan: BatchPlan,
    steps: range,
    process: Process = ALONE,
    workers: int = 2,
    place: Callable[[Part], Part] = lambda part: part,
    pin: bool = False,
) -> Iterator[Part]:
    """Yield the batches of some steps of one process.

    Args:
        plan: of the run; see `check_plan`.
        steps: one after another.
        process: which one; each takes an equal run of the streams.
        workers: worker processes; 0 works in this one. They change nothing but the speed.
        place: puts a part on the device.
        pin: pin memory for it.

    Yields:
        What `Parts` makes for a step, parts of the process one after another.
    """
    share = plan.streams // process.total
    part = plan.batch // plan.streams * sum(crop.count * crop.side**2 * 3 for crop in plan.crops.values())  # bytes
    count = max(1, min(RUN * plan.streams // plan.batch, RUN_BYTES // max(1, part)))
    keys = _keys(steps, count, range(process.rank * share, (process.rank + 1) * share))
    runs = _handed_over(plan, keys, share, count, workers, pin) if workers else map(Parts(plan).__getitem__, keys)
    while runs_of_all := [divided(run) for run in itertools.islice(runs, share)]:
        for parts in zip(*runs_of_all, strict=True):
            yield joined([place(part) for part in parts])


def _handed_over(
    plan: BatchPlan, keys: Iterator[tuple[int, int, int]], share: int, count: int, workers: int, pin: bool
) -> Iterator[Part]:
    """Yield the runs of keys from worker processes; the pictures of the last `share` of them are there at a time."""
    ahead = max(2, math.ceil(2 * share / workers))  # runs that a worker may have ready: all need those of two rounds
    rows = count * plan.batch // plan.streams
    shapes = {name: (rows, crop.count, crop.side, crop.side, 3) for name, crop in plan.crops.items()}
    ring = Ring(ahead * workers + share, shapes)
    loader = DataLoader(
        _Handed(plan, ring),
        batch_size=None,
        sampler=zip(itertools.cycle(range(ring.slots)), keys),
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_deaf,
        prefetch_factor=ahead,
        multiprocessing_context=_context(plan),
    )
    return (ring.take(handed, pin) for handed in loader)


def _deaf(worker: int) -> None:
    """Let a worker ignore what asks the run to stop, sent to its whole group: the run saves its state, then ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_is(part: T) -> T:
    return part


def _context(plan: BatchPlan) -> str:
    """Fork where all is local; the threads of remote file systems do not survive a fork."""
    return "fork" if all(storage.is_local(dataset.path) for dataset in plan.datasets) else "forkserver"
