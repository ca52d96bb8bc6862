"""An outage stops the run with its reasons counted; files that are no images never do."""

from __future__ import annotations

from collections import Counter

import pools
import pytest
from PIL import Image

from granary.curation.sources import folder
from granary.curation.steps.embed import Row
from granary.curation.steps.unreadable import FEWEST_LOST, TooManyUnreadable, check_lost

FILES, UNIT = 80, 40


def rows(lost, fine, reason="TimeoutError"):
    return [*(Row({"reason": reason}, lost=True) for _ in range(lost)), *(Row({"reason": None}) for _ in range(fine))]


@pytest.mark.parametrize(
    ("lost", "fine", "most", "stops"),
    [
        (20, 80, 0.2, False),
        (21, 79, 0.2, True),
        (51, 205, 0.2, False),
        (52, 204, 0.2, True),
        (FEWEST_LOST, 0, 0.2, True),
        (FEWEST_LOST - 1, 0, 0.0, False),
        (FEWEST_LOST, 10_000, 0.0, True),
        (300, 0, 1.0, False),
        (0, 300, 0.0, False),
        (0, 0, 0.0, False),
    ],
)
def test_the_share_and_the_number_both_decide(lost, fine, most, stops):
    unit = rows(lost, fine)
    passed: list[Row] = []
    if stops:
        with pytest.raises(TooManyUnreadable, match=rf"^{lost} of {lost + fine} .*\({lost} TimeoutError\).* {most}$"):
            passed.extend(check_lost(unit, most, Counter()))
    else:
        passed.extend(check_lost(unit, most, Counter()))
    assert passed == unit or stops


def test_the_reasons_are_counted():
    unit = [*rows(9, 5), *rows(8, 0, "PermissionError")]
    with pytest.raises(TooManyUnreadable, match=r"^17 of 22 .*\(8 PermissionError, 9 TimeoutError\)"):
        list(check_lost(unit, 0.2, Counter()))


@pytest.fixture
def pool(tmp_path):
    """Two units of distinct plain pictures."""
    colours = {f"{i:03d}.png": Image.new("RGB", (8, 8), (3 * i, 255 - 3 * i, i)) for i in range(FILES)}
    return pools.write(tmp_path / "pool", colours)


WORDS = ("--unit_rows", str(UNIT), "--dedup.enabled", "false")


def outage(monkeypatch, failing, error):
    """Let reading of the files below a number fail."""
    read = folder.Reader.read

    def fail(self, path, offset, size):
        if int(path[:3]) < failing:
            raise error
        return read(self, path, offset, size)

    monkeypatch.setattr(folder.Reader, "read", fail)


@pytest.mark.parametrize(
    "error", [TimeoutError("timed out"), ConnectionResetError(104, "reset"), PermissionError(13, "denied"), OSError(5)]
)
def test_an_outage_stops_the_run_and_the_same_command_goes_on_after_it(pool, tmp_path, monkeypatch, capsys, error):
    with monkeypatch.context() as patch:
        outage(patch, 16, error)
        assert pools.attempt({"pool": pool}, tmp_path / "run", *WORDS) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    name = type(error).__name__
    assert said.startswith(
        f"granary: stage pool, unit 0 of 2: TooManyUnreadable: 16 of {UNIT} files could not be read (16 {name})"
    )
    assert "--max_unreadable 1" in said
    assert not (tmp_path / "run" / "dataset").exists()
    run = pools.curate({"pool": pool}, tmp_path / "run", *WORDS)
    assert len(run.uris("kept")) == FILES


def test_fewer_failures_are_dead_letters_and_finished_units_outlive_another_limit(pool, tmp_path, monkeypatch):
    outage(monkeypatch, 15, TimeoutError("timed out"))
    run = pools.curate({"pool": pool}, tmp_path / "run", *WORDS)
    assert {row["reason"] for row in run.ledger.values() if row["status"] == "dead"} == {"TimeoutError: timed out"}
    assert len(run.uris("dead")) == 15


