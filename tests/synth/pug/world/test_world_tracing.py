"""Rays of the embedded world: two back ends against each other, a brute-force oracle and closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh

from granary.curation.errors import UserError
from granary.synth.pug.world.content.assets import load_asset
from granary.synth.pug.world.content.props import slab
from granary.synth.pug.world.picture.instances import Instances
from granary.synth.pug.world.picture.render import WorldRenderer
from granary.synth.pug.world.picture.tracing import EmbreeTracer, choose_tracer
from granary.synth.pug.world.picture.wavefront import WavefrontTracer
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.geometry import FAR, Camera, rotation_matrix
from granary.synth.pug.world.shapes.mesh import Mesh, make_mesh

pytest.importorskip("embreex")
SIDE = 64


def soup(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-10, 10, (count, 1, 3)) + rng.normal(0, 2, (count, 3, 3))
    return corners.reshape(-1, 3).astype(np.float32), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def rays(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return rng.uniform(-15, 15, (count, 3)).astype(np.float32), directions.astype(np.float32)


def brute_force(vertices, triangles, origins, directions):
    """Every ray against every triangle, by solving o + t d = a + u (b - a) + v (c - a)."""
    a, b, c = (vertices[triangles[:, k]].astype(float) for k in range(3))
    best, which = np.full(len(origins), np.inf), np.full(len(origins), -1)
    for index, (o, d) in enumerate(zip(origins.astype(float), directions.astype(float), strict=True)):
        system = np.stack([np.broadcast_to(-d, a.shape), b - a, c - a], axis=2)
        t, u, v = np.linalg.solve(system, (o - a)[..., None])[..., 0].T
        t = np.where((t > 0) & (u >= 0) & (v >= 0) & (u + v <= 1), t, np.inf)
        if np.isfinite(t.min()):
            best[index], which[index] = t.min(), t.argmin()
    return best, which


@pytest.mark.parametrize("count", [1, 2, 5, 300])
@pytest.mark.parametrize("tracer", [EmbreeTracer, WavefrontTracer])
def test_first_hits_are_those_of_brute_force(tracer, count):
    vertices, triangles = soup(count, count)
    origins, directions = rays(400, 7)
    hits = tracer(vertices, triangles).closest(origins, directions)
    distance, triangle = brute_force(vertices, triangles, origins, directions)
    assert np.array_equal(np.isinf(hits.distance), np.isinf(distance))
    met = np.isfinite(distance)
    assert np.allclose(hits.distance[met], distance[met], rtol=1e-4, atol=1e-3)
    assert np.array_equal(hits.triangle, triangle)
    a, b, c = (vertices[triangles[hits.triangle[met], k]] for k in range(3))
    u, v = hits.u[met, None], hits.v[met, None]
    points = (1 - u - v) * a + u * b + v * c
    assert np.allclose(points, origins[met] + distance[met, None] * directions[met], atol=2e-2)


@pytest.mark.parametrize("tracer", [EmbreeTracer, WavefrontTracer])
def test_occlusion_is_a_hit_within_reach(tracer):
    vertices, triangles = soup(200, 3)
    origins, directions = rays(500, 4)
    distance, _ = brute_force(vertices, triangles, origins, directions)
    for reach in (2.0, 8.0, 1e6):
        met = tracer(vertices, triangles).occluded(origins, directions, reach)
        clear = np.abs(distance - reach) > 1e-3
        assert np.array_equal(met[clear], (distance <= reach)[clear])


@pytest.fixture(scope="module")
def scene() -> Scene:
    made = Scene.load("Museum")
    made.things["A"] = Thing("Duck", load_asset("Duck"), made.free_colour(), rotation=(0, 30, 0), scale=(0.9, 1.2, 1.0))
    made.changed(shape=True)
    return made


CAMERA = Camera((260, 30, 110), (-14, 186, 3), 45, SIDE, SIDE)


def test_back_ends_agree_on_the_pictures_of_a_world(scene):
    one, two = WorldRenderer("embree"), WorldRenderer("numpy")
    a, b = one.owners(scene, CAMERA), two.owners(scene, CAMERA)
    for owner in np.unique(a):
        assert ((a == owner) & (b == owner)).sum() / ((a == owner) | (b == owner)).sum() > 0.99
    both = a == b
    assert np.allclose(one.depth(scene, CAMERA)[both], two.depth(scene, CAMERA)[both], rtol=1e-4, atol=0.02)
    normals = np.abs(one.normal(scene, CAMERA).astype(int) - two.normal(scene, CAMERA))
    assert (normals[both] <= 2).mean() > 0.99
    lit = np.abs(one.lit(scene, CAMERA).astype(int) - two.lit(scene, CAMERA))
    assert lit.mean() < 1.0


def test_a_picture_is_made_once_and_again_after_a_change(scene):
    renderer = WorldRenderer("embree")
    first = renderer.lit(scene, CAMERA)
    view = renderer.view(scene, CAMERA)
    assert renderer.lit(scene, CAMERA) is first
    scene.changed()  # as of a texture: the picture is new, what rays meet is not
    assert renderer.lit(scene, CAMERA) is not first
    assert np.array_equal(renderer.lit(scene, CAMERA), first)
    assert renderer.view(scene, CAMERA) is view
    scene.changed(shape=True)
    assert renderer.view(scene, CAMERA) is not view


def test_pictures_of_scenes_are_never_mixed_up():
    """A scene that took the memory of a dropped one, with the same counters, is another scene."""
    renderer, shown = WorldRenderer("embree"), []
    for place in ((0.0, 0.0, 0.0), (0.0, 60.0, 0.0)) * 3:
        shown.append(renderer.depth(bare(slab((-9, -9, 0), (9, 9, 90), "#808080"), location=place), CAMERA).tobytes())
    assert shown[0] != shown[1]
    assert shown == shown[:2] * 3


def bare(mesh: Mesh, **place) -> Scene:
    scene = Scene.load("Museum")
    scene.things = {"Thing": Thing("Own", mesh, (255, 0, 0), **place)}
    return scene


def ball(radius: float) -> Mesh:
    sphere = trimesh.creation.icosphere(4, radius)
    return make_mesh(sphere.vertices, sphere.faces, np.ones((len(sphere.vertices), 3)), sphere.vertices)


def test_a_ball_is_where_pinhole_geometry_says():
    radius, distance = 50.0, 400.0
    camera = Camera((-distance, 0, 0), (0, 0, 0), 40, 201, 151)
    scene = bare(ball(radius))
    renderer = WorldRenderer("embree")
    inside = renderer.owners(scene, camera) == 0
    reach = np.tan(np.arcsin(radius / distance)) / np.tan(np.radians(20)) * 201 / 2  # px; silhouette of a ball
    y, x = np.argwhere(inside).T
    assert (x.mean(), y.mean()) == pytest.approx((100, 75), abs=0.1)
    assert inside.sum() == pytest.approx(np.pi * reach**2, rel=0.01)
    depth = renderer.depth(scene, camera)
    assert depth[75, 100] == pytest.approx(distance - radius, abs=0.1)
    assert depth[~inside].min() == depth[~inside].max() == np.float32(FAR)
    assert np.abs(renderer.normal(scene, camera)[75, 100].astype(int) - (0, 128, 128)).max() <= 2


def test_unreal_axes():
    # X forward, Y right, Z up: what is at +Y shows on the right, what is at +Z above the middle.
    camera = Camera((0, 0, 0), (0, 0, 0), 90, 99, 99)
    renderer = WorldRenderer("embree")
    for place, where in (((200, 80, 0), (49, 69)), ((200, 0, 80), (29, 49)), ((200, -80, 0), (49, 29))):
        centre = np.argwhere(renderer.owners(bare(ball(9), location=place), camera) == 0).mean(axis=0)
        assert np.allclose(centre, where, atol=1.5)


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, 20, 30), (-80, 300, 5), (45, -170, 90)])
def test_rotation_matrix_is_unreals(angles):
    pitch, yaw, roll = np.radians(angles)
    about = {
        "z": [[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]],
        "y": [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]],
        "x": [[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]],
    }
    expected = np.array(about["x"]) @ about["y"] @ about["z"]  # roll first, then pitch, then yaw
    assert np.allclose(rotation_matrix(*angles), expected)
    assert np.linalg.det(rotation_matrix(*angles)) == pytest.approx(1)


def test_instances_see_what_the_moved_mesh_shows():
    """An instance in its own coordinates, against the same mesh with its corners moved."""
    mesh = ball(30)
    place = {"location": (40.0, -20.0, 15.0), "rotation": (20.0, 40.0, 60.0), "scale": (1.0, 2.0, 0.5)}
    thing = Thing("Own", mesh, (255, 0, 0), **place)
    moved = make_mesh(mesh.vertices @ thing.matrix + thing.location, mesh.triangles, mesh.colours[0])
    origins, directions = rays(3000, 5)
    origins = origins * 10
    one = Instances(bare(mesh, **place), EmbreeTracer).closest(origins, directions)
    two = Instances(bare(moved), EmbreeTracer).closest(origins, directions)
    assert (np.isinf(one.distance) != np.isinf(two.distance)).mean() < 1e-3
    met = np.isfinite(one.distance) & np.isfinite(two.distance)
    assert met.sum() > 50
    assert np.allclose(one.distance[met], two.distance[met], rtol=1e-3, atol=0.05)


def test_light_that_shines_down_puts_the_shadow_under_a_slab():
    scene = bare(slab((-400, -400, -10), (400, 400, 0), "#808080"))
    scene.things["Roof"] = Thing("Own", slab((-50, -50, 100), (50, 50, 110), "#808080"), (0, 255, 0))
    scene.sun = dataclasses.replace(scene.sun, pitch=-90.0, yaw=0.0, softness=0.2, intensity=3.0)
    camera = Camera((-300, 0, 60), (-11, 0, 0), 60, 96, 96)
    picture = WorldRenderer("embree").lit(scene, camera).astype(float).mean(axis=2)
    ground = WorldRenderer("embree").owners(scene, camera) == 0
    depth = WorldRenderer("embree").depth(scene, camera)
    x, y = np.meshgrid(np.arange(96) + 0.5, np.arange(96) + 0.5)
    points = camera.rays(x.ravel(), y.ravel()).reshape(96, 96, 3)
    points = points * (depth / (points @ camera.forward))[..., None] + camera.location
    under = ground & (np.abs(points[..., :2]).max(axis=-1) < 40)
    away = ground & (np.abs(points[..., :2]).max(axis=-1) > 70) & (np.abs(points[..., :2]).max(axis=-1) < 200)
    assert under.sum() > 20
    assert picture[under].max() < 0.75 * np.median(picture[away])


def test_an_unknown_tracer_is_a_user_error():
    with pytest.raises(UserError, match="tracer: 'opengl' is not right"):
        choose_tracer("opengl")
