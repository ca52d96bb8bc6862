"""Commands about objects: list, spawn, place, show, colour."""

from __future__ import annotations

from granary.synth.pug.world.commands.blueprint import find_mesh
from granary.synth.pug.world.commands.registry import INVALID, commands, numbers, triple
from granary.synth.pug.world.scene import MOST_OBJECTS, Thing
from granary.synth.pug.world.session import CommandError, Session
from granary.synth.pug.world.shapes.geometry import Triple


def _objects(session: Session) -> str:
    """List the objects"""
    return " ".join(session.scene.things) or " "


def _spawn(session: Session, kind: str, name: str = "") -> str:
    """Add an object of a class at the origin; returns its name"""
    things = session.scene.things
    mesh = find_mesh(session, kind)
    if len(things) >= MOST_OBJECTS:
        raise CommandError(f"There are {MOST_OBJECTS} objects, more is not possible")
    name = name or next(free for n in range(MOST_OBJECTS + 1) if (free := f"{kind}_{n}") not in things)
    if name in things:
        raise CommandError(f"Object {name} exists")
    things[name] = Thing(kind, mesh, session.scene.free_colour())
    session.scene.changed(shape=True)
    return name


def _destroy(session: Session, name: str) -> None:
    """Remove an object"""
    session.thing(name, movable=True)
    del session.scene.things[name]
    session.scene.changed(shape=True)


def _show(session: Session, name: str) -> None:
    """Show an object"""
    _set_visible(session, name, True)


def _hide(session: Session, name: str) -> None:
    """Hide an object"""
    _set_visible(session, name, False)


def _set_visible(session: Session, name: str, visible: bool) -> None:
    thing = session.thing(name)
    if thing.visible != visible:
        thing.visible = visible
        session.scene.changed(shape=True)


def _location(session: Session, name: str) -> str:
    """Get the location of an object, cm"""
    return triple(session.thing(name).location)


def _rotation(session: Session, name: str) -> str:
    """Get pitch, yaw and roll of an object, degrees"""
    return triple(session.thing(name).rotation)


def _scale(session: Session, name: str) -> str:
    """Get the scale of an object"""
    return triple(session.thing(name).scale)


def _set_location(session: Session, name: str, *values: str) -> None:
    """Move an object, cm"""
    _place(session, name, location=numbers(values, 1e6))


def _set_rotation(session: Session, name: str, *values: str) -> None:
    """Turn an object: pitch, yaw, roll in degrees"""
    _place(session, name, rotation=numbers(values, 1e6))


def _set_scale(session: Session, name: str, *values: str) -> None:
    """Scale an object along its axes"""
    scale = numbers(values, 1e3)
    if min(abs(value) for value in scale) < 1e-3:
        raise CommandError(INVALID)
    _place(session, name, scale=scale)


def _place(session: Session, name: str, **changes: Triple) -> None:
    thing = session.thing(name, movable=True)
    for key, value in changes.items():
        setattr(thing, key, value)
    session.scene.changed(shape=True)


def _bounds(session: Session, name: str) -> str:
    """Get the least and the largest corner of the box round an object, cm"""
    low, high = session.thing(name).bounds()
    return " ".join(f"{value:.2f}" for value in (*low, *high))


def _color(session: Session, name: str) -> str:
    """Get the colour of an object in the mask"""
    r, g, b = session.thing(name).colour
    return f"(R={r},G={g},B={b},A=255)"


def _set_color(session: Session, name: str, *values: str) -> None:
    """Set the colour of an object in the mask, 0 to 255 each"""
    thing = session.thing(name)
    r, g, b = (int(value) for value in values)
    if max(r, g, b) > 255:
        raise CommandError(INVALID)
    thing.colour = (r, g, b)


def _class_name(session: Session, name: str) -> str:
    """Get the class of an object"""
    return session.thing(name).kind


def _mobility(session: Session, name: str) -> str:
    """Get whether an object can be moved"""
    return "Static" if session.thing(name).fixed else "Movable"


COMMANDS = commands(
    {
        "vget /objects": _objects,
        "vset /objects/spawn [str]": _spawn,
        "vset /objects/spawn [str] [str]": _spawn,
        "vset /object/[str]/destroy": _destroy,
        "vset /object/[str]/show": _show,
        "vset /object/[str]/hide": _hide,
        "vget /object/[str]/location": _location,
        "vget /object/[str]/rotation": _rotation,
        "vget /object/[str]/scale": _scale,
        "vset /object/[str]/location [float] [float] [float]": _set_location,
        "vset /object/[str]/rotation [float] [float] [float]": _set_rotation,
        "vset /object/[str]/scale [float] [float] [float]": _set_scale,
        "vget /object/[str]/bounds": _bounds,
        "vget /object/[str]/color": _color,
        "vset /object/[str]/color [uint] [uint] [uint]": _set_color,
        "vget /object/[str]/uclass_name": _class_name,
        "vget /object/[str]/mobility": _mobility,
    }
)
