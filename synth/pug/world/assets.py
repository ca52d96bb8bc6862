"""The assets that a scene can show, made on first use."""

from __future__ import annotations

import functools
from collections.abc import Callable

from synth.pug.world.animals import FOUR_LEGGED
from synth.pug.world.creatures import BIRDS_AND_OTHERS
from synth.pug.world.mesh import Mesh
from synth.pug.world.things import THINGS

ANIMALS: dict[str, Callable[[], Mesh]] = dict(sorted({**FOUR_LEGGED, **BIRDS_AND_OTHERS}.items()))
ASSETS: dict[str, Callable[[], Mesh]] = {**ANIMALS, **THINGS}


@functools.cache
def load_asset(name: str) -> Mesh:
    """Make an asset; raises KeyError for a name that is not one of `ASSETS`."""
    return ASSETS[name]()
