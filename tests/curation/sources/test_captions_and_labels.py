"""What comes with images reaches them: captions, labels and metadata, however a table, shard or folder holds them."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from granary.curation.errors import UserError
from granary.curation.sources import Candidate, Source, list_pieces, read_piece, resolve
from granary.curation.sources.columns import captions_of, label_of


def png(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), shade).save(file, "PNG")
    return file.getvalue()


def read(path: Path, left_out: Counter[tuple[str, str]] | None = None, **fields: str) -> list[Candidate]:
    source = resolve(Source.model_validate({"name": "p", "path": str(path), **fields}))
    return [one for piece in list_pieces(source, left_out) for one in read_piece(source, piece, 1 << 26)]


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, **cells: object) -> Path:
    rows = len(next(iter(cells.values())))  # type: ignore[call-overload]
    images = [{"bytes": png(i), "path": f"photos/photo_{i}.png"} for i in range(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, **cells}), path)
    return path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" a cat ", ("a cat",)),
        (["a cat", " a cat\n", "b"], ("a cat", "b")),
        ([{"raw": "a dog"}, {"raw": "one dog", "tokens": ["one", "dog"]}], ("a dog", "one dog")),
        ({"raw": ["a", "b"]}, ("a", "b")),
        (b"bytes", ("bytes",)),
        ([b"\xef\xbb\xbfmark", "x"], ("mark", "x")),
        ("wide".encode("utf-16"), ("wide",)),
        (["", "  ", None, 3], ()),
    ],
)
def test_captions_of_a_cell(value: object, expected: tuple[str, ...]) -> None:
    assert captions_of(value) == expected


@pytest.mark.parametrize(
    ("value", "classes", "expected"),
    [
        (3, None, "3"), (3.0, None, "3"), ("3.0", None, "3"), ("3", None, "3"), (b"3", None, "3"), ([3], None, "3"),
        (3.5, None, "3.5"), (float("nan"), None, None), ("v2.10", None, "v2.10"), (True, None, "True"),
        (1.0, ["cat", "dog"], "dog"), (True, ["no", "yes"], "yes"), ([1], ["cat", "dog"], "dog"),
        (-1, ["cat", "dog"], None), (7.0, ["cat", "dog"], None), (" cat ", None, "cat"), ([1, 2], None, None),
        (None, None, None), ({"a": 1}, None, None), ("", None, None),
    ],
)  # fmt: skip
def test_label_of_a_cell(value: object, classes: list[str] | None, expected: str | None) -> None:
    assert label_of(value, classes) == expected


@pytest.mark.parametrize("column", ["captions", "Caption", "text", "TXT", "sentences", "alt_text"])
def test_the_usual_names_of_caption_columns(tmp_path: Path, column: str) -> None:
    assert read(table(tmp_path / "x.parquet", **{column: ["a", "b"]}))[1].captions == ("b",)


def test_columns_without_a_place_become_metadata(tmp_path: Path) -> None:
    path = table(
        tmp_path / "x.parquet",
        license=["cc-by-2.0", None],
        box=[[1, 2, 3, 4], [5, 6, 7, 8]],
        taken=[datetime.date(2020, 2, 29), None],
        price=[decimal.Decimal("1.50"), decimal.Decimal("2.00")],
        score=[float("inf"), 0.5],
        mask=[b"\x00", b"\x01"],
        views=[{"left": b"\x00"}, {"left": b"\x01"}],
        label=[[0, 3], [1]],
    )
    first, second = read(path)
    assert json.loads(first.metadata or "") == {
        "license": "cc-by-2.0", "box": [1, 2, 3, 4], "taken": "2020-02-29", "price": "1.50", "score": None,
        "label": [0, 3],
    }  # fmt: skip
    assert (first.label, second.label, first.name) == (None, "1", "photo_0.png")
    assert json.loads(second.metadata or "") == {"box": [5, 6, 7, 8], "price": "2.00", "score": 0.5}
    assert first.left_out == (("mask", "holds bytes"), ("views", "holds bytes"))


def test_metadata_of_an_earlier_run_stay_as_they_were(tmp_path: Path) -> None:
    mine = {"license": "mine", "deep": {"a": [1]}}
    source = [{"name": "pool", "uri": "pool/0.png"}]
    columns = {"id": ["x"], "width": [4], "height": [4], "captions": [["a"]], "source": source, "seed_ids": [["y"]]}
    (one,) = read(table(tmp_path / "x.parquet", **columns, metadata=[json.dumps(mine)], license=["other"]))
    assert json.loads(one.metadata or "") == mine
    assert {name for name, _ in one.left_out} == {"id", "width", "height", "source", "seed_ids"}


def test_a_saved_dataset_keeps_its_columns(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "sentences": [{"raw": datasets.Value("string")}],
            "license": datasets.Value("string"),
            "sound": datasets.Value("binary"),
        }
    )
    rows = [
        {"image": {"bytes": png(), "path": "a.png"}, "label": 1, "sentences": [{"raw": "x"}], "license": "l"},
        {"image": {"bytes": png(1), "path": "b.png"}, "label": -1, "sentences": [], "license": None},
    ]
    datasets.Dataset.from_list([{**row, "sound": b"x"} for row in rows], features=features).save_to_disk(tmp_path / "d")
    first, second = read(tmp_path / "d")
    assert (first.label, first.captions, first.metadata, first.name) == ("dog", ("x",), '{"license": "l"}', "a.png")
    assert (second.label, second.captions, second.metadata) == (None, (), None)
    assert first.left_out == (("sound", "holds bytes"),)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_tables_of_an_image_folder(tmp_path: Path, kind: str) -> None:
    rows = [
        {"file_name": "0.png", "text": "words, 0", "label": "c0", "license": "l"},
        {"file_name": "sub/1.png", "text": "words, 1", "label": "c1", "license": ""},
        {"file_name": "gone.png", "text": "x", "label": "c2", "license": ""},
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    jsonl = "\n".join(json.dumps(row) for row in rows).encode()
    data = {"csv": b"\xef\xbb\xbf" + text.getvalue().encode(), "jsonl": jsonl, "parquet": sink.getvalue()}
    pictures = {"0.png": png(), "sub/1.png": png(1), "sub/2.png": png(2)}
    write(tmp_path, {f"metadata.{kind}": data[kind], **pictures})
    left_out: Counter[tuple[str, str]] = Counter()
    found = {one.uri: (one.label, one.captions, one.metadata) for one in read(tmp_path, left_out)}
    assert found == {
        "p/0.png": ("c0", ("words, 0",), '{"license": "l"}'),
        "p/sub/1.png": ("c1", ("words, 1",), None),
        "p/sub/2.png": (None, (), None),
    }
    assert left_out == {(f"rows of metadata.{kind}", "no picture has that file_name"): 1}


def test_the_nearest_table_speaks_and_changes_the_stamp(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(), "sub/b.png": png(1), "metadata.csv": b"file_name,text\na.png,A\nsub/b.png,far\n"})
    write(tmp_path, {"sub/metadata.jsonl": b'{"file_name": "b.png", "text": "near"}\n'})
    assert [one.captions for one in read(tmp_path)] == [("A",), ("near",)]
    source = resolve(Source(name="p", path=str(tmp_path)))
    before = [piece.stamp for piece in list_pieces(source)]
    (tmp_path / "sub" / "metadata.jsonl").write_bytes(b'{"file_name": "b.png", "text": "changed"}\n')
    after = [piece.stamp for piece in list_pieces(source)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_a_table_that_cannot_be_read_is_refused_and_one_about_other_things_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(), "metadata.jsonl": b'{"file_name": '})
    with pytest.raises(UserError, match=r"metadata\.jsonl cannot be read"):
        read(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    write(tmp_path, {"metadata.csv": b"id,title\n1,x\n"})
    left_out: Counter[tuple[str, str]] = Counter()
    assert read(tmp_path, left_out)[0].captions == ()
    assert left_out == {("metadata.csv", "has no column file_name"): 1}


def test_pictures_with_files_beside_them_as_img2dataset_writes_them(tmp_path: Path) -> None:
    record = json.dumps({"caption": "in json", "url": "http://x/0.jpg", "label": 3.0}).encode()
    files = {"00000/000000000.png": png(), "00000/000000000.json": record, "00000/000000000.txt": b"in text\n"}
    more = {"00000/1.v2.png": png(1), "00000/1.v2.caption": b"c", "00000/1.v2.cls": b"4", "00000/1.txt": b"not of 1.v2"}
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": ["http://x/0.jpg"], "status": ["success"]}), sink)
    write(tmp_path, {**files, **more, "00000_stats.json": b"{}", "00000.parquet": sink.getvalue()})
    left_out: Counter[tuple[str, str]] = Counter()
    first, second = read(tmp_path, left_out)
    assert (first.label, first.captions) == ("3", ("in json", "in text"))
    assert json.loads(first.metadata or "")["url"] == "http://x/0.jpg"
    assert (second.label, second.captions, second.unread) == ("4", ("c",), ())
    assert {what for what, _ in left_out} == {"*.txt", "*.json", "*.parquet"}
    assert [one.captions for one in read(tmp_path, glob="*.png")] == [first.captions, second.captions]


def test_folders_named_like_columns(tmp_path: Path) -> None:
    write(tmp_path / "pictures", {"label=cat/lang=de/a.png": png(), "label=a%20dog/b.png": png(1)})
    assert [(one.label, one.metadata) for one in read(tmp_path / "pictures")] == [
        ("a dog", None), ("cat", '{"lang": "de"}'),
    ]  # fmt: skip
    table(tmp_path / "tables" / "label=cat" / "0.parquet", text=["x"])
    table(tmp_path / "tables" / "label=__HIVE_DEFAULT_PARTITION__" / "0.parquet", text=["y"])
    assert {one.captions: one.label for one in read(tmp_path / "tables")} == {("x",): "cat", ("y",): None}
    (tmp_path / "shards" / "label=cat").mkdir(parents=True)
    shard(tmp_path / "shards" / "label=cat" / "0.tar", {"a.png": png()})
    assert [one.label for one in read(tmp_path / "shards")] == ["cat"]


def test_a_shard_packed_on_macos(tmp_path: Path) -> None:
    members = {}
    for number in range(3):
        for ending, data in (("jpg", png(number)), ("txt", b"words %d" % number)):
            members[f"./._{number:03d}.{ending}"] = b"\x00\x05\x16\x07"
            members[f"./{number:03d}.{ending}"] = data
    members["__MACOSX/._x.jpg"] = members[".DS_Store"] = b"x"
    found = read(shard(tmp_path / "x.tar", members))
    assert [(one.name, one.captions, one.error) for one in found] == [
        (f"{number:03d}.jpg", (f"words {number}",), None) for number in range(3)
    ]
    assert Counter(what for one in found for what, _ in one.left_out) == {"hidden members": 8}


def test_keys_whose_pictures_have_a_dot_in_their_ending(tmp_path: Path) -> None:
    members = {"a.input.jpg": png(), "a.txt": b"A", "b.left.png": png(1), "b.right.png": png(2), "b.cls": b"2"}
    members |= {"c.jpg": png(3), "c.mask.png": png(4)}
    found = read(shard(tmp_path / "x.tar", members))
    assert [(one.name, one.label, one.captions, one.data) for one in found] == [
        ("a.input.jpg", None, ("A",), png()), ("b.left.png", "2", (), png(1)), ("b.right.png", "2", (), png(2)),
        ("c.jpg", None, (), png(3)),
    ]  # fmt: skip
    assert found[3].left_out == (("*.mask.png", "neither an image nor a sidecar"),)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_sidecars_of_other_encodings(tmp_path: Path, encoding: str) -> None:
    record = json.dumps({"caption": "größe", "label": 3}, ensure_ascii=False).encode(encoding)
    text = "über".encode("utf-16" if encoding == "utf-16-le" else encoding)
    (one,) = read(shard(tmp_path / "x.tar", {"k.png": png(), "k.json": record, "k.txt": text}))
    assert (one.label, one.captions, one.unread) == ("3", ("größe", "über"), ())
    assert json.loads(one.metadata or "") == {"caption": "größe", "label": 3}


def test_hostile_sidecars_are_read_or_named(tmp_path: Path) -> None:
    members = {
        "k2.png": png(2), "k2.json": b"[" * 100_000 + b"]" * 100_000,
        "k3.png": png(3), "k3.json": b'{"caption": "a cat", "x": ' + b"9" * 5000 + b"}",
        "k4.png": png(4), "k4.json": b'{"caption": "a c',
        "k5.png": png(5), "k5.txt": b"caption " * 3_000_000,
        "k6.png": png(6), "k6.json": b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
        "k7.png": png(7), "k7.json": b'{"caption": "a dog", "pad": "' + b"p" * (17 << 20) + b'"}',
    }  # fmt: skip
    for found in (read(shard(tmp_path / "x.tar", members)), read(write(tmp_path / "folder", members))):
        lost = {one.name: [(unread.part, unread.error) for unread in one.unread] for one in found}
        assert lost == {
            "k2.png": [("json", "RecursionError")], "k3.png": [], "k4.png": [("json", "JSONDecodeError")],
            "k5.png": [("txt", "TooManyBytes")], "k6.png": [("json", "RecursionError")],
            "k7.png": [("json", "TooManyBytes")],
        }  # fmt: skip
        assert found[1].captions == ("a cat",)
        assert json.loads(found[1].metadata or "")["x"] == "9" * 5000


def test_captions_that_differ_in_white_space_are_one(tmp_path: Path) -> None:
    members = {"a.png": png(), "a.json": b'{"caption": " a cat "}', "a.txt": b"a cat\n"}
    assert read(shard(tmp_path / "x.tar", members))[0].captions == ("a cat",)
    assert read(write(tmp_path / "folder", members))[0].captions == ("a cat",)


@pytest.mark.parametrize("option", ["label_column", "caption_column"])
def test_a_named_column_that_is_not_there_is_refused(tmp_path: Path, option: str) -> None:
    table(tmp_path / "x.parquet", caption=["a"])
    saved = datasets.Dataset.from_list([{"image": {"bytes": png(), "path": None}, "caption": "a"}])
    saved.save_to_disk(tmp_path / "saved")
    write(tmp_path, {"list.csv": b"url,caption\nhttp://127.0.0.1/1,a\n", "list.txt": b"http://127.0.0.1/1\n"})
    for name in ("x.parquet", "saved", "list.csv", "list.txt"):
        with pytest.raises(UserError, match=rf"p\.{option} is 'nope'"):
            read(tmp_path / name, **{option: "nope"})
    assert read(tmp_path / "x.parquet", **{option: "Caption"})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.parquet", {"glob": "*.png"}, "for folders"),
        ("x.parquet", {"labels": "folder", "kind": "parquet"}, "for folders"),
        ("x.parquet", {"url_column": "address"}, "for lists of addresses"),
        ("list.csv", {"split": "train"}, "for datasets and folders"),
        ("list.csv", {"image_column": "picture"}, "for tables"),
        ("shard.tar", {"image_column": "picture"}, "for tables"),
        ("shard.tar", {"trust_paths": "true"}, "for lists of addresses"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    table(tmp_path / "x.parquet", caption=["a"])
    shard(tmp_path / "shard.tar", {"a.png": png()})
    write(tmp_path, {"list.csv": b"url\nhttp://127.0.0.1/1\n"})
    with pytest.raises(UserError, match=rf"p\.{next(iter(options))} is .*{message}"):
        read(tmp_path / name, **options)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_lists_of_addresses_keep_their_other_columns(tmp_path: Path, kind: str) -> None:
    rows = [
        {"url": "a.png", "TEXT": " a cat ", "license": "cc0", "label": 3.0},
        {"url": "b.png", "TEXT": "b", "license": None, "label": None},
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    path = write(tmp_path, {f"list.{kind}": text.getvalue().encode()}) / f"list.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows).append_column("thumbnail", pa.array([b"x", b"y"])), path)
    assert [(one.uri, one.label, one.captions, one.metadata) for one in read(path)] == [
        ("p/a.png", "3", ("a cat",), '{"license": "cc0"}'), ("p/b.png", None, ("b",), None),
    ]  # fmt: skip
    with pytest.raises(
        UserError, match=r"url, TEXT, license, label.*\('address'\)|'address'.*url, TEXT, license, label"
    ):
        read(path, url_column="address")


def test_lines_of_json_that_are_no_json_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"list.jsonl": b'{"url": "a.png"}\n{"url": \n'})
    with pytest.raises(UserError, match="a list that cannot be read"):
        read(tmp_path / "list.jsonl")


def test_half_a_surrogate_pair_harms_nobody(tmp_path: Path) -> None:
    half = b'{"file_name": "a.png", "text": "\\ud800", "\\ud801": "\\ud802", "n": ' + b"9" * 5000 + b"}"
    write(tmp_path / "folder", {"a.png": png(), "metadata.jsonl": half})
    shard(tmp_path / "x.tar", {"a.png": png(), "a.json": half})
    table(tmp_path / "x.parquet", metadata=[half.decode()[:60] + "1}"])
    write(tmp_path, {"list.jsonl": half.replace(b"file_name", b"url")})
    for name in ("folder", "x.tar", "x.parquet", "list.jsonl"):
        (one,) = read(tmp_path / name)
        for text in (one.metadata or "", *one.captions):
            text.encode("utf-8")
