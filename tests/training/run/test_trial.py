"""`granary train --dry-run` opens and times a training and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_procedures import write_procedures
from tiny_shards import sample, shapes, write_shards

from granary.pipelines import command

FIELDS = {"method": "supervised", "model.width": 16, "model.depth": 1, "model.heads": 2, "model.img_size": 16}
FIELDS |= {"batch": 8, "steps": 40, "workers": 0, "probe.every": 0, "device.accelerator": "cpu", "device.threads": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"), shapes(32))


def run(data: Path, out: Path, capsys: pytest.CaptureFixture[str], *flags: str, **fields: object) -> tuple[int, str]:
    capsys.readouterr()
    given = FIELDS | {key.replace("__", "."): value for key, value in fields.items()}
    words = [f"--{key}={value}" for key, value in given.items()]
    status = command.main(["train", "--data", str(data), "--out", str(out), *words, *flags])
    return status, " ".join(capsys.readouterr().err.split())


def test_a_trial_says_what_the_training_is_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = run(data, tmp_path / "out", capsys, "--dry-run")
    assert status == 0
    assert not list(tmp_path.iterdir())
    assert "data: 32 rows of 1 datasets, 4 classes" in told
    assert "40 steps of 8 rows, each row 10.0 times" in told
    step, whole = (float(re.search(pattern, told)[1]) for pattern in (r"takes (\S+) s on cpu", r"all steps: (\S+) s;"))
    assert whole == pytest.approx(40 * step, rel=0.02, abs=0.1)  # as they are rounded
    assert run(data, tmp_path / "out", capsys)[0] == 0
    size = (next((tmp_path / "out" / "checkpoints").glob("*40")) / "training.safetensors").stat().st_size
    assert float(re.search(r"has about (\S+) MB", told)[1]) * 1e6 == pytest.approx(size, rel=0.2, abs=5e4)
    assert f"{tmp_path / 'out'} is at step 40 already" in run(data, tmp_path / "out", capsys, "--dry-run")[1]


def test_fewer_steps_than_are_tried_and_pictures_that_cannot_be_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*shapes(32), sample(b"no picture", (1, 1), label="cross")]
    status, told = run(write_shards(tmp_path / "data", rows), tmp_path / "out", capsys, "--dry-run", steps=5)
    assert status == 0
    assert re.search(r"1 of the pictures cannot be decoded, the first tests/\w+\.jpg: UnidentifiedImageError", told)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"split": "nowhere"}, "split"),
        ({"batch": 8, "accumulate": 3}, "accumulate: 3 is not right"),
    ],
)
def test_what_would_stop_the_training_stops_the_trial(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, object], sentence: str
) -> None:
    status, told = run(data, tmp_path / "out", capsys, "--dry-run", **fields)
    assert status == 2
    assert sentence in told
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_another_training_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path / "out", capsys, steps=2)[0] == 0
    status, told = run(data, tmp_path / "out", capsys, "--dry-run", steps=2, seed=1)
    assert status == 2
    assert "holds a training with seed 0, not 1" in told


def test_what_is_computed_of_all_pictures_or_clips_first_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path / "first", capsys, steps=2)[0] == 0
    model = {"features.model": str(tmp_path / "first"), "method": "xrm"}
    clips = {"method": "vedit", "options.width": 16, "options.blocks": 1, "options.heads": 2, "batch": 4}
    for given, rows in ((model, data), (clips, Path(write_procedures(tmp_path / "clips")))):
        status, told = run(rows, tmp_path / "out", capsys, "--dry-run", **given)
        assert status == 2
        assert "are computed before the first step" in told
        assert not (tmp_path / "out").exists()
