"""A training on the features of its frozen model: computed once, by the first process, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from granary.curation.store import storage
from granary.training.data.crops import Crop
from granary.training.data.frozen import FeatureSet, FrozenViews, frozen_features
from granary.training.data.loader import BatchPlan
from granary.training.method import Method
from granary.training.recipe import TrainRecipe

if TYPE_CHECKING:  # needed when a run begins, and in an extra
    from lightning_fabric import Fabric


def on_features(
    recipe: TrainRecipe, method: Method, plan: BatchPlan, fabric: Fabric, say: Callable[[str], object]
) -> BatchPlan:
    """Return a plan with the features of its pictures, the middle of each, in the place of views.

    Args:
        recipe: of the training.
        method: with the weights that make them.
        plan: of pictures.
        fabric: of this process.
        say: is told of damaged files.

    Raises:
        UserError: another training computes the same just now.
    """
    encoder = method.evaluated_model().to(fabric.device).eval()
    folder = recipe.features.cache or storage.join(recipe.out, "features")
    crop = Crop(1, encoder.config.img_size, centre=True)

    def computed() -> list[FeatureSet]:
        return [
            frozen_features(encoder, dataset, crop, folder, recipe.features.output, say=say)
            for dataset in plan.datasets
        ]

    sets = computed() if fabric.is_global_zero else []
    fabric.barrier()
    columns = [name for name in plan.columns if name != "image"]
    return plan._replace(crops={}, columns=columns, views=FrozenViews(sets or computed()))
