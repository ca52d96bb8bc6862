"""The director: what UnrealCV has no command for. A real Unreal project can offer the same functions as a blueprint."""

from __future__ import annotations

from collections.abc import Callable

from granary.synth.pug.world.commands.registry import INVALID
from granary.synth.pug.world.content.assets import ASSETS, load_asset
from granary.synth.pug.world.content.imports import MeshError, import_mesh
from granary.synth.pug.world.content.worlds import LIGHTS, WORLDS, Sun
from granary.synth.pug.world.session import CommandError, Session
from granary.synth.pug.world.shapes.mesh import Mesh
from granary.synth.pug.world.shapes.textures import OBJECT_TEXTURES

DEFAULT = "Default"  # the texture that is an asset's own
Answer = dict[str, object]  # becomes JSON


def call(session: Session, function: str, arguments: list[str]) -> Answer:
    """Call a function of the director; returns what it answers; raises CommandError."""
    if function not in FUNCTIONS:
        raise CommandError(f"The director has no function {function}; it has {', '.join(FUNCTIONS)}")
    return FUNCTIONS[function](session, arguments)


def find_mesh(session: Session, kind: str) -> Mesh:
    """Return an asset, or a mesh that a client added; raises CommandError."""
    if kind in session.meshes:
        return session.meshes[kind]
    if kind not in ASSETS:
        raise CommandError(f"Cannot find class {kind}")
    return load_asset(kind)


def _assets(session: Session, arguments: list[str]) -> Answer:
    """Assets: the names of worlds, objects, textures and lights."""
    lights = {
        name: {"yaw": sun.yaw, "pitch": sun.pitch, "intensity": sun.intensity, "color": list(sun.colour)}
        for name, sun in LIGHTS.items()
    }
    return {
        "worlds": list(WORLDS),
        "objects": [*ASSETS, *session.meshes],
        "textures": [DEFAULT, *OBJECT_TEXTURES],
        "lights": lights,
    }


def _set_texture(session: Session, arguments: list[str]) -> Answer:
    """SetTexture OBJECT TEXTURE."""
    name, texture = _exactly(2, arguments, "SetTexture OBJECT TEXTURE")
    thing = session.thing(name)
    if texture != DEFAULT and texture not in OBJECT_TEXTURES:
        raise CommandError(f"Cannot find texture {texture}")
    if thing.texture != texture:
        thing.texture = texture
        session.scene.changed()
    return {"object": name, "texture": texture}


def _set_sun(session: Session, arguments: list[str]) -> Answer:
    """SetSun YAW PITCH INTENSITY R G B: where light goes (pitch -90 is straight down), colour 0 to 1."""
    yaw, pitch, intensity, *colour = _numbers(6, arguments, "SetSun YAW PITCH INTENSITY R G B")
    if not (0 <= intensity <= 1000 and all(0 <= value <= 1 for value in colour)):
        raise CommandError(INVALID)
    r, g, b = colour
    session.scene.sun = Sun(yaw, pitch, intensity, (r, g, b), session.scene.world.sun.softness)
    session.scene.changed()
    return {"yaw": yaw, "pitch": pitch, "intensity": intensity, "color": colour}


def _set_sky(session: Session, arguments: list[str]) -> Answer:
    """SetSky INTENSITY: factor on the light of the sky."""
    (intensity,) = _numbers(1, arguments, "SetSky INTENSITY")
    if not 0 <= intensity <= 1000:
        raise CommandError(INVALID)
    session.scene.sky = intensity
    session.scene.changed()
    return {"intensity": intensity}


def _add_mesh(session: Session, arguments: list[str]) -> Answer:
    """AddMesh NAME PATH: offer the mesh in a file (glb, gltf, obj, ply, stl, off) as a class that can be spawned."""
    if len(arguments) < 2:
        raise CommandError(f"{INVALID}: AddMesh NAME PATH")
    name, path = arguments[0], " ".join(arguments[1:])
    if name in ASSETS:
        raise CommandError(f"AddMesh {name}: the world has an asset of that name")
    try:
        mesh = import_mesh(path)
    except MeshError as error:
        raise CommandError(f"AddMesh {name}: {error}") from None
    session.meshes[name] = mesh
    return {"name": name, "vertices": len(mesh.vertices), "triangles": len(mesh.triangles)}


FUNCTIONS: dict[str, Callable[[Session, list[str]], Answer]] = {
    "Assets": _assets,
    "SetTexture": _set_texture,
    "SetSun": _set_sun,
    "SetSky": _set_sky,
    "AddMesh": _add_mesh,
}


def _exactly(count: int, arguments: list[str], usage: str) -> list[str]:
    if len(arguments) != count:
        raise CommandError(f"{INVALID}: {usage}")
    return arguments


def _numbers(count: int, arguments: list[str], usage: str) -> list[float]:
    try:
        values = [float(value) for value in _exactly(count, arguments, usage)]
    except ValueError:
        raise CommandError(f"{INVALID}: {usage}") from None
    if not all(abs(value) < 1e6 for value in values):
        raise CommandError(f"{INVALID}: {usage}")
    return values
