"""What describes a model of `transformers` beside its weights, as texts: checkpoints keep it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Saved(Protocol):
    """A configuration, tokenizer, processor or model of `transformers`."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write its files into a folder."""


def files_of(*parts: Saved) -> dict[str, str]:
    """Return the files that parts write, all of them texts, by name."""
    with tempfile.TemporaryDirectory(prefix="granary-") as folder:
        for part in parts:
            part.save_pretrained(folder)
        return {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}


@contextmanager
def folder_of(files: Mapping[str, str]) -> Iterator[str]:
    """Give a local folder that has files and is gone afterwards; of names the last part alone is used."""
    with tempfile.TemporaryDirectory(prefix="granary-") as folder:
        for name, text in files.items():
            Path(folder, os.path.basename(name)).write_text(text)
        yield folder
