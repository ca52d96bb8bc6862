"""The vision aggregator against a loop over queries, heads and patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from masked_trainings import disturbed
from torch import Tensor

from granary.training.models.vision_aggregator import VisionAggregator


def slow_aggregator(model: VisionAggregator, maps: list[Tensor]) -> Tensor:
    """One query of one picture at a time, one head at a time."""
    side, r = model.side, model.patches
    grids = []
    for projection, of_one in zip(model.projections, maps, strict=True):
        moved = F.interpolate(of_one.permute(0, 3, 1, 2), (side * r, side * r), mode="bilinear", align_corners=False)
        grids.append(projection(moved.permute(0, 2, 3, 1)))
    out = torch.zeros(len(maps[0]), side, side, model.queries.shape[1], dtype=torch.float64)
    for t in range(len(out)):
        context = grids[0][t].flatten(0, 1).mean(dim=0)
        for row in range(side):
            for column in range(side):
                keys = [grid[t, row * r + i, column * r + j] for grid in grids for i in range(r) for j in range(r)]
                x = model.queries[row * side + column]
                for block in model.blocks:
                    q = block.query(torch.cat([block.query_norm(x), context])).unflatten(0, (block.heads, -1))
                    seen = []
                    for head in range(block.heads):
                        k = [block.keys(key).unflatten(0, (block.heads, -1))[head] for key in keys]
                        v = [block.values(key).unflatten(0, (block.heads, -1))[head] for key in keys]
                        weights = torch.stack([q[head] @ one for one in k]).div(len(q[head]) ** 0.5).softmax(dim=0)
                        seen.append(sum(w * one for w, one in zip(weights, v, strict=True)))
                    x = x + block.out(torch.cat(seen))
                    x = x + block.mlp(block.mlp_norm(x))
                out[t, row, column] = x
    return out


def test_values_and_gradients_equal_a_loop_over_queries() -> None:
    torch.manual_seed(0)
    model = disturbed(VisionAggregator([5, 3], side=2, patches=2, width=8, depth=2, heads=2))
    maps = [torch.randn(3, 4, 4, 5, dtype=torch.float64), torch.randn(3, 6, 6, 3, dtype=torch.float64)]
    weights = torch.randn(3, 2, 2, 8, dtype=torch.float64)
    fast, slow = model(maps), slow_aggregator(model, maps)
    torch.testing.assert_close(fast, slow)
    gradients = [torch.autograd.grad((out * weights).sum(), list(model.parameters())) for out in (fast, slow)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_query_sees_the_patches_below_it_and_the_mean_of_the_first_encoder() -> None:
    torch.manual_seed(0)
    model = VisionAggregator([4, 4], side=3, patches=2, width=8, depth=1, heads=2)
    maps = [torch.randn(1, 6, 6, 4), torch.randn(1, 6, 6, 4)]
    before = model(maps)
    changed = [maps[0], maps[1].clone()]
    changed[1][0, 2:4, 4:6] += 1
    moved = (model(changed) - before).abs().amax(dim=3)[0] > 1e-7
    assert moved.nonzero().tolist() == [[1, 2]]
    changed = [maps[0].clone(), maps[1]]
    changed[0][0, 0, 0] += 1
    assert ((model(changed) - before).abs().amax(dim=3)[0] > 1e-7).all()
