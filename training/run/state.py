"""The state of a run in a checkpoint: weights and optimiser, gathered from all processes, by name.

Random numbers, the order of the samples and the schedules are functions of the step and need no state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from granary.curation.errors import UserError
from granary.training.models.checkpoint import METHOD, flatten, misfit, nest, shaped, undescribed

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
LOCAL = StateDictOptions(full_state_dict=True)  # every process has read the whole and takes its own part


def gather_state(method: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all tensors by name: `method/NAME`, `optimiser/NAME/exp_avg` ...; whole on the first process."""
    gathered = get_model_state_dict(method, options=WHOLE)
    weights = {name: tensor for name, tensor in gathered.items() if isinstance(tensor, Tensor)}
    state = {f"{METHOD}{name}": tensor for name, tensor in shaped(weights, method.state_dict()).items()}
    inner: Any = get_optimizer_state_dict(method, optimiser, options=WHOLE)
    return {**state, **dict(flatten(inner.get("state", {}), "optimiser/"))}


def restore_state(method: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], where: str) -> None:
    """Set what `gather_state` returned; raises UserError when it belongs to another architecture."""
    tree = nest(tensors)
    expected = method.state_dict()
    tree["method"] = shaped(undescribed(tree["method"]), expected)
    wrong = misfit(tree["method"], expected)
    if wrong:
        raise UserError(f"out: {where} is a checkpoint of another architecture: {wrong}; give another --out")
    set_model_state_dict(method, tree["method"], options=LOCAL)
    if "optimiser" not in tree:  # SGD without momentum has no state
        return
    inner: Any = get_optimizer_state_dict(method, optimiser)  # for the names in its groups
    state: Any = {"state": tree["optimiser"], "param_groups": inner["param_groups"]}
    set_optimizer_state_dict(method, optimiser, state, options=LOCAL)
