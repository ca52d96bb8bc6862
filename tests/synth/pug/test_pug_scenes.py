"""Scenes by hand-computed geometry, captions by hand-written strings, commands by an independent grammar."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from granary.synth.pug.plan.factors import Value
from granary.synth.pug.plan.scenes import SceneOptions, direction, rotation_matrix, scene_of, turned
from granary.synth.pug.plan.spar import (
    animals_of,
    candidates,
    caption,
    hard_negative,
    pair_caption,
    row_captions,
    scene_caption,
    single_caption,
    tasks_of,
)
from granary.synth.pug.recipe import RendererOptions
from granary.synth.pug.renderer.changes import changes_for
from granary.synth.pug.renderer.frames import (
    Blank,
    Frame,
    NotDecodable,
    NotFinite,
    NotVisible,
    UnknownColour,
    boxes,
    check_frame,
    depth_of,
    indexed_mask,
    nearness,
    npz,
    picture_of,
    png,
)
from granary.synth.pug.renderer.probes import colour_of, mask_colours, near, numbers, probes_of

OPTIONS = SceneOptions(world="Meadow", character="Cat", distance=200, height=50, pitch=0)
PAIR: dict[str, Value] = {
    **{"world_name": "Desert", "character_name": "Zebra", "character2_name": "Camel"},
    **{"character1_pos": "left", "character2_pos": "right"},
    **{"character_texture": "Blue", "character2_texture": "Red"},
}


def camera_sees(scene: Any, point: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a point in the camera's axes: forward, right, up."""
    axes = rotation_matrix(scene.rotation)
    return tuple(axes @ np.subtract(point, scene.location))


def test_camera_looks_at_the_target_from_every_side() -> None:
    for yaw in (0, 45, 225, 315):
        for pitch in (-10, 0, 30):
            scene = scene_of({"camera_yaw": yaw, "camera_pitch": pitch}, OPTIONS, (64, 64))
            assert camera_sees(scene, (0, 0, 50)) == pytest.approx((200, 0, 0), abs=1e-9)
            assert camera_sees(scene, (0, 0, 150))[2] > 0  # the sky is up
    front = scene_of({"camera_yaw": 0}, OPTIONS, (64, 64))
    assert front.location == pytest.approx((200, 0, 50))  # before the face of a character that looks along X


def test_left_is_left_in_the_picture_whatever_the_camera() -> None:
    for yaw in (0, 45, 180, 270):
        scene = scene_of({**PAIR, "camera_yaw": yaw}, OPTIONS, (64, 64))
        left, right = (camera_sees(scene, actor.location)[1] for actor in scene.actors)
        assert left == pytest.approx(-80)
        assert right == pytest.approx(80)
    stacked = scene_of({**PAIR, "character1_pos": "bottom", "character2_pos": "top"}, OPTIONS, (64, 64))
    assert stacked.actors[0].location[2] < stacked.actors[1].location[2]


def test_rows_say_all_of_a_scene() -> None:
    row: dict[str, Value] = {
        **{"character_scale": 1.5, "character_rotation_yaw": 90, "character_texture": "Sky", "character_x": 30},
        **{"light_intensity": 2, "light_color": "#ff8000", "camera_fov": 60, "world_name": "Old"},
    }
    scene = scene_of(row, OPTIONS, (80, 60), {"Old": "New"})
    actor = scene.actors[0]
    assert (actor.asset, actor.texture, actor.scale, actor.rotation) == ("Cat", "Sky", 1.5, (0, 90, 0))
    assert actor.location == (30, 0, 0)
    assert (scene.world, scene.fov, scene.width, scene.height) == ("New", 60, 80, 60)
    assert scene.light is not None
    assert (scene.light.intensity, scene.light.color) == (2, "#ff8000")
    assert scene_of({}, OPTIONS, (8, 8)).light is None
    assert scene_of({"character_name": "blank"}, OPTIONS, (8, 8)).actors == ()
    defaults = scene_of({"camera_yaw": "Default", "character_scale": "Default"}, OPTIONS, (8, 8))
    assert defaults == scene_of({}, OPTIONS, (8, 8))


