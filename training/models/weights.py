"""Weights from and to `transformers`: DINOv2, DINOv2 with registers, I-JEPA, ViT and CLIP's vision model.

One table names our weight for each of theirs and is read in both directions. Two things are stored differently and
mean the same: query, key and value are one matrix here, and the position of the class token is part of that token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedModel

KINDS = {  # model_type of transformers -> class of the model
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "ijepa": "IJepaModel",
    "clip_vision_model": "CLIPVisionModel",
    "vit": "ViTModel",
    "vit_mae": "ViTMAEModel",
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BLOCK = r"(?:encoder\.)?layers?\.(\d+)\."
NAMES = [  # their name, ours; both namings that versions of transformers use
    (r"embeddings\.(?:patch_embeddings\.projection|patch_embedding)\.(weight|bias)", r"embed.\1"),
    (r"embeddings\.(?:cls_token|class_embedding)", "cls"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.register_tokens", "registers"),
    (r"embeddings\.position_embeddings?(?:\.weight)?", "positions"),
    (r"(?:layernorm|post_layernorm)\.(weight|bias)", r"norm.\1"),
    (r"pre_layrnorm\.(weight|bias)", r"pre_norm.\1"),
    (BLOCK + r"(?:norm1|layer_norm1|layernorm_before)\.(\w+)", r"blocks.\1.norm1.\2"),
    (BLOCK + r"(?:norm2|layer_norm2|layernorm_after)\.(\w+)", r"blocks.\1.norm2.\2"),
    (BLOCK + r"(?:self_attn|attention(?:\.attention)?)\.(?:q_proj|query)\.(\w+)", r"blocks.\1.attention.qkv.\2/0"),
    (BLOCK + r"(?:self_attn|attention(?:\.attention)?)\.(?:k_proj|key)\.(\w+)", r"blocks.\1.attention.qkv.\2/1"),
    (BLOCK + r"(?:self_attn|attention(?:\.attention)?)\.(?:v_proj|value)\.(\w+)", r"blocks.\1.attention.qkv.\2/2"),
    (
        BLOCK + r"(?:self_attn\.out_proj|attention\.o_proj|attention\.output\.dense)\.(\w+)",
        r"blocks.\1.attention.out.\2",
    ),
    (BLOCK + r"layer_scale([12])\.lambda1", r"blocks.\1.scale\2.scale"),
    (BLOCK + r"mlp\.gate_proj\.(\w+)", r"blocks.\1.mlp.up.\2/0"),
    (BLOCK + r"mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.up.\2/1"),
    (BLOCK + r"(?:mlp\.fc1|mlp\.weights_in|intermediate\.dense)\.(\w+)", r"blocks.\1.mlp.up.\2"),
    (BLOCK + r"(?:mlp\.fc2|mlp\.weights_out|mlp\.down_proj|output\.dense)\.(\w+)", r"blocks.\1.mlp.down.\2"),
]


def our_name(theirs: str) -> str:
    """Return our name for a weight of theirs; `/i` marks part i of a joined matrix. Raises KeyError for none."""
    for pattern, ours in NAMES:
        match = re.fullmatch(pattern, theirs.removeprefix("vision_model."))
        if match:
            return match.expand(ours)
    raise KeyError(theirs)


def from_transformers(model: PreTrainedModel) -> VisionTransformer:
    """Return our model with the weights of a `transformers` model of one of KINDS.

    Its tokens equal theirs; CLIP's norm, which they apply to the class token alone, is applied to all tokens.

    Raises:
        UserError: the model is of another kind.
    """
    model = getattr(model, "vision_model", model) if model.config.model_type == "clip" else model
    ours = VisionTransformer(_our_config(model.config))
    with torch.no_grad():
        given = {name: w for name, w in model.state_dict().items() if not name.startswith("pooler.")}  # ViT's, unused
        ours.load_state_dict(_joined({our_name(name): w.float() for name, w in given.items()}, ours.config))
    return ours.eval()


def _joined(theirs: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Join the parts `/0`, `/1`, ..., and move the class token's position into the class token."""
    state = {name: tensor for name, tensor in theirs.items() if "/" not in name}
    for name in sorted({name.split("/")[0] for name in theirs if "/" in name}):
        state[name] = torch.cat([theirs[f"{name}/{part}"] for part in range(3) if f"{name}/{part}" in theirs])
    width = config.width
    positions = state["positions"].reshape(1, -1, width)
    first = int(config.class_token)
    state["positions"] = positions[:, first:].clone()
    state["cls"] = state["cls"].reshape(1, 1, width) + positions[:, :1] if first else torch.empty(1, 0, width)
    state.setdefault("registers", torch.empty(1, 0, width))
    return state


