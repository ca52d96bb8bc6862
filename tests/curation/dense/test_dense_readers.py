"""Readers: each format as it is documented, as real files have it, and as it comes broken."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import dense_fixture as drawn
import numpy as np
import pytest
from PIL import Image
from places import SHARED

from granary.curation.dense import rle
from granary.curation.dense.masks import decode_pixels
from granary.curation.dense.readers import coco, dci, jsonl, narratives
from granary.curation.dense.tree import DULL, Annotation, InvalidAnnotation
from granary.curation.errors import UserError
from granary.curation.sources import Source

LIMIT = 1 << 20


def source(path: Path) -> Source:
    return Source(name="annotations", path=str(path) + ("/" if path.is_dir() else ""), kind="folder")


def errors(annotation: Annotation) -> list[tuple[str, str]]:
    return [(problem.part, problem.error) for problem in annotation.problems]


# -- DCI -------------------------------------------------------------------------------------------------------------


def test_dci_lists_json_files_by_name(tmp_path: Path) -> None:
    for name in ("b-data.json", "a-data.json", "splits.json", "notes.txt", ".hidden.json"):
        (tmp_path / name).write_text("{}")
    assert [record.name for record in dci.records(source(tmp_path), LIMIT)] == ["a-data.json", "b-data.json"]


def test_dci_reads_the_texts_of_complete() -> None:
    generated = {
        "summaries": {"base": "One.", "m-0-sc": ["A.", "B."]},
        "negatives": {"base": {"basic": ["x", "y"], "swaps": ["z"]}},
        "clip_scores": {"base": {"sum": 24.5, "basic_0": 1, "swaps_0": -3.25}},
    }
    found = dci.parse(json.dumps(drawn.annotation(**generated)), "a")
    assert found.summaries == {"base": ["One."], "m-0-sc": ["A.", "B."]}
    assert found.negatives == {"base": {"basic": ["x", "y"], "swaps": ["z"]}}
    assert found.scores == {"base": {"sum": 24.5, "basic_0": 1.0, "swaps_0": -3.25}}
    assert not found.problems


def test_the_smallest_part_is_lost() -> None:
    masks = {
        "0": drawn.entry(0, (0, 0, 9, 9), label=3, caption=None),
        "1": {"idx": 1},
        "2": "no object",
        "3": drawn.entry(3, (0, 0, 9, 9), bounds={"topLeft": {"x": 0}}),
        "4": drawn.entry(4, (0, 0, 9, 9), parent=float("nan")),
        "5": drawn.entry(5, (0, 0, 9, 9), requirements="12"),
        "-1": drawn.entry(6, (0, 0, 9, 9)),
        "7": drawn.entry(7, (0, 0, 9, 9), mask_quality="1", area="81"),
    }
    fields = {
        "short_caption": ["no text"],
        "summaries": {"base": ["", 7, "kept"]},
        "negatives": {"base": "x", "m": {"basic": "y"}},
    }
    found = dci.parse(json.dumps(drawn.annotation(mask_data=masks, clip_scores={"base": {"sum": "1"}}, **fields)), "a")
    assert list(found.masks) == ["0", "7"]
    assert (found.masks["7"].quality, found.masks["7"].area) == (DULL, 81)
    assert found.summaries == {"base": ["kept"]}
    assert found.negatives["m"] == {"basic": ["y"]}
    assert found.extra_caption == "Clouds cover the sky."
    assert sorted(errors(found)) == sorted(
        [
            ("0", "InvalidText"),
            *((key, "InvalidMask") for key in ("1", "2", "3", "4", "5", "-1")),
            ("short_caption", "InvalidText"),
            ("summaries/base/0", "EmptyText"),
            ("summaries/base/1", "InvalidText"),
            ("negatives/base", "InvalidText"),
            ("scores/base/sum", "InvalidScore"),
        ]
    )


def test_of_duplicate_keys_the_first_counts_and_the_other_is_noted() -> None:
    first, second = (json.dumps(drawn.entry(0, (0, 0, 9, 9), label=label)) for label in ("first", "second"))
    text = f'{{"image": "x.jpg", "short_caption": "one", "mask_data": {{"0": {first}, "0": {second}}}, '
    text += '"short_caption": "two"}'
    found = dci.parse(text, "a")
    assert (found.masks["0"].label, found.short_caption) == ("first", "one")
    assert sorted(errors(found)) == [("0", "DuplicateKey"), ("short_caption", "DuplicateKey")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (json.dumps(drawn.annotation())[:-40], "InvalidJson"),
        ("", "InvalidJson"),
        ("[]", "InvalidJson"),
        ("[" * 100_000, "InvalidJson"),
        (b"\xff\xfe", "InvalidJson"),
        ('{"a": ' + "9" * 5000 + "}", "InvalidJson"),
        ("{}", "NoImageName"),
        ('{"image": 3}', "NoImageName"),
        ('{"image": "a\\u0000b"}', "NoImageName"),
    ],
)
def test_what_is_no_annotation_is_one_error(text: str | bytes, kind: str) -> None:
    with pytest.raises(InvalidAnnotation) as caught:
        dci.parse(text, "a")
    assert caught.value.kind == kind


def test_a_byte_order_mark_is_no_error() -> None:
    assert dci.parse(b"\xef\xbb\xbf" + json.dumps(drawn.annotation()).encode(), "a").image == "barn.jpg"


# -- JSON Lines ------------------------------------------------------------------------------------------------------


def test_lines_are_records_and_bad_ones_are_named(tmp_path: Path) -> None:
    lines = [b'{"image": "1.jpg"}', b"", b"x" * (LIMIT + 5), b"\xff\xfe", b'{"image": "2.jpg"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"image": "3.jpg"}\n' * 3)[:-12])
    found = list(jsonl.records(source(tmp_path), LIMIT))
    assert [(record.name, record.error and record.error[0]) for record in found[:4]] == [
        ("a.jsonl:1", None),
        ("a.jsonl:3", "TooManyBytes"),
        ("a.jsonl:4", "InvalidJson"),
        ("a.jsonl:5", None),
    ]
    assert found[-1].name.startswith("b.jsonl.gz:")
    assert found[-1].error is not None


def test_our_own_form() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:20, 5:40] = True
    code = {"size": [60, 80], "counts": rle.compress(rle.run_lengths(mask))}
    record = {
        "image": "a.jpg",
        "split": "test",
        "caption": "Long.",
        "short_caption": "Short.",
        "masks": [
            {"label": "barn", "caption": "A barn.", "box": [4, 4, 60, 50]},
            {"key": "d", "parent": 0, "rle": code, "label": "door"},
            {"key": "p", "png": drawn.png64(Image.fromarray(mask))},
            {"key": "d", "box": [0, 0, 1, 1]},
            {"key": "n"},
            {"key": "t", "box": [0, 0, 1, 1], "captoin": "lost"},
        ],
        "summaries": {"base": ["S."]},
        "colour": "red",
    }
    found = jsonl.parse(json.dumps(record), "a.jsonl:1")
    assert (found.image, found.split, found.short_caption, found.extra_caption) == ("a.jpg", "test", "Short.", "Long.")
    assert list(found.masks) == ["0", "d", "p", "t"]
    assert found.masks["d"].parent == "0"
    assert errors(found) == [
        ("colour", "UnknownKey"),
        ("d", "DuplicateKey"),
        ("n", "InvalidMask"),
        ("t/captoin", "UnknownKey"),
    ]
    for key in "dp":
        decoded, _ = decode_pixels(found.masks[key], 80, 60)
        assert decoded.lengths is not None
        assert np.array_equal(rle.mask_of(decoded.lengths, 60, 80), mask)
    box, _ = decode_pixels(found.masks["0"], 50, 40)
    assert (box.box, box.area, box.lengths) == ((4, 4, 50, 40), 46 * 36, None)


def test_the_documented_example_is_read() -> None:
    text = jsonl.__doc__ or ""
    for field in jsonl.TOP | jsonl.MASK:
        assert f'"{field}"' in text or field in ("short_caption", "extra_caption")


# -- COCO ------------------------------------------------------------------------------------------------------------


def coco_files(folder: Path) -> tuple[Path, Path]:
    square = rle.compress(rle.run_lengths(np.pad(np.ones((4, 5), bool), ((2, 4), (3, 2)))))
    instances: dict[str, Any] = {
        "images": [{"id": 9, "file_name": "b.jpg"}, {"id": 2, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"id": 5, "image_id": 2, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]], "iscrowd": 0},
            {
                "id": 6,
                "image_id": 2,
                "category_id": 1,
                "segmentation": {"size": [10, 10], "counts": square},
                "iscrowd": 1,
            },
            {"id": 7, "image_id": 2, "category_id": 8, "bbox": [1.5, 2.5, 3, 3]},
            {"id": 8, "image_id": 2, "category_id": 1},
            {"id": 9, "image_id": 77, "category_id": 1},
        ],
    }
    captions = {
        "images": [{"id": 2, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 2, "caption": text} for text in ("A dog. ", "Dogs.", "")],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder / "instances.json", folder / "captions.json"


def test_coco_gathers_instances_and_captions_of_an_image(tmp_path: Path) -> None:
    instances, captions = coco_files(tmp_path)
    records = list(coco.records(source(instances), LIMIT, str(captions)))
    assert [record.name for record in records] == ["instances.json:2", "instances.json:9"]
    found = coco.parse(records[0].text, records[0].name)
    assert found.image == "a.jpg"
    assert found.summaries == {"base": ["A dog.", "Dogs."]}
    assert [(mask.key, mask.label, mask.quality) for mask in found.masks.values()] == [
        ("5", "dog", 0),
        ("6", "dog", DULL),
        ("7", "", 0),
    ]
    assert errors(found) == [("captions/2", "EmptyText"), ("8", "InvalidMask")]
    boxes = [decode_pixels(mask, 10, 10)[0].box for mask in found.masks.values()]
    assert boxes == [(1, 1, 5, 5), (3, 2, 8, 6), (1, 2, 5, 6)]
    assert not coco.parse(records[1].text, records[1].name).masks


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"images": [], "annotations": 3}', '{"images": [{"id": 1}], "annotations": []}']
)
def test_what_is_not_cocos_is_a_mistake_of_the_user(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="annotations"):
        list(coco.records(source(tmp_path / "x.json"), LIMIT))


def test_segments_of_real_pictures_keep_their_pixels() -> None:
    path = SHARED / "captions_coco_dev.tar"
    if not path.exists():
        pytest.skip("shared/data is not beside the checkout")
    compared = 0
    with tarfile.open(path) as tar:
        for member in [member for member in tar.getmembers() if member.name.endswith(".mask.png")][:20]:
            values = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))  # type: ignore[union-attr]
            sidecar = tar.extractfile(member.name.replace(".mask.png", ".json"))
            for segment in json.loads(sidecar.read())["segments"]:  # type: ignore[union-attr]
                mask = values == segment["value"]
                lengths = rle.run_lengths(mask)
                assert rle.area(lengths) == segment["pixels"]
                assert np.array_equal(rle.mask_of(rle.decompress(rle.compress(lengths)), *mask.shape), mask)
                compared += 1
    assert compared > 50


# -- narratives ------------------------------------------------------------------------------------------------------


def test_boxes_in_thousandths_cover_the_pixels_they_touch() -> None:
    record = {
        "image_key": "a",
        "description": "All.",
        "objects": [
            {"label": "l", "description": "d", "box_yxyx_999": ["0", "0", "999", "999"]},
            {"label": "m", "description": "e", "box_yxyx_999": [500, 250, 749, 499]},
            {"label": "n", "description": "f", "box_yxyx_999": [5, 5]},
        ],
    }
    found = narratives.parse(json.dumps(record), "x:1")
    assert (found.image, found.extra_caption, errors(found)) == ("a", "All.", [("2", "InvalidMask")])
    boxes = [decode_pixels(mask, 800, 600, found.relative)[0].box for mask in found.masks.values()]
    assert boxes == [(0, 0, 800, 600), (200, 300, 400, 450)]


def test_a_spoken_sentence_is_tied_to_where_the_mouse_was() -> None:
    record = {
        "image_id": "a",
        "caption": "In the left there is a dog. On the right a tree.",
        "timed_caption": [
            {"caption": "In the left there is", "start_time": 0.0, "end_time": 1.0},
            {"caption": "a dog.", "start_time": 1.0, "end_time": 2.0},
            {"caption": "On the right a tree.", "start_time": 3.0, "end_time": 4.0},
        ],
        "traces": [
            [{"x": 0.1, "y": 0.2, "t": 0.5}, {"x": 0.3, "y": 0.45, "t": 1.9}, {"x": 0.5, "y": 0.5, "t": 2.5}],
            [{"x": 0.9, "y": 0.1, "t": 3.5}, {"x": 1.02, "y": -0.01, "t": 3.6}],
        ],
    }
    found = narratives.parse(json.dumps(record), "x:1")
    assert [mask.caption for mask in found.masks.values()] == ["In the left there is a dog.", "On the right a tree."]
    assert [mask.box for mask in found.masks.values()] == [(100, 200, 301, 451), (900, 0, 1000, 101)]
    assert errors(narratives.parse(json.dumps({**record, "traces": "x"}), "x:1")) == [("traces", "InvalidMask")]


def test_real_records_are_read_whole() -> None:
    path = SHARED / "dense_descriptions_dev.jsonl.gz"
    if not path.exists():
        pytest.skip("shared/data is not beside the checkout")
    records = list(narratives.records(source(path), LIMIT))
    found = [narratives.parse(record.text, record.name) for record in records]
    assert len(found) == 419
    assert sum(len(annotation.masks) for annotation in found) == 1326
    assert not [problem for annotation in found for problem in annotation.problems]
    turned = 0
    for annotation, record in zip(found, records, strict=True):
        for mask, entry in zip(annotation.masks.values(), json.loads(record.text)["objects"], strict=True):
            decoded, _ = decode_pixels(mask, 1000, 1000, relative=True)
            y0, x0, y1, x1 = map(int, entry["box_yxyx_999"])
            turned += y0 > y1
            assert decoded.area == (abs(x1 - x0) + 1) * (abs(y1 - y0) + 1)
    assert turned == 69
