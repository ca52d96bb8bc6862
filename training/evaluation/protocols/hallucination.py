"""CHAIR: things that a model says are in a picture and that are not (Rohrbach et al. 2018, arXiv 1809.02156).

The things that count are those of a list with synonyms, or the names in the column `objects`. In a picture is what that
column has, and what its captions name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from granary.curation.errors import UserError
from granary.training.evaluation.mentions import Names, chair, mentioned, vocabulary
from granary.training.evaluation.protocol import Measured, Protocol, json_option
from granary.training.evaluation.protocols.captioning import Described, DescribeOptions, described
from granary.training.evaluation.recovery import names_of
from granary.training.evaluation.scores import Scores

COLUMN = "the column objects"  # in messages
NOTES = (
    "chair_i: wrong of all things mentioned; chair_s: descriptions with a wrong one. Each with `.other` pictures.",
)


class HallucinationOptions(DescribeOptions, frozen=True):
    """Options of CHAIR."""

    things: str | None = Field(
        None, description="JSON, thing -> list of synonyms, regular plurals left out; default: the names of the objects"
    )


def evaluate(measured: Measured, options: HallucinationOptions) -> Scores:
    """Describe every picture that has objects, or with a list of things captions; without a split all rows are taken.

    Returns:
        chair_i, chair_s and recall, each with `.other`; the mean number of things mentioned; the number of things, of
        pictures, of those without objects or captions, and of unreadable ones.

    Raises:
        UserError: no list of things, and no objects whose names could stand for it.
    """
    things = None if options.things is None else read_things(options.things)
    needs, also = (["objects"], ["captions"]) if things is None else (["captions"], ["objects"])
    found = described(measured, options, needs, also)
    if things is None:
        things = {name: [] for objects in found.objects for name in sorted(names_of(objects, COLUMN))}
    return Scores({**made_up(found, things), **found.counts}, settings={"dead": found.dead})


PROTOCOL = Protocol(evaluate, HallucinationOptions, batch=32, notes=NOTES)


def made_up(found: Described, things: Mapping[str, list[str]]) -> dict[str, float | None]:
    """Return how much descriptions make up, of their pictures and of others half the data away."""
    names = vocabulary(things)
    present = [_present(*both, names) for both in zip(found.objects, found.references, strict=True)]
    said = [mentioned(text, names) for text in found.texts]
    half = max(1, len(said) // 2)
    own, other = chair(said, present), chair([*said[half:], *said[:half]], present)
    both = {f"{name}{ending}": value for ending, part in (("", own), (".other", other)) for name, value in part.items()}
    return {**both, "mentioned": sum(map(len, said)) / len(said), "things": len(things)}


def _present(objects: object, captions: Iterable[str], names: Names) -> set[str]:
    """Return the things in a picture."""
    texts = [*names_of(objects, COLUMN), *captions]
    return {thing for text in texts for thing in mentioned(text, names)}


def read_things(path: str) -> dict[str, list[str]]:
    """Return the synonyms of things. Raises UserError where the file is no object, thing -> list of texts."""
    tree = json_option(path, "things")
    things = tree if isinstance(tree, dict) else {}
    if not things or not all(isinstance(w, list) and all(isinstance(x, str) for x in w) for w in things.values()):
        raise UserError(f"options.things: {path} is not right; it must be an object, thing -> list of synonyms")
    return things
