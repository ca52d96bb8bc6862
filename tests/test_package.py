"""The wheel holds everything a run needs, and works outside the checkout."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("granary-*.whl"))


def test_wheel_holds_code_recipes_and_templates(wheel: pathlib.Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for file in files:
        folder = file.split("/")[0]
        if folder in ("pipelines", "curation", "synth", "training"):
            assert file in names
        if folder == "configs":
            assert f"pipelines/{file}" in names
    assert not any(name.startswith(("tests/", "configs/")) for name in names)


@pytest.mark.slow
def test_wheel_runs_the_demo_in_an_empty_environment(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "granary", "demo", "--out", "out"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Everything planted was found." in done.stdout