def _our_config(theirs: PreTrainedConfig) -> ViTConfig:
    """Return the architecture of a `transformers` configuration; raises UserError where ours has no such part."""
    kind = theirs.model_type
    if kind not in KINDS:
        raise UserError(f"model: a {kind} model of transformers is not one of {', '.join(KINDS)}")
    clip, dino = kind == "clip_vision_model", kind.startswith("dinov2")
    activation = "swiglu" if dino and theirs.use_swiglu_ffn else str(theirs.hidden_act)
    if activation not in ("gelu", "quick_gelu", "swiglu") or not getattr(theirs, "qkv_bias", True):
        raise UserError(f"model: {kind} with hidden_act {activation!r} or without qkv_bias is not supported")
    return ViTConfig(
        img_size=_pixels(theirs.image_size),
        patch_size=_pixels(theirs.patch_size),
        width=theirs.hidden_size,
        depth=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        mlp_ratio=theirs.mlp_ratio if dino else theirs.intermediate_size / theirs.hidden_size,
        class_token=kind != "ijepa",
        registers=getattr(theirs, "num_register_tokens", 0) if dino else 0,
        mlp=activation,
        layer_scale=theirs.layerscale_value if dino else 0.0,
        mask_token=dino and getattr(theirs, "use_mask_token", True),
        patch_bias=not clip,
        pre_norm=clip,
        norm_eps=theirs.layer_norm_eps,
        antialias=kind == "dinov2_with_registers",
        mean=CLIP_MEAN if clip else ViTConfig.mean,
        std=CLIP_STD if clip else ViTConfig.std,
    )


def _pixels(size: int | Sequence[int]) -> int:
    """Return the side of a square given as a number or a pair."""
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise UserError(f"model: pictures or patches of {size} pixels are not square")
    return int(size[0])


def to_transformers(model: VisionTransformer) -> PreTrainedModel:
    """Return a `transformers` model with our weights, of the kind that has our parts.

    Raises:
        UserError: none of the four kinds has them: rotary positions, a final norm of another kind.
    """
    import transformers

    kind = their_kind(model.config)
    theirs: PreTrainedModel = getattr(transformers, KINDS[kind])(their_config(kind, model.config)).eval()
    fill(theirs, model)
    return theirs


@torch.no_grad()
def fill(theirs: nn.Module, model: VisionTransformer) -> None:
    """Give a `transformers` model of the same parts our weights."""
    state = model.state_dict()
    shapes = theirs.state_dict().items()
    theirs.load_state_dict({name: _part(our_name(name), tensor, state, model.config) for name, tensor in shapes})


def _part(name: str, theirs: Tensor, state: Mapping[str, Tensor], config: ViTConfig) -> Tensor:
    """Return our weight in the shape of theirs."""
    name, _, part = name.partition("/")
    if name not in state:  # parts that do nothing: a unit LayerScale, a mask token that is never used
        return torch.ones_like(theirs) if ".scale" in name else torch.zeros_like(theirs)
    ours = state[name]
    if name == "positions" and config.class_token:
        ours = torch.cat([torch.zeros(1, 1, config.width), ours.cpu()], dim=1)
    if part:
        ours = ours.chunk(len(ours) // len(theirs))[int(part)]
    return ours.detach().cpu().reshape(theirs.shape).clone()


def their_kind(config: ViTConfig) -> str:
    """Return the model_type of `transformers` that has these parts; raises UserError for none."""
    fitting: list[tuple[str, Callable[[], bool]]] = [
        ("clip_vision_model", lambda: config.pre_norm and config.class_token and not config.patch_bias),
        ("ijepa", lambda: not (config.class_token or config.pre_norm or config.layer_scale) and config.mlp == "gelu"),
        ("dinov2", lambda: config.class_token and not config.pre_norm and config.mlp != "quick_gelu"),
    ]
    kind = next((kind for kind, fits in fitting if fits()), "")
    if not kind or config.pos_embed == "rotary" or config.stem == "conv" or (config.registers and kind != "dinov2"):
        raise UserError(
            "export: transformers has no model with these parts; DINOv2 (class token), I-JEPA (no class token, no "
            "LayerScale) and CLIP (pre_norm) with a patch stem and learned or sincos positions can be written"
        )
    return "dinov2_with_registers" if config.registers else kind


def their_config(kind: str, config: ViTConfig) -> PreTrainedConfig:
    """Return the configuration of a model_type with our sizes."""
    from transformers import AutoConfig

    settings: dict[str, object] = {
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "layer_norm_eps": config.norm_eps,
        "architectures": [KINDS[kind]],
    }
    if kind.startswith("dinov2"):
        if config.mlp_ratio != int(config.mlp_ratio):
            raise UserError(
                f"export: mlp_ratio is {config.mlp_ratio}; that of DINOv2 in transformers is a whole number"
            )
        settings |= {"mlp_ratio": int(config.mlp_ratio), "layerscale_value": config.layer_scale or 1.0}
        settings |= {"use_swiglu_ffn": config.mlp == "swiglu"}
        settings |= {"num_register_tokens": config.registers} if config.registers else {}
    else:
        settings |= {"intermediate_size": int(config.mlp_ratio * config.width), "hidden_act": config.mlp}
    return AutoConfig.for_model(kind, **settings)
