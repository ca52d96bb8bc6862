"""Models of `transformers` of other families as backbones: MobileNet, ConvNeXt, Swin, RegNet, EfficientNet, ...

Any that `AutoModel` reads, that takes pictures, and whose `last_hidden_state` is a map: (B, D, h, w), or (B, h * w, D)
by rows, a class token before it or not. The vector of a picture is its `pooler_output`; where there is none, its class
token, else the mean of the map. Weights are read from
safetensors alone, and no code of a repository is run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.models.backbone import Backbone, Tokens
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.hub_config import HubConfig
from granary.training.models.preparation import Preparation, read_preparation

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedModel

COUNTS = re.compile(r"depth|layer|block|repeat|stage")  # keys of a configuration that say how many modules there are
ELSEWHERE = ("auto_map", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")  # no sizes
LARGEST = 1 << 20  # of any number in it that a width, a picture or a window could be


class HubBackbone(Backbone):
    """A model of transformers: (B, 3, h, w) normalised pictures -> `Tokens`, without registers.

    It is one stage: its own layers have no outputs of one shape.
    """

    Config = HubConfig
    STAGES = "parts"
    config: HubConfig

    def __init__(self, config: HubConfig, model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        built: Any = model if model is not None else _built(their_config(config.architecture))
        self.parts = nn.ModuleList([built])

    @property
    def model(self) -> PreTrainedModel:
        """The model of transformers."""
        return cast("PreTrainedModel", self.parts[0])

    def forward(self, pixels: Tensor) -> Tokens:
        """Return the tokens.

        Args:
            pixels: (B, 3, h, w).
        """
        if self.recompute and not self.model.is_gradient_checkpointing:
            if not self.model.supports_gradient_checkpointing:
                raise UserError(f"device.recompute: a {self.model.config.model_type} model cannot be recomputed")
            self.model.gradient_checkpointing_enable()
        return _tokens(self.parts[0](pixel_values=pixels))

    def intermediate(self, pixels: Tensor, layers: Sequence[int]) -> list[Tokens]:
        """Return the tokens of its only stage for each of `layers`.

        Args:
            pixels: (B, 3, h, w).
            layers: which; only 0 is one.
        """
        return [self(pixels)] * len(layers)

    @classmethod
    def check_sizes(cls, config: BackboneConfig, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError where an architecture is not that of the weights, before memory is taken for it.

        Args:
            config: what config.json says.
            state: the weights by name.
        """
        assert isinstance(config, HubConfig)
        for key, number in _numbers(json.loads(config.architecture)):
            if number > (len(state) if COUNTS.search(key) else LARGEST):
                raise ValueError(f"config.json says that {key} is {number}, more than its weights have")
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
        wrong = next((name for name in shapes if name not in state or state[name].shape != shapes[name]), None)
        if wrong:
            raise ValueError(f"config.json makes {wrong} {tuple(shapes[wrong])}, the weights do not have that")


def _numbers(tree: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of a configuration with its key; those of a list have that of the list."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _numbers(value, str(name))
    elif isinstance(tree, list):
        for value in tree:
            yield from _numbers(value, key)
    elif isinstance(tree, int | float):
        yield key, tree


def _tokens(output: Any) -> Tokens:
    """Return vector and map of what a model gave."""
    patches: Tensor = output.last_hidden_state
    if patches.ndim == 4:
        patches = patches.flatten(2).transpose(1, 2)  # (B, h * w, D)
    first = int(_is_square(patches.shape[1] - 1) and not _is_square(patches.shape[1]))
    token, patches = patches[:, 0], patches[:, first:]
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        pooled = token if first else patches.mean(dim=1)
    return Tokens(pooled.flatten(1), patches[:, :0], patches)


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def load_hub(name: str) -> HubBackbone:
    """Return a model of transformers with its weights, in evaluation mode.

    Args:
        name: its id on the Hub or its folder.

    Raises:
        UserError: it takes no pictures, gives no map, or its file lacks weights.
    """
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(
        name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"model: hf:{name} has no weights for {missing[0]} and {len(missing) - 1} more of its parts")
    config = _described(model.config, read_preparation(name), name)
    return HubBackbone(config, model).eval()


@lru_cache(maxsize=16)
def hub_config(name: str, img_size: int) -> HubConfig:
    """Return the architecture of a model of transformers, without its weights.

    Args:
        name: its id on the Hub or its folder.
        img_size: pixels of the square picture.

    Raises:
        UserError: there is none, it takes no pictures, or gives no map.
    """
    from transformers import AutoConfig

    try:
        theirs = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {name!r} is not right: there is no such model of transformers") from error
    return _described(theirs, read_preparation(name)._replace(img_size=img_size), name)


def _described(theirs: PreTrainedConfig, preparation: Preparation, name: str) -> HubConfig:
    """Return the architecture that a configuration makes, its sizes measured on a picture without memory."""
    side, architecture = preparation.img_size, described_config(theirs)
    try:
        with torch.device("meta"), torch.no_grad():
            model = _built(their_config(architecture)).eval()
            if model.main_input_name != "pixel_values":
                raise ValueError(f"it takes {model.main_input_name}, not pictures")
            tokens = _tokens(model(pixel_values=torch.empty(1, 3, side, side)))
            if not _is_square(tokens.patches.shape[1]):
                raise ValueError(f"its last_hidden_state, {tokens.patches.shape[1]} tokens, is no map")
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"model: hf:{name}, a {theirs.model_type} model, is no backbone here: {error}") from error
    return HubConfig(
        architecture,
        width=tokens.cls.shape[1],
        grid=math.isqrt(tokens.patches.shape[1]),
        img_size=side,
        mean=preparation.mean,
        std=preparation.std,
    )


def described_config(config: PreTrainedConfig) -> str:
    """Return a configuration of transformers as JSON: its sizes, and not where it came from."""
    tree = {**config.to_diff_dict(), "model_type": config.model_type}
    return json.dumps({key: value for key, value in tree.items() if key not in ELSEWHERE}, sort_keys=True)


def their_config(architecture: str) -> PreTrainedConfig:
    """Return the configuration that `described_config` gave as JSON."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**{key: v for key, v in json.loads(architecture).items() if key not in ELSEWHERE})


def _built(theirs: PreTrainedConfig) -> PreTrainedModel:
    from transformers import AutoModel, BlipVisionConfig, BlipVisionModel

    if isinstance(theirs, BlipVisionConfig):  # which AutoModel does not know
        return BlipVisionModel(theirs)
    model: PreTrainedModel = AutoModel.from_config(theirs, trust_remote_code=False, dtype=torch.float32)
    return model
