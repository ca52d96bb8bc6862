"""A package of an extra that is not installed is one sentence with the command that installs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pools
import pytest
from places import ROOT

HIDE = """
import sys
from granary.pipelines.command import main
hidden, *words = sys.argv[1:]
sys.modules.update(dict.fromkeys(hidden.split(",")))  # an import of None raises ModuleNotFoundError
sys.exit(main(words))
"""
CALLS = {
    "sample": ("diffusers", ["sample", "--data", "{pool}", "--model", "m", "--classifier", "c", "--out", "{out}"]),
    "demo sample": ("diffusers", ["demo", "sample", "--out", "{out}"]),
    "train": (
        "lightning_fabric",
        ["train", "--config", "train/supervised_tiny.yaml", "--data", "{pool}", "--out", "{out}"],
    ),
    "demo train": ("lightning_fabric", ["demo", "train", "--out", "{out}"]),
}


def call(hidden: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that cannot import some packages."""
    return subprocess.run(
        [sys.executable, "-c", HIDE, hidden, *words], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extras") / "pool"
    return pools.write(folder, {f"{name}/{number}.png": pools.picture(number) for name in "ab" for number in range(2)})


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_package_is_said_before_any_work(name: str, pool: Path, tmp_path: Path) -> None:
    package, words = CALLS[name]
    done = call(package, *(word.format(pool=pool, out=tmp_path / "out") for word in words))
    extra = name.split()[-1]
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"granary: {package} is not installed; run: pip install 'granary-data[{extra}]'\n"


def test_who_only_curates_needs_no_extra(pool: Path, tmp_path: Path) -> None:
    hidden = "accelerate,diffusers,embreex,kornia,lightning_fabric,matplotlib,peft,tensorboard,trimesh"
    done = call(hidden, "curate", "--pool", str(pool), "--out", str(tmp_path / "run"), "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert call(hidden, "explain", str(tmp_path / "run"), "pool/a/0.png").returncode == 0


def test_no_page_or_message_installs_a_stranger() -> None:
    """The name granary belongs to another program on the package index."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    texts = [ROOT / file for file in files if file.endswith((".py", ".md", ".toml", ".yaml", ".j2", "Dockerfile"))]
    wrong = r"pip3? install (-\S+ )*['\"]?granary(?!-data)\b|\bgranary\[\w+\]"
    texts = [path for path in texts if path.is_file() and path != Path(__file__)]
    assert [str(path) for path in texts if re.search(wrong, path.read_text())] == []
