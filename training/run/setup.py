"""What a run needs before its first step: opened data, prepared models."""

from __future__ import annotations

from collections.abc import Sequence

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.loader import BatchPlan, check_plan
from granary.training.method import Method
from granary.training.methods import load_method
from granary.training.models.registry import load_model
from granary.training.models.starting import Misfit, start
from granary.training.models.vit import VisionTransformer
from granary.training.recipe import TrainRecipe


def open_sets(recipe: TrainRecipe, columns: Sequence[str], split: str | None) -> list[shards.Dataset]:
    """Open a split of every dataset of a recipe. Raises UserError where one has no such rows or columns."""
    return [
        shards.open_dataset(entry.path, columns, split, recipe.holdout, recipe.method, entry.columns)
        for entry in recipe.data
    ]


def open_plan(recipe: TrainRecipe, columns: tuple[str, ...], processes: int) -> BatchPlan:
    """Open the data of a recipe; returns the plan without its views. Raises UserError where they do not fit."""
    sets = open_sets(recipe, columns, recipe.split)
    weights, streams = [entry.weight for entry in recipe.data], recipe.parts(processes)
    classes = shards.class_shares(sets, weights) if "label" in columns else {}
    plan = BatchPlan(sets, weights, {}, columns, classes, recipe.batch, streams, recipe.window, recipe.seed)
    check_plan(plan, processes)
    if recipe.batch // processes % recipe.accumulate:
        raise UserError(
            f"accumulate: {recipe.accumulate} is not right: it must divide the {recipe.batch // processes} pictures "
            "of a process"
        )
    return plan


def build_method(recipe: TrainRecipe, plan: BatchPlan) -> Method:
    """Return the method of a recipe with its initial weights, and what it must know of the data."""
    kind = load_method(recipe.method)
    options = kind.Options.model_validate(recipe.options)
    return kind(recipe.config(), options, kind.learn(options, plan, recipe.out))


def prepare_models(recipe: TrainRecipe, method: Method) -> list[str]:
    """Start the method's models from given weights; set what trades time for memory. Returns what `start_from` does."""
    remarks = start_from(recipe.init, method) if recipe.init else []
    for vit in (module for module in method.modules() if isinstance(module, VisionTransformer)):
        vit.recompute = recipe.device.recompute
        if recipe.device.compile:
            for block in vit.blocks:
                block.compile()
    return remarks


def start_from(init: str, method: Method) -> list[str]:
    """Give the weights of the model that `init` names to those that can take them.

    Returns:
        What was left out, begins anew or was changed, in sentences.

    Raises:
        UserError: it fits none.
    """
    source, remarks, misfits = load_model(init), list[list[str]](), list[str]()
    for vit in method.encoders():
        try:
            remarks.append(start(vit, source))
        except Misfit as error:
            misfits.append(str(error))
    if not remarks:
        raise UserError(f"init: {init} is a model of another architecture: {misfits[0]}")
    return list(dict.fromkeys(remark for of_one in remarks for remark in of_one))
