"""Commands about cameras: place them, set their pictures' size, take pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from granary.synth.pug.world.commands.registry import INVALID, commands, numbers, triple
from granary.synth.pug.world.picture.images import encode, encode_npy, opaque
from granary.synth.pug.world.scene import Scene
from granary.synth.pug.world.session import CommandError, Session
from granary.synth.pug.world.shapes.geometry import Camera, rotation_matrix

MOST_CAMERAS = 64
LARGEST_SIDE = 2048  # pixels; such a picture takes some 2 GB while it is drawn
Draw = Callable[[Scene, Camera], np.ndarray]  # (h, w, 3) uint8


def _cameras(session: Session) -> str:
    """List the cameras"""
    return " ".join(f"Camera_{number}" for number in range(len(session.cameras)))


def _spawn_camera(session: Session) -> str:
    """Add a camera, as the first one is now; returns its name"""
    if len(session.cameras) >= MOST_CAMERAS:
        raise CommandError(f"There are {MOST_CAMERAS} cameras, more is not possible")
    session.cameras.append(session.cameras[0])
    return f"Camera_{len(session.cameras) - 1}"


def _camera_location(session: Session, number: str) -> str:
    """Get the location of a camera, cm"""
    return triple(session.camera(number).location)


def _camera_rotation(session: Session, number: str) -> str:
    """Get pitch, yaw and roll of a camera, degrees"""
    return triple(session.camera(number).rotation)


def _set_camera_location(session: Session, number: str, *values: str) -> None:
    """Move a camera, cm"""
    _aim(session, number, dataclasses.replace(session.camera(number), location=numbers(values, 1e6)))


def _set_camera_rotation(session: Session, number: str, *values: str) -> None:
    """Turn a camera: pitch, yaw, roll in degrees"""
    _aim(session, number, dataclasses.replace(session.camera(number), rotation=numbers(values, 1e6)))


def _pose(session: Session, number: str) -> str:
    """Get location, pitch, yaw and roll of a camera, cm and degrees"""
    return f"{_camera_location(session, number)} {_camera_rotation(session, number)}"


def _set_pose(session: Session, number: str, *values: str) -> None:
    """Place a camera: location, pitch, yaw, roll in cm and degrees"""
    _set_camera_location(session, number, *values[:3])
    _set_camera_rotation(session, number, *values[3:])


def _actor_location(session: Session) -> str:
    """Get the location of the player, who has camera 0, cm"""
    return triple(session.cameras[0].location)


def _set_eyes(session: Session, distance: str) -> None:
    """Put camera 1 to the right of camera 0, and keep it there: cm between two eyes"""
    (session.eyes, _, _) = numbers((distance, "0", "0"), 1e4)
    if len(session.cameras) == 1:
        _spawn_camera(session)
    _aim(session, "0", session.cameras[0])


def _fov(session: Session, number: str) -> str:
    """Get the horizontal field of view, degrees"""
    return f"{session.camera(number).fov:f}"


def _set_fov(session: Session, number: str, value: str) -> None:
    """Set the horizontal field of view, degrees"""
    if not 1 <= float(value) <= 170:
        raise CommandError(INVALID)
    _aim(session, number, dataclasses.replace(session.camera(number), fov=float(value)))


def _size(session: Session, number: str) -> str:
    """Get width and height of the picture, pixels"""
    camera = session.camera(number)
    return f"{camera.width} {camera.height}"


def set_size(session: Session, number: str, width: str, height: str) -> None:
    """Set width and height of the picture, pixels"""
    if not all(1 <= int(side) <= LARGEST_SIDE for side in (width, height)):
        raise CommandError(INVALID)
    _aim(session, number, dataclasses.replace(session.camera(number), width=int(width), height=int(height)))


def _aim(session: Session, number: str, camera: Camera) -> None:
    session.cameras[int(number)] = camera
    if int(number) == 0 and session.eyes is not None:
        right = rotation_matrix(*camera.rotation)[1] * session.eyes
        x, y, z = (float(value) for value in camera.location + right)
        session.cameras[1] = dataclasses.replace(camera, location=(x, y, z))


def _lit(session: Session, number: str, kind: str = "") -> str | bytes:
    """Get the picture: png, bmp or the name of a file to write; without one, a name is found, or it is a png"""
    return _picture(session, number, session.renderer.lit, kind or _free_name(session))


def _free_name(session: Session) -> str:
    session.saved += 1
    return "png" if session.save_to is None else f"{session.saved - 1:08d}.png"


def _mask(session: Session, number: str, kind: str) -> str | bytes:
    """Get the picture in the objects' colours: png, bmp or the name of a file to write"""
    return _picture(session, number, session.renderer.mask, kind)


def _normal(session: Session, number: str, kind: str) -> str | bytes:
    """Get the surfaces' normals as colours: png, bmp or the name of a file to write"""
    return _picture(session, number, session.renderer.normal, kind)


def _depth(session: Session, number: str, kind: str) -> str | bytes:
    """Get planar depth in cm: npy or the name of a file to write"""
    suffix = _suffix(kind, ("npy",))
    camera = session.camera(number)
    return _deliver(session, kind, suffix, encode_npy(session.renderer.depth(session.scene, camera)))


def _picture(session: Session, number: str, draw: Draw, kind: str) -> str | bytes:
    suffix = _suffix(kind, ("png", "bmp"))
    picture = draw(session.scene, session.camera(number))
    return _deliver(session, kind, suffix, encode(opaque(picture), suffix))


def _suffix(kind: str, right: tuple[str, ...]) -> str:
    suffix = kind.rpartition(".")[2]
    if suffix not in right:
        raise CommandError(f"Invalid filename type, filename {kind}")
    return suffix


def _deliver(session: Session, kind: str, suffix: str, data: bytes) -> str | bytes:
    """Send data, or write it to a file and send its name."""
    if kind == suffix:
        return data
    if session.save_to is None:
        raise CommandError("Saving on the server is off: start it with --save-to FOLDER")
    folder = Path(session.save_to).resolve()
    try:
        path = (folder / kind).resolve()
        if not path.is_relative_to(folder):
            raise CommandError(f"Saving outside {folder} is off")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except (OSError, ValueError) as error:
        raise CommandError(f"{kind!r} cannot be written: {error}") from None
    return str(path)


COMMANDS = commands(
    {
        "vget /cameras": _cameras,
        "vset /cameras/spawn": _spawn_camera,
        "vget /actor/location": _actor_location,
        "vset /action/eyes_distance [float]": _set_eyes,
        "vget /camera/[uint]/pose": _pose,
        "vset /camera/[uint]/pose [float] [float] [float] [float] [float] [float]": _set_pose,
        "vget /camera/[uint]/location": _camera_location,
        "vget /camera/[uint]/rotation": _camera_rotation,
        "vset /camera/[uint]/location [float] [float] [float]": _set_camera_location,
        "vset /camera/[uint]/moveto [float] [float] [float]": _set_camera_location,
        "vset /camera/[uint]/rotation [float] [float] [float]": _set_camera_rotation,
        "vget /camera/[uint]/fov": _fov,
        "vset /camera/[uint]/fov [float]": _set_fov,
        "vget /camera/[uint]/size": _size,
        "vset /camera/[uint]/size [uint] [uint]": set_size,
        "vget /camera/[uint]/lit": _lit,
        "vget /camera/[uint]/lit [str]": _lit,
        "vget /camera/[uint]/object_mask [str]": _mask,
        "vget /camera/[uint]/seg [str]": _mask,
        "vget /camera/[uint]/normal [str]": _normal,
        "vget /camera/[uint]/depth [str]": _depth,
    }
)
