"""Classes go from one model to another by name, and never by place."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from granary.curation.errors import UserError


class ClassIndices(NamedTuple):
    """Where a label of the dataset stands among the classes of both models.

    Args:
        model: index in the classes of the diffusion model; None where it takes none.
        target: index in the classes of the classifier.
    """

    model: int | None
    target: int


def match_labels(labels: Sequence[str], classes: Sequence[str], names: Mapping[str, str], what: str) -> dict[str, int]:
    """Return for each label of the dataset the index of the class of that name.

    Args:
        labels: of the dataset.
        classes: of the model, in its order.
        names: label of the dataset -> name of the class, where they differ.
        what: whose classes, for the message.

    Raises:
        UserError: a label that is no class of it.
    """
    try:
        indices = match_classes([names.get(label, label) for label in labels], classes, what)
    except UserError as error:
        raise UserError(f"{error}, or say in plan.names which label is which class") from None
    return dict(zip(labels, indices, strict=True))


def match_classes(names: Sequence[str], classes: Sequence[str], what: str) -> list[int]:
    """Return for each of `names` its index in `classes`.

    Case, underscores and hyphens do not count; a class may list synonyms, as ImageNet's do ("tench, Tinca tinca").

    Args:
        names: to look up.
        classes: of a model, in its order.
        what: whose classes, for the message.

    Raises:
        UserError: the first name that no class has, or several.
    """
    whole = _places([[_plain(name)] for name in classes])
    synonyms = _places([[_plain(part) for part in name.split(",")] for name in classes])
    indices = []
    for name in names:
        options = whole.get(_plain(name)) or synonyms.get(_plain(name), [])
        if len(options) != 1:
            many = f"{len(options)} classes" if options else "no class"
            known = ", ".join(map(repr, classes[:5])) + (", ..." if len(classes) > 5 else "")
            raise UserError(f"{what} has {many} named '{name}'; it has {known}. Name the data's classes as it does")
        indices.append(options[0])
    return indices


def _places(classes: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Return for each name the classes that have it."""
    places = collections.defaultdict(list)
    for number, names in enumerate(classes):
        for name in dict.fromkeys(names):
            places[name].append(number)
    return dict(places)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