def test_what_may_pass_is_tried_again_by_the_next_run_and_nothing_else(pool, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        outage(patch, 15, TimeoutError("timed out"))
        run = pools.curate({"pool": pool}, tmp_path / "run", *WORDS)
        assert "15 files could not be read for reasons that may pass" in str(run.facts["notes"])
        before = run.times()
        again = pools.curate({"pool": pool}, run.path, *WORDS).times()
        assert {name for name, time in again.items() if before[name] != time} == {
            f"pool/part-00000-of-00002.{ending}" for ending in ("done", "parquet")
        }
    read = []
    inner = folder.Reader.read
    monkeypatch.setattr(
        folder.Reader, "read", lambda self, path, offset, size: read.append(path) or inner(self, path, offset, size)
    )
    repaired = pools.curate({"pool": pool}, run.path, *WORDS)
    assert set(read[:16]) == {f"{number:03d}.png" for number in range(15)}  # one of them to see that any is readable
    whole = pools.curate({"pool": pool}, tmp_path / "whole", *WORDS)
    assert len(repaired.uris("kept")) == FILES
    folders = ("pool", "dataset/data", "ledger", "dead-letter")
    assert repaired.hashes(*folders) == whole.hashes(*folders)


def test_the_limit_is_an_option(pool, tmp_path, monkeypatch):
    outage(monkeypatch, UNIT, TimeoutError("timed out"))
    assert pools.attempt({"pool": pool}, tmp_path / "run", *WORDS, "--max_unreadable", "0.9") == 2
    run = pools.curate({"pool": pool}, tmp_path / "run", *WORDS, "--max_unreadable", "1")
    assert (len(run.uris("dead")), len(run.uris("kept"))) == (UNIT, FILES - UNIT)


def test_files_that_go_away_after_the_listing_are_an_outage(pool, tmp_path, monkeypatch, capsys):
    inner = pools.run_in_a_loop

    def unmount(self, stage, missing, combine):
        if stage.name == "pool":
            for path in pool.iterdir():
                path.unlink()
        inner(self, stage, missing, combine)

    monkeypatch.setattr(pools, "run_in_a_loop", unmount)
    assert pools.attempt({"pool": pool}, tmp_path / "run", *WORDS) == 2
    assert f"({UNIT} FileNotFoundError)" in capsys.readouterr().err


def test_a_changed_pool_stops_the_second_reading(pool, roles, tmp_path, monkeypatch, capsys):
    inner = pools.run_in_a_loop

    def change(self, stage, missing, combine):
        if stage.name == "features":
            for path in pool.iterdir():
                path.write_bytes(b"something else")
        inner(self, stage, missing, combine)

    monkeypatch.setattr(pools, "run_in_a_loop", change)
    assert pools.attempt({"pool": pool, "seeds": roles["seeds"]}, tmp_path / "run", *WORDS) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "stage features, unit 0 of 2: TooManyUnreadable" in last
    assert f"({UNIT} ChangedFile)" in last


def test_a_pool_of_rubbish_and_broken_links_is_curated(tmp_path):
    pool = pools.write(tmp_path / "pool", {f"{i:02d}.png": b"no image" for i in range(30)})
    pools.write(pool, {"cut.png": pools.png(pools.picture(0))[:400], "good.png": pools.picture(1)})
    for number in range(20):
        (pool / f"link-{number}.png").symlink_to(tmp_path / "nothing")
    run = pools.curate({"pool": pool}, tmp_path / "run", "--max_unreadable", "0")
    assert run.uris("kept") == {"pool/good.png"}
    assert len(run.uris("dead")) == 51


def test_a_list_of_dead_links_is_curated(pool, tmp_path, monkeypatch):
    from granary.curation.sources import files

    read = files.read_file

    def fail(path, max_bytes):
        if path.endswith("7.png"):
            return read(path, max_bytes)
        raise OSError("ClientConnectorError: no such host")

    (tmp_path / "list.txt").write_text("\n".join(f"pool/{i:03d}.png" for i in range(FILES)))
    monkeypatch.setattr(files, "read_file", fail)
    run = pools.curate({"pool": tmp_path / "list.txt"}, tmp_path / "run", *WORDS, "--max_unreadable", "0")
    assert len(run.uris("kept")) == FILES // 10


def test_a_list_of_urls_stops_where_nothing_answers(pool, tmp_path, monkeypatch, capsys):
    from granary.curation.sources import files

    def fail(path, max_bytes):
        raise OSError("ClientConnectorError: no such host")

    (tmp_path / "list.txt").write_text("\n".join(f"pool/{i:03d}.png" for i in range(FILES)))
    monkeypatch.setattr(files, "read_file", fail)
    assert pools.attempt({"pool": tmp_path / "list.txt"}, tmp_path / "run", *WORDS) == 2
    assert f"TooManyUnreadable: {FILES} of {FILES} files could not be read" in capsys.readouterr().err
    assert pools.attempt({"pool": tmp_path / "list.txt"}, tmp_path / "run", *WORDS, "--max_unreadable", "1") == 2
    assert f"holds no readable image ({FILES} OSError)" in capsys.readouterr().err


def failing_shards(monkeypatch, failing):
    """Let reading of the files below a number fail once the shards are written."""
    inner = pools.run_in_a_loop

    def run(self, stage, missing, combine):
        with pytest.MonkeyPatch.context() as patch:
            if stage.name == "shards":
                outage(patch, failing, ConnectionResetError(104, "reset"))
            inner(self, stage, missing, combine)

    monkeypatch.setattr(pools, "run_in_a_loop", run)


def test_an_outage_while_shards_are_written_leaves_no_hollow_dataset(pool, tmp_path, monkeypatch, capsys):
    words = (*WORDS, "--shards.rows", str(UNIT))
    with monkeypatch.context() as patch:
        failing_shards(patch, FILES * 3 // 4)
        assert pools.attempt({"pool": pool}, tmp_path / "run", *words) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("granary: stage shards, unit 0 of 2: TooManyUnreadable: ")
        assert "ConnectionResetError" in last
        assert not list((tmp_path / "run" / "dataset").rglob("*.parquet"))
        lost = pools.curate({"pool": pool}, tmp_path / "lost", *words, "--max_unreadable", "1")
        assert (len(lost.samples), len(lost.uris("dead", "shards"))) == (FILES // 4, FILES * 3 // 4)
    run = pools.curate({"pool": pool}, tmp_path / "run", *words)
    assert len(run.samples) == len(run.uris("kept")) == FILES


def test_a_few_files_lost_while_shards_are_written_are_dead_letters(pool, tmp_path, monkeypatch):
    failing_shards(monkeypatch, FEWEST_LOST - 1)
    run = pools.curate({"pool": pool}, tmp_path / "run", *WORDS)
    assert len(run.uris("dead", "shards")) == len(run.table("dead-letter")) == FEWEST_LOST - 1
    assert len(run.samples) == FILES - FEWEST_LOST + 1
