"""granary: curate, render, sample and caption image datasets, and train on them.

    import granary

    run = granary.curate(pool="photos", seeds="favourites", references="benchmark", out="runs/mine")
    run.dataset()                    # a `datasets.Dataset`
    run.ledger()                     # what became of every file of the pool, and why
    run.explain("photos/cat.jpg")    # the story of one image

A name is imported when it is first used. A user's mistake raises `UserError`, whose message is one sentence.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from granary.curation.dedup.join import threshold_join
    from granary.curation.errors import UserError
    from granary.functions import curate, evaluate, pack, publish, render, sample, train
    from granary.opened import Run, Training, open_run, open_training
    from granary.training.models.registry import load_model
    from granary.training.models.training import load_training

__all__ = [
    "Run",
    "Training",
    "UserError",
    "curate",
    "evaluate",
    "load_model",
    "load_training",
    "open_run",
    "open_training",
    "pack",
    "publish",
    "render",
    "sample",
    "threshold_join",
    "train",
]

_MODULES = {
    "UserError": "granary.curation.errors",
    "load_model": "granary.training.models.registry",
    "load_training": "granary.training.models.training",
    "threshold_join": "granary.curation.dedup.join",
    **dict.fromkeys(("Run", "Training", "open_run", "open_training"), "granary.opened"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("granary-data")
    if name not in __all__:
        raise AttributeError(f"module 'granary' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "granary.functions")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
