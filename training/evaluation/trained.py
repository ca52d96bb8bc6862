"""What a model was trained by and on, as its checkpoint says: whether two trainings can be told apart by their data."""

from __future__ import annotations

import json
from typing import NamedTuple

from pydantic import ValidationError

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.drawn import ids_of
from granary.training.models.checkpoint import STATE, checkpoint_folder, usable
from granary.training.models.registry import read_name
from granary.training.recipe import TrainRecipe
from granary.training.run.directory import differences

DATA = {"data", "split", "holdout"}  # what two trainings on other data may differ in
SLACK = 0.01  # share of the steps, where epochs of nearly as many pictures are counted


class Trained(NamedTuple):
    """The recipe of a training, and the step of its checkpoint."""

    recipe: TrainRecipe
    step: int


def trained(name: str) -> Trained | None:
    """Return what made a model; None for one that no training of granary on this machine made."""
    way, target = read_name(name)
    folder = checkpoint_folder(target) if way == "path" else None
    if folder is None:
        return None
    try:
        facts = json.loads(storage.read_bytes(storage.join(folder, STATE)))
        return Trained(TrainRecipe.model_validate(facts["recipe"]), int(facts["step"]))
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def check_twins(target: str, reference: str) -> None:
    """Raise UserError where two trainings differ in more than their data: that would be seen as memorisation too.

    Args:
        target, reference: names of models; nothing is known of those that `trained` does not know.
    """
    first, second = trained(target), trained(reference)
    if first is None or second is None:
        return
    one_tree, other_tree = (known.recipe.model_dump(mode="json", exclude=DATA) for known in (first, second))
    keys = [*differences(one_tree, other_tree)]
    if abs(first.step - second.step) > SLACK * max(first.step, second.step):
        keys.append(("checkpoint at step", first.step, second.step))
    if keys:
        key, one, other = keys[0]
        raise UserError(
            f"options.reference: {reference} is no twin of {target}: {key} is {other!r}, not {one!r}; only "
            "their data may differ"
        )


def trained_ids(name: str) -> set[str] | None:
    """Return the ids of the pictures that a model was trained on; None where that cannot be told any more."""
    known = trained(name)
    if known is None:
        return None
    recipe, ids = known.recipe, set[str]()
    try:
        for entry in recipe.data:
            where = recipe.split, recipe.holdout, recipe.method, entry.columns
            ids.update(ids_of(shards.open_dataset(entry.path, (), *where)).tolist())
    except (UserError, OSError):
        return None
    return ids


def checkpoints(name: str) -> dict[int, str]:
    """Return the checkpoints of a training by step, the first one first; none of another model."""
    way, target = read_name(name)
    if way != "path":
        return {}
    return {int(folder.rsplit("-", 1)[1]): folder for folder in reversed(list(usable(target)))}
