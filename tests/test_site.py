"""The documentation site is built without a warning: every link and every reference leads somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from places import ROOT

from granary.pipelines.command import COMMANDS


def test_the_site_is_built_and_asks_nothing_of_other_hosts(tmp_path: Path) -> None:
    for path in (*ROOT.glob("*.md"), ROOT / "docs", ROOT / "synth" / "pug" / "world" / "contact-sheet.jpg"):
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, there)
    command = [sys.executable, "-m", "sphinx", "-qW", "--keep-going", str(tmp_path / "docs"), str(tmp_path / "site")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = [page.read_text() for page in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > 20
    assert [
        link
        for page in pages
        for link in re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?://[^\"]*)", page)
    ] == []
    assert all((tmp_path / "site" / "commands" / f"{name}.html").exists() for name in COMMANDS)
