"""Meshes, textures and worlds of the embedded world."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from PIL import Image

from granary.synth.pug.world.content.assets import ANIMALS, ASSETS, load_asset
from granary.synth.pug.world.content.imports import import_mesh
from granary.synth.pug.world.content.sky import HEIGHT, WIDTH, Panorama, Sky, irradiance, toward_sun
from granary.synth.pug.world.content.worlds import WORLDS
from granary.synth.pug.world.picture.render import WorldRenderer
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.colours import linear
from granary.synth.pug.world.shapes.geometry import Camera
from granary.synth.pug.world.shapes.noise import cells, noise, tiled_noise
from granary.synth.pug.world.shapes.sdf import Body
from granary.synth.pug.world.shapes.textures import DETAILS, OBJECT_TEXTURES, SIZE, texture


def test_a_ball_is_meshed_where_it_is():
    mesh = Body("#808080").ball((10, -5, 3), 30).mesh(2.0)
    away = mesh.vertices - (10, -5, 3)
    assert np.allclose(np.linalg.norm(away, axis=1), 30, atol=0.05)
    assert np.allclose(mesh.normals, away / 30, atol=0.02)
    solid = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)
    assert solid.is_watertight
    assert solid.euler_number == 2
    assert solid.volume == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.01)


@pytest.mark.parametrize(
    ("body", "volume"),
    [
        (lambda b: b.cone((0, 0, 0), (0, 0, 40), 10, 10), np.pi * 100 * 40 + 4 / 3 * np.pi * 1000),
        (lambda b: b.box((0, 0, 0), (10, 20, 15), 0.1), 8 * 10 * 20 * 15),
        (lambda b: b.ring((0, 0, 0), 30, 8), 2 * np.pi**2 * 30 * 64),
        (lambda b: b.tube((0, 0, 0), (30, 0, 0), 12, 0.1), np.pi * 144 * 30),
        (lambda b: b.ball((0, 0, 0), (30, 15, 10), (20, 30, 40)), 4 / 3 * np.pi * 30 * 15 * 10),
        (lambda b: b.ball((0, 0, 0), 20).ball((0, 0, 0), 10, cut=True, blend=0), 4 / 3 * np.pi * (8000 - 1000)),
        (lambda b: b.ball((0, 30, 0), 20, mirror=True, blend=0), 2 * 4 / 3 * np.pi * 8000),
    ],
)
def test_volumes_of_primitives(body, volume):
    mesh = body(Body("#808080", 0)).mesh(1.0)
    solid = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)
    assert solid.is_watertight
    assert solid.volume == pytest.approx(volume, rel=0.02)


def test_colours_are_those_of_the_parts_and_smooth_levels_keep_their_mean():
    mesh = Body("#ff0000", 2).ball((0, 0, 0), 20).ball((40, 0, 0), 20, colour="#0000ff").mesh(1.5)
    left, right = mesh.vertices[:, 0] < 5, mesh.vertices[:, 0] > 35
    assert np.allclose(mesh.colours[0][left], linear("#ff0000"), atol=0.02)
    assert np.allclose(mesh.colours[0][right], linear("#0000ff"), atol=0.02)
    means = mesh.colours.mean(axis=1)
    assert np.allclose(means, means[0], atol=0.01)
    spread = mesh.colours.std(axis=1).sum(axis=1)
    assert (np.diff(spread) < 0).all()


@pytest.mark.parametrize("name", ["Cat", "Teapot", pytest.param("rest", marks=pytest.mark.slow)])
def test_assets_stand_on_the_ground_and_are_about_a_metre_large(name):
    for each in ASSETS if name == "rest" else [name]:
        mesh = load_asset(each)
        size = np.ptp(mesh.vertices, axis=0)
        assert 80 < size.max() < 170, each
        assert -8 < mesh.vertices[:, 2].min() < 40, each
        assert mesh.triangles.max() < len(mesh.vertices)
        assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-4)
        assert ((mesh.colours >= 0) & (mesh.colours <= 1)).all()
        assert mesh.colours[0].std(axis=0).max() > 0.02, each


def test_enough_assets():
    assert len(ANIMALS) >= 12
    assert len(ASSETS) > len(ANIMALS) + 3
    assert len(WORLDS) >= 8
    assert len(OBJECT_TEXTURES) >= 7  # and "Default"


@pytest.mark.parametrize("name", [*OBJECT_TEXTURES, *DETAILS])
def test_textures_tile_and_filtering_keeps_their_mean(name):
    cloth = texture(name)
    finest = cloth.texels[: SIZE * SIZE].reshape(SIZE, SIZE, 5)
    mean = finest[..., :3].mean(axis=(0, 1), dtype=float)
    u, v = (np.random.default_rng(0).uniform(-3, 3, 500).astype(np.float32) for _ in range(2))
    far = cloth.sample(u, v, np.full(500, 4.0, np.float32))
    assert np.allclose(far[:, :3], mean, rtol=1e-3)
    near = cloth.sample(u, v, np.full(500, 1e-4, np.float32))
    assert np.allclose(near, cloth.sample(u + 2, v - 1, np.full(500, 1e-4, np.float32)), atol=2e-2)
    edge = np.abs(finest[0] - finest[-1]).mean()
    inside = np.abs(np.diff(finest, axis=0)).mean(axis=(1, 2)).max()
    assert edge <= inside * 1.5 + 1e-6
    centre = (np.array([[7.5, 100.5]], np.float32) / SIZE).T
    assert np.allclose(cloth.sample(centre[0], centre[1], np.full(1, 1e-4, np.float32))[0], finest[100, 7], atol=1e-4)


def test_noise_repeats_and_does_not_depend_on_company():
    points = np.random.default_rng(1).uniform(-20, 20, (200, 3))
    assert np.array_equal(noise(points, 3)[50:60], noise(points[50:60], 3))
    assert not np.array_equal(noise(points, 3), noise(points, 4))
    assert np.abs(noise(points, 3)).max() <= 1
    tile = tiled_noise(64, 64, 8, 8, 5)
    assert np.abs(tile[0] - tile[-1]).max() < np.abs(np.diff(tile, axis=0)).max() * 1.2
    nearest, second = cells(points, 7)
    assert (nearest <= second).all()


def test_sky_light_of_a_uniform_sky_is_uniform():
    """Over a white sky and equally white ground every surface gets the same light: one, whatever its normal."""
    white = Sky("#ffffff", "#ffffff", "#ffffff", clouds=0, glow="#000000", ground="#ffffff")
    panorama = Panorama(white, toward_sun(-45, 0))
    normals = np.random.default_rng(2).normal(size=(50, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    assert np.allclose(irradiance(panorama.harmonics, normals.astype(np.float32)), 1, atol=0.03)
    assert np.allclose(panorama.look(normals.astype(np.float32)), 1, atol=1e-5)


def test_a_panorama_is_seen_where_it_was_painted():
    panorama = Panorama(Sky("#000000", "#000000", "#000000", clouds=0, glow="#000000"), toward_sun(-45, 0))
    panorama.pixels[:] = 0
    panorama.pixels[HEIGHT // 2, WIDTH // 4] = 1.0  # azimuth 90 degrees is +Y
    elevation = np.radians(90 - 96 * (HEIGHT // 2) / (HEIGHT - 1))
    way = np.array([[0, np.cos(elevation), np.sin(elevation)], [0, -np.cos(elevation), np.sin(elevation)]], np.float32)
    assert np.allclose(panorama.look(way)[:, 0], [1, 0], atol=0.01)


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_own_meshes_are_fitted_and_keep_their_colours(tmp_path, suffix):
    box = trimesh.creation.box((2, 4, 6))
    box.visual.vertex_colors = np.tile([255, 0, 0, 255], (8, 1))
    path = tmp_path / f"box.{suffix}"
    box.export(path)
    mesh = import_mesh(str(path))
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    assert np.allclose((high - low).max(), 120, atol=1e-3)
    assert low[2] == pytest.approx(0, abs=1e-4)
    up = 2 if suffix == "ply" else 1  # the file's axis that becomes Z
    assert high[2] == pytest.approx(20 * (2, 4, 6)[up], abs=1e-3)
    assert np.allclose(mesh.colours[0], [1, 0, 0], atol=0.01)


def test_a_textured_mesh_shows_its_picture(tmp_path):
    picture = Image.new("RGB", (2, 2), "#00ff00")
    square = trimesh.Trimesh([[-1, 0, 0], [1, 0, 0], [1, 2, 0], [-1, 2, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    square.visual = trimesh.visual.TextureVisuals([[0, 0], [1, 0], [1, 1], [0, 1]], image=picture)
    square.export(tmp_path / "square.glb")
    mesh = import_mesh(str(tmp_path / "square.glb"))
    scene = Scene.load("Museum")
    scene.things["Own"] = Thing("Own", mesh, scene.free_colour())
    camera = Camera((200, 0, 60), (0, 180, 0), 60, 32, 32)
    renderer = WorldRenderer()
    own = renderer.owners(scene, camera) == list(scene.things).index("Own")
    colours = renderer.lit(scene, camera)[own].astype(float).mean(axis=0)
    assert own.sum() > 100
    assert colours[1] > 2 * max(colours[0], colours[2])


def test_mask_colours_are_distinct_and_depend_only_on_what_is_there():
    scene = Scene.load("Museum")
    mesh = load_asset("Cat")
    for number in range(60):
        scene.things[f"T{number}"] = Thing("Cat", mesh, scene.free_colour())
    colours = [thing.colour for thing in scene.things.values()]
    assert len(set(colours)) == len(colours)
    assert min(max(colour) for colour in colours) >= 16
    freed = scene.things.pop("T7").colour
    assert scene.free_colour() == freed


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WORLDS))
def test_every_world_is_lit_and_leaves_room_for_the_object(name):
    scene = Scene.load(name)
    renderer = WorldRenderer()
    for yaw in (0, 90, 180, 270):
        a = np.radians(yaw)
        camera = Camera((300 * np.cos(a), 300 * np.sin(a), 105), (-12, yaw + 180, 0), 45, 48, 48)
        picture = renderer.lit(scene, camera)
        assert 25 < picture.mean() < 235
        assert picture.std() > 8
        # nothing but ground, and plants lower than an object, within two metres of its place
        depth = renderer.depth(scene, camera)
        assert np.median(depth[24:30, 20:28]) > 250
