"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) for a CLIP of `transformers`, by peft."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn

from granary.curation.errors import UserError, needs
from granary.curation.options import Options
from granary.curation.store import storage
from granary.training.models.clip_transformers import ClipModel

if TYPE_CHECKING:  # in an extra
    from peft import PeftModel

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "visual_projection", "text_projection")


class Lora(Options, frozen=True):
    """Adapters of a layer W: W x + alpha / rank * B A x, with A (rank, in) and B (out, rank), B = 0 at first."""

    rank: int = Field(4, ge=1, description="rank of the adapters; the paper tried 1, 2 and 4")
    alpha: int = Field(2, ge=1, description="their scale is alpha / rank")
    dropout: float = Field(0.2, ge=0, lt=1, description="of their inputs")


def adapt(clip: ClipModel, lora: Lora) -> PeftModel:
    """Put adapters into the projections and MLPs of both encoders of a CLIP; they and those layers' biases learn.

    The adapters are drawn with torch's generator.

    Args:
        clip: the model; it computes with the adapters from now on.
        lora: their sizes.

    Returns:
        The wrapper of peft.

    Raises:
        UserError: the model is not a CLIP.
    """
    with needs("train"):
        from peft import LoraConfig, get_peft_model
    names = {name.rpartition(".")[2] for name, _ in clip.model.named_modules()}
    missing = [target for target in TARGETS if target not in names]
    if missing:
        kind = clip.model.config.model_type
        raise UserError(f"model: {clip.name!r} is a {kind} without a layer {missing[0]}; fine-tuning needs a CLIP")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="lora_only",
        target_modules=list(TARGETS),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        return get_peft_model(clip.model, config)


def learning(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that learn, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def save_adapter(network: PeftModel, url: str) -> None:
    """Write adapters and biases as peft reads them: adapter_config.json and adapter_model.safetensors."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(network)
    storage.write_bytes(
        storage.join(url, "adapter_model.safetensors"),
        save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}),
    )
    config = network.peft_config["default"]
    save_folder(lambda folder: config.save_pretrained(folder), url)


def save_merged(clip: ClipModel, network: PeftModel, url: str) -> None:
    """Add the adapters to the weights, for good, and write the model as `transformers` reads it."""
    clip.model = network.merge_and_unload()
    save_folder(clip.save, url)


def save_folder(write: Callable[[str], object], url: str) -> None:
    """Let `write` fill a local folder and move its files to `url`, which may be remote; each appears whole."""
    with tempfile.TemporaryDirectory(prefix="granary-") as folder:
        write(folder)
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                storage.write_bytes(storage.join(url, name), file.read())
