"""What a user is told before a Dask cluster is asked to work, and when it cannot."""

from __future__ import annotations

import json
import pickle
import platform
import re
import shlex
import sys

import pools
import pytest
from places import ROOT

from granary.curation.errors import UserError
from granary.curation.ports import free_port
from granary.curation.runs import summary
from granary.curation.runs.run import NoJob, Run, Stage, Unit, UnitError, run_unit
from granary.curation.runs.tables import DamagedPart
from granary.pipelines.engine import dask_cluster, transforms
from granary.pipelines.engine.profiles import load_profile
from granary.pipelines.engine.units import advice, one_sentence

RUNNER = f"--runner={dask_cluster.RUNNER}"


@pytest.mark.parametrize(
    ("options", "dask"),
    [
        ([RUNNER], True),
        (["--runner", "DaskRunner"], True),
        ([], False),
        (["--runner"], False),
        ([RUNNER, "--runner=FlinkRunner"], False),
        (["--runner=FlinkRunner", "--job_name=DaskRunner"], False),
    ],
)
def test_the_last_runner_named_is_the_one(options, dask):
    assert dask_cluster.is_dask(options) is dask


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(dask_cluster.importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("options", [[], ["--dask_client_address=tcp://a:1", "--dask_scheduler_file", "b.json"]])
def test_exactly_one_way_to_the_scheduler(options, installed):
    with pytest.raises(UserError, match=r"one of --dask_client_address=.* and --dask_scheduler_file=FILE"):
        dask_cluster.check_cluster_options(load_profile("dask", options))


@pytest.mark.parametrize("seconds", ["30s", "-1", ""])
def test_the_timeout_is_whole_seconds(seconds, installed):
    options = ["--dask_client_address=tcp://a:1", f"--dask_connection_timeout={seconds}"]
    with pytest.raises(UserError, match=r"^beam: --dask_connection_timeout=.* is not right: give whole seconds$"):
        dask_cluster.check_cluster_options(load_profile("dask", options))


@pytest.mark.parametrize("options", [["--dask_client_address", "tcp://a:1"], ["--dask_scheduler_file=b.json"]])
def test_one_way_is_enough_and_units_go_one_by_one(options, installed):
    words = load_profile("dask", options)
    dask_cluster.check_cluster_options(words)
    assert "--dask_partition_size=1" in words


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(dask_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'granary-data\[dask\]'"):
        dask_cluster.check_cluster_options([RUNNER, "--dask_client_address=tcp://a:1"])
    dask_cluster.check_cluster_options(["--runner=FlinkRunner"])


def test_a_scheduler_that_is_not_there_is_one_sentence(roles, tmp_path, capsys):
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{free_port()}"
    words = ["--runner", "dask", "--", f"--dask_client_address={address}", "--dask_connection_timeout=1"]
    assert pools.attempt({"pool": roles["pool"]}, tmp_path / "run", *words, beam=True) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"granary: runner: no Dask scheduler answers at {address} (")
    assert said[-1].endswith("start one with `dask scheduler`, or correct --dask_client_address")
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"address": 3}'])
def test_a_file_of_no_scheduler_is_one_sentence(tmp_path, text):
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"no Dask scheduler answers at .*scheduler.json .*--dask_scheduler_file"):
        dask_cluster.check_cluster([RUNNER, f"--dask_scheduler_file={file}"], Run(str(tmp_path)))


@pytest.fixture
def answers(monkeypatch):
    """What workers answer to a question; the client is a stand-in."""
    given = {}

    class Client:
        def __init__(self, address, **options):
            self.address = address

        def __enter__(self):
            return self

        def __exit__(self, *_):
            given["closed"] = True

        def run(self, function, *arguments, on_error):
            assert on_error == "return"
            return {worker: answer(function, *arguments) for worker, answer in given["workers"].items()}

    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(distributed, "Client", Client)
    return given


def ask(folder):
    file = folder / "scheduler.json"
    file.write_text(json.dumps({"address": "tcp://a:1"}))
    return dask_cluster.check_cluster([RUNNER, "--dask_scheduler_file", str(file)], Run(str(folder)))


