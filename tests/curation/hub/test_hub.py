"""The parts of sending that need no server: what is compared, cut, waited for and said."""

from __future__ import annotations

import email.utils
import hashlib
import itertools
import json
import subprocess
import time
import uuid
from types import SimpleNamespace
from typing import Any

import fsspec
import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from granary.curation.errors import UserError
from granary.curation.hub import client as hub


def refusal(status: int, message: str = "", **headers: str) -> HfHubHTTPError:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    response = httpx2.Response(status, headers=named, request=httpx2.Request("GET", "http://hub/"))
    return HfHubHTTPError(message, response=response, server_message=message)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", pauses.append)
    return pauses


def failing(errors: list[Exception]) -> Any:
    left = iter(errors)

    def action() -> str:
        for error in left:
            raise error
        return "done"

    return action


def test_retry_after_is_honoured_and_else_the_pause_doubles(slept):
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    wrapped = RuntimeError("Error while uploading")
    wrapped.__cause__ = refusal(429, Retry_After="9")
    errors = [
        refusal(503),
        refusal(429, Retry_After="7"),
        wrapped,
        httpx2.ConnectError("x"),
        refusal(502, Retry_After=later),
    ]
    assert hub.Repository("org/cats").ask(failing(errors)) == "done"
    assert slept[:4] == [1.0, 7.0, 9.0, 8.0]
    assert 90 < slept[4] <= 100


@pytest.mark.parametrize("error", [refusal(429), refusal(500), httpx2.ReadError("gone")])
def test_a_hub_that_stays_busy_is_given_up_with_one_sentence(slept, error):
    with pytest.raises(UserError, match="run the same command again later"):
        hub.Repository("org/cats").ask(failing([error] * 100))
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("status", "sentence"), [(401, "refuses your token"), (403, "may not write to org"), (418, "418")]
)
def test_a_refusal_is_final(slept, status, sentence):
    with pytest.raises(UserError, match=sentence):
        hub.Repository("org/cats").ask(failing([refusal(status)]))
    assert slept == []


def test_what_the_hub_says_is_shown_without_secrets(monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: "odd-token")
    said = refusal(418, "no odd-token, no hf_abcdef123, see http://s3/x?a=1&X-Amz-Signature=secret&b=2")
    with pytest.raises(UserError) as caught:
        hub.Repository("org/cats").ask(failing([said]))
    assert "see http://s3/x?a=1&***&b=2" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("odd-token", "abcdef123", "secret"))


def cut(sizes: list[int], *limits: tuple[int, int]) -> list[list[int]]:
    uploads = [hub.Upload(f"{number}", size) for number, size in enumerate(sizes)]
    return [[int(one.path) for one in batch] for batch in hub.batches(uploads, *limits)]


def test_batches_keep_order_and_limits():
    assert cut([5, 5, 1, 30, 1, 1, 1, 1, 1], (4, 10), (4, 10)) == [[0, 1], [2], [3], [4, 5, 6, 7], [8]]
    assert cut([], (4, 10), (4, 10)) == []


def test_the_first_batches_are_small_and_they_double():
    assert [len(batch) for batch in cut([1] * 200)] == [4, 8, 16, 32, 50, 50, 40]
    gigabytes = cut([10**9] * 30)
    assert [len(batch) for batch in gigabytes] == [1, 1, 2, 4, *[5] * 4, 2]
    assert [*itertools.chain(*cut([10**9] * 30 + [1] * 70))] == [*range(100)]


def test_a_file_is_known_by_git_and_by_sha256_as_those_compute_them(tmp_path):
    (tmp_path / "a").write_bytes(b"some bytes" * 200_000)
    upload = hub.Upload("a", 2_000_000, str(tmp_path / "a"))
    blob = subprocess.run(["git", "hash-object", tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    sha = hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert upload.is_at(SimpleNamespace(size=2_000_000, lfs=None, blob_id=blob.strip()))
    assert upload.is_at(SimpleNamespace(size=2_000_000, lfs=SimpleNamespace(sha256=sha), blob_id="pointer"))
    assert not upload.is_at(SimpleNamespace(size=2_000_000, lfs=SimpleNamespace(sha256="0" * 64), blob_id=blob))
    assert not upload.is_at(SimpleNamespace(size=1_999_999, lfs=SimpleNamespace(sha256=sha), blob_id=blob))
    assert not upload.is_at(None)


def test_files_of_an_object_store_are_streamed():
    url = f"memory://{uuid.uuid4().hex}/shard.parquet"
    fsspec.filesystem("memory").pipe_file(url.removeprefix("memory:/"), b"bytes of a shard")
    with hub.Upload("data/shard.parquet", 16, url).addition() as operation, operation.as_file() as file:
        assert file.read() == b"bytes of a shard"
        assert operation.upload_info.sha256 == hashlib.sha256(b"bytes of a shard").digest()
        assert operation.upload_info.size == 16


def test_the_manifest_says_complete_only_with_its_files():
    assert json.loads(hub._manifest("cats", None).data) == {"name": "cats", "complete": False, "files": {}}
    whole = json.loads(hub._manifest("cats", [hub.Upload("a", 1, data=b"x")]).data)
    assert whole["complete"]
    assert whole["files"] == {"a": {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}}
