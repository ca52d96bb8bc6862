"""The first step: what waits in memory is bounded by pixels, and batches change nothing."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from granary.curation.encoders import load_encoder
from granary.curation.encoders.planned import plan_encoder
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.run import Run, Stage, Unit, close_stage, run_unit
from granary.curation.runs.vectors import Layout, load
from granary.curation.sources import Source, resolve
from granary.curation.steps import embed, listing


def embedded(folder: pathlib.Path, out: pathlib.Path, batch: int) -> np.ndarray:
    """Embed a folder in one unit; returns the vectors."""
    run = Run(str(out), {"pool": [resolve(Source(name="pool", path=str(folder)))]})
    units = listing.write_listing(run, "pool", 100).units
    options = embed.EmbedOptions(plan_encoder("builtin:copy", "cpu"), "cpu", batch, DecodeLimits())
    stage = Stage("pool", embed.embed, [Unit(0, embed.EmbedUnit(units[0], options))])
    run_unit(run, stage, stage.units[0])
    close_stage(run, stage)
    return load(Layout.of(run, "pool"), (0, 1))[1]


def test_an_encoder_that_squeezes_is_handed_copies_and_gives_the_same_vectors() -> None:
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((70, 80), (64, 300), (20, 90))]
    encoder = load_encoder("builtin:copy", "cpu")
    rows = [embed.Row({}, picture, size=picture.size) for picture in pictures]
    embed.look(rows, embed.NO_FILTERS, squeeze=True)
    handed = [row.picture for row in rows if row.picture]
    assert [picture.size for picture in handed] == [(64, 64), (64, 64), (90, 20)]  # a small one as it is
    assert np.array_equal(encoder.embed(handed), encoder.embed(pictures))


def test_large_pictures_do_not_wait_for_a_whole_batch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pool").mkdir()
    for number in range(9):
        pixels = rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pool" / f"{number}.png")
    waited: list[int] = []
    look = embed.look

    def record(rows, filters, squeeze):  # type: ignore[no-untyped-def]
        if rows:
            waited.append(sum(row.picture.width * row.picture.height for row in rows))
        look(rows, filters, squeeze)

    monkeypatch.setattr(embed, "look", record)
    whole = embedded(tmp_path / "pool", tmp_path / "whole", batch=64)
    assert waited == [9 * 70 * 80]
    waited.clear()
    monkeypatch.setattr(embed, "PENDING_PIXELS", 3 * 70 * 80 - 1)
    assert np.array_equal(embedded(tmp_path / "pool", tmp_path / "bounded", batch=64), whole)
    assert waited == [3 * 70 * 80] * 3
    waited.clear()
    assert np.array_equal(embedded(tmp_path / "pool", tmp_path / "single", batch=1), whole)
    assert len(waited) == 9
