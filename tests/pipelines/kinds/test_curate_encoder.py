"""The retrieval encoder of a run: chosen once, written into its recipe, and said where it sees layout alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pools
import pytest
import yaml
from model_hub import COMMIT, ModelHub
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from granary.curation.encoders.choice import BY_LAYOUT, LAYOUT, MODEL, choose_encoder
from granary.pipelines.kinds import curate_session

GRANARY = [sys.executable, "-c", "import sys; from granary.pipelines.command import main; sys.exit(main())"]


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    """A pool of six pictures and a seed that resembles one of them."""
    pool = pools.write(tmp_path / "pool", {f"{n}.png": pools.picture(n) for n in range(6)})
    return {"pool": pool, "seeds": pools.write(tmp_path / "seeds", {"s.png": pools.picture(0, 40)})}


def curate(pictures: dict[str, Path], out: Path, endpoint: str, home: Path) -> str:
    """Curate in a process of its own; returns what it printed."""
    words = [word for role, path in pictures.items() for word in (f"--{role}", str(path))]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [*GRANARY, "curate", *words, "--out", str(out), "--retrieval.k", "1"],
        env=plain | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_model_of_the_hub_is_chosen_written_down_and_used_again_without_it(
    pictures: dict[str, Path], tmp_path: Path
) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path / "model")
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path / "model"
    )
    with ModelHub() as hub:
        hub.files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        told = curate(pictures, tmp_path / "first", hub.url, tmp_path / "home")
        hub.asked.clear()
        curate(pictures, tmp_path / "second", hub.url, tmp_path / "home")
        assert [path for path in hub.asked if MODEL in path] == []
    assert "is downloaded once" in told
    spec = f"hf:{MODEL}?revision={COMMIT}"
    first = pools.Run(str(tmp_path / "first"))
    assert yaml.safe_load((first.path / "recipe.yaml").read_text())["encoder"]["retrieval"] == spec
    assert first.facts["notes"] == []
    assert f"by `{spec}`" in (first.path / "dataset" / "README.md").read_text()
    assert pools.Run(str(tmp_path / "second")).hashes("dataset") == first.hashes("dataset")


def test_without_a_model_all_places_say_what_pictures_are_matched_by(
    pictures: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = pools.curate(pictures, tmp_path / "run", "--offline")
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["encoder"]["retrieval"] == LAYOUT
    told = capsys.readouterr().err
    assert f"{MODEL} is not in the local cache" in told
    assert f"note: {BY_LAYOUT}" in told
    assert run.facts["notes"] == [BY_LAYOUT]
    for page in ("dataset/README.md", "report/index.html"):
        assert "matched by layout and colour" in (run.path / page).read_text()
    assert run.facts["retrieval"][0]["similarities"] == sorted(run.facts["retrieval"][0]["similarities"])


def test_a_run_keeps_the_encoder_that_it_was_begun_with(
    pictures: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pools.curate(pictures, tmp_path / "run")
    before = run.times()
    monkeypatch.setattr(curate_session, "choose_encoder", lambda *_: "hf:somewhere/else")
    assert pools.curate(pictures, tmp_path / "run").times() == before


def test_what_retrieves_nothing_needs_no_encoder(
    pictures: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(curate_session, "choose_encoder", lambda *words: asked.append(words) or choose_encoder(True))
    run = pools.curate({"pool": pictures["pool"]}, tmp_path / "run")
    assert asked == []
    assert run.facts["notes"] == []


def test_a_smallest_similarity_leaves_out_what_resembles_a_seed_less(pictures: dict[str, Path], tmp_path: Path) -> None:
    layout = ("--encoder.retrieval", LAYOUT, "--retrieval.k", "6")
    whole = pools.curate(pictures, tmp_path / "whole", *layout)
    found = {sample["id"]: sample["similarities"][0] for sample in whole.samples}
    assert len(found) == 6
    bound = sorted(found.values())[3]
    some = pools.curate(pictures, tmp_path / "some", *layout, "--retrieval.threshold", str(bound - 1e-4))
    assert {sample["id"] for sample in some.samples} == {name for name, value in found.items() if value >= bound}
    none = pools.curate(pictures, tmp_path / "none", *layout, "--retrieval.threshold", "0.99999")
    assert none.samples == []
    assert "has a similarity of 0.99999 or more" in none.facts["notes"][-1]


@pytest.mark.parametrize("words", [[], ["--seeds", "{seeds}", "--seeds.mode", "cluster"]])
def test_a_smallest_similarity_without_seeds_to_compare_with_is_refused(
    pictures: dict[str, Path], tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    words = [word.format(**pictures) for word in words]
    status = pools.attempt({"pool": pictures["pool"]}, tmp_path / "run", "--retrieval.threshold", "0.5", *words)
    assert status == 2
    assert "retrieval.threshold: there is no seed set of mode sample" in capsys.readouterr().err
