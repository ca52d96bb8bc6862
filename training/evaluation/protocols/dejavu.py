"""Déjà vu: what two models know by heart of the pictures that one of them was trained on and the other was not.

Meehan et al. 2023 (arXiv 2304.13850). The data are a run of `granary partition`. Each model attacks the crops beside
the objects of parts A and B with part X as its public pictures; the score is how much better the model does that was
trained on the part. Crops and public pictures are seen as all of granary's evaluations see pictures: short edge to the
model's side, the middle cut out, no augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pydantic import Field

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data.splits import held_out
from granary.training.evaluation.attack import Attack, CropOptions, Knowledge, crop_views, knowledge
from granary.training.evaluation.features import BATCH, Features, check_dtype
from granary.training.evaluation.memorisation import TOP, Direction, by_class, deja_vu, memorised, quadrants
from granary.training.evaluation.parts import Parts, check_apart, check_roles, opened_parts
from granary.training.evaluation.periphery import NO_CROP
from granary.training.evaluation.projections import BACKBONE, SITES
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.protocols.layers import ridge_probe
from granary.training.evaluation.protocols.linear import PENALTIES
from granary.training.evaluation.scores import Scores, Whole, Words, dead_letter
from granary.training.evaluation.tasks import Side, Task, TaskSettings
from granary.training.evaluation.trained import check_twins, checkpoints

HELD = 0.2  # share of the public pictures that tests the linear probe
NOTES = (
    "SITE.score_P: accuracy of the target less that of the reference, each over the P % of the crops that it is surest "
    "of, mean over parts A and B; .error: its standard error.",
)


class DejaVuOptions(CropOptions, frozen=True):
    """Options of the déjà vu test."""

    reference: str | None = Field(
        None, description="the model trained on part B where --model was on part A, by the same recipe"
    )
    k: int = Field(100, ge=1, description="public neighbours that vote")
    percent: Whole = Field(
        (20, 5, 10, 30, 100), min_length=1, description="of the crops, those that a model is surest of"
    )
    sites: Words = Field((), description=f"of {', '.join(SITES)}; default: both, where there is a projector")
    checkpoints: bool = Field(False, description="measure at each step too of which both trainings have a checkpoint")
    reference_seed: int | None = Field(None, ge=0, description="of random weights of the reference; default: --seed")
    examples: int = Field(20, ge=0, description="pictures of each part that the JSON lists as known by heart")


def evaluate(measured: Measured, options: DejaVuOptions) -> Scores:
    """Let two models attack parts A and B, and compare them; `split` narrows the attacked pictures alone.

    Returns:
        For each site SITE.score_P with `.error`, the accuracies `.target` and `.reference`, the scores `.A` and `.B`,
        and with more than five classes `.top5`; SITE.memorised, .correlated, .misrepresented, .unassociated; SITE.ties;
        linear, of the backbone, with `.reference`; pictures with counts; with `checkpoints` step_N.SITE.score_P.

    Raises:
        UserError: the run has no parts, a part is empty, the models are no twins, or know what they should not.
    """
    _check(measured, options)
    models = measured.model, str(options.reference)
    check_twins(*models)
    parts = opened_parts(measured, "dejavu")
    check_apart(parts)
    notes = check_roles(parts, *models)
    attack = Attack(options.sites, crop_views(measured, options, parts), options.k)
    target, reference = both = _attacks(measured, options, parts, attack, models)
    scores: dict[str, float | None] = {}
    for site in target.answers:
        scores |= dict(_of_site(site, _directions(target, reference, site), parts, options, measured.seed))
    scores |= {**_probed(measured, parts, both), **_counts(parts, target)}
    if options.k > len(target.ids):
        notes.append(f"k = {options.k}: there are only {len(target.ids):,} public pictures; all vote")
    if options.checkpoints:
        scores |= dict(_over_steps(measured, options, parts, attack, models))
    return Scores(scores, notes, _settings(parts, both, options))


PROTOCOL = Protocol(evaluate, DejaVuOptions, ("split", "batch", "limit", "seed"), BATCH, NOTES)


def _check(measured: Measured, options: DejaVuOptions) -> None:
    """Raise UserError for options that leave nothing to do."""
    if options.reference is None:
        raise UserError("options.reference: missing; give the model that was trained on part B by the same recipe")
    if not all(0 < number <= 100 for number in options.percent):
        raise UserError(f"options.percent: {options.percent} is not right; give numbers above 0, at most 100")
    unknown = [site for site in options.sites if site not in SITES]
    if unknown:
        raise UserError(f"options.sites: {unknown[0]!r} is not right; the sites are {', '.join(SITES)}")
    check_dtype(measured.dtype)


def _attacks(
    measured: Measured, options: DejaVuOptions, parts: Parts, attack: Attack, models: Sequence[str]
) -> tuple[Knowledge, Knowledge]:
    """Return what target and reference say."""
    seeds = measured.seed, measured.seed if options.reference_seed is None else options.reference_seed
    target, reference = (
        knowledge(measured, parts, attack, name, seed) for name, seed in zip(models, seeds, strict=True)
    )
    if target.answers.keys() != reference.answers.keys():
        raise UserError(
            f"options.sites: one of {' and '.join(models)} has no projector; give backbone, or models that are alike"
        )
    return target, reference


def _directions(target: Knowledge, reference: Knowledge, site: str) -> list[Direction]:
    """Return what is compared: for part A the target is the target, for part B it is the reference."""
    one, other = target.answers[site], reference.answers[site]
    return [Direction.of(one["A"], other["A"]), Direction.of(other["B"], one["B"])]


def _of_site(
    site: str, directions: Sequence[Direction], parts: Parts, options: DejaVuOptions, seed: int
) -> Iterator[tuple[str, float | None]]:
    """Yield the scores of a site."""
    for percent in options.percent:
        name = f"{site}.score_{percent}"
        yield from deja_vu(directions, percent / 100, seed).told(name)
        if len(parts.classes) > TOP:
            yield f"{name}.top5", deja_vu(directions, percent / 100, seed, among=True).score
    yield from ((f"{site}.{quadrant}", share) for quadrant, share in quadrants(directions).items())
    yield f"{site}.ties", sum(direction.target.ties for direction in directions) / len(directions)


def _probed(measured: Measured, parts: Parts, both: Sequence[Knowledge]) -> dict[str, float | None]:
    """Return the accuracy of a linear probe of both backbones on public pictures: it does not show what they know."""
    if BACKBONE not in both[0].public:
        return {}
    held = torch.from_numpy(held_out(np.array([f"dejavu/{name}" for name in both[0].ids]), HELD))
    if held.all() or not held.any():
        return {}
    accuracies = [_linear(known, held, parts.classes, measured) for known in both]
    return {"linear": accuracies[0], "linear.reference": accuracies[1], "linear.chance": 1 / len(parts.classes)}


def _linear(known: Knowledge, held: torch.Tensor, classes: list[str], measured: Measured) -> float:
    """Return the accuracy of ridge regression on a backbone's features of some public pictures, of the others.

    Args:
        known: of the model.
        held: (n,) bool, which pictures test.
        classes: names of the labels.
        measured: the device.
    """
    every = Features(known.public[BACKBONE][:, None], None, known.labels, known.ids, [])
    side: Side = {"data": measured.data, "split": "part=X"}
    settings: TaskSettings = {"model": "", "train": side, "test": side, "left_out": {}, "dead": []}
    task = Task(every.rows(~held), every.rows(held), classes, False, [], settings)
    _, predicted = ridge_probe(task, PENALTIES, torch_device(measured.device))
    return float((predicted == task.test.labels).double().mean())


def _counts(parts: Parts, known: Knowledge) -> dict[str, float | None]:
    """Return how many pictures were attacked, and what was left out of the parts."""
    dead = [kind for part in parts.attacked for _, kind, _ in known.dead[part]]
    answers = next(iter(known.answers.values()))
    return {
        "pictures": sum(len(one.ids) for one in answers.values()),
        **{f"pictures.{part}": len(one.ids) for part, one in answers.items()},
        "pictures.without_crop": dead.count(NO_CROP),
        "pictures.unreadable": len(dead) - dead.count(NO_CROP),
        "pictures.public": len(known.ids),
        "pictures.classes": len(parts.classes),
    }


def _over_steps(
    measured: Measured, options: DejaVuOptions, parts: Parts, attack: Attack, models: Sequence[str]
) -> Iterator[tuple[str, float | None]]:
    """Yield the scores at every step of which both trainings have a checkpoint.

    Raises:
        UserError: there is none.
    """
    first, second = (checkpoints(name) for name in models)
    steps = [step for step in first if step in second]
    if not steps:
        raise UserError(f"options.checkpoints: {' and '.join(models)} are no trainings with checkpoints of one step")
    for step in steps:
        target, reference = _attacks(measured, options, parts, attack, (first[step], second[step]))
        for site in target.answers:
            for percent in options.percent:
                found = deja_vu(_directions(target, reference, site), percent / 100, measured.seed)
                yield from found.told(f"step_{step}.{site}.score_{percent}")


def _settings(parts: Parts, both: tuple[Knowledge, Knowledge], options: DejaVuOptions) -> dict[str, object]:
    """Return what was decided, accuracies of all crops by class, and what is known by heart."""
    target, reference = both
    site = next(iter(target.answers))
    directions = _directions(target, reference, site)
    dead = [dead_letter(*row) for rows in target.dead.values() for row in rows if row[1] != NO_CROP]
    return {
        "widths": {name: vectors.shape[1] for name, vectors in target.public.items()},
        "site": site,
        "by_class": by_class(directions, parts.classes),
        "memorised": {
            part: memorised(direction, parts.classes, options.examples)
            for part, direction in zip(parts.attacked, directions, strict=True)
        },
        "dead": dead,
    }
