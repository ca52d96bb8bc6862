"""Encoders: from upright RGB pictures to unit vectors, behind one interface.

An encoder is written `KIND:WHAT`, options after a question mark:

    builtin:copy                copy detection without weights
    builtin:layout              retrieval by layout, colour and texture without weights
    hf:ID_OR_PATH?pool=cls      a vision model of `transformers` (options: pool, dtype, batch, revision)
    torchscript:PATH?resize=..  a TorchScript copy-detection descriptor such as SSCD (options: resize, batch)
    granary:PATH?pool=mean      a model trained with `granary train` (options: pool, batch)

The last kind is loaded by what stands above this package: whoever knows such a kind hands in where its loader is.
Deduplication and retrieval each have their own encoder; their spaces are never mixed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError

__all__ = ["LOADERS", "Encoder", "load_encoder"]

LOADERS = {  # what loads each kind, imported when one is asked for: weights need more packages than pictures
    "builtin": "granary.curation.encoders.builtin:load_builtin",
    "hf": "granary.curation.encoders.huggingface:HuggingFaceEncoder",
    "torchscript": "granary.curation.encoders.torchscript:TorchScriptEncoder",
}


class Encoder(Protocol):
    """What every encoder offers.

    Attributes:
        name: the spec as written, for example "builtin:copy".
        dimension: length of a vector.
        fingerprint: SHA-256 (hex) over all that decides the output: kind, formula, weights, preprocessing.
        side: pixels of the short side the encoder looks at; decoding may scale down to it, not below. None: any.
        squeezes: whether all it looks at of a picture is a copy squeezed to side x side pixels, see `squeezed`.
        copy_threshold: cosine above which two pictures count as the same picture.
        leak_threshold: the looser cosine above which a pool picture counts as leaked from a reference.
    """

    name: str
    dimension: int
    fingerprint: str
    side: int | None
    squeezes: bool
    copy_threshold: float
    leak_threshold: float

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, dimension) float32 unit rows, finite, for n RGB pictures of any size.

        A row depends on its picture only, not on the others of the call.
        """
        ...


Loader = Callable[[EncoderSpec, str], Encoder]


def load_encoder(spec: str, device: str = "auto", loader: str = "") -> Encoder:
    """Load the encoder that a spec names.

    Args:
        spec: "KIND:WHAT" or "KIND:WHAT?option=value&option=value".
        device: "auto" (CUDA when there is one, else CPU) or a torch device such as "cpu", "cuda:1".
        loader: "module:name" of what loads a kind that is not in LOADERS; imported only for such a kind.

    Raises:
        UserError: the kind, the path, an option or the device is wrong.
    """
    parsed = EncoderSpec.parse(spec)
    where = LOADERS.get(parsed.kind, loader)
    if not where:
        raise UserError(
            f"encoder '{spec}' is of no known kind; write builtin:copy, builtin:layout, hf:ID_OR_PATH, "
            "torchscript:PATH or granary:PATH"
        )
    module, _, name = where.partition(":")
    load: Loader = getattr(importlib.import_module(module), name)
    return load(parsed, device)
