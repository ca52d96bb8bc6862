"""A finished run and a training, opened: what they made, what became of every input, how they look."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from granary.curation.errors import UserError
from granary.curation.store import storage

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa
    from torch import nn

SHEET = "contact-sheet.jpg"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a finished run of curate, render, sample or pack.

    Args:
        path: the run directory, a path or URL.

    Raises:
        UserError: it is not a run directory, or the run has not finished.
    """
    return Run(os.fspath(path).rstrip("/"))


def open_training(path: str | os.PathLike[str]) -> Training:
    """Open a training directory.

    Args:
        path: the directory, a path or URL.

    Raises:
        UserError: it is not a training directory.
    """
    return Training(os.fspath(path).rstrip("/"))


class Run:
    """A finished run of a pipeline.

    Args:
        url: of the run directory.

    Attributes:
        url: of the run directory.
        facts: what run.json holds: kind, counts, versions, seconds and rows of each stage.
    """

    def __init__(self, url: str) -> None:
        from granary.curation.runs.facts import read_facts

        self.url = url
        self.facts: Mapping[str, Any] = read_facts(url)

    @property
    def kind(self) -> str:
        """The command that made it: curate, render, sample or pack."""
        return str(self.facts["kind"])

    @property
    def counts(self) -> dict[str, int]:
        """Inputs that were kept, dropped or dead; samples and shards of the dataset, and its bytes."""
        flow = self.facts["flow"]
        inputs = {"in": flow[0]["in"], **{key: sum(row[key] for row in flow) for key in ("dropped", "dead")}}
        return {**inputs, **{key: int(self.facts[key]) for key in ("samples", "shards", "bytes")}}

    @property
    def report(self) -> str:
        """Path or URL of the report, a page for a browser."""
        return storage.join(self.url, "report", "index.html")

    def dataset(self, config: str = "default", split: str = "train", **options: Any) -> datasets.Dataset:
        """Return the samples.

        Args:
            config: "default", or another of the run, for example "pairs" of a packed one.
            split: of the config.
            options: further ones of `datasets.load_dataset`, for example `streaming=True`.
        """
        from datasets import load_dataset

        return load_dataset(storage.join(self.url, "dataset"), config, split=split, **options)

    @overload
    def ledger(self, format: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
    @overload
    def ledger(self, format: Literal["arrow"]) -> pa.Table: ...
    def ledger(self, format: str = "pandas") -> pd.DataFrame | pa.Table:
        """Return what became of every input, a row each: status, stage, reason and the evidence.

        Args:
            format: "pandas" for a DataFrame, "arrow" for a `pyarrow.Table`.
        """
        return self._table("ledger", format)

    @overload
    def dead_letters(self, format: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
    @overload
    def dead_letters(self, format: Literal["arrow"]) -> pa.Table: ...
    def dead_letters(self, format: str = "pandas") -> pd.DataFrame | pa.Table:
        """Return what could not be read or made, and why; `format` as in `ledger`."""
        return self._table("dead-letter", format)

    def explain(self, image: str) -> str:
        """Tell the story of one image of a curation run.

        Args:
            image: a uri as in the ledger, the beginning of an id, a file name or the path of a file.

        Raises:
            UserError: nothing matches, several images do, or the run is none of `granary curate`.
        """
        if self.kind != "curate":
            raise UserError(
                f"explain: {self.url} is a run of granary {self.kind}; only those of curate can be explained"
            )
        from granary.curation.runs.explain import explain
        from granary.curation.runs.lookup import Files, open_run

        run, recipe = open_run(self.url)
        return explain(run, Files(run, recipe.decode.max_bytes), image)

    def _table(self, stage: str, format: str) -> Any:
        from granary.curation.runs.run import Run as Parts

        table = Parts(self.url).read_all(stage)
        return table if format == "arrow" else table.to_pandas()

    def __repr__(self) -> str:
        counts = ", ".join(f"{value:,} {name}" for name, value in self.counts.items())
        return f"<granary {self.kind} run {self.url}: {counts}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: counts, and some of the pictures."""
        header = "".join(f"<th>{html.escape(name)}</th>" for name in self.counts)
        row = "".join(f"<td>{value:,}</td>" for value in self.counts.values())
        title = f"granary {self.kind}: {self.facts['name']}, {self.url}"
        return (
            f"<div><p><b>{html.escape(title)}</b></p><table><tr>{header}</tr><tr>{row}</tr></table>"
            f"{self._sheet()}<p>report: {html.escape(self.report)}</p></div>"
        )

    def _sheet(self) -> str:
        """Return the contact sheet as an HTML image; nothing when there is none."""
        path = storage.join(self.url, "dataset", SHEET)
        if not storage.exists(path):
            return ""
        data = base64.b64encode(storage.read_bytes(path)).decode()
        return f'<img alt="samples of the dataset" style="max-width:100%" src="data:image/jpeg;base64,{data}">'


class Training:
    """A training, finished or not.

    Args:
        url: of the training directory.

    Attributes:
        url: of the training directory.
        facts: what run.json holds: method, step, steps, finished, metrics, probe, checkpoint.
    """

    def __init__(self, url: str) -> None:
        path = storage.join(url, "run.json")
        if not storage.exists(path):
            raise UserError(
                f"train: {url} is not a training directory with a checkpoint; give the --out of granary train"
            )
        self.url = url
        self.facts: Mapping[str, Any] = json.loads(storage.read_bytes(path))
        if self.facts.get("kind") != "train":
            raise UserError(f"train: {url} is a run of granary {self.facts.get('kind')}; open it with granary.open_run")

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return bool(self.facts["finished"])

    @property
    def report(self) -> str:
        """Path or URL of the report, a page for a browser."""
        return storage.join(self.url, "report", "index.html")

    def model(self, device: str = "cpu") -> nn.Module:
        """Return the trained model, in evaluation mode, on a device."""
        from granary.training.models.registry import load_model

        return load_model(self.url, device)

    def metrics(self) -> pd.DataFrame:
        """Return what was logged at each step: loss, learning rate, statistics."""
        return self._curve("metrics")

    def probe(self) -> pd.DataFrame:
        """Return the scores of the online probe, a row for each time it ran."""
        return self._curve("probe")

    def validation(self) -> pd.DataFrame:
        """Return what was measured on the validation split, a row for each time."""
        return self._curve("validation")

    def _curve(self, name: str) -> pd.DataFrame:
        import pandas as pd

        path = storage.join(self.url, f"{name}.csv")
        if not storage.exists(path):
            return pd.DataFrame()
        with storage.open_read(path) as file:
            return pd.read_csv(file)

    def __repr__(self) -> str:
        facts = self.facts
        return f"<granary training {self.url}: {facts['method']}, step {facts['step']:,} of {facts['steps']:,}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: how far it is, and the last numbers."""
        facts = self.facts
        rows = {"step": f"{facts['step']:,} of {facts['steps']:,}", **facts["metrics"], **facts["probe"]}
        cells = "".join(
            f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in rows.items()
        )
        title = html.escape(f"{facts['method']}: {self.url}")
        return f"<div><p><b>{title}</b></p><table>{cells}</table></div>"
