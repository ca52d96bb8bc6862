"""`granary explain`: whatever a user calls an image, its story is told, and what is said of other images is true."""

from __future__ import annotations

import shutil
import tarfile

import pools
import pytest

from granary.pipelines import command


@pytest.fixture(scope="module")
def curated(roles, tmp_path_factory) -> pools.Run:
    """A run whose seed retrieves few, so that most representatives are dropped after they were kept."""
    out = tmp_path_factory.mktemp("explained") / "run"
    return pools.curate(roles, out, *pools.THRESHOLDS, "--retrieval.k", "1", "--encoder.retrieval", "builtin:layout")


@pytest.fixture
def story(curated, capsys):
    def tell(name) -> str:
        assert command.main(["explain", str(curated.path), str(name)]) == 0
        return capsys.readouterr().out

    return tell


@pytest.fixture
def refusal(curated, capsys):
    def tell(name) -> str:
        assert command.main(["explain", str(curated.path), str(name)]) == 2
        return capsys.readouterr().err.strip()

    return tell


def test_an_image_is_found_by_uri_id_name_and_path(story, curated, roles, tmp_path, monkeypatch):
    uri = "pool/plain/05.png"
    whole = story(uri)
    assert whole.startswith(f"{uri}\n")
    assert story(curated.ledger[uri]["id"][:16]) == whole
    assert story("05.png") == story("plain/05.png") == whole
    assert story(roles["pool"] / "plain" / "05.png") == whole
    moved = shutil.copy(roles["pool"] / "plain" / "05.png", tmp_path / "holiday.png")  # the bytes tell, not the name
    monkeypatch.chdir(tmp_path)
    assert story("holiday.png") == story(moved) == whole
    monkeypatch.chdir(roles["pool"].parent)
    assert story("pool/plain/05.png") == whole


def test_a_member_of_a_tar_is_found_by_its_name(tmp_path, roles, capsys):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(roles["pool"] / "plain" / "05.png", "holiday/05.png")
    run = pools.curate({"pool": tmp_path / "shard.tar"}, tmp_path / "run", *pools.THRESHOLDS)
    for name in ("pool/shard.tar#holiday/05.png", "holiday/05.png", "05.png"):
        assert command.main(["explain", str(run.path), name]) == 0
        assert capsys.readouterr().out.startswith("pool/shard.tar#holiday/05.png\n")


def test_a_path_of_a_file_that_is_gone_is_understood(curated, roles, tmp_path, capsys):
    pool = shutil.copytree(roles["pool"], tmp_path / "photos")
    run = pools.curate({"pool": pool}, tmp_path / "run", *pools.THRESHOLDS)
    (pool / "plain" / "05.png").unlink()
    assert command.main(["explain", str(run.path), str(pool / "plain" / "05.png")]) == 0
    assert capsys.readouterr().out.endswith("verdict     kept at stage dedup: distinct\n")


def test_a_benchmark_picture_tells_what_leaked(story, curated, roles):
    leaked = {uri for uri, row in curated.ledger.items() if row["leaked_reference"] == "references/1.png"}
    assert {"pool/leak-1.png", "pool/leak-2.png"} <= leaked
    text = story("references/1.png")
    assert "role        reference" in text
    assert f"{len(leaked)} images of the pool were dropped for it" in text
    assert all(f"image       {uri}  similarity" in text for uri in leaked)
    assert "through pool/leak-1.png" in text
    assert text in story(roles["references"] / "1.png")
    assert "0 images of the pool" in story("references/2.png")


def test_a_picture_of_pool_and_benchmark_tells_both_stories(story, roles):
    text = story(roles["references"] / "0.png")  # the same bytes as pool/leak-0.png
    assert text.startswith("pool/leak-0.png\n")
    assert "\nreferences/0.png\n" in text


def test_a_seed_tells_what_it_retrieved(story, curated):
    for number in range(3):
        text = story(f"seeds/{number}.png")
        identity = text.split("id          ")[1].split("\n")[0]
        retrieved = {uri for uri, row in curated.ledger.items() if identity in row["seed_ids"]}
        assert "role        seed" in text
        assert f"retrieved   {len(retrieved)} images of the pool" in text
        assert all(f"image       {uri}  similarity" in text for uri in retrieved)


def test_what_became_of_the_representative_is_told(story, curated):
    by_id = {row["id"]: row for row in curated.ledger.values() if row["stage"] not in ("exact", "decode")}
    copies = [row for row in curated.ledger.values() if row["stage"] == "dedup" and row["status"] == "dropped"]
    later = [row for row in copies if by_id[row["representative"]]["status"] != "kept"]
    assert later
    for row in copies:
        other = by_id[row["representative"]]
        text = story(row["uri"])
        if other["status"] == "kept":
            assert f"kept image  {other['id']}  {other['uri']}\n" in text
        else:
            after = f"(later {other['status']} at {other['stage']}: {other['reason']})"
            assert f"representative  {other['id']}  {other['uri']} {after}\n" in text
            assert "kept image" not in text


def test_a_name_of_several_images_lists_them(refusal):
    assert "'b.png' is the name of several images: pool/chain-0/b.png, pool/chain-1/b.png;" in refusal("b.png")
    assert "references/0.png, seeds/0.png" in refusal("0.png")


@pytest.mark.parametrize("name", ["pool/plain/5.png", "plain/05.jpg", "PLAIN/05.PNG", "pool/plane/05.png"])
def test_a_slip_is_told_what_was_meant(refusal, name):
    said = refusal(name)
    assert "; did you mean " in said
    assert "05.png" in said


def test_nothing_similar_is_suggested_for_what_is_like_nothing(refusal):
    for name in ("qqqqqqqqqqqq", "%", ".*", "/etc"):
        assert "did you mean" not in refusal(name)
