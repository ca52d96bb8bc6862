"""Renders of the embedded world from end to end: the same bytes however they are made, and factors that are true."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import trimesh
import yaml
from datasets import load_dataset
from PIL import Image
from pools import Run, run_in_a_loop

from granary.curation.errors import UserError
from granary.pipelines import command
from granary.pipelines.demos import render as render_demo
from granary.pipelines.engine.recipe import load_recipe
from granary.pipelines.engine.units import Engine, Runner
from granary.pipelines.kinds.render import render, write_report
from granary.synth.pug.recipe import RenderRecipe
from granary.synth.pug.renderer import capture, servers
from granary.synth.pug.world import process

FACTORS = {
    "world_name": ["Meadow", "Desert"],
    "character_name": ["Cat", "Elephant"],
    "character_scale": [0.8, 1.2],
    "camera_yaw": [45, 225],
}
CAPTION = "a {character_name} in a {world_name}"


def write_recipe(folder: Path, **changes: Any) -> str:
    plain = {
        "name": "small world",
        "factors": FACTORS,
        "image": {"width": 48, "height": 48},
        "outputs": {"mask": True, "depth": True, "normals": True},
        "captions": {"style": "templates", "templates": [CAPTION]},
        "questions": {"kinds": ["what", "world", "count"]},
        "polls": {"kinds": ["random", "adversarial"]},
        "splits": [{"where": {"world_name": "Desert"}}],
        "shards": {"rows": 8, "row_group": 3, "checkpoint": 2},
        "checks": {"twice": 0.2},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return str(path)


def attempt(config: str, out: Path, *words: str, beam: bool = False) -> int:
    with pytest.MonkeyPatch.context() as patch:
        if not beam:
            patch.setattr(Runner, "_run", run_in_a_loop)
        return command.main(["render", "--config", config, "--out", str(out), *words])


def made(folder: Path, *words: str, beam: bool = False, **changes: Any) -> Run:
    """Render a recipe, which must end well."""
    assert attempt(write_recipe(folder, **changes), folder / "run", *words, beam=beam) == 0
    return Run(str(folder / "run"))


@dataclasses.dataclass
class Lent:
    """A server process that is not stopped when a render is done with it."""

    inner: process.ServerProcess
    idle: list[process.ServerProcess]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def stop(self) -> None:
        if self.inner.alive:
            self.idle.append(self.inner)


@pytest.fixture(scope="module", autouse=True)
def _shared_servers() -> Iterator[None]:
    """Start each server process once: the worlds it has made stay with it."""
    idle: list[process.ServerProcess] = []
    start = process.start_server
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "start_server", lambda **options: Lent(idle.pop() if idle else start(**options), idle))
        yield
    for server in idle:
        server.stop()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("render"))


def test_every_row_has_a_sample_with_its_factors(run: Run) -> None:
    assert len(run.samples) == 16
    rows = {tuple(sample[column] for column in FACTORS) for sample in run.samples}
    assert len(rows) == 16
    for sample in run.samples:
        index = int(sample["image"]["path"].removesuffix(".png"))
        digits = np.unravel_index(index, [2, 2, 2, 2])  # the row decoded from the name of its file
        assert [sample[column] for column in FACTORS] == [
            values[digit] for values, digit in zip(FACTORS.values(), digits, strict=True)
        ]
        assert sample["label"] == sample["character_name"]
        assert sample["captions"] == [CAPTION.format(**sample)]
        assert sample["split"] == ("test" if sample["world_name"] == "Desert" else "train")
        assert sample["source"] == {"name": "render", "uri": sample["row_id"]}
    assert run.facts["flow"] == [{"stage": "render", "in": 16, "kept": 16, "dropped": 0, "dead": 0}]
    assert run.uris("kept") == {sample["row_id"] for sample in run.samples}


def test_ground_truth_agrees_with_the_picture(run: Run) -> None:
    for sample in run.samples:
        lit = np.asarray(Image.open(io.BytesIO(sample["image"]["bytes"])))
        mask = np.asarray(Image.open(io.BytesIO(sample["mask"]["bytes"])))
        normals = np.asarray(Image.open(io.BytesIO(sample["normals"]["bytes"])))
        depth = np.load(io.BytesIO(sample["depth"]))["depth"]
        assert lit.shape == normals.shape == (48, 48, 3)
        view = np.asarray(Image.open(io.BytesIO(sample["depth_view"]["bytes"])))
        assert mask.shape == depth.shape == view.shape == (48, 48)
        assert view[depth == depth.min()].min() == 255
        assert view[depth == depth.max()].max() == 0
        assert set(np.unique(mask)) == {0, 1}
        (thing,) = sample["objects"]
        rows, columns = np.nonzero(mask)
        assert thing["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (thing["name"], thing["pixels"]) == (sample["character_name"], len(rows))
        assert np.isfinite(depth).all()
        inside = depth[mask == 1]
        assert inside.min() > 100
        assert inside.max() < 450  # it stands about 300 cm from the camera
        assert np.abs(normals[mask == 1] / 127.5 - 1).max() <= 1.01


def test_larger_scales_are_larger_in_the_picture(run: Run) -> None:
    pixels = {tuple(sample[column] for column in FACTORS): sample["objects"][0]["pixels"] for sample in run.samples}
    for (world, name, scale, yaw), count in pixels.items():
        if scale == 0.8:
            assert pixels[world, name, 1.2, yaw] > 1.5 * count


def test_datasets_loads_it_with_typed_columns(run: Run) -> None:
    data = load_dataset(str(run.path / "dataset"), split="train")
    assert data[0]["image"].size == (48, 48)
    assert data.features["camera_yaw"].dtype == "int64"
    assert data.features["label"].names == ["Cat", "Elephant"]
    assert [data.features["label"].int2str(row["label"]) for row in data] == data["character_name"]
    assert data.features["character_scale"].dtype == "float64"


def test_a_split_is_loaded_without_the_rows_of_another(run: Run) -> None:
    whole = load_dataset(str(run.path / "dataset"))
    assert {split: set(rows["world_name"]) for split, rows in whole.items()} == {
        "train": {"Meadow"},
        "test": {"Desert"},
    }
    assert [rows.num_rows for rows in whole.values()] == [8, 8]
    assert run.facts["splits"]["test"]["samples"] == 8
    by_name = load_dataset("parquet", data_files={"train": str(run.path / "dataset" / "data" / "train-*.parquet")})
    assert set(by_name["train"]["world_name"]) == {"Meadow"}  # without the card too


def test_many_splits_and_many_shards_of_each(tmp_path: Path) -> None:
    rules = [{"split": "odd", "where": {"camera_yaw": [225]}}, {"split": "large", "where": {"character_scale": [1.2]}}]
    run = made(tmp_path, splits=rules, shards={"rows": 3})
    names = sorted(path.name for path in (run.path / "dataset" / "data").iterdir())
    assert names == [
        *("large-00000-of-00002.parquet", "large-00001-of-00002.parquet"),
        *(f"odd-{number:05d}-of-00003.parquet" for number in range(3)),
        *("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
    ]
    for name in names:
        splits = set(pq.read_table(run.path / "dataset" / "data" / name)["split"].to_pylist())
        assert splits == {name.split("-")[0]}
    loaded = load_dataset(str(run.path / "dataset"))
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 4, "odd": 8, "large": 4}


def test_other_rules_leave_no_shard_of_the_splits_before(tmp_path: Path) -> None:
    run = made(tmp_path, splits=[{"where": {"world_name": "Desert"}}])
    assert run.path == made(tmp_path, splits=[]).path
    assert {path.name.split("-")[0] for path in (run.path / "dataset" / "data").iterdir()} == {"train"}
    assert load_dataset(str(run.path / "dataset"))["train"].num_rows == 16


def test_two_servers_and_beam_give_the_same_bytes(run: Run, tmp_path: Path) -> None:
    other = made(tmp_path, "--workers", "2", beam=True)
    assert other.hashes("dataset", "ledger", "dead-letter") == run.hashes("dataset", "ledger", "dead-letter")


def test_a_killed_server_costs_no_row(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    connect = servers.EmbeddedServer.connect

    def watched(self: servers.EmbeddedServer, timeout: float) -> Any:
        connection = connect(self, timeout)
        started.append(self.process.process.pid)
        return connection

    render_one = capture.UnrealCVRenderer.render

    def killing(self: capture.UnrealCVRenderer, scene: Any, salt: str) -> Any:
        if len(frames) == 5:
            threading.Timer(0.01, os.kill, [started[-1], signal.SIGKILL]).start()
        frames.append(salt)
        return render_one(self, scene, salt)

    frames: list[str] = []
    monkeypatch.setattr(capture.UnrealCVRenderer, "render", killing)

    monkeypatch.setattr(servers.EmbeddedServer, "connect", watched)
    other = made(tmp_path)
    assert len(set(started)) == 2
    assert other.hashes("dataset") == run.hashes("dataset")


def test_saved_rows_are_not_rendered_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run after five rows; the next one renders what is missing, and makes the same bytes."""
    count = 0
    render_one = capture.UnrealCVRenderer.render

    def counted(self: capture.UnrealCVRenderer, scene: Any, salt: str) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return render_one(self, scene, salt)

    monkeypatch.setattr(capture.UnrealCVRenderer, "render", counted)
    config = write_recipe(tmp_path, checks={"twice": 0.0})
    assert attempt(config, tmp_path / "run") == 130
    count = 100
    assert attempt(config, tmp_path / "run") == 0
    assert count == 100 + 16 - 4  # two pieces of two rows were saved
    other = Run(str(tmp_path / "run"))
    assert other.hashes("dataset/data") == run.hashes("dataset/data")
    assert not (tmp_path / "run" / "frames").exists()
    before = other.times()
    assert attempt(config, tmp_path / "run") == 0
    assert other.times() == before


