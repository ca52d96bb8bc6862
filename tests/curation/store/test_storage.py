"""Whole files or none, on every file system; errors that can pass are tried again."""

from __future__ import annotations

import errno
import pathlib

import pytest

from granary.curation.store import storage


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}-{request.node.name}"


def test_a_failed_write_leaves_what_was_there(folder: str) -> None:
    url = storage.join(folder, "deep", "file")
    storage.write_bytes(url, b"before")
    with pytest.raises(RuntimeError), storage.writing(url) as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError("killed")
    assert storage.read_bytes(url) == b"before"
    assert storage.names(storage.join(folder, "deep")) == ["file"]


def test_ranges_sizes_and_names(folder: str) -> None:
    for name in ("b", "a"):
        storage.write_bytes(storage.join(folder, name), b"0123456789")
    assert storage.read_bytes(storage.join(folder, "a"), 3, 4) == b"3456"
    assert storage.size(storage.join(folder, "a")) == 10
    assert storage.names(folder) == ["a", "b"]
    assert storage.names(storage.join(folder, "missing")) == []
    storage.remove(folder)
    storage.remove(folder)
    assert not storage.exists(storage.join(folder, "a"))


def test_a_remote_folder_is_copied_once_for_each_state_of_its_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = f"memory://{tmp_path.name}-model"
    storage.write_bytes(f"{url}/unet/config.json", b"{}")
    storage.write_bytes(f"{url}/model_index.json", b"first")
    first = pathlib.Path(storage.local_folder(url))
    assert (first / "unet" / "config.json").read_bytes() == b"{}"
    (first / "unet" / "config.json").write_bytes(b"the copy is used")
    assert storage.local_folder(url) == str(first)
    storage.write_bytes(f"{url}/model_index.json", b"second")
    second = pathlib.Path(storage.local_folder(url))
    assert ((first / "model_index.json").read_bytes(), (second / "model_index.json").read_bytes()) == (
        b"first",
        b"second",
    )
    assert storage.local_folder(str(tmp_path)) == str(tmp_path)


def test_a_remote_name_cannot_leave_the_copy(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}-hostile"
    fs, path = storage.filesystem(url)
    monkeypatch.setattr(type(fs), "find", lambda self, found: [f"{path}/../../../evil"])
    monkeypatch.setattr(type(fs), "checksum", lambda self, file: 0)
    with pytest.raises(OSError, match="leads elsewhere"):
        storage.local_folder(url)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def failing(error: OSError, times: int) -> tuple[list[int], object]:
    calls: list[int] = []

    def action() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return 7

    return calls, action


def test_a_dropped_connection_is_tried_again() -> None:
    calls, action = failing(ConnectionResetError(errno.ECONNRESET, "reset"), 2)
    assert storage.retrying(action, pause=0) == 7  # type: ignore[arg-type]
    assert len(calls) == 3


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOSPC])
def test_what_cannot_pass_is_raised_at_once(code: int) -> None:
    calls, action = failing(OSError(code, "no"), 9)
    with pytest.raises(OSError, match="no"):
        storage.retrying(action, pause=0)  # type: ignore[arg-type]
    assert len(calls) == 1


def test_retries_end() -> None:
    calls, action = failing(TimeoutError("slow"), 9)
    with pytest.raises(TimeoutError):
        storage.retrying(action, attempts=3, pause=0)  # type: ignore[arg-type]
    assert len(calls) == 3
