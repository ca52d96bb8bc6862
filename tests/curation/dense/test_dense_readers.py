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
    assert [record.name for record in records] == ["instances.json:2", "instances.json:9", "instances.json:77"]
    message = "1 annotations are of image_id 77, which is not among the images"
    assert records[2].error == ("NoImage", message)
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


def test_coco_counts_and_names_the_keys_that_are_not_read(tmp_path: Path) -> None:
    published = {"width": 9, "height": 9, "license": 3, "flickr_url": "http://x/y", "date_captured": "2013-11-14"}
    whole = {"area": 1.5, "bbox": [1, 1, 3, 3], "iscrowd": 0, "segmentation": []}
    found = gathered(
        tmp_path,
        {
            "images": [{"id": 2, "file_name": "a.jpg", "mood": 1, **published}, {"id": 3, "file_name": "b.jpg"}],
            "annotations": [
                {"id": 1, "image_id": 2, "caption": "A dog.", "author": "x"},
                {"id": 2, "image_id": 2, "caption": "Dogs.", "author": "y"},
                {"id": 3, "image_id": 2, "category_id": 1, "keypoints": [1], **whole},
                {"id": 4, "image_id": 3, "category_id": 1, **whole},
                {"id": 5, "image_id": 3, "caption": "A cat."},
            ],
        },
    )
    first, second = found["x.json:2"], found["x.json:3"]
    assert isinstance(first, Annotation)
    assert isinstance(second, Annotation)
    assert [(problem.part, problem.error, problem.message) for problem in first.problems] == [
        ("mood", "UnknownKey", "the key 'mood' of 1 images is not read"),
        ("author", "UnknownKey", "the key 'author' of 2 captions is not read"),
        ("keypoints", "UnknownKey", "the key 'keypoints' of 1 instances is not read"),
    ]
    assert not second.problems


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"images": [], "annotations": 3}', '{"images": {"1": {}}, "annotations": []}']
)
def test_what_is_not_cocos_is_a_mistake_of_the_user(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="annotations"):
        list(coco.records(source(tmp_path / "x.json"), LIMIT))


def gathered(folder: Path, content: dict[str, Any]) -> dict[str, Annotation | tuple[str, str]]:
    """Return what each record of a COCO file leads to, by its name."""
    (folder / "x.json").write_text(json.dumps(content))
    records = coco.records(source(folder / "x.json"), LIMIT)
    return {record.name: record.error or coco.parse(record.text, record.name) for record in records}


@pytest.mark.parametrize(("left", "right"), [(139, "285"), ("139", 285), ("139", "285"), (139.0, 285), ("a", 285)])
def test_coco_ids_are_the_same_as_numbers_and_as_texts(tmp_path: Path, left: object, right: object) -> None:
    images = [{"id": left, "file_name": "139.jpg"}, {"id": right, "file_name": "285.jpg"}]
    other = str(left).removesuffix(".0")
    annotations = [
        {"id": 1, "image_id": other, "caption": "A mosaic."},
        {"id": 2, "image_id": int(right), "caption": "A wall."},  # type: ignore[call-overload]
        {"id": 3, "image_id": int(right), "category_id": "7", "bbox": [1, 1, 5, 5]},  # type: ignore[call-overload]
    ]
    categories = [{"id": 7, "name": "brick"}, {"name": "nothing"}]
    read = gathered(tmp_path, {"images": images, "annotations": annotations, "categories": categories})
    mosaic, wall = read[f"x.json:{other}"], read["x.json:285"]
    assert isinstance(mosaic, Annotation)
    assert isinstance(wall, Annotation)
    assert (mosaic.summaries["base"], wall.summaries["base"]) == (["A mosaic."], ["A wall."])
    assert [mask.label for mask in wall.masks.values()] == ["brick"]


def test_what_belongs_to_no_image_of_coco_is_a_record_with_its_reason(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "a.jpg"},
        {"id": "1", "file_name": "b.jpg"},
        {"file_name": "c.jpg"},
        {"id": 4},
        "no object",
    ]
    annotations = [{"image_id": 1, "caption": "A."}, {"image_id": "x", "caption": "B."}, {"caption": "C."}, None]
    read = gathered(tmp_path, {"images": images, "annotations": [*annotations, {"image_id": 0, "caption": "D."}]})
    assert {name: error[0] for name, error in read.items() if isinstance(error, tuple)} == {
        "x.json:images/1": "DuplicateKey",
        "x.json:images/2": "NoImageName",
        "x.json:images/3": "NoImageName",
        "x.json:images/4": "NoImageName",
        "x.json:annotations": "NoImage",
        "x.json:0": "NoImage",
        "x.json:x": "NoImage",
    }
    kept = read["x.json:1"]
    assert isinstance(kept, Annotation)
    assert (kept.image, kept.summaries) == ("a.jpg", {"base": ["A."]})