def test_what_does_not_decide_a_picture_redoes_nothing(tmp_path: Path) -> None:
    base: dict[str, Any] = {"factors": {**FACTORS, "world_name": ["Meadow"], "camera_yaw": [45]}, "splits": []}
    first = made(tmp_path, **base)
    before = first.times()
    again = made(tmp_path, **base, renderer={"timeout": 99, "retries": 1}, licence="cc0-1.0")
    assert again.times() == before
    places = {sample["row_id"]: sample["image"]["path"] for sample in first.samples}
    base["factors"] = dict(reversed(base["factors"].items()))  # the same factors in another order: other places
    other = made(tmp_path, **base)
    assert {sample["row_id"]: sample["image"]["path"] for sample in other.samples}.keys() == places.keys()
    assert {sample["row_id"]: sample["image"]["path"] for sample in other.samples} != places


def test_the_report_shows_every_factor(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    html = (run.path / "report" / "index.html").read_text()
    for factor, values in FACTORS.items():
        assert f"<h3>{factor} " in html
        for value in values:
            assert f"<b>{value}</b>" in html
    assert html.count("data:image/jpeg") == 8
    assert "Every row has its picture." in html
    assert write_report(str(run.path)) == str(run.path / "report" / "index.html")
    assert (run.path / "report" / "index.html").read_text() == html


def test_dry_run_prints_the_rows_and_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert command.main(["render", "--config", "configs/render/pug_animals.yaml", "--out", str(out), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PUG: Animals recipe: 215,040 rows"
    assert len([line for line in lines if '"character_name": "Goldfish"' in line]) == 5
    assert any(line.startswith("the embedded world lacks the worlds AmusementPark, AncientAgora") for line in lines)
    assert not out.exists()


def test_missing_assets_stop_with_their_list_unless_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factors = {
        "world_name": ["Meadow"],
        "character_name": ["Wildbeest", "Cat"],
        "character_texture": ["Default", "Sky"],
    }
    config = write_recipe(tmp_path, factors=factors, splits=[])
    assert attempt(config, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "does not have these objects Wildbeest." in said
    assert "assets:" in said
    assert not (tmp_path / "run").exists()
    other = made(tmp_path, factors=factors, splits=[], assets={"Wildbeest": "Cow"})
    assert {sample["character_name"] for sample in other.samples} == {"Wildbeest", "Cat"}
    assert "Wildbeest as Cow" in other.facts["notes"][0]
    assert "Wildbeest as Cow" in (other.path / "dataset" / "README.md").read_text()


def test_own_meshes_are_shown_and_broken_ones_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trimesh.creation.icosphere(subdivisions=2, radius=40.0).export(tmp_path / "ball.ply")
    (tmp_path / "broken.glb").write_bytes(b"glTF" + bytes(60))
    factors = {"world_name": ["Meadow"], "character_name": ["Ball"], "character_z": [40.0]}
    base = {"factors": factors, "splits": [], "meshes": {"Ball": str(tmp_path / "ball.ply")}}
    other = made(tmp_path, **base)
    (sample,) = other.samples
    left, top, right, bottom = sample["objects"][0]["box"]
    assert abs((right - left) - (bottom - top)) <= 2  # a ball is round
    config = write_recipe(tmp_path / "broken", **{**base, "meshes": {"Ball": str(tmp_path / "broken.glb")}})
    assert attempt(config, tmp_path / "broken" / "run") == 2
    said = capsys.readouterr().err
    assert "meshes:" in said
    assert "broken.glb" in said


def test_options_of_the_command_line_reach_the_recipe(tmp_path: Path) -> None:
    words = ["--renderer.kind", "unrealcv", "--renderer.addresses", "127.0.0.1:9001,127.0.0.1:9002", "--out", "-"]
    recipe = load_recipe(RenderRecipe, "configs/render/animals_demo.yaml", words)
    assert recipe.renderer.addresses == ("127.0.0.1:9001", "127.0.0.1:9002")
    with pytest.raises(UserError, match=r"no UnrealCV server answers at 127\.0\.0\.1:9001"):
        render(recipe.model_copy(update={"out": str(tmp_path / "run")}), Engine())


def test_rows_without_a_picture_are_in_the_dead_letter_and_the_report(tmp_path: Path) -> None:
    """A camera inside the character sees one tone, or none of it."""
    factors = {"world_name": ["Meadow"], "character_name": ["Cat"], "character_x": [0, 5000]}
    other = made(tmp_path, factors=factors, splits=[], renderer={"retries": 0})
    assert [sample["character_x"] for sample in other.samples] == [0]
    (dead,) = other.table("dead-letter")
    assert dead["error"] == "NotVisible"
    assert '"character_x": 5000' in dead["message"]
    html = (other.path / "report" / "index.html").read_text()
    assert "NotVisible" in html
    assert dead["uri"] in html
    assert other.uris("dead") == {dead["uri"]}
    assert other.facts["flow"][0]["dead"] == 1


@pytest.mark.slow
def test_a_killed_run_goes_on(run: Run, tmp_path: Path) -> None:
    config = write_recipe(tmp_path, checks={"twice": 0.0})
    words = [
        sys.executable,
        "-m",
        "granary.pipelines.command",
        "render",
        "--config",
        config,
        "--out",
        str(tmp_path / "run"),
    ]
    start = "import sys; from granary.pipelines.command import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", start, *words[3:], "--workers", "2"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("frames/*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    saved = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("frames/*/*.parquet")}
    assert saved
    assert subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert Run(str(tmp_path / "run")).hashes("dataset/data") == run.hashes("dataset/data")


def test_shards_are_readable_row_group_by_row_group(run: Run) -> None:
    for path in sorted((run.path / "dataset" / "data").glob("*.parquet")):
        file = pq.ParquetFile(path)
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 2]
        assert file.schema_arrow.metadata[b"huggingface"]


def test_the_demo_renders_and_refuses_a_folder_that_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "_run", run_in_a_loop)
    small = write_recipe(tmp_path, factors={"world_name": "Meadow", "character_name": ["Cat", "Elephant"]}, splits=[])
    monkeypatch.setattr(render_demo, "shipped", lambda name: small)
    assert render_demo.demo(str(tmp_path / "demo"), Engine()) == 0
    assert render_demo.demo(str(tmp_path / "demo"), Engine()) == 0
    assert len(Run(str(tmp_path / "demo" / "run")).samples) == 2
    assert "report/index.html" in capsys.readouterr().out
    with pytest.raises(UserError, match="not the demo's"):
        render_demo.demo(str(tmp_path), Engine())


def test_a_rendered_pool_is_files_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "_run", run_in_a_loop)
    factors = {"world_name": ["Meadow"], "character_name": ["Cat", "Elephant"]}
    pool, out = tmp_path / "pool", str(tmp_path / "run")
    paths = render_demo.rendered_pool(str(pool), out, Engine(), factors, 48)
    assert paths == ["Meadow/000000000.png", "Meadow/000000001.png"]
    assert [Image.open(pool / path).size for path in paths] == [(48, 48)] * 2
