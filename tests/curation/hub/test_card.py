"""The dataset card: the same on every machine, true to the run, and careful with what the user wrote."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from granary.curation.errors import UserError
from granary.curation.hub.card import (
    SHEET_SIDE,
    contact_sheet_of,
    own_template,
    parse_card,
    size_category,
    without_path,
    write_card,
)
from granary.curation.hub.croissant import croissant
from granary.curation.images.limits import DecodeLimits
from granary.curation.recipe import CurateRecipe
from granary.curation.runs.run import Run
from granary.curation.store import schema

FEATURES = {"default": schema.curated_features()}
FACTS: dict[str, Any] = {
    "kind": "curate",
    "name": "cats",
    "created": "2031-02-03T04:05:06+00:00",
    "updated": "2031-02-03T04:05:06+00:00",
    "samples": 1234,
    "shards": 2,
    "bytes": 5_000_000,
    "flow": [{"stage": "decode", "in": 9000, "kept": 8997, "dropped": 0, "dead": 3}],
    "sources": [{"role": "pool", "name": "photos", "kind": "folder", "files": 9000, "dead": 3}],
    "thresholds": {"dedup": 0.875, "leaks": 0.8},
    "versions": {"python": "3.99.1", "granary": "0.1.0", "torch": "2.6.0+cu124"},
    "stages": [{"stage": "pool", "seconds": 98.765, "workers": 3}],
    "notes": ["Seed set s retrieved nothing."],
}


def recipe(**fields: Any) -> dict[str, Any]:
    whole = {"pool": [{"name": "photos", "path": "/home/me/photos"}], "out": "/home/me/run", "licence": "mit"} | fields
    return CurateRecipe.model_validate(whole).model_dump(mode="json", by_alias=True)


def card(facts: dict[str, Any] | None = None, earlier: str = "", **fields: Any) -> str:
    return write_card(FACTS | (facts or {}), recipe(**fields), FEATURES, earlier)


def test_the_card_is_the_same_from_every_folder_time_and_machine():
    elsewhere = recipe(
        out="s3://bucket/run",
        pool=[{"name": "photos", "path": "/mnt/other/photos"}],
        encoder={"device": "cuda:1", "batch": 7},
        unit_rows=9,
    )
    later = FACTS | {
        "created": "2032-01-01T00:00:00+00:00",
        "updated": "2033",
        "stages": [{"stage": "pool", "seconds": 1.5, "workers": 8}],
        "versions": {"python": "3.11.1", "granary": "0.1.0", "torch": "2.6.0+cpu"},
    }
    assert write_card(later, elsewhere, FEATURES) == card()
    assert not re.search(r"/home|203\d|98\.765", card())


def test_the_header_is_what_datasets_reads(tmp_path):
    header, _ = parse_card(card())
    assert header["license"] == "mit"
    assert header["size_categories"] == ["1K<n<10K"]
    assert datasets.Features._from_yaml_list(header["dataset_info"]["features"]) == FEATURES["default"]
    assert header["dataset_info"]["splits"] == [{"name": "train", "num_bytes": 5_000_000, "num_examples": 1234}]


def test_the_recipe_in_the_card_is_one_that_runs_with_the_paths_put_back():
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card(seed=7), re.DOTALL)[1])
    block["pool"][0]["path"] = "/home/me/photos"
    again = CurateRecipe.model_validate({**block, "out": "/home/me/run"})
    assert again == CurateRecipe.model_validate(recipe(seed=7))


def test_what_the_user_wrote_stays_and_what_the_run_counted_changes():
    first = card(licence="unknown")
    edited = first.replace(
        "<!-- yours: begin about -->\n", "<!-- yours: begin about -->\n# Cats\n\nOnly cats, `{{ 7 * 7 }}`.\n"
    )
    edited = edited.replace("license: unknown", "license: cc-by-4.0\nlanguage:\n- en").replace(
        "1,234 images", "no images"
    )
    again = card({"samples": 99}, edited, licence="unknown")
    assert "Only cats, `{{ 7 * 7 }}`." in again
    assert "99 images" in again
    header, sections = parse_card(again)
    assert (header["license"], header["language"]) == ("cc-by-4.0", ["en"])
    assert header["dataset_info"]["splits"][0]["num_examples"] == 99
    assert sections["about"].startswith("# Cats")
    assert card({"samples": 99}, again, licence="unknown") == again
    assert parse_card(card({}, again, licence="mit"))[0]["license"] == "mit"


def test_counts_thresholds_versions_sources_and_limits_stand_in_it():
    text = card()
    for line in (
        "| decode | 9,000 | 8,997 | 0 | 3 |",
        "| pool | photos | folder | 9,000 | 3 |",
        "Thresholds (cosine similarity of `builtin:copy`): dedup 0.875, leaks 0.8.",
        "Made with granary 0.1.0, torch 2.6.0.",
        "- Seed set s retrieved nothing.",
        "| `captions` | list of string | as the source had them |",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("builtin:copy", "builtin:copy"),
        ("hf:facebook/dinov2-base", "hf:facebook/dinov2-base"),
        ("hf:/home/me/dinov2", "hf:dinov2"),
        ("hf:../me/dinov2", "hf:dinov2"),
        ("hf:facebook/dinov2-small?revision=0a1b", "hf:facebook/dinov2-small?revision=0a1b"),
        ("hf:/home/me/dinov2?pool=mean", "hf:dinov2?pool=mean"),
        ("torchscript:/home/me/sscd.pt", "torchscript:sscd.pt"),
        ("granary:runs/a/model", "granary:model"),
    ],
)
def test_encoders_are_named_without_local_paths(spec, shown):
    assert without_path(spec) == shown


def test_size_categories_have_their_bounds():
    assert [size_category(n) for n in (0, 999, 1000, 9999, 10**6, 10**9, 10**12)] == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "1K<n<10K",
        "1M<n<10M",
        "n>1B",
        "n>1B",
    ]


def test_the_contact_sheet_shows_the_pictures_that_decode(tmp_path: Path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    rows = [{"id": "", "captions": [], "image": {"bytes": b"broken", "path": "x"}}]
    for colour in colours:
        buffer = io.BytesIO()
        Image.new("RGB", (200, 200), colour).save(buffer, "png")
        rows.append({"id": "", "captions": [], "image": {"bytes": buffer.getvalue(), "path": "x"}})
    pq.write_table(pa.Table.from_pylist(rows, schema.arrow_schema(FEATURES["default"])), tmp_path / "a.parquet")
    data = contact_sheet_of([str(tmp_path / "a.parquet")], DecodeLimits())
    sheet = np.asarray(Image.open(io.BytesIO(data)), int)
    middle = [sheet[SHEET_SIDE // 2, SHEET_SIDE // 2 + number * (SHEET_SIDE + 4)] for number in range(3)]
    assert np.abs(np.array(middle) - np.array(colours)).max() < 10
    pq.write_table(pa.Table.from_pylist(rows[:1], schema.arrow_schema(FEATURES["default"])), tmp_path / "b.parquet")
    assert contact_sheet_of([str(tmp_path / "b.parquet")], DecodeLimits()) is None


def test_the_contact_sheet_shows_pictures_from_all_over_a_dataset(tmp_path: Path):
    urls, shades = [], [np.full((8, 8, 3), 2 * shade, np.uint8) for shade in range(120)]
    for shard in range(3):
        rows = []
        for pixels in shades[40 * shard : 40 * shard + 40]:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png")
            rows.append({"id": "", "captions": [], "image": {"bytes": buffer.getvalue(), "path": "x"}})
        urls.append(str(tmp_path / f"{shard}.parquet"))
        table = pa.Table.from_pylist(rows, schema.arrow_schema(FEATURES["default"]))
        pq.write_table(table, urls[-1], row_group_size=10)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet_of(urls, DecodeLimits()))).convert("L"), int)
    cells = [row * (SHEET_SIDE + 4) + SHEET_SIDE // 2 for row in range(4)]
    seen = [sheet[y, x] for y in cells for x in [c * (SHEET_SIDE + 4) + SHEET_SIDE // 2 for c in range(8)]]
    assert seen == sorted(seen)
    assert min(seen) < 10
    assert max(seen) > 2 * 100
    assert len(set(seen)) > 24


def test_croissant_names_every_column_of_every_config_once():
    ledger = datasets.Features.from_arrow_schema(schema.LEDGER)
    text = croissant("cats", "mit", "https://hub/datasets/org/cats", {**FEATURES, "ledger": ledger})
    tree = json.loads(text)
    files = {one["@id"]: one.get("includes") for one in tree["distribution"]}
    assert files == {
        "repository": None,
        "default-files": "data/*.parquet",
        "ledger-files": "ledger/*.parquet",
    }
    fields = {field["name"]: field for records in tree["recordSet"] for field in records["field"]}
    assert set(fields) == {f"default/{name}" for name in FEATURES["default"]} | {f"ledger/{name}" for name in ledger}
    assert fields["default/image"]["dataType"] == "sc:ImageObject"
    assert fields["default/similarities"]["dataType"] == "sc:Float"
    assert fields["default/similarities"]["repeated"]
    assert fields["default/width"]["dataType"] == "sc:Integer"
    assert [part["source"]["transform"]["jsonPath"] for part in fields["default/source"]["subField"]] == ["name", "uri"]


def test_croissant_lists_the_splits_and_reads_them_from_the_names_of_files():
    tree = json.loads(croissant("cats", "mit", "https://hub/org/cats", FEATURES, {"default": ["train", "test"]}))
    listed, records = tree["recordSet"]
    assert listed["data"] == [{"default-splits/name": "train"}, {"default-splits/name": "test"}]
    (split,) = (field for field in records["field"] if field["@id"] == "default/split")
    pattern = split["source"]["transform"]["regex"]
    assert re.search(pattern, "/x/data/test-00000-of-00002.parquet")[1] == "test"
    assert split["references"] == {"field": {"@id": "default-splits/name"}}


def test_a_template_of_the_user_takes_the_place_of_the_shipped_one():
    text = "---\n{{ header }}---\n# Mine: {{ name }}, {{ samples }}\n{{ slot('about') }}\n"
    page = write_card(FACTS, recipe(), FEATURES, template=text)
    assert "# Mine: cats, 1234" in page
    assert "## Load it" not in page
    assert parse_card(page)[0]["license"] == "mit"
    mine = page.replace("begin about -->\n", "begin about -->\nmy words\n")
    assert "my words" in write_card(FACTS, recipe(), FEATURES, mine, template=text)


@pytest.mark.parametrize(
    "template",
    [
        "{{ nothing }}",
        "{% if %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ samples / 0 }}",
        "{{ samples.missing }}",
        "{{ [1, 2] + 3 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ name }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_rendered_is_one_sentence(template):
    with pytest.raises(UserError, match=re.escape("the template card.md.j2 of the run cannot be rendered")):
        write_card(FACTS, recipe(), FEATURES, template=template)


def test_classes_stand_in_the_header_and_in_the_table_of_columns() -> None:
    features = {"default": schema.curated_features(["cat", "dog"])}
    page = write_card(FACTS, recipe(), features)
    stated = datasets.Features._from_yaml_list(parse_card(page)[0]["dataset_info"]["features"])
    assert stated["label"].names == ["cat", "dog"]
    assert "| `label` | 2 classes |" in page


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 9 ** (9 ** 9) }}"],
)
def test_a_template_that_never_ends_is_stopped(monkeypatch, template):
    monkeypatch.setattr("granary.curation.hub.template.SECONDS", 2)
    with pytest.raises(UserError, match="it is not done after 2 s"):
        write_card(FACTS, recipe(), FEATURES, template=template)


def test_a_template_that_is_no_text_is_one_sentence(tmp_path):
    (tmp_path / "card.md.j2").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text in UTF-8"):
        own_template(Run(str(tmp_path)))
