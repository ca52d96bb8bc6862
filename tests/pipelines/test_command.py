"""The command line: calls, explain, report, and what it passes on."""

from __future__ import annotations

import shutil

import pools
import pytest

import granary
from granary.pipelines import command


def told(capsys, *words):
    assert command.main(list(words)) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    assert command.main(list(words)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


# -- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_command_and_what_it_does(capsys, words):
    text = " ".join(told(capsys, *words).split())
    assert all(f"{name} {entry.text}" in text for name, entry in command.COMMANDS.items())


def test_the_version_is_that_of_the_distribution(capsys):
    assert told(capsys, "--version") == f"granary {granary.__version__}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--frobnicate"], "no such option '--frobnicate'; see granary --help"),
        (["explain"], "missing argument 'RUN'; see granary explain --help"),
        (["explain", "a", "b", "c"], "got unexpected extra argument (c); see granary explain --help"),
        (
            ["publish", "runs/mine"],
            "give the directory of a run or a training, and --repo ORG/NAME; see granary publish --help",
        ),
        (["unreal", "serve", "--port", "x"], "'x' is not a valid integer; see granary unreal serve --help"),
        (["curate", "--config"], "option '--config' requires an argument; see granary --help"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'; see granary completion --help"),
    ],
)
def test_a_wrong_call_is_one_sentence_that_names_the_help(capsys, words, sentence):
    error = refused(capsys, *words)
    assert error.startswith("granary: command line: ")
    assert error.endswith(f"{sentence}\n")


def test_an_unknown_command_is_refused(capsys):
    assert "'curat'" in refused(capsys, "curat")


def test_ctrl_c_is_no_traceback(capsys, monkeypatch):
    def interrupt(*recipe, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("granary.pipelines.kinds.curate_session.curate", interrupt)
    assert command.main(["curate", "--pool", "pool", "--out", "run"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_what_follows_two_dashes_goes_to_beam(roles, tmp_path, monkeypatch):
    engines = []
    curate = "granary.pipelines.kinds.curate_session.curate"
    monkeypatch.setattr(curate, lambda recipe, engine, console, **flags: engines.append(engine))
    words = ["curate", "--pool", str(roles["pool"]), "--out", str(tmp_path / "run"), "--workers", "3"]
    command.main([*words, "--runner", "threads", "--", "--direct_num_workers=7", "--flink_version", "1.19"])
    command.main(words)
    first, second = engines
    assert first.options == [
        "--direct_running_mode=multi_threading",
        "--direct_num_workers=7",
        "--flink_version",
        "1.19",
    ]
    assert first.beam_options(True).get_all_options()["direct_num_workers"] == 7
    options = second.beam_options(True).get_all_options()
    assert (options["runner"], options["direct_num_workers"]) == ("FnApiRunner", 3)
    assert second.beam_options(False).get_all_options()["direct_num_workers"] == 1


def test_a_recipe_is_found_by_its_shipped_name_and_overridden(roles, tmp_path, monkeypatch):
    recipes = []
    curate = "granary.pipelines.kinds.curate_session.curate"
    monkeypatch.setattr(curate, lambda recipe, engine, console, **flags: recipes.append(recipe))
    monkeypatch.chdir(tmp_path)
    command.main(
        [
            "curate",
            "--config",
            "configs/curate/folder.yaml",
            "--pool",
            str(roles["pool"]),
            "--out",
            "run",
            "--retrieval.k=9",
        ]
    )
    assert (recipes[0].retrieval.k, recipes[0].pool[0].path, recipes[0].shards.rows) == (9, str(roles["pool"]), 5000)


# -- explain ---------------------------------------------------------------------------------------------------------


def test_explain_tells_each_kind_of_verdict(run, capsys):
    def story(uri):
        return told(capsys, "explain", str(run.path), uri)

    leak = story("pool/leak-2.png")
    assert "verdict     dropped at stage leaks" in leak
    assert "references/1.png, at the end of a chain" in leak
    assert "through     pool/leak-1.png" in leak
    (uri,) = run.uris("dropped", "exact") & {"pool/copies/again.png"}
    assert "same bytes  pool/copies/00.png" in story(uri)
    near = min(run.uris("dropped", "dedup"))
    kept = next(uri for uri, row in run.ledger.items() if row["id"] == run.ledger[near]["representative"])
    assert f"  {run.ledger[near]['representative']}  {kept}" in story(near)
    retrieved = min(run.uris("kept"))
    for seed in run.ledger[retrieved]["seed_ids"]:
        assert f"seed        {seed}" in story(retrieved)
    assert "  seeds/" in story(retrieved)
    assert "EmptyFile" in story("pool/broken/zero.png")


def test_explain_by_the_beginning_of_an_id(run, capsys):
    ids = sorted({row["id"] for row in run.ledger.values() if row["id"]})
    row = run.ledger["pool/plain/05.png"]
    length = next(n for n in range(1, 33) if sum(identity.startswith(row["id"][:n]) for identity in ids) == 1)
    assert told(capsys, "explain", str(run.path), row["id"][:length]).startswith("pool/plain/05.png\n")
    shared = next(digit for digit in "0123456789abcdef" if sum(identity.startswith(digit) for identity in ids) > 1)
    error = refused(capsys, "explain", str(run.path), shared)
    assert "begins several ids" in error
    assert all(identity in error for identity in ids if identity.startswith(shared))


def test_explain_of_exact_copies_tells_of_each(run, capsys):
    text = told(capsys, "explain", str(run.path), run.ledger["pool/copies/again.png"]["id"])
    assert sorted(line for line in text.splitlines() if line.startswith("pool/")) == [
        "pool/copies/00.png",
        "pool/copies/again.png",
        "pool/plain/00.png",
    ]


def test_explain_refuses_what_it_does_not_know(run, tmp_path, capsys):
    assert "'pool/none.png' is no uri" in refused(capsys, "explain", str(run.path), "pool/none.png")
    assert "not a run directory" in refused(capsys, "explain", str(tmp_path), "pool/plain/00.png")
    assert refused(capsys, "explain", str(run.path), "Z").endswith("'Z' is no uri, id, file name or path of this run\n")


def test_explain_matches_text_and_no_patterns(run, capsys):
    for wanted in (".*", "%", "", "*"):
        assert "Traceback" not in refused(capsys, "explain", str(run.path), wanted)


# -- report ----------------------------------------------------------------------------------------------------------


def test_report_is_written_again(run, tmp_path, capsys):
    copied = pools.Run(str(shutil.copytree(run.path, tmp_path / "run")))
    shutil.rmtree(copied.path / "report")
    assert command.main(["report", str(copied.path)]) == 0
    page, cost = (text.strip() for text in capsys.readouterr())
    assert all(row["stage"] in cost for row in copied.facts["stages"])
    assert "grows with the square" in cost
    assert page == f"{copied.path}/report/index.html"
    text = (copied.path / "report" / "index.html").read_text()
    assert "pool/leak-2.png" in text
    (copied.path / "run.json").unlink()
    assert "is not finished" in refused(capsys, "report", str(copied.path))
    assert "not a run directory" in refused(capsys, "report", str(tmp_path))
