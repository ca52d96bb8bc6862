"""Triangle meshes with what shading needs at their corners."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from granary.synth.pug.world.shapes.geometry import unit
from granary.synth.pug.world.shapes.textures import Texture

LEVELS = (0, 3, 14)  # rounds of smoothing; level k averages over about sqrt(rounds) edges


@dataclasses.dataclass(frozen=True)
class Skin:
    """How the surface of a mesh looks beside its colours.

    Args:
        detail: name of a texture that multiplies the colours, or "" for none.
        scale: cm that one tile of it covers.
        bump: strength of its relief.
        sheen: brightness of the rim, as fur and cloth have it.
        wrap: share of light that creeps round the terminator, as under skin.
    """

    detail: str = ""
    scale: float = 60.0
    bump: float = 0.0
    sheen: float = 0.0
    wrap: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
    """A mesh in its own coordinates, cm.

    Args:
        vertices: (v, 3) float32.
        triangles: (t, 3) int32.
        normals: (v, 3) float32, unit.
        colours: (levels, v, 3) float32, linear reflectance; level k is smoothed over `footprints[k]` cm.
        gloss: (v,) float32, 0 dull to 1 polished.
        glow: (v,) float32, how much of its colour a surface emits.
        skin: its detail.
        footprints: (levels,) float32, cm.
        uv: (v, 2) float32 or None.
        picture: the texture it indexes, whose `scale` is cm per tile, or None.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    gloss: np.ndarray
    glow: np.ndarray
    skin: Skin
    footprints: np.ndarray
    uv: np.ndarray | None = None
    picture: Texture | None = None

    @functools.cached_property
    def corners(self) -> np.ndarray:
        """(v, 5 + 3 levels) float32: normal, gloss, glow, colours level by level, side by side in memory."""
        colours = self.colours.transpose(1, 0, 2).reshape(len(self.vertices), -1)
        return np.hstack([self.normals, self.gloss[:, None], self.glow[:, None], colours]).astype(np.float32)

    @functools.cached_property
    def ball(self) -> tuple[np.ndarray, float]:
        """Centre (3,) float64 and radius of a ball round it, cm."""
        centre = (self.vertices.min(axis=0) + self.vertices.max(axis=0)).astype(float) / 2
        return centre, float(np.linalg.norm(self.vertices - centre, axis=1).max())


def make_mesh(
    vertices: np.ndarray,
    triangles: np.ndarray,
    colours: np.ndarray,
    normals: np.ndarray | None = None,
    gloss: np.ndarray | float = 0.0,
    glow: np.ndarray | float = 0.0,
    skin: Skin | None = None,
) -> Mesh:
    """Complete a mesh: normals from its faces where none are given, and the smoothed levels of its colours."""
    vertices = np.ascontiguousarray(vertices, np.float32)
    triangles = np.ascontiguousarray(triangles, np.int32)
    count = len(vertices)
    normals = face_normals(vertices, triangles) if normals is None else normals
    levels, footprints = _smooth_levels(vertices, triangles, np.asarray(colours, np.float32))
    return Mesh(
        vertices,
        triangles,
        unit(normals).astype(np.float32),
        levels,
        np.broadcast_to(np.asarray(gloss, np.float32), (count,)).copy(),
        np.broadcast_to(np.asarray(glow, np.float32), (count,)).copy(),
        skin or Skin(),
        footprints,
    )


def face_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return (v, 3) area-weighted means of the normals of the triangles at each corner."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    faces = np.cross(b - a, c - a)
    total = np.zeros((len(vertices), 3))
    for axis in range(3):
        for corner in range(3):
            total[:, axis] += np.bincount(triangles[:, corner], faces[:, axis], len(vertices))
    return total


def join(meshes: list[Mesh], skin: Skin | None = None) -> Mesh:
    """Put meshes together as one."""
    offsets = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.triangles + offset for mesh, offset in zip(meshes, offsets, strict=True)]).astype(
            np.int32
        ),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.colours for mesh in meshes], axis=1),
        np.concatenate([mesh.gloss for mesh in meshes]),
        np.concatenate([mesh.glow for mesh in meshes]),
        skin or meshes[0].skin,
        meshes[0].footprints,
    )


def placed(mesh: Mesh, matrix: np.ndarray, offset: np.ndarray) -> Mesh:
    """Return the mesh turned and scaled by a (3, 3) matrix of rows, then moved."""
    normals = unit(mesh.normals @ np.linalg.inv(matrix).T)
    return dataclasses.replace(
        mesh,
        vertices=(mesh.vertices @ matrix + offset).astype(np.float32),
        normals=normals.astype(np.float32),
        footprints=(mesh.footprints * np.cbrt(abs(np.linalg.det(matrix)))).astype(np.float32),
    )


def _smooth_levels(vertices: np.ndarray, triangles: np.ndarray, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = triangles.ravel(), np.roll(triangles, -1, axis=1).ravel()
    length = float(np.median(np.linalg.norm(vertices[starts] - vertices[ends], axis=1))) if len(starts) else 1.0
    footprints = (length * np.sqrt(np.array(LEVELS) + 0.5)).astype(np.float32)
    if not np.ptp(colours, axis=0).any():
        return np.repeat(colours[None], len(LEVELS), axis=0), footprints
    around = _neighbours(starts, ends, len(vertices))
    levels, current, done = [], colours, 0
    for rounds in LEVELS:
        for _ in range(rounds - done):
            current = (around @ current).astype(np.float32)
        levels.append(current)
        done = rounds
    return np.stack(levels), footprints


def _neighbours(starts: np.ndarray, ends: np.ndarray, count: int) -> Any:
    """Sparse (count, count) matrix whose rows average a corner with its neighbours."""
    from scipy import sparse

    edges = sparse.coo_matrix((np.ones(len(starts), np.float32), (starts, ends)), (count, count)).tocsr()
    around = (edges + edges.T + sparse.identity(count, np.float32, "csr")).tocsr()
    return sparse.diags(1 / np.asarray(around.sum(axis=1)).ravel()).tocsr() @ around
