"""Combines over part files: only the file names travel, the contents are read where they are merged."""

from __future__ import annotations

from collections.abc import Iterable

from granary.curation.dedup import components
from granary.curation.runs.tables import read_table
from granary.curation.selection import clusters
from granary.curation.steps import clusters as steps
from granary.curation.steps import dedup


class MergeForests:
    """Merge the spanning forests of join units: components need no iteration."""

    def create_accumulator(self) -> components.Forest:
        """Return the empty forest."""
        return components.merge_forests([])

    def add_input(self, forest: components.Forest, url: str) -> components.Forest:
        """Merge the forest of a part file."""
        return components.merge_forests([forest, dedup.read_forest(read_table(url))])

    def merge_accumulators(self, forests: Iterable[components.Forest]) -> components.Forest:
        """Merge forests."""
        return components.merge_forests(list(forests))

    def extract_output(self, forest: components.Forest) -> components.Forest:
        """Return the forest of the whole pool."""
        return forest


class MergeLloyd:
    """Merge the sums of one Lloyd iteration."""

    def create_accumulator(self) -> clusters.LloydSums | None:
        """Return nothing: the number of cells is not known yet."""
        return None

    def add_input(self, sums: clusters.LloydSums | None, url: str) -> clusters.LloydSums:
        """Add the sums of a part file."""
        part = steps.read_lloyd(read_table(url))
        return part if sums is None else sums.merge(part)

    def merge_accumulators(self, parts: Iterable[clusters.LloydSums | None]) -> clusters.LloydSums | None:
        """Merge sums."""
        merged = None
        for part in parts:
            merged = part if merged is None else merged if part is None else merged.merge(part)
        return merged

    def extract_output(self, sums: clusters.LloydSums | None) -> clusters.LloydSums | None:
        """Return the sums over the whole pool."""
        return sums
