"""Names of weights and open_clip_config.json of open_clip, for a CLIP trained here.

Checked against the sources of open_clip (src/open_clip/model.py, transformer.py and factory.py of June 2026). Its
SigLIP is built on models of timm that have other parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.models.dual_encoder import DualEncoder
from granary.training.models.vit_config import ViTConfig

NAMES = [  # our name inside an encoder, theirs
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"blocks\.(\d+)\.attention\.qkv\.(\w+)", r"transformer.resblocks.\1.attn.in_proj_\2"),
    (r"blocks\.(\d+)\.attention\.out\.(\w+)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"blocks\.(\d+)\.scale([12])\.scale", r"transformer.resblocks.\1.ls_\2.gamma"),
    (r"blocks\.(\d+)\.mlp\.up\.(\w+)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"blocks\.(\d+)\.mlp\.down\.(\w+)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
]
IMAGE = [
    *NAMES,
    (r"embed\.weight", "conv1.weight"),
    (r"pre_norm\.(\w+)", r"ln_pre.\1"),
    (r"norm\.(\w+)", r"ln_post.\1"),
]
TEXT = [*NAMES, (r"embed\.weight", "token_embedding.weight"), (r"norm\.(\w+)", r"ln_final.\1")]


def to_open_clip(model: DualEncoder) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return open_clip_config.json and the weights under open_clip's names.

    Raises:
        UserError: open_clip has no model with these parts.
    """
    state = model.state_dict()
    _check(model)
    settings: dict[str, object] = {
        "embed_dim": model.text.config.dimension,
        "quick_gelu": model.config.mlp == "quick_gelu",
        "vision_cfg": _vision(model.config),
        "text_cfg": _text(model),
    }
    if "bias" in state:
        settings["init_logit_bias"] = float(state["bias"])
    mean, std = list(model.config.mean), list(model.config.std)
    preparation = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    return {"model_cfg": settings, "preprocess_cfg": preparation}, dict(_tensors(state))


def _check(model: DualEncoder) -> None:
    """Raise UserError for parts that open_clip's own encoders do not have."""
    config = model.config
    reasons = {
        "the pooling of SigLIP": model.kind != "clip",
        "registers": config.registers > 0,
        "no class token": not config.class_token,
        "a bias of the patches": config.patch_bias,
        "pos_embed: rotary": config.pos_embed == "rotary",
        "mlp: swiglu": config.mlp == "swiglu",
        "stem: conv": config.stem == "conv",
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        raise UserError(f"export: open_clip does not fit a model with {reason}; give --format transformers")


def _vision(config: ViTConfig) -> dict[str, object]:
    return {
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "width": config.width,
        "layers": config.depth,
        "head_width": config.width // config.heads,
        "mlp_ratio": config.mlp_ratio,
        "ls_init_value": config.layer_scale or None,
        "no_ln_pre": not config.pre_norm,
        "norm_kwargs": {"eps": config.norm_eps},
    }


def _text(model: DualEncoder) -> dict[str, object]:
    text = model.text.config
    return {
        "context_length": text.context,
        "vocab_size": text.vocabulary,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        "norm_kwargs": {"eps": text.norm_eps},
        "hf_tokenizer_name": ".",  # of the folder itself
        "pool_type": "eos",
        "bos_id": model.tokenizer.start,
        "eos_id": model.tokenizer.end,
        "pad_id": model.tokenizer.pad,
    }


def _tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights under their names and in their shapes."""
    for prefix, names, theirs in (("image.", IMAGE, "visual."), ("text.", TEXT, "")):
        for name in (name.removeprefix(prefix) for name in state if name.startswith(prefix)):
            pair = next((pair for pair in names if re.fullmatch(pair[0], name)), None)
            if pair:
                yield theirs + re.sub(*pair, name), state[prefix + name]
    yield "visual.class_embedding", state["image.cls"].flatten()
    # the position of the class token is part of it here
    yield "visual.positional_embedding", torch.cat([state["image.cls"][0] * 0, state["image.positions"][0]])
    yield "visual.proj", state["pool.weight"].T
    yield "positional_embedding", state["text.positions"][0]
    yield "text_projection", state["text.out.weight"].T
    yield "logit_scale", state["scale"][0]
    if "bias" in state:
        yield "logit_bias", state["bias"][0]
