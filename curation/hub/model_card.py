"""The card of a model: the YAML header that the Hub reads, how to load it, what it was trained on, its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import yaml

from granary.curation.hub.card import GENERATED, Tree, parse_card
from granary.curation.hub.template import MODEL_TEMPLATE, render


class Score(NamedTuple):
    """One number of an evaluation: protocol, name of the data, metric, value."""

    protocol: str
    data: str
    metric: str
    value: float


class ModelFacts(NamedTuple):
    """What a card says of a model.

    Args:
        name: of the model.
        made: a sentence on what it is and how it came about.
        method: what it was trained by.
        task: a pipeline_tag of the Hub.
        reader: the call of transformers that reads it; "" where transformers has no such model.
        data: names and weights of the mixture.
        datasets: the ids of those that are on the Hub.
        scores: what was measured.
        alarms: of the training.
        recipe: every field filled in, nothing local in it.
        versions: of packages.
        licence: an identifier that the Hub knows; None where none was given.
    """

    name: str
    made: str
    method: str
    task: str
    reader: str
    data: Sequence[tuple[str, float]]
    datasets: Sequence[str]
    scores: Sequence[Score]
    alarms: Sequence[str]
    recipe: Tree
    versions: Mapping[str, str]
    licence: str | None


def write_model_card(facts: ModelFacts, earlier: str = "", repository: str = "", template: str | None = None) -> str:
    """Return README.md of a model.

    Args:
        facts: of the training.
        earlier: the card that this one takes the place of; its user's sections and header keys are kept.
        repository: ORG/NAME, where it is known.
        template: jinja2 text in the place of the shipped model_card.md.j2.

    Raises:
        UserError: the user's template cannot be rendered, see `granary.curation.hub.template.render`.
    """
    kept, yours = parse_card(earlier)
    header = {**_header(facts), **{key: kept[key] for key in kept if key not in GENERATED}}
    if facts.licence is not None:
        header["license"] = facts.licence
    values = dict(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        name=facts.name,
        made=facts.made,
        repository=repository,
        reader=facts.reader,
        data=[{"name": name, "weight": weight} for name, weight in facts.data],
        scores=[score._asdict() for score in facts.scores],
        alarms=list(facts.alarms),
        licence=header["license"],
        recipe=yaml.safe_dump(facts.recipe, sort_keys=False, allow_unicode=True),
        versions={package: version.partition("+")[0] for package, version in facts.versions.items()},
    )
    return render(template, values, yours, MODEL_TEMPLATE)


def _header(facts: ModelFacts) -> Tree:
    header: Tree = {
        "license": "unknown",
        "library_name": "transformers" if facts.reader else "granary",
        "pipeline_tag": facts.task,
        "tags": ["granary", facts.method],
    }
    if facts.datasets:
        header["datasets"] = list(facts.datasets)
    if facts.scores:
        header["model-index"] = [{"name": facts.name, "results": [_result(facts.task, s) for s in facts.scores]}]
    return header


def _result(task: str, score: Score) -> Tree:
    """Return a score as the Hub's model-index has it."""
    kind = "accuracy" if "accuracy" in score.metric else score.metric
    metric = {"type": kind, "value": score.value, "name": f"{score.metric} ({score.protocol})"}
    return {"task": {"type": task}, "dataset": {"type": score.data, "name": score.data}, "metrics": [metric]}
