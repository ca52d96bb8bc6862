"""The dataset card: the YAML header `datasets` and the Hub read, and what a reader needs to know.

The same run gives the same card on every machine: nothing in it is a time, a rate or a path. A card that is written
again keeps the user's sections, which stand between markers, and the user's keys in the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from PIL import Image

from granary.curation.errors import UserError
from granary.curation.hub.template import TEMPLATE, render
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.facts import About, Counts, Facts
from granary.curation.runs.run import Run
from granary.curation.runs.splits import TRAIN, loadable
from granary.curation.store import storage
from granary.curation.store.trees import yaml_tree

if TYPE_CHECKING:
    from datasets import Features
    from datasets.features.features import FeatureType

Tree = dict[str, Any]  # YAML as it is read: a recipe, or the header of a card
GENERATED = (  # header keys that always follow the run or the training
    "pretty_name", "configs", "dataset_info", "size_categories", "library_name", "pipeline_tag", "model-index",
)  # fmt: skip
T = TypeVar("T")
SHEET_IMAGES, SHEET_COLUMNS, SHEET_SIDE, SHEET_GROUPS = 32, 8, 128, 8
SLOT = re.compile(r"<!-- yours: begin (\w+) -->\n(.*?)<!-- yours: end \1 -->", re.DOTALL)
MEANINGS = {
    "id": "first 32 hex characters of the SHA-256 of the file",
    "image": "the original bytes, and the name of the file",
    "width": "pixels, upright",
    "height": "pixels, upright",
    "label": "as the source had it",
    "captions": "as the source had them",
    "source": "name of the source, and the uri in it",
    "metadata": "JSON, as the source had it",
    "seed_ids": "ids of the seeds that retrieved the image, best first",
    "similarities": "cosine similarity to those seeds",
}
CURATED: About = {
    "made": "made by `granary curate`. Every image is the original file, never re-encoded.",
    "meanings": {},
    "tags": ["dataset-curation"],
    "task_categories": ["image-feature-extraction"],
    "method": "DINOv2 (Oquab et al., [arXiv 2304.07193](https://arxiv.org/abs/2304.07193)), section 3.",
    "limits": [
        "Nobody has looked at every image: near duplicates below the threshold and unwanted content may remain.",
        "Labels, captions and metadata are as the sources had them and were not checked.",
    ],
    "local": ["balance.captions.entries", "decisions"],
}
SIZES = [(1000**power, prefix) for power, prefix in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB"))]


def write_card(
    facts: Facts,
    recipe: Tree,
    features: Mapping[str, Features],
    earlier: str = "",
    repository: str = "",
    sheet: bool = True,
    template: str | None = None,
) -> str:
    """Return README.md of a dataset.

    Args:
        facts: run.json; `name`, `samples`, `shards` and `bytes` must be there. `card` says what differs from one kind
            of run to another, see CURATED: what it is and how it was made, what the columns mean, tags, task
            categories, the method's paper, known limits, and the recipe's keys that belong to one machine.
        recipe: the recipe, every field filled in.
        features: for each config the `datasets.Features` of its files; "default" first.
        earlier: the card that this one takes the place of; its user's sections and header keys are kept.
        repository: ORG/NAME, where it is known.
        sheet: whether contact-sheet.jpg stands beside the card.
        template: jinja2 text in the place of the shipped card.md.j2.

    Raises:
        UserError: the user's template cannot be rendered, see `granary.curation.hub.template.render`.
    """
    kept, yours = parse_card(earlier)
    about = facts.get("card") or CURATED
    meanings = MEANINGS | about["meanings"]
    header = {**_header(facts, about, features), **{key: kept[key] for key in kept if key not in GENERATED}}
    if (licence := _licence(recipe)) is not None:
        header["license"] = licence
    encoders, counted = recipe.get("encoder") or {}, counts_of(facts)
    values = dict(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        name=facts["name"],
        kind=facts.get("kind", "curate"),
        samples=facts["samples"],
        shards=facts["shards"],
        size=written_size(facts["bytes"]),
        sheet=sheet,
        repository=repository,
        configs=list(features),
        splits={config: loadable(counted[config]) if config in counted else {TRAIN: {}} for config in features},
        columns=[(name, _type(kind), meanings.get(name, "")) for name, kind in features["default"].items()],
        about=about,
        licence=header.get("license"),
        encoders={role: without_path(str(encoders.get(role, ""))) for role in ("copy", "retrieval")},
        recipe=yaml.safe_dump(shareable(recipe, about["local"]), sort_keys=False, allow_unicode=True),
        **{key: facts.get(key) or {} for key in ("sources", "flow", "thresholds", "leak_audit", "retrieval")},
        versions={
            package: version.partition("+")[0]  # builds for other devices have the same number
            for package, version in (facts.get("versions") or {}).items()
            if package not in ("python", "apache-beam")
        },
        notes=facts.get("notes") or [],
    )
    return render(template, values, yours)


def own_template(run: Run) -> str | None:
    """Return the card's template that the user put into the run directory; None when there is none."""
    path = run.path(TEMPLATE)
    try:
        return storage.read_bytes(path).decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"card: {path} is no text in UTF-8 ({error}); correct it, or delete the file") from None


