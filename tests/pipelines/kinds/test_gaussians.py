"""Class sums merged through Beam: the same bits in any bundles, with any number of threads."""

from __future__ import annotations

from itertools import islice, permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.store.threads import limit_threads
from granary.pipelines.kinds.sample_gaussians import MergeGaussians, part_number
from granary.synth.feedback.gaussians import ClassSums


def test_class_sums_are_the_same_bits_in_any_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, 3, 7), rng.normal(size=(7, 4)) * 10.0**scale) for scale in range(5)]
    urls = [f"x/part-{i:05d}-of-00005.parquet" for i in range(5)]
    monkeypatch.setattr(
        "granary.pipelines.kinds.sample_gaussians.class_sums",
        lambda url, tied: ClassSums(tied).add(*parts[part_number(url)]),
    )
    combine = MergeGaussians(tied=False)
    found = set()
    for order in islice(permutations(urls), 0, None, 11):
        for cut in (1, 3):
            bundles = [order[:cut], order[cut:4], order[4:]]
            nodes = []
            for bundle in bundles:
                accumulator = combine.create_accumulator()
                for url in bundle:
                    accumulator = combine.add_input(accumulator, url)
                nodes.append(accumulator)
            sums = combine.extract_output(combine.merge_accumulators(nodes))
            found.add(b"".join(sums.scatters[k].tobytes() + sums.means[k].tobytes() for k in sorted(sums.counts)))
    assert len(found) == 1
    whole = ClassSums().add(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
    for label, scatter in whole.scatters.items():
        assert np.allclose(sums.scatters[label], scatter, rtol=1e-6)
        assert np.allclose(sums.means[label], whole.means[label], rtol=1e-6)


def test_class_sums_are_the_same_bits_whatever_number_of_threads_was_set(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(600, 257)).astype(np.float32)
    url = str(tmp_path / "part-00000-of-00001.parquet")
    pq.write_table(pa.table({"target": np.zeros(600, np.int64), "feature": list(features)}), url)
    found = set()
    for threads in (1, 2, 3):
        limit_threads(threads)
        combine = MergeGaussians(tied=False)
        sums = combine.extract_output(combine.add_input(combine.create_accumulator(), url))
        found.add(sums.scatters[0].tobytes())
    assert len(found) == 1
