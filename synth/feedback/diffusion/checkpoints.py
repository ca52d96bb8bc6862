"""What model folders hold: safetensors are read, pickles are refused."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from granary.curation.errors import UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LOADING = threading.Lock()  # diffusers and transformers build models on a device they set for the whole process
READ = (".safetensors", ".json", ".txt", ".model")


def model_files(folder: Path) -> list[str]:
    """Return all weights, settings and vocabularies in a folder, in order."""
    return [str(path) for path in sorted(folder.rglob("*")) if path.suffix in READ]


def refuse_pickles(what: str, folder: Path, name: str) -> None:
    """Check that the weights of a folder, where it holds any, are safetensors.

    Args:
        what: the key of the recipe, for the message.
        folder: of a model.
        name: of the folder, for the message.

    Raises:
        UserError: there are pickled weights and no safetensors.
    """
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [file for file in files if file.endswith(PICKLES)]
    if pickled and not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            f"{what}: '{name}' holds pickled weights ({pickled[0]}), which can run code and are not read; load it "
            "once where you trust it and write it again with save_pretrained(FOLDER, safe_serialization=True)"
        )


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Load models without the bars of transformers and diffusers."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
