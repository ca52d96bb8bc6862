"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) for models of `transformers`, by peft."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn

from granary.curation.errors import UserError, needs
from granary.curation.options import Options
from granary.curation.store import storage
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.hub_files import Saved
from granary.training.models.hub_generative import HubGenerative
from granary.training.models.language import LanguageModel

if TYPE_CHECKING:  # in an extra
    from peft import PeftModel
    from transformers import PreTrainedModel

PART = "network."  # of a method
WRAPPED = f"{PART}base_model.model."  # where peft puts the model
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
    names = {name.rpartition(".")[2] for name, _ in clip.model.named_modules()}
    missing = [target for target in TARGETS if target not in names]
    if missing:
        kind = clip.model.config.model_type
        raise UserError(f"model: {clip.name!r} is a {kind} without a layer {missing[0]}; fine-tuning needs a CLIP")
    return _adapted(clip.model, lora, list(TARGETS))


def adapt_language(language: LanguageModel, lora: Lora) -> None:
    """Put adapters into all linear layers of a language model but its output; they and those layers' biases learn.

    The adapters are drawn with torch's generator.

    Args:
        language: the model.
        lora: their sizes.
    """
    adapted: Any = _adapted(language.network, lora, "all-linear")
    language.network = adapted


def adapt_generator(generator: HubGenerative, lora: Lora) -> PeftModel:
    """Put adapters into all linear layers of the part that says texts but its output; they and their biases learn.

    The adapters are drawn with torch's generator. The model has every weight once from now on, as checkpoints do: where
    its tables of input and output were one, they are two.

    Args:
        generator: the model; it computes with the adapters from now on.
        lora: their sizes.

    Returns:
        The wrapper of peft.
    """
    _untie(generator.network)
    part = generator.network.get_submodule(generator.SPEAKS)
    names = {name.rpartition(".")[2] for name, layer in part.named_modules() if isinstance(layer, nn.Linear)}
    return _adapted(generator.network, lora, rf"{re.escape(generator.SPEAKS)}\..*\.({'|'.join(sorted(names))})")


def _untie(network: Any) -> None:
    """Give every parameter that goes by several names one of its own for each, and say so in the configurations."""
    owners = set[int]()
    for name, parameter in list(network.named_parameters(remove_duplicate=False)):
        if id(parameter) in owners:
            module, _, last = name.rpartition(".")
            parameter = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            setattr(network.get_submodule(module), last, parameter)
        owners.add(id(parameter))
    for config in (network.config, network.config.get_text_config()):
        config.tie_word_embeddings = False


def _adapted(model: PreTrainedModel, lora: Lora, targets: list[str] | str) -> PeftModel:
    """Return the wrapper of peft around a model with adapters in the layers of some names."""
    with needs("train"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="lora_only",
        target_modules=targets,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        return get_peft_model(model, config)


def merged_weights(lora: Lora, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the model of `transformers` with the adapters added: W + alpha / rank * B A.

    Args:
        lora: sizes of the adapters.
        weights: of what `adapt` returned; other names may begin otherwise and are left out.
    """
    merged = {}
    for name, tensor in weights.items():
        if not name.startswith(WRAPPED) or ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix("base_layer.weight")
            down, up = (weights[f"{layer}lora_{part}.default.weight"] for part in "AB")
            tensor = tensor + up @ down * (lora.alpha / lora.rank)
        merged[name.removeprefix(WRAPPED).replace(".base_layer.", ".")] = tensor
    return merged


def merged(network: Any, lora: Lora, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a model of `transformers` that computes what one with adapters does, without them.

    Args:
        network: the model that was adapted.
        lora: sizes of the adapters.
        weights: of a module that has the wrapper of peft as its part `network`.
    """
    with torch.device("meta"):  # which draws no weights
        model: PreTrainedModel = type(network)(network.config)
    model.load_state_dict(merged_weights(lora, weights), assign=True)
    if model.can_generate():
        model.generation_config = network.generation_config
    return model.eval()


def save_adapter(network: PeftModel, weights: Mapping[str, Tensor], url: str) -> None:
    """Write adapters and biases as peft reads them: adapter_config.json and adapter_model.safetensors.

    Args:
        network: what `adapt` returned.
        weights: of a module that has it as its part `network`.
        url: the folder.
    """
    from peft import get_peft_model_state_dict

    inner = {name.removeprefix(PART): tensor for name, tensor in weights.items() if name.startswith(PART)}
    tensors = get_peft_model_state_dict(network, inner)
    storage.write_bytes(
        storage.join(url, "adapter_model.safetensors"),
        save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}),
    )
    config = network.peft_config["default"]
    save_folder(lambda folder: config.save_pretrained(folder), url)


def save_parts(parts: Sequence[Saved], url: str) -> None:
    """Write a model, its tokenizer and its processor into one folder, as `transformers` reads them."""

    def write(folder: str) -> None:
        for part in parts:
            part.save_pretrained(folder)

    save_folder(write, url)


def save_folder(write: Callable[[str], object], url: str) -> None:
    """Let `write` fill a local folder and move its files to `url`, which may be remote; each appears whole."""
    with tempfile.TemporaryDirectory(prefix="granary-") as folder:
        write(folder)
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                storage.write_bytes(storage.join(url, name), file.read())
