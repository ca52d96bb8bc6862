"""The commands that set a scene: poses and colours of its characters, camera, light."""

from __future__ import annotations

from collections.abc import Mapping

from granary.synth.pug.plan.scenes import SceneSpec
from granary.synth.pug.renderer.frames import Colour
from granary.synth.pug.renderer.probes import numbers


def changes_for(scene: SceneSpec, colours: Mapping[int, Colour], director: str) -> list[str]:
    """Return the commands that set everything, whatever was there before.

    Args:
        scene: whose characters are there.
        colours: of the mask, by slot of the character.
        director: the blueprint that sets textures and light.
    """
    commands = []
    for actor in scene.actors:
        path = f"vset /object/{actor.name}"
        commands += [
            f"{path}/location {numbers(*actor.location)}",
            f"{path}/rotation {numbers(*actor.rotation)}",
            f"{path}/scale {numbers(actor.scale, actor.scale, actor.scale)}",
            f"{path}/color {' '.join(map(str, colours[actor.slot]))}",
        ]
        if actor.texture is not None:
            commands.append(f"vbp {director} SetTexture {actor.name} {actor.texture}")
    commands += [
        f"vset /camera/0/size {scene.width} {scene.height}",
        f"vset /camera/0/fov {numbers(scene.fov)}",
        f"vset /camera/0/location {numbers(*scene.location)}",
        f"vset /camera/0/rotation {numbers(*scene.rotation)}",
    ]
    if scene.light is not None:
        sun = scene.light
        tone = [int(sun.color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        commands += [
            f"vbp {director} SetSun {numbers(sun.yaw, sun.pitch, sun.intensity, *tone)}",
            f"vbp {director} SetSky {numbers(sun.sky)}",
        ]
    return commands
