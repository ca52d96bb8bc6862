"""`granary curate --decisions`: what a person decided is obeyed, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pools
import pytest

A, B = "a" * 32, "b" * 32

LAYOUT = ("--encoder.retrieval", "builtin:layout", "--retrieval.k", "1")


def decide(path: Path, *lines: tuple[str, str, str]) -> Path:
    """Write a file of decisions: word, id, other id."""
    path.write_text("decision,id,other\n" + "".join(",".join(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def before(roles, tmp_path_factory) -> pools.Run:
    return pools.curate(roles, tmp_path_factory.mktemp("before") / "run", *pools.THRESHOLDS, *LAYOUT)


@pytest.fixture(scope="module")
def ids(before) -> dict[str, str]:
    return {uri: row["id"] for uri, row in before.ledger.items()}


@pytest.fixture
def decided(roles, tmp_path, ids):
    """Return a run with decisions about uris."""

    def run(*lines: tuple[str, ...]) -> pools.Run:
        named = [(word, *[ids.get(uri, uri) for uri in (*uris, "")[:2]]) for word, *uris in lines]
        named = [(*line, "")[:3] for line in named]
        path = decide(tmp_path / "decisions.csv", *named)
        return pools.curate(roles, tmp_path / "run", *pools.THRESHOLDS, "--decisions", str(path), *LAYOUT)

    return run


def verdicts(run: pools.Run) -> dict[str, tuple[str, str, str]]:
    return {uri: (row["status"], row["stage"], row["reason"]) for uri, row in run.ledger.items()}


def one(before: pools.Run, status: str, stage: str) -> str:
    return min(before.uris(status, stage))


def test_a_picture_to_keep_stays_though_no_seed_retrieved_it(before, decided):
    uri = one(before, "dropped", "retrieval")
    run = decided(("keep", uri))
    assert verdicts(run)[uri] == ("kept", "decisions", "decision")
    assert {row["source"]["uri"] for row in run.samples} == {*before.uris("kept"), uri}
    others = {other: verdict for other, verdict in verdicts(run).items() if other != uri}
    assert others == {other: verdict for other, verdict in verdicts(before).items() if other != uri}


def test_a_near_copy_to_keep_stands_for_its_component_and_two_both_stay(before, decided):
    chain = ["pool/chain-0/a.png", "pool/chain-0/b.png", "pool/chain-0/c.png"]
    copies = [uri for uri in chain if before.ledger[uri]["stage"] == "dedup"]
    assert len(copies) == 2
    run = decided(("keep", copies[0]))
    assert verdicts(run)[copies[0]][:2] == ("kept", "decisions")
    assert all(run.ledger[uri]["representative"] == run.ledger[copies[0]]["id"] for uri in chain)
    assert all(verdicts(run)[uri][:2] == ("dropped", "dedup") for uri in chain if uri != copies[0])
    run = decided(("keep", copies[0]), ("keep", copies[1]))
    assert [verdicts(run)[uri][:2] for uri in copies] == [("kept", "decisions")] * 2


def test_what_is_dropped_goes_and_another_of_its_component_stands(before, decided):
    chain = ["pool/chain-1/a.png", "pool/chain-1/b.png", "pool/chain-1/c.png"]
    (first,) = [uri for uri in chain if before.ledger[uri]["stage"] != "dedup"]
    kept = one(before, "kept", "retrieval")
    run = decided(("drop", first), ("drop", kept))
    for uri in (first, kept):
        assert verdicts(run)[uri] == ("dropped", "decisions", "decision")
    stands = {run.ledger[uri]["representative"] for uri in chain}
    assert len(stands) == 1
    assert stands != {run.ledger[first]["id"]}
    assert kept not in {row["source"]["uri"] for row in run.samples}
    assert {"stage": "decisions", "in": 24 - 3, "kept": 24 - 5, "dropped": 2, "dead": 0}.items() <= next(
        row for row in run.facts["flow"] if row["stage"] == "decisions"
    ).items()


def test_a_leak_is_no_picture_to_keep_unless_it_is_said(before, decided):
    leak = "pool/leak-1.png"
    assert before.ledger[leak]["stage"] == "leaks"
    run = decided(("keep", leak))
    assert verdicts(run)[leak] == verdicts(before)[leak]
    run = decided(("keep although it leaks", leak))
    assert verdicts(run)[leak] == ("kept", "decisions", "decision")
    assert verdicts(run)["pool/leak-2.png"][:2] == ("dropped", "leaks")  # what leaks through it still does
    (audit,) = run.facts["leak_audit"]
    assert audit["highest_similarity"] > pools.LEAKS


def test_what_is_not_a_duplicate_is_apart(roles, ids, tmp_path):
    """Of the chain b - a - c the pair a, b has a link of its own; b and c are joined by way of a alone."""
    uris = [f"pool/chain-0/{name}.png" for name in "abc"]
    for first, second, together in ((0, 1, (0, 2)), (1, 2, None)):
        path = decide(tmp_path / "decisions.csv", ("not a duplicate", ids[uris[first]], ids[uris[second]]))
        words = (*pools.THRESHOLDS, "--decisions", str(path))
        run = pools.curate({"pool": roles["pool"]}, tmp_path / "run", *words)
        components = [run.ledger[uri]["component"] for uri in uris]
        assert components[first] != components[second]
        assert together is None or components[together[0]] == components[together[1]] is not None
        assert sorted(verdicts(run)[uri][0] for uri in uris) == ["dropped", "kept", "kept"]
        assert run.facts["removed_at"][0][1] == len(run.uris("dropped", "dedup"))


def test_a_picture_to_keep_is_not_drawn_away(roles, before, ids, tmp_path):
    uri = one(before, "dropped", "retrieval")
    path = decide(tmp_path / "decisions.csv", ("keep", ids[uri], ""))
    (tmp_path / "entries.txt").write_text("nothing\n")
    words = ("--balance.captions.entries", str(tmp_path / "entries.txt"), "--decisions", str(path))
    run = pools.curate({"pool": roles["pool"]}, tmp_path / "run", *pools.THRESHOLDS, *words)
    assert run.uris("kept") == {uri}


def test_ids_of_no_picture_are_counted_and_named(before, decided, capsys):
    dead = "pool/broken/cut.png"
    run = decided(("keep", A), ("drop", before.ledger[dead]["id"]), ("keep", one(before, "kept", "retrieval")))
    (note,) = [note for note in run.facts["notes"] if "without effect" in note]
    assert A in note
    assert before.ledger[dead]["id"] in note
    assert "1 keep" in next(note for note in run.facts["notes"] if "obeyed" in note)
    assert A in capsys.readouterr().err


def test_the_bytes_are_those_of_a_run_in_one_go_and_return_without_the_file(roles, ids, before, tmp_path):
    """The decisions may come later, in another order, in the other format; taken away, all is as before."""
    drop, keep = one(before, "kept", "retrieval"), one(before, "dropped", "retrieval")
    lines = [
        ("drop", ids[drop], ""),
        ("keep", ids[keep], ""),
        ("not a duplicate", ids["pool/chain-0/a.png"], ids["pool/chain-0/b.png"]),
    ]
    path = decide(tmp_path / "decisions.csv", *lines)
    words = (*pools.THRESHOLDS, *LAYOUT)
    at_once = pools.curate(roles, tmp_path / "once", *words, "--decisions", str(path))
    other = tmp_path / "decisions.jsonl"
    other.write_text(
        "\n".join(json.dumps(dict(zip(("decision", "id", "other"), line, strict=True))) for line in reversed(lines))
    )
    later = tmp_path / "later"
    first = pools.curate(roles, later, *words).hashes("dataset/data", "ledger", "verdicts")
    decided = pools.curate(roles, later, *words, "--decisions", str(other))
    folders = ("dataset/data", "ledger", "verdicts", "decisions", "apart")
    assert decided.hashes(*folders) == at_once.hashes(*folders)
    assert decided.hashes("dataset/data") != {
        name: digest for name, digest in first.items() if name.startswith("dataset")
    }
    embedded = hashlib.sha256(json.dumps(decided.times()).encode()).hexdigest()
    repeated = pools.curate(roles, later, *words, "--decisions", str(other))
    assert hashlib.sha256(json.dumps(repeated.times()).encode()).hexdigest() == embedded
    again = pools.curate(roles, later, *words)
    assert again.hashes("dataset/data", "ledger", "verdicts") == first
    assert not (later / "decisions").exists()
    assert not (later / "apart").exists()


def test_a_wrong_file_is_told_before_any_work(roles, tmp_path, capsys):
    path = decide(tmp_path / "decisions.csv", ("kept", B, ""))
    assert pools.attempt(roles, tmp_path / "run", "--decisions", str(path)) == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert pools.attempt(roles, tmp_path / "run", "--decisions", str(tmp_path / "none.csv")) == 2
    assert "decisions: " in capsys.readouterr().err
