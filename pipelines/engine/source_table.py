"""The table of sources that a curation closes with: what came with their images, and what was passed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from granary.curation.runs.facts import SourceCount
from granary.curation.store.printable import printable

NAMED = 8  # metadata keys and kinds of left-out parts that a line names
COUNTS = ("files", "images", "dead", "captions", "labels")


def print_sources(console: Console, sources: Sequence[SourceCount]) -> None:
    """Print for each source its images, those with captions and labels, the metadata kept and what was left out."""
    table = Table("source", *COUNTS, "metadata", box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1 : 1 + len(COUNTS)]:
        column.justify = "right"
    for row in sources:
        counts = (row["files"], row.get("images", 0), row["dead"], row.get("captions", 0), row.get("labels", 0))
        keys = printable(few(row.get("metadata", [])), keep="")
        table.add_row(f"{row['role']} {row['name']}", *(f"{count:,}" for count in counts), keys)
    console.print()
    console.print(table)
    for line in left_out_lines(sources):
        console.print(printable(line, keep=""), soft_wrap=True)


def left_out_lines(sources: Sequence[SourceCount]) -> Iterator[str]:
    """Yield a line for each source of which something was passed over."""
    for row in sources:
        told = [f"{part['count']:,} {part['what']} ({part['why']})" for part in row.get("left_out", [])]
        if told:
            yield f"left out of {row['name']}: {few(told)}"


def few(words: Sequence[str]) -> str:
    """Return the first few words, and how many more there are."""
    more = [f"and {len(words) - NAMED} more"] if len(words) > NAMED else []
    return ", ".join([*words[:NAMED], *more])
