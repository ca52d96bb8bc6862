"""Facts about the built-in descriptors: finite, independent of their batch, robust and discriminating."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from places import SHARED
from sklearn.datasets import load_digits, load_sample_images

from granary.curation.encoders import load_encoder
from granary.curation.errors import UserError

DATA = SHARED
BUILTIN = ("builtin:copy", "builtin:layout")


def photos() -> list[Image.Image]:
    """The two photographs that scikit-learn bundles, 640 x 427."""
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def crops() -> list[Image.Image]:
    """Twelve parts of each photograph that do not overlap, 160 x 142."""
    corners = [(x, y) for x in range(0, 640, 160) for y in (0, 142, 284)]
    return [photo.crop((x, y, x + 160, y + 142)) for photo in photos() for x, y in corners]


def reencoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


@pytest.mark.parametrize("spec", BUILTIN)
def test_every_picture_becomes_a_finite_unit_row(spec: str) -> None:
    encoder = load_encoder(spec)
    noise = np.random.default_rng(0).integers(0, 256, (7, 3, 3), np.uint8)
    images = [
        *(Image.new("RGB", size, colour) for size in [(1, 1), (1, 5000), (5000, 1)] for colour in ("black", "red")),
        *(Image.new("RGB", (50, 40), (grey, grey, grey)) for grey in (0, 110, 127, 128, 255)),
        Image.fromarray(noise),
        photos()[0].resize((3000, 20)),
        photos()[0].convert("L"),
    ]
    rows = encoder.embed(images)
    assert rows.shape == (len(images), encoder.dimension)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert encoder.embed([]).shape == (0, encoder.dimension)


@pytest.mark.parametrize("spec", BUILTIN)
def test_a_row_does_not_depend_on_its_batch(spec: str) -> None:
    encoder, images = load_encoder(spec), [*crops(), Image.new("RGB", (1, 1)), *photos()]
    together = encoder.embed(images)
    assert together.tobytes() == np.concatenate([encoder.embed([image]) for image in images]).tobytes()
    assert together.tobytes() == encoder.embed(images[::-1])[::-1].tobytes()


@pytest.mark.parametrize("spec", BUILTIN)
def test_a_row_does_not_depend_on_the_number_of_threads(spec: str, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path, image in zip(paths, crops(), strict=False):
        image.save(path)
    program = (
        "import sys; from PIL import Image; from granary.curation.encoders import load_encoder;"
        "images = [Image.open(path) for path in sys.argv[2:]];"
        "sys.stdout.buffer.write(load_encoder(sys.argv[1]).embed(images).tobytes())"
    )
    outputs = []
    for threads in ("1", "4"):
        settings = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-c", program, spec, *paths]
        outputs.append(subprocess.run(command, env=settings, capture_output=True, check=True).stdout)
    assert outputs[0] == outputs[1] == load_encoder(spec).embed([Image.open(path) for path in paths]).tobytes()


EDITS = {
    "quality 20": lambda image: reencoded(image, 20),
    "quality 95": lambda image: reencoded(image, 95),
    "64 px": lambda image: ImageOps.contain(image, (64, 64)),
    "square": lambda image: image.resize((128, 128)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "grey": lambda image: ImageEnhance.Color(image).enhance(0),
    "saturated": lambda image: ImageEnhance.Color(image).enhance(1.6),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "sharpened": lambda image: image.filter(ImageFilter.SHARPEN),
    "cropped 4%": lambda image: image.crop((13, 9, 627, 418)),
    "framed": lambda image: ImageOps.expand(image, 8, (0, 0, 0)),
    "turned 1 degree": lambda image: image.rotate(1, Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_photographs_are_copies(edit: str) -> None:
    encoder = load_encoder("builtin:copy")
    cosine = np.sum(encoder.embed(photos()) * encoder.embed([EDITS[edit](image) for image in photos()]), axis=1)
    assert cosine.min() > encoder.copy_threshold


def test_different_pictures_are_no_leaks() -> None:
    encoder = load_encoder("builtin:copy")
    rows = encoder.embed([*photos(), *crops()])
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -1)
    assert similarity.max() < encoder.leak_threshold
    assert encoder.leak_threshold < encoder.copy_threshold


def test_a_mirrored_photograph_is_another_picture() -> None:
    encoder = load_encoder("builtin:copy")
    mirrored = [ImageOps.mirror(image) for image in photos()]
    assert np.sum(encoder.embed(photos()) * encoder.embed(mirrored), axis=1).max() < encoder.leak_threshold


def test_blank_pictures_match_blanks_of_their_colour_only() -> None:
    encoder = load_encoder("builtin:copy")
    colours = [(0, 0, 0), (255, 255, 255), (200, 30, 30), (30, 30, 200)]
    blanks = encoder.embed([Image.new("RGB", (90, 60), colour) for colour in colours])
    others = encoder.embed([reencoded(Image.new("RGB", (500, 500), colour), 80) for colour in colours])
    assert np.diag(blanks @ others.T).min() > encoder.copy_threshold
    assert (blanks @ others.T - np.eye(4)).max() < encoder.leak_threshold
    assert np.abs(blanks @ encoder.embed([*photos(), *crops()]).T).max() < encoder.leak_threshold


def test_tiny_drawings_do_not_collapse() -> None:
    """8 x 8 digits are nearly alike by nature; no component may swallow them."""
    from scipy.sparse.csgraph import connected_components

    encoder = load_encoder("builtin:copy")
    pages = (load_digits().images[:600] * 15.9).astype(np.uint8)
    images = [Image.fromarray(page).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB") for page in pages]
    rows = encoder.embed(images)
    labels = connected_components(rows @ rows.T > encoder.copy_threshold, directed=False)[1]
    assert np.bincount(labels).max() < 60


def test_layout_prefers_the_same_photograph_over_the_other() -> None:
    """Half of a photograph retrieves the other half of it."""
    encoder = load_encoder("builtin:layout")
    left = encoder.embed([image.crop((0, 0, 320, 427)) for image in photos()])
    right = encoder.embed([image.crop((320, 0, 640, 427)) for image in photos()])
    assert ((left @ right.T).argmax(axis=1) == [0, 1]).all()


def test_the_fingerprint_tells_encoders_apart_and_is_stable() -> None:
    prints = [load_encoder(spec).fingerprint for spec in BUILTIN]
    assert prints == [load_encoder(spec).fingerprint for spec in BUILTIN]
    assert len(set(prints)) == 2
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in prints)


@pytest.mark.parametrize("attribute", ["POWER", "WEIGHTS"])
def test_the_fingerprint_follows_the_formula(attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from granary.curation.encoders import copy_descriptor

    before = load_encoder("builtin:copy").fingerprint
    changed = {"POWER": 0.41, "WEIGHTS": {**copy_descriptor.WEIGHTS, "luma": 0.71}}[attribute]
    monkeypatch.setattr(copy_descriptor, attribute, changed)
    assert load_encoder("builtin:copy").fingerprint != before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("copy", "names nothing"),
        ("builtin:", "names nothing"),
        ("builtin:sscd", "builtin:copy or builtin:layout"),
        ("builtin:copy?size=3", "unknown option 'size'"),
        ("clip:base", "hf:ID_OR_PATH"),
    ],
)
def test_a_wrong_spec_is_one_clear_sentence(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_encoder(spec)
    assert "\n" not in str(caught.value)


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the folder shared/data beside the checkout")


@needs_data
@pytest.mark.parametrize(("kind", "count"), [("edits", 12), ("exif_orientation", 9)])
def test_known_edits_are_copies(kind: str, count: int) -> None:
    from tests.benchmarks.copies import zipped

    encoder = load_encoder("builtin:copy")
    rows = encoder.embed([image for _, image in zipped("near_duplicates_dev.zip", kind=kind)])
    assert len(rows) == count
    assert (rows @ rows.T).min() > encoder.copy_threshold


@needs_data
def test_distinct_photographs_do_not_leak_into_each_other() -> None:
    from tests.benchmarks.copies import zipped

    encoder = load_encoder("builtin:copy")
    rows = encoder.embed([image for _, image in zipped("photos_dev.zip")])
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -1)
    assert similarity.max() < encoder.leak_threshold


@needs_data
def test_layout_beats_thumbnails_at_finding_the_same_subject() -> None:
    from tests.benchmarks.copies import mean_precision, tiny, zipped

    subjects, images = zip(*((r["subject"], image) for r, image in zipped("instances_dev.zip")), strict=True)
    labels = np.unique(subjects, return_inverse=True)[1]
    layout = mean_precision(load_encoder("builtin:layout").embed(images), labels)
    assert layout[0] > mean_precision(tiny(8)(images), labels)[0] + 0.05


@needs_data
@pytest.mark.slow
def test_recall_on_the_known_near_duplicates_of_cifar10() -> None:
    from tests.benchmarks.copies import cifar10, components, duplicates, links, unlisted_removals

    encoder = load_encoder("builtin:copy")
    rows, near = encoder.embed(cifar10()[0]), duplicates("near")
    assert np.mean(np.sum(rows[near[:, 0]] * rows[near[:, 1]], axis=1) > encoder.copy_threshold) > 0.65
    labels = components(len(rows), links(rows, encoder.copy_threshold))
    assert unlisted_removals(labels, np.concatenate([near, duplicates("similar")])) < 150
