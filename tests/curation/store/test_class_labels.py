"""Labels as classes: the names a schema states are those that labels had, for `datasets` and for every reader here."""

from __future__ import annotations

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.store import schema


def test_numbers_come_by_value_before_words_and_what_is_no_label_is_left_out() -> None:
    labels = ["dog", "10", "9", "cat", None, "", "-1", "dog"]
    assert schema.class_names(labels) == ["9", "10", "cat", "dog"]
    assert schema.class_names(["-1", "1"], absent=()) == ["1", "-1"]
    assert schema.class_names([None, ""]) == []


@pytest.mark.parametrize(("count", "names"), [(10_000, 10_000), (10_001, 0)])
def test_more_than_ten_thousand_names_stay_text(count: int, names: int) -> None:
    assert len(schema.class_names(map(str, range(count)))) == names


def test_numbers_and_names_are_the_inverse_of_each_other() -> None:
    labels = pa.chunked_array([["dog", None], ["cat", "-1"]])
    classes = schema.class_names(labels.to_pylist())
    features = schema.curated_features(classes)
    columns = [field.name for field in features.arrow_schema]
    table = pa.table({"label": schema.numbered(labels, classes)})
    whole = pa.schema([features.arrow_schema.field("label")], features.arrow_schema.metadata)
    assert "image" in columns
    assert table["label"].to_pylist() == [1, None, 0, None]
    assert schema.named(table.cast(whole))["label"].to_pylist() == ["dog", None, "cat", None]
    assert schema.numbered(labels, []).to_pylist() == labels.to_pylist()


def test_classes_that_datasets_wrote_are_read_by_name(tmp_path) -> None:
    features = datasets.Features({"id": datasets.Value("string"), "label": datasets.ClassLabel(names=["b", "a"])})
    rows = datasets.Dataset.from_dict({"id": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    assert schema.named(pq.read_table(tmp_path / "rows.parquet"))["label"].to_pylist() == ["a", "b", None]


@pytest.mark.parametrize(
    "label", [datasets.Value("int64"), datasets.Value("string"), datasets.List(datasets.Value("int8"))]
)
def test_what_is_no_class_is_left_as_it_is(label) -> None:
    table = pa.Table.from_pylist([], datasets.Features({"label": label}).arrow_schema)
    assert schema.named(table).equals(table)
    assert schema.named(pa.table({"label": [3]}))["label"].to_pylist() == [3]
