"""Any model of `transformers` that scores an image against a text by two encoders: CLIP, SigLIP and models like them.

Shapes: B images, T texts, D dimensions of the shared space. Vectors have unit length;
logits = exp(scale) * image . text + bias, where bias is 0 for CLIP.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from joblib import cpu_count
from PIL import Image
from torch import Tensor

from granary.curation.encoders.inference import UNLOADABLE, reason, torch_device, workable
from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.training.models.hub_files import files_of, folder_of
from granary.training.models.pair_scores import own_products, products
from granary.training.models.registry import read_name

if TYPE_CHECKING:  # takes seconds to import
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutputWithPooling

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PADDED = ("siglip", "siglip2")  # trained on texts padded to the whole context, without an attention mask
THREADS = min(8, int(cpu_count()))
ENDLESS = 1_000_000  # transformers writes 1e30 where a tokenizer states no length


class ClipModel:
    """A dual encoder with its tokenizer and image processor.

    Args:
        model: with get_image_features, get_text_features and logit_scale.
        tokenizer: of `transformers`.
        processor: image processor, in its Pillow version.
        name: for messages.

    Attributes:
        context: tokens of a text at most; texts beyond it are truncated.
        truncated: texts truncated so far.
    """

    def __init__(
        self,
        model: Any,  # there is no type of what CLIP and SigLIP have alike
        tokenizer: PreTrainedTokenizerBase,
        processor: BaseImageProcessor,
        name: str = "model",
    ) -> None:
        self.model, self.tokenizer, self.processor, self.name = model, tokenizer, processor, name
        self.context = context_of(model, tokenizer)
        self.truncated = 0

    @classmethod
    def load(cls, source: str, device: str = "auto", dtype: str = "float32") -> ClipModel:
        """Read a model from a folder, a folder that holds one as `model/`, or the Hub.

        Weights come from safetensors only and no code of a repository is run.

        Raises:
            UserError: where no such model can be loaded.
        """
        folder = model_folder(source)
        where, dtypes = {"trust_remote_code": False}, sorted(DTYPES)
        if dtype not in DTYPES:
            raise UserError(f"dtype: {dtype!r} is not right; the types are {', '.join(dtypes)}")
        place = torch_device(device)
        from transformers import AutoModel, AutoTokenizer

        try:
            processor = load_processor(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **where)
            model, report = AutoModel.from_pretrained(
                folder, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True, **where
            )
        except UNLOADABLE as error:
            raise UserError(
                f"model: {source!r} holds no CLIP-style model with safetensors weights, tokenizer and image processor "
                f"({reason(error)}); give a folder saved by transformers or a Hub id"
            ) from error
        check_model(source, model, report["missing_keys"])
        return cls(model.to(place).eval(), tokenizer, processor, source)

    def save(self, folder: str) -> None:
        """Write weights (safetensors), configuration, tokenizer and image processor into a local folder."""
        for part in (self.model, self.tokenizer, self.processor):
            part.save_pretrained(folder)

    def files(self) -> dict[str, str]:
        """Return configuration, tokenizer and image processor by file name: all but the weights."""
        return files_of(self.model.config, self.tokenizer, self.processor)

    @classmethod
    def of_files(cls, files: Mapping[str, str]) -> ClipModel:
        """Return the model that `files` describes, with initial weights. Raises UserError where it is none."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        with folder_of(files) as folder:
            try:
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                model, processor = AutoModel.from_config(config, trust_remote_code=False), load_processor(folder)
            except UNLOADABLE as error:
                raise UserError(f"model: what is noted of its CLIP cannot be read ({reason(error)})") from error
        check_model("the CLIP of a training", model, [])
        return cls(model, tokenizer, processor)

    @property
    def side(self) -> int:
        """Pixels of the square that the image encoder sees."""
        return int(self.model.config.vision_config.image_size)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that pictures in 0..1 are normalised by."""
        processor: Any = self.processor  # there is no type of what the processors of CLIP and SigLIP have alike
        return tuple(processor.image_mean), tuple(processor.image_std)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return RGB pictures resized, cut and normalised as the model wants them: (B, 3, h, w) on the CPU."""
        return self.processor([workable(image, aspect=16) for image in images], return_tensors="pt")["pixel_values"]

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of the text encoder, (T, length) each, and count the texts cut to the context."""
        words, padded = list(texts), self.model.config.model_type in PADDED
        whole = self.tokenizer(words, truncation=False, verbose=False)["input_ids"]
        self.truncated += sum(len(ids) > self.context for ids in whole)
        inputs = self.tokenizer(
            words,
            truncation=True,
            max_length=self.context,
            padding="max_length" if padded else "longest",
            return_attention_mask=not padded,
            return_tensors="pt",
        )
        return dict(inputs)

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open and prepare pictures on threads; as many as threads are in memory at full size.

        Returns:
            (3, h, w) for each picture, None for one that raises DecodeError.
        """

        def prepare(picture: Callable[[], Image.Image]) -> Tensor | None:
            try:
                return self.pixels([picture()])[0]
            except DecodeError:
                return None

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(prepare, pictures))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return (B, D) unit rows, float32, for what `pixels` gave."""
        weights = next(self.model.parameters())
        return unit_rows(self.model.get_image_features(pixel_values=pixels.to(weights.device, weights.dtype)))

    def encode_tokens(self, tokens: dict[str, Tensor]) -> Tensor:
        """Return (T, D) unit rows, float32, for what `tokens` gave."""
        return unit_rows(self.model.get_text_features(**{key: ids.to(self.device) for key, ids in tokens.items()}))

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """Return (B, D) unit rows for prepared pictures (B, 3, h, w), without gradients."""
        return self.encode_pixels(pixels)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Return (T, D) unit rows for texts, `batch` at a time, without gradients."""
        parts = [self.encode_tokens(self.tokens(texts[at : at + batch])) for at in range(0, len(texts), batch)]
        return torch.cat(parts)

    @torch.inference_mode()
    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return (B, T) logits of (B, D) against (T, D) unit rows; raises UserError where one is not finite."""
        return self._finite(self.scaled(products(images, texts)))

    @torch.inference_mode()
    def own_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the logits of images against texts of their own; equal texts tie exactly.

        Args:
            images: (B, D) unit rows.
            texts: (B, N, D) unit rows.

        Returns:
            (B, N).

        Raises:
            UserError: a logit is not finite.
        """
        return self._finite(self.scaled(own_products(images, texts)))

    def scaled(self, cosines: Tensor) -> Tensor:
        """Return logits for cosines: exp(scale) * cosine + bias."""
        bias = getattr(self.model, "logit_bias", None)
        logits = cosines * self.model.logit_scale.float().exp()
        return logits if bias is None else logits + bias.float()

    def _finite(self, logits: Tensor) -> Tensor:
        if not torch.isfinite(logits).all():
            raise UserError(f"model: {self.name!r} gives logits that are not finite; check its weights, or the dtype")
        return logits


