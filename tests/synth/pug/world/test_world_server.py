"""The embedded world's server, asked by the unmodified `unrealcv` client and by plain sockets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from granary.curation.errors import UserError
from granary.synth.pug.world import ServerProcess, start_server
from granary.synth.pug.world.process import ServerDied
from granary.synth.pug.world.server import Server, unix_path
from granary.synth.pug.world.wire import HEADER, MAGIC

Client = pytest.importorskip("unrealcv", exc_type=ImportError, reason="unrealcv does not load here").Client
SIDE = 48
UNKNOWN = "error No handler found for URI '{}'. Can not find a handler"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with start_server(unix=True, save_to=str(folder)) as running:
        yield running


@contextlib.contextmanager
def connected(server: ServerProcess, unix: bool = False):
    client = Client(server.socket_path, "unix") if unix else Client((server.host, server.port))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert client.connect()
        try:
            yield client
        finally:
            client.disconnect()


@pytest.fixture
def client(server):
    with connected(server) as one:
        assert one.request(["vset /action/game/level Meadow", f"vset /camera/0/size {SIDE} {SIDE}"]) == ["ok", "ok"]
        assert one.request(["vset /camera/0/location 250 0 90", "vset /camera/0/rotation -12 180 0"]) == ["ok", "ok"]
        yield one


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def color(text: str) -> tuple[int, ...]:
    return tuple(int(v) for v in re.fullmatch(r"\(R=(\d+),G=(\d+),B=(\d+),A=255\)", text).groups())


def frame(payload: bytes) -> bytes:
    return HEADER.pack(MAGIC, len(payload)) + payload


def read_frame(connection: socket.socket) -> bytes:
    stream = connection.makefile("rb")
    magic, size = struct.unpack("<II", stream.read(8))
    assert magic == MAGIC
    return stream.read(size)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:  # closed while bytes of ours were unread
        return True


@pytest.mark.parametrize("unix", [False, True])
def test_handshake_of_the_real_client(server, unix):
    with warnings.catch_warnings(record=True) as caught, connected(server, unix) as client:
        warnings.simplefilter("always")
        assert client._command_capabilities_available
        assert client.request("vget /unrealcv/echo 31a7") == "31a7"
        assert client.request("vbp Director SetSky 1") == '{"intensity": 1.0}'
        assert client.request("vset /camera/0/location 1 2 3") == "ok"
    assert not [w for w in caught if "may not support" in str(w.message)]


def test_first_bytes_on_the_wire(server):
    with socket.create_connection((server.host, server.port)) as connection:
        assert read_frame(connection) == b"connected to granary-world"
        connection.sendall(bytes.fromhex("c1832b9e17000000") + b"0:vget /unrealcv/status")
        assert read_frame(connection).startswith(b"0:Is Listening")
        # one byte at a time, and an id that nobody counts
        for byte in frame(b"0077:vget /level/name"):
            connection.sendall(bytes([byte]))
        assert read_frame(connection).startswith(b"0077:")


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00" * 16,
        HEADER.pack(MAGIC, 0),
        HEADER.pack(MAGIC, 0xFFFFFFFF),
        frame(b"vget /objects"),
        struct.pack(">II", MAGIC, 5),
    ],
)
def test_what_is_not_the_protocol_closes_the_connection_and_nothing_else(server, damage):
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        read_frame(connection)
        connection.sendall(damage)
        assert ended(connection)
    with connected(server) as client:
        assert client.request("vget /unrealcv/echo still") == "still"


def test_text_rows_of_the_table(client):
    assert client.request("vget /objects") == "Ground Trunks Trees Flowers"
    assert client.request("vget /cameras") == "Camera_0"
    assert client.request("vset /objects/spawn Duck A") == "A"
    assert client.request("vset /objects/spawn Duck") == "Duck_0"
    assert client.request("vset /object/A/location 10 -20.5 .25") == "ok"
    assert client.request("vget /object/A/location") == "10.000 -20.500 0.250"
    assert client.request("vset /object/A/rotation 10 20 30") == "ok"
    assert client.request("vget /object/A/rotation") == "10.000 20.000 30.000"
    assert client.request("vset /object/A/scale 1.5 1.5 1.5") == "ok"
    assert client.request("vget /object/A/scale") == "1.500 1.500 1.500"
    assert client.request("vset /camera/0/rotation 10 20 30") == "ok"
    assert client.request("vget /camera/0/rotation") == "10.000 20.000 30.000"
    assert client.request("vset /camera/0/fov 60") == "ok"
    assert client.request("vget /camera/0/fov") == "60.000000"
    assert client.request("vget /camera/0/size") == f"{SIDE} {SIDE}"
    assert client.request("vget /level/name") == client.request("vget /scene/name") == "Meadow"
    assert client.request("vget /object/A/uclass_name") == "Duck"
    assert client.request("vset /object/A/destroy") == "ok"
    assert client.request("vget /objects") == "Ground Trunks Trees Flowers Duck_0"
    lines = client.request("vget /unrealcv/help").split("\n")
    helps = dict(zip(lines[0::2], lines[1::2], strict=True))
    assert helps["vget /unrealcv/version"] == "Get the version of the commands"
    assert "Port: " in client.request("vget /unrealcv/status")


def test_bounds_are_those_of_the_scaled_and_moved_object(client):
    client.request("vset /objects/spawn Duck A")
    before = [float(v) for v in client.request("vget /object/A/bounds").split()]
    client.request(["vset /object/A/scale 2 2 2", "vset /object/A/location 100 0 7"])
    after = [float(v) for v in client.request("vget /object/A/bounds").split()]
    assert np.allclose(after, 2 * np.array(before) + [100, 0, 7, 100, 0, 7], atol=0.03)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("vset /camera/0/location 1e-05 0 0", UNKNOWN.format("vset /camera/0/location 1e-05 0 0")),
        ("vset /camera/0/location 5. 0 0", UNKNOWN.format("vset /camera/0/location 5. 0 0")),
        ("vget /camera/7/lit png", "error Invalid sensor id"),
        ("vget /camera/0/lit jpg", "error Invalid filename type, filename jpg"),
        ("vget /camera/0/depth png", "error Invalid filename type, filename png"),
        ("vget /object/Nobody/location", "error Cannot find object"),
        ("vset /objects/spawn Unicorn", "error Cannot find class Unicorn"),
        ("vset /action/game/level Moon", "error Cannot find level Moon"),
        ("vset /camera/0/size 0 10", "error Argument Invalid"),
        ("vset /camera/0/size 100000 10", "error Argument Invalid"),
        ("vset /camera/0/fov 180", "error Argument Invalid"),
        ("vset /object/Ground/color 256 0 0", "error Argument Invalid"),
        ("vset /object/Ground/destroy", "error Ground is part of the world and cannot be changed"),
        ("vbatch 0", "error Argument Invalid"),
        ("vbp Director SetSun 1 2 3", "error Argument Invalid: SetSun YAW PITCH INTENSITY R G B"),
        ("vbp Director SetSun nan 0 1 1 1 1", "error Argument Invalid: SetSun YAW PITCH INTENSITY R G B"),
        ("vbp Director SetTexture Ground Velvet", "error Cannot find texture Velvet"),
        ("vbp Somebody SetSky 1", "error Cannot find object"),
        ("vbp Ground set_speed 1", "error Ground is part of the world and cannot be changed"),
        ("vset /viewmode x-ray", "error Argument Invalid: x-ray is none of "),
        ("vrun setres 0x10w", "error Argument Invalid"),
        ("vset /camera/0/pose 1 2 3 4 5", UNKNOWN.format("vset /camera/0/pose 1 2 3 4 5")),
        ("vset /camera/9/pose 1 2 3 4 5 6", "error Invalid sensor id"),
        (f"vget /camera/0/lit {'a' * 300}.png", "error 'aaa"),
        ("vget /camera/0/lit a\0.png", "error 'a\\x00.png' cannot be written"),
        ("vget /camera/0/lit /etc/escape.png", "error Saving outside"),
        ("vget /camera/0/lit ../../escape.png", "error Saving outside"),
    ],
)
def test_errors_are_said_and_survived(client, command, reply):
    answer = client.request(command)
    assert answer == reply or (answer.startswith(reply) and reply not in ("error", "ok"))
    assert client.request("vget /unrealcv/echo on") == "on"


def test_pictures(client):
    client.request("vset /objects/spawn Duck A")
    lit, mask, normal = client.request([f"vget /camera/0/{kind} png" for kind in ("lit", "object_mask", "normal")])
    for data in (lit, mask, normal):
        assert picture(data).shape == (SIDE, SIDE, 4)
        assert picture(data).dtype == np.uint8
        assert (picture(data)[..., 3] == 255).all()
    assert picture(lit)[..., :3].std() > 10
    bmp = client.request("vget /camera/0/lit bmp")
    assert struct.unpack_from("<ii", bmp, 18) == (SIDE, -SIDE)
    assert len(bmp) == 54 + 4 * SIDE * SIDE
    rows = np.frombuffer(bmp, np.uint8, offset=54).reshape(SIDE, SIDE, 4)
    assert np.array_equal(rows[..., [2, 1, 0, 3]], picture(lit))
    depth = client.request("vget /camera/0/depth npy")
    assert depth[:8] == b"\x93NUMPY\x01\x00"
    values = np.load(io.BytesIO(depth))
    assert values.dtype == np.dtype("<f4")
    assert values.shape == (SIDE, SIDE)
    assert np.isfinite(values).all()
    sky = (picture(mask)[..., :3] == 0).all(axis=-1)
    assert sky.any()
    assert np.array_equal(sky, values == 65504)


def test_mask_colours_are_exactly_those_of_the_objects(client):
    client.request("vset /objects/spawn Duck A")
    names = client.request("vget /objects").split()
    table = {name: color(client.request(f"vget /object/{name}/color")) for name in names}
    assert len(set(table.values())) == len(names)
    mask = picture(client.request("vget /camera/0/object_mask png"))[..., :3]
    seen = {tuple(int(v) for v in c) for c in np.unique(mask.reshape(-1, 3), axis=0)}
    assert {table["A"], table["Ground"]} <= seen <= {*table.values(), (0, 0, 0)}
    client.request("vset /object/A/color 17 200 33")
    again = picture(client.request("vget /camera/0/object_mask png"))[..., :3]
    assert np.array_equal((again == (17, 200, 33)).all(-1), (mask == table["A"]).all(-1))


def test_moving_and_hiding_an_object_moves_its_mask(client):
    client.request("vset /objects/spawn Duck A")
    own = color(client.request("vget /object/A/color"))

    def column() -> float:
        mask = picture(client.request("vget /camera/0/object_mask png"))[..., :3]
        found = (mask == own).all(-1)
        return float(np.argwhere(found)[:, 1].mean()) if found.any() else np.nan

    middle = column()
    client.request("vset /object/A/location 0 40 0")  # the camera looks along -X, so +Y is to its left
    assert column() < middle - 3
    client.request("vset /object/A/hide")
    assert np.isnan(column())
    client.request(["vset /object/A/show", "vset /object/A/location 0 0 0"])
    assert column() == middle


def test_texture_and_light_change_the_picture_and_nothing_else(client):
    client.request("vset /objects/spawn Duck A")
    captures = ["vget /camera/0/lit png", "vget /camera/0/object_mask png", "vget /camera/0/depth npy"]
    before = client.request(captures)
    for change, undo in (
        ("SetTexture A Stone", "SetTexture A Default"),
        ("SetSky 0.2", "SetSky 1"),
    ):
        client.request(f"vbp Director {change}")
        after = client.request(captures)
        assert after[0] != before[0]
        assert after[1:] == before[1:]
        client.request(f"vbp Director {undo}")
        assert client.request(captures) == before
    client.request("vbp Director SetSun 200 -60 3 1 0.2 0.1")
    assert client.request(captures)[0] != before[0]


def test_a_level_starts_empty_with_its_own_light(client):
    captures = ["vget /camera/0/lit png", "vget /camera/0/object_mask png"]
    before = client.request(captures)
    client.request(["vset /objects/spawn Duck A", "vbp Director SetSun 0 -90 1 1 1 1", "vbp Director SetSky 3"])
    assert client.request(captures) != before
    client.request("vset /action/game/level Meadow")
    assert client.request(captures) == before


def test_batches_are_answered_in_order(client):
    commands = [f"vget /unrealcv/echo {k}" for k in range(200)]
    assert client.request(commands) == [str(k) for k in range(200)]
    replies = client.request(["vbatch 3", "vset /camera/0/location 1 2 3", "vget /camera/0/location", "vget /nothing"])
    assert replies == ["ok", "ok", "1.000 2.000 3.000", UNKNOWN.format("vget /nothing")]


def test_same_commands_give_the_same_bytes_in_another_process_and_order(client, tmp_path):
    setting = [
        "vset /action/game/level Meadow",
        f"vset /camera/0/size {SIDE} {SIDE}",
        "vset /camera/0/location 250 0 90",
        "vset /camera/0/rotation -12 180 0",
        "vset /objects/spawn Duck A",
        "vset /object/A/rotation 0 33 0",
        "vbp Director SetTexture A Grass",
    ]
    captures = [f"vget /camera/0/{c}" for c in ("lit png", "object_mask png", "normal png", "depth npy")]
    client.request(["vset /objects/spawn Fox B", "vget /camera/0/depth npy"])  # what was before must not matter
    client.request(setting)
    first = client.request(captures)
    assert client.request(captures) == first
    with start_server() as other, connected(other) as stranger:
        stranger.request(setting)
        assert stranger.request(list(reversed(captures))) == list(reversed(first))


def wall(path: Path) -> str:
    """A square in the plane x = 0 of Unreal's axes (z = 0 of the file's)."""
    path.write_text("v -1 0 0\nv 1 0 0\nv 1 2 0\nv -1 2 0\nf 1 2 3\nf 1 3 4\n")
    return str(path)


def test_depth_is_planar_and_in_centimetres(client, tmp_path):
    reply = json.loads(client.request(f"vbp Director AddMesh Wall {wall(tmp_path / 'wall.obj')}"))
    assert reply == {"name": "Wall", "vertices": 4, "triangles": 2}
    client.request(["vset /objects/spawn Wall W", "vset /object/W/location 17 0 0"])
    client.request(["vset /camera/0/location 217 0 60", "vset /camera/0/rotation 0 180 0", "vset /camera/0/fov 90"])
    own = color(client.request("vget /object/W/color"))
    inside = (picture(client.request("vget /camera/0/object_mask png"))[..., :3] == own).all(-1)
    depth = np.load(io.BytesIO(client.request("vget /camera/0/depth npy")))
    assert np.allclose(depth[inside], 200, atol=1e-3)
    # 120 cm at 200 cm and 90 degrees: 0.3 of the picture's width on each side of its middle
    assert inside.sum() == pytest.approx((0.3 * SIDE) ** 2, rel=0.15)
    normal = picture(client.request("vget /camera/0/normal png"))[..., :3]
    assert np.abs(normal[inside].astype(int) - (255, 128, 128)).max() <= 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.glb", b""),
        ("noise.glb", bytes(range(256)) * 8),
        ("cut.glb", b"glTF\x02\x00\x00\x00\xff\xff\xff\xff\x10\x00\x00\x00JSON{}"),
        ("no_faces.obj", b"v 0 0 0\nv 1 0 0\n"),
        ("wrong_index.obj", b"v 0 0 0\nv 1 0 0\nf 1 2 9\n"),
        ("nan.obj", b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"),
        ("flat.ply", b"ply\nformat ascii 1.0\nelement vertex 3\n"),
        ("mesh.stl", b"solid"),
    ],
)
def test_a_broken_mesh_is_an_error_and_the_server_lives(client, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert client.request(f"vbp Director AddMesh Own {path}").startswith("error AddMesh Own: ")
    assert client.request(f"vbp Director AddMesh Own {tmp_path / 'missing.glb'}").startswith("error AddMesh Own: ")
    assert client.request("vget /unrealcv/echo alive") == "alive"


def test_the_director_knows_the_assets(client):
    assets = json.loads(client.request("vbp Director Assets"))
    assert set(assets) == {"worlds", "objects", "textures", "lights"}
    assert len(assets["objects"]) >= 12
    assert len(assets["worlds"]) >= 8
    assert {"Default", "Sky", "Grass", "Asphalt", "Blue", "Red", "Stone"} < set(assets["textures"])


def test_saving_on_the_server_stays_in_its_folder(client):
    path = Path(client.request("vget /camera/0/lit deep/name.png"))
    assert picture(path.read_bytes()).shape == (SIDE, SIDE, 4)
    assert path.parts[-2:] == ("deep", "name.png")


def test_the_version_is_numbers_with_points_between(client):
    version = client.request("vget /unrealcv/version")
    assert tuple(int(part) for part in version.lstrip("v").split(".")) >= (1, 1, 0)


def test_pictures_are_saved_beside_the_configuration_that_the_status_names(client, server):
    folder = os.path.dirname(re.search(r"Config file: (.+?)\n", client.request("vget /unrealcv/status"))[1])
    for command in ("lit test.png", "object_mask mask.png", "normal normal.bmp", "depth depth.npy"):
        name = client.request(f"vget /camera/0/{command}")
        assert os.path.join(folder, command.split()[1]) == os.path.join(folder, name)
        assert os.path.getsize(os.path.join(folder, name)) > 100


def test_a_link_does_not_lead_out_of_the_folder_for_pictures(client, tmp_path):
    folder = Path(client.request("vget /camera/0/lit a.png")).parent
    (folder / "link").symlink_to(tmp_path)
    assert client.request("vget /camera/0/lit link/a.png").startswith("error Saving outside")
    (folder / "taken.png").mkdir()
    assert client.request("vget /camera/0/lit taken.png").startswith("error 'taken.png' cannot be written")
    assert not list(tmp_path.iterdir())


def test_a_picture_without_a_name_gets_one(client):
    names = [client.request("vget /camera/0/lit") for _ in range(2)]
    assert names[0] < names[1]
    assert picture(Path(names[1]).read_bytes()).shape == (SIDE, SIDE, 4)


def test_without_a_folder_nothing_is_saved():
    with start_server() as running, connected(running) as client:
        client.request("vset /camera/0/size 16 16")
        assert client.request("vget /camera/0/lit a.png").startswith("error Saving on the server is off")
        assert picture(client.request("vget /camera/0/lit")).shape == (16, 16, 4)


def test_a_pose_is_place_and_rotation_in_one(client):
    assert client.request("vset /camera/0/pose 1 2 3 10 20 30") == "ok"
    assert client.request("vget /camera/0/location") == "1.000 2.000 3.000"
    assert client.request("vget /camera/0/rotation") == "10.000 20.000 30.000"
    assert client.request("vget /camera/0/pose") == "1.000 2.000 3.000 10.000 20.000 30.000"


def test_cameras_are_spawned_and_see_for_themselves():
    with start_server() as running, connected(running) as client:
        client.request(["vset /camera/0/size 24 24", "vset /camera/0/pose 250 0 90 -12 180 0"])
        assert client.request("vset /cameras/spawn") == "Camera_1"
        assert client.request("vset /cameras/spawn") == "Camera_2"
        assert client.request("vget /cameras").split() == ["Camera_0", "Camera_1", "Camera_2"]
        first, second = client.request(["vget /camera/0/lit png", "vget /camera/1/lit png"])
        assert first == second
        client.request("vset /camera/1/rotation -12 0 0")
        assert client.request("vget /camera/1/lit png") != client.request("vget /camera/0/lit png") == first
        for _ in range(61):
            client.request("vset /cameras/spawn")
        assert client.request("vset /cameras/spawn") == "error There are 64 cameras, more is not possible"


def test_two_eyes_stay_beside_each_other():
    with start_server() as running, connected(running) as client:
        for distance, rotation in ((20, "0 0 0"), (60, "10 45 30"), (60, "-80 170 5")):
            assert client.request(f"vset /action/eyes_distance {distance}") == "ok"
            client.request(f"vset /camera/0/rotation {rotation}")
            replies = client.request(["vget /camera/0/location", "vget /camera/1/location", "vget /actor/location"])
            left, right, player = (np.array(reply.split(), float) for reply in replies)
            assert np.linalg.norm(left - right) == pytest.approx(distance, abs=0.01)
            assert (left == player).all()


@pytest.mark.parametrize(
    ("command", "size"),
    [("setres 64x32w", "64 32"), ("r.SetRes 32x64f", "32 64"), ("sg.ShadowQuality 0", None), ("slomo 1", None)],
)
def test_console_commands_of_public_clients(client, command, size):
    assert client.request(f"vrun {command}") == "ok"
    assert client.request("vget /camera/0/size") == (size or f"{SIDE} {SIDE}")


def test_functions_of_pawns_as_public_clients_call_them(client):
    client.request(["vset /objects/spawn Duck Player", "vset /object/Player/location 10 20 0"])
    assert client.request("vbp Player set_phy 0") == "{}"
    assert client.request("vbp Player EnableController True") == "{}"
    client.request("vbp Player set_speed 30")
    assert json.loads(client.request("vbp Player get_speed")) == {"speed": "30.0"}
    assert client.request("vbp Player set_move 90 50") == "{}"
    assert client.request("vget /object/Player/location") == "10.000 70.000 0.000"
    assert client.request("vget /object/Player/rotation") == "0.000 90.000 0.000"
    assert client.request("vbp Player fly") == (
        "error Player has no function fly; it has get_speed, set_speed, set_move, set_phy, set_acceleration, "
        "EnableController"
    )
    for arguments in ("", "1", "1 2 3", "nan 1", "one two", "1 1e9"):
        assert client.request(f"vbp Player set_move {arguments}".strip()).startswith("error Argument Invalid")


@pytest.mark.parametrize("mode", ["lit", "depth", "object_mask", "normal"])
def test_view_modes_are_accepted(client, mode):
    assert client.request(f"vset /viewmode {mode}") == "ok"


def test_every_listed_object_has_a_colour(client):
    for name in client.request("vget /objects").split(" "):
        color(client.request(f"vget /object/{name}/color"))


def test_the_command_serves_with_a_folder_for_pictures(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    words = [sys.executable, "-m", "granary", "unreal", "serve", "--port", "0", "--save-to", str(taken)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "is no folder that can be made" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_client_is_refused_at_once(server):
    with connected(server) as client:
        second = Client((server.host, server.port))
        start = time.monotonic()
        assert second.connect() is False
        assert time.monotonic() - start < 5
        with socket.create_connection((server.host, server.port), timeout=5) as third:
            assert read_frame(third).startswith(b"refused")
            assert third.recv(1) == b""
        assert client.request("vget /unrealcv/echo first") == "first"


def test_clients_come_and_go(server):
    for unix in (False, True, False, False, True):
        with connected(server, unix) as client:
            assert client.request("vget /unrealcv/echo x") == "x"


def test_a_client_that_left_with_work_pending_is_followed_by_the_next(server):
    with socket.create_connection((server.host, server.port)) as rude:
        read_frame(rude)
        rude.sendall(frame(b"0:vset /camera/0/size 200 200") + 30 * frame(b"1:vget /camera/0/lit png"))
    with connected(server) as client:
        assert client.request("vget /unrealcv/echo next") == "next"


def test_servers_listen_on_loopback_only(server):
    connections = Path("/proc/net/tcp")
    if not connections.exists():
        pytest.skip("no /proc")
    listening = [line.split()[1] for line in connections.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    own = [address for address in listening if int(address.split(":")[1], 16) == server.port]
    assert own == [f"0100007F:{server.port:04X}"]
    assert os.stat(server.socket_path).st_mode & 0o077 == 0


def test_a_port_in_use_is_a_user_error(server):
    with pytest.raises(UserError, match=f"port: {server.port} cannot be used"):
        Server(None, server.port)
    with pytest.raises(ServerDied, match="status 2: port"):
        start_server(server.port)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_ends_the_server_instead_of_leaving_it_deaf():
    class Defective:
        def answer(self, command: str) -> bytes:
            raise ZeroDivisionError

    server = Server(Defective(), 0)
    running = threading.Thread(target=server.run)
    running.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        read_frame(connection)
        connection.sendall(frame(b"0:vget /objects"))
        assert ended(connection)
    running.join(10)
    assert not running.is_alive()


def test_sigterm_stops_cleanly_and_death_is_noticed():
    with start_server(unix=True) as running:
        path = unix_path(running.port)
        assert path.exists()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        assert not path.exists()
        with pytest.raises(ServerDied, match="ended with status 0"):
            running.check()


def test_a_server_dies_with_its_parent():
    code = (
        "import os, time\nfrom granary.synth.pug.world import start_server\n"
        "server = start_server()\nprint(server.process.pid, flush=True)\nos._exit(9)"
    )
    root = ROOT
    parent = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    child = int(parent.stdout)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists() and not _zombie(child):
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists() or _zombie(child)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