def earlier_card(run: Run) -> str:
    """Return README.md of a run's dataset, "" when there is none yet.

    Raises:
        UserError: its header cannot be read, so that what the user wrote there would be lost.
    """
    path = run.path("dataset", "README.md")
    try:
        text = storage.read_bytes(path).decode()
        parse_card(text)
    except FileNotFoundError:
        return ""
    except ValueError as error:
        raise UserError(f"card: the header of {path} is not YAML ({error}); correct it, or delete the file") from None
    return text


def parse_card(text: str) -> tuple[Tree, dict[str, str]]:
    """Return the header of a card and its user's sections by name; empty where there is none.

    Raises:
        ValueError: the header is not a YAML mapping.
    """
    match = re.match(r"---\n(.*?)---\n", text, re.DOTALL)
    header = yaml_tree(match.group(1)) if match else {}
    if not isinstance(header, dict):
        raise ValueError("the header is not a mapping")
    return header, dict(SLOT.findall(text))


def _header(facts: Facts, about: About, features: Mapping[str, Features]) -> Tree:
    infos, counted = [], counts_of(facts)
    for config, kinds in features.items():
        info: Tree = {"config_name": config, "features": kinds._to_yaml_list()}
        if config in counted:
            size = counted[config]["bytes"]
            splits = [
                {"name": name, "num_bytes": one["bytes"], "num_examples": one["samples"]}
                for name, one in loadable(counted[config]).items()
            ]
            info |= {"splits": splits, "download_size": size, "dataset_size": size}
        infos.append(info)
    return {
        "pretty_name": facts["name"],
        "license": "unknown",
        "size_categories": [size_category(facts["samples"])],
        "task_categories": about["task_categories"],
        "tags": ["granary", *about["tags"]],
        "configs": [
            {
                "config_name": config,
                "data_files": [{"split": split, "path": path} for split, path in patterns(config, counted).items()],
                **({"default": True} if config == "default" and len(features) > 1 else {}),
            }
            for config in features
        ],
        "dataset_info": infos if len(infos) > 1 else {key: infos[0][key] for key in infos[0] if key != "config_name"},
    }


def folder_of(config: str) -> str:
    """Return the folder of a config's Parquet files in the repository."""
    return "data" if config == "default" else config


def counts_of(facts: Facts) -> dict[str, Counts]:
    """Return the counts of every config of a run's dataset, "default" first."""
    whole = Counts(samples=facts["samples"], shards=facts["shards"], bytes=facts["bytes"])
    return facts.get("configs") or {"default": whole}


def patterns(config: str, counted: Mapping[str, Counts]) -> dict[str, str]:
    """Return for each split of a config the pattern of its Parquet files; a merged config has train alone.

    Args:
        config: its name.
        counted: the counts of the configs that are shards of the run.
    """
    folder = folder_of(config)
    if config not in counted:
        return {TRAIN: f"{folder}/part-*.parquet"}
    return {split: f"{folder}/{split}-*.parquet" for split in loadable(counted[config])}