def load_processor(source: str) -> BaseImageProcessor:
    """Return the image processor of a folder or of the Hub, in its Pillow version."""
    from transformers import AutoImageProcessor

    folder = model_folder(source)
    processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    return processor


def unit_rows(output: Tensor | BaseModelOutputWithPooling) -> Tensor:
    """Return features, or the pooled output that holds them, as float32 rows of length 1."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    assert features is not None
    return F.normalize(features.float(), dim=-1)


def context_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a text may have: what both the positions of the model and the tokenizer allow."""
    config = model.config.text_config if hasattr(model.config, "text_config") else model.config
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return int(min(limit for limit in limits if limit and limit < ENDLESS))


def model_folder(source: str) -> str:
    """Return the folder of the weights where `source` is one, or was written by a fine-tuning; else a Hub id."""
    name = read_name(source)
    if name.way not in ("path", "hub"):
        raise UserError(
            f"model: {source!r} scores no image against a text; give a folder saved by transformers or a Hub id"
        )
    folder = os.path.expanduser(name.target)
    inner = os.path.join(folder, "model")
    if os.path.isfile(os.path.join(inner, "config.json")):
        return inner
    is_path = folder.startswith((".", "/", "\\")) or folder.count("/") > 1
    if is_path and not os.path.isdir(folder):
        raise UserError(f"model: there is no folder {source!r}; give a folder saved by transformers or a Hub id")
    return folder


def check_model(source: str, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Raise UserError for a model that does not score images against texts, or lacks weights."""
    needed = ("get_image_features", "get_text_features", "logit_scale")
    if not all(hasattr(model, name) for name in needed):
        kind = model.config.model_type
        raise UserError(f"model: {source!r} is a {kind}, which scores no image against a text; give a CLIP or SigLIP")
    if missing:
        raise UserError(f"model: {source!r} lacks weights, for example {min(missing)}; give a complete model")
