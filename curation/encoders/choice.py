"""What `encoder.retrieval: auto` stands for here: a model that sees what pictures show, where there is one."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
AUTO = "auto"
MODEL = "facebook/dinov2-small"
LAYOUT = "builtin:layout"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
PATIENCE = 4.0  # seconds in which the Hub must answer
BY_LAYOUT = (
    f"Pictures are matched by layout and colour ({LAYOUT}), not by what they show; "
    f"--encoder.retrieval hf:{MODEL} matches by what they show."
)


def choose_encoder(offline: bool = False, tell: Callable[[str], None] = lambda line: None) -> str:
    """Return MODEL at its commit, from the local cache or downloaded now; LAYOUT where it is not to be had.

    Args:
        offline: do not ask the Hub.
        tell: shows a line to the user: what is downloaded, or why it is not.
    """
    from huggingface_hub import constants

    revision = cached_revision()
    if not revision:
        try:
            revision = _download(offline or constants.HF_HUB_OFFLINE, tell)
        except _failures() as error:
            tell(f"encoder.retrieval: {MODEL} is not in the local cache, and {_reason(error)}. {BY_LAYOUT}")
            return LAYOUT
    return f"hf:{MODEL}?revision={revision}"


def cached_revision(model: str = MODEL) -> str:
    """Return the commit of a model that the local cache has whole; "" where it has none."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(model, name) for name in FILES]
    commits = {Path(path).parent.name if isinstance(path, str) else "" for path in paths}
    return commits.pop() if len(commits) == 1 else ""


def has_whole(model: str, revision: str) -> bool:
    """Say whether the local cache has a model at a commit whole, so that the Hub need not be asked for it.

    Without this, `transformers` asks for files that the model does not have each time it is loaded.
    """
    from huggingface_hub import try_to_load_from_cache

    commit = re.fullmatch(r"[0-9a-f]{40}", revision) is not None and not os.path.isdir(model)
    return commit and all(isinstance(try_to_load_from_cache(model, name, revision=revision), str) for name in FILES)


def _download(offline: bool, tell: Callable[[str], None]) -> str:
    """Download the files of the model; returns its commit. Raises what the client of the Hub does."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    if offline:
        raise OSError("the Hub may not be asked")
    info = _within(PATIENCE, lambda: HfApi().model_info(MODEL, files_metadata=True, timeout=PATIENCE))
    sizes = [file.size or 0 for file in info.siblings or () if file.rfilename in FILES]
    tell(f"encoder.retrieval: {MODEL}, {sum(sizes) / 1e6:,.0f} MB, is downloaded once from {constants.ENDPOINT}")
    for name in FILES:
        hf_hub_download(MODEL, name)
    if not (revision := cached_revision()):
        raise OSError("it did not come whole")
    return revision


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Return the answer to a question; raises TimeoutError when it takes longer, as looking up a host may."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except _failures() as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # nothing waits for it at the end, as for a pool
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise OSError(f"the Hub did not answer within {seconds:.0f} s") from None


def _failures() -> tuple[type[Exception], ...]:
    """Return what the client of the Hub raises when a file is not to be had."""
    from huggingface_hub.errors import HTTPError

    return OSError, HTTPError, RuntimeError, ValueError


def _reason(error: BaseException) -> str:
    return str(error) if type(error) is OSError else f"the Hub did not send it ({type(error).__name__})"
