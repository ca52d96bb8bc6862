"""What the command line does, as functions for notebooks and scripts.

Fields of a recipe are keyword arguments, nested ones as a mapping or by their dotted name:

    curate(pool="photos", out="runs/mine", dedup={"threshold": 0.9})
    curate(pool="photos", out="runs/mine", **{"dedup.threshold": 0.9})

Every call that runs a pipeline also takes `config`, a recipe (YAML) whose fields the others override; `workers`, local
workers, one per core by default; `runner`, a profile of configs/runners/; `beam`, a list of options for Beam;
`steal_lock`, to work in a run directory that another command holds; and `quiet`, which shows no progress. A call that
was interrupted or killed goes on where it stopped when it is repeated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from granary.opened import Run, Training, open_run, open_training

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

Path = str | os.PathLike[str]
Source = Path | Mapping[str, Any]  # a path or URL, or the fields of a source
Sources = Source | Sequence[Source]
CALL: dict[str, Any] = {
    "workers": 0,
    "runner": None,
    "beam": (),
    "steal_lock": False,
    "quiet": False,
}  # what is no field of a recipe


def curate(
    *,
    pool: Sources,
    out: Path,
    seeds: Sources | None = None,
    references: Sources | None = None,
    offline: bool = False,
    retry_failed: bool = False,
    **fields: Any,
) -> Run:
    """Curate a pool of images: deduplicate, remove leaks, retrieve what resembles the seeds, write shards.

    Args:
        pool: where the uncurated images are: a folder, shards, a dataset or a list of URLs, or several of them.
        out: the run directory to write, a path or URL.
        seeds: curated images that retrieve; without them all that survives is kept.
        references: evaluation images that must not leak.
        offline: whether no model may be downloaded; pictures are then matched by layout where none is at hand.
        retry_failed: whether all that an earlier run could not read is tried again, not what may pass alone.
        fields: of `granary.curation.recipe.CurateRecipe`, and what every call takes.

    Returns:
        The finished run.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    sources = {"pool": pool, "seeds": seeds, "references": references}
    return _run("curate", {**sources, "out": out, **fields}, offline=offline, retry_failed=retry_failed)


def render(*, out: Path, **fields: Any) -> Run:
    """Render a grid of factors through UnrealCV, or the embedded world.

    Args:
        out: the run directory to write, a path or URL.
        fields: of `granary.synth.pug.recipe.RenderRecipe`, and what every call takes; usually a config, for example
            "render/animals_demo.yaml", which is shipped.

    Returns:
        The finished run.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    return _run("render", {"out": out, **fields})


def sample(*, data: Sources, model: str, classifier: str, out: Path, **fields: Any) -> Run:
    """Sample a diffusion model under the feedback of a classifier.

    Args:
        data: labelled images whose classes are filled up.
        model: the diffusion model, a path or an id of the Hub.
        classifier: the classifier, a path or an id of the Hub.
        out: the run directory to write, a path or URL.
        fields: of `granary.synth.feedback.recipe.SampleRecipe`, and what every call takes.

    Returns:
        The finished run.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    return _run("sample", {"data": data, "model": model, "classifier": classifier, "out": out, **fields})


def pack(
    *,
    out: Path,
    annotations: Sources | None = None,
    images: Sources | None = None,
    videos: Path | None = None,
    **fields: Any,
) -> Run:
    """Pack images with mask-aligned descriptions into dense captions, or videos with the clips of their steps.

    Args:
        out: the run directory to write, a path or URL.
        annotations: descriptions in one of the formats of `granary.curation.dense.readers`, or steps of videos.
        images: where the images are that they name.
        videos: in the place of images, the folder of the videos; `format` then says where clips come from.
        fields: of `granary.curation.dense.recipe.PackRecipe`, of videos of `granary.curation.videos.recipe`, and what
            every call takes.

    Returns:
        The finished run.

    Raises:
        UserError: the recipe cannot be run, or a work unit failed.
    """
    return _run("pack", {"annotations": annotations, "images": images, "videos": videos, "out": out, **fields})


def train(*, data: Sources, out: Path, quiet: bool = False, steal_lock: bool = False, **fields: Any) -> Training:
    """Train a model on datasets of granary.

    Args:
        data: runs or their datasets, or a mixture ("RUN * 3 + RUN2").
        out: the training directory to write, a path or URL.
        quiet: show no progress.
        steal_lock: work in a directory that another process holds.
        fields: of `granary.training.recipe.TrainRecipe`, and `config`, for example "train/dinov2_tiny.yaml", which is
            shipped.

    Returns:
        The training; its `finished` is false when a signal stopped it, and the same call goes on.

    Raises:
        UserError: a mistake in the recipe or the data, or the loss is no number any more.
    """
    from granary.training.recipe import TrainRecipe
    from granary.training.run.loop import train as run_training

    run_training(_recipe(TrainRecipe, {"data": data, "out": out, **fields}), None if quiet else _console(), steal_lock)
    return open_training(out)


