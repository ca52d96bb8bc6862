"""Pool, run directory and dataset on S3: the bytes of a local run, and objects that appear whole or not at all."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
import uuid

import boto3
import pools
import pytest
from botocore.exceptions import ClientError
from places import ROOT

from granary.curation.store import storage
from granary.pipelines import command


def outputs(run):
    """Return what a run is for, by name; a marker also holds the state of the pool's files, which is not the same."""
    found = run.hashes("dataset", "ledger", "dead-letter")
    return {name: value for name, value in found.items() if not name.endswith(".done")}


@pytest.fixture
def bucket(s3, monkeypatch):
    """A bucket of its own for one test, reached through the environment alone."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    name = f"granary-{uuid.uuid4().hex}"
    return boto3.resource("s3").create_bucket(Bucket=name)


def upload(bucket, folder, prefix):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.upload_file(str(path), f"{prefix}/{path.relative_to(folder)}")


def download(bucket, prefix, folder):
    """Download what a run wrote, read with boto3 alone; keys that end in a slash only mark folders."""
    for entry in bucket.objects.filter(Prefix=f"{prefix}/"):
        path = folder / entry.key.removeprefix(f"{prefix}/")
        if not entry.key.endswith("/"):
            path.parent.mkdir(parents=True, exist_ok=True)
            bucket.download_file(entry.key, str(path))
    return pools.Run(str(folder))


def keys(bucket):
    return [entry.key for entry in bucket.objects.all() if not entry.key.endswith("/")]


def pending(bucket):
    return list(bucket.multipart_uploads.all())


# -- single objects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 9_000_000])
def test_an_object_is_written_whole_and_read_in_ranges(bucket, size):
    url, data = f"s3://{bucket.name}/deep/a b#c?d.bin", os.urandom(size)
    storage.write_bytes(url, data)
    assert keys(bucket) == ["deep/a b#c?d.bin"]
    assert pending(bucket) == []
    assert storage.read_bytes(url) == data
    assert storage.size(url) == size
    assert storage.names(f"s3://{bucket.name}/deep") == ["a b#c?d.bin"]
    if size:
        assert storage.read_bytes(url, 2, 3) == data[2:5]
        with storage.open_read(url) as file:
            file.seek(-4, os.SEEK_END)
            assert file.read() == data[-4:]
    storage.remove(url)
    assert keys(bucket) == []


@pytest.mark.parametrize("size", [5, 9_000_000])
def test_a_failed_block_publishes_nothing_and_leaves_what_was_there(bucket, size):
    url = f"s3://{bucket.name}/object"
    for before in ([], ["object"]):
        with pytest.raises(RuntimeError), storage.writing(url) as file:  # noqa: PT012
            file.write(bytes(size))
            raise RuntimeError("killed")
        gc.collect()
        assert keys(bucket) == before
        assert pending(bucket) == []
        storage.write_bytes(url, b"whole")
    assert storage.read_bytes(url) == b"whole"


def test_an_upload_that_breaks_off_publishes_nothing(bucket, tmp_path, monkeypatch):
    url, file = f"s3://{bucket.name}/object", tmp_path / "file"
    storage.write_bytes(url, b"whole")
    file.write_bytes(bytes(9_000_000))
    fs, path = storage.filesystem(url)

    class BreaksOff:
        """pyarrow's S3 whose renaming fails, the last moment an upload can break off."""

        def __getattr__(self, name):
            return getattr(inner, name)

        def move(self, source, target):
            assert keys(bucket) == ["object", source.partition("/")[2]]
            raise OSError("the connection was reset")

    inner = fs.fs
    monkeypatch.setattr(fs, "fs", BreaksOff())
    with pytest.raises(OSError, match="was reset"):
        fs.put_file(str(file), path)
    assert keys(bucket) == ["object"]
    assert storage.read_bytes(url) == b"whole"


