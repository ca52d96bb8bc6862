"""Meshes of the user: read by trimesh, checked, and fitted to the size of our own assets."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import unquote

import numpy as np

from granary.curation.store.trees import mapping
from granary.synth.pug.world.shapes.colours import srgb_to_linear
from granary.synth.pug.world.shapes.mesh import Mesh, make_mesh
from granary.synth.pug.world.shapes.textures import SIZE, Texture, make_texture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from trimesh import Trimesh

FORMATS = (".glb", ".obj", ".ply", ".gltf", ".stl", ".off")
Z_UP = (".ply", ".stl", ".off")
LARGEST_FILE = 256 * 2**20  # bytes
MOST_TRIANGLES = 3_000_000
LONGEST_SIDE = 120.0  # cm
MATERIALS, PICTURES = re.compile(rb"\s*mtllib\s"), re.compile(rb"\s*(map_\w+|bump|disp|decal|refl|norm)\s", re.I)
MOST_WORDS = 64  # of a line that names a file
# What parsers of damaged files raise.
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
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
    """Read a mesh: its longest side becomes 120 cm, it stands on z = 0; glb, gltf and obj are Y up, the others Z up.

    Colours come from its texture, its corners, its faces or its material. Raises MeshError.
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


def files_of(path: str) -> list[Path]:
    """Return the files that a mesh is read from: its own, and the materials, buffers and pictures that it names."""
    file = Path(path)
    if file.suffix.lower() == ".gltf":
        return [file, *_there(file, _addresses(file))]
    if file.suffix.lower() != ".obj":
        return [file]
    materials = _there(file, _named(file, MATERIALS))
    return [file, *materials, *(picture for one in materials for picture in _there(one, _named(one, PICTURES)))]


def _addresses(file: Path) -> list[str]:
    try:
        tree = mapping("model.json", file.read_bytes())
        listed = [one for key in ("buffers", "images") for one in cast(list[dict[str, str]], tree.get(key) or [])]
        return [unquote(one["uri"]) for one in listed if not one.get("uri", "data:").startswith("data:")]
    except (OSError, ValueError, AttributeError, TypeError):  # a broken file is told of when it is read
        return []


def _named(file: Path, line: re.Pattern[bytes]) -> list[str]:
    """Return what the lines of a text may name: all behind the keyword, or less where options stand before the name."""
    with contextlib.suppress(OSError), file.open("rb") as text:
        lines = [one.decode(errors="replace").split()[1:MOST_WORDS] for one in text if line.match(one)]
        return [" ".join(words[first:]) for words in lines for first in range(len(words))]
    return []


def _there(file: Path, names: list[str]) -> list[Path]:
    return [place for name in dict.fromkeys(names) if (place := file.parent / name).is_file()]


def _load(file: Path) -> Trimesh:
    """Return all triangles of a file as one mesh, which has a picture or colours of its corners."""
    import trimesh

    scene = trimesh.load_scene(file)
    if not any(isinstance(part, trimesh.Trimesh) and len(part.faces) for part in scene.geometry.values()):
        raise MeshError(f"{file} has no triangles")
    parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    count = sum(len(part.faces) for part in parts)
    if count > MOST_TRIANGLES:
        raise MeshError(f"{file} has {count} triangles; at most {MOST_TRIANGLES} are right")
    if len(parts) == 1 and _pictured(parts[0]):
        return parts[0]
    if not all(map(_fits_a_picture, parts)):  # trimesh drops the colours of all where their kinds differ
        parts = [_coloured(part) for part in parts]
    whole = trimesh.util.concatenate(parts)
    assert isinstance(whole, trimesh.Trimesh)
    return whole


def _fits_a_picture(mesh: Trimesh) -> bool:
    """Say whether a mesh has a picture that can become a part of a larger one, as one that repeats cannot."""
    pictured = _pictured(mesh)
    return pictured is not None and bool(np.abs(pictured.uv - 0.5).max() < 0.501)


def _coloured(mesh: Trimesh) -> Trimesh:
    """Return a mesh whose corners have colours, whatever it had them from."""
    from trimesh.visual import ColorVisuals

    if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "face":
        mesh = _split(mesh)
    colours = np.broadcast_to(_colours(mesh), (len(mesh.vertices), 4))
    mesh.visual = ColorVisuals(mesh, vertex_colors=colours)
    return mesh


def _split(mesh: Trimesh) -> Trimesh:
    """Return a mesh whose faces share no corner: a shared one would have the mean of their colours."""
    mesh = mesh.copy()
    mesh.unmerge_vertices()
    return mesh


def _colours(mesh: Trimesh) -> NDArray[np.uint8]:
    """Return the colours of a mesh's corners, (v, 4), or the one colour of them all, (4,)."""
    from trimesh.visual import ColorVisuals, TextureVisuals

    visual = mesh.visual or ColorVisuals(mesh)
    if not isinstance(visual, TextureVisuals):
        return np.asarray(visual.vertex_colors)
    return np.asarray(visual.to_color().vertex_colors if _pictured(mesh) else visual.material.main_color)


class _Pictured(NamedTuple):
    uv: NDArray[np.float32]
    image: Image


def _pictured(mesh: Trimesh) -> _Pictured | None:
    """Return the picture on a mesh and its corners' places in it; None where it has no picture or no places."""
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    visual = mesh.visual
    if not isinstance(visual, TextureVisuals) or visual.uv is None:
        return None
    material = visual.material
    image = material.baseColorTexture if isinstance(material, PBRMaterial) else material.image
    return None if image is None else _Pictured(np.asarray(visual.uv, np.float32), image)


def _convert(source: Trimesh, file: Path) -> Mesh:
    points, triangles = np.asarray(source.vertices, np.float64), np.asarray(source.faces)
    if not np.isfinite(points).all() or not np.ptp(points, axis=0).max() > 0:
        raise MeshError(f"{file} has corners that are not finite, or no extent")
    if not _area(points, triangles) > 0:
        raise MeshError(f"{file} has triangles without an area only")
    to_unreal = _axes(file)
    points, normals = points @ to_unreal, np.asarray(source.vertex_normals) @ to_unreal
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - [*(low + high)[:2] / 2, low[2]]) * (LONGEST_SIDE / (high - low).max())
    uv, picture = _picture(source, points)
    colours = np.ones((len(points), 3)) if picture else _linear(_colours(source)[:, :3])
    return dataclasses.replace(make_mesh(points, triangles, colours, normals, 0.1), uv=uv, picture=picture)


def _axes(file: Path) -> np.ndarray:
    """Return the (3, 3) matrix that turns rows of a file's right-handed places into Unreal's left-handed ones."""
    if file.suffix.lower() in Z_UP:
        return np.diag([1.0, -1.0, 1.0])
    return np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # the file's Z is forward, -X to the right


def _picture(source: Trimesh, points: np.ndarray) -> tuple[np.ndarray | None, Texture | None]:
    """Corners' places in the mesh's picture, and the picture; its scale is that of the whole surface."""
    pictured = _pictured(source)
    if pictured is None:
        return None, None
    tiles = _area(np.column_stack([pictured.uv, np.zeros(len(pictured.uv))]), source.faces)
    scale = float(np.sqrt(_area(points, source.faces) / max(tiles, 1e-9)))
    square = pictured.image.convert("RGB").resize((SIZE, SIZE))
    return pictured.uv, make_texture(_linear(np.asarray(square)), np.zeros((SIZE, SIZE)), scale)


def _area(points: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def _linear(values: np.ndarray) -> np.ndarray:
    return srgb_to_linear(values.astype(np.float32) / 255)