def evaluate(
    protocols: str | Sequence[str],
    *,
    model: str | Training,
    data: Path | Run | Mapping[str, str],
    quiet: bool = False,
    **fields: Any,
) -> dict[str, dict[str, Any]]:
    """Measure a model by protocols.

    Args:
        protocols: one or more of those of `granary evaluate --help`, for example "knn" or ["knn", "linear"].
        model: a training, a checkpoint, "hf:ID_OR_PATH", "random:RECIPE.yaml" or "pixels".
        data: a run, its dataset, or what the protocol reads; with names of columns {"path": ..., "label": ...}.
        quiet: print no scores.
        fields: of `granary.pipelines.engine.protocols.EvaluateRecipe`, and `config`; what one protocol alone takes
            goes into `options`.

    Returns:
        protocol -> metric -> value, and under "settings" what the scores were made with.

    Raises:
        UserError: for an option that no protocol takes, or what a protocol finds wrong.
    """
    from granary.pipelines.engine.protocols import EvaluateRecipe
    from granary.training.evaluation.evaluate import evaluate as measure

    where = dict(data) if isinstance(data, Mapping) else _url(data)
    given = {"protocols": protocols, "model": _url(model), "data": where, **fields}
    return measure(_recipe(EvaluateRecipe, given), (lambda text: None) if quiet else print)


def publish(
    run: Path | Run | Training,
    repo: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    branch: str = "main",
    ledger: bool = False,
    embeddings: bool = False,
    licence: str | None = None,
) -> None:
    """Publish a dataset or a model on the Hugging Face Hub; killed, the same call goes on where it stopped.

    Args:
        run: a finished run, a training, or the path or URL of one.
        repo: ORG/NAME.
        private: create the repository as private.
        dry_run: check everything and print what would be sent.
        branch: to write to; created where it is missing.
        ledger: publish the ledger too, as a config of its own.
        embeddings: publish the copy descriptors of the kept images too, as a config of their own.
        licence: an identifier that the Hub knows, in the place of the recipe's.

    Raises:
        UserError: the run cannot be published, or the Hub refused.
    """
    from granary.pipelines.publish import publish as send

    send(
        _url(run),
        repo,
        private=private,
        dry_run=dry_run,
        branch=branch,
        ledger=ledger,
        embeddings=embeddings,
        licence=licence,
    )


def _run(name: str, given: dict[str, Any], **flags: bool) -> Run:
    """Run the pipeline of one kind; flags: those of its command."""
    from granary.pipelines.engine.profiles import load_profile
    from granary.pipelines.engine.units import Engine
    from granary.pipelines.kinds.registry import KINDS, kind_of

    workers, runner, beam, steal_lock, quiet = (given.pop(key, default) for key, default in CALL.items())
    kind = kind_of(name, _written(given)) if name == "pack" else KINDS[name]
    recipe = _recipe(kind.model(), given)
    engine = Engine(load_profile(runner, beam) if runner else beam, workers, steal_lock)
    kind.start(recipe, engine, _console(quiet), **flags)
    return open_run(recipe.out)


def _written(given: Mapping[str, Any]) -> Mapping[str, object]:
    """Return the recipe that a config and keyword arguments make, unchecked."""
    from granary.pipelines.engine.recipe import merged

    values = {key: _plain(value) for key, value in given.items() if value is not None}
    return merged(values.pop("config", None), values)


def _recipe(model: type[BaseModel], given: dict[str, Any]) -> Any:
    """Return the recipe that a config and keyword arguments make."""
    from granary.pipelines.engine.fields import fields
    from granary.pipelines.engine.recipe import merged, validated

    values = {key: _plain(value) for key, value in given.items() if value is not None}
    config, keys = values.pop("config", None), [field.key for field in fields(model)]
    return validated(model, merged(config, dict(_dotted(values, keys))))


def _dotted(values: Mapping[str, Any], keys: Sequence[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values by dotted name; a mapping for a group of fields gives those it names."""
    for name, value in values.items():
        group = f"{prefix}{name}."
        if isinstance(value, dict) and any(key.startswith(group) for key in keys):
            yield from _dotted(value, keys, group)
        else:
            yield prefix + name, value


def _plain(value: Any) -> Any:
    """Return a value with every path in it as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _url(what: Path | Run | Training) -> str:
    return what.url if isinstance(what, Run | Training) else os.fspath(what)


def _console(quiet: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, quiet=quiet)
