"""Folders, tables, lists and datasets as sources; tar shards are in test_webdataset.py."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import os
import socket
import subprocess
import sys
import threading
import uuid

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from granary.curation.errors import UserError
from granary.curation.sources import Reader, Source, failure, list_pieces, random_access, read_piece, resolve
from granary.curation.sources.listing import expand_braces
from granary.curation.sources.model import escape, unescape

MAX = 1 << 20


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), shade).save(file, "PNG")
    return file.getvalue()


def candidates(source, max_bytes=MAX):
    return [found for piece in list_pieces(source) for found in read_piece(source, piece, max_bytes)]


def contents(source):
    """uri -> bytes through the reader, dead ones as their error class."""
    with Reader(source, MAX) as reader:
        return {
            found.uri: found.error[0] if found.error else reader.read(found.path, found.offset, found.size)
            for found in candidates(source)
        }


def test_folder_takes_every_regular_file_sorted_by_whole_path(tmp_path):
    names = ["b.png", "a/x.jpg", "a-b/y.jpg", "a.unknown", "Z"]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(index))
    source = resolve(Source(name="pool", path=str(tmp_path)))
    assert (source.kind, source.path) == ("folder", f"{tmp_path}/")
    assert [piece.path for piece in list_pieces(source)] == sorted(names)
    assert contents(source) == {f"pool/{name}": picture(index) for index, name in enumerate(names)}
    assert random_access(source)


def test_folder_links_fifos_and_loops(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "deep").mkdir(parents=True)
    (root / "inner").mkdir(parents=True)
    (outside / "deep" / "far.png").write_bytes(b"far")
    (root / "inner" / "near.png").write_bytes(b"near")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root / "socket"))
    (root / "file-link").symlink_to(outside / "deep" / "far.png")
    (root / "gone").symlink_to(root / "nothing")
    (root / "self").symlink_to(root / "self")
    (root / "again").symlink_to(root / "inner")
    (root / "inner" / "up").symlink_to(root)
    (root / "out").symlink_to(outside)
    (root / "out2").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (outside / "deep" / "round").symlink_to(outside)
    source = resolve(Source(name="p", path=str(root)))
    paths = [piece.path for piece in list_pieces(source)]
    assert paths == ["file-link", "gone", "inner/near.png", "out/deep/far.png", "self"]
    with Reader(source, MAX) as reader:
        assert reader.read("file-link", 0, 3) == b"far"
        for dead in ("gone", "self"):
            with pytest.raises(OSError, match=r"No such file|symbolic links"):
                reader.read(dead, 0, 0)


def test_folders_nested_deeper_than_calls_may_be(tmp_path):
    deep = str(tmp_path)
    while len(deep) < 3000:
        deep += "/d"
        os.mkdir(deep)
    os.mknod(f"{deep}/x")
    (piece,) = list_pieces(resolve(Source(name="p", path=str(tmp_path))))
    subprocess.run(["rm", "-r", f"{tmp_path}/d"], check=True)
    assert piece.path.count("/") > 1300


def test_a_folder_that_cannot_be_listed_is_a_loss_and_not_the_end(tmp_path, monkeypatch):
    for name in ("a/x", "locked/y", "z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    scandir = os.scandir

    def refuse(path):
        if path.endswith("locked/"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = resolve(Source(name="p", path=str(tmp_path), glob="*"))
    assert contents(source) == {"p/a/x": b"1", "p/locked/": "UnreadableFolder", "p/z": b"1"}


def test_reader_does_not_wait_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "list.txt").write_text("fifo\n/dev/zero\n")
    source = resolve(Source(name="p", path=str(tmp_path / "list.txt")))
    with Reader(source, MAX) as reader:
        for path in ("fifo", "/dev/zero"):
            with pytest.raises(OSError, match="not a regular file"):
                reader.read(path, 0, 0)


def test_file_names_that_are_not_utf8(tmp_path):
    raw = [b"bad\xff.png", b"bad\\udcff.png", b"plain\\name.png", b"x\\x5cudcff", "é.png".encode()]
    for index, name in enumerate(raw):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(picture(index))
    source = resolve(Source(name="p", path=str(tmp_path)))
    found = contents(source)
    assert found["p/bad\\udcff.png"] == picture(0)
    assert set(found.values()) == {picture(index) for index in range(len(raw))}
    for uri in found:
        uri.encode("utf-8")


@given(st.binary(min_size=1, max_size=30))
def test_escape_is_injective_and_inverted(raw):
    name = os.fsdecode(raw)
    assert unescape(escape(name)) == name
    escape(name).encode("utf-8")


def test_glob_and_labels(tmp_path):
    for name in ("cat/a.png", "cat/deep/b.png", "dog/c.jpg", "top.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    labelled = resolve(Source(name="p", path=str(tmp_path), labels="folder"))
    assert {found.uri: found.label for found in candidates(labelled)} == {
        "p/cat/a.png": "cat", "p/cat/deep/b.png": "cat", "p/dog/c.jpg": "dog", "p/top.png": None,
    }  # fmt: skip
    for glob, wanted in [
        ("*.png", ["cat/a.png", "cat/deep/b.png", "top.png"]), ("cat/*", ["cat/a.png"]),
        ("**/*.jpg", ["dog/c.jpg"]), ("**/*.png", ["cat/a.png", "cat/deep/b.png", "top.png"]),
    ]:  # fmt: skip
        source = resolve(Source(name="p", path=str(tmp_path), glob=glob))
        assert [piece.path for piece in list_pieces(source)] == wanted


def test_single_file_too_large_file_and_vanished_file(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(b"x" * 100)
    source = resolve(Source(name="p", path=str(path)))
    assert [found.uri for found in candidates(source)] == ["p/one.png"]
    (dead,) = candidates(source, max_bytes=99)
    assert dead.error[0] == "TooManyBytes"
    with Reader(source, 99) as reader, pytest.raises(OSError, match="limit"):
        reader.read("one.png", 0, 100)
    stamp = next(list_pieces(source)).stamp
    path.write_bytes(b"y" * 101)
    assert next(list_pieces(source)).stamp != stamp
    path.unlink()
    with Reader(source, 99) as reader, pytest.raises(FileNotFoundError):
        reader.read("one.png", 0, 100)


def test_memory_file_system():
    root = f"memory://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    for name in ("b/x.png", "a.png", "b-c/y.png"):
        fs.pipe_file(f"{root}/{name}", name.encode())
    source = resolve(Source(name="p", path=root, labels="folder"))
    assert contents(source) == {f"p/{name}": name.encode() for name in ("a.png", "b-c/y.png", "b/x.png")}
    assert [found.label for found in candidates(source)] == [None, "b-c", "b"]
    assert all(piece.stamp for piece in list_pieces(source))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "nowhere"}, r"pool\.path is '.*nowhere'.*there is nothing there"),
        ({"path": "nowhere/*.tar"}, "nothing there"),
        ({"path": "hf:a/b/c/d"}, "hf:ORG/NAME"),
        ({"path": ".", "kind": "urls"}, "a list of addresses is one text"),
        ({"path": ".", "kind": "webdataset", "glob": "*.png"}, r"pool\.glob is '\*\.png'"),
        ({"path": ".", "kind": "dataset"}, "cannot load"),
    ],
)
def test_user_mistakes(tmp_path, fields, message):
    fields["path"] = fields["path"] if fields["path"].startswith("hf:") else str(tmp_path / fields["path"])
    with pytest.raises(UserError, match=message):
        resolve(Source(name="pool", **fields))


def test_source_is_strict():
    for fields in ({"name": "a/b"}, {"kind": "zip"}, {"colour": "red"}):
        with pytest.raises(ValueError, match="validation error"):
            Source(path="x", **fields)
    assert all(field.description for field in Source.model_fields.values())


def write_parquet(path, rows, features=None, **options):
    table = datasets.Dataset.from_list(rows, features=features).data.table
    if features:
        table = table.cast(features.arrow_schema)
    pq.write_table(table, path, **options)


FEATURES = datasets.Features(
    {
        "image": datasets.Image(decode=False),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "caption": datasets.Value("string"),
    }
)


def test_parquet_with_image_feature_names_and_row_groups(tmp_path):
    rows = [
        {"image": {"bytes": picture(i), "path": f"{i}.png"}, "label": i % 2, "caption": f"number {i}"}
        for i in range(50)
    ]
    rows[7]["image"] = None
    rows[8]["label"] = None
    write_parquet(tmp_path / "a.parquet", rows[:30], FEATURES, row_group_size=20)
    write_parquet(tmp_path / "b.parquet", rows[30:], FEATURES, row_group_size=20)
    (tmp_path / "README.md").write_text("a card")
    source = resolve(Source(name="p", path=str(tmp_path)))
    assert (source.kind, random_access(source)) == ("parquet", False)
    pieces = list(list_pieces(source))
    assert [(piece.path, piece.start, piece.stop, piece.count) for piece in pieces] == [
        ("a.parquet", 0, 20, 20), ("a.parquet", 20, 30, 10), ("b.parquet", 0, 20, 20),
    ]  # fmt: skip
    found = candidates(source)
    assert [one.uri for one in found[29:31]] == ["p/a.parquet#29", "p/b.parquet#0"]
    assert found[7].error[0] == "NoImage"
    assert [one.label for one in found[5:10]] == ["dog", "cat", None, None, "dog"]
    assert found[9].captions == ("number 9",)
    order = [12, 13, 40, 3, 49, 29, 30]
    with Reader(source, MAX) as reader:
        for row in order:
            assert reader.read(found[row].path, found[row].offset, 0) == picture(row) == found[row].data
    assert candidates(source, max_bytes=10)[0].error[0] == "TooManyBytes"


def test_any_row_range_of_a_parquet_file(tmp_path):
    write_parquet(
        tmp_path / "a.parquet",
        [{"image": {"bytes": b"%d" % i, "path": None}} for i in range(45)],
        row_group_size=11,
    )
    source = resolve(Source(name="p", path=str(tmp_path / "a.parquet")))
    piece = next(list_pieces(source))
    for start, stop in [(0, 45), (10, 12), (22, 23), (44, 45), (5, 30)]:
        part = type(piece)(piece.path, start, stop, 0, stop - start, piece.stamp)
        assert [int(one.data) for one in read_piece(source, part, MAX)] == list(range(start, stop))


def test_parquet_reads_other_files_only_inside_the_source(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "sub" / "own.png").write_bytes(b"own")
    (root / "top.png").write_bytes(b"top")
    (root / "sub" / "link.png").symlink_to(tmp_path / "secret.png")
    fsspec.filesystem("memory").pipe_file("/secret", b"secret")
    refused = [
        "/etc/passwd", "../../secret.png", str(tmp_path / "secret.png"), "file:///etc/passwd", "link.png",
        "local:///etc/passwd", "simplecache::/etc/passwd", "memory://secret", "sftp://host/x",
        "filecache::file:///etc/passwd", "zip://a::http://host/b",
    ]  # fmt: skip
    allowed = {"own.png": b"own", "../top.png": b"top", str(root / "top.png"): b"top"}
    rows = [{"image": {"bytes": None, "path": path}} for path in [*refused, *allowed]]
    write_parquet(root / "sub" / "a.parquet", rows)
    source = resolve(Source(name="p", path=f"{root}/", kind="parquet"))
    with Reader(source, MAX) as reader:
        for row in range(len(refused)):
            with pytest.raises(OSError, match="source"):
                reader.read("sub/a.parquet", row, 0)
        for row, data in enumerate(allowed.values(), len(refused)):
            assert reader.read("sub/a.parquet", row, 0) == data


def test_plain_binary_column_odd_labels_and_bad_text(tmp_path):
    bad = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    table = pa.table({"picture": [b"1", b"2"], "label": [3.5, float("nan")], "text": bad})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="image_column"):
        resolve(Source(name="p", path=str(tmp_path / "a.parquet")))
    source = resolve(Source(name="p", path=str(tmp_path / "a.parquet"), image_column="picture"))
    first, second = candidates(source)
    assert (first.data, first.label, first.captions, first.error) == (b"1", "3.5", ("fine",), None)
    assert second.error[0] == "UnicodeDecodeError"


def test_damaged_parquet_loses_only_what_is_damaged(tmp_path):
    rows = [{"image": {"bytes": os.urandom(3000), "path": None}} for _ in range(40)]
    write_parquet(tmp_path / "a.parquet", rows, row_group_size=10)
    whole = (tmp_path / "a.parquet").read_bytes()
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    (tmp_path / "a.parquet").write_bytes(whole[:start] + b"\xff" * 200 + whole[start + 200 :])
    (tmp_path / "b.parquet").write_bytes(whole[:-100])
    source = resolve(Source(name="p", path=str(tmp_path)))
    found = candidates(source)
    assert [one.uri for one in found] == [*(f"p/a.parquet#{row}" for row in range(40)), "p/b.parquet#rest"]
    assert {row for row in range(40) if found[row].error} >= {20}
    assert [one.data for one in found[:20]] == [row["image"]["bytes"] for row in rows[:20]]
    assert [one.data for one in found[30:40]] == [row["image"]["bytes"] for row in rows[30:]]
    with Reader(source, MAX) as reader:
        assert reader.read("a.parquet", 19, 0) == found[19].data
        with pytest.raises(OSError, match=r"\w"):
            reader.read("a.parquet", 20, 0)
        assert reader.read("a.parquet", 30, 0) == found[30].data
        with pytest.raises(OSError, match="no row 40"):
            reader.read("a.parquet", 40, 0)


def test_saved_dataset_and_dataset_dict(tmp_path):
    rows = [{"image": {"bytes": picture(i), "path": None}, "label": i % 2, "caption": f"c{i}"} for i in range(5)]
    features = FEATURES.copy()
    features["image"] = datasets.Image()
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=saved, test=saved.select([1])).save_to_disk(tmp_path / "two")
    source = resolve(Source(name="p", path=str(tmp_path / "one")))
    assert source.kind == "dataset"
    assert list(contents(source).values()) == [picture(i) for i in range(5)]
    assert [(one.label, one.captions) for one in candidates(source)][:2] == [
        ("cat", ("c0",)),
        ("dog", ("c1",)),
    ]
    both = resolve(Source(name="p", path=str(tmp_path / "two")))
    assert list(contents(both)) == ["p/test#0", *(f"p/train#{i}" for i in range(5))]
    test = resolve(Source(name="p", path=str(tmp_path / "two"), split="test"))
    assert contents(test) == {"p/test#0": picture(1)}
    with pytest.raises(UserError, match="split 'nope' is not there"):
        resolve(Source(name="p", path=str(tmp_path / "two"), split="nope"))


def test_local_directory_through_load_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "repository" / "data"
    data.mkdir(parents=True)
    rows = [{"image": {"bytes": picture(i), "path": None}, "label": i, "caption": "x"} for i in range(2)]
    write_parquet(data / "train-00000-of-00001.parquet", rows, FEATURES)
    source = resolve(Source(name="p", path=str(tmp_path / "repository"), kind="dataset"))
    assert contents(source) == {"p/train#0": picture(0), "p/train#1": picture(1)}
    assert [one.label for one in candidates(source)] == ["cat", "dog"]


def test_text_list_with_relative_absolute_and_repeated_addresses(tmp_path):
    name = uuid.uuid4().hex
    fsspec.filesystem("memory").pipe_file(f"/{name}", b"remote")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"a")
    lines = [
        "# a comment",
        "",
        "sub/a.png",
        str(tmp_path / "sub" / "a.png"),
        f"memory://{name}",
        "sub/a.png",
        "gone",
        "gopher://x/y",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    source = resolve(Source(name="p", path=str(tmp_path / "list.txt"), trust_paths=True))
    assert (source.kind, random_access(source)) == ("urls", True)
    found = candidates(source)
    names = ["p/sub/a.png", "p/a.png", f"p/memory://{name}", "p/sub/a.png#2", "p/gone", "p/gopher://x/y"]
    assert [one.uri for one in found] == names
    with Reader(source, MAX) as reader:
        assert [reader.read(one.path, one.offset, one.size) for one in found[:4]] == [
            b"a",
            b"a",
            b"remote",
            b"a",
        ]
        with pytest.raises(FileNotFoundError):
            reader.read(found[4].path, found[4].offset, 0)
        with pytest.raises(OSError, match="Protocol not known"):
            reader.read(found[5].path, found[5].offset, 0)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_table_lists(tmp_path, ending):
    rows = [(f"{i}.png", f"class {i % 2}", f"caption, {i}\nline") for i in range(600)]
    rows[5] = ("", "x", "y")
    path = tmp_path / f"list.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table(dict(zip(("URL", "label", "TEXT"), zip(*rows, strict=True), strict=True))), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if ending == "tsv" else ",")
            writer.writerows([("URL", "label", "TEXT"), *rows])
    source = resolve(Source(name="p", path=str(path)))
    assert source.kind == "urls"
    assert [(piece.start, piece.stop) for piece in list_pieces(source)] == [(0, 256), (256, 512), (512, 600)]
    found = candidates(source)
    assert (found[5].uri, found[5].error[0]) == (f"p/list.{ending}#5", "NoUrl")
    last = found[-1]
    assert (last.uri, last.label, last.captions) == ("p/599.png", "class 1", ("caption, 599\nline",))
    with pytest.raises(UserError, match="url_column is 'address'"):
        resolve(Source(name="p", path=str(path), kind="urls", url_column="address"))


def test_addresses_behind_http(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"a")
    (tmp_path / "large").write_bytes(b"x" * 5000)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "list.txt").write_text(f"{base}/a%20b.png\n{base}/large\n{base}/gone\n")
        for path in (tmp_path / "list.txt", f"{base}/list.txt"):
            source = resolve(Source(name="p", path=str(path), private_addresses=True))
            first, large, gone = candidates(source)
            assert first.uri == f"p/{base}/a%20b.png"
            with Reader(source, 4999) as reader:
                assert reader.read(first.path, first.offset, 0) == b"a"
                with pytest.raises(OSError, match="limit of 4999"):
                    reader.read(large.path, large.offset, 0)
                with pytest.raises(OSError, match="404"):
                    reader.read(gone.path, gone.offset, 0)
        server.shutdown()


def test_remote_list_cannot_name_local_files(tmp_path, monkeypatch):
    monkeypatch.setattr("granary.curation.sources.files.REMOTE_PROTOCOLS", frozenset({"memory"}))
    folder = uuid.uuid4().hex
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{folder}/a.png", b"a")
    memory.pipe_file(f"/{folder}/list.txt", b"a.png\n/etc/passwd\nfile:///etc/passwd\n../x.png\n")
    source = resolve(Source(name="p", path=f"memory://{folder}/list.txt"))
    with Reader(source, MAX) as reader:
        first, *others = candidates(source)
        assert reader.read(first.path, first.offset, 0) == b"a"
        for one in others:
            assert one.error[0] == "UntrustedPath"
            with pytest.raises(OSError, match="trust_paths"):
                reader.read(one.path, one.offset, 0)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{000..010}.tar", [f"a-{i:03d}.tar" for i in range(11)]),
        ("{b,a}/{1..2}", ["b/1", "b/2", "a/1", "a/2"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{a,b{1,2}}", ["a", "b1", "b2"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_expand_as_in_bash(pattern, names):
    assert sorted(expand_braces(pattern)) == sorted(names)
    bash = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True)
    assert sorted(bash.stdout.split()) == sorted(names)


def test_a_listing_of_many_files_is_lazy(tmp_path):
    for index in range(300):
        (tmp_path / f"{index:03d}").touch()
    source = resolve(Source(name="p", path=str(tmp_path)))
    pieces = list_pieces(source)
    next(pieces)
    (tmp_path / "299").write_bytes(b"later")
    assert [piece.size for piece in pieces][-1] == 5


def test_errors_name_no_local_path(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 broken")
    (tmp_path / "s.tar").write_bytes(b"")
    for path, kind in ((tmp_path / "a.parquet", "parquet"), (f"{tmp_path}/{{s,gone}}.tar", "webdataset")):
        found = candidates(resolve(Source(name="p", path=str(path), kind=kind)))
        assert found
        assert not any(str(tmp_path) in one.uri + "".join(one.error) for one in found)
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "gone").read_bytes()
    assert failure(raised.value) == ("FileNotFoundError", "No such file or directory")


def test_sources_do_not_import_beam():
    code = (
        "import granary.curation.sources, granary.curation.images.filters, sys; assert 'apache_beam' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
