"""Dead letters come from the rows of a stage that are dead, and are counted by error."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.runs.dead_letters import DeadLetter, dead_rows, write_dead_letters
from granary.curation.runs.run import NoJob, Output, Run, Stage, Unit, close_stage, run_unit
from granary.curation.store.schema import DEAD_LETTER


def write_rows(run: Run, job: NoJob, output: Output) -> None:
    status = ["ok", "dead", "dropped", "dead"]
    reason = [None, "OSError", "small", "TooManyPixels"]
    columns = {"row_id": ["a", "b", "c", "d"], "status": status, "reason": reason, "message": reason}
    output.write(pa.table(columns))


def test_the_dead_rows_of_a_stage_become_letters(tmp_path: Path) -> None:
    run, stage = Run(str(tmp_path)), Stage("draw", write_rows, [Unit(0, NoJob())])
    run_unit(run, stage, stage.units[0])
    close_stage(run, stage)
    assert list(dead_rows(run, "draw", "drawing", "row_id")) == [
        DeadLetter("b", "drawing", "OSError", "OSError"),
        DeadLetter("d", "drawing", "TooManyPixels", "TooManyPixels"),
    ]
    assert list(dead_rows(run, "never run", "decode")) == []


def test_letters_are_written_in_their_order_and_counted() -> None:
    file = io.BytesIO()
    output = Output(file)
    letters = [
        DeadLetter("y", "decode", "E", "why", "mask 1"),
        DeadLetter("x", "shards", "F", "why"),
        DeadLetter("z", "decode", "E", "why"),
    ]
    write_dead_letters(letters, output)
    assert output.finish("").counters == {"E": 2, "F": 1}
    table = pq.ParquetFile(io.BytesIO(file.getvalue())).read()
    assert table.schema == DEAD_LETTER
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("y", "mask 1", "decode", "E", "why"),
        ("x", "", "shards", "F", "why"),
        ("z", "", "decode", "E", "why"),
    ]
