"""Distance and entropy of attention: closed forms, a loop, and the models that have none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import measure
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.training.evaluation.protocols import attention
from granary.training.evaluation.protocols.attention import measures, patch_distances
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig


def mean_pairwise(grid: int, patch: int) -> float:
    places = [(row, column) for row in range(grid) for column in range(grid)]
    return sum(patch * math.dist(a, b) for a in places for b in places) / len(places) ** 2


@pytest.mark.parametrize(("grid", "patch"), [(4, 8), (7, 16)])
def test_uniform_attention_looks_as_far_as_two_patches_are_apart(grid: int, patch: int) -> None:
    n = grid**2
    found = measures(torch.full((2, 3, n, n), 1 / n), patch_distances(grid, patch), 0)
    torch.testing.assert_close(found[:, 0], torch.full((2, 3), mean_pairwise(grid, patch), dtype=torch.float64))
    torch.testing.assert_close(found[:, 1], torch.full((2, 3), math.log(n), dtype=torch.float64))
    torch.testing.assert_close(found[:, 2], torch.zeros(2, 3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_attention_to_itself_looks_nowhere() -> None:
    found = measures(torch.eye(17).expand(1, 2, 17, 17), patch_distances(4, 8), 1)
    assert found.abs().max() == 0


def test_class_token_and_registers_are_left_out_of_the_distance_and_counted() -> None:
    """Half of the attention goes to the two tokens before the patches, the other half is uniform."""
    maps = torch.cat([torch.full((1, 1, 18, 2), 0.25), torch.full((1, 1, 18, 16), 0.5 / 16)], dim=3)
    distance, entropy, others = measures(maps, patch_distances(4, 8), 2)[0, :, 0].tolist()
    assert distance == pytest.approx(mean_pairwise(4, 8))
    assert entropy == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(32))
    assert others == pytest.approx(0.5)


def test_measures_equal_a_loop() -> None:
    maps = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)).softmax(dim=3)
    distances = patch_distances(3, 5)
    found = measures(maps, distances, 1)
    for picture in range(2):
        for head in range(3):
            far, spread = [], []
            for query in range(1, 10):
                row = maps[picture, head, query].double()
                far.append(sum(float(row[key] * distances[query - 1, key - 1]) for key in range(1, 10)) / (1 - row[0]))
                spread.append(-sum(float(p) * math.log(p) for p in row))
            assert float(found[picture, 0, head]) == pytest.approx(sum(far) / 9)
            assert float(found[picture, 1, head]) == pytest.approx(sum(spread) / 9)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(20, 16)))


def saved(folder: Path, **changes: Any) -> str:
    torch.manual_seed(0)
    config: Any = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, **changes}
    vit = VisionTransformer(ViTConfig(**config))
    with torch.no_grad():
        for block in vit.blocks:
            block.attention.qkv.weight[:16].zero_()  # queries that are 0 attend to all alike
            block.attention.qkv.bias[:16].zero_()
    vit.save(str(folder))
    return str(folder)


def test_every_head_of_every_block_is_told(run: str, tmp_path: Path) -> None:
    scores = measure(attention, saved(tmp_path), run, device="cpu", pictures=9)
    assert scores["distance"] == pytest.approx(mean_pairwise(4, 4), rel=1e-5)
    assert scores["distance"] == pytest.approx(scores["distance.uniform"], rel=1e-5)
    assert scores["2.entropy"] == pytest.approx(math.log(17), rel=1e-5)
    assert scores["1.others"] == pytest.approx(1 / 17, rel=1e-5)
    assert scores["distance.pictures"] == 9
    assert [name for name in scores if name.startswith("2.distance")] == [
        "2.distance",
        "2.distance.head1",
        "2.distance.head2",
    ]
    assert "1.others" not in measure(attention, saved(tmp_path, class_token=False), run, device="cpu")


def test_a_model_without_attention_is_refused(run: str) -> None:
    with pytest.raises(UserError, match="model: pixels is no Vision Transformer"):
        measure(attention, "pixels", run, device="cpu")
