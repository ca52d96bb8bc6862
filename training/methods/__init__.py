"""Methods: one paper, one file, and one line in `METHODS`. What a method is says `granary.training.method`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the recipe is read, and --help printed, without torch
    from granary.training.method import Method

METHODS = {  # name in a recipe -> module:class
    "ijepa": "granary.training.methods.ijepa:IJEPA",
    "stop": "granary.training.methods.stop:StoP",
    "iwm": "granary.training.methods.iwm:IWM",
    "predictor_tuning": "granary.training.methods.predictor_tuning:PredictorTuning",
    "moco": "granary.training.methods.moco:MoCo",
    "moco_v3": "granary.training.methods.moco:MoCoV3",
    "byol": "granary.training.methods.byol:BYOL",
    "simsiam": "granary.training.methods.simsiam:SimSiam",
    "nnclr": "granary.training.methods.nnclr:NNCLR",
    "clip": "granary.training.methods.clip:CLIP",
    "clip_kd": "granary.training.methods.clip_kd:ClipKD",
    "siglip": "granary.training.methods.clip:SigLIP",
    "llip": "granary.training.methods.llip:Llip",
    "coca": "granary.training.methods.coca:CoCa",
    "flava": "granary.training.methods.flava:Flava",
    "llava": "granary.training.methods.llava:Llava",
    "generator_lora": "granary.training.methods.generator_lora:GeneratorLora",
    "longvu": "granary.training.methods.longvu:LongVU",
    "vedit": "granary.training.methods.vedit:Vedit",
    "vistallm": "granary.training.methods.vistallm:VistaLLM",
    "dinov2": "granary.training.methods.dinov2:DINOv2",
    "simclr": "granary.training.methods.simclr:SimCLR",
    "mae": "granary.training.methods.mae:MAE",
    "barlow": "granary.training.methods.barlow:BarlowTwins",
    "vicreg": "granary.training.methods.vicreg:VICReg",
    "simmim": "granary.training.methods.simmim:SimMIM",
    "swav": "granary.training.methods.swav:SwAV",
    "msn": "granary.training.methods.msn:MSN",
    "wmse": "granary.training.methods.wmse:WMSE",
    "beit": "granary.training.methods.beit:BEiT",
    "rob": "granary.training.methods.rob:RoB",
    "simreg": "granary.training.methods.simreg:SimReg",
    "rcdm": "granary.training.methods.rcdm:RCDM",
    "dci_lora": "granary.training.methods.dci_lora:DciLora",
    "xrm": "granary.training.methods.xrm:XRM",
    "supervised": "granary.training.methods.supervised:Supervised",
}


def load_method(name: str) -> type[Method]:
    """Return the class of a method by its name in a recipe. Raises KeyError."""
    module, _, attribute = METHODS[name].partition(":")
    method: type[Method] = getattr(importlib.import_module(module), attribute)
    return method
