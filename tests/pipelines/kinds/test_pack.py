"""`granary pack` from annotations to shards: what is in the rows, what is lost and where, what is done again."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dense_fixture as drawn
import numpy as np
import pools
import pytest
from PIL import Image

from granary.curation.dense import crops
from granary.curation.dense.masks import pixels_of
from granary.curation.dense.steps import shards
from granary.curation.dense.steps.shards import read_picture
from granary.curation.images.decode import decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.sources import Source
from granary.pipelines import command
from granary.pipelines.engine import here, units
from granary.pipelines.engine.units import Runner

ARABIC = "باب أبيض بمزلاج."


def attempt(annotations: Path, images: Path, out: Path, *words: str, beam: bool = False) -> int:
    """Run `granary pack` in this process; returns its exit status."""
    paths = ["--annotations", str(annotations), "--images", str(images), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", pools.run_in_a_loop)
        return command.main(["pack", *paths, *words])


def pack(folders: tuple[Path, Path], out: Path, *words: str, beam: bool = False) -> pools.Run:
    assert attempt(*folders, out, *words, beam=beam) == 0
    return pools.Run(str(out))


def letters(run: pools.Run) -> set[tuple[str, str, str]]:
    return {(row["uri"].removeprefix("annotations/"), row["part"], row["error"]) for row in run.table("dead-letter")}


@pytest.fixture(scope="session")
def barns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five annotations, one picture each, with splits."""
    folder = tmp_path_factory.mktemp("barns")
    files = {f"{name}-data.json": drawn.annotation(f"{name}.jpg") for name in "edcba"}
    found = drawn.write(folder, files, {f"{name}.jpg": drawn.picture(ord(name)) for name in "abcde"})
    splits = {"train": ["b-data.json", "a-data.json"], "test": ["e-data.json", "gone-data.json"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return found


@pytest.fixture(scope="session")
def packed(barns: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    """A run through Beam with two workers and units of two."""
    out = tmp_path_factory.mktemp("packed") / "run"
    return pack(barns, out, "--workers", "2", "--unit_rows", "2", beam=True)


def test_worker_processes_write_the_same_bytes(
    packed: pools.Run, barns: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    inner = here.run_in_child
    monkeypatch.setattr(units, "PROCESSES_FROM", 1)
    monkeypatch.setattr(here, "run_in_child", lambda *words: asked.append(words[2].name) or inner(*words))
    there = pack(barns, tmp_path / "run", "--workers", "2", "--unit_rows", "2", beam=True)
    assert set(asked) == {"shards", "texts", "pairs"}
    names = ("dataset", "texts", "ledger", "dead-letter")
    assert there.hashes(*names) == packed.hashes(*names)


@pytest.fixture(scope="session")
def barn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One annotation and its picture."""
    files = {"a-data.json": drawn.annotation("a.jpg")}
    return drawn.write(tmp_path_factory.mktemp("barn"), files, {"a.jpg": drawn.picture()})


# -- rows ------------------------------------------------------------------------------------------------------------


def test_images_are_rows_in_the_order_of_splits_json_and_then_of_names_with_their_original_bytes(
    packed: pools.Run, barns: tuple[Path, Path]
) -> None:
    rows = packed.samples
    assert [row["file"] for row in rows] == [f"{name}-data.json" for name in "cdeba"]  # other, test, train
    assert [row["split"] for row in rows] == ["", "", "test", "train", "train"]
    for row in rows:
        assert row["image"]["bytes"] == (barns[1] / row["image"]["path"]).read_bytes()
        assert [mask["key"] for mask in row["masks"]] == ["1", "0", "3", "4"]
        assert (row["width"], row["height"], row["depth"], row["unit"]) == (800, 600, 2, "words")
        assert row["words"] == row["tokens"] == len(row["description"].split()) == 32
        assert [text["part"] for text in row["texts"]] == ["base", "1", "0", "3"]
        assert [text["text"] for text in row["texts"]][1] == "This is an image of door. A white door with a latch."
        assert row["texts"][2]["box"] == [40, 48, 560, 502]


def test_pairs_are_entries_in_the_order_of_files_and_masks(packed: pools.Run) -> None:
    rows, images = packed.table("dataset/pairs"), {row["file"]: row for row in packed.samples}
    assert [(row["file"][0], row["key"]) for row in rows] == [
        (name, key) for name in "cdeba" for key in ("base", "m-0-sc", "m-3-sc")
    ]
    assert len({row["id"] for row in rows}) == 15
    for base, barn, bush in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        image = images[base["file"]]
        assert base["image"] == image["image"]
        assert base["base"]
        assert base["image_id"] == barn["image_id"] == image["id"]
        assert barn["parent_id"] == bush["parent_id"] == base["id"]
        assert (barn["box"], barn["width"], barn["height"], barn["mask"]) == ([40, 48, 560, 502], 520, 454, "0")
        crop = np.asarray(Image.open(io.BytesIO(barn["image"]["bytes"]))).astype(int)
        whole = np.asarray(Image.open(io.BytesIO(image["image"]["bytes"]))).astype(int)
        assert crop.shape == (454, 520, 3)
        assert np.abs(crop - whole[48:502, 40:560]).mean() < 3
        assert barn["captions"] == ["This is an image of barn. A red wooden barn.\ndoor: A white door with a latch."]
        assert barn["provenance"] == [{"engine": "windows", "prompt": "sentence-windows/1", "seed": None}]
        assert {negative["engine"] for negative in barn["negatives"]} == {"rules"}
        assert all(negative["tokens"] == len(negative["text"].split()) for negative in barn["negatives"])
        assert bush["negatives"] == []


def test_a_crop_inside_a_crop_names_it_as_its_parent(tmp_path: Path) -> None:
    masks = {
        "2": drawn.entry(2, (150, 150, 400, 400), parent=1, label="window"),
        "1": drawn.entry(1, (120, 120, 300, 440), parent=0, label="narrow", requirements=[2]),
        "0": drawn.entry(0, (100, 100, 500, 450), label="barn", requirements=[1]),
    }
    folders = drawn.write(tmp_path, {"a.json": drawn.annotation("a.jpg", mask_data=masks)}, {"a.jpg": drawn.picture()})
    rows = {row["key"]: row for row in pack(folders, tmp_path / "run").table("dataset/pairs")}
    assert list(rows) == ["base", "m-2-sc", "m-0-sc"]
    assert rows["m-2-sc"]["parent_id"] == rows["m-0-sc"]["id"]


def test_both_configs_load_as_the_card_says(packed: pools.Run, tmp_path: Path) -> None:
    from datasets import load_dataset

    for config, rows in (("default", 1), ("pairs", 3)):
        found = load_dataset(str(packed.path / "dataset"), config, cache_dir=str(tmp_path))
        assert {split: len(part) for split, part in found.items()} == {
            "train": 2 * rows,
            "other": 2 * rows,
            "test": rows,
        }
        assert {split: set(part["split"]) for split, part in found.items()} == {
            "train": {"train"},
            "other": {""},  # splits.json does not name them
            "test": {"test"},
        }
        assert found["train"][0]["image"].size == (800, 600)
    card = (packed.path / "dataset" / "README.md").read_text()
    assert str(packed.path) not in card
    assert "no tokenizer was given" in card


def test_the_ledger_has_every_annotation_once(packed: pools.Run) -> None:
    assert {uri: row["status"] for uri, row in packed.ledger.items()} == {
        **{f"annotations/{name}-data.json": "kept" for name in "abcde"},
        "annotations/gone-data.json": "dead",
    }
    assert letters(packed) == {("gone-data.json", "", "MissingFile")}
    assert packed.facts["flow"][0] == {"stage": "annotations", "in": 6, "kept": 5, "dropped": 0, "dead": 1}
    assert packed.facts["statistics"]["words"] == {"mean": 32.0, "median": 32.0, "least": 32, "most": 32}
    assert packed.facts["statistics"]["masks"]["mean"] == 4


def test_the_bytes_do_not_tell_how_they_were_made(packed: pools.Run, barns: tuple[Path, Path], tmp_path: Path) -> None:
    again = pack(barns, tmp_path / "elsewhere", "--unit_rows", "2")
    assert again.hashes("dataset", "ledger") == packed.hashes("dataset", "ledger")


def test_given_texts_keep_their_scores_and_everything_else_its_record(tmp_path: Path) -> None:
    texts = {
        "summaries": {"base": ["A barn.", "A pond."], "m-0-sc": "A door.", "m-9-sc": "Nobody."},
        "negatives": {"base": {"basic": ["A car."], "swaps": ["A bus.", ""]}},
        "clip_scores": {"base": {"sum": 25.5, "basic_0": 20, "swaps_0": 24}},
    }
    folders = drawn.write(tmp_path, {"a.json": drawn.annotation("a.jpg", **texts)}, {"a.jpg": drawn.picture()})
    base, barn, bush = pack(folders, tmp_path / "run").table("dataset/pairs")
    given = {"engine": "given", "prompt": "", "seed": None}
    assert (base["captions"], base["tokens"], base["provenance"]) == (["A barn.", "A pond."], [2, 2], [given, given])
    assert base["positive_score"] == 25.5
    assert base["negatives"] == [
        {"kind": "basic", "text": "A car.", "tokens": 2, "score": 20.0, **given},
        {"kind": "swaps", "text": "A bus.", "tokens": 2, "score": 24.0, **given},
    ]
    assert (barn["captions"], barn["positive_score"]) == (["A door."], None)
    assert bush["provenance"][0]["engine"] == "windows"
    run = pack(folders, tmp_path / "run", "--config", "configs/pack/sdci.yaml")
    assert [row["key"] for row in run.table("dataset/pairs")] == ["base", "m-0-sc"]
    assert letters(run) == {
        ("a.json", "summaries/m-9-sc", "NoMask"),
        ("a.json", "negatives/base/swaps/1", "EmptyText"),
        ("a.json", "m-3-sc", "NoSummary"),
    }


def test_crops_left_to_load_time_are_the_same_pixels(barn: tuple[Path, Path], tmp_path: Path) -> None:
    boxes = pack(barn, tmp_path / "boxes", "--crops.store", "boxes")
    cut = pack(barn, tmp_path / "rows", "--crops.format", "png")
    images = {row["id"]: row["image"]["bytes"] for row in boxes.samples}
    for left, row in zip(boxes.table("dataset/pairs"), cut.table("dataset/pairs"), strict=True):
        assert left["image"] is None
        assert {key: left[key] for key in left if key != "image"} == {key: row[key] for key in row if key != "image"}
        now = np.asarray(crops.cut(decode(images[left["image_id"]], DecodeLimits()).image, tuple(left["box"])))
        assert np.array_equal(now, np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))))


def test_masks_as_png_are_the_same_masks_and_darken_the_same_crops(barn: tuple[Path, Path], tmp_path: Path) -> None:
    words = ("--crops.darken", "true", "--crops.format", "png")
    coded = pack(barn, tmp_path / "rle", *words)
    drawn_as_png = pack(barn, tmp_path / "png", *words, "--shards.masks", "png")
    for left, right in zip(coded.samples, drawn_as_png.samples, strict=True):
        for a, b in zip(left["masks"], right["masks"], strict=True):
            pixels = [pixels_of(mask["size"], mask["counts"], mask["png"]) for mask in (a, b)]
            assert pixels[0] is not None
            assert np.array_equal(pixels[0], pixels[1])  # type: ignore[arg-type]
    assert coded.table("dataset/pairs") == drawn_as_png.table("dataset/pairs")
    barn = coded.table("dataset/pairs")[1]
    crop = np.asarray(Image.open(io.BytesIO(barn["image"]["bytes"])))
    whole = np.asarray(Image.open(io.BytesIO(coded.samples[0]["image"]["bytes"])))
    assert barn["darkened"]
    assert np.array_equal(crop[52:402, 60:460], whole[100:450, 100:500])
    assert np.array_equal(crop[:52], whole[48:100, 40:560] // 3 + 84)


# -- bad input -------------------------------------------------------------------------------------------------------


def broken_annotations() -> dict[str, Any]:
    """Return one annotation for each way in which they break, by name."""

    def with_masks(**masks: dict[str, Any]) -> dict[str, Any]:
        return drawn.annotation("good.jpg", mask_data={key.lstrip("_"): mask for key, mask in masks.items()})

    good = drawn.entry(0, (100, 100, 500, 450), label="barn", caption="A barn.")
    twice = json.dumps(drawn.annotation("good.jpg", mask_data={"0": good, "9": good})).replace('"9": {', '"0": {')
    control = drawn.annotation(
        "good.jpg", short_caption="A\x00b\x1b[31m <script>alert(1)</script>\x85 c", extra_caption=ARABIC
    )
    return {
        "good.json": drawn.annotation("good.jpg"),
        "truncated.json": json.dumps(drawn.annotation("good.jpg"))[:-60],
        "not-png.json": with_masks(_0=good, _1={**good, "outer_mask": "bm90IGEgUE5H"}, _2={**good, "outer_mask": "%%"}),
        "other-size.json": with_masks(
            _0=good, _1={**good, "outer_mask": drawn.png64(drawn.box_mask((0, 0, 9, 9), (80, 60)))}
        ),
        "cycle.json": with_masks(_0={**good, "parent": 1}, _1={**good, "parent": 0}),
        "empty-caption.json": with_masks(_0=good, _1={**good, "label": "", "caption": " "}),
        "empty-mask.json": with_masks(_0=good, _1={**good, "outer_mask": drawn.png64(Image.new("1", (800, 600)))}),
        "says-nothing.json": {"image": "good.jpg", "short_caption": "", "extra_caption": " ", "mask_data": {}},
        "control.json": control,
        "long.json": drawn.annotation("good.jpg", extra_caption=" ".join(["A barn is red."] * 50_000)),
        "no-image.json": drawn.annotation("missing.jpg"),
        "outside.json": drawn.annotation("../annotations/good.json"),
        "remote.json": drawn.annotation("http://127.0.0.1/good.jpg"),
        "surrogates.json": json.dumps(
            drawn.annotation(
                "good.jpg", summaries={"m-\ud800": ["x"]}, negatives={"base": {"swa\udfffps": ["A\ud800."]}}
            )
        ),
        "no-such\udc80.json": drawn.annotation("\ud800.jpg"),
        "not-image.json": drawn.annotation("text.jpg"),
        "half-image.json": drawn.annotation("half.jpg"),
        "twice.json": twice,
    }


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    folder = tmp_path_factory.mktemp("broken")
    images = {"good.jpg": drawn.picture(), "text.jpg": b"no image", "half.jpg": drawn.picture()[:9000]}
    return pack(drawn.write(folder, broken_annotations(), images), folder / "run", "--unit_rows", "4")


def test_what_is_lost_is_named_and_nothing_else_is_lost(broken: pools.Run) -> None:
    assert letters(broken) == {
        ("truncated.json", "", "InvalidJson"),
        ("not-png.json", "1", "InvalidMask"),
        ("not-png.json", "2", "InvalidMask"),
        ("other-size.json", "1", "InvalidMask"),
        ("cycle.json", "1", "MaskCycle"),
        ("empty-caption.json", "1", "EmptyText"),
        ("empty-mask.json", "1", "InvalidMask"),
        ("no-image.json", "", "FileNotFoundError"),
        ("outside.json", "", "UnsafePath"),
        ("remote.json", "", "UnsafePath"),
        ("surrogates.json", "summaries/m-", "NoMask"),
        ("no-such\\udc80.json", "", "NoImageName"),
        ("not-image.json", "", "UnidentifiedImageError"),
        ("half-image.json", "", "TruncatedImage"),
        ("twice.json", "0", "DuplicateKey"),
    }
    assert broken.uris("dropped") == {"annotations/says-nothing.json"}
    assert broken.uris("dead") == {
        f"annotations/{name}.json"
        for name in ("truncated", "no-image", "outside", "not-image", "half-image", "remote", "no-such\\udc80")
    }
    kept = {row["file"]: [mask["key"] for mask in row["masks"]] for row in broken.samples}
    assert kept == {
        "good.json": ["1", "0", "3", "4"],
        "not-png.json": ["0"],
        "other-size.json": ["0"],
        "cycle.json": ["0", "1"],
        "empty-caption.json": ["0", "1"],
        "empty-mask.json": ["0"],
        "control.json": ["1", "0", "3", "4"],
        "long.json": ["1", "0", "3", "4"],
        "twice.json": ["0"],
        "surrogates.json": ["1", "0", "3", "4"],
    }


def test_messages_say_what_was_wrong(broken: pools.Run) -> None:
    messages = {(row["uri"][12:], row["part"]): row["message"] for row in broken.table("dead-letter")}
    assert messages["other-size.json", "1"] == "the mask is 80 x 60, the image 800 x 600"
    assert messages["not-png.json", "1"].startswith("the mask is no PNG")
    assert messages["not-png.json", "2"].startswith("the mask is not base64")
    assert messages["empty-mask.json", "1"] == "the mask is empty"


def test_a_text_of_200_000_words_is_packed_whole(broken: pools.Run) -> None:
    row = next(row for row in broken.samples if row["file"] == "long.json")
    said = [text["text"] for text in row["texts"] if text["part"] == "base"]
    assert " ".join(said).split() == (row["short_caption"] + " " + row["extra_caption"]).split()
    assert len(" ".join(said).split()) == 200_006
    assert max(text["tokens"] for text in row["texts"]) <= 55
    pair = next(row for row in broken.table("dataset/pairs") if row["file"] == "long.json" and row["base"])
    assert len(pair["captions"]) == 5


def test_control_characters_go_and_right_to_left_text_stays(broken: pools.Run) -> None:
    row = next(row for row in broken.samples if row["file"] == "control.json")
    assert row["short_caption"] == "A b [31m <script>alert(1)</script>  c"
    assert row["extra_caption"] == ARABIC


def test_the_report_escapes_and_isolates_texts(broken: pools.Run) -> None:
    html = (broken.path / "report" / "index.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert f'<bdi dir="auto">{ARABIC}' in html or f"\n{ARABIC}" in html
    assert "data:image/jpeg;base64," in html
    assert "InvalidMask" in html
    assert len(html) < 8_000_000


# -- again -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(packed: pools.Run, barns: tuple[Path, Path], tmp_path: Path) -> tuple[pools.Run, tuple[Path, Path]]:
    """Copies of the run and of what it was made from."""
    shutil.copytree(barns[0].parent, tmp_path / "in", copy_function=shutil.copy2)
    folders = tmp_path / "in" / "annotations", tmp_path / "in" / "photos"
    return pack(folders, tmp_path / "run", "--unit_rows", "2"), folders


def written(run: pools.Run, action: Callable[[], Any]) -> set[str]:
    before = run.times()
    action()
    return {
        name.removesuffix(".done")
        for name, time in run.times().items()
        if before.get(name) != time and name.endswith(".done")
    }


def test_the_same_command_again_runs_no_unit(copied: tuple[pools.Run, tuple[Path, Path]]) -> None:
    run, folders = copied
    assert written(run, lambda: pack(folders, run.path, "--unit_rows", "2")) == set()


def test_another_number_of_negatives_redoes_texts_and_pairs_alone(copied: tuple[pools.Run, tuple[Path, Path]]) -> None:
    run, folders = copied
    names = written(run, lambda: pack(folders, run.path, "--unit_rows", "2", "--negatives.per_image", "1"))
    assert {name.split("/")[0] for name in names} == {"texts", "pairs", "dead-letter"}


def test_a_changed_annotation_redoes_its_unit_alone(copied: tuple[pools.Run, tuple[Path, Path]]) -> None:
    run, folders = copied
    (folders[0] / "c-data.json").write_text(json.dumps(drawn.annotation("c.jpg", short_caption="A green barn.")))
    names = written(run, lambda: pack(folders, run.path, "--unit_rows", "2"))
    whole = {name for name in names if name.endswith("/part-00000-of-00001")}
    assert {name.split("/")[0] for name in whole} == {"records", "dead-letter"}
    assert names - whole == {
        "ledger/part-00001-of-00003",
        "texts/part-00001-of-00003",
        "shards/other-00000-of-00001",
        "pairs/other-00000-of-00001",
    }
    assert run.samples[0]["short_caption"] == "A green barn."


def test_a_run_that_lost_its_last_shard_makes_it_again(copied: tuple[pools.Run, tuple[Path, Path]]) -> None:
    run, folders = copied
    before = run.hashes("dataset", "ledger")
    (run.path / "dataset" / "data" / "test-00000-of-00001.parquet").unlink()
    (run.path / "texts" / "part-00002-of-00003.done").write_bytes(b"{")
    names = written(run, lambda: pack(folders, run.path, "--unit_rows", "2"))
    assert names == {"shards/test-00000-of-00001", "texts/part-00002-of-00003"}
    assert run.hashes("dataset", "ledger") == before


def test_the_report_is_written_again(packed: pools.Run) -> None:
    target = packed.path / "report" / "index.html"
    before = target.read_text()
    target.unlink()
    assert command.main(["report", str(packed.path)]) == 0
    assert target.read_text() == before


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--annotations", "nowhere"], "annotations: there is nothing at 'nowhere'"),
        (["--images", "nowhere"], "images: there is nothing at 'nowhere'"),
        (["--images", "{images}/a.jpg"], "is a file; give the folder"),
        (["--images", "{annotations}"], "images: none of the 6 annotations could be packed"),
        (["--format", "jsonl"], "holds no annotation of the format jsonl"),
        (["--format", "coco"], "coco takes an instance or a caption file"),
        (["--format", "voc"], "format: 'voc' is not right"),
        (["--budget.tokens", "0"], "budget.tokens: '0' is not right"),
        (["--budget.tokenizer", "nowhere"], "budget.tokenizer: "),
        (["--summaries.engines", "[given, given]"], "an engine is named twice"),
        (["--summaries.engines", "[model]"], "writer.model: missing"),
        (["--negatives.engines", "[model]", "--writer.model", "nowhere"], "writer.model: "),
        (["--crops.grow", "x"], "crops.grow: 'x' is not right"),
        (["--splits", "nowhere"], "splits: there is nothing at 'nowhere'"),
        (["--splits", "{images}/../split-names.json"], "names a split 'val/1'; give letters, digits and _"),
        (["--out", "{annotations}/run"], "lies inside annotations"),
        (["--captoins", "x"], "did you mean captions?"),
    ],
)
def test_mistakes_are_one_sentence(
    barns: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, words: Sequence[str], said: str
) -> None:
    known = {"--annotations": str(barns[0]), "--images": str(barns[1]), "--out": str(tmp_path / "run")}
    names = {"annotations": barns[0], "images": barns[1]}
    (barns[1].parent / "split-names.json").write_text(json.dumps({"val/1": ["a-data.json"]}))
    known.update({words[i]: words[i + 1].format(**names) for i in range(0, len(words), 2)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "_run", pools.run_in_a_loop)
        status = command.main(["pack", *(word for pair in known.items() for word in pair)])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert said in error
    assert "Traceback" not in error


def test_another_set_of_annotations_needs_another_folder(
    packed: pools.Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folders = drawn.write(tmp_path, {"a.json": drawn.annotation("a.jpg")}, {"a.jpg": drawn.picture()})
    assert attempt(*folders, packed.path) == 2
    assert "another set of annotations" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_stop_the_run_when_they_are_many(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = {f"{n:02d}.json": drawn.annotation("a.jpg" if n < 4 else "far.jpg") for n in range(24)}
    folders = drawn.write(tmp_path, files, {"a.jpg": drawn.picture()})

    def read(source: Source, names: Sequence[str], max_bytes: int) -> tuple[str, bytes]:
        if "far.jpg" in names:
            raise TimeoutError("the mount does not answer")
        return read_picture(source, names, max_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "read_picture", read)
        assert attempt(*folders, tmp_path / "run") == 2
        assert "20 of 24 files could not be read (20 TimeoutError), more than max_unreadable" in capsys.readouterr().err
        run = pack(folders, tmp_path / "run", "--max_unreadable", "1")
    assert (len(run.samples), len(run.uris("dead"))) == (4, 20)
