"""Commands about objects: list, spawn, place, show, colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from granary.synth.pug.world.commands import blueprint as director
from granary.synth.pug.world.commands.registry import INVALID, CommandError, command, numbers, triple
from granary.synth.pug.world.scene import MOST_OBJECTS, Thing
from granary.synth.pug.world.shapes.geometry import Triple

if TYPE_CHECKING:
    from granary.synth.pug.world.commands.server import Session


@command("vget /objects")
def _objects(session: Session) -> str:
    """List the objects"""
    return "".join(f"{name} " for name in session.scene.things) or " "


@command("vset /objects/spawn [str]", "vset /objects/spawn [str] [str]")
def _spawn(session: Session, kind: str, name: str = "") -> str:
    """Add an object of a class at the origin; returns its name"""
    things = session.scene.things
    mesh = director.find_mesh(session, kind)
    if len(things) >= MOST_OBJECTS:
        raise CommandError(f"There are {MOST_OBJECTS} objects, more is not possible")
    name = name or next(free for n in range(MOST_OBJECTS + 1) if (free := f"{kind}_{n}") not in things)
    if name in things:
        raise CommandError(f"Object {name} exists")
    things[name] = Thing(kind, mesh, session.scene.free_colour())
    session.scene.changed(shape=True)
    return name


@command("vset /object/[str]/destroy")
def _destroy(session: Session, name: str) -> None:
    """Remove an object"""
    session.thing(name, movable=True)
    del session.scene.things[name]
    session.scene.changed(shape=True)


@command("vset /object/[str]/show")
def _show(session: Session, name: str) -> None:
    """Show an object"""
    _set_visible(session, name, True)


@command("vset /object/[str]/hide")
def _hide(session: Session, name: str) -> None:
    """Hide an object"""
    _set_visible(session, name, False)


def _set_visible(session: Session, name: str, visible: bool) -> None:
    thing = session.thing(name)
    if thing.visible != visible:
        thing.visible = visible
        session.scene.changed(shape=True)


@command("vget /object/[str]/location")
def _location(session: Session, name: str) -> str:
    """Get the location of an object, cm"""
    return triple(session.thing(name).location)


@command("vget /object/[str]/rotation")
def _rotation(session: Session, name: str) -> str:
    """Get pitch, yaw and roll of an object, degrees"""
    return triple(session.thing(name).rotation)


@command("vget /object/[str]/scale")
def _scale(session: Session, name: str) -> str:
    """Get the scale of an object"""
    return triple(session.thing(name).scale)


@command("vset /object/[str]/location [float] [float] [float]")
def _set_location(session: Session, name: str, *values: str) -> None:
    """Move an object, cm"""
    _place(session, name, location=numbers(values, 1e6))


@command("vset /object/[str]/rotation [float] [float] [float]")
def _set_rotation(session: Session, name: str, *values: str) -> None:
    """Turn an object: pitch, yaw, roll in degrees"""
    _place(session, name, rotation=numbers(values, 1e6))


@command("vset /object/[str]/scale [float] [float] [float]")
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


@command("vget /object/[str]/bounds")
def _bounds(session: Session, name: str) -> str:
    """Get the least and the largest corner of the box round an object, cm"""
    low, high = session.thing(name).bounds()
    return " ".join(f"{value:.2f}" for value in (*low, *high))


@command("vget /object/[str]/color")
def _color(session: Session, name: str) -> str:
    """Get the colour of an object in the mask"""
    r, g, b = session.thing(name).colour
    return f"(R={r},G={g},B={b},A=255)"


@command("vset /object/[str]/color [uint] [uint] [uint]")
def _set_color(session: Session, name: str, *values: str) -> None:
    """Set the colour of an object in the mask, 0 to 255 each"""
    thing = session.thing(name)
    r, g, b = (int(value) for value in values)
    if max(r, g, b) > 255:
        raise CommandError(INVALID)
    thing.colour = (r, g, b)


@command("vget /object/[str]/uclass_name")
def _class_name(session: Session, name: str) -> str:
    """Get the class of an object"""
    return session.thing(name).kind


@command("vget /object/[str]/mobility")
def _mobility(session: Session, name: str) -> str:
    """Get whether an object can be moved"""
    return "Static" if session.thing(name).fixed else "Movable"
