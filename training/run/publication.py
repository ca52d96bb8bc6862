"""What of a training goes to the Hub: the model as transformers reads it, the whole training, recipe, curves and card.

The repository is a training directory too: `granary.load_training("hf:ORG/NAME")` reads its checkpoint. Nothing of this
machine is in it: paths are cut to their last name, addresses are sent without passwords and signatures.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import yaml
from safetensors.torch import load, save

from granary.curation.errors import UserError
from granary.curation.hub.card import Tree, own_template, without_path
from granary.curation.hub.merging import check_kept, merge_cards
from granary.curation.hub.model_card import ModelFacts, Score, write_model_card
from granary.curation.hub.publication import Publication
from granary.curation.hub.upload import Upload
from granary.curation.runs.run import Run
from granary.curation.store import storage
from granary.curation.store.addresses import without_secrets
from granary.curation.store.trees import mapping
from granary.training.models.checkpoint import (
    DESCRIBED,
    FILES,
    FOLDER,
    METHOD,
    STATE,
    chosen,
    described,
    method_weights,
)
from granary.training.models.export import export

TASKS = {
    "supervised": "image-classification",
    "clip": "zero-shot-image-classification",
    "clip_kd": "zero-shot-image-classification",
    "siglip": "zero-shot-image-classification",
    "llip": "zero-shot-image-classification",
    "coca": "image-to-text",
    "flava": "zero-shot-image-classification",
    "llava": "image-text-to-text",
    "generator_lora": "image-text-to-text",
    "vistallm": "image-text-to-text",
    "dci_lora": "zero-shot-image-classification",
}
HUB = "hf://datasets/"
WEIGHTS = FILES[2]
SCORES = "scores.json"
KINDS = {"vit": "Vision Transformer", "resnet": "ResNet", "hub": "model of transformers"}


def gather_training(url: str, repository: str, scratch: str, licence: str | None = None) -> Publication:
    """Gather what a training publishes; nothing is written into its directory.

    Args:
        url: of the training directory.
        repository: ORG/NAME, for the card.
        scratch: a folder of this machine for the exported model, kept until it is sent.
        licence: of the weights, an identifier that the Hub knows.

    Raises:
        UserError: there is no checkpoint, or something of it cannot be read.
    """
    url = url.rstrip("/")
    folder = chosen(url)
    if folder is None:
        raise UserError(f"run: {url} is a training without a checkpoint; train it for longer, or give another one")
    state, facts = _tree(folder, STATE), _tree(url, "run.json")
    recipe = shared(state.get("recipe") or _tree(url, "recipe.yaml"))
    reader = _exported(url, os.path.join(scratch, "exported"), repository)
    checkpoint, state = _checkpoint(folder, {**state, "recipe": recipe}, scratch)
    place = f"{FOLDER}/{folder.rsplit('/', 1)[1]}"
    texts = {
        "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "run.json": _written({**facts, "checkpoint": place}),
        f"{place}/{STATE}": _written(state),
        **dict(_curves(url)),
    }
    described = _facts(url, facts, recipe, reader, licence)
    template = own_template(Run(url))

    def texts_over(theirs: str) -> dict[str, str]:
        before = merge_cards("", theirs) if theirs else ""
        card = write_model_card(described, before, repository, template)
        check_kept(card, before)
        return {"README.md": card, **texts}

    weights = (*_files(os.path.join(scratch, "exported")), *checkpoint)
    return Publication(described.name, {}, texts_over(""), None, texts_over, weights)


def shared(value: Any) -> Any:
    """Return a tree of settings with nothing local or secret in its texts.

    >>> shared({"data": [{"path": "/home/me/runs/cats"}], "init": "hf:facebook/dinov2-small"})
    {'data': [{'path': 'cats'}], 'init': 'hf:facebook/dinov2-small'}
    """
    if isinstance(value, dict):
        return {key: shared(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shared(entry) for entry in value]
    return _shared_text(value) if isinstance(value, str) else value


def _shared_text(text: str) -> str:
    """Return an address as it is stored, a path by its last name, the name of a model of the Hub as it is."""
    if "://" in text:
        return without_secrets(text)
    prefix, colon, _ = text.partition(":")
    if colon and "/" not in prefix:
        return without_path(text)
    return posixpath.basename(text.rstrip("/"))


def _tree(folder: str, name: str) -> Tree:
    path = storage.join(folder, name)
    try:
        return mapping(name, storage.read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"run: {path} cannot be read ({' '.join(str(error).split())})") from error


def _written(tree: Mapping[str, object]) -> str:
    return json.dumps(tree, indent=2) + "\n"


def _exported(url: str, out: str, repository: str) -> str:
    """Write the model as transformers reads it; returns the call that does, "" where transformers has no such model.

    What a training wrote into its `model/` itself, as LoRA does the merged one, is taken as it is.
    """
    ready = storage.join(url, "model")
    if storage.exists(storage.join(ready, "config.json")):
        for name in storage.names(ready):
            storage.write_bytes(os.path.join(out, name), storage.read_bytes(storage.join(ready, name)))
        kind = _tree(ready, "config.json").get("architectures") or ["AutoModel"]
        return f"transformers.{kind[0]}.from_pretrained({repository!r})"
    try:
        return export(url, out).replace(repr(out), repr(repository))
    except UserError as error:
        if not str(error).startswith("export:"):
            raise
        return ""


def _files(folder: str) -> Iterator[Upload]:
    """Yield the exported files, to stand at the root of the repository."""
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        yield Upload(name, os.path.getsize(path), path)


def _checkpoint(folder: str, state: Tree, scratch: str) -> tuple[list[Upload], Tree]:
    """Return the files of a checkpoint but state.json, and what state.json says of them.

    What CLIP keeps of its options among its weights is cleaned like the recipe, so that both still say the same.
    """
    place = f"{FOLDER}/{folder.rsplit('/', 1)[1]}"
    urls = {name: storage.join(folder, name) for name in FILES}
    cleaned = _cleaned(state, urls[WEIGHTS])
    if cleaned is not None:
        urls[WEIGHTS] = os.path.join(scratch, WEIGHTS)
        storage.write_bytes(urls[WEIGHTS], cleaned)
        state = {**state, "sha256": {**state["sha256"], WEIGHTS: hashlib.sha256(cleaned).hexdigest()}}
    return [Upload(f"{place}/{name}", storage.size(path), path) for name, path in urls.items()], state


def _cleaned(state: Tree, url: str) -> bytes | None:
    """Return weights with nothing local in what an earlier version wrote of its options there; None for others."""
    if state.get("known") is not None:
        return None
    tensors = load(storage.read_bytes(url))
    tree = described(method_weights(tensors))
    clean = {**tree, "options": shared(tree.get("options", {}))}
    if not tree or clean == tree:
        return None
    text = bytearray(json.dumps(clean).encode())
    return save({**tensors, f"{METHOD}{DESCRIBED}": torch.frombuffer(text, dtype=torch.uint8)})


def _curves(url: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of the curves, and of the scores that `granary evaluate` wrote into the directory."""
    for name in ("metrics.csv", "probe.csv", "validation.csv"):
        path = storage.join(url, name)
        if storage.exists(path):
            yield name, storage.read_bytes(path).decode()
    scores = _scores(url)
    if scores:
        yield SCORES, _written(scores)


