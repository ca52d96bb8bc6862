"""Probes of all layers, and of principal components: what they read, and that the others agree with them."""

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
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols import knn, layers, linear, spread
from granary.training.evaluation.protocols.layers import LayersOptions, ridge_probe
from granary.training.evaluation.protocols.spread import powers_of_two, principal_components
from granary.training.evaluation.site_features import columns_of, in_room
from granary.training.evaluation.subjects import Pixels
from granary.training.evaluation.tasks import changed, train_and_test
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{**row, "split": "test" if n % 5 == 0 else "train"} for n, row in enumerate(shapes(100, 16))]
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, extra={"split": Value("string")}))


def saved(folder: Path, scale: float = 1.0, **changes: Any) -> str:
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(**{**TINY, **changes}))
    for parameter in vit.parameters():  # pictures differ by more than rounding, as after training
        torch.nn.init.normal_(parameter, std=0.3) if parameter.numel() else None
    with torch.no_grad():
        vit.norm.weight.mul_(scale)
        vit.norm.bias.mul_(scale)
    vit.save(str(folder))
    return str(folder)


def test_every_site_and_reduction_is_probed_and_the_last_as_other_protocols_do(run: str, tmp_path: Path) -> None:
    model = saved(tmp_path)
    scores = measure(layers, model, run, device="cpu", k=5)
    probed = [name.removesuffix(".linear") for name in scores if name.endswith(".linear")]
    assert len(probed) == 2 * (6 * 2 + 2)
    assert probed[:4] == ["0.embed.cls", "0.embed.mean", "1.norm1.cls", "1.norm1.mean"]
    assert scores["3.norm.cls.knn"] == measure(knn, model, run, device="cpu", k=[5])["accuracy"]
    options = LayersOptions()
    task = changed(train_and_test(Measured(model, run, device="cpu")), lambda x: x)
    best, predicted = ridge_probe(task, options.penalties, torch.device("cpu"), options.validation)
    assert scores["3.norm.cls.linear"] == float((predicted == task.test.labels).double().mean())
    assert scores["3.norm.cls.linear.penalty"] == best.point
    chosen = str(scores.settings["chosen"])
    assert scores["linear"] == scores[f"{chosen}.linear"]
    assert scores["knn"] == scores[f"{chosen}.knn"]
    top = max(value for name, value in scores.items() if name.endswith(".validation") and value is not None)
    assert scores[f"{chosen}.linear.validation"] == top
    assert (scores["linear.train"], scores["linear.test"], scores["linear.chance"]) == (80, 20, 0.25)


def test_what_says_nothing_of_a_picture_is_at_chance(run: str, tmp_path: Path) -> None:
    """The class token before the blocks is one vector for all pictures: it tells no class."""
    scores = measure(layers, saved(tmp_path), run, device="cpu", sites=["embed"])
    assert scores["0.embed.cls.linear"] == 0.25
    assert scores["0.embed.mean.linear"] != 0.25


def test_the_scale_of_features_does_not_matter(run: str, tmp_path: Path) -> None:
    one, two = (saved(tmp_path / str(scale), scale) for scale in (1.0, 100.0))
    first, second = (measure(layers, model, run, device="cpu", sites=["norm"]) for model in (one, two))
    for name in ("3.norm.cls.linear", "3.norm.mean.linear", "3.norm.mean.knn"):
        assert first[name] == second[name]


def test_little_memory_changes_nothing(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path)
    roomy = measure(layers, model, run, device="cpu", sites="block,norm")
    calls = []
    real = layers.train_and_test
    monkeypatch.setattr(layers, "train_and_test", lambda *given, **named: calls.append(1) or real(*given, **named))
    monkeypatch.setattr(layers, "ROOM", 3 * 4 * 100 * 16)
    assert measure(layers, model, run, device="cpu", sites="block,norm") == roomy
    assert len(calls) == 2  # six columns, three at a time


