"""Invariance: closed forms, and models of which it is known what they do not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measuring import measure
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.training.data.augment import photometric
from granary.training.evaluation.protocols import invariance
from granary.training.evaluation.protocols.invariance import NOTHING, InvarianceOptions, invariances
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

CHANGES = ("crop", "colour", "blur", "flip")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(40, 16)))


def rows(seed: int, n: int = 7) -> torch.Tensor:
    return F.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_it_is_the_mean_cosine_less_that_of_all_other_pairs() -> None:
    unit = {name: rows(seed) for seed, name in enumerate(("", *CHANGES))}
    found = invariances(unit, "mean_")
    pairs = [float(a @ b) for i, a in enumerate(unit[""]) for j, b in enumerate(unit[""]) if i != j]
    assert found["mean_unrelated"] == pytest.approx(np.mean(pairs))
    for name in CHANGES:
        cosine = np.mean([float(a @ b) for a, b in zip(unit[""], unit[name], strict=True)])
        assert found[f"mean_{name}.cosine"] == pytest.approx(cosine)
        assert found[f"mean_{name}"] == pytest.approx(cosine - np.mean(pairs))


def test_what_changes_nothing_is_one_less_the_unrelated_and_another_picture_is_nothing() -> None:
    plain = rows(0)
    same = invariances(dict.fromkeys(("", *CHANGES), plain))
    assert same["flip"] == pytest.approx(1 - same["unrelated"])
    turned = [torch.roll(plain, shift, 0) for shift in range(1, 7)]  # every other picture once
    assert np.mean([invariances({**dict.fromkeys(("", *CHANGES), plain), "blur": t})["blur"] for t in turned]) == (
        pytest.approx(0, abs=1e-12)
    )


def test_each_change_does_one_thing() -> None:
    pixels, draws = torch.rand(3, 3, 16, 16), torch.rand(3, 16)
    changes = InvarianceOptions().changes()
    assert torch.equal(photometric(pixels, draws, NOTHING), pixels)
    assert torch.equal(photometric(pixels, draws, changes["flip"]), pixels.flip(3))
    assert not torch.allclose(photometric(pixels, draws, changes["colour"]), pixels)
    blurred = photometric(pixels, draws, changes["blur"])
    assert (blurred.var(dim=(2, 3)) < pixels.var(dim=(2, 3))).all()


def test_a_mirrored_picture_has_the_same_mean_of_a_symmetric_map(run: str, tmp_path: Path) -> None:
    """A ResNet whose kernels are symmetric, pooled over the whole map: flips change nothing, colours do."""
    torch.manual_seed(0)
    resnet = ResNet(ResNetConfig(img_size=16, widths=(8,), depths=(1,), stem="small"))
    with torch.no_grad():
        for name, parameter in resnet.named_parameters():
            if parameter.ndim == 4:
                parameter.copy_((parameter + parameter.flip(3)) / 2)
            assert parameter.ndim in (1, 4), name
    resnet.save(str(tmp_path / "resnet"))
    scores = measure(invariance, str(tmp_path / "resnet"), run, device="cpu")
    assert scores["flip.cosine"] == pytest.approx(1, abs=1e-6)
    assert (scores["colour.cosine"] or 0) < 1 - 1e-4
    assert not any(name.startswith("mean_") for name in scores)
    assert scores == measure(invariance, str(tmp_path / "resnet"), run, device="cpu", batch=7) | {
        name: pytest.approx(value, abs=1e-5) for name, value in scores.items()
    }


def test_both_reductions_of_a_class_token_model(run: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config: Any = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    VisionTransformer(ViTConfig(**config)).save(str(tmp_path / "vit"))
    scores = measure(invariance, str(tmp_path / "vit"), run, device="cpu", pictures=12)
    assert {*CHANGES, *(f"mean_{name}" for name in CHANGES)} < set(scores)
    assert scores["unrelated.pictures"] == 12
    assert scores["crop"] != scores["mean_crop"]
    everything = measure(invariance, str(tmp_path / "vit"), run, device="cpu", pictures=12, scale=(0.999, 1.0))
    assert (everything["mean_crop"] or 0) > (scores["mean_crop"] or 0)


def test_one_picture_is_no_comparison(run: str) -> None:
    with pytest.raises(UserError, match="one picture"):
        measure(invariance, "pixels", run, device="cpu", limit=1)
