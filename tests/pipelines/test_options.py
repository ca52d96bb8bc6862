"""Invariants of the method sheet and what each option does, on whole runs (units in a loop, without Beam)."""

from __future__ import annotations

import io
import itertools
import json

import datasets
import fsspec
import numpy as np
import pools
import pyarrow.parquet as pq
import pytest
from PIL import ImageOps

from granary.training.data.shards import class_names, open_dataset


def kept_ids(run):
    return {row["id"] for row in run.ledger.values() if row["status"] == "kept"}


def dropped(run, stage):
    return {row["id"] for row in run.ledger.values() if row["stage"] == stage and row["status"] == "dropped"}


def only(roles, *names):
    return {name: roles[name] for name in names}


@pytest.fixture(scope="module")
def deduplicated(roles, tmp_path_factory):
    """A run of the planted pool and references, without seeds."""
    return pools.curate(only(roles, "pool", "references"), tmp_path_factory.mktemp("module") / "run", *pools.THRESHOLDS)


@pytest.mark.parametrize("seed", [0, 1])
def test_survivors_are_the_components_whatever_the_order_of_the_files(roles, deduplicated, tmp_path, seed):
    contents = list(pools.pool_uris(roles["pool"]).values())
    order = np.random.default_rng(seed).permutation(len(contents))
    renamed = pools.write(tmp_path / "pool", {f"{i}": contents[old] for i, old in enumerate(order)})
    run = pools.curate({"pool": renamed, "references": roles["references"]}, tmp_path / "run", *pools.THRESHOLDS)
    assert kept_ids(run) == kept_ids(deduplicated)
    assert dropped(run, "leaks") == dropped(deduplicated, "leaks")
    wanted = [stage for status, stage in pools.expected(roles).values() if (status, stage) == ("kept", "dedup")]
    assert len(kept_ids(run)) == len(run.uris("kept")) == len(wanted)


def test_curating_the_survivors_removes_nothing(roles, deduplicated, tmp_path):
    survivors = {f"{sample['id']}.png": sample["image"]["bytes"] for sample in deduplicated.samples}
    pool = pools.write(tmp_path / "pool", survivors)
    run = pools.curate({"pool": pool, "references": roles["references"]}, tmp_path / "run", *pools.THRESHOLDS)
    assert run.uris("kept") == run.ledger.keys()
    assert kept_ids(run) == kept_ids(deduplicated)


def test_a_lower_threshold_removes_all_that_a_higher_one_removes(roles, tmp_path):
    names, removed = only(roles, "pool", "references"), {}
    for threshold in (0.8, 0.93, 0.97):
        run = pools.curate(only(roles, "pool"), tmp_path / f"dedup-{threshold}", "--dedup.threshold", str(threshold))
        removed["dedup", threshold] = dropped(run, "dedup")
    for threshold in (0.6, 0.72, 0.78):
        run = pools.curate(
            names,
            tmp_path / f"leaks-{threshold}",
            "--leaks.threshold",
            str(threshold),
            "--dedup.threshold",
            str(pools.DEDUP),
        )
        removed["leaks", threshold] = dropped(run, "leaks")
    assert removed["dedup", 0.8] >= removed["dedup", 0.93] > removed["dedup", 0.97] == set()
    assert removed["leaks", 0.6] >= removed["leaks", 0.72] > removed["leaks", 0.78]


def test_the_leak_audit_is_the_highest_similarity_by_brute_force(roles, deduplicated):
    images = pools.opened(pools.pool_uris(roles["pool"]))
    left = pools.stored([images[uri] for uri in deduplicated.uris("kept")], "builtin:copy")
    against = pools.stored(pools.opened(pools.pool_uris(roles["references"])).values(), "builtin:copy")
    audit = deduplicated.facts["leak_audit"][0]["highest_similarity"]
    assert audit == pytest.approx((left @ against.T).max(), abs=2e-6)
    assert audit <= pools.LEAKS


def test_a_graph_of_64_neighbours_is_the_whole_graph_of_a_small_pool(roles, deduplicated, tmp_path):
    run = pools.curate(
        only(roles, "pool", "references"), tmp_path / "run", "--dedup.neighbours", "64", *pools.THRESHOLDS
    )
    assert run.table("ledger") == deduplicated.table("ledger")
    assert run.hashes("dataset/data") == deduplicated.hashes("dataset/data")


