"""What `granary view` costs at 100,000 pictures: `python -m tests.benchmarks.view [--rows N]`.

A run of curate with that many rows is written (ledger, embeddings, forest, shards of small pictures),
served, and opened in a headless Chromium: seconds until the server answers, milliseconds until the first tiles are
painted with their pictures, and of filters, a search, the map, a lasso and the threshold. The median of several times.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

from granary.curation.runs.run import INDEX, Output
from granary.curation.runs.vectors import to_column
from granary.curation.steps.dedup import EDGES
from granary.curation.steps.embed import FACTS
from granary.curation.store import schema
from granary.pipelines.cli.view import open_page
from tests import chromium

PART, SHARD, GROUP, DIMENSION = 256, 5000, 100, 273
ROUNDS = 5
STAGES = ("decode", "exact", "dedup", "leaks", "retrieval")


def write_part(path: Path, *tables: pa.Table) -> None:
    """Write a part file as a unit does, a row group for each table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        output = Output(file)
        for table in tables:
            output.write(table)
        output.finish("")


def write_index(folder: Path, rows: list[int]) -> None:
    """Write the index of a stage whose parts are `00000.parquet` and so on."""
    names = [f"{number:05d}.parquet" for number in range(len(rows))]
    (folder / INDEX).write_text(json.dumps({"parts": names, "rows": rows}))


def write_run(folder: Path, rows: int) -> Path:
    """Write the files of a run of curate that a page reads; returns its folder."""
    draw = np.random.default_rng(0)
    stage = draw.integers(0, len(STAGES), rows)
    ids = [f"{number:032x}" for number in range(rows)]
    uris = [f"pool/day {number % 977:03d}/picture {number:06d}.jpg" for number in range(rows)]
    centres = draw.normal(size=(50, DIMENSION))
    pictures = [jpeg(draw) for _ in range(64)]
    counts = [min(PART, rows - start) for start in range(0, rows, PART)]
    for part, start in enumerate(range(0, rows, PART)):
        span = range(start, min(rows, start + PART))
        write_part(folder / "ledger" / f"{part:05d}.parquet", ledger(span, ids, uris, stage, draw))
        vectors = centres[draw.integers(0, 50, len(span))] + draw.normal(size=(len(span), DIMENSION))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write_part(folder / "pool" / f"{part:05d}.parquet", facts(span, ids, uris, vectors.astype(np.float32), draw))
    for name in ("ledger", "pool"):
        write_index(folder / name, counts)
    kept = [number for number in range(rows) if STAGES[stage[number]] == "retrieval"]
    for number, start in enumerate(range(0, len(kept), SHARD)):
        shard = kept[start : start + SHARD]
        groups = [samples(shard[at : at + GROUP], ids, uris, pictures) for at in range(0, len(shard), GROUP)]
        write_part(folder / "dataset" / "data" / f"train-{number:05d}.parquet", *groups)
    edges = rows // 10
    similarity = np.sort(draw.uniform(0.8, 1, edges).astype(np.float32))[::-1]
    forest = pa.table({"i": np.arange(edges), "j": np.arange(edges) + rows // 2, "similarity": similarity}, EDGES)
    write_part(folder / "forest" / "00000.parquet", forest)
    write_index(folder / "forest", [edges])
    write_part(folder / "exact" / "00000.parquet", pa.table({"index": pa.array([], pa.int64())}))
    write_index(folder / "exact", [0])
    source = {"name": "pool", "path": f"{folder.parent}/none/", "kind": "folder"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"pool": [source], "out": str(folder)}))
    about = {"kind": "curate", "name": "many", "samples": len(kept), "shards": 1, "bytes": 1, "flow": []}
    (folder / "run.json").write_text(json.dumps({**about, "thresholds": {"dedup": 0.8, "leaks": 0.6}}))
    return folder