def test_workers_are_asked_what_they_see_and_have(tmp_path, answers):
    (tmp_path / "recipe.yaml").write_text("")
    same, elsewhere = (lambda function, path: function(path)), (lambda function, path: (False, summary.versions()))
    older = lambda function, path: (True, summary.versions() | {"apache-beam": "2.1", "python": "3.9.1"})  # noqa: E731
    broken = lambda function, path: ModuleNotFoundError("No module named 'granary'")  # noqa: E731
    patched = summary.versions() | {"python": ".".join(platform.python_version_tuple()[:2]) + ".99"}
    answers["workers"] = {"tcp://b:2": same, "tcp://d:4": lambda function, path: (True, patched)}
    assert ask(tmp_path) is None
    answers["workers"] = {}
    assert ask(tmp_path).endswith("has no worker yet; work begins with the first")
    for answer, said in (
        (elsewhere, "out: the Dask worker tcp://c:3 does not see"),
        (older, "the Dask worker tcp://c:3 has apache-beam 2.1 and this command"),
        (broken, r"tcp://c:3 cannot load granary \(ModuleNotFoundError: No module named 'granary'\)"),
    ):
        answers["workers"] = {"tcp://b:2": same, "tcp://c:3": answer}
        answers["closed"] = False
        with pytest.raises(UserError, match=said):
            ask(tmp_path)
        assert answers["closed"]


PAGE = (ROOT / "docs" / "scale.md").read_text()
LINES = re.findall(r"^dask (scheduler|worker) (.*?)(?:  .*)?$", PAGE, re.M)


def test_the_page_starts_a_scheduler_and_workers():
    assert {kind for kind, _ in LINES} == {"scheduler", "worker"}


@pytest.mark.parametrize(("kind", "words"), LINES)
def test_dask_knows_the_commands_of_the_page(kind, words):
    module = pytest.importorskip(f"distributed.cli.dask_{kind}")
    module.main.make_context(kind, shlex.split(words))


class KilledWorker(Exception):
    """What Dask raises, by its name and arguments."""


class FutureCancelledError(Exception):
    """What Dask raises when a scheduler is gone."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            KilledWorker("task", "tcp://b:2", 3),
            "4 workers of Dask died of one unit, the last tcp://b:2. Workers are killed",
        ),
        (
            FutureCancelledError("key"),
            "the Dask scheduler ended, or the work was cancelled there. Finished work is kept",
        ),
    ],
)
def test_what_dask_gives_up_for_is_one_sentence(error, said):
    with pytest.raises(UserError) as told, one_sentence():
        raise error
    assert said in str(told.value)
    assert "lower --unit_rows" in advice("KilledWorker: x")


def test_errors_travel_as_their_sentence(tmp_path):
    class Unpicklable(Exception):
        def __init__(self, one, two):
            super().__init__("nothing")

    def fail(run, job, output):
        raise Unpicklable(1, 2)

    stage = Stage("bad", fail, [Unit(0, NoJob())])
    with pytest.raises(UnitError) as error:
        transforms.plainly(run_unit, Run(str(tmp_path)), stage, stage.units[0])
    assert error.value.__cause__ is error.value.__context__ is None
    assert str(pickle.loads(pickle.dumps(error.value))) == "stage bad, unit 0 of 1: Unpicklable: nothing ;;"


def test_a_damaged_part_travels_whole():
    part = pickle.loads(pickle.dumps(DamagedPart("run/pool/part", "OSError: short")))
    assert (part.url, part.cause) == ("run/pool/part", "OSError: short")
    assert "run/pool/part cannot be read (OSError: short)" in str(part)


def test_the_connection_of_a_pipeline_is_closed_however_it_ends():
    class Client:
        closed = 0

        def close(self):
            self.closed += 1

    class Result:
        def __init__(self, error=None):
            self.client, self.error = Client(), error

        def wait_until_finish(self):
            if self.error:
                raise self.error

        def cancel(self):
            assert not self.client.closed  # a closed client can cancel nothing

    well, badly, interrupted = Result(), Result(UnitError("x")), Result(KeyboardInterrupt())
    transforms.wait(well)
    with pytest.raises(UnitError):
        transforms.wait(badly)
    with pytest.raises(KeyboardInterrupt):
        transforms.wait(interrupted)
    assert [result.client.closed for result in (well, badly, interrupted)] == [1, 1, 1]
