"""What every backbone is: pictures in, one vector and a map of vectors out, in parts that devices can be given."""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar, NamedTuple, Self

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from granary.curation.store import storage
from granary.training.models.backbone_config import BackboneConfig, read_config


class Tokens(NamedTuple):
    """The output: one vector a picture, cls (B, D), registers (B, R, D), and the map, patches (B, N, D), by rows.

    A ViT without a class token gives the mean of the patches in its place, as a ResNet does; all but a ViT have no
    registers. A ViT's tokens are after its final norm.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor


class Backbone(nn.Module, abc.ABC):
    """An encoder: (B, 3, h, w) normalised pictures -> `Tokens`.

    Args:
        config: its architecture.

    Attributes:
        Config: the class of its architecture.
        STAGES: name of the submodule with the stages, the parts that run one after another.
        recompute: set it to trade time for memory: stages are run again in the backward pass.
    """

    Config: ClassVar[type[BackboneConfig]]
    STAGES: ClassVar[str]
    config: BackboneConfig

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False

    @abc.abstractmethod
    def forward(self, pixels: Tensor) -> Tokens:
        """Return the tokens of the last stage.

        Args:
            pixels: (B, 3, h, w).
        """

    @abc.abstractmethod
    def intermediate(self, pixels: Tensor, layers: Sequence[int]) -> list[Tokens]:
        """Return the tokens after each of `layers` (numbers of stages from 0, ascending).

        Args:
            pixels: (B, 3, h, w).
            layers: which.
        """

    def stages(self) -> list[nn.Module]:
        """Return the parts that run one after another: what FSDP shards and `device.compile` compiles, each alone."""
        return list(self.get_submodule(self.STAGES).children())

    def layer_of(self, name: str) -> int:
        """Return where a parameter stands: 0 before the stages, then 1 for the first stage, ..., after them the most.

        Args:
            name: of the parameter in this module.
        """
        part, number = name.split(".")[:2] if "." in name else (name, "")
        if part == self.STAGES:
            return int(number) + 1
        return len(self.stages()) + 1 if part == "norm" else 0

    def lr_scale(self, name: str, layer_decay: float) -> float:
        """Return the factor of a parameter's learning rate: 1 after the stages, times layer_decay for each below.

        Args:
            name: of the parameter in this module.
            layer_decay: in 0..1.
        """
        return layer_decay ** (len(self.stages()) + 1 - self.layer_of(name))

    @property
    def joinable(self) -> int:
        """The last so many stages give vectors of the same width; by default all."""
        return len(self.stages())

    def last(self, pixels: Tensor, count: int) -> list[Tokens]:
        """Return the tokens after the last `count` stages, fewer where only fewer have the width of the output.

        Args:
            pixels: (B, 3, h, w).
            count: at least 1.
        """
        if count == 1:  # a sharded model gathers its weights when it is called, not when one of its functions is
            return [self(pixels)]
        depth = len(self.stages())
        return self.intermediate(pixels, range(depth - min(count, self.joinable), depth))

    @classmethod
    @abc.abstractmethod
    def check_sizes(cls, config: BackboneConfig, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError where the numbers that decide how much memory a model takes are not those of its weights.

        Args:
            config: what config.json says.
            state: the weights by name.
        """

    def save(self, folder: str) -> None:
        """Write config.json and model.safetensors into a folder (any fsspec URL)."""
        for name, data in weight_files(self.config, self.state_dict()):
            storage.write_bytes(storage.join(folder, name), data)

    @classmethod
    def load(cls, folder: str, device: str | torch.device = "cpu") -> Self:
        """Read what `save` wrote; `granary.training.models.build` reads any kind.

        Raises:
            OSError, ValueError, TypeError, RuntimeError: the folder holds something else.
        """
        config = read_config(folder)
        if not isinstance(config, cls.Config):
            raise ValueError(f"config.json is that of a model of kind {config.kind}")
        state = load(storage.read_bytes(storage.join(folder, "model.safetensors")))
        cls.check_sizes(config, state)
        model = cls(config)
        model.load_state_dict(state)
        return model.to(device)


def weight_files(config: BackboneConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the two files of a model."""
    yield "config.json", json.dumps(asdict(config), indent=2).encode()
    yield "model.safetensors", save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