def test_characters_turn_about_their_middle() -> None:
    options = SceneOptions(world="Meadow", character="Cat", pivot=40)
    for angles in ((0, 0, 180), (90, 0, 0), (30, 70, -50), (0, 200, 0)):
        row: dict[str, Value] = {
            **dict(zip([f"character_rotation_{name}" for name in ("pitch", "yaw", "roll")], angles, strict=True)),
            **{"character_scale": 2.0, "character_x": 5.0},
        }
        actor = scene_of(row, options, (8, 8)).actors[0]
        middle = np.add(actor.location, np.array([0, 0, 80]) @ rotation_matrix(actor.rotation))
        assert middle == pytest.approx((5, 0, 80))


def test_rotation_matrix_is_that_of_an_independent_library() -> None:
    """Unreal: left-handed; yaw about Z, then pitch and roll, both the other way round than right-handed."""
    for angles in np.random.default_rng(0).uniform(-180, 180, (50, 3)):
        pitch, yaw, roll = angles
        expected = Rotation.from_euler("ZYX", [yaw, -pitch, -roll], degrees=True).as_matrix().T
        assert rotation_matrix(angles) == pytest.approx(expected, abs=1e-12)
    assert rotation_matrix((0, 90, 0))[0] == pytest.approx(direction(90, 0), abs=1e-12)
    assert [turned(angle) for angle in (0, 180, 190, -190, 540)] == [0, -180, -170, 170, -180]


def test_poses_are_compared_as_rotations() -> None:
    judge = near("rotation", (10.0, 20.0, 30.0))
    assert judge("10.000 20.000 30.000") == ""
    assert judge("10.000 380.000 30.000") == ""
    assert judge("30.000 20.000 10.000") != ""
    assert judge("10.000 20.000") != ""
    assert near("rotation", (90.0, 30.0, 0.0))("90.000 0.000 -30.000") == ""  # the same at the pole
    assert near("location", (1.0, 2.0, 3.0))("1.000 2.000 3.100") != ""
    assert near("location", (1.0, 2.0, 3.0))("nan 2.000 3.000") != ""


def test_numbers_are_what_the_grammar_takes() -> None:
    """[float] of UnrealCV: optional sign, digits, optional dot, digits; never an exponent."""
    grammar = re.compile(r"[-+]?\d*[.]?\d+")
    draw = random.Random(0)
    for _ in range(100_000):
        text = numbers(draw.uniform(-1, 1) * 10 ** draw.randint(-9, 6))
        assert grammar.fullmatch(text), text
    assert numbers(1e-5, -0.0, 5) == "0.000010 0.000000 5.000000"
    with pytest.raises(ValueError, match="not numbers"):
        numbers(float("nan"))


def test_every_command_matches_one_template() -> None:
    number, word = r"[-+]?\d*[.]?\d+", r"\S+"
    vector = rf"{number} {number} {number}"
    templates = [
        *(rf"vset /object/{word}/{key} {vector}" for key in ("location", "rotation", "scale")),
        *(rf"vset /object/{word}/color \d+ \d+ \d+", rf"vbp {word} SetTexture {word} {word}"),
        *(rf"vbp {word} SetSun {vector} {vector}", rf"vbp {word} SetSky {number}"),
        *(r"vset /camera/0/size \d+ \d+", rf"vset /camera/0/fov {number}"),
        *(rf"vset /camera/0/{key} {vector}" for key in ("location", "rotation")),
        *("vget /objects", "vget /level/name", r"vget /camera/0/(location|rotation|fov)"),
        rf"vget /object/{word}/(location|rotation|scale|color)",
    ]
    scene = scene_of({**PAIR, "scene_light": "Evening", "camera_yaw": 33.3}, OPTIONS, (64, 48))
    colours = mask_colours(scene.actors, "salt", set())
    changes = changes_for(scene, colours, RendererOptions().director)
    commands = changes + [command for command, _ in probes_of(scene, colours)]
    assert len(commands) == 2 * 5 + 4 + 2 + 2 + 2 * 4 + 3
    for command in commands:
        assert sum(re.fullmatch(template, command) is not None for template in templates) == 1, command


