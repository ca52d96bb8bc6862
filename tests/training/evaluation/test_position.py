"""The probe of positions: it finds what a position embedding says, and nothing where nothing says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Value
from measuring import measure
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.training.evaluation.features import Features
from granary.training.evaluation.protocols import position
from granary.training.evaluation.tasks import Task
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "pos_embed": "learned"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{**row, "label": None, "split": "test" if n % 4 == 0 else "train"} for n, row in enumerate(shapes(60, 16))]
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, extra={"split": Value("string")}))


def saved(folder: Path, scale: float, shift: float = 0.0) -> str:
    """Write a model whose positions are scaled, and its patches embedded so strongly that they alone are seen."""
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(**TINY))
    with torch.no_grad():
        torch.nn.init.normal_(vit.positions)
        vit.positions.mul_(scale).add_(shift)
        for name, parameter in vit.named_parameters():  # blocks that add nothing
            if name.endswith(("out.weight", "out.bias", "down.weight", "down.bias")):
                parameter.zero_()
    vit.save(str(folder))
    return str(folder)


def test_positions_are_found_where_tokens_hold_them(run: str, tmp_path: Path) -> None:
    scores = measure(position, saved(tmp_path, 5), run, device="cpu")
    assert scores["accuracy"] == 1
    assert scores["accuracy.chance"] == 1 / 16
    assert (scores["accuracy.train"], scores["accuracy.test"]) == (45, 15)
    assert scores.settings["site"] == "3.norm"


def test_without_positions_only_what_pictures_show_where_is_left(run: str, tmp_path: Path) -> None:
    assert (measure(position, saved(tmp_path, 0), run, device="cpu")["accuracy"] or 0) < 0.3


def test_every_site_that_is_asked_for_is_probed(run: str, tmp_path: Path) -> None:
    options: Any = {"sites": ["embed", "block"], "pictures": 14, "validation": 0.3}
    scores = measure(position, saved(tmp_path, 5), run, device="cpu", **options)
    assert [name for name in scores if name.count(".") == 1 and name[0].isdigit()] == ["0.embed", "1.block"]
    assert scores["0.embed"] == scores["accuracy"] == 1  # nothing is added between
    assert (scores["accuracy.train"], scores["accuracy.test"]) == (14, 14)
    assert scores == measure(position, saved(tmp_path, 5), run, device="cpu", **options)


def test_the_map_of_a_resnet_has_as_many_places_as_its_stage(run: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ResNet(ResNetConfig(img_size=16, widths=(8, 16), depths=(1, 1), stem="half")).save(str(tmp_path))
    scores = measure(position, str(tmp_path), run, device="cpu", sites=["stage"])
    assert (scores["accuracy.chance"], scores["1.stage.chance"]) == (1 / 16, 1 / 64)


def test_patches_keep_the_name_of_their_picture_and_their_own_number() -> None:
    tokens = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    part = Features(tokens, None, torch.tensor([-1, -1]), ["a", "b"], [])
    settings: Any = {}
    made = position.patches_of(Task(part, part, [], False, [], settings))
    assert made.train.ids == ["a", "a", "a", "b", "b", "b"]
    assert made.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(made.train.last[4], tokens[1, 1])
    assert made.classes == ["0", "1", "2"]


def test_training_and_test_pictures_must_differ(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training and test pictures are the same"):
        measure(position, saved(tmp_path, 1), run, split="train")