def _scores(url: str) -> Tree:
    """Return scores.json with nothing local in its settings; empty where there is none."""
    if not storage.exists(storage.join(url, SCORES)):
        return {}
    tree = _tree(url, SCORES)
    return {**tree, "settings": shared(tree.get("settings", {}))}


def _facts(url: str, facts: Tree, recipe: Tree, reader: str, licence: str | None) -> ModelFacts:
    method, kind = recipe["method"], (recipe.get("model") or {}).get("kind", "vit")
    paths = [(str(entry["path"]), float(entry.get("weight", 1.0))) for entry in recipe["data"]]
    probed = (recipe.get("probe") or {}).get("data") or paths[0][0]
    online: Tree = {"online probe": facts.get("probe", {}), "settings": {"data": probed}}
    return ModelFacts(
        name=str(facts["name"]),
        made=f"A {KINDS.get(kind, kind)}, trained by `granary train` with the method `{method}`: {facts['step']:,} of "
        f"{facts['steps']:,} steps, {recipe['batch']:,} pictures each.",
        method=method,
        task=TASKS.get(method, "image-feature-extraction"),
        reader=reader,
        data=paths,
        datasets=["/".join(path.removeprefix(HUB).split("/")[:2]) for path, _ in paths if path.startswith(HUB)],
        scores=[*_numbers(online), *_numbers(_scores(url))],
        alarms=list(facts.get("alarms", [])),
        recipe=recipe,
        versions=facts.get("versions", {}),
        licence=licence,
    )


def _numbers(scores: Tree) -> Iterator[Score]:
    """Yield the numbers of scores.json but chance levels and other details, which have a dot in their names."""
    data = scores.get("settings", {}).get("data", "")
    place = data.get("path", "") if isinstance(data, dict) else data
    for protocol, metrics in scores.items():
        for metric, value in metrics.items() if protocol != "settings" else ():
            if isinstance(value, int | float) and math.isfinite(value) and "." not in metric:
                yield Score(protocol, str(place), metric, float(value))
