"""Facts about checkpoints: complete or none, damage seen, the right ones kept."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch

from granary.curation.store import storage
from granary.training.models.checkpoint import (
    Damaged,
    flatten,
    nest,
    prune,
    read_checkpoint,
    step_folder,
    usable,
    write_checkpoint,
)
from granary.training.models.vit import VisionTransformer, ViTConfig

CONFIG = ViTConfig(img_size=8, patch_size=4, width=8, depth=1, heads=1)


def write(out: str, step: int) -> str:
    torch.manual_seed(step)
    vit = VisionTransformer(CONFIG)
    tensors = {"a": torch.tensor([1.0, step]), "b/c": torch.tensor(step)}
    write_checkpoint(step_folder(out, step), CONFIG, vit.state_dict(), tensors, {"step": step})
    return step_folder(out, step)


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_written_is_read(remote: bool, tmp_path: Path) -> None:
    out = "memory://checkpoints" if remote else str(tmp_path)
    folder = write(out, 3)
    tensors, facts = read_checkpoint(folder)
    assert facts["step"] == 3
    assert torch.equal(tensors["a"], torch.tensor([1.0, 3.0]))
    assert tensors["b/c"].dtype == torch.int64
    torch.manual_seed(3)
    assert torch.equal(VisionTransformer.load(folder).norm.weight, VisionTransformer(CONFIG).norm.weight)
    assert [name.rsplit("/", 1)[1] for name in usable(out)] == ["step-000000003"]
    if remote:
        fsspec.filesystem("memory").rm("/checkpoints", recursive=True)


def test_a_folder_without_its_last_file_is_none_and_the_latest_come_first(tmp_path: Path) -> None:
    folders = [write(str(tmp_path), step) for step in (5, 40, 300)]
    Path(folders[1], "state.json").unlink()
    assert list(usable(str(tmp_path))) == [folders[2], folders[0]]
    assert list(usable(str(tmp_path / "nothing"))) == []


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["gone", "flipped", "short"])
def test_every_damage_is_seen(file: str, damage: str, tmp_path: Path) -> None:
    folder = write(str(tmp_path), 1)
    path = Path(folder, file)
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[:-9])
    elif file == "state.json":
        path.write_bytes(data.replace(b'"format": 1', b'"format": 2'))
    else:
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 4]) + data[-1:])
    with pytest.raises(Damaged):
        read_checkpoint(folder)


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    out = str(tmp_path)
    folders = [write(out, step) for step in (1, 2, 3, 4)]
    unfinished, newer = Path(step_folder(out, 3)) / "state.json", Path(step_folder(out, 9))
    unfinished.unlink()
    newer.mkdir()
    prune(out, 2)
    assert [f"{out}/checkpoints/{name}" for name in storage.names(f"{out}/checkpoints")] == [
        folders[1], folders[3], str(newer)
    ]  # fmt: skip


def test_overwriting_begins_by_taking_the_mark_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(str(tmp_path), 1)
    monkeypatch.setattr(storage, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write(str(tmp_path), 1)
    assert not Path(folder, "state.json").exists()


def test_names_of_nested_tensors_go_there_and_back() -> None:
    tree = {"a.b": {"x": torch.tensor(1.0), "step": 3}, "c": torch.tensor([2.0])}
    flat = dict(flatten(tree, "p/"))
    assert sorted(flat) == ["p/a.b/step", "p/a.b/x", "p/c"]
    assert nest(flat)["p"]["a.b"]["step"] == torch.tensor(3)
