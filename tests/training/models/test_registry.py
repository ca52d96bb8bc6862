"""One reader for every way to name a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from granary.curation.errors import UserError
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.registry import ModelName, load_model, read_name, resolved
from granary.training.models.vit import VisionTransformer, ViTConfig


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("out/vit", ModelName("path", "out/vit")),
        ("s3://bucket/random:/vit", ModelName("path", "s3://bucket/random:/vit")),
        ("hf:facebook/dinov2-base", ModelName("hub", "facebook/dinov2-base")),
        ("random:tiny?img_size=16&patch_size=8", ModelName("random", "tiny?img_size=16&patch_size=8")),
        ("random:hf:a/b", ModelName("random", "hf:a/b")),
        ("pixels", ModelName("pixels", "")),
        ("pixels/vit", ModelName("path", "pixels/vit")),
    ],
)
def test_a_name_is_read_by_its_prefix(name: str, read: ModelName) -> None:
    assert read_name(name) == read


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_model("random:tiny?img_size=8&patch_size=4", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.embed.weight, again.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)
    assert not first.training


def test_a_folder_is_its_own_name_and_a_prefix_names_itself(tmp_path: Path) -> None:
    VisionTransformer(ViTConfig(img_size=8, patch_size=4, width=8, depth=1, heads=1)).save(str(tmp_path))
    assert resolved(f"{tmp_path}/") == str(tmp_path)
    assert [resolved(name) for name in ("pixels", "hf:a", "random:tiny")] == ["pixels", "hf:a", "random:tiny"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pixels", "pixels is a baseline without weights"),
        ("random:", "names nothing to load"),
        ("random:tiny?width=8", "unknown option 'width'"),
        ("nowhere", "nowhere is neither a training directory"),
    ],
)
def test_a_name_of_no_model_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_model(name)


@pytest.mark.parametrize("name", ["pixels", "random:tiny"])
def test_a_baseline_has_no_text_encoder(name: str) -> None:
    with pytest.raises(UserError, match="scores no image against a text"):
        ClipModel.load(name, "cpu")
