"""The group `model` of a training recipe: one class of options for each kind of backbone; read without torch."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from granary.curation.options import Options, kind_where_none_is_named
from granary.training.models.backbone_config import CONFIGS, BackboneConfig
from granary.training.models.vit_config import FORMER

Colour = tuple[float, float, float]


class Architecture(Options, abc.ABC, frozen=True):
    """What every kind of backbone has; what is left out is the method's choice."""

    kind: str = Field(description="family of the backbone")
    img_size: int = Field(224, ge=1, description="pixels of the square picture")
    mean: Colour | None = Field(None, description="mean of the RGB channels in 0..1")
    std: Colour | None = Field(None, description="their standard deviation")

    @abc.abstractmethod
    def config(self, defaults: Mapping[str, object]) -> BackboneConfig:
        """Return the architecture.

        Args:
            defaults: of the method, for what is left out; those that this kind has no field for are not used.

        Raises:
            ValueError: numbers do not fit together.
            UserError: there is no such model.
        """


class SizedArchitecture(Architecture, frozen=True):
    """A family of our own, with sizes that have names."""

    size: str = Field(description="a size of the family")

    def config(self, defaults: Mapping[str, object]) -> BackboneConfig:
        """Return the architecture; see `Architecture.config`."""
        kind: Any = CONFIGS[self.kind]
        given = {name: value for name, value in self.model_dump(exclude={"size"}).items() if value is not None}
        known = {field.name for field in fields(kind)}
        config: BackboneConfig = kind.named(
            self.size, **{name: value for name, value in {**defaults, **given}.items() if name in known}
        )
        return config


class ViTArchitecture(SizedArchitecture, frozen=True):
    """A Vision Transformer."""

    FORMER: ClassVar[Mapping[str, str]] = FORMER

    kind: Literal["vit"] = Field("vit", description="family of the backbone")
    size: Literal["tiny", "small", "base", "large", "huge", "giant"] = Field(
        "tiny", description="width, blocks and heads: tiny 192/12/3 to giant 1536/40/24"
    )
    width: int | None = Field(None, ge=4, description="width, when not that of the size")
    depth: int | None = Field(None, ge=1, description="blocks, when not those of the size")
    heads: int | None = Field(None, ge=1, description="heads, when not those of the size")
    patch_size: int = Field(16, ge=1, description="pixels of a patch")
    stem: Literal["patch", "conv"] = Field(
        "patch", description="patch: a linear layer; conv: 3 x 3 convolutions of stride 2 (arXiv 2106.14881)"
    )
    mlp_ratio: float | None = Field(None, gt=0, description="width of the MLP as a multiple of the width")
    class_token: bool | None = Field(None, description="whether there is a class token")
    registers: int | None = Field(None, ge=0, description="register tokens")
    pos_embed: Literal["learned", "sincos", "rotary"] | None = Field(None, description="kind of positions")
    mlp: Literal["gelu", "quick_gelu", "swiglu"] | None = Field(None, description="kind of MLP")
    layer_scale: float | None = Field(None, ge=0, description="initial LayerScale, 0 for none")
    drop_path: float | None = Field(None, ge=0, lt=1, description="stochastic depth")


class ResNetArchitecture(SizedArchitecture, frozen=True):
    """A ResNet."""

    kind: Literal["resnet"] = Field("resnet", description="family of the backbone")
    size: Literal["resnet18-thin", "resnet18", "resnet34", "resnet50"] = Field(
        "resnet18", description="widths, depths and block; thin: widths 16/32/64/128"
    )
    widths: tuple[int, ...] | None = Field(None, min_length=1, description="channels after each stage")
    depths: tuple[int, ...] | None = Field(None, min_length=1, description="blocks of each stage")
    block: Literal["basic", "bottleneck"] | None = Field(
        None, description="two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1"
    )
    stem: Literal["small", "half", "imagenet"] = Field(
        "imagenet",
        description="small: 3 x 3, for pictures of about 32 px; half: the same with stride 2; imagenet: 7 x 7 and "
        "pooling, a quarter",
    )
    stem_width: int | None = Field(None, ge=1, description="channels after the stem, when not those of stage 1")
    last_width: int | None = Field(
        None, ge=1, description="channels of the very last block, the width of the features (arXiv 2304.05369)"
    )
    zero_gamma: bool = Field(False, description="start each block as the identity: last norm of a branch at 0")


class HubArchitecture(Architecture, frozen=True):
    """A model of `transformers` of another family; its weights are random, those of the Hub come with `init`."""

    kind: Literal["hub"] = Field("hub", description="family of the backbone")
    path: str = Field(description="model of transformers whose architecture it is: an id of the Hub or a folder")

    def config(self, defaults: Mapping[str, object]) -> BackboneConfig:
        """Return the architecture; see `Architecture.config`. This takes torch and transformers."""
        from granary.training.models.hub_backbone import hub_config

        colours = {name: getattr(self, name) for name in ("mean", "std") if getattr(self, name) is not None}
        return replace(hub_config(self.path, self.img_size), **colours)


Model = Annotated[
    ViTArchitecture | ResNetArchitecture | HubArchitecture, Field(discriminator="kind"), kind_where_none_is_named("vit")
]