def test_what_is_not_there_is_empty_and_cannot_be_written(bucket, monkeypatch):
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    assert storage.names(f"s3://{bucket.name}/none") == []
    assert storage.names("s3://granary-no-such-bucket/none") == []
    assert not storage.exists(f"s3://{bucket.name}/none")
    storage.remove(f"s3://{bucket.name}/none")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"s3://{bucket.name}/none")
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        storage.write_bytes("s3://granary-no-such-bucket/object", b"data")


# -- the whole command -----------------------------------------------------------------------------------------------


def test_curate_with_everything_on_s3(roles, bucket, tmp_path, capsys):
    words = [*pools.THRESHOLDS, "--unit_rows", "16", "--shards.rows", "5"]
    run = pools.curate(roles, tmp_path / "local", *words)
    for role, folder in roles.items():
        upload(bucket, folder, role)
    there = {role: f"s3://{bucket.name}/{role}" for role in roles}
    out = f"s3://{bucket.name}/runs/one"
    assert pools.attempt(there, out, *words) == 0
    written = download(bucket, "runs/one", tmp_path / "down")
    assert outputs(written) == outputs(run)
    assert (written.path / "report" / "index.html").stat().st_size > 10_000
    assert pending(bucket) == []
    assert not [key for key in keys(bucket) if key.endswith(".tmp")]
    capsys.readouterr()
    assert command.main(["explain", out, "pool/leak-0.png"]) == 0
    assert "dropped" in capsys.readouterr().out

    stamps = {entry.key: entry.last_modified for entry in bucket.objects.all()}
    bucket.Object("runs/one/ledger/part-00000-of-00002.parquet").delete()
    assert pools.attempt(there, out, *words) == 0
    assert outputs(download(bucket, "runs/one", tmp_path / "again")) == outputs(run)
    kept = {entry.key: entry.last_modified for entry in bucket.objects.filter(Prefix="runs/one/pool/part-")}
    assert kept
    assert kept.items() <= stamps.items()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["threads", "processes", "portable"])
def test_workers_find_s3_through_the_environment(roles, run, bucket, tmp_path, request, engine):
    for role, folder in roles.items():
        upload(bucket, folder, role)
    sources = [word for role in roles for word in (f"--{role}", f"s3://{bucket.name}/{role}")]
    main = "import sys; from granary.pipelines.command import main; sys.exit(main())"
    call = [sys.executable, "-c", main, "curate", *sources, "--out", f"s3://{bucket.name}/run"]
    call += [*pools.SMALL_UNITS, *pools.THRESHOLDS, "--workers", "2", "--runner", engine]
    if engine == "portable":
        job_service, workers = map(request.getfixturevalue, ("job_service", "worker_processes"))
        call += ["--", f"--job_endpoint={job_service}", f"--environment_config={workers}"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert outputs(download(bucket, "run", tmp_path / "down")) == outputs(run)


class Unconditional:
    """A service that knows no conditional put."""

    def put_object(self, **request):
        raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")


@pytest.mark.parametrize("service", ["conditional", "without boto3", "without conditions"])
def test_of_many_that_create_an_object_one_wins(bucket, monkeypatch, service):
    monkeypatch.setattr("granary.curation.store.s3.SETTLED", 1.0)
    if service == "without boto3":  # which is an extra
        monkeypatch.setattr("granary.curation.store.s3.importlib.util.find_spec", lambda name: None)
    elif service == "without conditions":
        monkeypatch.setattr(boto3, "client", lambda name: Unconditional())
    url, gate = f"s3://{bucket.name}/run/run [1].lock", threading.Barrier(4)

    def attempt(number):
        gate.wait()
        return storage.create(url, b"%d" % number)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        won = list(pool.map(attempt, range(4)))
    assert won.count(True) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)
    storage.remove_same(url, b"another")
    assert storage.exists(url)
    storage.remove_same(url, b"%d" % won.index(True))
    assert not storage.exists(url)