def _licence(recipe: Tree) -> str | None:
    """Return the recipe's licence; "unknown" is no statement, so that one written into the card stays."""
    licence = recipe.get("licence")
    return None if licence in (None, "", "unknown") else str(licence)


def shareable(recipe: Tree, local: Sequence[str] = ()) -> Tree:
    """Return a recipe without what belongs to one machine: paths, devices, the run directory.

    Args:
        recipe: every field filled in.
        local: further keys to leave out, nested ones with dots.
    """
    shared = {key: value for key, value in recipe.items() if key not in ("out", "unit_rows", *local)}
    for key, _, rest in (name.partition(".") for name in local):
        if rest and isinstance(shared.get(key), dict):
            shared[key] = shareable(shared[key], [rest])
    for role in ("pool", "seeds", "references"):
        if role in shared:
            shared[role] = [{key: value for key, value in source.items() if key != "path"} for source in shared[role]]
    if "encoder" in shared:
        shared["encoder"] = {
            key: without_path(value) if isinstance(value, str) else value
            for key, value in shared["encoder"].items()
            if key not in ("device", "batch")
        }
    return shared


def without_path(spec: str) -> str:
    """Return an encoder's name with a local path cut down to its last part; a model id of the Hub stays whole."""
    kind, colon, where = spec.partition(":")
    hub_id = kind == "hf" and re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?(\?.*)?", where)
    return spec if hub_id or "/" not in where else kind + colon + where.rstrip("/").rsplit("/", 1)[-1]


def contact_sheet_of(urls: Sequence[str], limits: DecodeLimits) -> bytes | None:
    """Return a JPEG of pictures from all over the shards; None when none of those chosen can be decoded.

    Args:
        urls: of the shards, in order.
        limits: the limits under which they are decoded.
    """
    from granary.curation.report.thumbnails import contact_sheet, shrink

    pictures = [shrink(picture, SHEET_SIDE) for picture in _pictures(urls, limits)]
    chosen = _spread(pictures, SHEET_IMAGES)
    return contact_sheet(chosen, SHEET_COLUMNS, SHEET_SIDE) if chosen else None


def _pictures(urls: Sequence[str], limits: DecodeLimits) -> Iterator[Image.Image]:
    """Yield about SHEET_IMAGES pictures, of a few row groups: each is read whole."""
    import pyarrow.parquet as pq

    shards = _spread(urls, SHEET_GROUPS)
    for url in shards:
        with storage.open_read(url) as file:
            parquet = pq.ParquetFile(file, pre_buffer=False)
            groups = _spread(range(parquet.num_row_groups), -(-SHEET_GROUPS // len(shards)))
            for group in groups:
                column = parquet.read_row_group(group, ["image"]).column("image")
                share = -(-SHEET_IMAGES // (len(shards) * len(groups)))
                for row in _spread(range(len(column)), share):
                    try:
                        yield decode(column[row].as_py()["bytes"] or b"", limits, SHEET_SIDE).image
                    except DecodeError:
                        continue


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, as far from one another as can be."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def written_size(size: int) -> str:
    """Write a number of bytes in the unit that reads best."""
    return next((f"{size / unit:,.1f} {name}" for unit, name in SIZES if size >= unit), f"{size} bytes")


def _type(feature: FeatureType) -> str:
    if isinstance(feature, dict):
        return "struct"
    if type(feature).__name__ == "Image":
        return "image"
    if classes := getattr(feature, "names", None):
        return f"{len(classes):,} classes"
    inner = getattr(feature, "feature", None)
    return f"list of {_type(inner)}" if inner is not None else str(getattr(feature, "dtype", type(feature).__name__))


def size_category(samples: int) -> str:
    """Return the Hub's name of a dataset's size."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B"]
    return names[min(len(names) - 1, sum(samples >= 10**power for power in range(3, 10)))]
