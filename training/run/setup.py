"""What a run needs before its first step: opened data, prepared models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.grouped import combined
from granary.training.data.loader import BatchPlan, check_plan
from granary.training.data.ordering import PLAIN, Ordering
from granary.training.data.reads import Reads
from granary.training.method import Method
from granary.training.methods import load_method
from granary.training.models.backbone import Backbone
from granary.training.models.registry import load_model
from granary.training.models.starting import Misfit, start
from granary.training.recipe import TrainRecipe


def open_sets(recipe: TrainRecipe, reads: Reads, split: str | None) -> list[shards.Dataset]:
    """Open a split of every dataset of a recipe for what its method reads. Raises UserError where one lacks it."""
    where, categories = (split, recipe.holdout, recipe.method), reads.all_categories
    sets = [
        shards.open_dataset(entry.path, reads.all_columns, *where, entry.columns, categories, reads.config)
        for entry in recipe.data
    ]
    shards.check_kinds(sets, [name for name in reads.all_columns if name not in categories])
    return sets


def open_plan(recipe: TrainRecipe, reads: Reads, processes: int) -> BatchPlan:
    """Open the data of a recipe for what its method reads; the plan has no crops yet. Raises UserError on a misfit."""
    recipe = recipe.model_copy(update={"order": _order(recipe, reads)})
    reads = dataclasses.replace(reads, categories=[*reads.categories, *recipe.order.columns])
    sets = open_sets(recipe, reads, recipe.split)
    weights, streams = [entry.weight for entry in recipe.data], recipe.parts(processes)
    shares = {name: shards.class_shares(sets, weights, name) for name in reads.all_categories}
    numbers = (recipe.batch, streams, recipe.window, recipe.seed)
    plan = BatchPlan(
        sets, weights, {}, reads.all_columns, shares, *numbers, views=reads.views, drop_last=recipe.drop_last
    )
    if recipe.order.kind != "plain":
        plan = plan._replace(ordering=recipe.order, groups=groups_of(recipe, sets, shares))
    check_plan(plan, processes)
    if recipe.batch // processes % recipe.accumulate:
        raise UserError(
            f"accumulate: {recipe.accumulate} is not right: it must divide the {recipe.batch // processes} pictures "
            "of a process"
        )
    return plan


def _order(recipe: TrainRecipe, reads: Reads) -> Ordering:
    """Return the order of a recipe, or that of its method. Raises UserError where they are two."""
    if reads.order == PLAIN or recipe.order in (PLAIN, reads.order):
        return recipe.order if reads.order == PLAIN else reads.order
    raise UserError(
        f"order: {recipe.order.kind} is not right: these options of {recipe.method} order the samples themselves, "
        f"{reads.order.kind} by {reads.order.by}; leave it out"
    )


def groups_of(
    recipe: TrainRecipe, sets: Sequence[shards.Dataset], shares: Mapping[str, Mapping[str, float]]
) -> NDArray[np.int32]:
    """Return the group of each row, (n,), that the order of a recipe goes by. Raises UserError where it cannot."""
    order = recipe.order
    weight = next((entry.weight for entry in recipe.data if entry.weight != recipe.data[0].weight), None)
    if weight is not None:
        raise UserError(
            f"data.weight: {weight} is not right: order {order.kind} draws from the rows of all datasets alike; leave "
            "the weights out"
        )
    groups = combined([shards.row_codes(sets, name, shares[name]) for name in order.columns])
    count = int(groups.max(initial=-1)) + 1
    least = order.classes if order.kind == "few_classes" else 1
    if count < least:
        raise UserError(f"order.by: {order.by!r} has {count} groups in the data; order {order.kind} needs {least}")
    if order.kind == "few_classes" and recipe.batch < least:
        raise UserError(f"order.classes: {least} is not right: a batch has {recipe.batch} rows; give at most as many")
    return groups


def build_method(recipe: TrainRecipe, plan: BatchPlan) -> Method:
    """Return the method of a recipe with its initial weights, and what it must know of the data."""
    kind = load_method(recipe.method)
    options = kind.Options.model_validate(recipe.options)
    config = recipe.config()
    return kind(config, options, kind.learn(config, options, plan, recipe.out))


def prepare_models(recipe: TrainRecipe, method: Method) -> list[str]:
    """Start the method's models from given weights; set what trades time for memory. Returns what `start_from` does."""
    init, key = (recipe.features.model, "features.model") if recipe.features.model else (recipe.init, "init")
    remarks = start_from(init, method, key) if init else []
    if recipe.features.model:
        method.evaluated_model().requires_grad_(False)
    backbones = [module for module in method.modules() if isinstance(module, Backbone)]
    for key in ("recompute", "compile"):
        if getattr(recipe.device, key) and not backbones:
            raise UserError(
                f"device.{key}: true is not right: {recipe.method} has no part that this is for; leave it out"
            )
    for backbone in backbones:
        backbone.recompute = recipe.device.recompute
        if recipe.device.compile:
            for stage in backbone.stages():
                stage.compile()
    return remarks


def start_from(init: str, method: Method, key: str = "init") -> list[str]:
    """Give the weights of the model that `init` names to those that can take them.

    Args:
        init: name of a model.
        method: whose models take them.
        key: of the recipe, for messages.

    Returns:
        What was left out, begins anew or was changed, in sentences.

    Raises:
        UserError: it fits none.
    """
    if not method.encoders():
        raise UserError(f"init: {init!r} is not right: this method starts from the model that its options name")
    source, remarks, misfits = load_model(init), list[list[str]](), list[str]()
    for backbone in method.encoders():
        try:
            remarks.append(start(backbone, source))
        except Misfit as error:
            misfits.append(str(error))
    if not remarks:
        raise UserError(f"{key}: {init} is a model of another architecture: {misfits[0]}")
    return list(dict.fromkeys(remark for of_one in remarks for remark in of_one))