def test_mask_colours_are_new_for_every_salt_and_nobody_elses() -> None:
    scene = scene_of(PAIR, OPTIONS, (8, 8))
    seen = [tuple(mask_colours(scene.actors, f"row/{i}", set()).values()) for i in range(300)]
    assert len({colour for pair in seen for colour in pair}) > 590
    assert all(channel >= 16 for pair in seen for colour in pair for channel in colour)
    first = mask_colours(scene.actors, "row/0", set())[0]
    again = mask_colours(scene.actors, "row/0", {first})
    assert again[0] != first
    assert colour_of("(R=127,G=255,B=63,A=255)") == (127, 255, 63)
    assert colour_of("error Cannot find object") is None


def test_masks_boxes_and_what_is_refused() -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[10:] = (1, 1, 1)
    picture[4:12, 3:7] = (200, 20, 20)
    picture[5:9, 20:29] = (20, 200, 20)
    actors = {0: (200, 20, 20), 1: (20, 200, 20)}
    others = {(0, 0, 0), (1, 1, 1)}
    mask = indexed_mask(picture, actors, others)
    assert boxes(mask) == {0: ((3, 4, 7, 12), 32), 1: ((20, 5, 29, 9), 36)}
    with pytest.raises(NotVisible):
        indexed_mask(picture, {**actors, 2: (9, 9, 9)}, others)
    picture[0, 0] = (100, 10, 10)  # as anti-aliasing blends it
    with pytest.raises(UnknownColour, match="#640a0a"):
        indexed_mask(picture, actors, others)


def test_frames_that_cannot_be_right_are_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    mask = np.ones((8, 9), np.uint8)
    check_frame(Frame(noise, mask, np.ones((8, 9), np.float32)), 2.0)
    with pytest.raises(Blank):
        check_frame(Frame(np.full((8, 9, 3), 80, np.uint8), mask), 2.0)
    with pytest.raises(NotFinite):
        check_frame(Frame(noise, mask, np.full((8, 9), np.nan, np.float32)), 2.0)
    assert (picture_of(png(noise), 9, 8) == noise).all()
    for data in (b"", b"\x89PNG", png(noise)[:-20], b"error no camera"):
        with pytest.raises(NotDecodable):
            picture_of(data, 9, 8)
    with pytest.raises(NotDecodable, match="9 x 8, not 8 x 9"):
        picture_of(png(noise), 8, 9)


@pytest.mark.parametrize("shape", [(4, 5), (1, 1)])
def test_a_depth_is_seen_from_black_to_white(shape: tuple[int, int]) -> None:
    depth = np.full(shape, 65504, np.float32)
    assert not nearness(depth).any()
    depth.flat[0] = 100
    depth.flat[-1] = 50
    picture = nearness(depth)
    if picture.size > 1:
        assert [picture.flat[0], picture.flat[1], picture.flat[-1]] == [127, 0, 255]
    assert (nearness(np.array([[-3.0, 0.0, 1.0, np.float32(2)]], np.float32)) == [255, 255, 255, 0]).all()


def test_depth_is_lossless_and_checked_before_it_is_read(tmp_path: Any) -> None:
    depth = np.random.default_rng(0).uniform(1, 65504, (8, 9)).astype(np.float32)
    np.save(tmp_path / "depth.npy", depth)
    data = (tmp_path / "depth.npy").read_bytes()
    assert (depth_of(data, 9, 8) == depth).all()
    (tmp_path / "depth.npz").write_bytes(npz(depth=depth))
    assert (np.load(tmp_path / "depth.npz")["depth"] == depth).all()
    assert npz(depth=depth) == npz(depth=depth)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    huge = data.replace(b"(8, 9)", b"(8000000, 9000000)"[:6])
    for bad in (b"", data[:-4], (tmp_path / "objects.npy").read_bytes(), huge, data.replace(b"<f4", b"<i4")):
        with pytest.raises(NotDecodable):
            depth_of(bad, 9, 8)


# -- captions --------------------------------------------------------------------------------------------------------

