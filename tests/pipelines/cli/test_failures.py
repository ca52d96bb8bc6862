"""The last handler: whatever fails, a command ends with one sentence and an exit status."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
from places import ROOT

import granary
from granary.curation.errors import UserError
from granary.pipelines import command

CALL = "import sys; from granary.pipelines.command import main; sys.exit(main(sys.argv[1:]))"


def failed(capsys, status, *words):
    """Run a command that must fail with a status; returns its one sentence."""
    assert command.main([str(word) for word in words]) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("granary: ")
    return last


class Odd(Exception):
    """Nothing that granary knows."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Odd("two\nlines"), "granary: Odd: two lines. That is not foreseen: --debug shows where it happened"),
        (RecursionError(), "granary: RecursionError: RecursionError. That is not foreseen"),
        (MemoryError(), "granary: not enough memory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            "granary: /a/b: No space left on device; free space",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/a/b"),
            "granary: /a/b: Read-only file system; give what may be",
        ),
        (OSError(errno.EIO, "Input/output error"), "granary: Input/output error; correct that"),
        (OSError("no number"), "granary: OSError: no number. That is not foreseen"),
    ],
)
def test_whatever_a_command_raises_is_one_sentence(capsys, monkeypatch, error, sentence):
    def fail(words):
        raise error

    monkeypatch.setattr(command, "run", fail)
    assert failed(capsys, 1, "curate").startswith(sentence)
    assert ("free space" in sentence) == (getattr(error, "errno", None) == errno.ENOSPC)


def test_debug_shows_where_it_happened(tmp_path):
    words = [sys.executable, "-c", CALL, "report", str(tmp_path / "run"), "--debug"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("granary: run: ")


# -- texts -----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "a month 99": "pool: pool\nout: x\nname: 2020-99-99\n",
    "nested 5,000 deep": "pool: " + "[" * 5000,
    "5,000 digits": "pool: pool\nout: x\nseed: " + "9" * 5000,
    "a tag that does not fit": "pool: pool\nout: x\nseed: !!int ''\n",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "words", [["curate", "--config"], ["train", "--config"], ["curate", "--pool", "p", "--runner"]]
)
def test_yaml_that_cannot_be_built_is_one_sentence(capsys, tmp_path, name, words):
    (tmp_path / "hostile.yaml").write_text(HOSTILE[name])
    said = failed(capsys, 2, *words, tmp_path / "hostile.yaml", "--out", tmp_path / "run")
    assert "hostile.yaml is not" in said
    assert len(said) < 1000


def test_a_hostile_value_on_the_command_line_is_one_sentence(capsys, tmp_path):
    said = failed(capsys, 2, "curate", "--pool", "p", "--out", tmp_path / "run", "--balance.levels", "[" * 5000)
    assert "balance.levels" in said
    assert len(said) < 1000


NO_FACTS = ["{", "[]", "null", "{}", '{"kind": "curate"}', "[" * 100_000, "9" * 5000, "\udcff"]


@pytest.mark.parametrize("text", NO_FACTS, ids=range(len(NO_FACTS)))
def test_a_damaged_run_json_is_one_sentence(capsys, tmp_path, run, roles, text):
    copied = shutil.copytree(run.path, tmp_path / "run")
    (copied / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    again = ["curate", "--pool", roles["pool"], "--out", copied]
    for words in (["report", copied], ["publish", copied, "--repo", "org/cats"], again):
        said = failed(capsys, 2, *words)
        assert "run.json is damaged" in said
        assert "`granary check RUN --repair`" in said
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        granary.open_run(copied)


def test_a_run_json_of_no_kind_is_one_sentence(capsys, tmp_path):
    facts = {"kind": "paint", "name": "a", "samples": 0, "shards": 0, "bytes": 0}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert "holds a run of granary paint" in failed(capsys, 2, "report", tmp_path)


# -- places that cannot be written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["schema", "curate"], ["curate", "--help"], ["completion", "bash"]])
def test_a_full_stdout_is_one_sentence(words):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", CALL, *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "granary: No space left on device; free space there and run the same command again (--debug shows where)\n"
    )


def test_an_output_that_nobody_reads_any_more_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as pipe:
        done = subprocess.run([sys.executable, "-c", CALL, "--help"], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("out", ["/dev/full", "/dev/null/run", "/proc/self/run"])
def test_out_that_takes_no_files_is_one_sentence(capsys, roles, out):
    said = failed(capsys, 2, "curate", "--pool", roles["pool"], "--out", out)
    assert f"cannot write to {out}" in said
    assert "free space" not in said


def test_a_report_on_a_read_only_disk_is_one_sentence(capsys, run, monkeypatch):
    def refuse(url, data):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), url)

    monkeypatch.setattr("granary.curation.store.storage.write_bytes", refuse)
    said = failed(capsys, 1, "report", run.path)
    assert "index.html: Read-only file system" in said
    assert "free space" not in said


def test_a_read_only_run_is_explained_and_checked(capsys, run, monkeypatch):
    monkeypatch.setattr("granary.curation.store.storage.writing", lambda url: pytest.fail("something is written"))
    uri = min(run.uris("kept"))
    assert command.main(["explain", str(run.path), uri]) == 0
    assert command.main(["check", str(run.path)]) == 0


def test_only_a_lack_of_space_asks_for_space(roles, tmp_path, capsys, monkeypatch):
    for number, text in ((errno.ENOSPC, "free space"), (errno.EROFS, "choose a folder that can be written to")):

        def refuse(url, data, number=number):
            raise OSError(number, os.strerror(number), url)

        monkeypatch.setattr("granary.curation.store.storage.write_bytes", refuse)
        said = failed(capsys, 2, "curate", "--pool", roles["pool"], "--out", tmp_path / "run")
        assert text in said
        assert ("free space" in said) == (number == errno.ENOSPC)
        assert list((tmp_path / "run").iterdir()) == []
