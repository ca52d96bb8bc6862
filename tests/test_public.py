"""The public names: as cheap to import as promised, and they do what the command line does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dense_fixture
import numpy as np
import pools
import pytest
import torch

import granary

HEAVY = (
    "apache_beam",
    "torch",
    "sklearn",
    "transformers",
    "datasets",
    "faiss",
    "pandas",
    "pyarrow",
    "pydantic",
    "rich",
)


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pools.write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def run(roles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> granary.Run:
    """A small run, made with paths, a mapping for a group of fields, and a dotted name."""
    out = tmp_path_factory.mktemp("public") / "run"
    fields = {"shards.rows": 100}
    return granary.curate(
        pool=roles["pool"],
        seeds=[roles["seeds"]],
        references={"path": roles["references"], "name": "benchmark"},
        out=out,
        dedup={"threshold": 0.9},
        workers=2,
        quiet=True,
        **fields,
    )


def test_the_import_is_cheap() -> None:
    code = f"import sys, granary; dir(granary); print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    for name in granary.__all__:
        assert getattr(granary, name).__doc__, name
    assert set(granary.__all__) <= set(dir(granary))
    assert granary.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'curtae'"):
        granary.curtae  # noqa: B018


def test_a_run_is_what_the_command_makes(run: granary.Run, roles: dict[str, Path], tmp_path: Path) -> None:
    words = ["--dedup.threshold", "0.9", "--shards.rows", "100", "--references.name", "benchmark", "--workers", "2"]
    command = pools.curate(roles, tmp_path / "run", *words)
    assert pools.Run(run.url).hashes("dataset", "ledger") == command.hashes("dataset", "ledger")


def test_an_opened_run_gives_its_data(run: granary.Run, roles: dict[str, Path]) -> None:
    opened = granary.open_run(Path(run.url))
    assert opened.kind == "curate"
    dataset, ledger = opened.dataset(), opened.ledger()
    assert dataset.num_rows == opened.counts["samples"] == (ledger.status == "kept").sum() > 0
    assert next(iter(opened.dataset(streaming=True)))["id"] == dataset[0]["id"]
    assert opened.counts["in"] == len(ledger) == opened.ledger("arrow").num_rows
    assert opened.counts["dead"] == (ledger.status == "dead").sum() == len(opened.dead_letters())
    assert opened.counts["dropped"] == (ledger.status == "dropped").sum()
    assert Path(opened.report).is_file()
    dropped = ledger[(ledger.stage == "dedup") & (ledger.status == "dropped")].iloc[0]
    assert f"  {dropped.representative}  pool/" in opened.explain(dropped.uri)
    assert "curate run" in repr(opened)


def test_a_notebook_shows_counts_and_pictures_and_no_markup_of_others(run: granary.Run) -> None:
    opened = granary.open_run(run.url)
    opened.facts = {**opened.facts, "name": "<script>alert(1)</script>"}
    shown = opened._repr_html_()
    assert "<script>" not in shown
    assert f"<td>{opened.counts['samples']}</td>" in shown
    assert 'src="data:image/jpeg;base64,/9j/' in shown


def test_mistakes_are_one_sentence(run: granary.Run, roles: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        granary.UserError, match=r"^dedup\.treshold: there is no such key; did you mean dedup\.threshold\?$"
    ):
        granary.curate(pool=roles["pool"], out=out, dedup={"treshold": 0.9})
    with pytest.raises(granary.UserError, match="workers: -1 is not right"):
        granary.curate(pool=roles["pool"], out=out, workers=-1)
    with pytest.raises(granary.UserError, match=r"it has no run\.json"):
        granary.open_run(tmp_path)
    with pytest.raises(granary.UserError, match="is not a training directory"):
        granary.open_training(tmp_path)
    with pytest.raises(granary.UserError, match=r"open it with granary\.open_run"):
        granary.open_training(run.url)
    assert not out.exists()


def test_rendered_packed_trained_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = {"width": 48, "height": 48}
    rendered = granary.render(
        config="render/animals_demo.yaml", out=tmp_path / "animals", image=image, quiet=True, workers=2
    )
    with pytest.raises(granary.UserError, match="only those of curate can be explained"):
        rendered.explain("a")
    training = granary.train(
        config="train/supervised_tiny.yaml",
        data=rendered.url,
        out=tmp_path / "trained",
        steps=2,
        batch=16,
        workers=0,
        quiet=True,
    )
    assert training.finished
    assert granary.open_training(training.url).facts == training.facts
    assert len(training.metrics()) > 0
    assert isinstance(training.model(), torch.nn.Module)
    assert "supervised, step 2 of 2" in repr(training)
    assert "2 of 2" in training._repr_html_()
    capsys.readouterr()
    scores = granary.evaluate("knn", model=training, data=rendered, quiet=True)
    assert 0 <= scores["knn"]["accuracy"] <= 1
    assert capsys.readouterr().out == ""


def test_packed(tmp_path: Path) -> None:
    dense_fixture.write(
        tmp_path / "dci", {"1-data.json": dense_fixture.annotation()}, {"barn.jpg": dense_fixture.picture()}
    )
    packed = granary.pack(
        config="pack/dci.yaml",
        annotations=tmp_path / "dci" / "annotations",
        images=tmp_path / "dci" / "photos",
        out=tmp_path / "run",
        quiet=True,
    )
    assert packed.dataset().num_rows == 1
    assert packed.dataset("pairs").num_rows > 1


def test_the_join_is_public() -> None:
    rows = np.eye(4, dtype=np.float32)[[0, 1, 1, 2]]
    pairs, similarities = granary.threshold_join(rows, 0.9)
    assert (pairs.tolist(), similarities.tolist()) == ([[1, 2]], [1.0])
