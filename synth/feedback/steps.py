"""The first steps of a sampling run: count the real pictures, plan the rows to draw, fit class Gaussians.

Each is the `step(run, arguments, output)` of a stage; `drawing` and `outputs` have the others.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from granary.curation.images.decode import DecodeError, DecodeLimits, decode
from granary.curation.runs.run import Output, Run, read_table
from granary.curation.runs.vectors import Layout
from granary.curation.sources import Reader
from granary.curation.steps.unreadable import check_unchanged
from granary.synth.feedback.plan import Cell, choose, class_of, group_of, plan_rows, row_seed, shortfalls
from granary.synth.feedback.prompts import prompt_of

LOADING = threading.Lock()  # diffusers and transformers build models on a device they set for the whole process
LOCATOR = ["source", "path", "offset", "size", "sha256"]
CELLS = pa.schema([("label", pa.string()), ("group", pa.string()), ("real", pa.int64())])
PLAN = pa.schema(
    [
        ("row_id", pa.string()),
        ("seed", pa.int64()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("prompt", pa.string()),
        ("model_class", pa.int32()),
        ("target", pa.int32()),
        ("condition", pa.int64()),
        ("condition_id", pa.string()),
    ]
)


# -- the plan --------------------------------------------------------------------------------------------------------


def real_pictures(
    run: Run, groups: Mapping[str, str], part: int | None = None
) -> Iterator[tuple[int, dict[str, Any], Cell | str]]:
    """Yield (global index, row, its cell or why it has none) of every readable picture, or of those of one part."""
    held = {identity for url in run.parts("holdout") for identity in read_table(url, ["id"])["id"].to_pylist()}
    layout = Layout.of(run, "data")
    columns = ["uri", "id", "label", "source", "metadata", "status"]
    first, last = (0, len(layout.parts)) if part is None else (part, part + 1)
    for start, table in layout.read(first, last, columns):
        for offset, row in enumerate(table.to_pylist()):
            if row["status"] == "ok":
                name = run.sources["data"][row["source"]].name
                yield start + offset, row, cell_of(row, name, groups, held)


def cell_of(row: Mapping[str, Any], source: str, groups: Mapping[str, str], held: set[str]) -> Cell | str:
    """Return the cell of a real picture, or why it has none."""
    label = class_of(groups["by"], row["uri"], row["label"], groups["pattern"])
    group = group_of(groups["by"], row["uri"], source, row["metadata"], groups["pattern"], groups["key"])
    if row["id"] in held:
        return "held out"
    if label is None:
        return "no label"
    return "no group" if group is None else Cell(label, group)


def count_cells(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Count the real pictures of each class, or class in a group."""
    counts: Counter[Cell] = Counter()
    for _, _, cell in real_pictures(run, arguments["groups"]):
        if isinstance(cell, Cell):
            counts[cell] += 1
        else:
            output.counters[cell] += 1
    rows = [{"label": cell.label, "group": cell.group, "real": count} for cell, count in sorted(counts.items())]
    output.write(pa.Table.from_pylist(rows, CELLS))


def read_cells(run: Run) -> dict[Cell, int]:
    """Return the counts that `count_cells` found."""
    return {Cell(row["label"], row["group"]): row["real"] for row in run.read("cells", 0).to_pylist()}


