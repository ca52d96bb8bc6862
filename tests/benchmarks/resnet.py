"""Forward and backward passes of a ResNet against `transformers.ResNetModel` with the same weights.

    python -m tests.benchmarks.resnet [threads]

Small pictures of 24 px, a stem of one 3 x 3 convolution in both; in each round both take the same pictures, one after
the other, and their vectors agree. The best round of each counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.resnet_weights import our_name

SIZES = {"ResNet 32-64-128": (32, 64, 128), "ResNet 64-128-256": (64, 128, 256)}
BATCH, SIDE = 128, 24


def reference(ours: ResNet) -> Callable[[Tensor], Tensor]:
    """Return the model of transformers with the weights of ours, its stem one 3 x 3 convolution as in ours."""
    config = ours.config
    theirs = transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=config.stem_channels,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            layer_type=config.block,
        )
    ).train()
    theirs.embedder.embedder = ResNetConvLayer(3, config.stem_channels, kernel_size=3, stride=1)
    theirs.embedder.pooler = nn.Identity()
    state = ours.state_dict()
    theirs.load_state_dict({name: state[our_name(name)] for name in theirs.state_dict()})
    return lambda pixels: theirs(pixels).pooler_output.flatten(1)


def timed(model: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[float, Tensor]:
    """Return the seconds of a forward and a backward pass, and the vectors."""
    start = time.perf_counter()
    vectors = model(pixels)
    vectors.square().sum().backward()
    return time.perf_counter() - start, vectors.detach()


def compare(name: str, rounds: int) -> None:
    """Print views per second of both, and their ratio."""
    torch.manual_seed(0)
    ours = ResNet(ResNetConfig(img_size=SIDE, widths=SIZES[name], depths=(1, 1, 1), stem="small"))
    models = {"granary": lambda pixels: ours(pixels).cls, "transformers": reference(ours)}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(rounds):
        pixels = torch.randn(BATCH, 3, SIDE, SIDE)
        spent = {key: timed(model, pixels) for key, model in models.items()}
        torch.testing.assert_close(spent["granary"][1], spent["transformers"][1], atol=1e-3, rtol=1e-3)
        best = {key: min(best[key], spent[key][0]) for key in models}
    rates = {key: BATCH / seconds for key, seconds in best.items()}
    print(f"{name}, {SIDE} px, batch {BATCH}, {torch.get_num_threads()} threads, best of {rounds} rounds")
    for key, rate in rates.items():
        print(f"  {key:<14}{rate:>8.0f} views/s   granary is {rates['granary'] / rate:.2f} x", flush=True)


def main() -> None:
    """Print both sizes."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    for name in SIZES:
        compare(name, 12)


if __name__ == "__main__":
    main()
