"""The pictures of the training demo: what there is of each kind, and that nothing is there twice but the leaks."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from granary.pipelines.demos.digits import SIDE, Sizes, drawn, make_pictures, photographed

SMALL = Sizes(labelled=60, seeds=8, digits=40, tiles=45, copied=4, copies=5, leaks=3)
HANDWRITTEN = 1797  # digits of scikit-learn


def test_the_pool_holds_what_it_says(tmp_path: Path) -> None:
    make_pictures(tmp_path, SMALL, 0)
    files = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    kinds = Counter(path.parts[1] if path.parts[0] == "pool" else path.parts[0] for path in files)
    assert kinds == {"labelled": 60, "seeds": 8, "digits": 40, "tiles": 45, "copies": 20, "leaks": 3}
    digests = {path: hashlib.sha256(data).digest() for path, data in files.items()}
    leaked = {digest for path, digest in digests.items() if "leaks" in path.parts}
    assert len(leaked) == 3
    assert leaked < {digest for path, digest in digests.items() if path.parts[0] == "labelled"}
    assert len(set(digests.values())) == len(files) - 3  # nothing else is there twice
    assert {Image.open(tmp_path / path).size for path in files} == {(SIDE, SIDE)}


def test_there_are_pictures_enough_and_most_of_the_pool_is_not_wanted() -> None:
    sizes = Sizes()
    assert len(list(photographed())) >= sizes.tiles
    assert sizes.labelled + sizes.seeds + sizes.digits <= HANDWRITTEN
    pool = sizes.digits + sizes.tiles + sizes.copied * sizes.copies + sizes.leaks
    assert sizes.digits + sizes.leaks < pool / 7


def test_pictures_are_drawn_by_their_seed(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_pictures(tmp_path / name, SMALL, seed)
        files.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    assert files[0] == files[1] != files[2]


def test_a_digit_is_dark_ink_on_light_paper() -> None:
    ink = np.zeros((8, 8))
    ink[2:6, 3:5] = 16
    pixels = np.asarray(drawn(ink, np.random.default_rng(0)))
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels.min() < 100 < 170 <= pixels[0, 0, 0] == pixels.max()
