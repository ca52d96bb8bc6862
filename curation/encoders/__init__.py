"""Encoders: from upright RGB pictures to unit vectors, behind one interface.

An encoder is written `KIND:WHAT`, options after a question mark:

    builtin:copy                copy detection without weights
    builtin:layout              retrieval by layout, colour and texture without weights
    hf:ID_OR_PATH?pool=cls      a vision model of `transformers` (options: pool, dtype, batch, revision)
    torchscript:PATH?resize=..  a TorchScript copy-detection descriptor such as SSCD (options: resize, batch)
    granary:PATH?pool=mean      a model trained with `training/` (options: pool, batch)

Deduplication and retrieval each have their own encoder; their spaces are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError

__all__ = ["Encoder", "load_encoder"]


class Encoder(Protocol):
    """What every encoder offers.

    name: the spec as written, for example "builtin:copy".
    dimension: length of a vector.
    fingerprint: sha256 (hex) over all that decides the output: kind, formula, weights, preprocessing.
    side: pixels of the short side the encoder looks at; decoding may scale down to it, not below. None: any.
    copy_threshold: cosine above which two pictures count as the same picture.
    leak_threshold: the looser cosine above which a pool picture counts as leaked from a reference.
    """

    name: str
    dimension: int
    fingerprint: str
    side: int | None
    copy_threshold: float
    leak_threshold: float

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, dimension) float32 unit rows, finite, for n RGB pictures of any size.

        A row depends on its picture only, not on the others of the call.
        """
        ...


def load_encoder(spec: str, device: str = "auto") -> Encoder:
    """Load the encoder that `spec` names.

    spec: "KIND:WHAT" or "KIND:WHAT?option=value&option=value".
    device: "auto" (CUDA when there is one, else CPU) or a torch device such as "cpu", "cuda:1".

    Raises UserError when the kind, the path, an option or the device is wrong.
    """
    parsed = EncoderSpec.parse(spec)
    if parsed.kind == "builtin":
        return _load_builtin(parsed)
    if parsed.kind == "hf":
        from granary.curation.encoders.huggingface import HuggingFaceEncoder

        return HuggingFaceEncoder(parsed, device)
    if parsed.kind == "torchscript":
        from granary.curation.encoders.torchscript import TorchScriptEncoder

        return TorchScriptEncoder(parsed, device)
    if parsed.kind == "granary":
        from granary.training.models.encoder import TrainedEncoder

        return TrainedEncoder(parsed, device)
    raise UserError(
        f"encoder '{spec}' is of no known kind; write builtin:copy, builtin:layout, hf:ID_OR_PATH, "
        "torchscript:PATH or granary:PATH"
    )


def _load_builtin(spec: EncoderSpec) -> Encoder:
    """Return one of the two encoders that need no weights."""
    from granary.curation.encoders.copy_descriptor import CopyDescriptor
    from granary.curation.encoders.layout_descriptor import LayoutDescriptor

    spec.check_options()
    if spec.target == "copy":
        return CopyDescriptor()
    if spec.target == "layout":
        return LayoutDescriptor()
    raise UserError(f"encoder '{spec.text}' is not built in; write builtin:copy or builtin:layout")
