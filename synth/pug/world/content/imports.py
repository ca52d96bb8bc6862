"""Meshes of the user: read from glb, obj or ply files by trimesh, checked, and fitted to the size of our own assets."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from granary.synth.pug.world.shapes.colours import srgb_to_linear
from granary.synth.pug.world.shapes.mesh import Mesh, Skin, make_mesh
from granary.synth.pug.world.shapes.textures import SIZE, Texture, make_texture

FORMATS = (".glb", ".obj", ".ply")
LARGEST_FILE = 256 * 2**20  # bytes
MOST_TRIANGLES = 3_000_000
LONGEST_SIDE = 120.0  # cm
# What parsers of damaged files raise.
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class MeshError(Exception):
    """A file holds no mesh that can be shown; the message says why."""


def import_mesh(path: str) -> Mesh:
    """Read a mesh: its longest side becomes 120 cm, it stands on z = 0, glb and obj are taken as Y up, ply as Z up.

    Colours come from its texture, its vertices or its material. Raises MeshError.
    """
    file = Path(path)
    if file.suffix.lower() not in FORMATS:
        raise MeshError(f"{path} is not right; right are files that end in {', '.join(FORMATS)}")
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise MeshError(f"{path} has more than {LARGEST_FILE // 2**20} MiB")
        return _convert(_load(file), file)
    except BROKEN as error:
        raise MeshError(f"{path} cannot be read: {type(error).__name__} {error}".replace("\n", " ")[:300]) from None


def _load(file: Path) -> Any:
    import trimesh

    scene = trimesh.load_scene(file)
    meshes = [mesh for mesh in scene.dump() if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    if not meshes:
        raise MeshError(f"{file} has no triangles")
    count = sum(len(mesh.faces) for mesh in meshes)
    if count > MOST_TRIANGLES:
        raise MeshError(f"{file} has {count} triangles; at most {MOST_TRIANGLES} are right")
    return meshes[0] if len(meshes) == 1 else trimesh.util.concatenate(meshes)


def _convert(source: Any, file: Path) -> Mesh:
    points = np.asarray(source.vertices, np.float64)
    if not np.isfinite(points).all() or not np.ptp(points, axis=0).max() > 0:
        raise MeshError(f"{file} has corners that are not finite, or no extent")
    triangles = np.asarray(source.faces)
    # A right-handed file with Y up: its Z is forward here, its X to the right, as Unreal's importers have it.
    axes = [0, 1, 2] if file.suffix.lower() == ".ply" else [2, 0, 1]
    points = points[:, axes] * ([1, -1, 1] if file.suffix.lower() == ".ply" else [1, 1, 1])
    normals = np.asarray(source.vertex_normals)[:, axes] * ([1, -1, 1] if file.suffix.lower() == ".ply" else [1, 1, 1])
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - [*(low + high)[:2] / 2, low[2]]) * (LONGEST_SIDE / (high - low).max())
    uv, picture = _picture(source, points)
    visual = source.visual.to_color() if hasattr(source.visual, "to_color") else source.visual
    colours = _linear(np.asarray(visual.vertex_colors)[:, :3])
    return make_mesh(points, triangles, colours, normals, 0.1, skin=Skin(), uv=uv, picture=picture)


def _picture(source: Any, points: np.ndarray) -> tuple[np.ndarray | None, Texture | None]:
    """Corners' places in the mesh's picture, and the picture; its scale is that of the whole surface."""
    uv = getattr(source.visual, "uv", None)
    material = getattr(source.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if uv is None or image is None:
        return None, None
    uv = np.asarray(uv, np.float32)
    tiles = _area(np.column_stack([uv, np.zeros(len(uv))]), source.faces)
    scale = float(np.sqrt(_area(points, source.faces) / max(tiles, 1e-9)))
    square = image.convert("RGB").resize((SIZE, SIZE))
    return uv, make_texture(_linear(np.asarray(square)), np.zeros((SIZE, SIZE)), scale)


def _area(points: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def _linear(values: np.ndarray) -> np.ndarray:
    return srgb_to_linear(values.astype(np.float32) / 255)
