"""Every pipeline as Dataflow jobs, built against an emulator of Google's storage: nothing leaves this machine.

Each stage's job is built, checked and staged by Beam's own Dataflow runner, with everything on gs://. The part of the
service is played by a local runner that is given the staged bytes of the job alone, so that the next stage finds input.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import tomllib
from pathlib import Path

import apache_beam
import every_pipeline
import pools
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from places import CONFIGS, ROOT
from rich.console import Console

from granary.curation.runs.run import Run, Stage, Unit
from granary.curation.store import storage
from granary.pipelines import command
from granary.pipelines.engine.profiles import load_profile
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.units import Engine, Runner

IMAGE = "registry.example/granary:1"
OUTPUTS = ("dataset", "ledger", "dead-letter")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The address of a bucket of an emulator that only this process and its environment know."""
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask Google what kind of bucket this is
    pytest.importorskip("apache_beam.io.gcp.gcsio", reason="needs the extra gcp")
    pytest.importorskip("gcsfs", reason="needs the extra gcp")
    server = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="granary")
    emulator.start()
    port = emulator._api._httpd.server_address[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    yield "gs://granary"
    emulator.stop()


@pytest.fixture
def service(monkeypatch, tmp_path):
    """Jobs that were built, each run at once from what was staged of it; and the words that send them here."""
    from apache_beam.portability.api import beam_runner_api_pb2 as api
    from apache_beam.runners.dataflow.dataflow_runner import DataflowPipelineResult
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
    from apache_beam.runners.runner import PipelineState
    from apache_beam.transforms.environments import EmbeddedPythonEnvironment

    jobs, template = {}, tmp_path / "job.json"

    def serve(self, duration=None):
        job = json.loads(template.read_text())
        options = job["environment"]["sdkPipelineOptions"]["options"]
        pipeline = api.Pipeline.FromString(storage.read_bytes(options["pipelineUrl"]))
        jobs[job["name"]] = job
        for environment in pipeline.components.environments.values():
            environment.CopyFrom(EmbeddedPythonEnvironment.default().to_runner_api(None))
        FnApiRunner().run_via_runner_api(pipeline, PipelineOptions(["--runner=FnApiRunner"])).wait_until_finish()
        return PipelineState.DONE

    monkeypatch.setattr(DataflowPipelineResult, "wait_until_finish", serve)
    words = ["--project=granary-tests", "--region=us-central1", "--temp_location=gs://granary/tmp"]
    return jobs, [*words, f"--sdk_container_image={IMAGE}", "--no_auth", f"--template_location={template}"]


@pytest.mark.slow
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", every_pipeline.PIPELINES)
def test_every_job_of_a_pipeline_is_built_staged_and_runs_from_its_staged_bytes(
    name, bucket, service, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = every_pipeline.write_inputs(tmp_path / "inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_run", pools.run_in_a_loop)
        assert command.main(every_pipeline.words(name, base, base, tmp_path / "local")) == 0
    for path in sorted(base.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{bucket}/{path.relative_to(base)}", path.read_bytes())
    jobs, words = service
    call = every_pipeline.words(name, bucket, base, f"{bucket}/runs/one")
    assert command.main([*call, "--runner", str(CONFIGS / "runners" / "dataflow.yaml"), "--", *words]) == 0
    local, there = pools.Run(str(tmp_path / "local")), download(f"{bucket}/runs/one", tmp_path / "down")
    assert outputs(there) == outputs(local)
    stages = [row["stage"] for row in local.facts["stages"]]
    assert [row["stage"] for row in there.facts["stages"]] == stages
    assert {row["workers"] for row in there.facts["stages"]} == {None}
    assert len(set(jobs)) == len(jobs) == len(stages)
    for (title, job), stage in zip(jobs.items(), stages, strict=True):
        assert re.fullmatch(rf"granary-{stage}-[0-9a-f]{{8}}", title)
        (pool,) = job["environment"]["workerPools"]
        (container,) = pool["sdkHarnessContainerImages"]
        assert container["containerImage"] == IMAGE
        assert "no_use_multiple_sdk_containers" not in job["environment"]["experiments"]
        assert (pool["numThreadsPerWorker"], pool["autoscalingSettings"]["maxNumWorkers"]) == (1, 20)
        assert "packages" not in pool  # everything is in the image


@dataclasses.dataclass(frozen=True)
class Number:
    """The job of a unit: a number."""

    number: int


def square(run, job, output):
    """Write the square of a number."""
    output.write(pa.table({"square": [job.number**2]}))


@pytest.mark.slow
def test_a_job_with_gpus_has_one_process_for_a_machine(bucket, service):
    jobs, words = service
    runner = Runner(Run(f"{bucket}/run"), Engine(load_profile("dataflow_gpu", words)), Progress(Console(quiet=True)))
    runner.stage(Stage("squares", square, [Unit(i, Number(i)) for i in range(3)]))
    assert runner.run.read_all("squares")["square"].to_pylist() == [0, 1, 4]
    ((_, job),) = jobs.items()
    (pool,) = job["environment"]["workerPools"]
    assert "no_use_multiple_sdk_containers" in job["environment"]["experiments"]
    assert pool["numThreadsPerWorker"] == 8
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert options["dataflow_service_options"] == ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]


@pytest.mark.parametrize("left", ["project", "region", "temp_location", "sdk_container_image"])
def test_what_the_profile_leaves_open_is_asked_for_before_any_work(roles, tmp_path, capsys, left):
    given = {"project": "p", "region": "r", "temp_location": "gs://b/t", "sdk_container_image": IMAGE}
    del given[left]
    words = ["--runner", "dataflow", "--", *(f"--{key}={value}" for key, value in given.items())]
    assert command.main(["curate", "--pool", str(roles["pool"]), "--out", str(tmp_path / "run"), *words]) == 2
    assert capsys.readouterr().err.endswith(f"leaves options open; add them after `--`: --{left}=...\n")
    assert not (tmp_path / "run").exists()


def test_a_pool_of_this_machine_is_refused(roles, tmp_path, capsys):
    words = ["--project=p", "--region=r", "--temp_location=gs://b/t", f"--sdk_container_image={IMAGE}"]
    call = ["curate", "--pool", str(roles["pool"]), "--out", str(tmp_path / "run"), "--runner", "dataflow"]
    assert command.main([*call, "--", *words]) == 2
    said = capsys.readouterr().err
    assert "is on this machine and no worker of DataflowRunner is; give a gs:// address" in said
    assert "Traceback" not in said


# -- the image -------------------------------------------------------------------------------------------------------


def instructions():
    """Return (keyword, rest) of every instruction of the Dockerfile, continued lines joined."""
    text = (CONFIGS / "runners" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", " ", "".join(line for line in text.splitlines(True) if line[0] != "#")).splitlines()
    return [line.partition(" ")[::2] for line in lines if line]


def test_the_image_has_the_pins_of_this_environment():
    arguments = dict(rest.partition("=")[::2] for keyword, rest in instructions() if keyword == "ARG")
    pins = dict(line.strip().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line)
    assert arguments["BEAM"] == pins["apache-beam"] == apache_beam.__version__
    assert arguments["PYTHON"] == ".".join(map(str, sys.version_info[:2]))
    installs = [call for _, rest in instructions() for call in re.findall(r"pip install [^&;]+", rest)]
    assert installs
    assert all("-c constraints.txt" in call or "--no-deps" in call for call in installs)


def test_what_the_image_copies_is_what_the_wheel_holds():
    lines = [rest for keyword, rest in instructions() if keyword == "COPY" and "--from" not in rest]
    copied = [word for rest in lines for word in rest.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    links = {path.name for path in (ROOT / "granary").iterdir() if path.is_symlink()}
    assert {*build["packages"], *links} <= set(copied)


def test_only_the_image_for_dataflow_runs_as_root():
    stages, name = {}, ""
    for keyword, rest in instructions():
        if keyword == "FROM":
            name = rest.rpartition(" ")[2]
        stages.setdefault(name, []).append((keyword, rest))
    assert list(stages)[-1] == "dataflow"
    assert ("USER", "worker") in stages["pool"]
    assert ("ENTRYPOINT", '["/opt/apache/beam/boot", "--worker_pool"]') in stages["pool"]
    assert ("ENTRYPOINT", '["/opt/apache/beam/boot"]') in stages["dataflow"]


@pytest.mark.parametrize(
    ("profile", "given", "artifact"),
    [
        ("flink", ["--flink_master=host:1", "--parallelism=2"], "beam-runners-flink-2.2-job-server"),
        ("spark", ["--spark_master_url=spark://host:1"], "beam-runners-spark-3-job-server"),
    ],
)
def test_the_job_server_a_profile_names_is_the_one_beam_starts(monkeypatch, profile, given, artifact):
    from apache_beam.runners.portability.flink_runner import FlinkJarJobServer
    from apache_beam.runners.portability.spark_runner import SparkJarJobServer
    from apache_beam.utils.subprocess_server import JavaJarServer

    def named(*words, **_):
        return ":".join(words[1::-1] + words[2:3])

    monkeypatch.setattr(JavaJarServer, "path_to_maven_jar", staticmethod(named))
    server = {"flink": FlinkJarJobServer, "spark": SparkJarJobServer}[profile]
    wanted = server(PipelineOptions(load_profile(profile, given))).path_to_jar()
    assert wanted == f"org.apache.beam:{artifact}:{apache_beam.__version__}"
    text = (CONFIGS / "runners" / f"{profile}.yaml").read_text()
    assert wanted in text
    assert "Nobody has run this profile yet" in text


def outputs(run):
    """Return what a run is for, by name; a marker also holds the state of the pool's files, which is not the same."""
    return {name: value for name, value in run.hashes(*OUTPUTS).items() if not name.endswith(".done")}


def download(url, folder):
    fs, path = storage.filesystem(url)
    for file in fs.find(path):
        target = folder / Path(file).relative_to(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(fs.cat_file(file))
    return pools.Run(str(folder))
