"""What the demo of curation retrieves is right to the eye: tiles of the photograph that its seeds are tiles of."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import yaml
from PIL import Image

from granary.curation.encoders import load_encoder
from granary.pipelines.demos import curate
from granary.pipelines.demos.planted import make_pool
from granary.pipelines.engine.recipe import shipped

K = 4


@pytest.fixture
def pool(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The pictures that the demo makes, without what it does with them."""

    def made(folder: pathlib.Path, *words: object) -> None:
        make_pool(folder, *words)
        raise KeyboardInterrupt

    monkeypatch.setattr(curate, "make_pool", made)
    with pytest.raises(KeyboardInterrupt):
        curate.demo(str(tmp_path / "demo"), engine=None)
    return tmp_path / "demo"


def test_the_nearest_pictures_of_every_seed_are_of_its_own_photograph(pool: pathlib.Path) -> None:
    recipe = yaml.safe_load(pathlib.Path(shipped("curate/demo.yaml")).read_text())
    encoder = load_encoder(recipe["encoder"]["retrieval"])
    seeds, originals = (sorted(folder.rglob("*.png")) for folder in (pool / "seeds", pool / "pool" / "originals"))
    vectors = [encoder.embed([Image.open(path).convert("RGB") for path in paths]) for paths in (seeds, originals)]
    assert len(seeds) == 6
    assert {path.parent.name for path in originals} == {"china", "digits", "flower"}
    for seed, similarities in zip(seeds, vectors[0] @ vectors[1].T, strict=True):
        nearest = [originals[place].parent.name for place in np.argsort(-similarities)[:K]]
        assert nearest == [seed.parent.name] * K


def test_the_demos_ask_nobody_for_a_model() -> None:
    assert (
        yaml.safe_load(pathlib.Path(shipped("curate/demo.yaml")).read_text())["encoder"]["retrieval"]
        == "builtin:layout"
    )
