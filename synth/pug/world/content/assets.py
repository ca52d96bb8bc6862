"""The assets that a scene can show, made on first use."""

from __future__ import annotations

import functools
from collections.abc import Callable

from granary.synth.pug.world.content.animals import FOUR_LEGGED
from granary.synth.pug.world.content.creatures import BIRDS_AND_OTHERS
from granary.synth.pug.world.content.things import THINGS
from granary.synth.pug.world.shapes.mesh import Mesh

ANIMALS: dict[str, Callable[[], Mesh]] = dict(sorted({**FOUR_LEGGED, **BIRDS_AND_OTHERS}.items()))
ASSETS: dict[str, Callable[[], Mesh]] = {**ANIMALS, **THINGS}


@functools.cache
def load_asset(name: str) -> Mesh:
    """Make an asset; raises KeyError for a name that is not one of `ASSETS`."""
    return ASSETS[name]()