def test_mirror_links_a_picture_with_the_mirror_image_of_another(tmp_path):
    plain = pools.picture(0)
    pool = pools.write(tmp_path / "pool", {"a.png": plain, "b.png": ImageOps.mirror(plain), "c.png": pools.picture(1)})
    references = pools.write(tmp_path / "references", {"r.png": ImageOps.mirror(pools.picture(1))})
    found = {}
    for mirror in ("true", "false"):
        run = pools.curate({"pool": pool, "references": references}, tmp_path / mirror, "--dedup.mirror", mirror)
        found[mirror] = sorted(row["stage"] for row in run.ledger.values() if row["status"] == "dropped")
        assert all(row["similarity"] > 0.99 for row in run.ledger.values() if row["status"] == "dropped")
    assert found == {"true": ["dedup", "leaks"], "false": []}


def test_split_below_leaves_every_member_within_the_bound(roles, deduplicated, tmp_path):
    run = pools.curate(
        only(roles, "pool", "references"), tmp_path / "run", "--dedup.split_below", "0.94", *pools.THRESHOLDS
    )
    assert min(deduplicated.ledger[uri]["similarity"] for uri in deduplicated.uris("dropped", "dedup")) < 0.94
    rows = [run.ledger[uri] for uri in run.uris("dropped", "dedup")]
    assert rows
    assert all(row["similarity"] >= 0.94 and row["tightness"] >= 0.94 for row in rows)
    assert len(kept_ids(run)) > len(kept_ids(deduplicated))


def test_without_deduplication_only_exact_copies_collapse(roles, tmp_path):
    run = pools.curate(only(roles, "pool"), tmp_path / "run", "--dedup.enabled", "false", *pools.THRESHOLDS)
    assert {row["stage"] for row in run.ledger.values() if row["status"] == "dropped"} == {"exact"}
    contents = set(pools.opened(pools.pool_uris(roles["pool"])))
    assert len(run.samples) == len({pools.pool_uris(roles["pool"])[uri] for uri in contents})


def test_filters_drop_with_a_reason(tmp_path):
    pool = pools.write(tmp_path / "pool", {"small.png": pools.picture(0, 20), "large.png": pools.picture(1)})
    run = pools.curate({"pool": pool}, tmp_path / "run", "--filters.min_side", "32")
    assert (run.ledger["pool/small.png"]["status"], run.ledger["pool/small.png"]["stage"]) == ("dropped", "filter")
    assert run.ledger["pool/small.png"]["reason"] == "min_side: 20 px, less than 32"
    assert {row["stage"]: row["dropped"] for row in run.facts["flow"]}["filter"] == 1
    assert run.uris("kept") == {"pool/large.png"}


# -- retrieval, cells, thinning, balance -----------------------------------------------------------------------------


def test_more_neighbours_than_survivors_retrieve_all_of_them_for_every_seed(roles, tmp_path):
    run = pools.curate(roles, tmp_path / "run", "--retrieval.k", "1000", *pools.THRESHOLDS)
    survivors = [uri for uri, verdict in pools.expected(roles).items() if verdict[0] == "kept"]
    assert run.uris("kept") == set(survivors)
    assert run.facts["retrieval"][0]["retrievals"] == 3 * len(survivors)
    assert {len(sample["seed_ids"]) for sample in run.samples} == {3}


def test_a_capped_set_keeps_whole_images_and_reports_what_it_found_before(roles, tmp_path):
    free = pools.curate(roles, tmp_path / "free", *pools.THRESHOLDS)
    capped = pools.curate(roles, tmp_path / "capped", "--seeds.cap", "2", *pools.THRESHOLDS)
    assert len(capped.samples) == 2
    found = {sample["id"]: sample["seed_ids"] for sample in free.samples}
    assert all(sample["seed_ids"] == found[sample["id"]] for sample in capped.samples)
    assert capped.facts["retrieval"] == free.facts["retrieval"]


