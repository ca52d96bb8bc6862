"""What a combine does with the outputs of a stage, said without Beam, which is imported when there is work to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

A = TypeVar("A")  # what is merged so far
C_co = TypeVar("C_co", covariant=True)  # what comes of it


class Merge(Protocol[A, C_co]):
    """Merges part files in any order and grouping: the methods of a Beam CombineFn, over the URLs of the files."""

    def create_accumulator(self) -> A:
        """Return what nothing merges to."""
        ...

    def add_input(self, accumulator: A, url: str, /) -> A:
        """Merge a part file; the accumulator may be changed."""
        ...

    def merge_accumulators(self, accumulators: Iterable[A], /) -> A:
        """Merge what several workers have merged."""
        ...

    def extract_output(self, accumulator: A, /) -> C_co:
        """Return what the stage after the combine writes."""
        ...
