"""What the page of a run of curate tells of pairs, resemblance, the map and decisions, against all pairs compared."""

from __future__ import annotations

import json

import numpy as np
import pools
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from viewing import Visitor, visiting

from granary.curation.runs.decisions import load_decisions
from granary.curation.view import pairs, space
from granary.pipelines import command

LAYOUT = ("--encoder.retrieval", "builtin:layout", "--retrieval.k", "1")


@pytest.fixture(scope="module")
def run(roles, tmp_path_factory) -> pools.Run:
    return pools.curate(roles, tmp_path_factory.mktemp("curated") / "run", *pools.THRESHOLDS, *LAYOUT)


@pytest.fixture(scope="module")
def page(run):
    with visiting(run.path) as visitor:
        yield visitor


def edges(visitor: Visitor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = visitor.get("pairs")
    third = len(data) // 3
    types = ("<f4", "<u4", "<u4")
    return tuple(np.frombuffer(data[third * at : third * (at + 1)], one) for at, one in enumerate(types))  # type: ignore[return-value]


def vectors(run: pools.Run, stage: str) -> dict[int, np.ndarray]:
    """Return the unit vector of each row of the pool that has one."""
    rows = [(row.get("index", at), row) for at, row in enumerate(run.table(stage))]
    read = [(index, np.array(row["embedding"], np.float64)) for index, row in rows if row["status"] == "ok"]
    return {index: vector / np.linalg.norm(vector) for index, vector in read}


def removed(run: pools.Run, threshold: float) -> int:
    """Return how many pictures a threshold removes, by all pairs."""
    copies = {row["index"] for row in run.table("exact")}
    alive = np.array([vector for index, vector in vectors(run, "pool").items() if index not in copies])
    linked = (alive @ alive.T).astype(np.float32) > np.float32(threshold)
    return len(alive) - connected_components(coo_matrix(linked), directed=False)[0]


@pytest.mark.parametrize("threshold", [0.83, 0.9, 0.92, 0.93, 0.95, 0.99])
def test_the_edges_above_a_threshold_count_what_it_removes(run, page, threshold):
    similarity, i, j = edges(page)
    assert (np.diff(similarity) <= 0).all()
    assert int((similarity > np.float32(threshold)).sum()) == removed(run, threshold)
    rows = run.table("pool")
    for one, other, close in zip(i, j, similarity, strict=True):
        pair = [np.array(rows[row]["embedding"], np.float64) for row in (one, other)]
        assert np.dot(*(vector / np.linalg.norm(vector) for vector in pair)) == pytest.approx(close, abs=1e-5)


def test_the_threshold_of_the_run_removed_what_the_page_says(run, page):
    told = page.json("threshold")
    assert told["threshold"] == pools.DEDUP
    assert told["lowest"] == pytest.approx(pools.DEDUP - 0.1)
    assert int((edges(page)[0] > np.float32(pools.DEDUP)).sum()) == len(run.uris("dropped", "dedup"))


def test_in_a_large_pool_pairs_below_the_threshold_are_not_looked_for(run, monkeypatch):
    monkeypatch.setattr(pairs, "MOST_COMPARED", 5)
    with visiting(run.path) as visitor:
        told = visitor.json("threshold")
        assert told["lowest"] == pools.DEDUP
        assert "more than 5 pictures" in told["note"]
        assert edges(visitor)[0].min() > pools.DEDUP


@pytest.mark.parametrize("name", ["copy", "retrieval"])
@pytest.mark.parametrize("held", [0, 1 << 20])
def test_what_resembles_a_picture_is_what_all_comparisons_say(run, name, held, monkeypatch):
    monkeypatch.setattr(space, "HELD_BYTES", held)
    known = vectors(run, space.SPACES[name])
    index = np.array(sorted(known))
    matrix = np.array([known[row] for row in index])
    with visiting(run.path) as visitor:
        for row in index[:6]:
            told = visitor.json("similar", row=row, space=name)
            cosines = matrix @ known[row]
            assert told["rows"][0] == row
            assert sorted(told["rows"]) == index.tolist()
            by_row = dict(zip(index.tolist(), cosines, strict=True))
            assert told["similarities"] == pytest.approx([by_row[one] for one in told["rows"]], abs=1e-5)
            assert (np.diff(told["similarities"][1:]) <= 0).all()
        dead = next(at for at, one in enumerate(visitor.rows()) if one["status"] == "dead")
        assert "no vector" in visitor.refused("similar", 400, row=dead, space=name)
        assert "copy" in visitor.refused("similar", 400, row=0, space="pixels")


def test_a_file_finds_what_resembles_it(page, roles):
    data = (roles["pool"] / "plain" / "05.png").read_bytes()
    status, _, body = page.send(page.base + "similar", "POST", data)
    told = json.loads(body)
    assert status == 200
    assert page.rows()[told["rows"][0]]["uri"] == "pool/plain/05.png"
    assert told["similarities"][0] == pytest.approx(1, abs=1e-3)
    assert (np.diff(told["similarities"]) <= 0).all()
    status, _, body = page.send(page.base + "similar", "POST", b"no picture")
    assert (status, "no picture that granary takes" in json.loads(body)["error"]) == (400, True)


def test_the_map_is_that_of_the_principal_components(run, page):
    known = vectors(run, "pool")
    index = np.array(sorted(known))
    matrix = np.array([known[row] for row in index])
    centred = matrix - matrix.mean(axis=0)
    places = np.frombuffer(page.get("map", space="copy"), "<f4").reshape(-1, 2)
    assert np.isnan(places[np.setdiff1d(np.arange(len(places)), index)]).all()
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:2].T
    for axis in range(2):
        sign = np.sign(expected[:, axis] @ places[index, axis])
        np.testing.assert_allclose(places[index, axis], sign * expected[:, axis], atol=1e-4)
    with visiting(run.path) as visitor:
        assert visitor.get("map", space="copy") == page.get("map", space="copy")
    assert singular[0] > singular[1]