def test_shards_hold_no_more_bytes_than_asked_and_keep_the_order_of_the_pool_on_request(roles, tmp_path):
    words = ["--shards.max_bytes", "30000", "--shards.order", "pool", "--shards.rows", "4"]
    run = pools.curate(only(roles, "pool"), tmp_path / "run", *words, *pools.THRESHOLDS)
    uris = [sample["source"]["uri"] for sample in run.samples]
    assert uris == sorted(run.uris("kept"))
    shards = [pq.read_table(part)["image"].to_pylist() for part in sorted((run.path / "dataset/data").iterdir())]
    sizes = [[len(image["bytes"]) for image in shard] for shard in shards]
    assert all(sum(shard) <= 30_000 and 0 < len(shard) <= 4 for shard in sizes)
    assert all(sum(shard) + after[0] > 30_000 or len(shard) == 4 for shard, after in itertools.pairwise(sizes))


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Two far groups of ten pictures; three seeds near the first, four near the second."""

    def group(number, size, first):
        return {f"{number}-{i}.png": pools.resembling(pools.picture(800 + number), 0.9, first + i) for i in range(size)}

    folder = tmp_path_factory.mktemp("groups")
    return {
        "pool": pools.write(folder / "pool", group(0, 10, 810) | group(1, 10, 830)),
        "seeds": pools.write(folder / "seeds", group(0, 3, 850) | group(1, 4, 860)),
    }


CELLS = ("--dedup.enabled", "false", "--seeds.mode", "cluster", "--retrieval.clusters", "2")


@pytest.mark.parametrize("refine", ["0", "2"])
def test_a_cell_counts_with_four_seeds_and_not_with_three(groups, tmp_path, refine):
    run = pools.curate(groups, tmp_path / "run", *CELLS, "--retrieval.refine", refine)
    assert run.uris("kept") == {f"pool/1-{i}.png" for i in range(10)}
    assert {row["cluster"] for row in run.ledger.values() if row["status"] == "kept"} in ({0}, {1})
    assert run.facts["retrieval"][0]["distinct"] == 10


def test_a_cell_gives_as_many_as_asked_and_a_set_takes_no_more_than_its_cap(groups, tmp_path):
    drawn = {}
    for name, words in {"few": ["--retrieval.per_cell", "6"], "capped": ["--seeds.cap", "4"]}.items():
        drawn[name] = pools.curate(groups, tmp_path / name, *CELLS, *words).uris("kept")
    assert (len(drawn["few"]), len(drawn["capped"])) == (6, 4)
    assert drawn["few"] | drawn["capped"] <= {f"pool/1-{i}.png" for i in range(10)}
    nothing = pools.curate(groups, tmp_path / "none", *CELLS, "--retrieval.min_seeds", "4")
    assert nothing.samples == []
    assert any("retrieved nothing" in note for note in nothing.facts["notes"])


def test_semdedup_leaves_no_pair_of_a_cell_closer_than_epsilon(groups, tmp_path):
    words = ["--dedup.enabled", "false", "--semdedup.clusters", "1", "--semdedup.epsilon", "0.04"]
    run = pools.curate({"pool": groups["pool"]}, tmp_path / "run", *words)
    thinned, images = run.uris("dropped", "semdedup"), pools.opened(pools.pool_uris(groups["pool"]))
    assert 0 < len(thinned) < 20
    vectors = pools.stored(images.values(), "builtin:layout")
    cosines = dict(zip(images, np.sort(vectors @ vectors.T - 2 * np.eye(20))[:, -1], strict=True))
    assert all(0.96 < run.ledger[uri]["similarity"] <= cosines[uri] + 2e-6 for uri in thinned)
    left = pools.stored([images[uri] for uri in run.uris("kept")], "builtin:layout")
    assert (left @ left.T - np.eye(len(left))).max() <= 0.96 + 2e-6


def test_an_option_taken_back_leaves_no_trace(groups, tmp_path):
    words = ["--dedup.enabled", "false", "--retrieval.k", "9"]
    fresh = pools.curate(groups, tmp_path / "fresh", *words)
    again = tmp_path / "again"
    pools.curate(
        groups,
        again,
        *words,
        "--semdedup.clusters",
        "1",
        "--semdedup.epsilon",
        "0.04",
        "--balance.target",
        "3",
        "--balance.levels",
        "[4, 2]",
        "--shards.rows",
        "2",
    )
    assert pools.curate(groups, again, *words).hashes("ledger", "dataset") == fresh.hashes("ledger", "dataset")


def test_balance_draws_its_target_evenly_from_unequal_groups(groups, tmp_path):
    few = {path.name: path.read_bytes() for path in groups["pool"].iterdir() if path.name[:3] in ("0-0", "0-1", "0-2")}
    many = {path.name: path.read_bytes() for path in groups["pool"].iterdir() if path.name.startswith("1-")}
    pool = pools.write(tmp_path / "pool", few | many)
    words = ["--dedup.enabled", "false", "--balance.levels", "[2]", "--balance.target", "6"]
    run = pools.curate({"pool": pool}, tmp_path / "run", *words)
    kept = run.uris("kept", "balance")
    assert len(kept) == len(run.samples) == 6
    assert sum(uri.startswith("pool/0-") for uri in kept) == 3  # an even draw would give 1.4
    assert run.uris("dropped", "retrieval") == run.ledger.keys() - kept


def test_seeds_as_they_are_go_into_the_dataset_once(roles, tmp_path):
    shared = pools.pool_uris(roles["pool"])["pool/plain/05.png"]
    seeds = pools.write(tmp_path / "seeds", {"own.png": pools.picture(900), "shared.png": shared, "bad.png": b"?"})
    run = pools.curate(
        {**only(roles, "pool", "references"), "seeds": seeds},
        tmp_path / "run",
        "--seeds.as_is",
        "true",
        "--retrieval.k",
        "1",
        *pools.THRESHOLDS,
    )
    roles_of = {uri: (row["role"], row["status"]) for uri, row in run.ledger.items() if uri.startswith("seeds/")}
    assert roles_of == {
        "seeds/own.png": ("seed", "kept"),
        "seeds/shared.png": ("seed", "kept"),
        "seeds/bad.png": ("seed", "dead"),
    }
    uris = [sample["source"]["uri"] for sample in run.samples]
    assert sorted(uris) == sorted({"seeds/own.png", "pool/plain/05.png"} | run.uris("kept") - set(roles_of))
    assert run.facts["flow"][0]["in"] == len(run.ledger) - 3
    assert any("not compared with the reference" in note for note in run.facts["notes"])


# -- sources ---------------------------------------------------------------------------------------------------------


def test_one_image_in_sources_of_four_kinds_is_one_sample_and_four_rows(tmp_path):
    shared, own = pools.png(pools.picture(0)), [pools.png(pools.picture(i)) for i in range(1, 5)]
    folder = pools.write(tmp_path / "folder", {"a.png": shared, "b.png": own[0]})
    (tmp_path / "shard.tar").write_bytes(pools.tar_of({"x.png": shared, "y.png": own[1]}))
    (tmp_path / "table.parquet").write_bytes(pools.parquet_of({"p.png": shared, "q.png": own[2]}))
    pools.write(tmp_path / "listed", {"m.png": shared, "n.png": own[3]})
    (tmp_path / "list.txt").write_text("listed/m.png\nlisted/n.png\n")
    paths = [folder, tmp_path / "shard.tar", tmp_path / "table.parquet", tmp_path / "list.txt"]
    run = pools.curate({"pool": [str(path) for path in paths]}, tmp_path / "run")
    assert len(run.ledger) == 8
    assert {row["kind"] for row in run.facts["sources"]} == {"folder", "webdataset", "parquet", "urls"}
    ids = [row["id"] for row in run.ledger.values()]
    copies = [uri for uri, row in run.ledger.items() if ids.count(row["id"]) == 4]
    assert sorted(run.ledger[uri]["status"] for uri in copies) == ["dropped"] * 3 + ["kept"]
    assert {uri.split("/")[0] for uri in copies} == {f"pool-{i}" for i in range(1, 5)}
    assert {sample["image"]["bytes"] for sample in run.samples} == {shared, *own}
    assert run.facts["order"] == "pool"
    uris = [sample["source"]["uri"] for sample in run.samples]
    assert uris == [uri for uri in run.ledger if uri in uris]


def test_labels_captions_and_metadata_travel_with_the_image(tmp_path):
    members = {"a.png": pools.png(pools.picture(0)), "a.json": b'{"label": "cat", "year": 1999}', "a.txt": b"a cat"}
    pools.write(tmp_path / "pool", {"dogs/b.png": pools.picture(1)})
    (tmp_path / "shard.tar").write_bytes(pools.tar_of(members))
    tree, web = f"path: {tmp_path / 'pool'}, name: tree, labels: folder", f"path: {tmp_path / 'shard.tar'}, name: web"
    run = pools.curate({"pool": f"[{{{tree}}}, {{{web}}}]"}, tmp_path / "run")
    rows = {sample["source"]["name"]: sample for sample in run.samples}
    assert (rows["tree"]["label"], rows["tree"]["captions"]) == ("dogs", [])
    assert (rows["web"]["label"], rows["web"]["captions"]) == ("cat", ["a cat"])
    assert json.loads(rows["web"]["metadata"])["year"] == 1999
    assert rows["web"]["source"]["uri"].startswith("web/shard.tar")


def test_labels_are_classes_that_datasets_and_a_second_run_know_by_name(tmp_path):
    names = {0: "dogs", 1: "cats", 2: "dogs"}
    pools.write(tmp_path / "pool", {f"{name}/{seed}.png": pools.picture(seed) for seed, name in names.items()})
    run = pools.curate({"pool": f"{{path: {tmp_path / 'pool'}, labels: folder}}"}, tmp_path / "run")
    loaded = datasets.load_dataset(str(run.path / "dataset"), split="train")
    assert loaded.features["label"].names == ["cats", "dogs"]
    assert loaded.features["label"].int2str(sorted(loaded["label"])) == ["cats", "dogs", "dogs"]
    again = pools.curate({"pool": run.path / "dataset" / "data"}, tmp_path / "again")
    assert sorted(sample["label"] for sample in again.samples) == ["cats", "dogs", "dogs"]
    training = open_dataset(str(run.path), ("image", "label"))
    assert class_names([training]) == ["cats", "dogs"]


def test_pictures_without_labels_have_text_for_them(tmp_path):
    pools.write(tmp_path / "pool", {"a.png": pools.picture(0)})
    run = pools.curate({"pool": tmp_path / "pool"}, tmp_path / "run")
    assert datasets.load_dataset(str(run.path / "dataset"))["train"].features["label"] == datasets.Value("string")


def test_compressed_shards_are_read_in_their_order(tmp_path):
    files = {f"{i:02d}.png": pools.png(pools.picture(i)) for i in range(12)}
    (tmp_path / "shard.tar.gz").write_bytes(pools.tar_of(files, "w:gz"))
    run = pools.curate({"pool": tmp_path / "shard.tar.gz"}, tmp_path / "run")
    assert run.facts["order"] == "pool"
    assert [sample["image"]["bytes"] for sample in run.samples] == list(files.values())


def test_runs_and_pools_may_live_in_object_storage(roles, tmp_path):
    memory = fsspec.filesystem("memory")
    for uri, data in pools.pool_uris(roles["pool"]).items():
        memory.pipe_file(f"/{tmp_path.name}/{uri}", data)
    out = f"memory://{tmp_path.name}/run"
    pools.curate({**roles, "pool": f"memory://{tmp_path.name}/pool"}, out, *pools.THRESHOLDS, beam=False)
    local = pools.curate(roles, tmp_path / "run", *pools.THRESHOLDS)
    parts = [path for path in memory.find(f"/{tmp_path.name}/run/dataset") if path.endswith(".parquet")]
    rows = [row for part in sorted(parts) for row in pq.read_table(io.BytesIO(memory.cat_file(part))).to_pylist()]
    assert [row["image"] for row in rows] == [row["image"] for row in local.samples]
    flow = json.loads(memory.cat_file(f"/{tmp_path.name}/run/run.json"))["flow"]
    assert flow == local.facts["flow"]


def test_approximate_search_with_every_list_probed_finds_what_the_exact_one_does(tmp_path):
    pictures = {f"{i}.png": pools.picture(i, 24) for i in range(300)}
    roles = {
        "pool": pools.write(tmp_path / "pool", pictures),
        "seeds": pools.write(tmp_path / "seeds", {f"{i}.png": pools.picture(1000 + i, 24) for i in range(4)}),
    }
    words = ("--dedup.enabled", "false", "--retrieval.k", "2")
    exact = pools.curate(roles, tmp_path / "exact", *words)
    index = ("--retrieval.index", "ivfpq", "--retrieval.index_cells", "4", "--retrieval.code_bytes", "35")
    approximate = pools.curate(roles, tmp_path / "approximate", *words, *index, "--retrieval.probes", "4")
    recall = approximate.facts["retrieval"][0]["recall"]
    assert recall >= 0.75
    same = kept_ids(approximate) & kept_ids(exact)
    assert len(same) >= 0.75 * len(kept_ids(exact))
    assert "recall" not in exact.facts["retrieval"][0]


def test_a_code_length_that_does_not_divide_the_dimension_is_refused(roles, tmp_path, capsys):
    words = ("--retrieval.index", "ivfpq", "--retrieval.code_bytes", "3")
    assert pools.attempt(only(roles, "pool", "seeds"), tmp_path / "run", *words) == 2
    assert "retrieval.code_bytes: 3 does not divide 350" in capsys.readouterr().err
