"""Services that tests start on loopback: a portable Beam job service with its workers, and an S3 server."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from granary.curation.ports import free_port

# No test asks the Hub, and none sees the models that this machine's cache happens to hold.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.path.join(tempfile.gettempdir(), "granary-tests-no-hub-cache")

KEYS = {"AWS_ACCESS_KEY_ID": "granary", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}
THREADS = """
import sys, threading
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
server = BeamFnExternalWorkerPoolServicer.start(port=int(sys.argv[1]), use_process=False)
threading.Event().wait()
"""


@contextlib.contextmanager
def service(folder: Path, *words: str, port: int, environment: Mapping[str, str] = {}) -> Iterator[None]:
    """Run `python WORDS` in a folder until the block ends; begins when the port answers."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])  # workers are `python` of it
    log = folder / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
                    break
                time.sleep(0.1)
            else:
                pytest.fail(f"{words} does not answer:\n{log.read_text()[-2000:]}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def job_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of Beam's portable job service, in a process of its own."""
    port = free_port()
    words = ("-m", "apache_beam.runners.portability.local_job_service_main", "--port", str(port))
    with service(tmp_path_factory.mktemp("jobs"), *words, port=port):
        yield f"localhost:{port}"


@pytest.fixture(scope="session")
def worker_threads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An external worker pool whose workers are threads of one process: its imports are paid once."""
    port = free_port()
    with service(tmp_path_factory.mktemp("threads"), "-c", THREADS, str(port), port=port):
        yield f"localhost:{port}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server with the bucket `bucket`; the environment that leads to it."""
    port = free_port()
    environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    words = ("-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    with service(tmp_path_factory.mktemp("s3"), *words, port=port, environment=environment):
        yield environment


@pytest.fixture(scope="session")
def worker_processes(tmp_path_factory: pytest.TempPathFactory, s3: dict[str, str]) -> Iterator[str]:
    """An external worker pool that starts a process for each worker; the S3 server is in its environment."""
    port = free_port()
    words = ("-m", "apache_beam.runners.worker.worker_pool_main", "--service_port", str(port))
    with service(tmp_path_factory.mktemp("processes"), *words, port=port, environment=s3):
        yield f"localhost:{port}"