def jpeg(draw: np.random.Generator) -> bytes:
    """Return a small picture."""
    file = io.BytesIO()
    tiles = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    tiles.resize((96, 96), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def ledger(span: range, ids: list[str], uris: list[str], stage: np.ndarray, draw: np.random.Generator) -> pa.Table:
    """Return the rows of the ledger of a part."""
    rows = [
        {
            "uri": uris[number], "id": ids[number], "role": "pool", "stage": STAGES[stage[number]],
            "status": ("dead", "dropped", "dropped", "dropped", "kept")[stage[number]],
            "reason": f"decided at {STAGES[stage[number]]}", "cluster": int(draw.integers(0, 1000)),
            "seed_ids": [f"{seed:032x}" for seed in draw.integers(0, 300, 3 * (stage[number] == 4))],
            "similarities": [0.5] * (3 * int(stage[number] == 4)),
        }
        for number in span
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema.LEDGER)


def facts(span: range, ids: list[str], uris: list[str], vectors: np.ndarray, draw: np.random.Generator) -> pa.Table:
    """Return the rows of the pool of a part."""
    rows = [
        {
            "uri": uris[number], "id": ids[number], "source": 0, "path": f"{number}.jpg", "status": "ok",
            "label": f"class {draw.integers(0, 1000)}", "captions": [f"thing {number % 5000} in place {number % 331}"],
        }
        for number in span
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, FACTS).append_column("embedding", to_column(vectors))


def samples(numbers: list[int], ids: list[str], uris: list[str], pictures: list[bytes]) -> pa.Table:
    """Return samples of a shard."""
    rows = [
        {
            "id": ids[number], "image": {"bytes": pictures[number % 64], "path": f"{number}.jpg"},
            "source": {"name": "pool", "uri": uris[number]}, "captions": [],
        }
        for number in numbers
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema.arrow_schema(schema.curated_features()))


def measured(tab: chromium.Tab, address: str) -> dict[str, float]:
    """Return milliseconds of one visit."""
    tab.open("about:blank")
    start = time.monotonic()
    tab.open(address)
    tab.wait("document.body && document.body.dataset.ready && document.querySelector('.tile') !== null")
    tab.wait("[...document.images].some((one) => one.naturalWidth > 0)")
    figures = {"first paint, as seen from outside": 1000 * (time.monotonic() - start)}
    figures["first paint, as the browser has it"] = tab.js(
        "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN"
    )
    figures["all filters ready"] = float(tab.js("document.body.dataset.ready"))
    labels = "[...document.querySelectorAll('#filters label')]"
    for name, value in (("status", "dropped"), ("reason", "decided at dedup"), ("seed", "(none)")):
        tab.js(f"{labels}.find((one) => one.children[1].textContent === {value!r}).click()")
        figures[f"filter by {name}"] = painted(tab)
    start = time.monotonic()
    tab.js("search.value = 'thing 77 place'; search.dispatchEvent(new Event('input'))")
    tab.wait("document.body.dataset.searched === 'thing 77 place'")
    figures["search, with the 150 ms after the last letter"] = 1000 * (time.monotonic() - start)
    tab.js("search.value = ''; search.dispatchEvent(new Event('input'))")
    start = time.monotonic()
    tab.js("document.querySelector('[role=tab][data-view=map]').click()")
    tab.wait("document.body.dataset.mapped")
    figures["map"] = 1000 * (time.monotonic() - start)
    figures["map drawn again"] = tab.js(
        "(() => { const start = performance.now(); page.map.draw(); return performance.now() - start; })()"
    )
    figures["lasso of 200 corners around all"] = tab.js(
        """(() => { const round = (at) => 500 + 900 * (at % 2 ? Math.sin : Math.cos)(at / 63.7);
        const path = Array.from({length: 400}, (_, at) => round(at));
        const start = performance.now(); page.map.inside(path); return performance.now() - start; })()"""
    )
    tab.js("document.querySelector('[role=tab][data-view=duplicates]').click()")
    tab.wait("document.querySelector('.pair') !== null")
    figures["threshold moved"] = tab.js(
        """(() => { const slider = document.querySelector('input[type=range]'), start = performance.now();
        slider.value = 0.9; slider.dispatchEvent(new Event('input')); return performance.now() - start; })()"""
    )
    return figures


def painted(tab: chromium.Tab) -> float:
    """Return the milliseconds that the last filter took, up to the frame after it."""
    return float(tab.js("new Promise((done) => requestAnimationFrame(() => done(document.body.dataset.filtered)))"))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", rows)
        start = time.monotonic()
        with open_page(str(run)) as server, chromium.browser() as tab:
            opened = time.monotonic() - start
            threading.Thread(target=server.serve_forever, daemon=True).start()
            visits = [measured(tab, server.address) for _ in range(ROUNDS)]
            server.shutdown()
    table = Table("", "ms", box=None)
    table.add_row(f"{rows:,} rows read before the page opens", f"{1000 * opened:,.0f}")
    table.add_row("map, the first time", f"{visits[0]['map']:,.0f}")
    for name in visits[0]:
        table.add_row(name, f"{statistics.median(visit[name] for visit in visits):,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
