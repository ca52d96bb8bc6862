"""Encoders as a run was planned with them: the same in every process, also of a kind that curation does not know."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from granary.curation.encoders import Encoder, load_encoder, planned
from granary.curation.encoders.planned import PlannedEncoder, encoder_of
from granary.curation.errors import UserError
from granary.curation.runs.run import digest
from granary.pipelines.engine.encoders import plan_encoder
from granary.training.models.vit import VisionTransformer, ViTConfig

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
WORKER = """
import pickle, sys
from PIL import Image
from granary.curation.steps.embed import encoder_of
encoder, pixels = pickle.load(sys.stdin.buffer)
assert not any(name.startswith(("granary.training", "granary.pipelines")) for name in sys.modules)
sys.stdout.buffer.write(encoder_of(encoder, "cpu").embed([Image.fromarray(pixels)]).tobytes())
"""


def embedded(encoder: PlannedEncoder) -> bytes:
    return encoder_of(encoder, "cpu").embed([Image.fromarray(PIXELS)]).tobytes()


def save_model(folder: Path, seed: int) -> str:
    """Write a tiny model of granary's own; returns the spec that names it."""
    torch.manual_seed(seed)
    VisionTransformer(ViTConfig(patch_size=32, width=24, depth=1, heads=2)).eval().save(str(folder))
    return f"granary:{folder}"


def test_a_worker_that_knows_the_step_alone_loads_the_model_the_job_names(tmp_path: Path) -> None:
    encoder = plan_encoder(save_model(tmp_path, 0), "cpu")
    job = pickle.dumps((encoder, PIXELS))
    worker = subprocess.run([sys.executable, "-c", WORKER], input=job, capture_output=True, check=True)
    assert worker.stdout == embedded(encoder)


def test_a_kind_without_a_loader_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is of no known kind"):
        load_encoder(save_model(tmp_path, 0), "cpu")


def test_an_encoder_is_loaded_once_and_again_when_its_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(spec: str, device: str, loader: str) -> Encoder:
        loaded.append(spec)
        return load_encoder(spec, device, loader)

    monkeypatch.setattr(planned, "load_encoder", load)
    monkeypatch.setattr(planned, "_loaded", {})
    spec = save_model(tmp_path, 1)
    first = plan_encoder(spec, "cpu")
    vectors = embedded(first)
    assert embedded(dataclasses.replace(first)) == vectors
    assert len(loaded) == 1
    save_model(tmp_path, 2)
    second = plan_encoder(spec, "cpu")
    assert second.fingerprint != first.fingerprint
    assert embedded(second) != vectors
    assert len(loaded) == 2


def test_an_encoder_that_differs_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = plan_encoder(save_model(tmp_path, 1), "cpu")
    save_model(tmp_path, 2)
    monkeypatch.setattr(planned, "_loaded", {})
    with pytest.raises(ValueError, match="not the one this run was planned with"):
        encoder_of(encoder, "cpu")


def test_a_process_keeps_a_few_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "_loaded", {})
    monkeypatch.setattr(planned, "KEPT", 2)
    for device in "abc":
        plan_encoder("builtin:copy", device)
    assert [device for _, device in planned._loaded] == ["b", "c"]


def test_where_its_loader_stands_decides_no_digest() -> None:
    moved = [PlannedEncoder("granary:a", "f", loader) for loader in ("old.place:Model", "new.place:Model")]
    assert digest(moved[0]) == digest(moved[1]) != digest(PlannedEncoder("granary:a", "g"))
