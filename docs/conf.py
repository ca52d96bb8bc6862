"""The documentation site: `make docs` builds it into site/, without the network.

Pages are those of this folder, one for each command, made of what the command knows of itself, and those of the folder
above. What is made here is not kept in git.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from sphinx.application import Sphinx

from granary.pipelines.cli.manual import command_page
from granary.pipelines.command import COMMANDS, granary
from granary.pipelines.engine.protocols import PROTOCOLS
from granary.training.methods import METHODS

HERE = Path(__file__).parent
ABOVE = {"README.md": "index.md"} | {name: name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")}
SECTIONS = {"train": METHODS, "evaluate": PROTOCOLS}

project = "granary"
release = version = importlib.metadata.version("granary-data")
html_title = f"granary {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
myst_heading_anchors = 3
smartquotes = False  # --out are two hyphens


def of_this_folder(text: str) -> str:
    """Return a page of the folder above with links that are right here, and without drawings that need a program."""

    def link(found: re.Match[str]) -> str:
        shown, path = found.groups()
        if path.startswith("docs/") or path in ABOVE:
            return f"[{shown}]({ABOVE.get(path, path.removeprefix('docs/'))})"
        return f"[{shown}](../{path})" if path.endswith((".jpg", ".svg")) else shown

    return re.sub(r"\[([^]]*)\]\(((?!https?:)[^)]+)\)", link, re.sub(r"```mermaid.*?```\n", "", text, flags=re.DOTALL))


def write_pages(app: Sphinx) -> None:
    """Write the pages that are made, where they changed."""
    pages = {page: of_this_folder((HERE.parent / source).read_text()) for source, page in ABOVE.items()}
    pages["index.md"] += (HERE / "contents.txt").read_text()
    for name in COMMANDS:
        command = granary.get_command(None, name)  # type: ignore[arg-type]
        pages[f"commands/{name}.md"] = command_page(command, SECTIONS.get(name, ()))  # type: ignore[arg-type]
    (HERE / "commands").mkdir(exist_ok=True)
    for name, text in pages.items():
        path = HERE / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> None:
    """Write the pages before they are looked for."""
    app.connect("builder-inited", write_pages)
