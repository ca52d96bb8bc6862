"""Lists are not trusted, their addresses are not stored, and what cannot be fetched says why."""

import contextlib
import http.server
import io
import json
import threading

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from granary.curation.download.errors import DownloadError
from granary.curation.sources import Reader, Source, failure, list_pieces, read_piece, resolve

MAX = 1 << 20


def picture(shade):
    Image.new("L", (4, 4), shade).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@contextlib.contextmanager
def serving(bodies):
    """Serve a mapping of paths (queries dropped) to bytes on loopback; 404 for the rest. Yields host:port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = bodies.get(self.path.partition("?")[0])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def listed(folder, rows, **options):
    (folder / "list.txt").write_text("\n".join(rows) + "\n")
    source = resolve(Source(name="p", path=str(folder / "list.txt"), **options))
    return source, [one for piece in list_pieces(source) for one in read_piece(source, piece, MAX)]


REFUSED = [
    "/etc/hostname",
    "file:///etc/hostname",
    "FILE:///etc/hostname",
    "local:///etc/hostname",
    "../secret.png",
    "sub/../../secret.png",
    "reference://x::file:///tmp/evil.json",
    "simplecache::file:///etc/hostname",
    "zip://a.png::https://host/a.zip",
    "s3://bucket/a::file:///etc/hostname",
    "memory://secret",
    "github://org:repo@/a.png",
    "dir://a::/etc",
]


@pytest.mark.parametrize("row", REFUSED)
def test_a_row_names_no_file_outside_of_the_folder_and_no_chain(tmp_path, row):
    (tmp_path / "lists").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    source, [one] = listed(tmp_path / "lists", [row])
    assert one.error[0] == "UntrustedPath"
    assert "trust_paths" in one.error[1]
    with Reader(source, MAX) as reader, pytest.raises(OSError, match="trust_paths"):
        reader.read(one.path, one.offset, 0)


def test_own_lists_may_name_any_file(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "a.png").write_bytes(b"a")
    rows = ["../a.png", str(tmp_path / "a.png"), f"file://{tmp_path}/a.png", f"simplecache::file://{tmp_path}/a.png"]
    source, found = listed(tmp_path / "lists", rows, trust_paths=True)
    with Reader(source, MAX) as reader:
        assert [reader.read(one.path, one.offset, 0) for one in found] == [b"a"] * 4
    assert not [one for one in found if str(tmp_path) in one.uri]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "192.168.0.1"])
def test_a_list_does_not_reach_the_network_behind_us(tmp_path, host):
    with serving({"/a.png": b"secret"}) as here:
        source, [one] = listed(tmp_path, [f"http://{host}:{here.rpartition(':')[2]}/a.png"])
        with Reader(source, MAX) as reader, pytest.raises(DownloadError, match="private_addresses") as caught:
            reader.read(one.path, one.offset, 0)
        assert failure(caught.value)[0] == "PrivateAddress"


def test_neither_does_a_parquet_file(tmp_path):
    with serving({"/a.png": picture(1)}) as here:
        rows = [{"image": {"bytes": None, "path": f"http://{here}/a.png"}}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        for allowed in (False, True):
            source = resolve(Source(name="p", path=f"{tmp_path}/a.parquet", private_addresses=allowed))
            [one] = [one for piece in list_pieces(source) for one in read_piece(source, piece, MAX)]
            with Reader(source, MAX) as reader:
                if allowed:
                    assert reader.read(one.path, one.offset, 0) == picture(1)
                else:
                    with pytest.raises(DownloadError, match="private_addresses"):
                        reader.read(one.path, one.offset, 0)


def test_nothing_that_is_stored_of_a_row_holds_its_secrets(tmp_path):
    with serving({"/a.png": b"a", "/b.png": b"b"}) as here:
        rows = [
            f"http://me:pw@{here}/a.png?X-Amz-Signature=c0ffee&w=1",
            f"http://me:other@{here}/a.png?X-Amz-Signature=feed&w=1",
            f"http://{here}/b.png?token=t0p",
        ]
        source, found = listed(tmp_path, rows, private_addresses=True)
        names = [f"http://{here}/a.png?w=1", f"http://{here}/a.png?w=1#2", f"http://{here}/b.png"]
        assert [one.uri for one in found] == [f"p/{name}" for name in names]
        assert not [word for word in ("pw", "c0ffee", "t0p", "feed") if word in repr(found)]
        with Reader(source, MAX) as reader:
            reader.expect(one.offset for one in found)
            assert [reader.read(one.path, one.offset, 0) for one in found] == [b"a", b"a", b"b"]


def test_messages_of_errors_lose_secrets_too():
    error = OSError("cannot open https://me:pw@host/a.png?sig=x")
    assert failure(error) == ("OSError", "cannot open https://host/a.png")


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_columns_of_a_list_that_have_no_place_of_their_own_are_metadata(tmp_path, ending):
    rows = [
        {"URL": "a.png", "TEXT": "a cat", "LICENSE": "CC0", "similarity": 0.5, "label": "x"},
        {"URL": "b.png", "TEXT": "", "LICENSE": None, "similarity": None, "label": ""},
    ]
    path, table = tmp_path / f"list.{ending}", pa.Table.from_pylist(rows)
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter="," if ending == "csv" else "\t"))
    source = resolve(Source(name="p", path=str(path)))
    first, second = (one for piece in list_pieces(source) for one in read_piece(source, piece, MAX))
    assert (first.label, first.captions) == ("x", ("a cat",))
    assert json.loads(first.metadata) == {"LICENSE": "CC0", "similarity": 0.5 if ending == "parquet" else "0.5"}
    assert (second.label, second.captions, second.metadata) == (None, (), None)


def test_a_row_that_is_longer_than_the_header_keeps_its_cells(tmp_path):
    (tmp_path / "list.csv").write_text("url,label\na.png,x,more,cells\nb.png\n")
    source = resolve(Source(name="p", path=str(tmp_path / "list.csv")))
    first, second = (one for piece in list_pieces(source) for one in read_piece(source, piece, MAX))
    assert (first.label, json.loads(first.metadata)) == ("x", {"further_cells": ["more", "cells"]})
    assert (second.label, second.metadata) == (None, None)
