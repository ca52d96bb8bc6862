"""Meshes of the user: whatever trimesh loads is shown, in its colours, the right way round; the rest is said."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import Material, PBRMaterial, SimpleMaterial

from granary.synth.pug.planning import mesh_hashes
from granary.synth.pug.recipe import RenderRecipe
from granary.synth.pug.world.content.imports import FORMATS, MeshError, files_of, import_mesh
from granary.synth.pug.world.picture.render import WorldRenderer
from granary.synth.pug.world.scene import Scene, Thing
from granary.synth.pug.world.shapes.geometry import Camera
from granary.synth.pug.world.shapes.mesh import Mesh

RED, GREEN, BLUE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)
SIDE = 32
SQUARE = np.array([[-1.0, 0, 0], [1, 0, 0], [1, 2, 0], [-1, 2, 0]])  # Y up, seen from +Z
UV = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
PLAIN_GLTF = {
    "asset": {"version": "2.0"},
    "scene": 0,
    "scenes": [{"nodes": [0]}],
    "nodes": [{"mesh": 0}],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}],
    "materials": [{"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}],
    "buffers": [{"byteLength": 44}],
    "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 6}],
    "accessors": [
        {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
        {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
    ],
}
NO_MAP = """mtllib nomap.mtl
v 0 0 0
v 1 0 0
v 0 1 0
v 0 0 1
vt 0 0
vt 1 0
vt 0 1
usemtl a
f 1/1 2/2 3/3
f 1/1 2/2 4/3
"""
PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
{vertex}element face 1
property list uchar int vertex_indices
{face}end_header
0 0 0{v}
1 0 1{v}
0 0 2{v}
3 0 1 2{f}
"""
CHANNELS = "property uchar red\nproperty uchar green\nproperty uchar blue\n"


def seen(mesh: Mesh) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a picture of a mesh from its front, and where it is."""
    scene = Scene.load("Museum")
    scene.things["Own"] = Thing("Own", mesh, scene.free_colour())
    camera, renderer = Camera((200, 0, 60), (0, 180, 0), 60, SIDE, SIDE), WorldRenderer()
    own = renderer.owners(scene, camera) == list(scene.things).index("Own")
    return renderer.lit(scene, camera), own


def shown_colour(path: Path) -> tuple[int, int, int]:
    """Return the mean colour of a file's mesh in a picture."""
    lit, own = seen(import_mesh(str(path)))
    assert own.sum() > 20
    red, green, blue = lit[own].astype(float).mean(axis=0).astype(int).tolist()
    return red, green, blue


def is_red(colour: tuple[int, int, int]) -> bool:
    return colour[0] > 2 * max(colour[1:])


def box_of(material: Material) -> trimesh.Trimesh:
    box = trimesh.creation.box()
    box.visual = TextureVisuals(np.random.default_rng(0).random((8, 2)), material=material)
    return box


def square_of(picture: Image.Image, repeats: float = 1, right: float = 0) -> trimesh.Trimesh:
    square = trimesh.Trimesh(SQUARE + np.array([right, 0, 0]), [[0, 1, 2], [0, 2, 3]], process=False)
    square.visual = TextureVisuals(UV * repeats, material=PBRMaterial(baseColorTexture=picture))
    return square


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "make",
    [trimesh.creation.box, trimesh.creation.icosphere, trimesh.creation.cone, trimesh.creation.torus],
)
def test_a_mesh_without_colours_is_shown(make: Callable[..., trimesh.Trimesh], suffix: str, tmp_path: Path) -> None:
    sizes = {trimesh.creation.cone: (1, 2), trimesh.creation.torus: (2, 1)}
    path = tmp_path / f"mesh{suffix}"
    if suffix == ".gltf":
        for name, data in trimesh.exchange.gltf.export_gltf(make(*sizes.get(make, ())).scene()).items():
            (tmp_path / name.replace("model.gltf", path.name)).write_bytes(data)
    else:
        make(*sizes.get(make, ())).export(path)
    assert max(shown_colour(path)) > 0


def test_a_published_binary_gltf_with_one_colour_is_shown(tmp_path: Path) -> None:
    """glTF 2.0, sections 3.9.2 and 4.4: made here byte by byte, without trimesh."""
    binary = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4").tobytes() + struct.pack("<3H2x", 0, 1, 2)
    text = json.dumps(PLAIN_GLTF).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    (tmp_path / "a.glb").write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    assert is_red(shown_colour(tmp_path / "a.glb"))


