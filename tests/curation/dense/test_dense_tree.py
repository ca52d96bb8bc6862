"""The fixture of the method sheet, and trees as people break them."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import dense_fixture as drawn
import numpy as np
import pytest
from dense_fixture import ALSO
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from granary.curation.dense import crops, masks, rle
from granary.curation.dense.masks import decode_pixels, pixels_of, stored
from granary.curation.dense.readers import dci
from granary.curation.dense.texts import cleaned, full_description, mask_description, mask_text
from granary.curation.dense.tree import Annotation, Mask, Png, descendants, link, without


@pytest.fixture
def barn() -> Annotation:
    return dci.parse(json.dumps(drawn.annotation()), "barn-data.json")


def test_full_description(barn: Annotation) -> None:
    masks, _ = link(barn.masks)
    assert full_description(barn, masks).split("\n") == [
        "A red barn beside a pond.",
        "Clouds cover the sky.",
        ALSO,
        "door: A white door with a latch.",
        "barn: A red wooden barn.",
        "bush",
    ]


def test_mask_description(barn: Annotation) -> None:
    masks, problems = link(barn.masks)
    assert not problems
    expected = f"This is an image of barn. A red wooden barn.\n{ALSO}\ndoor: A white door with a latch."
    assert mask_description(masks, "0") == expected
    assert mask_description(masks, "1") == "This is an image of door. A white door with a latch."
    assert mask_description(masks, "3") == "This is an image of bush."
    assert mask_description(masks, "4") == ""


def test_absent_children_are_dropped(barn: Annotation) -> None:
    masks, _ = link(barn.masks)
    assert (masks["0"].children, masks["0"].depth, masks["1"].depth) == (("1",), 1, 2)
    assert [mask.key for mask in descendants(masks, "0")] == ["1"]


def test_the_size_filter_looks_at_bounds_alone(barn: Annotation) -> None:
    large = {key for key, mask in barn.masks.items() if mask.box and crops.large_enough(mask.box)}
    assert large == {"0", "3", "4"}
    assert crops.large_enough((0, 0, 224, 224))
    assert not crops.large_enough((0, 0, 223, 500))


def test_the_crop_of_the_barn(barn: Annotation) -> None:
    assert barn.masks["0"].box is not None
    box = crops.grown(barn.masks["0"].box, drawn.WIDTH, drawn.HEIGHT)
    assert box == (40, 48, 560, 502)
    image = Image.open(io.BytesIO(drawn.picture()))
    assert np.asarray(crops.cut(image, box)).shape == (454, 520, 3)
    assert crops.grown((10, 0, 800, 600), 800, 600) == (0, 0, 800, 600)


def test_pixels_outside_of_the_mask_are_darkened() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    mask = np.zeros((20, 30), bool)
    mask[5:9, 4:20] = True
    pixels, found = np.asarray(image)[2:18, 3:25], np.asarray(crops.cut(image, (3, 2, 25, 18), mask))
    inside = mask[2:18, 3:25, None]
    assert np.array_equal(found, np.where(inside, pixels, pixels // 3 + 84))


@pytest.mark.parametrize("form", ["rle", "png"])
def test_masks_are_boolean_of_the_size_of_the_image_and_as_stated(barn: Annotation, form: str) -> None:
    for mask in barn.masks.values():
        decoded, problems = decode_pixels(mask, drawn.WIDTH, drawn.HEIGHT)
        held = stored(decoded, drawn.WIDTH, drawn.HEIGHT, form)
        pixels = pixels_of(held["size"], held["counts"], held["png"])
        assert pixels is not None
        assert (pixels.dtype, pixels.shape, not problems) == (bool, (600, 800), True)
        assert pixels.sum() == mask.area == decoded.area
        rows, columns = np.nonzero(pixels)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == mask.box == decoded.box


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "LA", "I;16"])
def test_masks_of_any_mode_are_set_where_they_are_not_black(mode: str) -> None:
    wanted = np.random.default_rng(1).random((40, 50)) < 0.3
    picture = (
        Image.fromarray(wanted)
        if mode == "1"
        else Image.fromarray(wanted.astype(np.uint8) * 200).convert(mode if mode != "I;16" else "L")
    )
    if mode == "I;16":
        picture = Image.fromarray(wanted.astype(np.uint16) * 3000)
    found, _ = decode_pixels(Mask("0", pixels=Png(drawn.png64(picture))), 50, 40)
    assert found.lengths is not None
    held = stored(found, 50, 40, "rle")
    assert np.array_equal(pixels_of(held["size"], held["counts"], None), wanted)


def outcome(data: bytes, width: int, height: int) -> object:
    """Return the run lengths of a mask, or what is said of it."""
    text = base64.b64encode(data).decode()
    try:
        return decode_pixels(Mask("0", pixels=Png(text)), width, height)[0].lengths.tolist()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 50, 64])
def test_bits_behind_the_last_pixel_of_a_row_are_no_pixels(width: int) -> None:
    wanted = np.random.default_rng(width).random((20, width)) < 0.5
    rows = np.packbits(np.pad(wanted, ((0, 0), (0, -width % 8)), constant_values=True), axis=1)
    packed = io.BytesIO()
    Image.fromarray(wanted).save(packed, "PNG")
    data, stream = packed.getvalue(), zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())
    chunk = b"IDAT" + stream
    data = data[:33] + struct.pack(">I", len(stream)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]
    assert outcome(data, width, 20) == rle.run_lengths(wanted).tolist()


def test_broken_masks_come_out_alike_by_the_short_way_and_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, file = np.random.default_rng(3), io.BytesIO()
    Image.fromarray(rng.random((40, 50)) < 0.3).save(file, "PNG")
    whole = file.getvalue()
    assert masks._bilevel(whole, 50, 40) is not None
    broken = [whole, whole[:-1], whole[:-14], whole[:60], whole[:41], whole[:20], whole + b"more"]
    for place in rng.integers(0, len(whole), 150):
        broken.append(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :])
    found = [outcome(data, 50, 40) for data in broken]
    assert outcome(whole, 40, 50) == "the mask is 50 x 40, the image 40 x 50"
    monkeypatch.setattr(masks, "_bilevel", lambda *_: None)
    assert found == [outcome(data, 50, 40) for data in broken]
    assert {type(each) for each in found} == {list, str}


def test_bounds_read_as_inclusive_are_noticed() -> None:
    entry = drawn.entry(0, (100, 100, 500, 450))
    entry["bounds"]["bottomRight"] = {"x": 499, "y": 449}
    annotation = dci.parse(json.dumps(drawn.annotation(mask_data={"0": entry})), "x")
    found, problems = decode_pixels(annotation.masks["0"], 800, 600)
    assert found.box == (100, 100, 500, 450)
    assert [problem.error for problem in problems] == ["MaskStatement"]


def test_both_documented_forms_are_the_same() -> None:
    plain = drawn.annotation()
    printed = json.loads(json.dumps(plain))
    for mask in printed["mask_data"].values():
        corners = mask["bounds"]
        mask["bounds"] = [[corners[name]["x"], corners[name]["y"]] for name in ("topLeft", "bottomRight")]
        mask["requirements"] = [str(child) for child in mask["requirements"]]
        mask["parent"] = str(mask["parent"])
        if mask["mask_quality"] == 2:
            del mask["label"], mask["caption"]
    read = [dci.parse(json.dumps(form), "x") for form in (plain, printed)]
    assert read[0] == read[1]


def test_a_mask_that_is_lost_leaves_its_children_to_the_next_one_up() -> None:
    chain = {str(i): Mask(str(i), parent=str(i - 1) if i else "", children=(str(i + 1),)) for i in range(4)}
    masks, _ = link(chain)
    left = without(masks, {"1", "2"})
    assert (left["3"].parent, left["0"].children, left["3"].depth) == ("0", ("3",), 2)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 9), st.lists(st.integers(0, 9), max_size=3)), max_size=10))
def test_any_tree_of_names_becomes_a_forest(named: list[tuple[int, list[int]]]) -> None:
    masks = {
        str(key): Mask(str(key), str(parent) if parent >= 0 else "", tuple(map(str, children)))
        for key, (parent, children) in enumerate(named)
    }
    linked, problems = link(masks)
    assert list(linked) == list(masks)
    for key, mask in linked.items():
        above, key_above = 1, mask.parent
        while key_above:
            above, key_above = above + 1, linked[key_above].parent
            assert above <= len(linked)
        assert mask.depth == above
        assert sorted(mask.children) == sorted(other.key for other in linked.values() if other.parent == key)
    stated = {key: mask.parent for key, mask in masks.items() if mask.parent in masks and mask.parent != key}
    moved = [key for key, parent in stated.items() if linked[key].parent != parent]
    assert sorted(problem.part for problem in problems if problem.part in stated) == sorted(moved)


def test_a_loop_is_cut_at_its_last_mask() -> None:
    linked, problems = link({"a": Mask("a", "c"), "b": Mask("b", "a"), "c": Mask("c", "b"), "d": Mask("d", "d")})
    assert [linked[key].parent for key in "abcd"] == ["c", "a", "", ""]
    assert [(problem.part, problem.error) for problem in problems] == [("c", "MaskCycle")]


def test_a_tree_as_deep_as_it_is_long_needs_no_recursion() -> None:
    masks = {str(i): Mask(str(i), parent=str(i - 1) if i else "", label="x") for i in range(5000)}
    linked, _ = link(masks)
    assert linked["4999"].depth == 5000
    assert mask_description(linked, "0").count("\n") == 5000


def test_texts_by_quality() -> None:
    assert mask_text(Mask("0", label="a", caption="b", quality=0)) == "a: b"
    assert mask_text(Mask("0", label="a", caption="b", quality=1)) == "a"
    assert mask_text(Mask("0", label="a", caption="b", quality=2)) == ""
    assert mask_text(Mask("0", label="", caption="b")) == "b"
    assert mask_text(Mask("0", label="a", caption="")) == "a"


def test_cleaning_leaves_what_scripts_need() -> None:
    assert cleaned(" a\x00b\x1b[31mc\x85d\ud800 \r\n e\t") == "a b [31mc d  \n e"
    arabic = "\u200fباب \u200cأبيض"
    assert cleaned(arabic) == arabic
