"""What the pages say of the tree is there."""

from __future__ import annotations

import re

import pytest
from places import ROOT

from granary.pipelines.engine.protocols import PROTOCOLS
from granary.training.evaluation.protocols.registry import load_protocol
from granary.training.methods import METHODS, load_method

MADE = (ROOT / ".gitignore").read_text().split()  # by `make docs`
PLACES = ("*.md", "docs/*.md", "docs/papers/*.md")
PAGES = sorted({str(page.relative_to(ROOT)) for place in PLACES for page in ROOT.glob(place)} - set(MADE))
FOLDERS = ("configs", "curation", "docs", "granary", "pipelines", "synth", "tests", "training")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_a_page_exists(page: str) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", (ROOT / page).read_text())
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_recipe_and_benchmark_of_a_page_exists(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    recipes = [name for name in re.findall(r"configs/[\w./-]+\.yaml", text) if "NAME" not in name]
    modules = [name.replace(".", "/") for name in re.findall(r"python -m (tests\.benchmarks\.\w+)", text)]
    named = [*recipes, *(f"{module}.py" for module in modules)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_option_of_a_method_that_a_page_names_exists() -> None:
    known = {name for method in METHODS for name in load_method(method).Options.model_fields}
    known |= {name for protocol in PROTOCOLS for name in load_protocol(protocol, PROTOCOLS).options.model_fields}
    pages = [(page, (ROOT / page).read_text()) for page in PAGES]
    named = [(page, name) for page, text in pages for name in re.findall(r"--options\.(\w+)", text)]
    assert [(page, name) for page, name in named if name not in known] == []


def test_every_page_is_named_in_the_readme_and_every_paper_in_its_list() -> None:
    readme, papers = ((ROOT / page).read_text() for page in ("README.md", "docs/papers.md"))
    listed = [page for page in PAGES if page.startswith("docs/papers/")]
    assert [page for page in listed if f"]({page.removeprefix('docs/')})" not in papers] == []
    pages = {page for page in PAGES if page.startswith("docs/")} - set(listed)
    assert [page for page in pages if f"]({page})" not in readme] == []


def test_the_pages_that_a_stranger_looks_for_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    for name in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".pre-commit-config.yaml"):
        assert (ROOT / name).stat().st_size > 200
    assert (
        re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1)
        in (ROOT / "pyproject.toml").read_text()
    )  # type: ignore[union-attr]
