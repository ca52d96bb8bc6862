"""The Croissant file of the datasets of every kind of run: each column, and each part of one, with what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pyarrow as pa
import pytest
from datasets import Features

from granary.curation.dense.recipe import Format
from granary.curation.dense.schema import image_features, pair_features
from granary.curation.hub.croissant import croissant
from granary.curation.instructions.schema import group_features, picture_features
from granary.curation.store import schema
from granary.curation.store.language import frames_features, quad_features
from granary.curation.videos.steps import video_features
from granary.pipelines.kinds.registry import KINDS
from granary.synth.feedback.outputs import sampled_features
from granary.synth.pug.planning import planned
from granary.synth.pug.recipe import RenderRecipe


def rendered() -> Features:
    """Return the features of a render run that writes all it can."""
    recipe = {
        "out": "-",
        "scene": {"world": "Desert"},
        "factors": {"character_name": ["Cat"], "character_scale": [0.5, 1.0]},
        "questions": {"kinds": ["count"]},
        "polls": {"kinds": ["random"]},
        "outputs": {"mask": True, "depth": True, "normals": True},
    }
    return planned(RenderRecipe.model_validate(recipe)).features()


FEATURES: dict[str, dict[str, Any]] = {
    "curate": {"plain": schema.curated_features, "classes": lambda: schema.curated_features(["cat"])},
    "render": {"all": rendered, "quads": quad_features, "videos": frames_features},
    "sample": {"plain": sampled_features},
    "pack": {
        **{form: lambda form=form: image_features(form) for form in get_args(Format)},
        "pairs": pair_features,
        "videos": video_features,
        "instructions": picture_features,
        "groups": group_features,
    },
}
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def columns(features: Features) -> Iterator[tuple[str, pa.DataType, bool]]:
    """Yield name, Arrow type and whether it is a picture, or a list of some, of each column."""
    kinds = features.arrow_schema.field
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        yield name, kinds(name).type, type(inner).__name__ == "Image"


def check(field: dict[str, Any], kind: pa.DataType, picture: bool, column: str, path: str) -> None:
    """Compare a field with the Arrow type of its column, or of the part of it that the path leads to."""
    if pa.types.is_list(kind):
        assert field["repeated"] is True
        check({key: value for key, value in field.items() if key != "repeated"}, kind.value_type, picture, column, path)
        return
    assert "repeated" not in field
    if pa.types.is_struct(kind) and not picture:
        assert [part["@id"] for part in field["subField"]] == [f"{field['@id']}/{part.name}" for part in kind]
        for part, inner in zip(field["subField"], kind, strict=True):
            check(part, inner.type, False, column, f"{path}.{inner.name}".lstrip("."))
        return
    number = "sc:Integer" if pa.types.is_integer(kind) else "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
    said = "sc:ImageObject" if picture else "sc:Boolean" if pa.types.is_boolean(kind) else number
    assert field["dataType"] == said, field["@id"]
    assert field["source"]["extract"] == {"column": column}
    path = "bytes" if picture else path
    assert field["source"].get("transform") == ({"jsonPath": path} if path else None)


@pytest.mark.parametrize(("kind", "data"), [(kind, data) for kind, made in FEATURES.items() for data in made])
def test_every_column_is_described_by_what_it_holds(kind: str, data: str) -> None:
    features = FEATURES[kind][data]()
    tree = json.loads(croissant("set", "mit", "https://hub.example/set", {"default": features}))
    (records,) = tree["recordSet"]
    told = list(columns(features))
    assert [field["@id"] for field in records["field"]] == [f"default/{name}" for name, *_ in told]
    for field, (name, holds, picture) in zip(records["field"], told, strict=True):
        assert not picture or PICTURE in (holds, getattr(holds, "value_type", None))
        check(field, holds, picture, name, "")


def test_no_kind_of_run_is_left_out() -> None:
    assert set(FEATURES) == set(KINDS)
