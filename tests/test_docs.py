"""What the pages say of the tree is there."""

from __future__ import annotations

import re

import pytest
from places import ROOT

MADE = (ROOT / ".gitignore").read_text().split()  # by `make docs`
PAGES = sorted({str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))} - set(MADE))
FOLDERS = ("configs", "curation", "docs", "granary", "pipelines", "synth", "tests", "training")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_a_page_exists(page: str) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", (ROOT / page).read_text())
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_page_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page for page in PAGES if page.startswith("docs/") and f"]({page})" not in readme] == []


def test_the_pages_that_a_stranger_looks_for_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".pre-commit-config.yaml"):
        assert (ROOT / name).stat().st_size > 200
    assert (
        re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1)
        in (ROOT / "pyproject.toml").read_text()
    )  # type: ignore[union-attr]
