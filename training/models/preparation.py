"""How pictures are prepared for a model of `transformers`: what its preprocessor_config.json says."""

from __future__ import annotations

from typing import NamedTuple

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preparation(NamedTuple):
    """Pixels of the square picture, mean and standard deviation of the RGB channels in 0..1."""

    img_size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def read_preparation(name: str) -> Preparation:
    """Return that of a model by its id or folder; ImageNet's where the model comes without.

    Raises:
        ValueError, TypeError, KeyError: the file says something else than sizes and numbers.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        tree, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return Preparation()
    size = tree.get("crop_size") or tree.get("size") or Preparation().img_size
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size["height"]
    red, green, blue = (float(value) for value in tree.get("image_mean") or IMAGENET_MEAN)
    deviations = tuple(float(value) for value in tree.get("image_std") or IMAGENET_STD)
    return Preparation(int(size), (red, green, blue), (deviations[0], deviations[1], deviations[2]))
