"""What casts rays: one interface, Embree behind it where it is installed, NumPy everywhere."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import numpy as np

from granary.curation.errors import UserError
from granary.synth.pug.world.picture.rays import Hits, TracerClass
from granary.synth.pug.world.picture.wavefront import WavefrontTracer


class EmbreeTracer:
    """Intel Embree 4 through embreex.

    Args:
        vertices: (v, 3) float32.
        triangles: (t, 3) int32.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray) -> None:
        from embreex import mesh_construction, rtcore_scene

        self._scene = rtcore_scene.EmbreeScene(_device())
        mesh_construction.TriangleMesh(self._scene, vertices, triangles)

    def closest(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Return the first hits of rays."""
        ray_hits = self._scene.run(origins, directions, output=1)
        missed = ray_hits["primID"] < 0
        distance = np.where(missed, np.float32(np.inf), ray_hits["tfar"])
        return Hits(distance, ray_hits["primID"], ray_hits["u"], ray_hits["v"])

    def occluded(self, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        """Return whether rays meet the mesh within reach."""
        reaches = np.full(len(origins), reach, np.float32)
        return self._scene.run(origins, directions, dists=reaches, query="OCCLUDED") >= 0


@functools.cache
def _device() -> Any:
    from embreex import rtcore

    return rtcore.EmbreeDevice()


def choose_tracer(name: str) -> tuple[TracerClass, str]:
    """Return the class of a tracer ("embree", "numpy", "auto") and its name with version; raises UserError."""
    if name not in ("auto", "embree", "numpy"):
        raise UserError(f"tracer: {name!r} is not right; right are auto, embree, numpy")
    if name != "numpy":
        try:
            import embreex  # noqa: F401

            return EmbreeTracer, f"embree (embreex {importlib.metadata.version('embreex')})"
        except ImportError:
            if name == "embree":
                raise UserError("tracer: embree needs the package embreex; tracer numpy needs nothing") from None
    return WavefrontTracer, f"numpy {np.__version__}"
