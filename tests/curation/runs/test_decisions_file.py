"""A file of decisions: what is written is read again, and what is no decision is one sentence."""

from __future__ import annotations

import json

import pytest

from granary.curation.errors import UserError
from granary.curation.runs import decisions
from granary.curation.runs.decisions import Decisions, dump_decisions, load_decisions, parse_decisions

A, B, C = ("a" * 32, "b" * 32, "c" * 32)
ALL = Decisions((A,), (B,), (C,), ((A, C), (B, C)))


def test_what_is_written_is_read_again() -> None:
    data = dump_decisions(ALL, {A: 'pool/a "quoted",\n=1+1.png'})
    assert parse_decisions(data, "x") == ALL
    assert data.decode().splitlines()[0] == "decision,id,other,uri"


def test_lines_of_json_say_the_same_in_any_order() -> None:
    lines = [
        {"decision": word, "id": other or identity, "other": identity if other else None}
        for word, identity, other in ALL.about()
    ]
    text = "\n".join(map(json.dumps, [*reversed(lines), lines[0]])) + "\n\n"
    assert parse_decisions(b"\xef\xbb\xbf" + text.encode(), "x") == ALL


def test_an_empty_list_decides_nothing() -> None:
    assert parse_decisions(b"decision,id\n", "x") == Decisions()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no column decision and no column id"),
        ("id,uri\n", "has no column decision"),
        (
            f"decision,id\nkept,{A}\n",
            "line 2 of x: decision is 'kept'; it is one of keep, keep although it leaks, drop",
        ),
        ("decision,id\nkeep,pool/a.png\n", "line 2 of x: id is 'pool/a.png'; give the 32 hex digits"),
        (f"decision,id\nkeep,{A}f\n", "give the 32 hex digits"),
        (f"decision,id\nkeep,{A.upper()}\n", "give the 32 hex digits"),
        (f"decision,id,other\nkeep,{A},{B}\n", "speaks of one picture; leave it empty"),
        (f"decision,id,other\nnot a duplicate,{A},\n", "other is ''; give the 32 hex digits"),
        (f"decision,id,other\nnot a duplicate,{A},{A}\n", "a picture is no copy of itself"),
        (f"decision,id\nkeep,{A}\ndrop,{B}\ndrop,{A}\n", f"says both keep and drop of {A}"),
        ('{"decision": "keep"\n', "neither CSV"),
        ('{"decision": "keep"}\n[]\n', "line 2 is no object"),
        ('{"decision": ["keep"], "id": {}}', "decision is"),
        ('decision,id\n"keep,' + A, "neither CSV"),
        ("decision,id\n" + "k" * 200_000, "neither CSV"),
        ("{" * 100_000, "neither CSV"),
        ("decision,id\n\x1b[2J," + A, r"decision is '\x1b[2J'"),
    ],
)
def test_what_is_no_decision_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_decisions(text.encode(), "x")
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 600


def test_bytes_that_are_no_text_and_files_that_are_none_are_refused(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="neither CSV"):
        parse_decisions(b"\xff\xfe\x00", "x")
    with pytest.raises(UserError, match="cannot be read"):
        load_decisions(str(tmp_path / "missing.csv"))
    monkeypatch.setattr(decisions, "MOST_BYTES", 20)
    (tmp_path / "large.csv").write_text(f"decision,id\nkeep,{A}\n")
    with pytest.raises(UserError, match="cannot be read"):
        load_decisions(str(tmp_path / "large.csv"))