def test_lvis_names_pictures_by_their_address(tmp_path: Path) -> None:
    """LVIS v1, as lvisdataset.org describes it, has no file_name; v0.5 has COCO's of 2014."""
    address = "http://images.cocodataset.org/train2017/000000000139.jpg"
    fields = {"id": 139, "coco_url": address, "neg_category_ids": [3], "not_exhaustive_category_ids": []}
    for given, names in (
        ({}, ("000000000139.jpg", "train2017/000000000139.jpg")),
        (
            {"file_name": "COCO_train2014_000000000139.jpg"},
            ("COCO_train2014_000000000139.jpg", "000000000139.jpg", "train2017/000000000139.jpg"),
        ),
    ):
        category = {"id": 7, "name": "alarm_clock", "synset": "alarm_clock.n.01", "frequency": "c"}
        outline = [[20.5, 20.0, 200.2, 20.0, 200.0, 180.5, 20.0, 180.0]]
        instance = {"id": 1, "image_id": 139, "category_id": 7, "area": 28000, "segmentation": outline}
        read = gathered(tmp_path, {"images": [fields | given], "annotations": [instance], "categories": [category]})
        annotation = read["x.json:139"]
        assert isinstance(annotation, Annotation)
        assert ((annotation.image, *annotation.also), annotation.masks["1"].label) == (names, "alarm_clock")


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


@pytest.mark.parametrize("word", ["utterance", "caption"])
def test_a_spoken_sentence_is_tied_to_where_the_mouse_was(word: str) -> None:
    record = {
        "image_id": "a",
        "caption": "In the left there is a dog. On the right a tree.",
        "timed_caption": [
            {word: "In the left there is", "start_time": 0.0, "end_time": 1.0},
            {word: "a dog.", "start_time": 1.0, "end_time": 2.0},
            {word: "On the right a tree.", "start_time": 3.0, "end_time": 4.0},
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


@pytest.mark.parametrize(
    ("dataset", "image", "names"),
    [
        ("mscoco_val2017", "137576", ("000000137576", "val2017/000000137576", "137576")),
        ("mscoco_train2017", 9, ("000000000009", "train2017/000000000009", "9")),
        ("open_images_v6_val", "0a1b2c3d4e5f6789", ("0a1b2c3d4e5f6789",)),
        ("Flickr30k_train", "1000092795", ("1000092795",)),
        ("ADE20k_validation", "ADE_val_00000001", ("ADE_val_00000001",)),
    ],
)
def test_pictures_of_localized_narratives_have_the_names_of_their_datasets(
    dataset: str, image: str | int, names: tuple[str, ...]
) -> None:
    record = {"dataset_id": dataset, "image_id": image, "annotator_id": 93, "caption": "In this image.", "traces": []}
    found = narratives.parse(json.dumps(record), "x:1")
    assert (found.image, *found.also) == names


@pytest.mark.parametrize(
    "box", [["1", "0", "998", "999"], [998, 0, 1, 999], "['1', '0', '998', '999']", "[998, 0, 1, 999]"]
)
def test_iiw_400_as_it_is_released(box: object) -> None:
    """The keys of google/imageinwords, datasets/IIW-400/data.jsonl, in its two versions and as text."""
    tile = {"label": "tile", "description": "A small red tile.", "normalized_coords": box}
    record = {"image/key": "aar_test_04600", "IIW": "A mosaic.", "IIW-P5B": "Tiles.", "objects": [tile]}
    found = narratives.parse(json.dumps({**record, "iiw-human-sxs-gpt4v": {"metrics/Specificity": "Neutral"}}), "x:1")
    assert (found.image, found.extra_caption, found.problems) == ("aar_test_04600", "A mosaic.", [])
    assert [(mask.caption, mask.box) for mask in found.masks.values()] == [("A small red tile.", (0, 1, 1000, 999))]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"IIW": "A tree.", "ex_id": "1-data.json", "image": "sa_15.jpg"}, ("sa_15.jpg", "A tree.")),  # DCI_Test
        ({"IIW": "A tree.", "DOCCI": "Tree.", "image": "test_02089"}, ("test_02089", "A tree.")),  # DOCCI_Test
        ({"IIW-P5B": "A tree.", "image/key": "5fe1", "image/source": "5fe1_93"}, ("5fe1", "A tree.")),  # LocNar_Eval
    ],
)
def test_the_other_sets_of_imageinwords_as_they_are_released(record: dict[str, str], expected: tuple[str, str]) -> None:
    found = narratives.parse(json.dumps(record), "x:1")
    assert (found.image, found.extra_caption) == expected


@pytest.mark.parametrize("box", ["[1, 2, 3]", "", "four numbers", "[[[[", [1, 2, 3], None, {}])
def test_a_region_without_four_numbers_is_lost_alone(box: object) -> None:
    record = {"image/key": "a", "IIW": "A.", "objects": [{"label": "l", "normalized_coords": box}]}
    found = narratives.parse(json.dumps(record), "x:1")
    assert (found.extra_caption, dict(found.masks), errors(found)) == ("A.", {}, [("0", "InvalidMask")])


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
