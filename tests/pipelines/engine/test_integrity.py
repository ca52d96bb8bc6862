"""Damage is noticed: by `granary check`, before anything is published, and by the run that meets it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pools
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.runs.run import Marker, NoJob, Run, Stage, Unit, run_unit
from granary.curation.runs.tables import DamagedPart, read_table
from granary.pipelines import command
from granary.pipelines.engine.repair import repairing

RECIPE = (*pools.SMALL_UNITS, *pools.THRESHOLDS)
SHARD = "dataset/data/train-00001-of-00002.parquet"
VECTORS = "pool/part-00001-of-00004.parquet"


@pytest.fixture
def copied(run, tmp_path) -> pools.Run:
    """A copy of the finished run, elsewhere."""
    return pools.Run(str(shutil.copytree(run.path, tmp_path / "copied")))


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, its length and its time staying as they are."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def flip_pages(path: Path) -> None:
    """Change a bit in the pages of the last column of a Parquet file."""
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        column = group.column(group.num_columns - 1)
    begin = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    data = bytearray(path.read_bytes())
    data[begin + column.total_compressed_size - 3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def one_row_more(path: Path) -> None:
    """Change a number in a marker or an index, which stays JSON."""
    tree = json.loads(path.read_bytes())
    path.write_text(json.dumps({**tree, "rows": tree["rows"] + 1}))


DAMAGES = {
    "a flipped bit in a shard": (SHARD, flip),
    "a flipped bit in the footer": ("ledger/part-00002-of-00004.parquet", lambda path: flip(path, 0.98)),
    "a truncated vector block": (VECTORS, cut),
    "a missing part": ("verdicts/part-00000-of-00001.parquet", Path.unlink),
    "a missing shard": (SHARD, Path.unlink),
    "an empty part": ("plan/part-00000-of-00001.parquet", lambda path: path.write_bytes(b"")),
    "a missing marker": ("join/part-00000-of-00003.done", Path.unlink),
    "a marker cut short": ("join/part-00000-of-00003.done", cut),
    "a marker that is no mapping": ("shards/train-00000-of-00002.done", lambda path: path.write_text("[]")),
    "a marker with another number": ("pool/part-00001-of-00004.done", one_row_more),
    "a missing index": ("pool/index.json", Path.unlink),
    "an index that is none": ("ledger/index.json", lambda path: path.write_text('{"parts": [')),
    "a damaged run.json": ("run.json", lambda path: path.write_text('{"kind": "curate"')),
    "a damaged recipe": ("recipe.yaml", lambda path: path.write_text("pool: {")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_check_names_what_is_damaged_and_repair_lets_it_be_made_again(roles, run, copied, capsys, name):
    path, damage = DAMAGES[name]
    damage(copied.path / path)
    assert command.main(["check", str(copied.path)]) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{path}: it")
    assert command.main(["check", str(copied.path), "--repair"]) == 0
    assert "was removed" in capsys.readouterr().out
    pools.curate(roles, copied.path, *RECIPE)
    assert command.main(["check", str(copied.path)]) == 0
    stages = sorted(path.name for path in run.path.iterdir() if path.is_dir() and path.name != "report")
    assert copied.hashes(*stages) == run.hashes(*stages)


def test_a_whole_run_passes_and_nothing_else_is_taken_for_one(run, tmp_path, capsys):
    assert command.main(["check", str(run.path)]) == 0
    markers = len(list(run.path.rglob("*.done")))
    assert capsys.readouterr().out == f"{markers} parts compared with their markers; 0 things are damaged\n"
    assert command.main(["check", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text("method: ijepa")
    (tmp_path / "run.json").write_text(
        '{"kind": "train"}'
    )  # it has no parts: that nothing is damaged would say nothing
    assert command.main(["check", str(tmp_path)]) == 2
    assert "holds no part of a run" in capsys.readouterr().err


def test_a_marker_that_leads_out_of_the_run_removes_nothing_there(copied, tmp_path):
    outside = tmp_path / "mine.parquet"
    outside.write_bytes(b"mine")
    marker = Marker("../mine.parquet", "", "0" * 64, 1, 0)
    (copied.path / "pool" / "part-00000-of-00004.done").write_bytes(marker.dump())
    assert command.main(["check", str(copied.path), "--repair"]) == 0
    assert outside.read_bytes() == b"mine"


@pytest.mark.parametrize("damage", [flip, flip_pages])
def test_a_damaged_shard_is_not_published(copied, capsys, damage):
    recipe = (copied.path / "recipe.yaml").read_text().replace("licence: unknown", "licence: cc0-1.0")
    (copied.path / "recipe.yaml").write_text(recipe)
    damage(copied.path / SHARD)
    assert command.main(["publish", str(copied.path), "--repo", "org/cats", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "nothing was sent" in error
    assert f"{SHARD.removeprefix('dataset/')} is not what the run wrote" in error


@pytest.mark.parametrize(
    ("path", "redone", "beam"),
    [
        (VECTORS, "join", True),  # read by the units of the join
        ("plan/part-00000-of-00001.parquet", "shards", False),  # and by the command itself
        ("ledger/part-00000-of-00004.parquet", "report", False),  # read for the report alone
    ],
)
def test_a_run_that_meets_a_damaged_part_names_it_and_makes_it_again(roles, run, copied, capsys, path, redone, beam):
    flip_pages(copied.path / path)
    shutil.rmtree(copied.path / redone)
    pools.curate(roles, copied.path, *RECIPE, beam=beam)
    error = capsys.readouterr().err
    assert f"{path} is damaged: its SHA-256 is not that of what was written; it is made again" in error
    assert copied.hashes("pool", "plan", "dataset", "ledger") == run.hashes("pool", "plan", "dataset", "ledger")


def numbers(run, job, output):
    """Write three numbers."""
    output.write(pa.table({"number": [1, 2, 3]}))


@pytest.fixture
def part(tmp_path) -> Path:
    """The part of a run of one unit."""
    unit = Unit(0, NoJob())
    run, stage = Run(str(tmp_path / "run")), Stage("numbers", numbers, [unit])
    run_unit(run, stage, unit)
    return Path(stage.output(run, unit))


def test_pages_are_written_with_checksums_and_read_against_them(part):
    flip_pages(part)
    with pytest.raises(DamagedPart, match="CRC checksum"):
        read_table(str(part))


def repaired(part: Path, work) -> str:
    """Mend a run; returns what was printed."""
    file = io.StringIO()
    repairing(str(part.parent.parent), work, Console(file=file))
    return file.getvalue()


def test_a_part_that_is_as_it_was_written_stays(part):
    def work():
        raise DamagedPart(str(part), "the network is down")

    with pytest.raises(DamagedPart, match="the network is down"):
        repaired(part, work)
    assert read_table(str(part)).num_rows == 3


def test_a_part_that_is_damaged_again_and_again_ends_the_run(part):
    whole = part.read_bytes()

    def work():
        part.write_bytes(whole[:-1])
        part.with_suffix(".done").write_bytes(Marker("numbers/part-00000-of-00001.parquet", "", "0" * 64, 9, 3).dump())
        read_table(str(part))

    with pytest.raises(UserError, match="damaged again; check disk and memory"):
        repaired(part, work)