def post(visitor: Visitor, **body: object) -> tuple[int, dict]:
    status, _, answer = visitor.send(visitor.base + "decisions", "POST", json.dumps(body).encode())
    return status, json.loads(answer)


def test_decisions_are_written_taken_back_and_obeyed(roles, run, tmp_path):
    path = tmp_path / "decided.csv"
    with visiting(run.path, decisions=str(path)) as visitor:
        rows = visitor.rows()
        number = {row["uri"]: at for at, row in enumerate(rows)}
        names = ("chain-0/a", "chain-0/b", "plain/04", "broken/text")
        a, b, kept, dead = (number[f"pool/{name}.png"] for name in names)
        assert visitor.json("decisions") == {"decisions": []}
        assert post(visitor, decision="drop", rows=[a, kept])[0] == 200
        assert post(visitor, decision="", rows=[a])[0] == 200
        status, told = post(visitor, decision="not a duplicate", rows=[b], other=a)
        assert status == 200
        assert {(one["decision"], one["row"]) for one in told["decisions"]} >= {("drop", kept)}
        for body in (
            {"decision": "drop", "rows": [dead]}, {"decision": "erase", "rows": [a]},
            {"decision": "drop", "rows": [len(rows)]},
            {"decision": "not a duplicate", "rows": [a]}, {"decision": "not a duplicate", "rows": [a], "other": a},
            {"decision": "drop", "rows": ["0"]}, {"rows": [a]}, {"decision": "drop", "rows": [True]},
        ):  # fmt: skip
            assert post(visitor, **body)[0] == 400
        assert visitor.send(visitor.base + "decisions", "POST", b"[" * 50_000)[0] == 400
    decisions = load_decisions(str(path))
    ids = [row["id"] for row in rows]
    assert decisions.drop == (ids[kept],)
    assert decisions.apart == (tuple(sorted((ids[a], ids[b]))),)
    with visiting(run.path, decisions=str(path)) as visitor:  # another visit goes on
        assert len(visitor.json("decisions")["decisions"]) == 2
    again = pools.curate(roles, tmp_path / "again", *pools.THRESHOLDS, *LAYOUT, "--decisions", str(path))
    assert again.ledger["pool/plain/04.png"]["stage"] == "decisions"
    assert len({again.ledger[f"pool/chain-0/{name}.png"]["component"] for name in "ab"}) == 2


def test_a_file_of_no_decisions_is_refused(run, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("something else\n")
    assert command.main(["view", str(run.path), "--no-browser", "--decisions", str(tmp_path / "x.csv")]) == 2
    assert "neither CSV" in capsys.readouterr().err
