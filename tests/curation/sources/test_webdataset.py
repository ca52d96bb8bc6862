"""Tar shards: grouping, damage, hostile members; `tarfile` is the oracle of the header walk."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import uuid

import fsspec
import pytest
from places import SHARED

from granary.curation.errors import UserError
from granary.curation.sources import Reader, Source, list_pieces, random_access, read_piece, resolve, tar

MAX = 1 << 20


def write_tar(path, members, mode="w", **options):
    """members: (name, bytes) or a TarInfo."""
    with tarfile.open(path, mode, **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return path


def read(path, max_bytes=MAX, **fields):
    source = resolve(Source(name="p", path=str(path), **fields))
    return source, [found for piece in list_pieces(source) for found in read_piece(source, piece, max_bytes)]


def link(kind, name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.xz", "tar.bz2"])
def test_groups_sidecars_and_companions(tmp_path, ending):
    record = {"captions": ["one", "two"], "label": 7, "more": {"a": 1}}
    members = [
        ("a/001.jpg", b"jpeg"), ("a/001.json", json.dumps(record).encode()), ("a/001.mask.png", b"mask"),
        ("a/002.json", b'{"caption": "in json"}'), ("a/002.txt", b"in text\n"), ("a/002.PNG", b"png"),
        ("a/003.cls", b"4\n"), ("a/003.webp", b"webp"), ("a/003.png", b"second"),
        ("a/004.npy", b"array"),
        ("a/005.json", b"{broken"), ("a/005.jpg", b"5"),
    ]  # fmt: skip
    path = write_tar(
        tmp_path / f"x.{ending}", members, {"tar": "w", "tar.xz": "w:xz", "tar.bz2": "w:bz2"}.get(ending, "w:gz")
    )
    source, found = read(path)
    assert (source.kind, random_access(source)) == ("webdataset", ending == "tar")
    shard = f"p/x.{ending}#"
    assert [(one.uri.removeprefix(shard), one.data, one.label, one.captions) for one in found] == [
        ("a/001.jpg", b"jpeg", "7", ("one", "two")),
        ("a/002.PNG", b"png", None, ("in json", "in text")),
        ("a/003.webp", b"webp", "4", ()),
        ("a/003.png", b"second", "4", ()),
        ("a/004", None, None, ()),
        ("a/005.jpg", b"5", None, ()),
    ]
    assert found[4].error[0] == "NoImage"
    assert json.loads(found[0].metadata) == record
    assert (found[5].metadata, [one.part for one in found[5].unread]) == (None, ["json"])
    assert found[0].left_out == (("*.mask.png", "neither an image nor a sidecar"),)
    alive = [one for one in found if not one.error]
    with Reader(source, MAX) as reader:
        for one in [*alive, *reversed(alive)]:
            assert reader.read(one.path, one.offset, one.size) == one.data
        with pytest.raises(OSError, match="cut off"):
            reader.read(alive[0].path, 1 << 20, 5)


def test_hostile_and_odd_members(tmp_path):
    members = [
        ("../evil.jpg", b"1"), ("/etc/evil.jpg", b"2"), ("a/../../evil.jpg", b"3"),
        ("same.jpg", b"first"), ("same.jpg", b"again"), ("same.jpg#2", b""), ("./dot.jpg", b"dot"),
        link(tarfile.SYMTYPE, "sym.jpg", "/etc/passwd"), link(tarfile.LNKTYPE, "hard.jpg", "same.jpg"),
        link(tarfile.FIFOTYPE, "fifo.jpg", ""), link(tarfile.DIRTYPE, "folder.jpg", ""),
        ("half.json", b'{"caption": "\\ud800"}'), ("half.jpg", b"half"),
        ("large.jpg", b"x" * 2000), ("last.jpg", b"last"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "x.tar", members)
    _, found = read(path, max_bytes=1999)
    told = [(one.uri.removeprefix("p/x.tar#"), one.error[0] if one.error else one.data) for one in found]
    assert told == [
        ("../evil.jpg", "UnsafeMemberPath"), ("/etc/evil.jpg", "UnsafeMemberPath"),
        ("a/../../evil.jpg", "UnsafeMemberPath"), ("same.jpg", b"first"), ("same.jpg#2", b"again"),
        ("dot.jpg", b"dot"), ("sym.jpg", "LinkMember"), ("hard.jpg", "LinkMember"), ("half.jpg", b"half"),
        ("large.jpg", "TooManyBytes"), ("last.jpg", b"last"),
    ]  # fmt: skip
    half = next(one for one in found if one.uri.endswith("half.jpg"))
    half.captions[0].encode("utf-8")


def test_uris_stay_unique_against_literal_suffixes(tmp_path):
    path = write_tar(tmp_path / "x.tar", [(name, b"1") for name in ("a.jpg", "a.jpg", "b", "a.jpg", "c", "a.jpg")])
    uris = [one.uri for one in read(path)[1]]
    assert len(set(uris)) == len(uris) == 6


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_header_walk_agrees_with_tarfile(tmp_path, format):
    names = ["short.jpg", "d" * 90 + "/" + "n" * 60 + ".jpg", "umlaut-ä.jpg", "empty.jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += ["e" * 300 + ".jpg", "deep/" * 40 + "x.jpg"]
    length = 90 if format == tarfile.USTAR_FORMAT else 140
    members = [(name, os.urandom(index * 511)) for index, name in enumerate(reversed(names))]
    path = write_tar(tmp_path / "x.tar", [*members, link(tarfile.SYMTYPE, "l" * 90, "m" * length)], format=format)
    with open(path, "rb") as stream, tarfile.open(path) as archive:
        wanted = [(one.name, one.offset_data, one.size) for one in archive]
        assert [(one.name, one.offset, one.size) for one in tar.members(stream)] == wanted


def test_appended_archives_are_read_through(tmp_path):
    one = write_tar(tmp_path / "1.tar", [("a.jpg", b"a")]).read_bytes()
    two = write_tar(tmp_path / "2.tar", [("b.jpg", b"b")]).read_bytes()
    both = tmp_path / "both.tar"
    both.write_bytes(one + two + b"padding of a tape")
    assert [found.data for found in read(both)[1]] == [b"a", b"b"]


@pytest.mark.parametrize("compressed", [False, True])
def test_cut_at_any_place_gives_what_was_readable_and_one_rest(tmp_path, compressed):
    members = [(f"{index}.jpg", bytes([index]) * 700) for index in range(4)]
    whole = write_tar(tmp_path / "whole.tar", members, format=tarfile.USTAR_FORMAT).read_bytes()
    block = 512 + 1024
    for cut in (0, 100, 512, 700, block, block + 1, 3 * block - 1, 4 * block):
        path = tmp_path / f"cut{cut}.tar"
        path.write_bytes(gzip.compress(whole)[: 20 + cut // 100] if compressed else whole[:cut])
        _, found = read(path, kind="webdataset")
        assert found[-1].uri == f"p/{path.name}#rest"
        assert found[-1].error is not None
        assert [one.data for one in found[:-1]] == [data for _, data in members][: len(found) - 1]
        if not compressed:
            assert len(found) - 1 == sum(index * block + 512 + 700 <= cut for index in range(4))


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path):
    data = bytearray(write_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"x") for i in range(5)]).read_bytes())
    data[2 * 1024 : 2 * 1024 + 200] = b"\xff" * 200
    (tmp_path / "x.tar").write_bytes(data)
    _, found = read(tmp_path / "x.tar")
    assert [one.uri for one in found] == ["p/x.tar#0.jpg", "p/x.tar#1.jpg", "p/x.tar#rest"]


def header(type_=tarfile.REGTYPE, size=0, name="a.jpg"):
    info = tarfile.TarInfo(name)
    info.type, info.size = type_, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "data",
    [
        header(size=1 << 60),
        header(tarfile.XHDTYPE, size=1 << 40),
        header(tarfile.GNUTYPE_LONGNAME, size=1 << 33),
        header(tarfile.XHDTYPE, size=512) + b"0 =\n".ljust(512, b"\0"),
        header(tarfile.XHDTYPE, size=512) + b"99999999999 size=1\n".ljust(512, b"\0"),
        header(tarfile.XHDTYPE, size=512) + b"11 size=-5\n".ljust(512, b"\0") + header(),
        header(tarfile.XHDTYPE, size=512) + b"20 size=99999999999\n".ljust(512, b"\0") + header(),
        header(tarfile.XHDTYPE, size=512) + (b"40 size=" + b"9" * 31 + b"\n").ljust(512, b"\0") + header(),
        header(size=1 << 80),
        header(tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + header()[483:],
        header(tarfile.XHDTYPE) * 5000,
        b"\xff" * 2048,
    ],
)
def test_hostile_headers_end_in_one_dead_rest(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    _, found = read(tmp_path / "x.tar")
    assert found[-1].uri == "p/x.tar#rest"
    assert all(one.error for one in found)


def test_folders_globs_and_braces_of_shards(tmp_path):
    for number in (0, 1, 3):
        write_tar(tmp_path / f"s-{number:02d}.tar", [(f"{number}.jpg", b"%d" % number)])
    (tmp_path / "s-00.json").write_text("{}")
    for path, wanted in [
        (tmp_path, "013"), (f"{tmp_path}/s-*.tar", "013"), (f"{tmp_path}/s-{{00..01}}.tar", "01"),
        (f"{tmp_path}/s-0[13].tar", "13"), (f"{tmp_path}/{{s-03,s-00}}.tar", "03"),
    ]:  # fmt: skip
        source, found = read(path)
        assert source.kind == "webdataset"
        assert b"".join(one.data for one in found).decode() == wanted
        assert found[0].uri == f"p/s-0{wanted[0]}.tar#{wanted[0]}.jpg"
    _, found = read(f"{tmp_path}/s-{{00..03}}.tar")
    assert [(one.uri, one.error and one.error[0]) for one in found][2] == (
        "p/s-02.tar#rest",
        "FileNotFoundError",
    )
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="a pattern names tar or Parquet"):
        resolve(Source(name="p", path=f"{tmp_path}/*.jpg"))


def test_shards_in_memory(tmp_path):
    data = write_tar(tmp_path / "x.tar", [("a.jpg", b"a"), ("b.jpg", b"b")]).read_bytes()
    fs, root = fsspec.filesystem("memory"), f"memory://{uuid.uuid4().hex}"
    fs.pipe({f"{root}/sub/0.tar": data, f"{root}/sub/1.tar.gz": gzip.compress(data)})
    for path in (root, f"{root}/sub/*.tar*"):
        source, found = read(path)
        assert not random_access(source)
        assert [one.data for one in found] == [b"a", b"b"] * 2
        with Reader(source, MAX) as reader:
            assert [reader.read(one.path, one.offset, one.size) for one in found] == [b"a", b"b"] * 2


def test_a_group_beyond_the_limit_is_left_to_the_reader(tmp_path):
    path = write_tar(tmp_path / "x.tar", [(f"k.{ending}", b"x" * 600) for ending in ("jpg", "png", "gif")])
    source, found = read(path, max_bytes=1000)
    assert [one.data is None for one in found] == [False, True, True]
    with Reader(source, 1000) as reader:
        assert all(reader.read(one.path, one.offset, one.size) == b"x" * 600 for one in found)


@pytest.mark.skipif(not SHARED.exists(), reason="the real-image folder ../shared is not here")
def test_real_caption_shards():
    for name, count, captions in (("captions_flickr8k_dev.tar", 700, 5), ("captions_coco_dev.tar", 200, 0)):
        _, found = read(SHARED / name)
        assert len(found) == len({one.uri for one in found}) == count
        assert not any(one.error for one in found)
        assert all(len(one.captions) >= captions and one.metadata for one in found)
    assert sum(bool(one.captions) for one in found) == 151
