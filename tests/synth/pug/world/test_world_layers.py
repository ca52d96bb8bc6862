"""Pictures in layers: the same bytes whatever was drawn before, and the picture that one layer alone would show."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest

from granary.synth.pug.renderer.frames import NotDecodable, picture_of
from granary.synth.pug.world.content.assets import load_asset
from granary.synth.pug.world.content.worlds import Sun
from granary.synth.pug.world.picture.images import encode, opaque
from granary.synth.pug.world.picture.render import Recent, WorldRenderer
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.geometry import Camera

CAMERAS = [Camera((293, 0, 107), (-12, 180, 0), 45, 64, 48), Camera((0, 293, 107), (-12, 270, 0), 45, 64, 48)]


def scene_of(world: str, *kinds: str, **place) -> Scene:
    scene = Scene.load(world)
    for number, kind in enumerate(kinds):
        where = {"location": (0.0, 90.0 * number, 0.0), **place}
        scene.things[kind] = Thing(kind, load_asset(kind), scene.free_colour(), **where)
    scene.changed(shape=True)
    return scene


def scenes() -> list[Scene]:
    shown = [scene_of("Museum"), scene_of("Museum", "Duck"), scene_of("Museum", "Duck", "Cat")]
    dark, turned = scene_of("Museum", "Duck"), scene_of("Museum", "Duck", rotation=(0.0, 70.0, 0.0), texture="Checker")
    dark.sun, dark.sky = Sun(30, -30, 0.8, (0.6, 0.7, 1.0)), 0.4
    tiled = scene_of("Museum", "Duck")
    tiled.things["Ground"].texture = "Stone"
    hidden = scene_of("Museum", "Duck")
    hidden.things["Walls"].visible = False
    return [*shown, dark, turned, tiled, hidden, scene_of("Beach", "Cat")]


def everything(renderer: WorldRenderer, scene: Scene, camera: Camera) -> bytes:
    drawn = (renderer.lit, renderer.mask, renderer.depth, renderer.normal)
    return b"".join(draw(scene, camera).tobytes() for draw in drawn)


def test_a_picture_is_the_same_bytes_whatever_was_drawn_before():
    asked = [(scene, camera) for scene in scenes() for camera in CAMERAS]
    alone = [everything(WorldRenderer(), *one) for one in asked]
    assert len(set(alone)) == len(alone)
    seasoned = WorldRenderer()
    for order in (range(len(asked)), reversed(range(len(asked)))):
        for index in order:
            assert everything(seasoned, *asked[index]) == alone[index]


def test_a_small_memory_changes_no_picture():
    one, two = WorldRenderer(), WorldRenderer()
    for memory in (two._backdrops, two._films, two._fixed_views):
        memory.pixels = 1  # the last one alone
    for scene in scenes() * 2:
        assert np.array_equal(one.lit(scene, CAMERAS[0]), two.lit(scene, CAMERAS[0]))


@pytest.mark.parametrize("world", ["Museum", "Beach"])
def test_two_layers_show_what_one_does(world):
    """An object that is declared part of the world belongs to the backdrop: traced, lit and refined with it."""
    apart, whole = scene_of(world, "Duck"), scene_of(world, "Duck")
    whole.things["Duck"].fixed = True
    camera = dataclasses.replace(CAMERAS[0], width=128, height=128)
    one, two = WorldRenderer(), WorldRenderer()
    assert np.array_equal(one.owners(apart, camera), two.owners(whole, camera))
    assert np.allclose(one.depth(apart, camera), two.depth(whole, camera), rtol=1e-4)
    off = np.abs(one.lit(apart, camera).astype(int) - two.lit(whole, camera)).max(axis=2)
    assert off.mean() < 1.0  # edges are refined within a budget, which the layers share out differently
    assert (off > 24).mean() < 0.01


def test_an_object_darkens_the_ground_beside_it_and_nothing_far_away():
    bare, shown = scene_of("Museum"), scene_of("Museum", "Duck")
    renderer, camera = WorldRenderer(), dataclasses.replace(CAMERAS[0], width=96, height=96)
    before, after = (renderer.lit(scene, camera).astype(int).sum(axis=2) for scene in (bare, shown))
    ground = (renderer.owners(shown, camera) >= 0) & (renderer.owners(shown, camera) == renderer.owners(bare, camera))
    assert (before - after)[ground].max() > 60  # its shadow
    assert (after - before)[ground].max() <= 12  # it casts no light; its outline shares a pixel here and there
    assert np.array_equal(before[:8], after[:8])


def test_recent_keeps_the_last_ones_up_to_a_number_of_pixels():
    recent: Recent[object] = Recent(100)
    first = recent.get("a", 60, object)
    assert recent.get("a", 60, object) is first
    recent.get("b", 40, object)
    assert recent.get("a", 60, object) is first  # now younger than b
    recent.get("c", 40, object)
    assert list(recent.kept) == ["a", "c"]
    assert recent.get("huge", 1000, object) is recent.get("huge", 1000, object)
    assert list(recent.kept) == ["huge"]


def test_bitmaps_of_the_world_are_read_back_exactly():
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    data = encode(opaque(picture), "bmp")
    assert np.array_equal(picture_of(data, 5, 7), picture)
    negative = data[:22] + struct.pack("<i", -7) + data[26:]  # UnrealCV's own sign: rows from the top
    assert np.array_equal(picture_of(negative, 5, 7), picture)
    deep = data[:28] + b"\x18" + data[29:]  # 24 bits
    for wrong, size in ((data[:-1], (5, 7)), (data, (7, 5)), (deep, (5, 7)), (b"BM", (5, 7))):
        with pytest.raises(NotDecodable):
            picture_of(wrong, *size)
