"""hf:ID_OR_PATH: a vision model of `transformers`, from the Hub or from a folder.

Options: pool (features, cls, pooler, mean), dtype (float32, bfloat16, float16), batch, revision. Weights are read from
safetensors only and no code of the repository is run. Pictures go through the model's own image processor in its
Pillow version, so no torchvision is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from granary.curation.encoders.choice import has_whole
from granary.curation.encoders.inference import (
    UNLOADABLE,
    fingerprint,
    finite_unit_rows,
    probed_dimension,
    reason,
    torch_device,
    workable,
)
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLASS_TOKEN = {"vit", "deit", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_mae", "vit_msn"}
NO_CLASS_TOKEN = {"ijepa", "siglip_vision_model", "siglip2_vision_model"}
# DINOv3's processor exists for torchvision only; it resizes, rescales and normalises, as ViT's for Pillow does.
VIT_ALIKE = {"DINOv3ViTImageProcessor", "DINOv3ViTImageProcessorFast"}


class ImageProcessor(Protocol):
    """What all image processors of `transformers` have."""

    size: Mapping[str, int]

    def __call__(self, images: Sequence[Image.Image], *, return_tensors: str) -> BatchFeature:
        """Return pixel_values (n, 3, h, w)."""
        ...

    def to_json_string(self) -> str:
        """Return every setting."""
        ...


class HuggingFaceEncoder:
    """An encoder from `transformers`; a row agrees to 1e-5 whatever its batch (float32).

    Attributes:
        pool: how tokens become a vector. features: projected image features (CLIP, SigLIP); cls: final class token;
            pooler: the model's pooled output; mean: mean of the patch tokens. Without the option: features where the
            model has them, cls for DINOv2, DINOv3, ViT and similar models, mean for I-JEPA, else pooler.
    """

    squeezes = False
    copy_threshold = 0.6
    leak_threshold = 0.45

    def __init__(self, spec: EncoderSpec, device: str = "auto") -> None:
        """Load processor and model; raises UserError when the path, an option or the weights are wrong."""
        spec.check_options("pool", "dtype", "batch", "revision")
        self.name = spec.text
        self.batch = spec.positive("batch", 64)
        dtype = spec.choice("dtype", "float32", *DTYPES)
        self.device = torch_device(device)
        revision = spec.options.get("revision", "main")
        folder = os.path.expanduser(spec.target)
        _check_folder(spec, folder)
        source = folder if os.path.isdir(folder) else spec.target
        try:
            local = has_whole(source, revision)
            # tells whether the Hub answers
            AutoConfig.from_pretrained(source, revision=revision, local_files_only=local, trust_remote_code=False)
            self.processor = _image_processor(source, revision, local)
            model, report = AutoModel.from_pretrained(
                source,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                output_loading_info=True,
                revision=revision,
                local_files_only=local,
                adapter_kwargs={"local_files_only": local},
                trust_remote_code=False,
            )
        except UNLOADABLE as error:
            raise UserError(
                f"encoder '{spec.text}': no vision model with safetensors weights and an image processor could be "
                f"loaded ({reason(error)}); give a folder or a Hub id that has them"
            ) from error
        self.model = model.to(self.device).eval()
        self.pool = spec.choice("pool", _default_pool(model), "features", "cls", "pooler", "mean")
        self._check_weights(sorted(report["missing_keys"]))
        self.side = _short_side(self.processor.size)
        commit = getattr(model.config, "_commit_hash", None)
        settings = self.processor.to_json_string()
        self.fingerprint = fingerprint(_weight_files(source), "hf-1", self.pool, dtype, commit, settings)
        self.dimension = probed_dimension(self.name, self._vectors)

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, dimension) float32 unit rows for n RGB pictures."""
        rows = [self._vectors(images[i : i + self.batch]) for i in range(0, len(images), self.batch)]
        return np.concatenate(rows) if rows else np.empty((0, self.dimension), np.float32)

    @torch.inference_mode()
    def _vectors(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed one batch."""
        inputs = self.processor([workable(image) for image in images], return_tensors="pt")
        inputs = inputs.to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return finite_unit_rows(self._pooled(inputs))

    def _pooled(self, inputs: BatchFeature) -> torch.Tensor:
        """Return (n, d) vectors."""
        if self.pool == "features":
            features = self.model.get_image_features(**inputs)
            return features if isinstance(features, torch.Tensor) else features.pooler_output
        vision = getattr(self.model, "vision_model", self.model)
        output = vision(**inputs)
        if self.pool == "pooler":
            return output.pooler_output.flatten(1)  # convolutional models: (n, d, 1, 1)
        tokens = output.last_hidden_state
        if tokens.ndim == 4:  # convolutional: (n, d, h, w)
            return tokens.mean(dim=(2, 3))
        first = _prefix_tokens(vision.config)
        return tokens[:, 0] if self.pool == "cls" else tokens[:, first:].mean(dim=1)

    def _check_weights(self, missing: list[str]) -> None:
        """Raise UserError when the vector would come from weights the file lacks and torch drew at random."""
        if self.pool == "features" and not hasattr(self.model, "get_image_features"):
            raise UserError(f"encoder '{self.name}' has no projected image features; use pool=cls, pooler or mean")
        needed = [key for key in missing if self.pool == "pooler" or "pooler" not in key]
        if needed:
            raise UserError(f"encoder '{self.name}': the file lacks weights that pool={self.pool} needs: {needed[0]}")
        vision = getattr(self.model, "vision_model", self.model)
        if self.pool == "cls" and vision.config.model_type in NO_CLASS_TOKEN:
            raise UserError(f"encoder '{self.name}' has no class token; use pool=mean or pool=pooler")


def _check_folder(spec: EncoderSpec, folder: str) -> None:
    """Raise UserError for what can only be a path when no folder stands there."""
    is_path = folder.startswith((".", "/", "\\")) or folder.count("/") > 1
    if is_path and not os.path.isdir(folder):
        raise UserError(f"encoder '{spec.text}': there is no folder '{folder}'; give a model folder or a Hub id")


def _image_processor(source: str, revision: str, local: bool) -> ImageProcessor:
    """Load the image processor in its Pillow version.

    Args:
        local: whether from the cache alone.
    """
    where = {"revision": revision, "local_files_only": local}
    settings, _ = ViTImageProcessorPil.get_image_processor_dict(source, **where)
    if settings.get("image_processor_type") in VIT_ALIKE:
        return cast(ImageProcessor, ViTImageProcessorPil.from_dict(settings))
    processor = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False, **where)
    return cast(ImageProcessor, processor)


def _default_pool(model: PreTrainedModel) -> str:
    """Choose the pooling that the model's authors evaluate with."""
    if hasattr(model, "get_image_features"):
        return "features"
    if model.config.model_type in CLASS_TOKEN:
        return "cls"
    return "mean" if model.config.model_type == "ijepa" else "pooler"


def _prefix_tokens(config: PreTrainedConfig) -> int:
    """Return how many class and register tokens stand before the patch tokens."""
    has_class = config.model_type not in NO_CLASS_TOKEN
    return int(has_class) + int(getattr(config, "num_register_tokens", 0) or 0)


def _short_side(size: Mapping[str, int]) -> int | None:
    """Return the short side in pixels that the processor resizes to."""
    sides = [size[key] for key in ("shortest_edge", "height", "width") if size.get(key)]
    return min(sides) if sides else None


def _weight_files(source: str) -> list[str]:
    """Return a folder's safetensors and settings; none for a Hub id, whose commit tells the content."""
    if not os.path.isdir(source):
        return []
    names = sorted(name for name in os.listdir(source) if name.endswith((".safetensors", "config.json")))
    return [os.path.join(source, name) for name in names]
