"""The optimisers of a recipe, each against its equations written out in numpy, and what a recipe may say of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import validated
from granary.training.method import ParameterGroup
from granary.training.recipe import LARS, SGD, AdamW, TrainRecipe
from granary.training.run.optimisers import make_optimiser

Array = NDArray[np.float64]
STEPS, LR, DECAY = 5, 0.05, 0.2


def adamw(w: Array, gradients: list[Array], decay: float) -> Array:
    first, second = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g * g
        w = w * (1 - LR * decay)
        w = w - LR * (first / (1 - 0.8**t)) / (np.sqrt(second / (1 - 0.9**t)) + 1e-3)
    return w


def sgd(w: Array, gradients: list[Array], decay: float, nesterov: bool = False) -> Array:
    velocity = np.zeros_like(w)
    for g in gradients:
        g = g + decay * w
        velocity = 0.9 * velocity + g
        w = w - LR * (g + 0.9 * velocity if nesterov else velocity)
    return w


def lars(w: Array, gradients: list[Array], decay: float) -> Array:
    velocity = np.zeros_like(w)
    for g in gradients:
        step = g + decay * w
        if w.ndim > 1:  # biases and norms are neither adapted nor, as `decay` is 0, decayed
            step = step * 0.01 * math.sqrt((w * w).sum()) / math.sqrt((step * step).sum())
        velocity = 0.9 * velocity + step
        w = w - LR * velocity
    return w


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (AdamW(lr=LR, betas=(0.8, 0.9), eps=1e-3), adamw),
        (SGD(lr=LR), sgd),
        (SGD(lr=LR, nesterov=True), lambda *given: sgd(*given, nesterov=True)),
        (LARS(lr=LR, trust=0.01), lars),
    ],
)
def test_steps_equal_the_equations(options: Any, reference: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    start = [p.detach().double().numpy().copy() for p in layer.parameters()]
    gradients = [[torch.randn_like(p) for p in layer.parameters()] for _ in range(STEPS)]
    groups = [ParameterGroup([layer.weight], True), ParameterGroup([layer.bias], False)]
    optimiser = make_optimiser(options, groups)
    for at_step in gradients:
        for settings, group in zip(optimiser.param_groups, groups, strict=True):
            settings["weight_decay"] = DECAY if group.decay else 0.0
        for parameter, gradient in zip(layer.parameters(), at_step, strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()
    for number, (parameter, decay) in enumerate(zip(layer.parameters(), (DECAY, 0.0), strict=True)):
        expected = reference(start[number], [step[number].double().numpy() for step in gradients], decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-5, atol=1e-6)


# -- in a recipe -----------------------------------------------------------------------------------------------------


def recipe(**optimiser: Any) -> TrainRecipe:
    tree = {"method": "supervised", "data": "run", "out": "out", "steps": 1, "optimiser": optimiser}
    return validated(TrainRecipe, tree)


def test_without_a_kind_it_is_adamw_with_the_options_of_before() -> None:
    assert recipe().optimiser == recipe(kind="adamw").optimiser == AdamW()
    former = {"lr", "start_lr", "final_lr", "warmup", "weight_decay", "final_weight_decay", "betas", "eps", "clip"}
    assert former == set(recipe().optimiser.model_dump()) - {"kind"}
    assert recipe(lr=1e-4, betas=[0.9, 0.95]).optimiser == AdamW(lr=1e-4, betas=(0.9, 0.95))
    assert recipe(kind="lars", trust=0.02).optimiser == LARS(trust=0.02)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "adam"}, "optimiser.kind: 'adam' is not right"),
        ({"kind": "sgd", "betas": [0.9, 0.99]}, "optimiser.betas: there is no such key in kind sgd, only in adamw"),
        ({"momentum": 0.9}, "optimiser.momentum: there is no such key in kind adamw, only in sgd and lars"),
        ({"kind": "sgd", "momentum": 0, "nesterov": True}, "nesterov needs a momentum above 0"),
        ({"kind": "lars", "trust": 0}, "optimiser.trust: 0 is not right"),
    ],
)
def test_a_wrong_optimiser_is_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        recipe(**options)
    assert sentence in str(error.value)
