"""What a sampler is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Request:
    """One sample to draw.

    Args:
        row_id: identity of the planned row.
        seed: of its noise.
        label: index in the MODEL's classes, None for a model that takes none.
        target: index in the CLASSIFIER's classes.
        prompt: for text-to-image models.
        condition: a real picture of the class, for image-conditioned models.
    """

    row_id: str
    seed: int
    label: int | None
    target: int
    prompt: str = ""
    condition: Image.Image | None = None


@dataclass(frozen=True)
class Drawn:
    """One sample drawn.

    Args:
        row_id: identity of the planned row.
        image: (h, w, 3) uint8.
        value: the criterion of this image; NaN when there is none (black: not finite, or withheld by the model's
            safety checker).
        trace: the criterion at each feedback step, NaN where the step was skipped.
        predicted: the classifier's first choice for the image, an index.
        probability: of that choice.
        skipped: steps not taken because they were not finite.
        unguided: no step was taken.
    """

    row_id: str
    image: NDArray[np.uint8]
    value: float
    trace: tuple[float, ...]
    predicted: int
    probability: float
    skipped: int
    unguided: bool
