"""What a repository has of an earlier run is known again, whatever kind of run and config it is of."""

from __future__ import annotations

import re

from places import ROOT

from granary.curation.hub.client import OURS


def test_the_shards_of_every_config_that_a_run_writes_are_known_again() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "pipelines" / "kinds").glob("*.py"))
    written = set(re.findall(r'target="dataset/(\w+)"', sources)) | set(re.findall(r'write_chosen\("(\w+)"', sources))
    assert {"data", "quads", "videos", "groups"} <= written
    for folder in sorted(written):
        assert OURS.fullmatch(f"{folder}/train-00000-of-00001.parquet"), folder
    assert not OURS.fullmatch("mine/train-00000-of-00001.parquet")
