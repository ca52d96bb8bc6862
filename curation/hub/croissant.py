"""The Croissant description of a dataset: JSON-LD that search engines and `mlcroissant` read.

MLCommons Croissant 1.0, http://mlcommons.org/croissant/1.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from granary.curation.hub.card import MEANINGS, folder_of

if TYPE_CHECKING:
    from datasets import Features
    from datasets.features.features import FeatureType

Node = dict[str, object]  # of JSON-LD
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(
    name: str,
    licence: object,
    address: str,
    features: Mapping[str, Features],
    splits: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return croissant.json.

    Args:
        name: of the dataset.
        licence: as in the card's header.
        address: web address of the repository.
        features: for each config the `datasets.Features` of its files.
        splits: of the configs whose files are named after their splits, the names.
    """
    splits = splits or {}
    tree = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"{name}: a dataset made with granary. The card describes how.",
        "license": licence,
        "url": address,
        "distribution": [_repository(address), *map(_file_set, features)],
        "recordSet": [
            *(_split_set(config, names) for config, names in splits.items()),
            *(_record_set(config, kinds, config in splits) for config, kinds in features.items()),
        ],
    }
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _repository(address: str) -> Node:
    return {
        "@type": "cr:FileObject",
        "@id": "repository",
        "name": "repository",
        "description": "The git repository of the dataset.",
        "contentUrl": address,
        "encodingFormat": "git+https",
        "sha256": "https://github.com/mlcommons/croissant/issues/80",  # a repository has none; the field is required
    }


def _file_set(config: str) -> Node:
    return {
        "@type": "cr:FileSet",
        "@id": f"{config}-files",
        "containedIn": {"@id": "repository"},
        "encodingFormat": "application/x-parquet",
        "includes": f"{folder_of(config)}/*.parquet",
    }


def _split_set(config: str, names: Sequence[str]) -> Node:
    """Return the record set that lists the splits of a config."""
    field = f"{config}-splits/name"
    return {
        "@type": "cr:RecordSet",
        "@id": f"{config}-splits",
        "name": f"{config}-splits",
        "dataType": "cr:Split",
        "key": {"@id": field},
        "field": [{"@type": "cr:Field", "@id": field, "name": field, "dataType": "sc:Text"}],
        "data": [{field: name} for name in names],
    }


def _split_field(config: str) -> Node:
    """Return the field that says of a record which split its file is of."""
    return {
        "@type": "cr:Field",
        "@id": f"{config}/split",
        "name": f"{config}/split",
        "dataType": "sc:Text",
        "references": {"field": {"@id": f"{config}-splits/name"}},
        "source": {
            "fileSet": {"@id": f"{config}-files"},
            "extract": {"fileProperty": "fullpath"},
            "transform": {"regex": rf"{folder_of(config)}/(\w+)-\d+-of-\d+\.parquet$"},
        },
    }


def _record_set(config: str, features: Features, by_split: bool) -> Node:
    fields = [
        _field(f"{config}/{name}", kind, config, name, "", MEANINGS.get(name, "")) for name, kind in features.items()
    ]
    if by_split and "split" not in features:
        fields.append(_split_field(config))
    return {"@type": "cr:RecordSet", "@id": config, "name": config, "field": fields}


def _field(identity: str, kind: FeatureType, config: str, column: str, path: str, meaning: str = "") -> Node:
    """Return one field, repeated where it is a list; `path` leads from the column to a part of a struct."""
    repeated = getattr(kind, "feature", None)
    if repeated is not None:
        return _field(identity, repeated, config, column, path, meaning) | {"repeated": True}
    field: Node = {"@type": "cr:Field", "@id": identity, "name": identity}
    if meaning:
        field["description"] = meaning
    if isinstance(kind, dict):
        return field | {
            "subField": [
                _field(f"{identity}/{name}", inner, config, column, f"{path}.{name}".lstrip("."))
                for name, inner in kind.items()
            ]
        }
    data_type = _data_type(kind)
    path = f"{path}.bytes".lstrip(".") if data_type == "sc:ImageObject" else path
    source: Node = {"fileSet": {"@id": f"{config}-files"}, "extract": {"column": column}}
    if path:
        source["transform"] = {"jsonPath": path}
    return field | {"dataType": data_type, "source": source}


def _data_type(kind: FeatureType) -> str:
    """Return the type of a column; bytes are text, as Croissant 1.0 has no type for them and readers give them back."""
    name = type(kind).__name__ if type(kind).__name__ == "Image" else str(kind.dtype)
    names = {"Image": "sc:ImageObject", "bool": "sc:Boolean"}
    numbers = {"int": "sc:Integer", "float": "sc:Float"}
    return names.get(name) or next((said for part, said in numbers.items() if part in name), "sc:Text")
