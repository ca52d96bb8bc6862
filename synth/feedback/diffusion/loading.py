"""Open diffusion pipelines: safetensors only, no code of a repository, a scheduler whose coefficients are known."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import cast

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError

from granary.curation.encoders.inference import fingerprint
from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.synth.feedback.diffusion.checkpoints import first_line, model_files, no_progress_bars, refuse_pickles
from granary.synth.feedback.diffusion.estimates import SCHEDULERS, check_scheduler
from granary.synth.feedback.diffusion.families import FAMILIES, class_names
from granary.synth.feedback.diffusion.interfaces import Pipeline
from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_pipeline(model: str, scheduler: str | None, device: torch.device, dtype: str) -> tuple[Pipeline, str]:
    """Return a pipeline on its device, frozen, and the fingerprint of its files.

    model: a folder that `save_pretrained` wrote, or an id of the Hub; scheduler: ddpm, ddim, dpm++ or euler, None for
    the model's own. Raises UserError for a model that cannot be used, with the remedy.
    """
    folder = local_folder(model)
    index = _index(model, folder)
    if dtype == "bfloat16" and index["_class_name"] in ("DDPMPipeline", "DDIMPipeline"):
        raise UserError(f"dtype: a {index['_class_name']} gives no bfloat16 pictures; write float32 or float16")
    _check_components(model, folder, index)
    kind = ClassConditionalPipeline if index["_class_name"] == "ClassConditionalPipeline" else DiffusionPipeline
    options = {"dtype": DTYPES[dtype], "use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        with no_progress_bars():
            pipe = cast(Pipeline, kind.from_pretrained(str(folder), **options))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"model: '{model}' cannot be loaded ({first_line(error)})") from error
    if FAMILIES[type(pipe).__name__].needs == ("label",) and not class_names(pipe):
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
        reason = first_line(error)
        raise UserError(f"model: '{model}' is no folder, and the Hub does not give it ({reason})") from error


def _index(model: str, folder: Path) -> dict[str, object]:
    """Read model_index.json; raise UserError when it is none or of an unknown family."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
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


def _set_scheduler(pipe: Pipeline, scheduler: str | None) -> None:
    """Put the wanted scheduler into a pipeline."""
    if scheduler is not None:
        if scheduler not in SCHEDULERS:
            raise UserError(f"scheduler: '{scheduler}' is unknown; write {', '.join(SCHEDULERS)}")
        # latents are not pictures in -1..1: some old latent models do not say so and rely on their own scheduler
        latent = {"clip_sample": False} if hasattr(pipe, "vae") else {}
        pipe.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(pipe.scheduler.config, **latent)
    check_scheduler(pipe.scheduler)
    family = FAMILIES[type(pipe).__name__]
    if type(pipe.scheduler).__name__ not in family.schedulers:
        known = [name for name, kind in SCHEDULERS.items() if kind in family.schedulers]
        raise UserError(
            f"scheduler: a {type(pipe).__name__} cannot use {type(pipe.scheduler).__name__}; write {' or '.join(known)}"
        )
