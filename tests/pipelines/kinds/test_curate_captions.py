"""Balance of captions through the whole pipeline, against brute force over the ledger of a run without it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pools
import pytest

from granary.pipelines import command
from granary.pipelines.engine.units import Runner

MOST = 6
SUBJECTS = ["a cat"] * 24 + ["a dog"] * 10 + ["a cat and a dog"] * 4 + ["one zebra"] * 3 + ["", "concatenation"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with captions of a few words, and one near copy that goes before captions are looked at."""
    folder = tmp_path_factory.mktemp("captioned")
    lines = []
    for number, subject in enumerate(SUBJECTS):
        name = f"{number:03d}.png"
        pools.picture(number).save(folder / name)
        lines.append({"file_name": name, "text": f"{subject}, seen from here." if subject else ""})
    pools.picture(0).resize((60, 60)).save(folder / "copy.png")
    lines.append({"file_name": "copy.png", "text": "a rare lynx"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def curated(pool: Path, out: Path, *words: str, status: int = 0, beam: bool = False) -> pools.Run:
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", pools.run_in_a_loop)
        small = ("--shards.rows", "100", *(() if "--unit_rows" in words else ("--unit_rows", "8")))
        assert command.main(["curate", "--pool", str(pool), "--out", str(out), *small, *words]) == status
    return pools.Run(str(out))


@pytest.fixture(scope="module")
def plain(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    return curated(pool, tmp_path_factory.mktemp("plain") / "run")


def entries_file(folder: Path, *entries: str) -> str:
    (folder / "entries.txt").write_text("\n".join(entries))
    return str(folder / "entries.txt")


def by_brute_force(plain: pools.Run, entries: list[str], most: int, seed: int = 0) -> dict[str, set[str]]:
    """Return kept and dropped uris: each entry looked for in each caption, each draw hashed by hand."""
    found: dict[str, tuple[str, list[str]]] = {}
    for sample in plain.samples:
        text = " ".join(re.sub(r"([,.])", r" \1 ", caption) for caption in sample["captions"])
        found[sample["source"]["uri"]] = (sample["id"], [entry for entry in entries if f" {entry} " in f" {text} "])
    counts = Counter(entry for _, matched in found.values() for entry in matched)
    key = hashlib.blake2b(f"{seed}/caption balance".encode(), digest_size=32).digest()

    def drawn(name: str, entry: str) -> float:
        digest = hashlib.blake2b(f"{name}/{entry}".encode(), digest_size=8, key=key).digest()
        return (int.from_bytes(digest, "little") >> 11) / 2**53

    kept = {
        uri
        for uri, (name, matched) in found.items()
        if any(drawn(name, entry) < min(1.0, most / counts[entry]) for entry in matched)
    }
    return {"kept": kept, "dropped": set(found) - kept}


def test_a_file_of_entries_decides_as_brute_force_does(pool: Path, plain: pools.Run, tmp_path: Path) -> None:
    entries = ["cat", "dog", "zebra", "lynx", "unicorn"]
    words = ("--balance.captions.entries", entries_file(tmp_path, *entries), "--balance.captions.most", str(MOST))
    run = curated(pool, tmp_path / "run", *words)
    expected = by_brute_force(plain, entries, MOST)
    assert run.uris("kept") == expected["kept"]
    ledger = {row["uri"]: row for row in run.table("ledger")}
    dropped_before = {uri for uri, row in ledger.items() if row["stage"] == "dedup" and row["status"] == "dropped"}
    assert {uri for uri, row in ledger.items() if row["status"] == "dropped"} - dropped_before == expected["dropped"]
    reasons = Counter(
        row["reason"].partition(":")[0]
        for row in ledger.values()
        if row["status"] == "dropped" and row["stage"] == "captions"
    )
    assert reasons["it has no caption"] == 1
    assert reasons["its captions match no entry"] == 1
    assert reasons["not drawn for its captions"] == len(expected["dropped"]) - 2 > 10
    zebras = [row for row in ledger.values() if row["reason"] == "drawn for its captions: zebra"]
    assert [row["status"] for row in zebras] == ["kept"] * 3  # the tail loses none
    counted = run.facts["caption_balance"]
    kept = [sample for sample in run.samples if " cat" in " ".join(sample["captions"])]
    assert counted["rows"][0] == {"entry": "cat", "before": 28, "after": len(kept), "probability": MOST / 28}
    assert (counted["entries"], counted["head"], counted["tail"]) == (5, 2, 1)
    assert [row["entry"] for row in counted["rows"]] == ["cat", "dog", "zebra"]
    html = (run.path / "report" / "index.html").read_text()
    assert "5 entries, whose own draws keep 6 images each" in html
    assert "<bdi>zebra</bdi>" in html
    flow = {row["stage"]: row for row in run.facts["flow"]}
    assert flow["captions"]["dropped"] == len(expected["dropped"])
    assert str(tmp_path) not in (run.path / "dataset" / "README.md").read_text()


def test_words_of_the_captions_are_entries_where_enough_images_have_them(
    pool: Path, plain: pools.Run, tmp_path: Path
) -> None:
    words = ("--balance.captions.entries", "words", "--balance.captions.least", "10", "--balance.captions.most", "3")
    run = curated(pool, tmp_path / "run", *words)
    entries = sorted(row["entry"] for row in run.table("caption-entries"))
    counts = Counter(word for sample in plain.samples for word in set(re.findall(r"\w+", " ".join(sample["captions"]))))
    assert entries == sorted(word for word, count in counts.items() if count >= 10)
    assert "zebra" not in entries
    assert run.uris("kept") == by_brute_force(plain, entries, 3)["kept"]


def test_the_draw_does_not_depend_on_units_order_or_workers(pool: Path, tmp_path: Path) -> None:
    words = ("--balance.captions.entries", "words", "--balance.captions.least", "2", "--balance.captions.most", "5")
    one = curated(pool, tmp_path / "one", *words)
    other = curated(pool, tmp_path / "other", *words, "--unit_rows", "100")
    assert one.uris("kept") == other.uris("kept")
    assert one.facts["caption_balance"] == other.facts["caption_balance"]
    reseeded = curated(pool, tmp_path / "reseeded", *words, "--seed", "1")
    assert reseeded.uris("kept") != one.uris("kept")


def test_beam_and_a_loop_give_the_same_bytes(pool: Path, tmp_path: Path) -> None:
    words = ("--balance.captions.entries", "words", "--balance.captions.least", "2", "--balance.captions.most", "5")
    one = curated(pool, tmp_path / "one", *words)
    other = curated(pool, tmp_path / "other", *words, "--workers", "2", beam=True)
    assert one.hashes("dataset", "ledger") == other.hashes("dataset", "ledger")


def test_another_limit_redoes_the_draws_alone_and_none_takes_them_away(
    pool: Path, plain: pools.Run, tmp_path: Path
) -> None:
    file = entries_file(tmp_path, "cat", "dog")
    words = ("--balance.captions.entries", file)
    run = curated(pool, tmp_path / "run", *words, "--balance.captions.most", "4")
    before = run.times()
    curated(pool, tmp_path / "run", *words, "--balance.captions.most", "5")
    after = run.times()
    redone = {str(path) for path in before if before[path] != after.get(path)}
    assert any("caption-draws" in path for path in redone)
    assert not [path for path in redone if "caption-matches" in path or "/pool/" in path]
    again = pools.Run(str(tmp_path / "run"))
    assert again.uris("kept") == by_brute_force(plain, ["cat", "dog"], 5)["kept"]
    whole = curated(pool, tmp_path / "run")
    assert whole.uris("kept") == plain.uris("kept")
    assert not list((tmp_path / "run").glob("caption-*"))
    assert whole.facts["caption_balance"] is None


def test_balancing_is_last_and_counts_what_retrieval_left(pool: Path, plain: pools.Run, tmp_path: Path) -> None:
    """Of a balanced sample of pictures the captions are balanced in turn: no dropped picture counts for an entry."""
    sampled = curated(pool, tmp_path / "sampled", "--balance.target", "20", "--balance.levels", "4,2")
    words = (
        "--balance.captions.entries",
        entries_file(tmp_path, "cat", "dog", "zebra"),
        "--balance.captions.most",
        "3",
    )
    both = curated(pool, tmp_path / "both", "--balance.target", "20", "--balance.levels", "4,2", *words)
    assert both.uris("kept") == by_brute_force(sampled, ["cat", "dog", "zebra"], 3)["kept"]
    assert both.facts["caption_balance"]["rows"][0]["before"] < 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "holds no entry"),
        ("[1, 2]", "holds no entry"),
        ("[", "cannot be read"),
    ],
)
def test_entries_that_are_none_stop_the_run_before_any_work(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    file = tmp_path / "entries.json"
    if content is not None:
        file.write_text(content)
    curated(pool, tmp_path / "run", "--balance.captions.entries", str(file), status=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "balance.captions.entries:" in lines[0]
    assert said in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_json_list_is_read_as_metaclip_has_it(tmp_path: Path, pool: Path, plain: pools.Run) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps(["cat", "dog", "cat", "zebra "]))
    words: tuple[Any, ...] = ("--balance.captions.entries", str(tmp_path / "metadata.json"))
    run = curated(pool, tmp_path / "run", *words, "--balance.captions.most", "4")
    assert run.uris("kept") == by_brute_force(plain, ["cat", "dog", "zebra"], 4)["kept"]
    assert sorted(row["entry"] for row in run.table("caption-entries")) == ["cat", "dog", "zebra"]


def test_a_pool_without_captions_is_all_dropped_for_that(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    for number in range(3):
        pools.picture(number).save(tmp_path / "pool" / f"{number}.png")
    run = curated(tmp_path / "pool", tmp_path / "run", "--balance.captions.entries", "words")
    assert {row["reason"] for row in run.table("ledger")} == {"it has no caption"}
    assert run.facts["caption_balance"]["rows"] == []
    assert run.facts["samples"] == 0
