"""The evaluation protocols by name; only those asked for are imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the recipe is read, and --help printed, without torch
    from granary.training.evaluation.protocol import AnyProtocol

PROTOCOLS = {  # name on the command line -> module, which has a PROTOCOL
    "sdci": "granary.training.evaluation.protocols.sdci",
    "binary-choice": "granary.training.evaluation.protocols.binary_choice",
    "zero-shot": "granary.training.evaluation.protocols.zeroshot",
    "retrieval": "granary.training.evaluation.protocols.retrieval",
    "referring": "granary.training.evaluation.protocols.referring",
    "cosegmentation": "granary.training.evaluation.protocols.cosegmentation",
    "knn": "granary.training.evaluation.protocols.knn",
    "linear": "granary.training.evaluation.protocols.linear",
    "few-shot": "granary.training.evaluation.protocols.fewshot",
    "features": "granary.training.evaluation.protocols.statistics",
    "sparsity": "granary.training.evaluation.protocols.sparsity",
    "layers": "granary.training.evaluation.protocols.layers",
    "spread": "granary.training.evaluation.protocols.spread",
    "position": "granary.training.evaluation.protocols.position",
    "invariance": "granary.training.evaluation.protocols.invariance",
    "attention": "granary.training.evaluation.protocols.attention",
    "attentive": "granary.training.evaluation.protocols.attentive",
    "fine-tune": "granary.training.evaluation.protocols.finetune",
    "mrr": "granary.training.evaluation.protocols.mrr",
    "classifier": "granary.training.evaluation.protocols.classifier",
    "dejavu": "granary.training.evaluation.protocols.dejavu",
    "reconstruction": "granary.training.evaluation.protocols.reconstruction",
    "caption-dejavu": "granary.training.evaluation.protocols.caption_dejavu",
    "factors": "granary.training.evaluation.protocols.by_factor",
    "groups": "granary.training.evaluation.protocols.groups",
    "winoground": "granary.training.evaluation.protocols.winoground",
    "order": "granary.training.evaluation.protocols.order",
    "pope": "granary.training.evaluation.protocols.pope",
    "clipscore": "granary.training.evaluation.protocols.clipscore",
    "bias": "granary.training.evaluation.protocols.bias",
    "captioning": "granary.training.evaluation.protocols.captioning",
    "hallucination": "granary.training.evaluation.protocols.hallucination",
    "vqa": "granary.training.evaluation.protocols.vqa",
    "selective": "granary.training.evaluation.protocols.selective",
    "blind": "granary.training.evaluation.protocols.blind",
    "video-vqa": "granary.training.evaluation.protocols.video_vqa",
    "procedures": "granary.training.evaluation.protocols.procedures",
    "video-segmentation": "granary.training.evaluation.protocols.segmentation",
}


def load_protocol(name: str, known: Mapping[str, str] = PROTOCOLS) -> AnyProtocol:
    """Return a protocol by its name among those known; its options are of its own type. Raises KeyError."""
    protocol: AnyProtocol = importlib.import_module(known[name]).PROTOCOL
    return protocol
