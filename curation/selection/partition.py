"""Two training sets and a public set, class by class, to find out what a model knows of its training pictures by heart.

Meehan et al. 2023 (arXiv 2304.13850): of the pictures with boxes one part is trained on by one model alone and one by
the other; both see the shared ones, and neither the public ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from granary.curation.store.sampling import priority

PARTS = ("A", "B", "S", "X")
NO_PART = ""


def partition(
    ids: Sequence[str], classes: Sequence[str], boxed: NDArray[np.bool_], per_class: int, seed: int
) -> NDArray[np.str_]:
    """Return the part of each picture: A and B to be told apart, S shared, X public.

    Of every class A and B have min(N, half of those with boxes) pictures each, with boxes, and S as many without boxes
    as A lacks to N: the training sets A + S and B + S have N each where there are enough. All else is X, so that X of a
    larger N is part of that of a smaller one. The choice is by hash, and hangs on no order.

    Args:
        ids: n, distinct.
        classes: n.
        boxed: (n,), whether a picture has boxes.
        per_class: N.
        seed: decides the draw.

    Returns:
        (n,) of `PARTS`.
    """
    parts, names = np.full(len(ids), "X", "U1"), np.asarray(ids, str)
    order = np.lexsort((names, priority(seed, names, "partition")))
    labels = np.asarray(classes, str)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        inside, outside = members[boxed[members]], members[~boxed[members]]
        count = min(per_class, len(inside) // 2)
        parts[inside[:count]], parts[inside[count : 2 * count]] = "A", "B"
        parts[outside[: per_class - count]] = "S"
    return parts
