"""Functions of objects that clients call as those of pawns: speed, one step, switches that change nothing here."""

from __future__ import annotations

import math
from collections.abc import Callable

from granary.synth.pug.world.commands.registry import INVALID
from granary.synth.pug.world.scene import Thing
from granary.synth.pug.world.session import CommandError, Session

Answer = dict[str, object]  # becomes JSON


def call_pawn(session: Session, name: str, function: str, arguments: list[str]) -> Answer:
    """Call a function of an object; returns what it answers; raises CommandError."""
    thing = session.thing(name, movable=True)
    if function not in FUNCTIONS:
        raise CommandError(f"{name} has no function {function}; it has {', '.join(FUNCTIONS)}")
    count, run = FUNCTIONS[function]
    if len(arguments) != count:
        raise CommandError(f"{INVALID}: {function} takes {count}")
    return run(session, thing, arguments)


def _set_speed(session: Session, thing: Thing, arguments: list[str]) -> Answer:
    thing.speed = _number(arguments[0])
    return {"speed": str(thing.speed)}


def _get_speed(session: Session, thing: Thing, arguments: list[str]) -> Answer:
    return {"speed": str(thing.speed)}


def _move(session: Session, thing: Thing, arguments: list[str]) -> Answer:
    """Turn by an angle, degrees, and go on for one second at a speed, cm/s; then it stands, as all does here."""
    angle, speed = map(_number, arguments)
    pitch, yaw, roll = thing.rotation
    yaw = (yaw + angle) % 360
    x, y, z = thing.location
    way = math.radians(yaw)
    thing.rotation = (pitch, yaw, roll)
    thing.location = (x + speed * math.cos(way), y + speed * math.sin(way), z)
    session.scene.changed(shape=True)
    return {}


def _switch(session: Session, thing: Thing, arguments: list[str]) -> Answer:
    """Accepted: there is nothing here that physics or a controller would move."""
    return {}


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise CommandError(f"{INVALID}: {text} is no number") from None
    if not abs(value) < 1e6:
        raise CommandError(f"{INVALID}: {text} is too large")
    return value


FUNCTIONS: dict[str, tuple[int, Callable[[Session, Thing, list[str]], Answer]]] = {
    "get_speed": (0, _get_speed),
    "set_speed": (1, _set_speed),
    "set_move": (2, _move),
    "set_phy": (1, _switch),
    "set_acceleration": (1, _switch),
    "EnableController": (1, _switch),
}
