"""A CLIP or SigLIP trained here: read from a checkpoint, written as `CLIPModel` or `SiglipModel` of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.tokenizer import END, PAD, START
from granary.training.method import Method
from granary.training.models import weights
from granary.training.models.dual_encoder import DualEncoder
from granary.training.models.training import load_training

if TYPE_CHECKING:  # takes seconds to import
    from transformers import CLIPConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, SiglipConfig

TEXT = {  # their name in the text encoder, ours; the others are as in `granary.training.models.weights`
    "embeddings.token_embedding.weight": "embed.weight",
    "final_layer_norm.weight": "norm.weight",
    "final_layer_norm.bias": "norm.bias",
    "head.weight": "out.weight",
    "head.bias": "out.bias",
}
HEAD = {  # in SigLIP's attention pooling; the joined matrix is made in `_pooling`
    "probe": "query",
    "attention.out_proj.weight": "out.weight",
    "attention.out_proj.bias": "out.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "mlp.fc1.weight": "mlp.up.weight",
    "mlp.fc1.bias": "mlp.up.bias",
    "mlp.fc2.weight": "mlp.down.weight",
    "mlp.fc2.bias": "mlp.down.bias",
}


def load_clip(path: str) -> DualEncoder:
    """Return both encoders and the tokenizer of a training, see `load_training`. Raises UserError for another one."""
    return dual_encoder(load_training(path), path)


def dual_encoder(model: Method, path: str) -> DualEncoder:
    """Return a training as the dual encoder that it is. Raises UserError for another one, found at `path`."""
    if not isinstance(model, DualEncoder):
        raise UserError(
            f"model: {path} has no text encoder; give a training of clip, siglip, llip, coca or flava, or hf:ID_OR_PATH"
        )
    return model


def to_transformers(model: DualEncoder) -> PreTrainedModel:
    """Return the `CLIPModel` or `SiglipModel` with our weights.

    A CLIP trained with the sigmoid loss has a bias that `CLIPModel` has no place for: its logits are lower by that.

    Raises:
        UserError: transformers has no such parts.
    """
    from transformers import CLIPModel, SiglipModel

    state = model.state_dict()
    if model.kind == "siglip":
        theirs: PreTrainedModel = SiglipModel(_siglip_config(model)).eval()
        carried = dict(_pooling(state))
        carried |= _carried("vision_model.", "image.", theirs, state)
        carried |= {"logit_scale": state["scale"], "logit_bias": state["bias"]}
    else:
        vision = weights.to_transformers(model.image)
        theirs = CLIPModel(_clip_config(model, vision.config)).eval()
        carried = {f"vision_model.{name.removeprefix('vision_model.')}": w for name, w in vision.state_dict().items()}
        carried |= {
            "visual_projection.weight": state["pool.weight"],
            "text_projection.weight": state["text.out.weight"],
        }
        carried |= {"logit_scale": state["scale"][0]}
    carried |= _carried("text_model.", "text.", theirs, state)
    theirs.load_state_dict({name: tensor.detach().float().cpu().clone() for name, tensor in carried.items()})
    return theirs


def _carried(prefix: str, ours_prefix: str, theirs: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights under their names and in their shapes: one of their encoders, without its pooling."""
    carried = {}
    for name, tensor in theirs.state_dict().items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix) or (ours_prefix == "image." and inner.startswith("head.")):
            continue
        ours, _, part = (TEXT.get(inner) or weights.our_name(inner)).partition("/")
        weight = state[ours_prefix + ours]
        carried[name] = (weight.chunk(3)[int(part)] if part else weight).reshape(tensor.shape)
    return carried


def _pooling(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of SigLIP's pooling under their names; query, key and value are one matrix there."""
    for theirs, ours in HEAD.items():
        yield f"vision_model.head.{theirs}", state[f"pool.{ours}"]
    for kind in ("weight", "bias"):
        yield (
            f"vision_model.head.attention.in_proj_{kind}",
            torch.cat([state[f"pool.q.{kind}"], state[f"pool.kv.{kind}"]]),
        )


def _text_settings(model: DualEncoder) -> dict[str, object]:
    text = model.text.config
    return {
        "vocab_size": text.vocabulary,
        "max_position_embeddings": text.context,
        "hidden_size": text.width,
        "intermediate_size": 4 * text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "hidden_act": text.mlp,
        "layer_norm_eps": text.norm_eps,
        "bos_token_id": model.tokenizer.start,
        "eos_token_id": model.tokenizer.end,
        "pad_token_id": model.tokenizer.pad,
    }


def _clip_config(model: DualEncoder, vision: PreTrainedConfig) -> CLIPConfig:
    from transformers import CLIPConfig

    if model.tokenizer.end == 2:  # which transformers takes for a mark of old models, and looks for the largest number
        raise UserError("export: the end of a text is token 2 of this tokenizer; CLIPModel reads the wrong place then")
    size = model.text.config.dimension
    text = {**_text_settings(model), "projection_dim": size}
    return CLIPConfig(text_config=text, vision_config={**vision.to_dict(), "projection_dim": size}, projection_dim=size)


def _siglip_config(model: DualEncoder) -> SiglipConfig:
    from transformers import SiglipConfig

    config = model.config
    if (
        config.pre_norm
        or config.layer_scale
        or not config.patch_bias
        or config.pos_embed == "rotary"
        or config.stem == "conv"
        or config.mlp == "swiglu"
    ):
        raise UserError(
            "export: SiglipModel of transformers has learned or sincos positions, an MLP of gelu or quick_gelu, a bias "
            "of the patches, no LayerScale and no norm before the blocks"
        )
    vision = {
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "intermediate_size": int(config.mlp_ratio * config.width),
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": config.mlp,
        "layer_norm_eps": config.norm_eps,
    }
    return SiglipConfig(text_config={**_text_settings(model), "projection_size": config.width}, vision_config=vision)


def transformers_tokenizer(model: DualEncoder) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with the frame that the text encoder was trained on."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(model.tokenizer.json)
    inner.no_truncation()
    frame = {"bos_token": START, "eos_token": END, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=model.tokenizer.context, **frame)
