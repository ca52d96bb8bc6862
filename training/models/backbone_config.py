"""The architectures that a model can have, told apart by `kind`, and the config.json that holds one.

Read without torch. Of every architecture: `kind`, `img_size`, `width` (D, of the output vector), `patch_size` (pixels
from one place of the output map to the next), `grid`, `class_token`, `mean`, `std`.
"""

from __future__ import annotations

import json
from dataclasses import fields

from pydantic import TypeAdapter, ValidationError

from granary.curation.store import storage
from granary.training.models.hub_config import HubConfig
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit_config import FORMER, ViTConfig

BackboneConfig = ViTConfig | ResNetConfig | HubConfig
CONFIGS: dict[str, type[BackboneConfig]] = {"vit": ViTConfig, "resnet": ResNetConfig, "hub": HubConfig}


def read_config(folder: str) -> BackboneConfig:
    """Read config.json; without a `kind` it is that of a Vision Transformer.

    Raises:
        OSError, ValueError, TypeError: it is not one of ours.
    """
    return config_of(json.loads(storage.read_bytes(storage.join(folder, "config.json"))))


def config_of(tree: object) -> BackboneConfig:
    """Return the architecture that the tree of a config.json says; raises as `read_config`."""
    if not isinstance(tree, dict):
        raise ValueError(f"config.json is not a granary model's: it holds a {type(tree).__name__}")
    kind = tree.get("kind", "vit")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise ValueError(f"config.json is not a granary model's: its kind is {kind!r}, not one of {', '.join(CONFIGS)}")
    former = FORMER if kind == "vit" else {}
    given = {former.get(str(name), str(name)): value for name, value in tree.items()}
    unknown = sorted(given.keys() - {field.name for field in fields(CONFIGS[kind])})
    if unknown:
        raise ValueError(f"config.json is not a granary model's: it has the key {unknown[0]!r}")
    try:
        return TypeAdapter(CONFIGS[kind]).validate_json(json.dumps(given))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(["config.json", *(str(part) for part in problem["loc"])])
        raise ValueError(f"{place} is not right: {problem['msg'].removeprefix('Value error, ')}") from error
