"""Open diffusion pipelines: safetensors only, no code of a repository, a scheduler whose coefficients are known."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import cast

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from huggingface_hub.errors import HfHubHTTPError

from granary.curation.encoders.inference import UNLOADABLE, fingerprint, reason
from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.trees import mapping
from granary.synth.feedback.diffusion.checkpoints import model_files, no_progress_bars, refuse_pickles
from granary.synth.feedback.diffusion.estimates import FLOW, SCHEDULERS, check_scheduler
from granary.synth.feedback.diffusion.families import FAMILIES, class_names
from granary.synth.feedback.diffusion.interfaces import Pipeline
from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(model: str, scheduler: str | None, device: torch.device, dtype: str) -> tuple[Pipeline, str]:
    """Return a pipeline on its device, frozen, and the fingerprint of its files.

    Args:
        model: a folder that `save_pretrained` wrote, or an id of the Hub.
        scheduler: a key of `SCHEDULERS`, None for the model's own.
        device: for the networks.
        dtype: of their weights, a key of `DTYPES`.

    Raises:
        UserError: the model cannot be used, with the remedy.
    """
    folder = local_folder(model)
    index = _index(model, folder)
    if dtype == "bfloat16" and index["_class_name"] in ("DDPMPipeline", "DDIMPipeline"):
        raise UserError(f"dtype: a {index['_class_name']} gives no bfloat16 pictures; write float32 or float16")
    _check_components(model, folder, index)
    kind = ClassConditionalPipeline if index["_class_name"] == "ClassConditionalPipeline" else DiffusionPipeline
    options = {"dtype": DTYPES[dtype], "use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    absent = {name: None for name, spec in index.items() if spec == [None, None]}  # as the T5 of many an SD3
    try:
        with no_progress_bars():
            pipe = cast(Pipeline, kind.from_pretrained(str(folder), **options, **absent))
    except UNLOADABLE as error:
        raise UserError(f"model: '{model}' cannot be loaded ({reason(error)})") from error
    _check_networks(model, pipe, dtype)
    if _takes_classes(pipe) and not class_names(pipe):
        raise UserError(f"model: '{model}' takes classes but names none; write them as id2label into model_index.json")
    _set_scheduler(pipe, scheduler)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe.to(device), fingerprint(model_files(folder), "pipeline-1", scheduler, dtype)


def local_folder(model: str) -> Path:
    """Return the folder of a model: its path, a copy of what a URL holds, or what the Hub gives."""
    folder = Path(storage.local_folder(model)).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise UserError(f"model: there is no folder '{model}'; give a folder of diffusers or an id of the Hub")
    options = {"use_safetensors": True, "trust_remote_code": False}
    try:
        with contextlib.suppress(AttributeError):  # a class that diffusers does not have: ours
            return Path(DiffusionPipeline.download(model, **options))
        return Path(ClassConditionalPipeline.download(model, **options))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(f"model: '{model}' is no folder, and the Hub does not give it ({reason(error)})") from error


def _index(model: str, folder: Path) -> dict[str, object]:
    """Read model_index.json; raise UserError when it is none or of an unknown family."""
    try:
        index = mapping("model_index.json", (folder / "model_index.json").read_bytes())
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"model: '{model}' has no model_index.json of a diffusers pipeline") from error
    if name not in FAMILIES:
        raise UserError(f"model: '{model}' is a {name}; feedback works with {', '.join(sorted(FAMILIES))}")
    return index


def _check_components(model: str, folder: Path, index: dict[str, object]) -> None:
    """Raise UserError for a missing scheduler and for pickled weights."""
    for name, spec in index.items():
        if isinstance(spec, list) and spec[:1] != [None]:
            refuse_pickles("model", folder / name, f"{model}{os.sep}{name}")
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise UserError(
            f"model: '{model}' has no scheduler; save one into it, for example "
            "DDIMScheduler().save_pretrained(FOLDER + '/scheduler'), with the betas it was trained with"
        )


def _check_networks(model: str, pipe: Pipeline, dtype: str) -> None:
    """Raise UserError for networks that their pipeline cannot use as granary does."""
    unet, vae = pipe.components.get("unet"), pipe.components.get("vae")
    if isinstance(unet, UNet2DModel):
        _check_pixel_unet(model, type(pipe).__name__, unet)
    upcast = isinstance(vae, AutoencoderKL) and bool(vae.config.get("force_upcast"))
    if upcast and dtype == "float16" and type(pipe).__name__ == "StableDiffusionXLPipeline":
        raise UserError(f"dtype: the decoder of '{model}' overflows in float16; write bfloat16 or float32")


def _takes_classes(pipe: Pipeline) -> bool:
    unet = pipe.components.get("unet")
    in_pixels = isinstance(unet, UNet2DModel) and unet.class_embedding is not None
    return in_pixels or FAMILIES[type(pipe).__name__].needs == ("label",)


def _check_pixel_unet(model: str, kind: str, unet: UNet2DModel) -> None:
    channels, conditional = unet.config["in_channels"], unet.class_embedding is not None
    if channels not in (1, 3):
        raise UserError(
            f"model: the UNet of '{model}' makes {channels} channels, which are no grey or RGB picture, and its "
            f"{kind} has no decoder for them; give a model of 1 or 3 channels, or one with a VAE"
        )
    if conditional and kind != "ClassConditionalPipeline":
        raise UserError(
            f"model: the UNet of '{model}' takes classes, which a {kind} never gives it; save its unet and scheduler "
            "as a ClassConditionalPipeline with id2label, the names of the classes"
        )


def _set_scheduler(pipe: Pipeline, scheduler: str | None) -> None:
    """Put the wanted scheduler into a pipeline."""
    if scheduler is not None:
        if scheduler not in SCHEDULERS:
            raise UserError(f"scheduler: '{scheduler}' is unknown; write {', '.join(SCHEDULERS)}")
        # latents are not pictures in -1..1: some old latent models do not say so and rely on their own scheduler
        latent = {"clip_sample": False} if hasattr(pipe, "vae") else {}
        if scheduler == "pndm":
            latent["skip_prk_steps"] = True
        kind = type(pipe.scheduler).__name__
        if (kind == FLOW) != (scheduler == "flow"):  # neither can be made of the other's settings
            raise UserError(f"scheduler: a {type(pipe).__name__} with a {kind} cannot use {SCHEDULERS[scheduler]}")
        pipe.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(pipe.scheduler.config, **latent)
    check_scheduler(pipe.scheduler)
    family = FAMILIES[type(pipe).__name__]
    if type(pipe.scheduler).__name__ not in family.schedulers:
        known = [name for name, kind in SCHEDULERS.items() if kind in family.schedulers]
        raise UserError(
            f"scheduler: a {type(pipe).__name__} cannot use {type(pipe.scheduler).__name__}; write {' or '.join(known)}"
        )