def test_columns_are_grouped_by_their_width() -> None:
    columns = columns_of(VisionTransformer(ViTConfig(**TINY)), ["norm", "block"])
    widths = dict(zip(columns, [1, 2, 3, 9, 1, 1], strict=True))
    groups = [[widths[column] for column in group] for group in in_room(widths, 10, 4 * 10 * 3)]
    assert groups == [[1, 2], [3], [9], [1, 1]]


def test_models_without_a_class_token_have_the_mean_alone(run: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ResNet(ResNetConfig(img_size=16, widths=(8, 16), depths=(1, 1), stem="half")).save(str(tmp_path / "resnet"))
    names = [name for name in measure(layers, str(tmp_path / "resnet"), run, device="cpu") if name.endswith(".knn")]
    assert names == ["0.stem.mean.knn", "1.stage.mean.knn", "2.stage.mean.knn"]
    model = saved(tmp_path / "vit", class_token=False)
    assert "1.block.cls.knn" not in measure(layers, model, run, device="cpu", sites=["block"])
    assert [str(column) for column in columns_of(Pixels())] == ["0.pixels.mean"]


def test_a_site_that_is_not_there_is_said(run: str, tmp_path: Path) -> None:
    model = saved(tmp_path)
    with pytest.raises(UserError, match="sites: 'blocks' is not right; the kinds of sites are embed, norm1"):
        measure(layers, model, run, sites=["blocks"])
    with pytest.raises(UserError, match="sites: stage is not right: the model has embed, norm1"):
        measure(layers, model, run, sites=["stage"])


def test_components_are_those_of_the_covariance() -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 3, 0.1, 2, 0.5]) + 7
    mean, directions = principal_components(x)
    projected = (x - mean) @ directions
    variances = projected.var(dim=0)
    assert (variances[:-1] >= variances[1:]).all()
    torch.testing.assert_close(projected.T @ projected, torch.diag((projected**2).sum(dim=0)), atol=1e-8, rtol=0)
    assert [powers_of_two(d) for d in (1, 2, 5, 16)] == [[], [1], [1, 2, 4], [1, 2, 4, 8]]


def test_information_in_a_late_component_is_found_there(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes are in the third and fourth direction by variance; the first two are noise."""
    original = spread.train_and_test

    def task(*given: Any, **named: Any) -> Any:
        made = original(*given, **named)

        def part(old: Features, seed: int) -> Features:
            noise = 50 * torch.randn(len(old.labels), 2, generator=torch.Generator().manual_seed(seed))
            corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[old.labels]
            small = 0.01 * torch.randn(len(old.labels), 4, generator=torch.Generator().manual_seed(seed + 9))
            return Features(torch.cat([noise, corners, small], dim=1)[:, None], None, old.labels, old.ids, [])

        return type(made)(**{**vars(made), "train": part(made.train, 1), "test": part(made.test, 2)})

    monkeypatch.setattr(spread, "train_and_test", task)
    scores = measure(spread, "pixels", run, device="cpu")
    assert scores["accuracy"] == scores["accuracy_k4"] == 1
    assert max(scores["accuracy_k1"] or 0, scores["accuracy_k2"] or 0) <= 0.6
    assert [name for name in scores if name.startswith("accuracy_k") and "." not in name] == [
        "accuracy_k1",
        "accuracy_k2",
        "accuracy_k4",
    ]
    assert 1.5 < (scores["participation_ratio"] or 0) < 2.1


def test_all_components_are_a_rotation_that_hardly_changes_the_probe(run: str, tmp_path: Path) -> None:
    scores = measure(spread, saved(tmp_path), run, device="cpu")
    ridge = measure(linear, saved(tmp_path), run, device="cpu", solver="ridge", layers=[1])
    assert abs((scores["accuracy"] or 0) - (ridge["accuracy"] or 0)) <= 0.3
    assert scores["accuracy.chance"] == 0.25