def write_plan(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write the rows to draw, sorted by id; row group i is work unit i.

    arguments: seed, fill, empty, groups, templates, names; classes: label -> [index in the model's classes or None,
    index in the classifier's]; needs: of the model, "prompt" and "condition" among them; unit_rows.
    """
    seed, classes = arguments["seed"], arguments["classes"]
    pictures = _by_cell(run, arguments["groups"]) if "condition" in arguments["needs"] else {}
    rows = plan_rows(shortfalls(read_cells(run), arguments["fill"], arguments["empty"]), seed)
    for start in range(0, len(rows), arguments["unit_rows"]):
        unit = []
        for row_id, cell, _ in rows[start : start + arguments["unit_rows"]]:
            model_class, target = classes[cell.label]
            candidates = pictures.get(cell) or pictures.get(Cell(cell.label, "*"))
            identity, index = choose(candidates, seed, row_id) if candidates else (None, -1)
            words = (arguments["names"].get(cell.label, cell.label), cell.group)
            text = prompt_of(arguments["templates"], row_id, *words) if "prompt" in arguments["needs"] else ""
            values = (row_id, row_seed(seed, row_id), *cell, text, model_class, target, index, identity)
            unit.append(dict(zip(PLAN.names, values, strict=True)))
        output.write(pa.Table.from_pylist(unit, PLAN))
    if not rows:
        output.write(PLAN.empty_table())


def _by_cell(run: Run, groups: Mapping[str, str]) -> dict[Cell, list[tuple[str, int]]]:
    """Return (id, global index) of the pictures of each cell, and of each class as the group "*", sorted by id."""
    found: dict[Cell, dict[str, int]] = {}
    for index, row, cell in real_pictures(run, groups):
        if isinstance(cell, Cell):
            for key in {cell, Cell(cell.label, "*")}:
                found.setdefault(key, {}).setdefault(row["id"], index)
    return {cell: sorted(pictures.items()) for cell, pictures in found.items()}


# -- class Gaussians -------------------------------------------------------------------------------------------------


def write_features(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write the classifier's features of the real pictures of one part of the data: target, feature (d,) float32."""
    classifier = _classifier(arguments["classifier"], arguments["device"], arguments["models"])
    mine = [
        (index, arguments["targets"][cell.label])
        for index, _, cell in real_pictures(run, arguments["groups"], arguments["part"])
        if isinstance(cell, Cell)
    ]
    pictures = read_pictures(run, [index for index, _ in mine], arguments["decode"])
    targets, rows = [], []
    for (_, target), picture in zip(mine, pictures, strict=True):
        if isinstance(picture, Image.Image):
            targets.append(target)
            rows.append(_features(classifier, picture, arguments["device"]))
        else:
            output.counters["dead"] += 1
    values = pa.array(rows, pa.list_(pa.float32()))
    output.write(pa.table({"target": pa.array(targets, pa.int32()), "feature": values}))


@functools.lru_cache(maxsize=1)
def _classifier(spec: str, device: str, models: str) -> Any:
    """Load a classifier once per process; models: a fingerprint, so that another one of the same name is loaded."""
    from granary.synth.feedback.classifiers import load_classifier

    with LOADING:
        return load_classifier(spec, device)


def _features(classifier: Any, picture: Image.Image, device: str) -> np.ndarray:
    import torch

    from granary.curation.encoders.inference import torch_device

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return classifier.features(pixels.to(torch_device(device)).float() / 255)[0].cpu().numpy()


def write_gaussians(run: Run, arguments: Mapping[str, Any], output: Output, sums: Any) -> None:
    """Write the class Gaussians fitted to merged sums: name, shape and float32 values of each tensor."""
    fitted = sums.finish(arguments["classes"], arguments["tying"], arguments["shrinkage"], arguments["dimensions"])
    rows = [
        {"name": name, "shape": list(tensor.shape), "values": tensor.numpy().astype("<f4").tobytes()}
        for name, tensor in fitted.tensors().items()
    ]
    output.counters["missing"] = len(fitted.missing())
    output.write(pa.Table.from_pylist(rows))


def read_gaussians(run: Run) -> Any:
    """Return the ClassGaussians that `write_gaussians` wrote."""
    import torch

    from granary.synth.feedback.gaussians import ClassGaussians

    rows = run.read("gaussians", 0).to_pylist()
    arrays = {row["name"]: np.frombuffer(row["values"], "<f4").reshape(row["shape"]).copy() for row in rows}
    return ClassGaussians(**{name: torch.from_numpy(array) for name, array in arrays.items()})


# -- real pictures again ---------------------------------------------------------------------------------------------


def read_pictures(
    run: Run, indices: Sequence[int], limits: Mapping[str, int]
) -> Iterator[Image.Image | DecodeError | OSError]:
    """Yield real pictures by their global index in the data, or the error that kept each from being read."""
    wanted = DecodeLimits(**limits)
    rows = Layout.of(run, "data").take(np.array(indices, np.int64), LOCATOR).to_pylist() if len(indices) else []
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(source, wanted.max_bytes)) for source in run.sources["data"]]
        for row in rows:
            try:
                data = readers[row["source"]].read(row["path"], row["offset"], row["size"])
                check_unchanged(data, row["sha256"])
                yield decode(data, wanted).image
            except (DecodeError, OSError) as error:
                yield error
