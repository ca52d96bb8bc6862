"""Tiny pipelines and classifiers with random weights, made by the tests that use them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline
from granary.training.models.classifier import Classifier, ClassifierConfig

CLASSES = ["cat", "dog", "owl"]


def ddim(prediction: str = "epsilon", **changes: Any) -> DDIMScheduler:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    settings |= {"prediction_type": prediction, "steps_offset": 1}
    return DDIMScheduler(**{**settings, **changes})


def vae(**changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
        **changes,
    )


def conditional_unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **changes})


def tokenizer() -> transformers.CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase, *(c + "</w>" for c in string.ascii_lowercase)]
    return transformers.CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=12)


def text_encoder() -> transformers.CLIPTextModel:
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(config)


def text_to_image() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae(), text_encoder(), tokenizer(), conditional_unet(), ddim(), None, None, requires_safety_checker=False
    )


def pooled_text_encoder() -> transformers.CLIPTextModelWithProjection:
    config = text_encoder().config
    config.projection_dim = 16
    return transformers.CLIPTextModelWithProjection(config)


def xl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    unet = conditional_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    texts, tokens = (text_encoder(), pooled_text_encoder()), (tokenizer(), tokenizer())
    return StableDiffusionXLPipeline(vae(), *texts, *tokens, unet, ddim(), add_watermarker=False)


def sd3() -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    texts = (pooled_text_encoder(), tokenizer(), pooled_text_encoder(), tokenizer(), None, None)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(transformer, scheduler, vae(shift_factor=0.1, scaling_factor=1.5), *texts)


def t5_encoder() -> transformers.T5EncoderModel:
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def t5_tokenizer() -> transformers.T5Tokenizer:
    words = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -1.0),
        *((c, -2.0) for c in string.ascii_lowercase),
    ]
    return transformers.T5Tokenizer(vocab=words, extra_ids=0, model_max_length=12)


def flux() -> FluxPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
        guidance_embeds=True,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    texts = (text_encoder(), tokenizer(), t5_encoder(), t5_tokenizer())
    pipe = FluxPipeline(scheduler, vae(shift_factor=0.1, scaling_factor=1.5), *texts, transformer)
    pipe.default_sample_size = 8  # it is 128 for every Flux; the tests set it again after loading
    return pipe


def unclip() -> StableUnCLIPImg2ImgPipeline:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    size = {"shortest_edge": 16}
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessorPil(size=size, crop_size={"height": 16, "width": 16}),
        image_encoder=transformers.CLIPVisionModelWithProjection(config),
        image_normalizer=StableUnCLIPImageNormalizer(12),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        unet=conditional_unet(class_embed_type="projection", projection_class_embeddings_input_dim=24),
        scheduler=ddim("v_prediction"),
        vae=vae(),
    )


def dit() -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    for parameter in transformer.parameters():  # DiT starts as zero: without this nothing depends on the class
        torch.nn.init.normal_(parameter, std=0.2)
    return DiTPipeline(transformer, vae(), ddim(), {i: name for i, name in enumerate(CLASSES)})


def pixel_unet(classes: int | None, channels: int = 3) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=classes,
    )


def unconditional() -> DDPMPipeline:
    torch.manual_seed(0)
    return DDPMPipeline(pixel_unet(None), ddim(clip_sample=True))


def unconditional_ddim() -> DDIMPipeline:
    torch.manual_seed(0)
    return DDIMPipeline(pixel_unet(None), ddim(clip_sample=True))


def classes_in_pixels() -> ClassConditionalPipeline:
    torch.manual_seed(0)
    names = {str(i): name for i, name in enumerate(CLASSES)}
    return ClassConditionalPipeline(pixel_unet(4, channels=1), ddim(clip_sample=True), names)


FAMILIES = {
    "text": text_to_image,
    "xl": xl,
    "sd3": sd3,
    "flux": flux,
    "unclip": unclip,
    "dit": dit,
    "ddpm": unconditional,
    "ddim": unconditional_ddim,
    "classes": classes_in_pixels,
}


def save(name: str, folder: Path) -> str:
    """Save one of FAMILIES."""
    FAMILIES[name]().save_pretrained(folder, safe_serialization=True)
    if name == "dit":  # the published DiTs name their classes here, save_pretrained does not
        index = folder / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": dict(enumerate(CLASSES))}))
    return str(folder)


def save_vit(folder: Path, classes: list[str] = CLASSES, sharp: float = 40.0) -> str:
    """A ViT classifier with its image processor; `sharp` scales its last layer so that it has opinions."""
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    model = transformers.ViTForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=0.02 * sharp)
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


def save_net(folder: Path) -> str:
    """A small convolutional classifier of granary's own with random weights."""
    torch.manual_seed(0)
    Classifier(ClassifierConfig(tuple(CLASSES), img_size=8, width=8)).save(str(folder))
    return f"granary:{folder}"
