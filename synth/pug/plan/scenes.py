"""Scenes: what a row of factor values asks of a renderer, in its own terms (centimetres, degrees, Unreal's axes)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from granary.curation.options import Options
from granary.synth.pug.plan.factors import Value
from granary.synth.pug.plan.plans import VARIED

Vector = tuple[float, float, float]
BLANK, DEFAULT = "blank", "Default"  # no character; the value of a column that does not vary
SLOTS = ("character", "character2")
PLACES = ("character1_pos", "character2_pos")
LABELS = ("character_label", VARIED)  # columns that describe and change nothing in the picture
NAME = re.compile(r"[^\s\x00-\x1f]{1,200}")  # what an UnrealCV command can carry as one word
HEX = re.compile(r"#[0-9a-fA-F]{6}")

NUMBERS: dict[str, tuple[float, float]] = {
    **{f"{slot}_scale": (0.01, 100.0) for slot in SLOTS},
    **{f"{slot}_rotation_{angle}": (-360.0, 360.0) for slot in SLOTS for angle in ("yaw", "pitch", "roll")},
    **{f"{slot}_{axis}": (-1e5, 1e5) for slot in SLOTS for axis in "xyz"},
    "camera_yaw": (-360.0, 360.0),
    "camera_pitch": (-89.0, 89.0),
    "camera_roll": (-360.0, 360.0),
    "camera_distance": (1.0, 1e6),
    "camera_fov": (5.0, 170.0),
    "light_yaw": (-360.0, 360.0),
    "light_pitch": (-90.0, 90.0),
    "light_intensity": (0.0, 100.0),
    "sky_intensity": (0.0, 100.0),
}
NAMES = ("world_name", *(f"{slot}_{what}" for slot in SLOTS for what in ("name", "texture")), "scene_light")
LIGHTS = ("scene_light", "light_yaw", "light_pitch", "light_intensity", "light_color", "sky_intensity")


class LightOptions(Options, frozen=True):
    """The sun and the sky."""

    yaw: float = Field(225.0, ge=-360, le=360, description="degrees: where the sun shines to, seen from above")
    pitch: float = Field(-50.0, ge=-90, le=90, description="degrees: below 0 the sun shines downwards")
    intensity: float = Field(3.0, ge=0, le=100, description="brightness of the sun; 3 is a clear day")
    color: str = Field("#fff8ec", pattern=HEX.pattern, description="colour of the sun, #rrggbb")
    sky: float = Field(1.0, ge=0, le=100, description="brightness of the sky; 1 is the world's own")


class SceneOptions(Options, frozen=True):
    """What the factors leave open."""

    world: str = Field("", description="the world, where no factor sets world_name")
    character: str = Field("", description="the character, where no factor sets character_name")
    distance: float = Field(300.0, gt=0, description="cm from the camera to the point it looks at")
    height: float = Field(45.0, description="cm: height of the point that the camera looks at")
    pitch: float = Field(12.0, ge=-89, le=89, description="degrees that the camera stands above that point")
    fov: float = Field(45.0, ge=5, le=170, description="horizontal field of view, degrees")
    pivot: float = Field(50.0, description="cm above its base of the point that a character pitches and rolls about")
    places: dict[str, tuple[float, float]] = Field(
        {"left": (-80.0, 0.0), "right": (80.0, 0.0), "bottom": (0.0, 0.0), "top": (0.0, 130.0), "centre": (0.0, 0.0)},
        description="cm sideways and upwards, as the camera sees it, of the values of character1_pos, character2_pos",
    )
    lights: dict[str, LightOptions] = Field(
        {
            "Default": LightOptions(),
            "Dim": LightOptions(intensity=1.2, sky=0.6),
            "Bright": LightOptions(intensity=4.5, sky=1.3),
            "Morning": LightOptions(yaw=120, pitch=-30, intensity=2.8, color="#ffe0b4"),
            "Evening": LightOptions(yaw=-60, pitch=-20, intensity=2.8, color="#ffb070", sky=0.8),
            "Overcast": LightOptions(pitch=-70, intensity=0.7, color="#eef4ff"),
            "Moonlight": LightOptions(intensity=0.6, color="#8cacff", sky=0.3),
        },
        description="the values of scene_light",
    )


@dataclasses.dataclass(frozen=True)
class Actor:
    """A character in the scene.

    Args:
        slot: 0 or 1.
        asset: what is shown.
        texture: over it; None leaves the asset's own.
        location: cm, the point of the ground below it.
        rotation: pitch, yaw, roll in degrees.
        scale: of its size.
    """

    slot: int
    asset: str
    texture: str | None
    location: Vector
    rotation: Vector
    scale: float

    @property
    def name(self) -> str:
        """The name of the object in the renderer; it names the asset, so that a list of objects shows what is there."""
        return f"granary_{self.slot}_{self.asset}"


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """All that decides a picture.

    Args:
        world: the level.
        actors: at most one for each slot.
        location, rotation: of the camera: cm, and pitch, yaw, roll in degrees.
        fov: horizontal, degrees.
        light: None leaves the world's own.
        width, height: pixels.
    """

    world: str
    actors: tuple[Actor, ...]
    location: Vector
    rotation: Vector
    fov: float
    light: LightOptions | None
    width: int
    height: int


def problem(column: str, value: Value, options: SceneOptions) -> str:
    """Return why a column cannot have a value, "" when it can."""
    if column in LABELS:
        return ""
    if column in NAMES:
        if not isinstance(value, str) or not NAME.fullmatch(value):
            return "give a name without spaces"
        lights = sorted(options.lights)
        return f"scene.lights has {', '.join(lights)}" if column == "scene_light" and value not in lights else ""
    if column in PLACES:
        return "" if value in options.places else f"scene.places has {', '.join(sorted(options.places))}"
    if column == "light_color":
        return "" if HEX.fullmatch(str(value)) else "give a colour as #rrggbb"
    if column in NUMBERS:
        low, high = NUMBERS[column]
        return "" if value == DEFAULT or low <= _number(value) <= high else f"give a number from {low:g} to {high:g}"
    known = sorted({*NUMBERS, *NAMES, *PLACES, *LIGHTS, *LABELS} - {VARIED})
    return f"no renderer knows this factor; the factors are {', '.join(known)}"


def _number(value: Value) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def scene_of(
    row: Mapping[str, Value], options: SceneOptions, size: tuple[int, int], assets: Mapping[str, str] | None = None
) -> SceneSpec:
    """Return the scene of a row.

    Args:
        row: factor values; columns that are not there take what `options` says.
        options: what the factors leave open.
        size: width and height, pixels.
        assets: for names of the row, what is shown instead.
    """
    shown = assets or {}
    number = lambda column, default: default if row.get(column, DEFAULT) == DEFAULT else float(row[column])  # noqa: E731
    yaw, pitch = number("camera_yaw", 0.0), number("camera_pitch", options.pitch)
    away = direction(yaw, pitch)
    distance = number("camera_distance", options.distance)
    actors = [_actor(slot, row, options, shown, yaw) for slot in range(len(SLOTS))]
    world = str(row.get("world_name", options.world))
    return SceneSpec(
        world=shown.get(world, world),
        actors=tuple(actor for actor in actors if actor is not None),
        location=(distance * away[0], distance * away[1], options.height + distance * away[2]),
        rotation=(-pitch, turned(yaw + 180.0), number("camera_roll", 0.0)),
        fov=number("camera_fov", options.fov),
        light=_light(row, options, number) if any(column in row for column in LIGHTS) else None,
        width=size[0],
        height=size[1],
    )


def _actor(
    slot: int, row: Mapping[str, Value], options: SceneOptions, shown: Mapping[str, str], yaw: float
) -> Actor | None:
    prefix = SLOTS[slot]
    number = lambda name, default=0.0: (  # noqa: E731
        default if row.get(f"{prefix}_{name}", DEFAULT) == DEFAULT else float(row[f"{prefix}_{name}"])
    )
    asset = str(row.get(f"{prefix}_name", options.character if slot == 0 else BLANK)) or BLANK
    if asset == BLANK:
        return None
    sideways, up = options.places[str(row[PLACES[slot]])] if PLACES[slot] in row else (0.0, 0.0)
    angle = math.radians(yaw)  # the camera looks back along yaw, so its right is (sin yaw, -cos yaw)
    texture = row.get(f"{prefix}_texture")
    rotation = (number("rotation_pitch"), number("rotation_yaw"), number("rotation_roll"))
    scale = number("scale", 1.0)
    lifted = (np.array([0.0, 0.0, 1.0]) - rotation_matrix(rotation)[2]) * options.pivot * scale
    return Actor(
        slot=slot,
        asset=shown.get(asset, asset),
        texture=None if texture is None else shown.get(str(texture), str(texture)),
        location=(
            sideways * math.sin(angle) + number("x") + float(lifted[0]),
            -sideways * math.cos(angle) + number("y") + float(lifted[1]),
            up + number("z") + float(lifted[2]),
        ),
        rotation=rotation,
        scale=scale,
    )


def _light(row: Mapping[str, Value], options: SceneOptions, number: object) -> LightOptions:
    assert callable(number)
    preset = options.lights.get(str(row.get("scene_light", DEFAULT)), LightOptions())
    return LightOptions(
        yaw=number("light_yaw", preset.yaw),
        pitch=number("light_pitch", preset.pitch),
        intensity=number("light_intensity", preset.intensity),
        color=str(row.get("light_color", preset.color)),
        sky=number("sky_intensity", preset.sky),
    )


def direction(yaw: float, pitch: float) -> Vector:
    """Return the unit vector of a yaw and a pitch in degrees (Unreal: X forward, Y right, Z up)."""
    a, b = math.radians(yaw), math.radians(pitch)
    return (math.cos(a) * math.cos(b), math.sin(a) * math.cos(b), math.sin(b))


def turned(degrees: float) -> float:
    """Return an angle in [-180, 180)."""
    return (degrees + 180.0) % 360.0 - 180.0


def rotation_matrix(rotation: Iterable[float]) -> NDArray[np.float64]:
    """Return the (3, 3) matrix of pitch, yaw, roll in degrees; its rows are the turned axes (Unreal's order)."""
    angles = [math.radians(angle) for angle in rotation]
    sp, sy, sr = (math.sin(angle) for angle in angles)
    cp, cy, cr = (math.cos(angle) for angle in angles)
    return np.array(
        [
            [cp * cy, cp * sy, sp],
            [sr * sp * cy - cr * sy, sr * sp * sy + cr * cy, -sr * cp],
            [-(cr * sp * cy + sr * sy), cy * sr - cr * sp * sy, cr * cp],
        ]
    )


def named(rows: Iterable[Mapping[str, Value]], options: SceneOptions) -> dict[str, set[str]]:
    """Return the names of worlds, objects and textures that rows ask for."""
    names: dict[str, set[str]] = {
        "worlds": {options.world} - {""},
        "objects": {options.character} - {""},
        "textures": set(),
    }
    for row in rows:
        for kind, columns in (
            ("worlds", NAMES[:1]),
            ("objects", [f"{slot}_name" for slot in SLOTS]),
            ("textures", [f"{slot}_texture" for slot in SLOTS]),
        ):
            names[kind] |= {str(row[column]) for column in columns if column in row}
    names["objects"].discard(BLANK)
    names["textures"].discard(DEFAULT)
    return names
