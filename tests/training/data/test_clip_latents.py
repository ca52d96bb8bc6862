"""Latents of clips: those of the frames shown at their times, from an encoder that stays as it was."""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile

import numpy as np
import pytest
import torch
from made_videos import made
from places import SHARED

from granary.curation.videos.decode import Video, facts_of, read_clip
from granary.training.data.augment import normalised, to_unit
from granary.training.data.clip_latents import ClipLook, clip_latents, clip_times
from granary.training.losses.flow_matching import sigmas_of
from granary.training.models.backbone import Backbone
from granary.training.models.build import build
from granary.training.models.clip_diffusion import ClipDiffusion, ClipDiffusionConfig
from granary.training.models.vit_config import ViTConfig


def encoder() -> Backbone:
    torch.manual_seed(0)
    return build(ViTConfig(img_size=32, patch_size=8, width=16, depth=1, heads=2)).eval()


def digest(model: Backbone) -> str:
    state = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(state).hexdigest()


def test_frames_are_the_middles_of_equal_parts() -> None:
    assert clip_times({"start": 1.0, "end": 3.0}, 4).tolist() == [1.25, 1.75, 2.25, 2.75]


def test_latents_are_those_of_a_loop_over_all_frames_and_the_encoder_stays() -> None:
    model, data = encoder(), made(40)
    before, clips = digest(model), [{"start": 2.0, "end": 3.0}, {"start": 0.0, "end": 1.0}]
    tokens = clip_latents(model, data, clips, ClipLook(4, mean=False))
    assert tokens.shape == (2, 4, 16)
    found = clip_latents(model, data, clips, ClipLook(4))[:, 0]
    assert torch.allclose(found, tokens.mean(dim=1), atol=1e-6)
    assert not found.requires_grad
    assert not found.is_inference()  # a training may save it for its backward pass
    assert digest(model) == before
    with Video(data) as video:
        times = [frame.time for frame in video.frames()]
    for number, clip in enumerate(clips):
        vectors = []
        for part in range(4):
            wanted = clip["start"] + (clip["end"] - clip["start"]) * (part + 0.5) / 4
            shown = max(time for time in times if time <= wanted)
            pixels = normalised(
                to_unit(torch.from_numpy(read_clip(data, [shown], 32))), model.config.mean, model.config.std
            )
            vectors.append(model(pixels).cls[0])
        assert torch.allclose(found[number], torch.stack(vectors).mean(dim=0), atol=1e-5)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_the_way_from_real_videos_to_a_generated_clip() -> None:
    """Files, clips, frozen encoder, latents, diffusion: the last of three clips from the first two."""
    model, latents = encoder(), []
    with zipfile.ZipFile(SHARED / "video_clips_dev.zip") as archive:
        names = [json.loads(line)["file"] for line in archive.read("manifest.jsonl").decode().splitlines()]
        for name in names[:4]:
            data = archive.read(name)
            bounds = np.linspace(0, facts_of(data).seconds, 4)
            clips = [{"start": float(a), "end": float(b)} for a, b in itertools.pairwise(bounds)]
            latents.append(clip_latents(model, data, clips, ClipLook(2)))
    rows, places = torch.stack(latents), torch.arange(3).expand(4, 3)
    network = ClipDiffusion(ClipDiffusionConfig(dimension=16, width=32, blocks=1, heads=2)).eval()
    noise = torch.randn(4, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made_up = network.generated(noise, sigmas_of(4), rows[:, :2], places[:, 2:], places[:, :2])
    assert made_up.shape == (4, 1, 1, 16)
    assert torch.isfinite(made_up).all()
    assert torch.equal(made_up, noise)  # with its first weights the velocity is 0
