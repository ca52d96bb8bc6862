"""One installed name: what the wheel holds, and that a checkout, an editable install and a wheel are the same."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest
from places import ROOT

FOLDERS = ("configs", "curation", "pipelines", "synth", "training")  # what granary/ links to


def run(*words: object, cwd: pathlib.Path = ROOT, **environment: str) -> str:
    """Run a command; returns what it printed, fails with what it said."""
    call = [str(word) for word in words]
    done = subprocess.run(call, cwd=cwd, check=False, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    return next(folder.glob("granary_data-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder that has what the wheel has, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_has_one_top_level_name_and_every_file_below_it(wheel: pathlib.Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"granary"}
    for file in run("git", "ls-files").splitlines():
        if file.split("/")[0] in FOLDERS:
            assert f"granary/{file}" in names
    assert {"granary/__init__.py", "granary/__main__.py", "granary/py.typed"} <= names


def test_the_source_distribution_gives_the_same_wheel(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path)
    (source,) = tmp_path.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    (other,) = tmp_path.glob("*.whl")
    both = [zipfile.ZipFile(path) for path in (wheel, other)]
    held = [{name: file.read(name) for name in file.namelist() if ".dist-info/" not in name} for file in both]
    assert held[0] == held[1]


def test_nothing_imports_the_folders_by_their_own_names() -> None:
    for file in run("git", "ls-files", "*.py").splitlines():
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in named} & set(FOLDERS), f"{file}:{node.lineno}"


@pytest.mark.parametrize("where", ["checkout", "editable install", "wheel"])
def test_a_users_own_folders_take_nobodys_place(where: str, installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a stranger')\n")
    modules = "granary.curation.dedup.join as a, granary.training.run.loop, granary.synth.pug.recipe"
    code = f"import {modules}; print(a.__file__)"
    path = {"checkout": [str(ROOT)], "editable install": [], "wheel": [str(installed)]}[where]
    found = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), *path]))
    assert pathlib.Path(found.strip()).is_file()
    said = run(sys.executable, "-m", "granary", "--help", cwd=tmp_path, PYTHONPATH=os.pathsep.join(path))
    assert "granary COMMAND --help" in said


@pytest.mark.slow
def test_wheel_runs_the_demo_in_an_empty_environment(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", "--only-binary=:all:", wheel)
    said = run(tmp_path / "venv" / "bin" / "granary", "demo", "--out", "out", cwd=tmp_path)
    assert "Everything planted was found." in said


def requirements(*extras: str) -> list[str]:
    """Return what granary asks for: the base, and the extras named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [line for line in asked if not line.startswith("granary-data")]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_every_pin_has_a_wheel_and_they_fit_together(version: str, tmp_path: pathlib.Path) -> None:
    extras = ("render", "sample", "train", "unreal", "aws", "gcp", "dask", "dev")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--target", tmp_path)
    wheels = ("--only-binary=:all:", "--python-version", version, "-c", ROOT / "constraints.txt")
    run(*pip, *wheels, "--report", tmp_path / "report.json", *requirements(*extras))
    chosen = json.loads((tmp_path / "report.json").read_text())["install"]
    assert all(package["download_info"]["url"].endswith(".whl") for package in chosen)
    assert {"torch", "apache-beam", "gcsfs", "distributed"} <= {package["metadata"]["name"] for package in chosen}


@pytest.mark.slow
def test_who_only_curates_installs_nothing_of_rendering_sampling_and_training(tmp_path: pathlib.Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--only-binary=:all:")
    run(*pip, "-c", ROOT / "constraints.txt", "--report", tmp_path / "report.json", *requirements())
    chosen = json.loads((tmp_path / "report.json").read_text())["install"]
    names = {package["metadata"]["name"].lower() for package in chosen}
    left_out = "accelerate diffusers embreex kornia lightning-fabric matplotlib peft tensorboard trimesh"
    assert not names & set(left_out.split())
    assert len(names) < 85
