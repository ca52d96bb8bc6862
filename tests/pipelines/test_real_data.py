"""Runs over real and hostile files; they skip where the real-image folder is not beside the checkout."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pools
import pytest
from places import SHARED

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the real-image folder ../shared is not here")


def unpacked(archive: str, folder: Path) -> list[dict]:
    """Write the images of an archive below a folder; returns its manifest."""
    with zipfile.ZipFile(SHARED / archive) as source:
        manifest = [json.loads(line) for line in source.read("manifest.jsonl").splitlines()]
        for record in manifest:
            target = folder / record["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read(record["file"]))
    return manifest


def test_every_odd_image_is_accounted_for(tmp_path: Path) -> None:
    manifest = unpacked("odd_images_dev.zip", tmp_path / "pool")
    run = pools.curate({"pool": tmp_path / "pool"}, tmp_path / "run", beam=True)
    by_uri = run.ledger
    assert by_uri.keys() == {f"pool/{record['file']}" for record in manifest}
    dead = {uri for uri, row in by_uri.items() if row["status"] == "dead"}
    assert dead == {row["uri"] for row in run.table("dead-letter")}
    readable = {f"pool/{record['file']}" for record in manifest if record["pillow"]["outcome"] == "ok"}
    assert len(readable - dead) >= 700
    assert all(row["reason"] for row in by_uri.values())


def test_known_edits_and_every_exif_orientation_collapse(tmp_path: Path) -> None:
    manifest = unpacked("near_duplicates_dev.zip", tmp_path / "pool")
    run = pools.curate({"pool": tmp_path / "pool"}, tmp_path / "run", beam=True)
    verdicts = run.ledger
    for kind, count in (("edits", 12), ("exif_orientation", 9)):
        rows = [verdicts[f"pool/{record['file']}"] for record in manifest if record["kind"] == kind]
        assert len(rows) == count
        ids = {row["component"] for row in rows}
        assert len(ids) == 1, f"{kind} fell into {len(ids)} components"
    kept = run.uris("kept")
    groups = {record["group"] for record in manifest if record["kind"] != "dihedral"}
    assert len(kept) < len(manifest) - 12 - 9 + len(groups) + 8


def test_mirrors_collapse_on_request(tmp_path: Path) -> None:
    manifest = unpacked("near_duplicates_dev.zip", tmp_path / "pool")
    turned = {f"pool/{record['file']}" for record in manifest if record["kind"] == "dihedral"}
    kept = {}
    for mirror in ("false", "true"):
        run = pools.curate({"pool": tmp_path / "pool"}, tmp_path / mirror, "--dedup.mirror", mirror)
        kept[mirror] = len(run.uris("kept") & turned)
    assert kept["true"] == kept["false"] // 2
