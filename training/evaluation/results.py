"""`granary results`: the scores of several models side by side, as text, CSV and a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from granary.curation.errors import UserError, needs
from granary.curation.store import storage
from granary.curation.store.trees import json_tree

SCORES = "scores.json"  # looked for in a folder
OWN = ("model", "dead", "chosen", "left_out", "device", "batch")  # may differ between models measured alike
ONLINE = "online probe"


@dataclass(frozen=True)
class ModelScores:
    """The scores of one model.

    Args:
        name: of the file or folder.
        scores: protocol -> metric -> value.
        used: protocol -> settings.
    """

    name: str
    scores: dict[str, dict[str, float | None]]
    used: dict[str, dict[str, object]]

    def value(self, column: str) -> float | None:
        """Return a value by `protocol/metric`; None where there is none."""
        protocol, _, metric = column.partition("/")
        return self.scores.get(protocol, {}).get(metric)


def results(
    paths: Sequence[str], metrics: Sequence[str] = (), csv_path: str | None = None, plot: str | None = None
) -> str:
    """Return the table of several scores as text, and write it.

    Args:
        paths: JSON files of `granary evaluate`, folders with scores.json, or training directories, of which the last
            scores of the online probe are shown; NAME=PATH gives a row another name.
        metrics: what to show, `protocol/metric` with * and ?, or a protocol for its first metric; default: the first
            metric of every protocol.
        csv_path: file to write all metrics to, one row for each model.
        plot: picture to write, its ending naming the format: svg, png or pdf.

    Raises:
        UserError: for a file without scores, or metrics that none has.
    """
    rows = [read_row(path) for path in paths]
    if not rows:
        raise UserError("results: nothing to show; give one or more files of granary evaluate")
    columns = chosen_columns(rows, metrics)
    if plot and plot.rpartition(".")[2] not in ("svg", "png", "pdf"):
        raise UserError(f"plot: {plot!r} is not right; its ending must be .svg, .png or .pdf")
    if csv_path:
        storage.write_bytes(csv_path, as_csv(rows, all_columns(rows)).encode())
    if plot:
        storage.write_bytes(plot, drawn(rows, columns, plot.rpartition(".")[2]))
    return "\n".join([written_table(rows, columns), *differences(rows, columns)])


def read_row(path: str) -> ModelScores:
    """Read the scores at PATH or NAME=PATH; see `results`. Raises UserError."""
    name, equals, place = path.partition("=")
    if not equals or storage.exists(path):  # a folder may be called lr=0.1
        name, place = "", path
    if place.endswith(".json"):
        return _row(name or place.rpartition("/")[2].removesuffix(".json"), place)
    folder = name or place.rstrip("/").rpartition("/")[2]
    for file in (SCORES, "run.json"):
        if storage.exists(storage.join(place, file)):
            return _row(folder, storage.join(place, file))
    raise UserError(
        f"results: {place} is neither a JSON file nor a folder with {SCORES}; granary evaluate --out writes one"
    )


def _row(name: str, file: str) -> ModelScores:
    try:
        tree = json_tree(storage.read_bytes(file))
    except (OSError, ValueError) as error:
        raise UserError(f"results: {file} cannot be read as JSON ({error})") from error
    tree = tree if isinstance(tree, dict) else {}
    kind = tree.get("kind")
    if kind == "train":
        tree = {ONLINE: tree.get("probe")}
    elif kind is not None:
        raise UserError(
            f"results: {file} is of a run of granary {kind}, which has no scores; give files of granary evaluate, "
            "folders with scores.json or training directories"
        )
    settings = tree.pop("settings", None)
    scores = {
        protocol: {name: value for name, value in metrics.items() if value is None or isinstance(value, int | float)}
        for protocol, metrics in tree.items()
        if isinstance(metrics, dict)
    }
    if not any(scores.values()):
        raise UserError(f"results: {file} holds no scores; granary evaluate --out writes such a file")
    return ModelScores(name, scores, settings.get("used", {}) if isinstance(settings, dict) else {})


def all_columns(rows: Sequence[ModelScores]) -> list[str]:
    """Return `protocol/metric` of every score, in the order they come."""
    protocols = dict.fromkeys(protocol for row in rows for protocol in row.scores)
    return [
        f"{protocol}/{metric}"
        for protocol in protocols
        for metric in dict.fromkeys(metric for row in rows for metric in row.scores.get(protocol, {}))
    ]


def chosen_columns(rows: Sequence[ModelScores], metrics: Sequence[str]) -> list[str]:
    """Return the columns that patterns name; see `results`. Raises UserError for a pattern that names none."""
    every = all_columns(rows)
    first = {column.partition("/")[0]: column for column in reversed(every)}
    if not metrics:
        return [column for column in every if column in first.values()]
    columns: dict[str, None] = {}
    for pattern in metrics:
        fitting = [first[pattern]] if pattern in first else [c for c in every if fnmatchcase(c, pattern)]
        if not fitting:
            raise UserError(f"metrics: {pattern!r} is not right: there is no such score; there are {', '.join(every)}")
        columns |= dict.fromkeys(fitting)
    return list(columns)


def written_table(rows: Sequence[ModelScores], columns: Sequence[str]) -> str:
    """Return a Markdown table, the chance level as its last row where it is known."""
    chance = {column: next(_chances(rows, column), None) for column in columns}
    lines = [["model", *(column.replace("/", " ") for column in columns)]]
    lines += [[row.name, *(_shown(row.value(column)) for column in columns)] for row in rows]
    if any(value is not None for value in chance.values()):
        lines.append(["chance", *(_shown(chance[column]) for column in columns)])
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns) + 1)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join("| " + " | ".join(_padded(line, widths)) + " |" for line in lines)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        yield cell.rjust(width) if number else cell.ljust(width)


def _chances(rows: Sequence[ModelScores], column: str) -> Iterator[float]:
    """Yield the chance level of a metric where a row states it: its own, or that of the protocol's first metric."""
    protocol = column.partition("/")[0]
    for row in rows:
        chance = row.value(f"{column}.chance")
        if chance is None and row.value(column) is not None and _accuracy(column):
            stated = [value for name, value in row.scores[protocol].items() if name.endswith(".chance")]
            chance = stated[0] if len(set(stated)) == 1 else None
        if chance is not None:
            yield chance


