"""A step of I-JEPA against a plain implementation of the paper's algorithm: same ViT, same masks, same batch.

    python -m tests.benchmarks.ijepa [threads]

The reference follows the published algorithm step by step as one would first write it: attention written out, every
block's tokens gathered and repeated apart, the optimiser and the average of the target in loops over parameters. The
second reference has PyTorch's fused attention in it too. Each line is a whole step: forward, backward, optimiser,
average. Times are the best of several interleaved rounds; processor time is printed too, since it does not grow when
the machine is shared.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.masking.multi_block import draw_masks
from granary.training.method import Moment
from granary.training.methods.ijepa import IJEPA, IJEPAOptions, prediction_loss
from granary.training.models.vit import ViTConfig

SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "tiny, 8 x 8 patches": (
        {"img_size": 32, "patch_size": 4, "width": 128, "depth": 4, "heads": 4},
        {"predictor_width": 64, "predictor_depth": 2, "min_keep": 4},
        64,
    ),
    "ViT-S/16, 14 x 14 patches": (
        {"img_size": 224, "patch_size": 16, "width": 384, "depth": 12, "heads": 6},
        {"predictor_width": 384, "predictor_depth": 6},
        8,
    ),
}


def attend(block: Any, x: Tensor, fused: bool) -> Tensor:
    """A block of the reference."""
    q, k, v = block.attention.qkv(block.norm1(x)).unflatten(2, (3, block.attention.heads, -1)).permute(2, 0, 3, 1, 4)
    if fused:
        y = F.scaled_dot_product_attention(q, k, v)
    else:
        y = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    x = x + block.attention.out(y.transpose(1, 2).flatten(2))
    return x + block.mlp.down(F.gelu(block.mlp.up(block.norm2(x))))


def pick(x: Tensor, masks: list[Tensor]) -> Tensor:
    """Gather the tokens of each mask (B, K) and concatenate them along the batch."""
    return torch.cat([torch.gather(x, 1, mask[:, :, None].repeat(1, 1, x.shape[-1])) for mask in masks], dim=0)


def encode(vit: Any, pixels: Tensor, masks: list[Tensor] | None, fused: bool) -> Tensor:
    """Run an encoder of the reference on all or on kept patches."""
    x = vit.embed(pixels).flatten(2).transpose(1, 2) + vit.positions
    x = x if masks is None else pick(x, masks)
    for block in vit.blocks:
        x = attend(block, x, fused)
    return vit.norm(x)


def reference_loss(method: IJEPA, pixels: Tensor, context: Tensor, targets: list[Tensor], fused: bool) -> Tensor:
    """Return the loss by the published algorithm."""
    with torch.no_grad():
        whole = encode(method.target, pixels, None, fused)
        wanted = pick(F.layer_norm(whole, (whole.shape[-1],)), targets)
    predictor, count = method.predictor, len(pixels)
    x = predictor.embed(encode(method.context, pixels, [context], fused))
    x = x + pick(predictor.positions.repeat(count, 1, 1), [context])
    places = pick(predictor.positions.repeat(count, 1, 1), targets)
    x = torch.cat([x.repeat(len(targets), 1, 1), predictor.mask_token.repeat(*places.shape[:2], 1) + places], dim=1)
    for block in predictor.blocks:
        x = attend(block, x, fused)
    return F.smooth_l1_loss(predictor.out(predictor.norm(x)[:, context.shape[1] :]), wanted)


def our_step(method: IJEPA) -> Callable[..., float]:
    """Return our step."""
    groups = [{"params": group.params} for group in method.parameter_groups()]
    optimiser = torch.optim.AdamW(groups, 1e-4, fused=True)

    def step(pixels: Tensor, context: Tensor, targets: Tensor, number: int) -> float:
        optimiser.zero_grad(set_to_none=True)
        predicted, wanted, _ = method.compare(pixels, context, targets)
        loss = prediction_loss(predicted, wanted, "smooth_l1")
        loss.backward()
        optimiser.step()
        method.after_step(Moment(number, 1000, 0))
        return float(loss.detach())

    return step


def reference_step(method: IJEPA, fused: bool) -> Callable[..., float]:
    """Return the step of the reference."""
    groups = [{"params": group.params} for group in method.parameter_groups()]
    optimiser = torch.optim.AdamW(groups, 1e-4)

    def step(pixels: Tensor, context: Tensor, targets: Tensor, number: int) -> float:
        optimiser.zero_grad()
        loss = reference_loss(method, pixels, context, list(targets), fused)
        loss.backward()
        optimiser.step()
        momentum = 0.996 + 0.004 * number / 1000
        with torch.no_grad():
            for ours, theirs in zip(method.target.parameters(), method.context.parameters(), strict=True):
                ours.mul_(momentum).add_((1 - momentum) * theirs.detach())
        return float(loss.detach())

    return step


def compare(name: str, rounds: int) -> None:
    """Print the time of a step of each, after checking that the losses agree."""
    architecture, options, batch = SIZES[name]
    torch.manual_seed(0)
    method = IJEPA(ViTConfig(**architecture, **IJEPA.MODEL), IJEPAOptions(**options))
    steps = {
        "granary": our_step(copy.deepcopy(method)),
        "reference": reference_step(copy.deepcopy(method), False),
        "reference, fused attention": reference_step(copy.deepcopy(method), True),
    }
    best = {key: [float("inf")] * 2 for key in steps}
    for number in range(rounds):
        pixels = torch.randn(batch, 3, architecture["img_size"], architecture["img_size"])
        moment = Moment(number, rounds, 0)
        drawn = draw_masks(method.blocks, batch, moment.generator(1), moment.generator(2))
        losses = {}
        for key, step in steps.items():
            wall, used = time.perf_counter(), time.process_time()
            losses[key] = step(pixels, torch.from_numpy(drawn.context), torch.from_numpy(drawn.targets), number)
            spent = time.perf_counter() - wall, time.process_time() - used
            best[key] = [min(pair) for pair in zip(best[key], spent, strict=True)]
        assert max(losses.values()) - min(losses.values()) < 1e-3 * max(losses.values()), losses
    print(f"{name}, batch {batch}, {torch.get_num_threads()} threads, best of {rounds} steps; losses agree to 0.1%")
    for key, (wall, used) in best.items():
        ratio = f"granary is {wall / best['granary'][0]:.2f} x (wall), {used / best['granary'][1]:.2f} x (processor)"
        print(f"  {key:<28}{wall * 1e3:>8.0f} ms {used * 1e3:>8.0f} ms of processor time   {ratio}", flush=True)


def main() -> None:
    """Print both sizes."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    compare("tiny, 8 x 8 patches", 20)
    compare("ViT-S/16, 14 x 14 patches", 6)


if __name__ == "__main__":
    main()