@pytest.mark.parametrize(
    "material",
    [
        PBRMaterial(baseColorFactor=RED),
        SimpleMaterial(diffuse=RED),
        PBRMaterial(baseColorTexture=Image.new("RGB", (4, 4), "red")),
        PBRMaterial(baseColorTexture=Image.new("P", (4, 4)), baseColorFactor=RED),
        SimpleMaterial(image=Image.new("RGBA", (4, 4), "red")),
    ],
    ids=["pbr", "diffuse", "picture", "palette", "alpha"],
)
@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_a_material_is_shown(material: Material, suffix: str, tmp_path: Path) -> None:
    if isinstance(material, PBRMaterial) and material.baseColorTexture and material.baseColorTexture.mode == "P":
        material.baseColorTexture.putpalette([255, 0, 0] * 256)
    box_of(material).export(tmp_path / f"box.{suffix}")
    assert is_red(shown_colour(tmp_path / f"box.{suffix}"))


def test_a_material_without_places_in_a_picture_is_shown(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.visual = TextureVisuals(material=PBRMaterial(baseColorFactor=RED))
    box.export(tmp_path / "box.glb")
    assert is_red(shown_colour(tmp_path / "box.glb"))


def test_an_obj_with_places_and_no_picture_is_shown(tmp_path: Path) -> None:
    (tmp_path / "nomap.obj").write_text(NO_MAP)
    (tmp_path / "nomap.mtl").write_text("newmtl a\nKd 1 0 0\n")
    assert is_red(shown_colour(tmp_path / "nomap.obj"))
    (tmp_path / "nomap.mtl").unlink()
    assert not is_red(shown_colour(tmp_path / "nomap.obj"))


@pytest.mark.parametrize(
    "parts",
    [
        {"vertex": CHANNELS, "v": " 255 0 0", "face": "", "f": ""},
        {"vertex": "", "v": "", "face": CHANNELS, "f": " 255 0 0"},
        {"vertex": CHANNELS + "property uchar alpha\n", "v": " 255 0 0 255", "face": "", "f": ""},
    ],
    ids=["corners", "faces", "alpha"],
)
def test_colours_of_a_ply_are_shown(parts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_text(PLY.format(**parts))
    mesh = import_mesh(str(tmp_path / "a.ply"))
    assert np.allclose(mesh.colours[0], [1, 0, 0])


def test_colours_of_faces_end_at_their_edges(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.visual = ColorVisuals(box, face_colors=np.resize([RED, GREEN, BLUE], (12, 4)))
    box.export(tmp_path / "box.ply")
    colours = import_mesh(str(tmp_path / "box.ply")).colours[0]
    assert sorted(set(map(tuple, colours.round(3).tolist()))) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_a_scene_keeps_the_places_and_colours_of_its_parts(tmp_path: Path) -> None:
    painted = trimesh.creation.box()
    painted.visual = ColorVisuals(painted, vertex_colors=np.tile(RED, (8, 1)))
    scene = trimesh.Scene([painted, trimesh.PointCloud(np.zeros((3, 3)))])
    move = trimesh.transformations.translation_matrix([3, 0, 0])
    scene.add_geometry(box_of(PBRMaterial(baseColorTexture=Image.new("RGB", (4, 4), "lime"))), transform=move)
    scene.add_geometry(box_of(PBRMaterial(baseColorFactor=BLUE)), transform=move @ move)
    scene.export(tmp_path / "scene.glb")
    mesh = import_mesh(str(tmp_path / "scene.glb"))
    assert np.ptp(mesh.vertices, axis=0) == pytest.approx([120 / 7, 120, 120 / 7], abs=0.01)
    order = np.argsort(-mesh.vertices[:, 1])  # to the left of who faces it is first in the file
    blocks = mesh.colours[0][order].reshape(3, 8, 3).mean(axis=1)
    assert np.allclose(blocks, np.eye(3), atol=0.05)


@pytest.mark.parametrize("repeats", [1, 3])
def test_two_pictures_are_both_shown(repeats: int, tmp_path: Path) -> None:
    left = square_of(Image.new("RGB", (8, 8), "red"), repeats, -1.0)
    right = square_of(Image.new("RGB", (8, 8), "blue"), repeats, 1.0)
    trimesh.Scene([left, right]).export(tmp_path / "two.glb")
    lit, own = seen(import_mesh(str(tmp_path / "two.glb")))
    halves = [lit[:, columns][own[:, columns]].mean(axis=0) for columns in (slice(0, 15), slice(17, None))]
    assert [int(half.argmax()) for half in halves] == [0, 2]


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_a_picture_is_not_mirrored(suffix: str, tmp_path: Path) -> None:
    """Whoever looks at the front of the file, +Z, has its +X on the right, and so has who looks along -X in Unreal."""
    picture = Image.new("RGB", (32, 32), "red")
    picture.paste("blue", (16, 0, 32, 32))
    picture.paste("lime", (0, 0, 32, 8))
    square_of(picture).export(tmp_path / f"square.{suffix}")
    lit, own = seen(import_mesh(str(tmp_path / f"square.{suffix}")))
    rows, columns = np.nonzero(own)
    top, left = rows.min() + 1, columns.min() + 2
    assert [int(lit[place].argmax()) for place in ((20, left), (20, columns.max() - 2), (top, 16))] == [0, 2, 1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.obj", "nothing here\n", "has no triangles"),
        ("points.obj", "v 0 0 0\nv 1 0 0\n", "has no triangles"),
        ("points.off", "OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "has no triangles"),
        ("line.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "has triangles without an area only"),
        ("dot.off", "OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n", "no extent"),
        ("a.blend", "", r"files that end in \.glb, \.obj, \.ply"),
        ("cut.stl", "solid", "cut.stl"),
    ],
)
def test_what_is_no_mesh_is_said_in_a_sentence(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MeshError, match=words) as caught:
        import_mesh(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    square_of(Image.new("RGB", (4, 4))).export(tmp_path / "a.obj")
    shutil.rmtree(tmp_path)
    with pytest.raises(MeshError, match="cannot be read: FileNotFoundError"):
        import_mesh(str(tmp_path / "a.obj"))


# -- the files that a mesh is read from --------------------------------------------------------------------------------


def hashes(mesh: Path) -> str:
    recipe = RenderRecipe.model_validate(
        {"out": "run", "meshes": {"it": str(mesh)}, "factors": {"world": {"count": 1}}}
    )
    return mesh_hashes(recipe)["it"]


@pytest.mark.parametrize("ending", ["obj", "gltf"])
def test_a_render_knows_when_a_file_beside_its_mesh_changes(ending: str, tmp_path: Path) -> None:
    """Written by trimesh: a textured box with its material, buffers and picture in files of their own."""
    box = trimesh.creation.box()
    uv = np.random.default_rng(0).random((len(box.vertices), 2))
    picture = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    box.visual = trimesh.visual.TextureVisuals(uv, trimesh.visual.material.SimpleMaterial(picture))
    trimesh.Scene(box).export(tmp_path / f"box.{ending}")
    mesh = tmp_path / f"box.{ending}"
    beside = sorted(path for path in tmp_path.iterdir() if path != mesh)
    assert {path.name for path in files_of(str(mesh))} == {mesh.name, *(path.name for path in beside)}
    assert len(beside) > 1
    for path in beside:
        before = hashes(mesh)
        path.write_bytes(path.read_bytes() + b" ")
        assert hashes(mesh) != before


@pytest.mark.parametrize(
    "line", ["map_Kd skin.png", "  map_Kd -s 1 1 1 -clamp on skin.png", "bump -bm 0.3 skin.png", "norm skin.png"]
)
def test_pictures_are_named_behind_their_options(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\n")
    (tmp_path / "a.mtl").write_text(f"newmtl a\nKd 1 0 0\n{line}\n")
    (tmp_path / "skin.png").write_bytes(b"a picture")
    assert [path.name for path in files_of(str(tmp_path / "a.obj"))] == ["a.obj", "a.mtl", "skin.png"]


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3}', '{"buffers": [{"uri": "gone.bin"}, {}]}', "[" * 10_000])
def test_a_broken_gltf_names_no_other_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.gltf").write_text(text)
    assert [path.name for path in files_of(str(tmp_path / "a.gltf"))] == ["a.gltf"]
