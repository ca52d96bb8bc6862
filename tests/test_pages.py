"""Every command of the README and of the pages runs, in its order, on a small pool in an empty folder."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess

import dense_fixture
import numpy as np
import pytest
from PIL import Image
from places import ROOT
from sklearn.datasets import load_sample_images

from granary.pipelines.command import main

# In this order: a page may use what an earlier one made. docs/objectives.md has a test beside the methods.
NAMES = (
    "concepts",
    "curate",
    "publish",
    "render",
    "sample",
    "pack",
    "train",
    "evaluate",
    "scale",
    "scenarios",
    "measured",
    "python",
)
PAGES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of the commands of a page."""
    return re.findall(r"```(sh|python)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


COMMANDS = [line for page in PAGES for language, text in blocks(page) if language == "sh" for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("pages")
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    for role, count in (("photos", 24), ("favourites", 3), ("benchmark", 2)):
        (root / role / "day").mkdir(parents=True)
        for number in range(count):
            left, top = int(rng.integers(0, 500)), int(rng.integers(0, 300))
            photos[number % 2].crop((left, top, left + 100, top + 100)).save(root / role / "day" / f"{number}.png")
    photos[0].resize((64, 43)).save(root / "photos" / "cat.jpg")
    described = {"1-data.json": dense_fixture.annotation()}
    dense_fixture.write(root / "dci", described, {"barn.jpg": dense_fixture.picture()})
    return root


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_commands_run(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(folder)
    scope: dict = {}
    for page in PAGES:
        for command in [line for language, text in blocks(page) if language == "sh" for line in text.splitlines()]:
            if command.startswith("granary"):
                assert main(shlex.split(command)[1:]) == 0, f"{page}: {command}\n{capsys.readouterr().err}"
            else:
                assert command.split()[0] in ("make", "python"), f"no test runs {command!r} of {page}"
        for text in [text for language, text in blocks(page) if language == "python"]:
            exec(text, scope)
    assert scope["dataset"].num_rows > 0


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python -m")])
def test_benchmark_modules_exist(command: str) -> None:
    module = shlex.split(command)[2]
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file() or (ROOT / module.replace(".", "/")).is_dir()
