"""A curation run from end to end against brute force."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections import Counter
from html.parser import HTMLParser

import datasets
import numpy as np
import pools
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from scipy import ndimage, stats
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from granary.curation.images.filters import MEASURES
from granary.curation.recipe import Dedup
from granary.curation.runs.run import Run
from granary.curation.steps import doubtful as doubtful_step
from granary.curation.steps.doubtful import doubtful
from granary.curation.store.sampling import priority

datasets.disable_progress_bars()


def test_every_file_has_the_verdict_of_brute_force(roles, run):
    wanted = pools.expected(roles)
    planted = Counter(wanted.values())
    assert planted[("dead", "decode")] == 3
    assert planted[("dropped", "exact")] == 3
    assert planted[("dropped", "dedup")] == 4
    assert planted[("dropped", "leaks")] == 3
    found = {uri: (row["status"], row["stage"]) for uri, row in run.ledger.items()}
    assert found.keys() == wanted.keys()
    assert {uri: verdict for uri, verdict in found.items() if verdict[1] != "retrieval"} == {
        uri: verdict for uri, verdict in wanted.items() if verdict[0] != "kept"
    }


def test_chains_are_one_component_though_their_ends_are_apart(roles, run):
    ids = {uri: row["id"] for uri, row in run.ledger.items()}
    for chain in range(2):
        uris = [f"pool/chain-{chain}/{name}.png" for name in "abc"]
        images = pools.opened(pools.pool_uris(roles["pool"]))
        ends = pools.similarity(images[uris[1]], images[uris[2]])  # b and c are the ends, a the middle
        assert ends < pools.DEDUP
        rows = [run.ledger[uri] for uri in uris]
        assert {row["component"] for row in rows} == {min(ids[uri] for uri in uris)}
        dropped = [row["similarity"] for row in rows if row["stage"] == "dedup"]
        assert {row["tightness"] for row in rows} == {min(dropped)}


def test_evidence_names_the_image_kept_and_the_reference(roles, run):
    images = pools.opened(pools.pool_uris(roles["pool"]))
    uris = {row["id"]: uri for uri, row in run.ledger.items() if row["stage"] != "exact"}
    for uri in run.uris("dropped", "dedup"):
        row = run.ledger[uri]
        vectors = pools.stored([images[uri], images[uris[row["representative"]]]], "builtin:copy")
        assert row["similarity"] == pytest.approx(vectors[0] @ vectors[1], abs=2e-6)
    for uri in run.uris("dropped", "exact"):
        assert run.ledger[uri]["representative"] == run.ledger[uri]["id"] in uris
    leaks = {uri: run.ledger[uri] for uri in run.uris("dropped", "leaks")}
    assert {uri: (row["leaked_reference"], row["leak_path"]) for uri, row in leaks.items()} == {
        "pool/leak-0.png": ("references/0.png", None),
        "pool/leak-1.png": ("references/1.png", None),
        "pool/leak-2.png": ("references/1.png", "pool/leak-1.png"),
    }


def test_the_ledger_says_what_every_readable_picture_looks_like(roles, run):
    images = pools.opened(pools.pool_uris(roles["pool"]))
    assert {uri for uri, row in run.ledger.items() if row["status"] != "dead"} == images.keys()
    for uri, row in run.ledger.items():
        measured = [row[name] for name in ("width", "height", "dark", "bright", "entropy", "blur")]
        if row["status"] == "dead":
            assert measured == [None] * 6
            continue
        grey = np.asarray(images[uri].resize((64, 64), Image.Resampling.BILINEAR).convert("L")).astype(float)
        dark, bright = (np.quantile(grey, share, method="inverted_cdf") for share in (0.99, 0.05))
        entropy = stats.entropy(np.unique(grey, return_counts=True)[1], base=2)
        exact = [*images[uri].size, dark, bright]
        assert measured == [*exact, pytest.approx(entropy, rel=1e-6), pytest.approx(laplacian(grey), rel=1e-6)]
    report = (run.path / "report" / "index.html").read_text()
    assert all(f"<code>filters.{measure.option} " in report for measure in MEASURES)


def laplacian(grey):
    return ndimage.laplace(grey)[1:-1, 1:-1].var()


def test_leaks_by_direct_resemblance_alone(roles, tmp_path):
    run = pools.curate(
        {role: roles[role] for role in ("pool", "references")},
        tmp_path / "run",
        "--leaks.through_pool",
        "false",
        *pools.THRESHOLDS,
    )
    found = {uri: (row["status"], row["stage"]) for uri, row in run.ledger.items()}
    assert found == pools.expected(roles, through_pool=False)
    assert found["pool/leak-2.png"] == ("kept", "dedup")
    assert any("direct resemblance" in note for note in run.facts["notes"])


def test_retrieval_is_brute_force_over_the_survivors(roles, run):
    survivors = sorted(uri for uri, (status, _) in pools.expected(roles).items() if status == "kept")
    wanted = pools.nearest(roles, survivors, 4)
    assert run.uris("kept") == wanted.keys()
    for sample in run.samples:
        pairs = wanted[sample["source"]["uri"]]
        assert sample["seed_ids"] == [seed for seed, _ in pairs]
        assert sample["similarities"] == pytest.approx([value for _, value in pairs], abs=2e-6)
        assert sample["similarities"] == sorted(sample["similarities"], reverse=True)
        row = run.ledger[sample["source"]["uri"]]
        assert (row["seed_ids"], row["similarities"]) == (sample["seed_ids"], sample["similarities"])
    counts = run.facts["retrieval"][0]
    assert counts["retrievals"] == sum(map(len, wanted.values())) == 4 * 3
    assert counts["distinct"] == len(wanted)


def test_numbers_add_up(roles, run):
    rows, flow = run.ledger.values(), run.facts["flow"]
    assert flow[0]["in"] == len(rows) == len(pools.pool_uris(roles["pool"]))
    for row, after in zip(flow, [*flow[1:], {"in": run.facts["samples"]}], strict=True):
        assert row["in"] == row["kept"] + row["dropped"] + row["dead"]
        assert row["kept"] == after["in"]
    counted = Counter((row["stage"], row["status"]) for row in rows)
    for row in flow:
        assert row["dropped"] == counted[row["stage"], "dropped"]
        assert row["dead"] == counted[row["stage"], "dead"]
    assert run.facts["samples"] == len(run.samples) == len(run.uris("kept"))
    assert {row["uri"] for row in run.table("dead-letter")} == run.uris("dead")
    card = (run.path / "dataset" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(card)["dataset_info"]["splits"][0]["num_examples"] == len(run.samples)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_dataset_loads_with_the_original_bytes(roles, run, tmp_path, streaming):
    loaded = datasets.load_dataset(
        str(run.path / "dataset"), split="train", streaming=streaming, cache_dir=str(tmp_path)
    ).cast_column("image", datasets.Image(decode=False))
    files = pools.pool_uris(roles["pool"])
    rows = list(loaded)
    assert {row["source"]["uri"] for row in rows} == run.uris("kept")
    for row in rows:
        data = row["image"]["bytes"]
        assert data == files[row["source"]["uri"]]
        assert row["id"] == hashlib.sha256(data).hexdigest()[:32]
        assert (row["width"], row["height"]) == (pools.SIDE, pools.SIDE)


def test_pictures_of_the_dataset_decode(run, tmp_path):
    loaded = datasets.load_dataset(str(run.path / "dataset"), split="train", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert {row["image"].size for row in loaded} == {(pools.SIDE, pools.SIDE)}


def test_samples_are_ordered_by_hash_and_cut_into_shards_and_row_groups(run):
    ids = [sample["id"] for sample in run.samples]
    assert ids == [ids[i] for i in sorted(range(len(ids)), key=lambda i: (priority(0, [ids[i]])[0], ids[i]))]
    uris = [sample["source"]["uri"] for sample in run.samples]
    assert uris != sorted(uris)
    assert run.facts["order"] == "hash"
    shards = [pq.ParquetFile(part).metadata for part in sorted((run.path / "dataset" / "data").iterdir())]
    assert [shard.num_rows for shard in shards] == [5, len(ids) - 5]
    for shard in shards:
        assert {shard.row_group(group).num_rows for group in range(shard.num_row_groups)} <= {1, 2}


def test_outputs_hold_no_path_of_the_machine_and_no_time(roles, run):
    files = [path for folder in ("dataset", "ledger") for path in (run.path / folder).rglob("*") if path.is_file()]
    assert len(files) >= 4
    home = str(roles["pool"].parent).encode()
    for path in files:
        data = path.read_bytes()
        assert home not in data
        assert str(run.path).encode() not in data
        assert not re.search(rb"20\d\d-\d\d-\d\d[T ]\d\d:\d\d", data)
    text = json.dumps([list(run.ledger.values()), [{**sample, "image": None} for sample in run.samples]])
    assert str(roles["pool"].parent) not in text


def test_the_leak_audit_is_below_the_threshold_for_every_reference_set(run):
    assert [row["reference"] for row in run.facts["leak_audit"]] == ["references"]
    assert all(row["highest_similarity"] <= pools.LEAKS for row in run.facts["leak_audit"])


def test_the_report_is_one_file_that_fetches_nothing(run):
    class Links(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found += [value for key, value in attrs if key in ("src", "href") and value]

    assert sorted(path.name for path in (run.path / "report").iterdir()) == ["dropped.csv", "index.html"]
    page = Links()
    page.feed((run.path / "report" / "index.html").read_text())
    assert any(link.startswith("data:image/") for link in page.found)
    assert all(link.startswith(("data:", "#")) for link in page.found)


def test_beam_adds_nothing_to_a_loop_over_the_units(roles, run, tmp_path):
    looped = pools.curate(roles, tmp_path / "loop", *pools.SMALL_UNITS, *pools.THRESHOLDS)
    folders = sorted(path.name for path in run.path.iterdir() if path.is_dir() and path.name != "report")
    assert looped.hashes(*folders) == run.hashes(*folders)


def test_a_run_names_the_versions_that_made_it(run):
    assert {"python", "granary-data", "apache-beam", "torch"} <= run.facts["versions"].keys()


def test_the_report_has_the_pairs_on_both_sides_of_the_threshold(roles, run):
    """The doubtful pairs against brute force over all pictures that are no exact copies."""
    rows = {uri: row for uri, row in run.ledger.items() if row["status"] != "dead" and row["stage"] != "exact"}
    uris = sorted(rows)
    images = pools.opened(pools.pool_uris(roles["pool"]))
    vectors = pools.stored([images[uri] for uri in uris], "builtin:copy")
    cosines = vectors @ vectors.T
    near = doubtful(Run(str(run.path)), Dedup(), pools.DEDUP)
    upper = [(i, j) for i, j in itertools.combinations(range(len(uris)), 2)]
    between = [pair for pair in upper if pools.DEDUP - 0.1 < cosines[pair] <= pools.DEDUP]
    assert between
    assert near.below[0].similarity == pytest.approx(max(cosines[pair] for pair in between), abs=1e-4)
    for pair in (*near.above, *near.below):
        assert cosines[uris.index(pair.uri), uris.index(pair.other)] == pytest.approx(pair.similarity, abs=1e-4)
    assert all(pair.similarity > pools.DEDUP for pair in near.above)
    for threshold, removed in near.removed:
        linked = coo_matrix(cosines > threshold)
        assert removed == len(uris) - connected_components(linked)[0]
    page = (run.path / "report" / "index.html").read_text()
    assert f"<b>{near.below[0].similarity:.3f}</b>" in page
    assert 'class="own"' in page
    assert doubtful(Run(str(run.path)), Dedup(enabled=False), 0.9) is None


def test_in_a_large_pool_pairs_below_the_threshold_are_not_looked_for(run, monkeypatch):
    monkeypatch.setattr(doubtful_step, "MOST_COMPARED", 5)
    near = doubtful(Run(str(run.path)), Dedup(), pools.DEDUP)
    assert (near.below, near.removed) == ([], [])
    assert "more than 5 pictures" in near.note


def test_what_was_dropped_is_a_table(run):
    rows = list(csv.DictReader((run.path / "report" / "dropped.csv").open(encoding="utf-8")))
    assert {row["uri"] for row in rows} == run.uris("dropped")
    for row in rows:
        known = run.ledger[row["uri"]]
        assert (row["id"], row["stage"], row["reason"]) == (known["id"], known["stage"], known["reason"])
        assert row["representative"] == (known["representative"] or "")
        assert row["similarity"] == ("" if known["similarity"] is None else f"{known['similarity']:.6g}")
