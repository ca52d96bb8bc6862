"""Geometry: signed distances, meshes, noise, textures."""
