"""Find a model by name: PATH is a training directory (its last checkpoint), a checkpoint folder, or hf:ID_OR_PATH."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.models.checkpoint import usable
from granary.training.models.vit import VisionTransformer


def model_folder(path: str) -> str:
    """Return the folder with config.json and model.safetensors that PATH names.

    Raises UserError when there is none.
    """
    if storage.exists(storage.join(path, "config.json")):
        return path.rstrip("/")
    folder = next(iter(usable(path)), None)
    if folder is None:
        raise UserError(
            f"model: {path} is neither a training directory with a checkpoint nor a folder with config.json and "
            "model.safetensors; for a model of transformers write hf:ID_OR_PATH"
        )
    return folder


def load_model(path: str, device: str | torch.device = "cpu") -> VisionTransformer:
    """Return the model that PATH names, in evaluation mode. Raises UserError with what is wrong."""
    if path.startswith("hf:"):
        return _from_hub(path.removeprefix("hf:")).to(device)
    folder = model_folder(path)
    try:
        return VisionTransformer.load(folder, device).eval()
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model: {folder} holds no model that granary can read ({reason})") from error


def _from_hub(name: str) -> VisionTransformer:
    """Load a vision model of transformers, with safetensors only and no code of its repository."""
    from transformers import AutoConfig, AutoModel, CLIPVisionModel

    from granary.training.models.weights import from_transformers

    try:
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        loader = CLIPVisionModel if kind.startswith("clip") else AutoModel
        model = loader.from_pretrained(name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model: hf:{name} cannot be loaded ({reason})") from error
    return from_transformers(model)
