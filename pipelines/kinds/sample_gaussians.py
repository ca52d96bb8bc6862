"""The combine of class Gaussians: only the names of part files travel."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from granary.curation.runs.tables import read_table
from granary.curation.store.threads import limit_threads
from granary.synth.feedback.gaussians import ClassSums


class MergeGaussians:
    """Merge the class sums of feature parts, the same way whatever the bundles: to the same bits.

    Floating-point sums depend on their order. So parts merge as the leaves of a binary tree: node (l, i) is the sum of
    leaves i 2^l to (i + 1) 2^l - 1, made when both its children are there.

    Args:
        tied: keep one scatter for all classes.
    """

    def __init__(self, tied: bool) -> None:
        self.tied = tied

    def create_accumulator(self) -> dict[tuple[int, int], ClassSums]:
        """Return no nodes."""
        return {}

    def add_input(self, nodes: dict[tuple[int, int], ClassSums], url: str) -> dict[tuple[int, int], ClassSums]:
        """Add the leaf of a part file."""
        limit_threads(1)  # the last bits of a product depend on how many threads make it
        return self._absorbed(nodes, (0, part_number(url)), class_sums(url, self.tied))

    def merge_accumulators(self, accumulators: Iterable[dict[tuple[int, int], ClassSums]]) -> Any:
        """Add the nodes of all."""
        merged: dict[tuple[int, int], ClassSums] = {}
        for nodes in accumulators:
            for place, sums in sorted(nodes.items(), key=lambda item: item[0]):
                self._absorbed(merged, place, sums)
        return merged

    def extract_output(self, nodes: dict[tuple[int, int], ClassSums]) -> ClassSums:
        """Return the sums of all parts: the nodes that are left, in the order of their leaves."""
        whole = ClassSums(self.tied)
        for _, sums in sorted(nodes.items(), key=lambda item: item[0][1] << item[0][0]):
            whole.merge(sums)
        return whole

    def _absorbed(self, nodes: dict[tuple[int, int], ClassSums], place: tuple[int, int], sums: ClassSums) -> Any:
        level, index = place
        while (sibling := nodes.pop((level, index ^ 1), None)) is not None:
            left, right = (sibling, sums) if index & 1 else (sums, sibling)
            level, index, sums = level + 1, index >> 1, ClassSums(self.tied).merge(left).merge(right)
        nodes[level, index] = sums
        return nodes


def part_number(url: str) -> int:
    """Return the number of a part file."""
    match = re.search(r"part-(\d+)-of-\d+\.parquet$", url)
    if match is None:
        raise ValueError(f"{url} is no part file")
    return int(match.group(1))


def class_sums(url: str, tied: bool) -> ClassSums:
    """Return the sums of one part of the features."""
    table = read_table(url)
    if not table.num_rows:
        return ClassSums(tied)
    features = np.stack(table["feature"].to_numpy())
    return ClassSums(tied).add(table["target"].to_numpy(), features)