WRITTEN = [
    (scene_caption("Desert"), "This is a photo in a Desert environment"),
    (single_caption("Camel"), "This is a photo of a Camel"),
    (single_caption("Camel", world="Arena"), "This is a photo of a Camel in a Arena environment"),
    (single_caption("Camel", "left"), "This is a photo of a Camel on the left of the picture"),
    (
        single_caption("Camel", "top", "Arena"),
        "This is a photo of a Camel on the top of the picture in a Arena environment",
    ),
    (pair_caption(("Zebra", "Camel")), "This is a photo of a Camel and a Zebra"),
    (pair_caption(("Camel", "Zebra")), "This is a photo of a Camel and a Zebra"),
    (pair_caption(("Bear", "Bear"), world="Circus"), "This is a photo of a Bear and a Bear in a Circus environment"),
    (
        caption(PAIR, "pair_relation"),
        "This is a photo of a Zebra on the left and a Camel on the right of the picture",
    ),
    (
        caption(PAIR, "pair_relation", environment=True),
        "This is a photo of a Zebra on the left and a Camel on the right of the picture in a Desert environment",
    ),
    (
        caption(PAIR, "pair_attribute"),
        "This is a photo of a Zebra textured with Blue and a Camel textured with Red",
    ),
    (
        hard_negative(PAIR, "pair_relation"),
        "This is a photo of a Zebra on the right and a Camel on the left of the picture",
    ),
    (
        hard_negative(PAIR, "pair_attribute"),
        "This is a photo of a Zebra textured with Red and a Camel textured with Blue",
    ),
    (
        hard_negative({**PAIR, "character_name": "blank"}, "single_position"),
        "This is a photo of a Camel on the left of the picture",
    ),
]


@pytest.mark.parametrize(("made", "written"), WRITTEN)
def test_captions_are_the_written_ones(made: str, written: str) -> None:
    assert made == written


def test_tasks_follow_from_who_is_there() -> None:
    assert tasks_of(PAIR) == ("pair", "pair_relation", "pair_attribute")
    assert tasks_of({**PAIR, "character_texture": "Default", "character2_texture": "Default"}) == (
        "pair",
        "pair_relation",
    )
    assert tasks_of({**PAIR, "character2_name": "Zebra"}) == ("pair",)
    assert tasks_of({**PAIR, "character_name": "blank"}) == ("single", "single_position")
    assert tasks_of({**PAIR, "character_name": "blank", "character2_name": "blank"}) == ("scene",)
    texts = row_captions(PAIR)
    assert len(texts) == len(set(texts)) == 7
    assert not any("blank" in text for text in texts)
    assert row_captions({"world_name": "Snow", "character_name": "Cat"}) == [
        "This is a photo of a Cat",
        "This is a photo of a Cat in a Snow environment",
        "This is a photo in a Snow environment",
    ]


def test_the_hard_negative_of_the_hard_negative_is_the_caption() -> None:
    swapped = {**PAIR, "character1_pos": "right", "character2_pos": "left"}
    assert hard_negative(swapped, "pair_relation") == caption(PAIR, "pair_relation")
    with pytest.raises(ValueError, match="no hard negative"):
        hard_negative(PAIR, "pair")


def test_candidate_sets_have_the_published_sizes() -> None:
    animals = [f"animal{i:02d}" for i in range(32)]
    worlds = [f"world{i}" for i in range(10)]
    row = {**PAIR, "character_name": animals[3], "character2_name": animals[1], "world_name": worlds[0]}
    alone = {**row, "character2_name": "blank"}
    sizes = {
        "scene": len(candidates(animals, "scene", row, worlds)),
        "single": len(candidates(animals, "single", alone)),
        "single with blank": len(candidates(animals, "single", alone, blank=True)),
        "pair": len(candidates(animals, "pair", row)),
        "relation": len(candidates(animals, "pair_relation", row)),
        "attribute": len(candidates(animals, "pair_attribute", row)),
        "pair in worlds": len(candidates(animals, "pair", row, worlds, environment=True)),
    }
    assert sizes == {
        **{"scene": 10, "single": 32, "single with blank": 33, "pair": 528, "relation": 992, "attribute": 992},
        **{"pair in worlds": 5280},
    }
    for task in ("pair", "pair_relation", "pair_attribute"):
        for environment in (False, True):
            among = candidates(animals, task, row, worlds, environment)
            assert among.count(caption(row, task, environment)) == 1
    for text in candidates(animals, "single", alone):
        assert "blank" not in text
    assert animals_of({}) == ("blank", "blank")
