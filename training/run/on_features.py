"""A training on the features of its frozen model: computed once, by the first process, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from granary.curation.store import storage
from granary.training.data.clip_latents import kept_latents
from granary.training.data.clip_windows import WindowViews
from granary.training.data.columns import SEVERAL
from granary.training.data.crops import Crop
from granary.training.data.frames import FrameViews
from granary.training.data.frozen import FeatureSet, FrozenViews, frozen_features
from granary.training.data.loader import BatchPlan
from granary.training.data.shards import Dataset
from granary.training.method import Method
from granary.training.recipe import TrainRecipe

if TYPE_CHECKING:  # needed when a run begins, and in an extra
    from lightning_fabric import Fabric

T = TypeVar("T")


def on_features(
    recipe: TrainRecipe, method: Method, plan: BatchPlan, fabric: Fabric, say: Callable[[str], object]
) -> BatchPlan:
    """Return a plan with features in the place of views: of the middle of a picture, of frames, or of a video's clips.

    Args:
        recipe: of the training.
        method: with the weights that make them.
        plan: of pictures or videos.
        fabric: of this process.
        say: is told of damaged files.

    Raises:
        UserError: another training computes the same just now.
    """
    encoder = method.evaluated_model().to(fabric.device).eval()
    folder = recipe.features.cache or storage.join(recipe.out, "features")
    frames, shown = plan.crops.get("image"), plan.columns
    plan = plan._replace(crops={}, columns=[name for name in plan.columns if name not in ("image", SEVERAL, "video")])
    if (look := method.clips) is not None:
        assert isinstance(plan.views, WindowViews)
        clips = _of_all(plan, fabric, lambda dataset: kept_latents(encoder, dataset, look, folder, say))
        return plan._replace(views=plan.views.of(clips))
    if isinstance(views := plan.views, FrameViews) and frames is not None:

        def of_frames(dataset: Dataset) -> FeatureSet:
            return frozen_features(encoder, dataset, frames, folder, "patches", 0, say, views, shown)

        return plan._replace(views=FrozenViews(_of_all(plan, fabric, of_frames)))
    crop, output = Crop(1, encoder.config.img_size, centre=True), recipe.features.output
    sets = _of_all(plan, fabric, lambda dataset: frozen_features(encoder, dataset, crop, folder, output, say=say))
    return plan._replace(views=FrozenViews(sets))


def _of_all(plan: BatchPlan, fabric: Fabric, compute: Callable[[Dataset], T]) -> list[T]:
    """Return what is computed of each dataset: by the first process, while the others wait and then read it."""
    sets = [compute(dataset) for dataset in plan.datasets] if fabric.is_global_zero else []
    fabric.barrier()
    return sets or [compute(dataset) for dataset in plan.datasets]
