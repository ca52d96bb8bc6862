"""Models compared on the same pictures in the same order: CKA of all pairs of sites, probes of all layers, attention.

The questions are those of Shekhar et al. 2023 (arXiv 2304.13089); the details are ours. CKA is that of HSIC_1 averaged
over batches. Class tokens are compared with class tokens, mean patches with mean patches, never one with the other.
Sites are matched by their kind and their relative depth. Shapes: n pictures, S and T sites.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.sampling import priority
from granary.training.data import shards
from granary.training.data.crops import Crop
from granary.training.data.drawn import drawn
from granary.training.data.passes import pieces
from granary.training.evaluation.comparison_recipe import CompareRecipe
from granary.training.evaluation.features import distinct, load
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols.attention import PICTURES, attention_of
from granary.training.evaluation.protocols.layers import LayersOptions, probed_sites
from granary.training.evaluation.similarity import batches, cka_map, kernels
from granary.training.evaluation.site_features import Column, Reduction, columns_of, vectors_of
from granary.training.evaluation.sites import Site
from granary.training.evaluation.subjects import Subject
from granary.training.models.registry import resolved
from granary.training.models.vit import VisionTransformer
from granary.training.report.compare import compare_page, pairs_table

# What kinds of sites have in common, whatever the kind of model.
ROLES = {"embed": "input", "stem": "input", "pixels": "input", "block": "output", "stage": "output"}
DRAWN = ("embed", "block", "norm", "stem", "stage", "pixels")  # kinds of sites of the curves by layer


@dataclass(frozen=True)
class Seen:
    """What is kept of a model: never its activations, whose size depends on its width.

    Args:
        columns: sites and reductions.
        kernels: of each batch, (columns, batch * batch).
        ids: of the pictures, in their order.
    """

    columns: Sequence[Column]
    kernels: Sequence[Tensor]
    ids: Sequence[str]

    def sites(self, reduction: Reduction) -> tuple[list[Site], list[Tensor]]:
        """Return the sites of a reduction, and their kernels."""
        chosen = [number for number, column in enumerate(self.columns) if column.reduction == reduction]
        return [self.columns[number].site for number in chosen], [part[chosen] for part in self.kernels]


def compare(recipe: CompareRecipe, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Compare models, write the page and the numbers, and print a table of the pairs.

    Args:
        recipe: what is compared, and how.
        say: prints lines.

    Returns:
        What the JSON file holds, see `compared`.

    Raises:
        UserError: a model or the data cannot be read.
    """
    tree = compared(recipe, recipe.named())
    storage.write_bytes(recipe.out, compare_page(tree).encode())
    numbers = f"{recipe.out.removesuffix('.html')}.json"
    storage.write_bytes(numbers, (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode())
    say(pairs_table(tree))
    say(f"written to {recipe.out} and {numbers}")
    return tree


def compared(recipe: CompareRecipe, models: Mapping[str, str]) -> dict[str, Any]:
    """Measure models and compare every two of them, each with itself too.

    Args:
        recipe: how.
        models: by name.

    Returns:
        Plain data: `settings` with the hash of the order of the pictures; `models` by name, with sites, curves by layer
        and attention; `pairs` with the map of each reduction, its values by depth, by kind of site, and their mean.
        A site that is the same for all pictures has None for its values.

    Raises:
        UserError: a model or the data cannot be read, or there are fewer than four pictures.
    """
    where = recipe.data.path, ("image",), recipe.split, recipe.holdout, "compare", recipe.data.columns
    dataset = drawn(shards.open_dataset(*where), recipe.samples, recipe.seed, "compare")
    labelled = recipe.probes and "label" in dataset.columns and len(shards.class_names([dataset])) > 1
    seen, told = dict[str, Seen](), dict[str, Any]()
    given = {key: getattr(recipe, key) for key in ("split", "device", "dtype", "batch", "seed")}
    for name, model in models.items():
        measured = Measured(model, recipe.data.path, columns=recipe.data.columns, **given)
        subject = load(measured)
        seen[name] = activations(subject, dataset, measured, recipe.cka_batch)
        if seen[name].ids != next(iter(seen.values())).ids:
            raise UserError(f"data: {name} was given other pictures than {next(iter(seen))}: the data change meanwhile")
        told[name] = {"model": resolved(model), "kind": subject.config.kind, "width": subject.config.width}
        told[name] |= {"class_token": subject.config.class_token}
        told[name] |= {"attention": _attention(subject, dataset, measured)}
        told[name] |= {"layers": _curves(subject, measured, recipe) if labelled else {}}
    ids = next(iter(seen.values())).ids
    used = sum(math.isqrt(part.shape[1]) for part in next(iter(seen.values())).kernels)
    settings = {**recipe.model_dump(mode="json"), "pictures": used, "unreadable": dataset.count - len(ids)}
    settings["order_sha256"] = hashlib.sha256("\n".join(ids[:used]).encode()).hexdigest()
    pairs = itertools.combinations_with_replacement(seen, 2)
    return {"settings": settings, "models": told, "pairs": [row for pair in pairs for row in _pair(seen, *pair)]}


def activations(subject: Subject, dataset: shards.Dataset, measured: Measured, batch: int) -> Seen:
    """Run a model over pictures in an order that has nothing to do with what they show; keep the kernels.

    Args:
        subject: on its device.
        dataset: opened.
        measured: device, pictures encoded at once, and the seed of the order.
        batch: pictures of a kernel.
    """
    columns, device = columns_of(subject), torch_device(measured.device)
    parts = list(pieces(dataset, Crop(1, subject.config.img_size, centre=True), seed=measured.seed))
    names = [name for part in parts for name in part["id"]]
    order = np.argsort(priority(measured.seed, distinct(names), "order"), kind="stable")
    pixels = torch.cat([part["image"][:, 0] for part in parts])[torch.from_numpy(order)]
    try:
        rows_of_batches = batches(len(names), batch)
    except ValueError as error:
        raise UserError(f"data: {error}; {dataset.path} has too few that can be decoded") from None
    found = list[Tensor]()
    for rows in rows_of_batches:
        encoded = [vectors_of(subject, x, columns, device, measured.dtype) for x in pixels[rows].split(measured.batch)]
        found.append(kernels([torch.cat(vectors) for vectors in zip(*encoded, strict=True)]))
    return Seen(columns, found, [names[place] for place in order])


def _pair(seen: Mapping[str, Seen], one: str, other: str) -> Iterator[dict[str, Any]]:
    """Yield the map of two models for each reduction that both have, with its summaries."""
    reductions: tuple[Reduction, ...] = ("cls", "mean")
    for reduction in reductions:
        (rows, left), (columns, right) = (seen[name].sites(reduction) for name in (one, other))
        if rows and columns:
            values = cka_map(left, right)
            yield {
                "one": one,
                "other": other,
                "reduction": reduction,
                "rows": [str(site) for site in rows],
                "columns": [str(site) for site in columns],
                "values": [[_number(value) for value in row] for row in values.tolist()],
                **summaries(values, rows, columns),
            }


def summaries(values: Tensor, rows: Sequence[Site], columns: Sequence[Site]) -> dict[str, Any]:
    """Return what a map says in few numbers: `depth`, `kinds` and `mean`.

    Args:
        values: (S, T), not a number where there is none.
        rows: S sites.
        columns: T sites.

    Returns:
        depth: (layer, value) of what goes into the blocks or stages and what comes out of each, at the layer of the
        other model of the same relative depth; kinds: for each kind of site the mean over such layers; mean: that of
        what comes out. None where there is no number.
    """
    matched = [(rows[i], float(values[i, j])) for i, j in matches(rows, columns)]
    kinds = dict.fromkeys(site.kind for site, _ in matched)
    return {
        "depth": [(site.layer, _number(value)) for site, value in matched if site.kind in ROLES],
        "kinds": {kind: _mean([value for site, value in matched if site.kind == kind]) for kind in kinds},
        "mean": _mean([value for site, value in matched if _role(site) == "output"]),
    }


def matches(rows: Sequence[Site], columns: Sequence[Site]) -> list[tuple[int, int]]:
    """Return the numbers of the pairs of sites that are of one kind and of the same relative depth.

    A block of a Vision Transformer and a stage of a ResNet are of one kind, so are their inputs.
    """
    deep, other = (max((site.layer for site in sites if site.kind != "norm"), default=0) for sites in (rows, columns))
    there = {(_role(site), site.layer): number for number, site in enumerate(columns)}
    pairs = []
    for number, site in enumerate(rows):
        layer = other + 1 if site.kind == "norm" else round(site.layer * other / max(1, deep))
        match = there.get((_role(site), layer))
        if match is not None:
            pairs.append((number, match))
    return pairs


def _role(site: Site) -> str:
    return ROLES.get(site.kind, site.kind)


def _curves(subject: Subject, measured: Measured, recipe: CompareRecipe) -> dict[str, list[tuple[int, float, float]]]:
    """Return for each reduction (layer, accuracy of the linear probe, accuracy of kNN) of the outputs of all layers."""
    options = LayersOptions(sites=DRAWN, holdout=recipe.holdout, pictures=recipe.probe_samples)
    probed, _ = probed_sites(subject, measured, options)
    reductions = dict.fromkeys(one.column.reduction for one in probed)
    return {
        name: [(one.column.site.layer, one.linear, one.knn) for one in probed if one.column.reduction == name]
        for name in reductions
    }


def _attention(subject: Subject, dataset: shards.Dataset, measured: Measured) -> dict[str, Any]:
    """Return distance in pixels and entropy in nats by layer, means over heads; nothing for other models."""
    if not isinstance(subject, VisionTransformer):
        return {}
    found = attention_of(subject, drawn(dataset, PICTURES, measured.seed, "attention"), measured)
    layers = found.cls.mean(dim=(0, 3)).tolist()  # (L, 3)
    return {
        "distance": [(number, layer[0]) for number, layer in enumerate(layers, 1)],
        "entropy": [(number, layer[1]) for number, layer in enumerate(layers, 1)],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
