"""The training demo's results side by side: a table of means over seeds, and sentences that say what they prove."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.table import Table

from granary.curation.store import storage

KINDS = ("digits", "tiles", "copies", "leaks")  # of pictures in the pool
SCORES = {"knn": "kNN", "linear": "linear"}  # protocol -> its name in the table
CONFIDENCE = 0.95  # of the interval that decides whether a difference is clear


@dataclass(frozen=True)
class Result:
    """What one seed came to.

    Args:
        pictures: that each training saw, repeats too.
        kept: name of a selection -> kind -> its pictures.
        scores: name of a model -> protocol -> accuracy in 0..1.
    """

    pictures: int
    kept: dict[str, dict[str, int]]
    scores: dict[str, dict[str, float]]

    def write(self, path: pathlib.Path) -> None:
        """Write the result as JSON."""
        storage.write_bytes(str(path), (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: pathlib.Path) -> Result:
        """Return what `write` wrote."""
        return cls(**json.loads(path.read_text()))


def table_of(results: Sequence[Result]) -> Table:
    """Return the means over seeds side by side: pictures of each kind, passes over them, scores in percent."""
    table = Table("trained on", box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for head in ("pictures", *KINDS, "epochs", *(f"{name} %" for name in SCORES.values())):
        table.add_column(head, justify="right")
    for name in results[0].scores:
        counts = _counts(results, name) if name in results[0].kept else ["-"] * (len(KINDS) + 2)
        scores = [spread([100 * result.scores[name][kind] for result in results]) for kind in SCORES]
        table.add_row(name, *counts, *scores)
    return table


def _counts(results: Sequence[Result], name: str) -> list[str]:
    """Return the mean numbers of pictures of a selection, all and by kind, and of passes over them."""
    total = np.mean([sum(result.kept[name].values()) for result in results])
    numbers = [total, *(np.mean([result.kept[name].get(kind, 0) for result in results]) for kind in KINDS)]
    return [*(f"{number:,.0f}" for number in numbers), f"{results[0].pictures / total:,.0f}"]


def spread(values: Sequence[float], sign: str = "") -> str:
    """Return the mean and, of several values, their standard deviation.

    Args:
        sign: "+" to write that of the mean in any case.
    """
    mean = f"{np.mean(values):{sign}.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def conclusion(results: Sequence[Result], others: Sequence[str]) -> str:
    """Return one line for each score and each of the other selections, then how they were decided."""
    lines = []
    for score, title in SCORES.items():
        for name in others:
            differences = [100 * (one.scores["curated"][score] - one.scores[name][score]) for one in results]
            lines.append(f"{title}: {verdict(name, differences)}")
    rule = f"clear: the {CONFIDENCE:.0%} interval (Student's t) of the differences, paired by seed, is without 0"
    alone = "one seed cannot tell a difference from luck: give more --seeds"
    return "\n".join([*lines, f"{len(results)} seeds; {rule}." if len(results) > 1 else f"{alone}."])


def verdict(name: str, differences: Sequence[float]) -> str:
    """Say who wins, as far as the differences between curated and another selection, in points, tell.

    Args:
        name: of the other selection.
        differences: of each seed.
    """
    mean, points = float(np.mean(differences)), f"{spread(differences, '+')} points"
    if len(differences) < 2:
        return f"curated compared with {name}: {points}"
    if abs(mean) <= half_interval(differences):
        return f"no clear difference between curated and {name}: {points}"
    return f"curated is clearly {'better' if mean > 0 else 'worse'} than {name}: {points}"


def half_interval(values: Sequence[float]) -> float:
    """Return half the width of Student's confidence interval of the mean of two or more values."""
    from scipy.special import stdtrit

    count = len(values)
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / np.sqrt(count))
