"""Pictures of a scene: one trace of primary rays serves the lit picture, the mask, the depth and the normals."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy as np

from granary.synth.pug.world.picture.film import Film, origins_of, pixel_centres
from granary.synth.pug.world.picture.instances import Instances, SceneHits
from granary.synth.pug.world.picture.layers import Backdrop, Shot, backdrop, picture
from granary.synth.pug.world.picture.lighting import Light
from granary.synth.pug.world.picture.tracing import choose_tracer
from granary.synth.pug.world.scene import Scene
from granary.synth.pug.world.shapes.geometry import FAR, Camera, rows_of

KEPT = 3 << 19  # pixels of backdrops that are kept: some 250 MB, 31 pictures of 224 x 224
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class View:
    """What a camera sees through the centres of its pixels, row by row.

    Args:
        instances: what was traced.
        directions: (n, 3) float32 of the rays.
        hits: of all n rays.
    """

    instances: Instances
    directions: np.ndarray
    hits: SceneHits


class Recent(Generic[Made]):
    """What was made last, as long as it has no more than a number of pixels together; the last one always stays."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.used = pixels, 0
        self.kept: collections.OrderedDict[Hashable, tuple[int, Made]] = collections.OrderedDict()

    def get(self, key: Hashable, pixels: int, make: Callable[[], Made]) -> Made:
        """Return what is known by a key, or make it."""
        if key not in self.kept:
            self.kept[key] = (pixels, make())
            self.used += pixels
            while self.used > self.pixels and len(self.kept) > 1:
                self.used -= self.kept.popitem(last=False)[1][0]
        self.kept.move_to_end(key)
        return self.kept[key][1]


class WorldRenderer:
    """Draws a scene; keeps the last view and the last pictures as long as nothing changes, and recent backdrops.

    Args:
        tracer: "embree", "numpy" or "auto".
    """

    def __init__(self, tracer: str = "auto") -> None:
        self._tracer, self.tracer = choose_tracer(tracer)
        self._fixed_views: Recent[View] = Recent(KEPT)
        self._backdrops: Recent[Backdrop] = Recent(KEPT)
        self._films: Recent[Film] = Recent(KEPT)
        self._views: dict[Any, View] = {}
        self._fronts: dict[Any, Film] = {}
        self._lit: dict[Any, np.ndarray] = {}

    def view(self, scene: Scene, camera: Camera) -> View:
        """Trace the primary rays, or return them if they were traced already."""
        key = (scene.number, scene.shape, camera)
        if key not in self._views:
            behind = self._fixed_view(scene, camera)
            instances = Instances(scene, self._tracer)
            origins = origins_of(camera, behind.directions)
            hits = instances.closest(origins, behind.directions, behind.hits)
            self._views = {key: View(instances, behind.directions, hits)}
        return self._views[key]

    def lit(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return the picture: (h, w, 3) uint8 sRGB."""
        key = (scene.number, scene.version, camera)
        if key not in self._lit:
            shot = Shot(scene.world, Light.of(scene), camera, _painted(scene))
            film, view = self._film(scene, camera), self.view(scene, camera)
            self._lit = {key: picture(shot, self._backdrop(scene, camera, shot), view.instances, film)}
        return self._lit[key]

    def mask(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w, 3) uint8: the mask colour of the object in the middle of each pixel, black for the sky."""
        table = np.array([*(thing.colour for thing in scene.things.values()), (0, 0, 0)], np.uint8)
        return table.take(self.view(scene, camera).hits.owner, axis=0, mode="wrap").reshape(
            camera.height, camera.width, 3
        )

    def owners(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w) int32: index of the object in the middle of each pixel, -1 for the sky."""
        return self.view(scene, camera).hits.owner.reshape(camera.height, camera.width)

    def depth(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w) float32: cm along the direction of view (planar depth), 65504 for the sky."""
        view = self.view(scene, camera)
        depth = view.hits.distance * (view.directions @ camera.forward)
        return np.minimum(depth, np.float32(FAR)).reshape(camera.height, camera.width)

    def normal(self, scene: Scene, camera: Camera) -> np.ndarray:
        """Return (h, w, 3) uint8: world normals times 0.5 plus 0.5, and 0.5 for the sky."""
        normals = self._film(scene, camera).surface.normal
        return np.rint(normals * 127.5 + 127.5).astype(np.uint8).reshape(camera.height, camera.width, 3)

    # -- the fixed parts ---------------------------------------------------------------------------------------------

    def _fixed_view(self, scene: Scene, camera: Camera) -> View:
        def make() -> View:
            instances = Instances(scene, self._tracer, movable=False)
            directions = camera.rays(*pixel_centres(camera.width, camera.height))
            return View(instances, directions, instances.closest(origins_of(camera, directions), directions))

        return self._fixed_views.get((_fixed_parts(scene), camera), camera.width * camera.height, make)

    def _fixed_film(self, scene: Scene, camera: Camera) -> Film:
        view, painted = self._fixed_view(scene, camera), _painted(scene, fixed=True)
        key = (_fixed_parts(scene), tuple(painted.items()), camera)
        return self._films.get(
            key,
            camera.width * camera.height,
            lambda: Film.exposed(view.instances, painted, camera, view.directions, view.hits),
        )

    def _backdrop(self, scene: Scene, camera: Camera, shot: Shot) -> Backdrop:
        view, film = self._fixed_view(scene, camera), self._fixed_film(scene, camera)
        key = (_fixed_parts(scene), tuple(_painted(scene, fixed=True).items()), camera, scene.sun, scene.sky)
        return self._backdrops.get(key, camera.width * camera.height, lambda: backdrop(shot, view.instances, film))

    def _film(self, scene: Scene, camera: Camera) -> Film:
        """Return the film of the whole scene: that of the fixed parts, with what movable objects cover replaced."""
        key = (scene.number, scene.version, camera)
        if key not in self._fronts:
            view, behind = self.view(scene, camera), self._fixed_film(scene, camera)
            rows = np.flatnonzero(view.hits.instance >= view.instances.fixed)
            directions, hits = rows_of(view.directions, rows), view.hits.take(rows)
            front = Film.exposed(view.instances, _painted(scene), camera, directions, hits)
            self._fronts = {key: behind.replaced(rows, front, view.hits)}
        return self._fronts[key]


def _fixed_parts(scene: Scene) -> Hashable:
    """Return what the rays of all scenes with the same fixed parts have in common."""
    parts = enumerate(scene.things.items())  # meshes are compared by identity, and a key holds on to them
    fixed = [(number, name, thing.mesh) for number, (name, thing) in parts if thing.fixed and thing.visible]
    return (scene.world.name, *fixed)


def _painted(scene: Scene, fixed: bool = False) -> dict[str, str]:
    """Return the textures of objects that do not wear their own; `fixed`: of the fixed parts alone."""
    return {
        name: thing.texture
        for name, thing in scene.things.items()
        if thing.texture != "Default" and (thing.fixed or not fixed)
    }
