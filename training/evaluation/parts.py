"""The parts of a run of `granary partition`, and whether two models were trained on what they should, and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.drawn import ids_of
from granary.training.evaluation.partition import COLUMN
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.trained import trained_ids

ATTACKED = ("A", "B")  # that of the target, that of the reference
PUBLIC = "X"


class Parts(NamedTuple):
    """What is attacked, and the public pictures it is attacked with.

    Args:
        attacked: A and B, without what `split` of the measurement leaves out.
        public: X.
        classes: names of the labels; none where there are no labels.
    """

    attacked: Mapping[str, shards.Dataset]
    public: shards.Dataset
    classes: list[str]

    @property
    def all(self) -> dict[str, shards.Dataset]:
        """Every part by its name."""
        return {**self.attacked, PUBLIC: self.public}


def opened_parts(measured: Measured, why: str, needs: Sequence[str] = ("image", "label")) -> Parts:
    """Return the parts of the data that are measured on.

    Args:
        measured: whose `split` narrows the attacked parts.
        why: who needs them, for messages.
        needs: columns that must be there.

    Raises:
        UserError: the data have no column `part`, or a part has no rows.
    """
    whole = shards.open_dataset(measured.data, needs, why=why, columns=measured.columns)
    if COLUMN not in whole.columns:
        raise UserError(f"data: {measured.data} has no column {COLUMN}; granary partition writes a run that has it")
    splits = {part: f"{COLUMN}={part}" for part in (*ATTACKED, PUBLIC)}
    splits |= {part: f"{splits[part]} & {measured.split}" for part in ATTACKED if measured.split}
    opened = {
        part: shards.open_dataset(measured.data, needs, split, why=why, columns=measured.columns)
        for part, split in splits.items()
    }
    classes = shards.class_names(list(opened.values())) if "label" in needs else []
    if "label" in needs and len(classes) < 2:
        raise UserError(f"data: the parts of {measured.data} have {len(classes)} classes; {why} needs two or more")
    return Parts({part: opened[part] for part in ATTACKED}, opened[PUBLIC], classes)


def check_apart(parts: Parts) -> None:
    """Raise UserError where two parts share an id or the bytes of a picture: that would be taken for memorisation."""
    seen: dict[str, str] = {}
    for part, dataset in parts.all.items():
        for name in {*ids_of(dataset).tolist(), *_contents(dataset)}:
            if seen.setdefault(name, part) != part:
                raise UserError(
                    f"data: parts {seen[name]} and {part} of {dataset.path} share a picture, {name}; granary partition "
                    "writes parts that do not"
                )


def _contents(dataset: shards.Dataset) -> Iterator[str]:
    """Yield the SHA-256 of each picture."""
    for group in dataset.groups:
        rows = shards.GroupRows(shards.read_group(group, ["image"]))
        yield from (f"sha256:{hashlib.sha256(rows.image(row)).hexdigest()}" for row in range(rows.count))


def check_roles(parts: Parts, target: str, reference: str) -> list[str]:
    """Return what could not be verified, in sentences: which pictures the models were trained on.

    Args:
        parts: what is attacked.
        target, reference: names of models; of one that no training made nothing is expected.

    Raises:
        UserError: a model was trained on public pictures, on the other's part, or not on its own.
    """
    ids = {part: set(ids_of(dataset).tolist()) for part, dataset in parts.all.items()}
    notes = []
    for model, own, other in ((target, "A", "B"), (reference, "B", "A")):
        known = trained_ids(model)
        if known is None:
            notes.append(f"what {model} was trained on cannot be read: it is taken to be part {own}, if anything")
            continue
        way = f"train it with --split {COLUMN}={own}, and S where there is one"
        for part in (other, PUBLIC):
            if common := len(ids[part] & known):
                raise UserError(f"model: {model} was trained on {common:,} pictures of part {part}; {way}")
        if missing := len(ids[own] - known):
            raise UserError(f"model: {model} was not trained on {missing:,} pictures of part {own}; {way}")
    return notes
