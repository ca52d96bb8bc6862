"""What a path is read as: what holds the data decides, and what is passed over is counted."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from granary.curation.errors import UserError
from granary.curation.sources import Source, list_pieces, read_piece, resolve


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), shade).save(file, "PNG")
    return file.getvalue()


def table(rows: int = 3) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(rows)]}), sink)
    return sink.getvalue()


def plain_table(**columns: list[object]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def tree(folder: Path, **names: bytes) -> Path:
    return write(folder, {name: data for name, data in names.items()})


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def listed(path: Path, **fields: str) -> tuple[str, list[str], Counter[tuple[str, str]]]:
    """Return the kind, the paths of the pieces, and what was passed over."""
    source = resolve(Source.model_validate({"name": "p", "path": str(path), **fields}))
    left_out: Counter[tuple[str, str]] = Counter()
    return source.kind, [piece.path for piece in list_pieces(source, left_out)], left_out


@pytest.mark.parametrize(
    "beside",
    [
        {".cache/huggingface/download/data/train.parquet.metadata": b"x", ".cache/huggingface/.gitignore": b"*"},
        {".git/config": b"x", ".git/objects/ab/cdef": b"x", ".gitattributes": b"x"},
        {"LICENSE": b"free"},
        {"load.py": b"import datasets", "scripts/make.sh": b"x"},
        {"preview.png": png(), "assets/one.png": png(), "assets/two.png": png()},
        {"any-name.png": png()},
        {"contact-sheet.jpg": png(), "README.md": b"a card"},
        {"checksums.sha256": b"no known ending"},
    ],
    ids=["hf-download", "git-clone", "licence", "scripts", "previews", "one-picture", "contact-sheet", "unknown"],
)
def test_a_companion_makes_no_picture_folder_of_a_dataset(tmp_path: Path, beside: dict[str, bytes]) -> None:
    write(tmp_path, {"data/train-00000-of-00001.parquet": table(), **beside})
    kind, paths, left_out = listed(tmp_path)
    assert (kind, paths) == ("parquet", ["data/train-00000-of-00001.parquet"])
    assert left_out.total() == len(beside)


@pytest.mark.parametrize("beside", [{"LICENSE": b"x"}, {"0.parquet": plain_table(url=["http://x/"], status=["ok"])}])
def test_shards_win_over_what_stands_beside_them(tmp_path: Path, beside: dict[str, bytes]) -> None:
    write(tmp_path, {"0.tar": b"", "1.tar": b"", "0_stats.json": b"{}", **beside})
    kind, paths, left_out = listed(tmp_path)
    assert (kind, paths, left_out.total()) == ("webdataset", ["0.tar", "1.tar"], 2)


def test_hidden_files_and_companions_of_a_picture_folder_are_counted(tmp_path: Path) -> None:
    pictures = {"a.png": png(), "b/c.JPG": png(), "no-ending": png(), "odd.ending": png()}
    write(tmp_path, {**pictures, ".DS_Store": b"x", "b/.deep/z.png": png(), "README.md": b"x", "notes.txt": b"x"})
    kind, paths, left_out = listed(tmp_path)
    assert (kind, paths) == ("folder", sorted(pictures))
    assert {what: count for (what, _), count in left_out.items()} == {"hidden files": 2, "*.md": 1, "*.txt": 1}


def test_a_table_without_images_leaves_pictures_a_picture_folder(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(), "b.png": png(1), "features.parquet": plain_table(vector=[[1.0, 2.0]])})
    kind, paths, left_out = listed(tmp_path)
    assert (kind, paths, left_out.total()) == ("folder", ["a.png", "b.png"], 1)


@pytest.mark.parametrize(
    ("data", "kind"),
    [({"t.parquet": table()}, "parquet"), ({"t.tar": b""}, "webdataset")],
)
def test_pictures_among_data_files_are_refused_with_the_options_that_decide(
    tmp_path: Path, data: dict[str, bytes], kind: str
) -> None:
    write(tmp_path, {"a.png": png(), "b.png": png(1), **data})
    with pytest.raises(UserError, match=rf"p\.kind {kind} .* or p\.kind folder"):
        listed(tmp_path)
    assert listed(tmp_path, kind="folder")[1] == ["a.png", "b.png"]
    assert listed(tmp_path, kind=kind)[1] == list(data)


def test_tars_and_tables_with_images_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": b"", "b.parquet": table()})
    with pytest.raises(UserError, match=r"p\.kind webdataset .* or p\.kind parquet"):
        listed(tmp_path)


def test_tables_without_images_are_refused_with_their_columns(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": plain_table(url=["http://x/"], text=["x"])})
    with pytest.raises(UserError, match="columns url, text"):
        listed(tmp_path)


def test_a_table_without_images_beside_others_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.parquet": table(), "pairs/b.parquet": plain_table(left=["x"], right=["y"])})
    _, paths, left_out = listed(tmp_path)
    assert (paths, left_out.total()) == (["data/a.parquet"], 1)


def test_a_table_called_metadata_may_hold_the_images(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.parquet": table()})
    assert listed(tmp_path)[:2] == ("parquet", ["metadata.parquet"])
    write(tmp_path, {"a.png": png(), "b.png": png(1)})
    with pytest.raises(UserError, match=r"p\.kind parquet .* or p\.kind folder"):
        listed(tmp_path)


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.zst", "photos.7z"])
def test_an_archive_that_is_not_read_is_refused_alone_and_in_a_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path, {f"in/{name}": b"PK"})
    for path in (tmp_path / "in" / name, tmp_path / "in"):
        with pytest.raises(UserError, match=r"unpack it.*granary reads a folder of pictures"):
            listed(path)


@pytest.mark.parametrize("name", ["addresses.csv", "addresses.jsonl", "list.txt"])
def test_a_folder_of_lists_alone_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, {f"in/{name}": b"url\nhttp://x/\n"})
    with pytest.raises(UserError, match=rf"{name} in it is not read: give the file itself"):
        listed(tmp_path / "in")


def test_a_run_is_read_as_its_dataset(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {"dataset/data/train-00000.parquet": table(), "dataset/contact-sheet.jpg": png()})
    write(run, {"recipe.yaml": b"out: x", "run.json": json.dumps({}).encode(), "pool/0.parquet": b"parts"})
    kind, paths, _ = listed(run)
    assert (kind, paths) == ("parquet", ["data/train-00000.parquet"])
    assert listed(run / "dataset")[:2] == (kind, paths)
    (run / "run.json").unlink()
    with pytest.raises(UserError, match="granary run without a finished dataset"):
        listed(run)


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "train", 0),
        (["train/0.parquet", "test/0.parquet"], "test", 1),
        (["val.parquet", "my_train_file.parquet"], "validation", 0),
        (["cats-00000-of-00002.parquet", "dogs-00000-of-00001.parquet"], "dogs", 1),
        (["data/val-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "val", 0),
        (["data/dev-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "validation", 0),
    ],
)
def test_a_split_takes_the_files_that_the_hub_would(
    tmp_path: Path, names: list[str], split: str, expected: int
) -> None:
    write(tmp_path, {name: table() for name in names})
    _, paths, left_out = listed(tmp_path, split=split)
    assert (paths, left_out.total()) == ([names[expected]], 1)
    assert listed(tmp_path)[1] == sorted(names)
    with pytest.raises(UserError, match=r"p\.split is 'nope'.*other splits"):
        listed(tmp_path, split="nope")


def test_splits_of_pictures_and_of_shards(tmp_path: Path) -> None:
    write(tmp_path / "pictures", {"train/cat/a.png": png(), "test/cat/b.png": png(), "test/dog/c.png": png()})
    write(tmp_path / "shards", {"train/0.tar": b"", "validation/0.tar": b""})
    assert listed(tmp_path / "pictures", split="test")[1] == ["test/cat/b.png", "test/dog/c.png"]
    assert listed(tmp_path / "shards", split="val")[1] == ["validation/0.tar"]
    assert listed(Path(f"{tmp_path}/shards/*/*.tar"), split="train")[1] == ["train/0.tar"]


def test_the_rows_of_a_companion_are_never_candidates(tmp_path: Path) -> None:
    write(tmp_path, {"data/train.parquet": table(2), "preview.png": png()})
    source = resolve(Source(name="p", path=str(tmp_path)))
    uris = [one.uri for piece in list_pieces(source) for one in read_piece(source, piece, 1 << 20)]
    assert uris == ["p/data/train.parquet#0", "p/data/train.parquet#1"]
