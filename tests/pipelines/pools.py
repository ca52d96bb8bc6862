"""Pools whose right answer is known, the command run on them, and an oracle that shares no code with the pipeline."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from granary.curation.encoders import Encoder, load_encoder
from granary.curation.runs.run import Stage, Unit, run_unit
from granary.curation.store.threads import limit_threads
from granary.pipelines import command
from granary.pipelines.engine.units import Runner, one_sentence

SIDE = 72
DEDUP, LEAKS = 0.92, 0.7  # thresholds of the planted pools, in the copy space
THRESHOLDS = ("--dedup.threshold", str(DEDUP), "--leaks.threshold", str(LEAKS))
SMALL_UNITS = (
    "--unit_rows",
    "8",
    "--dedup.block",
    "16",
    "--retrieval.block",
    "16",
    "--shards.rows",
    "5",
    "--shards.row_group",
    "2",
)


# -- pictures --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def encoder_of(spec: str) -> Encoder:
    return load_encoder(spec, "cpu")


@functools.lru_cache(maxsize=4096)
def picture(seed: int, side: int = SIDE) -> Image.Image:
    """Return a smooth random mosaic; two seeds have a cosine of at most about 0.4 in the copy space."""
    tiles = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(tiles).resize((side, side), Image.Resampling.BICUBIC)


def similarity(left: Image.Image, right: Image.Image, spec: str = "builtin:copy") -> float:
    vectors = encoder_of(spec).embed([left, right])
    return float(vectors[0] @ vectors[1])


def resembling(original: Image.Image, wanted: float, seed: int) -> Image.Image:
    """Return the blend of a picture with another whose cosine with it is closest to `wanted`, by bisection."""
    other, low, high = picture(seed, original.width), 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        if similarity(original, Image.blend(original, other, middle)) > wanted:
            low = middle
        else:
            high = middle
    return Image.blend(original, other, low)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """Return a PNG of side x side pixels in about a thousandth of their bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeezer = zlib.compressobj(1)
    row = bytes(1 + side // 8)
    pixels = b"".join([*(squeezer.compress(row) for _ in range(side)), squeezer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write(folder: Path, files: Mapping[str, Image.Image | bytes]) -> Path:
    """Write pictures (as PNG) and bytes under relative names; returns the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else png(content))
    return folder


# -- the planted pool ------------------------------------------------------------------------------------------------


def planted(distinct: int = 12) -> dict[str, dict[str, Image.Image | bytes]]:
    """Return files of the three roles: distinct pictures, exact copies, chains, leaks, broken files, seeds.

    A chain is a - b - c with a and c below the threshold: one component that no direct comparison finds.
    `leak-1` resembles reference 1, `leak-2` resembles `leak-1` and no reference.
    """
    pool: dict[str, Image.Image | bytes] = {f"plain/{i:02d}.png": picture(i) for i in range(distinct)}
    pool |= {"copies/00.png": picture(0), "copies/again.png": picture(0), "copies/01.png": picture(1)}
    for chain in range(2):
        a = picture(100 + chain)
        b = resembling(a, 0.945, 200 + chain)
        c = resembling(b, 0.945, 300 + chain)
        pool |= {f"chain-{chain}/{name}.png": image for name, image in zip("cab", (a, b, c), strict=True)}
    references = {f"{i}.png": picture(400 + i) for i in range(3)}
    first = resembling(references["1.png"], 0.75, 500)
    pool |= {"leak-0.png": references["0.png"], "leak-1.png": first, "leak-2.png": resembling(first, 0.75, 501)}
    pool |= {"broken/text.png": b"no image at all", "broken/zero.png": b"", "broken/cut.png": png(picture(600))[:400]}
    seeds: dict[str, Image.Image | bytes] = {f"{i}.png": resembling(picture(i + 4), 0.6, 700 + i) for i in range(3)}
    return {"pool": pool, "seeds": seeds, "references": dict(references)}


def write_planted(folder: Path, distinct: int = 12) -> dict[str, Path]:
    return {role: write(folder / role, files) for role, files in planted(distinct).items()}


# -- running ---------------------------------------------------------------------------------------------------------


def run_in_a_loop(self: Runner, stage: Stage, missing: list[Unit], combine: Any) -> None:
    """Run units one after the other without Beam: what Beam adds is tested apart, and costs half a second a stage."""
    limit_threads(1)  # of torch, for this thread alone: what a worker has
    with one_sentence():
        for unit in missing:
            run_unit(self.run, stage, unit)
        if combine is not None:
            function, target = combine
            merged = function.create_accumulator()
            for unit in stage.units:
                merged = function.add_input(merged, stage.output(self.run, unit))
            run_unit(self.run, target, target.units[0], function.extract_output(merged))
    self.timings.append({"stage": stage.name, "units": len(missing), "rows": 0, "noun": "", "seconds": 0, "workers": 1})


def sources(roles: Mapping[str, Path | str | Sequence[str]]) -> list[str]:
    """Return the words of a command that name its sources."""
    return [
        word
        for role, paths in roles.items()
        for path in ([paths] if isinstance(paths, str | Path) else paths)
        for word in (f"--{role}", str(path))
    ]


def curate(roles: Mapping[str, Path | str | Sequence[str]], out: Path | str, *words: str, beam: bool = False) -> Run:
    """Run `granary curate` in this process, which must end well; the units run in a loop unless `beam`."""
    assert attempt(roles, out, *words, beam=beam) == 0
    return Run(str(out))


def attempt(roles: Mapping[str, Path | str | Sequence[str]], out: Path | str, *words: str, beam: bool = False) -> int:
    """Run `granary curate` in this process; returns its exit status."""
    if beam and not {"--runner", "--"} & set(words):
        words = (*words, "--runner", "threads")  # without a word of Beam, stages of few units run without it
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", run_in_a_loop)
        return command.main(["curate", *sources(roles), "--out", str(out), *words])


class Run:
    """A finished run directory, read with pyarrow and json alone."""

    def __init__(self, url: str) -> None:
        self.path = Path(url)

    def table(self, stage: str) -> list[dict[str, Any]]:
        parts = sorted((self.path / stage).glob("*.parquet"))
        tables = [pq.ParquetFile(part).read() for part in parts]
        return [_with_class_names(row, table.schema) for table in tables for row in table.to_pylist()]

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text())

    @functools.cached_property
    def ledger(self) -> dict[str, dict[str, Any]]:
        rows = self.table("ledger")
        assert len({row["uri"] for row in rows}) == len(rows), "a uri stands in the ledger twice"
        return {row["uri"]: row for row in rows}

    @functools.cached_property
    def samples(self) -> list[dict[str, Any]]:
        return self.table("dataset/data")

    def uris(self, status: str, stage: str | None = None) -> set[str]:
        return {uri for uri, row in self.ledger.items() if row["status"] == status and stage in (None, row["stage"])}

    def hashes(self, *folders: str) -> dict[str, str]:
        """Return the SHA-256 of every file below the folders, markers and all."""
        files = (path for folder in folders for path in sorted((self.path / folder).rglob("*")) if path.is_file())
        return {str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def times(self) -> dict[str, int]:
        """Return when each part and each marker was written."""
        files = (path for path in self.path.rglob("*") if path.suffix in (".parquet", ".done"))
        return {
            str(path.relative_to(self.path)): path.stat().st_mtime_ns for path in files if path.parent.name != "sources"
        }


def _with_class_names(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return a row with the names of classes in the place of their numbers, as `datasets` types them."""
    stated = json.loads((schema.metadata or {}).get(b"huggingface", '{"info": {"features": {}}}'))["info"]["features"]
    names = {column: one["names"] for column, one in stated.items() if "names" in one}
    return row | {column: names[column][row[column]] for column in names if row[column] is not None}


# -- the oracle ------------------------------------------------------------------------------------------------------


def pool_uris(folder: Path, name: str = "pool") -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by uri."""
    return {
        f"{name}/{path.relative_to(folder)}": path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def opened(files: Mapping[str, bytes]) -> dict[str, Image.Image]:
    """Return the pictures Pillow can load."""

    def load() -> Iterator[tuple[str, Image.Image]]:
        for uri, data in files.items():
            try:
                yield uri, Image.open(io.BytesIO(data)).convert("RGB")
            except OSError:
                continue

    return dict(load())


def stored(images: Iterable[Image.Image], spec: str) -> np.ndarray:
    """Return (n, d) float64 unit rows as the run stores them: rounded to float16."""
    rows = encoder_of(spec).embed(list(images)).astype(np.float16).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def components_of(linked: np.ndarray) -> np.ndarray:
    """Return the component labels of a boolean (n, n) adjacency matrix."""
    return connected_components(coo_matrix(linked), directed=False)[1]


def expected(
    roles: Mapping[str, Path], dedup: float = DEDUP, leaks: float = LEAKS, through_pool: bool = True
) -> dict[str, tuple[str, str]]:
    """Return (status, stage) of every pool file up to leak removal, by brute force over all pairs."""
    files = pool_uris(roles["pool"])
    images = opened(files)
    verdict = {uri: ("dead", "decode") for uri in files}
    verdict |= {uri: ("dropped", "exact") for uri in images}
    first: dict[bytes, str] = {}
    for uri in sorted(images):
        first.setdefault(files[uri], uri)
    uris = sorted(first.values())
    verdict |= {uri: ("dropped", "dedup") for uri in uris}
    vectors = stored([images[uri] for uri in uris], "builtin:copy")
    labels = components_of(linked(vectors, vectors, dedup))
    best: dict[int, tuple[tuple[int, str, str], str]] = {}
    for uri, label in zip(uris, labels, strict=True):
        order = (-images[uri].width * images[uri].height, hashlib.sha256(files[uri]).hexdigest(), uri)
        best[label] = min(best.get(label, (order, uri)), (order, uri))
    kept = sorted(uri for _, uri in best.values())
    verdict |= {uri: ("kept", "dedup") for uri in kept}
    if "references" in roles:
        leaking = _leaking(kept, images, roles["references"], leaks, through_pool)
        verdict |= dict.fromkeys(leaking, ("dropped", "leaks"))
    return verdict


def _leaking(
    kept: list[str], images: Mapping[str, Image.Image], references: Path, threshold: float, through_pool: bool
) -> set[str]:
    pool = stored([images[uri] for uri in kept], "builtin:copy")
    against = stored(opened(pool_uris(references)).values(), "builtin:copy")
    direct = linked(pool, against, threshold)
    if not through_pool:
        return {uri for uri, leaks in zip(kept, np.any(direct, axis=1), strict=True) if leaks}
    n = len(kept)
    graph = np.zeros((n + len(against),) * 2, bool)
    graph[:n, :n], graph[:n, n:] = linked(pool, pool, threshold), direct
    labels = components_of(graph)
    return {uri for uri, label in zip(kept, labels[:n], strict=True) if label in labels[n:]}


def linked(left: np.ndarray, right: np.ndarray, threshold: float) -> np.ndarray:
    """Return where cosines are above the threshold; a pool that leaves room for rounding is part of the bargain."""
    cosines = left @ right.T
    assert np.abs(cosines - threshold).min() > 1e-5, "a planted pair lies on the threshold: choose other seeds"
    return cosines > threshold


def nearest(roles: Mapping[str, Path], survivors: Sequence[str], k: int) -> dict[str, list[tuple[str, float]]]:
    """Return for each survivor the ids of the seeds that have it among their k nearest, best first, by brute force."""
    images, seeds = opened(pool_uris(roles["pool"])), pool_uris(roles["seeds"], "seeds")
    ids = [hashlib.sha256(data).hexdigest()[:32] for data in seeds.values()]
    cosines = (
        stored(opened(seeds).values(), "builtin:layout")
        @ stored([images[uri] for uri in survivors], "builtin:layout").T
    )
    found: dict[str, list[tuple[str, float]]] = {}
    for seed, row in zip(ids, cosines, strict=True):
        for column in np.argsort(-row, kind="stable")[:k]:
            found.setdefault(survivors[column], []).append((seed, float(row[column])))
    return {uri: sorted(pairs, key=lambda pair: (-pair[1], pair[0])) for uri, pairs in found.items()}


def parquet_of(files: Mapping[str, bytes]) -> bytes:
    """Return a Parquet file with an image column of structs, as `datasets` writes them."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": data, "path": name} for name, data in files.items()]}), sink)
    return sink.getvalue()


def tar_of(files: Mapping[str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    """Return a tar with the files in their order."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()