def _accuracy(column: str) -> bool:
    return column.partition("/")[2].startswith("accuracy") and "." not in column


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def differences(rows: Sequence[ModelScores], columns: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each protocol whose rows were not measured alike."""
    for protocol in dict.fromkeys(column.partition("/")[0] for column in columns):
        used = [row.used[protocol] for row in rows if protocol in row.used]
        keys = sorted({key for settings in used for key in settings} - set(OWN))
        apart = [key for key in keys if len({json.dumps(s.get(key), sort_keys=True) for s in used}) > 1]
        if apart:
            yield f"{protocol}: the models were measured with different {', '.join(apart)}; do not compare them"


def as_csv(rows: Sequence[ModelScores], columns: Sequence[str]) -> str:
    """Return CSV with all digits: a row for each model, empty where a value is missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", *columns])
    writer.writerows([row.name, *(row.value(column) for column in columns)] for row in rows)
    return text.getvalue()


def drawn(rows: Sequence[ModelScores], columns: Sequence[str], kind: str) -> bytes:
    """Return a picture: a panel of bars for each column, a line at its chance level. Same scores, same bytes."""
    with needs("train"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    with matplotlib.rc_context({"svg.hashsalt": "granary", "svg.fonttype": "none"}):
        figure, panels = pyplot.subplots(
            1, len(columns), figsize=(2 + 2.6 * len(columns), 1.2 + 0.35 * len(rows)), squeeze=False, sharey=True
        )
        for column, panel in zip(columns, panels[0], strict=True):
            values = [row.value(column) for row in rows]
            bars = panel.barh(range(len(rows)), [value or 0.0 for value in values], color="#6fa699")
            panel.bar_label(bars, [_shown(value) for value in values], padding=2, fontsize=8)
            for chance in list(_chances(rows, column))[:1]:
                panel.axvline(chance, color="#b98a3a", linewidth=1)
                panel.set_xlabel(f"line: chance {_shown(chance)}", color="#b98a3a", fontsize=8)
            panel.set_title(column.replace("/", " "), fontsize=9)
            panel.set_yticks(range(len(rows)), [row.name for row in rows])
            panel.margins(x=0.2)
        panels[0][0].invert_yaxis()
        figure.tight_layout()
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=120, metadata=stamp)
        pyplot.close(figure)
    return file.getvalue()
