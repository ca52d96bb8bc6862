"""What is read back with every capture: poses and colours as UnrealCV writes them, and how replies are judged."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from granary.synth.pug.plan.scenes import Actor, SceneSpec, rotation_matrix
from granary.synth.pug.renderer.frames import Colour

OURS = "granary_"  # what the names of our characters begin with
DARKEST = 16  # channel values below it collapse to 0 on some servers
TOLERANCE = {"location": 0.05, "rotation": 2e-3, "scale": 2e-3, "fov": 0.05}
COLOUR = re.compile(r"R=(\d+),\s*G=(\d+),\s*B=(\d+)")
Judge = Callable[[str], str]  # of a reply: what is wrong with it, "" for nothing
Probe = tuple[str, Judge]  # a command and the judge of its reply


def probes_of(scene: SceneSpec, colours: Mapping[int, Colour]) -> list[Probe]:
    """Return what is read back with every capture of a scene, and how each reply is judged.

    Args:
        scene: what was set.
        colours: of the mask, by slot of the character.
    """
    names = sorted(actor.name for actor in scene.actors)
    shown = lambda text: sorted(word for word in text.split() if word.startswith(OURS))  # noqa: E731
    probes: list[Probe] = [("vget /objects", lambda text: "" if shown(text) == names else f"objects {shown(text)}")]
    if scene.world:
        probes.append(("vget /level/name", lambda text: "" if text == scene.world else f"the world {text}"))
    for actor in scene.actors:
        path = f"vget /object/{actor.name}"
        scale = (actor.scale,) * 3
        probes += [
            (f"{path}/location", near("location", actor.location)),
            (f"{path}/rotation", near("rotation", actor.rotation)),
            (f"{path}/scale", near("scale", scale)),
            (f"{path}/color", same_colour(colours[actor.slot])),
        ]
    probes += [
        ("vget /camera/0/location", near("location", scene.location)),
        ("vget /camera/0/rotation", near("rotation", scene.rotation)),
        ("vget /camera/0/fov", near("fov", (scene.fov,))),
    ]
    return probes


def mask_colours(actors: Sequence[Actor], salt: str, taken: set[Colour]) -> dict[int, Colour]:
    """Return a colour for each character that no other object has, from a hash of the salt."""
    colours: dict[int, Colour] = {}
    for actor in actors:
        for number in itertools.count():
            data = hashlib.blake2b(f"{salt}/{actor.slot}/{number}".encode(), digest_size=3).digest()
            colour = (data[0] | DARKEST, data[1] | DARKEST, data[2] | DARKEST)
            if colour not in taken and colour not in colours.values():
                colours[actor.slot] = colour
                break
    return colours


def numbers(*values: float) -> str:
    """Return numbers as UnrealCV's grammar has them: fixed point, never an exponent."""
    if not np.isfinite(values).all():
        raise ValueError(f"{values} are not numbers")
    return " ".join(f"{value + 0.0:.6f}" for value in values)


def near(what: str, expected: Sequence[float]) -> Judge:
    """Return a judge of numbers read back; rotations are compared as matrices, since angles are not unique.

    Args:
        what: a key of `TOLERANCE`.
        expected: what was set.
    """

    def judge(text: str) -> str:
        try:
            values = [float(word) for word in text.split()]
        except ValueError:
            return f"{text[:80]!r}"
        if len(values) != len(expected):
            return f"{text[:80]!r}"
        pair = (rotation_matrix(values), rotation_matrix(expected)) if what == "rotation" else (values, expected)
        error = float(np.abs(np.subtract(*pair)).max())
        return "" if error <= TOLERANCE[what] else f"{text} instead of {numbers(*expected)}"

    return judge


def same_colour(expected: Colour) -> Judge:
    """Return a judge of a mask colour read back."""
    return lambda text: "" if colour_of(text) == expected else f"{text[:80]} instead of {expected}"


def colour_of(text: str) -> Colour | None:
    """Read `(R=127,G=255,B=63,A=255)`; None when it is none."""
    match = COLOUR.search(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None
