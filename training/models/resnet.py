"""A ResNet (He et al. 2015, arXiv 1512.03385), whose last block may be wider or narrower than its stage.

`last_width` is the D of Bordes et al. 2023 (arXiv 2304.05369): the last convolution of the very last block has D
outputs and its norm D channels; where D is not the width of the stage, the shortcut gets a 1 x 1 convolution and a
norm. In a bottleneck block the last convolution is the 1 x 1 one; a basic block has none, there it is the second 3 x 3.
All that comes before has the same shapes and, for the same seed, the same initial values, whatever D.

Shapes: B pictures, C channels, D of the output, h x w places of the map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from granary.training.models.backbone import Backbone, Tokens
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.convolutions import ConvNorm
from granary.training.models.resnet_config import REDUCTION, STRIDES, ResNetConfig


class Block(nn.Module):
    """ReLU(branch(x) + shortcut(x)); the stride is that of the first 3 x 3 convolution.

    Args:
        config: which block, and whether the branch starts at 0.
        inputs: channels of x.
        width: channels of the stage.
        outputs: channels of the result.
        stride: 1 or 2.
    """

    def __init__(self, config: ResNetConfig, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        gain = 0.0 if config.zero_gamma else 1.0
        if config.block == "basic":
            first = [ConvNorm(inputs, width, 3, stride)]
            last = ConvNorm(width, outputs, 3, relu=False, gain=gain)
        else:
            narrow = width // REDUCTION
            first = [ConvNorm(inputs, narrow, 1), ConvNorm(narrow, narrow, 3, stride)]
            last = ConvNorm(narrow, outputs, 1, relu=False, gain=gain)
        self.branch = nn.Sequential(*first, last)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        return torch.relu(self.branch(x) + self.shortcut(x))


class ResNet(Backbone):
    """The encoder: (B, 3, h, w) normalised pictures of any size -> `Tokens`; cls is the mean of the map after ReLU.

    Weights are drawn with torch's generator, part by part in the order in which they run.
    """

    Config = ResNetConfig
    STAGES = "layers"
    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        if config.stem == "imagenet":
            self.stem = nn.Sequential(ConvNorm(3, config.stem_channels, 7, 2), nn.MaxPool2d(3, 2, 1))
        else:
            self.stem = nn.Sequential(ConvNorm(3, config.stem_channels, 3, STRIDES[config.stem]))
        inputs = (config.stem_channels, *config.widths[:-1])
        self.layers = nn.ModuleList(_stage(config, number, channels) for number, channels in enumerate(inputs))

    def forward(self, pixels: Tensor) -> Tokens:
        """Return the tokens of the last stage.

        Args:
            pixels: (B, 3, h, w).
        """
        return self.intermediate(pixels, [len(self.layers) - 1])[0]

    def intermediate(self, pixels: Tensor, layers: Sequence[int]) -> list[Tokens]:
        """Return the tokens after each of `layers` (numbers of stages from 0, ascending), each of its stage's width.

        Args:
            pixels: (B, 3, h, w).
            layers: which.
        """
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))  # the faster order for convolutions
        outputs = []
        for number, stage in enumerate(self.layers):
            x = self._recomputed(stage, x) if self.recompute else stage(x)
            if number in layers:
                patches = x.flatten(2).transpose(1, 2)  # (B, h * w, C)
                outputs.append(Tokens(patches.mean(dim=1), patches[:, :0], patches))
        return outputs

    def _recomputed(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Run a stage, and again in the backward pass, when its running statistics do not move a second time."""
        again = lambda: (contextlib.nullcontext(), _still(stage))  # noqa: E731 a pair of contexts for `checkpoint`
        output: Tensor = checkpoint(stage, x, use_reentrant=False, context_fn=again)
        return output

    @property
    def joinable(self) -> int:
        """Only the last stage has the width of the output."""
        return 1

    @classmethod
    def check_sizes(cls, config: BackboneConfig, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError where an architecture is not that of the weights, before memory is taken for it.

        Args:
            config: what config.json says.
            state: the weights by name.
        """
        assert isinstance(config, ResNetConfig)
        blocks = len({name.split(".branch.")[0] for name in state if ".branch." in name})
        if blocks != sum(config.depths):
            raise ValueError(f"config.json says {sum(config.depths)} blocks, the weights have {blocks}")
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
        wrong = next((name for name, shape in shapes.items() if name in state and state[name].shape != shape), None)
        if wrong:
            raise ValueError(
                f"config.json makes {wrong} {tuple(shapes[wrong])}, that of the weights is {tuple(state[wrong].shape)}"
            )


def _stage(config: ResNetConfig, number: int, inputs: int) -> nn.Sequential:
    """Return a stage: `inputs` channels come in, its first block halves the map where it is not the first stage."""
    width, depth = config.widths[number], config.depths[number]
    outputs = [width] * depth
    if number == len(config.widths) - 1:
        outputs[-1] = config.width
    before = [inputs, *outputs[:-1]]
    strides = [1 if number == 0 else 2] + [1] * (depth - 1)
    return nn.Sequential(
        *(Block(config, *sizes) for sizes in zip(before, [width] * depth, outputs, strides, strict=True))
    )


@contextlib.contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of the norms inside as they are: they move by nothing, and a copy counts.

    Without an update, autograd would not save the same tensors as in the forward pass.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        copied = None if count is None else count.clone()  # a SyncBatchNorm must have one
        norm.momentum, norm.num_batches_tracked = 0.0, copied
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
