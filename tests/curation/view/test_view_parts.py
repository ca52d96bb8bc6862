"""Parts of the page: facets with too many values, directions of a map, places of rows."""

from __future__ import annotations

import collections

import numpy as np
import pyarrow as pa
import pytest

from granary.curation.view import facets
from granary.curation.view.catalogue import places
from granary.curation.view.facets import NONE, OTHER, encode
from granary.curation.view.space import principal


def test_values_are_numbered_by_frequency_and_the_rarest_of_too_many_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facets, "MOST_VALUES", 3)
    values = [str(value) for value in np.random.default_rng(0).zipf(1.5, 400) % 9]
    texts = [None if value == "8" else value for value in values]
    facet = encode("label", pa.chunked_array([texts[:100], texts[100:]], pa.string()))
    counts = collections.Counter(NONE if text is None else text for text in texts)
    first = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][:3]
    assert facet.values == [*first, OTHER]
    known = [NONE if text is None else text for text in texts]
    assert [facet.values[code] for code in facet.codes] == [name if name in first else OTHER for name in known]


def test_a_facet_of_no_rows_has_no_values() -> None:
    facet = encode("label", pa.chunked_array([], pa.string()))
    assert (facet.values, len(facet.codes)) == ([], 0)


@pytest.mark.parametrize("shape", [(40, 7), (3, 12), (1, 5), (6, 1)])
def test_directions_are_those_of_the_largest_spread(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    mean, directions = principal(vectors)
    assert directions.shape == (shape[1], 2)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    spread = np.linalg.svd(centred, compute_uv=False)
    spread = np.pad(spread, (0, 2))[:2]
    np.testing.assert_allclose(np.linalg.norm((vectors - mean) @ directions, axis=0), spread, atol=1e-4)
    largest = directions[np.abs(directions).argmax(axis=0), [0, 1]]
    assert (largest >= 0).all()


def test_places_are_the_first_of_each_value() -> None:
    known = pa.chunked_array([["a", "b"], ["a", None, "c"]], pa.string())
    wanted = pa.chunked_array([["c", None, "a", "x", "b"]], pa.string())
    assert places(wanted, known).tolist() == [4, -1, 0, -1, 1]
