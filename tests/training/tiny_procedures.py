"""Rows of videos without pictures: steps with latents that say which they are, but for some noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import List, Value
from tiny_shards import sample, write_shards

CLIP = {
    "start": Value("float64"), "end": Value("float64"), "first": Value("int32"), "frames": Value("int32"),
    "step": Value("string"), "label": Value("string"), "verb": Value("string"), "noun": Value("string"),
}  # fmt: skip
STEPS: dict[str, Any] = {
    "clips": List(CLIP),
    "latents": List(List(Value("float32"))),
    "video": {"bytes": Value("binary"), "path": Value("string")},
}
ORDERS = ((0, 1, 2, 3, 4, 5), (3, 1, 0, 5, 2, 4), (5, 4, 3, 2, 1, 0))  # of tasks
WIDTH = 8


def clips_of(steps: Sequence[int]) -> list[dict[str, Any]]:
    """The clips of steps of one second each; their verb is the step modulo 2, their noun modulo 3."""
    return [
        {
            "start": float(place), "end": place + 1.0, "first": 10 * place, "frames": 10, "step": str(step),
            "label": f"step {step}", "verb": str(step % 2), "noun": str(step % 3),
        }
        for place, step in enumerate(steps)
    ]  # fmt: skip


def with_steps(rows: Sequence[Mapping[str, Any]], noise: float = 0.3, least: int = 6) -> list[dict[str, Any]]:
    """Give rows steps of one of three orders, whole or from their beginning, and latents; the label is the order."""
    random = np.random.default_rng(0)
    made = []
    for number, row in enumerate(rows):
        order = ORDERS[number % 3][: int(random.integers(least, 7))]
        latents = np.eye(6, WIDTH)[list(order)] + noise * random.standard_normal((len(order), WIDTH))
        made.append({**row, "clips": clips_of(order), "latents": latents.astype(np.float32).tolist(), "video": None})
    return made


def procedure_rows(count: int, noise: float = 0.3, least: int = 6) -> list[dict[str, Any]]:
    """Rows of such videos, labelled by their order."""
    return with_steps(
        [sample(b"%d" % number, (1, 1), label=f"task {number % 3}") for number in range(count)], noise, least
    )


def write_procedures(folder: Path, count: int = 24, noise: float = 0.3, least: int = 6) -> str:
    """Write them as a run; returns its folder."""
    return str(write_shards(folder, procedure_rows(count, noise, least), group=8, extra=STEPS))
