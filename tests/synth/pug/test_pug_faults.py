"""Servers that go wrong: every stored picture is of its row, every row without one is a dead letter, the run ends."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from rendering import recipe_of, render
from unreal_stand_in import StandIn

from granary.curation.errors import UserError
from granary.curation.ports import free_port
from granary.curation.runs.run import UnitError
from granary.synth.pug.planning import planned
from granary.synth.pug.renderer import pools, servers
from granary.synth.pug.renderer.connection import (
    BadFrame,
    Closed,
    NoGreeting,
    SocketConnection,
    TimedOut,
    Unreachable,
    WrongReply,
)
from granary.synth.pug.renderer.frames import apart
from granary.synth.pug.world import start_server

SETTLE = {"enabled": True, "discard": 1, "attempts": 8}
HARMLESS = (
    "bytes",
    "delay",
    "restart",
    "close_mid_image",
    "wrong_id",
    "huge",
    "bad_magic",
    "shifted",
    "empty",
    "error",
)


@pytest.fixture(params=["package", "socket"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The client of the `unrealcv` package, and ours, through the same faults."""
    if request.param == "socket":
        monkeypatch.setattr(servers, "open_connection", lambda at, timeout, package: SocketConnection(at, timeout))
    return str(request.param)


@pytest.mark.parametrize("fault", HARMLESS)
def test_faults_of_the_wire_lose_no_row(fault: str, client: str, tmp_path: Path) -> None:
    with StandIn([fault], every=9) as server:
        result = render(recipe_of(server), tmp_path)
    result.check()
    assert not result.lost
    assert fault == "bytes" or fault in server.happened


@pytest.mark.parametrize("fault", ["blank", "not_png", "wrong_size", "wrong_pose", "blended_mask"])
def test_faulty_pictures_are_asked_for_again(fault: str, tmp_path: Path) -> None:
    with StandIn([fault]) as server:
        result = render(recipe_of(server), tmp_path)
    result.check()
    assert not result.lost
    assert fault in server.happened


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        *(("blank", "Blank"), ("error", "ErrorReply"), ("not_png", "NotDecodable"), ("wrong_pose", "WrongPose")),
        *(("wrong_id", "WrongReply"), ("close_mid_image", "Closed"), ("blended_mask", "UnknownColour")),
    ],
)
def test_faults_that_last_go_to_the_dead_letter(fault: str, error: str, tmp_path: Path) -> None:
    with StandIn([fault], every=1) as server:
        recipe = recipe_of(server, renderer={"retries": 1, "give_up": 1000, "backoff": 0.0})
        result = render(recipe, tmp_path)
    result.check()
    assert result.counters == {error: 32}
    uri, _, message = next(lost for lost in result.lost if lost[1] == error)
    row = next(result.work.row(i) for i in range(32) if result.work.row(i).id == uri)
    assert all(str(value) in message for value in row.values.values())
    assert (tmp_path / "quarantine" / f"{uri}.png").exists() == (error in ("Blank", "WrongPose", "UnknownColour"))


def test_depth_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with StandIn(["infinite_depth"], every=1) as server:
        recipe = recipe_of(server, outputs={"depth": True}, renderer={"retries": 0})
        result = render(recipe, tmp_path)
    result.check()
    assert result.counters == {"NotFinite": 32}


@pytest.mark.parametrize("faults", [["stale"], ["stale_mask"], ["stale", "stale_mask"]])
def test_stale_pictures_are_waited_out(faults: list[str], client: str, tmp_path: Path) -> None:
    with StandIn(faults, lag=3) as server:
        result = render(recipe_of(server, renderer={"settle": SETTLE, "timeout": 5.0}), tmp_path)
    result.check()
    assert not result.lost


def test_pictures_that_stay_stale_are_not_stored(tmp_path: Path) -> None:
    with StandIn(["stale"], lag=10**6) as server:
        recipe = recipe_of(server, renderer={"settle": {**SETTLE, "attempts": 3}, "retries": 0, "timeout": 5.0})
        result = render(recipe, tmp_path)
    # The first picture has nothing before it to be compared with: the mask and the pose alone speak for it.
    kept = [sample["row_id"] for sample in result.samples]
    assert len(kept) <= 1
    assert result.counters["Unsettled"] >= 31


def test_a_mask_of_another_row_is_never_taken(tmp_path: Path) -> None:
    with StandIn(["stale_mask"], lag=10**6) as server:
        result = render(recipe_of(server, renderer={"retries": 1, "give_up": 1000}), tmp_path)
    result.check()
    assert result.counters == {"UnknownColour": 32}


class Hiding(StandIn):
    """Paints no dogs, or no second character, while the mask has them."""

    hides: Callable[[int, dict[str, Any]], bool]

    def shown(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        return [thing for place, thing in enumerate(super().shown(state)) if not type(self).hides(place, thing)]


class HidingDogs(Hiding):
    hides = staticmethod(lambda place, thing: thing["kind"] == "Dog")


class HidingTheSecond(Hiding):
    hides = staticmethod(lambda place, thing: place == 1)


class HidingOnce(Hiding):
    """Every ninth picture is that of the empty scene."""

    def shown(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        return [] if self.pictures % 9 == 0 else StandIn.shown(self, state)


@pytest.mark.parametrize("settle", [{"enabled": False}, SETTLE])
def test_a_picture_without_its_object_is_not_stored(settle: dict[str, Any], tmp_path: Path) -> None:
    with HidingDogs() as server:
        result = render(recipe_of(server, renderer={"retries": 1, "settle": settle}), tmp_path)
    result.check()
    assert {sample["character_name"] for sample in result.samples} == {"Cat"}
    assert result.counters == {"NotShown": 16}
    assert "192 pixels in the mask, and without it they change by less than 2 of 255" in result.lost[0][2]
    assert (tmp_path / "quarantine" / f"{result.lost[0][0]}.png").exists()


def test_a_second_character_that_is_not_shown_is_seen_beside_the_first(tmp_path: Path) -> None:
    factors = {"world_name": ["Meadow"], "character_name": ["Cat"], "character2_name": ["Cat", "Dog"]}
    with HidingTheSecond() as server:
        result = render(recipe_of(server, factors=factors, renderer={"retries": 0}), tmp_path / "hidden")
        assert result.counters == {"NotShown": 2}
        unchecked = recipe_of(server, factors=factors, checks={"twice": 0.0, "shown": 0.0})
        assert len(render(unchecked, tmp_path / "unchecked").samples) == 2
    with StandIn() as server:
        assert len(render(recipe_of(server, factors=factors), tmp_path / "shown").samples) == 2


def test_an_empty_scene_now_and_then_is_asked_for_again(tmp_path: Path) -> None:
    with HidingOnce() as server:
        result = render(recipe_of(server), tmp_path)
    result.check()
    assert not result.lost


@pytest.mark.parametrize("faults", [["stale"], ["stale", "stale_mask"]])
def test_a_late_picture_is_not_taken_for_the_view_without_the_object(faults: list[str], tmp_path: Path) -> None:
    with HidingDogs(faults, lag=3) as server:
        result = render(recipe_of(server, renderer={"settle": SETTLE, "timeout": 5.0, "retries": 1}), tmp_path)
    result.check()
    assert {sample["character_name"] for sample in result.samples} == {"Cat"}
    assert len(result.samples) == 16


def test_the_second_client_waits_or_is_told(tmp_path: Path) -> None:
    with StandIn() as server:
        first = SocketConnection(("127.0.0.1", server.port), 1.0)
        with pytest.raises(NoGreeting):
            SocketConnection(("127.0.0.1", server.port), 1.0)
        recipe = recipe_of(server, renderer={"patience": 0.5})
        with pytest.raises(UnitError, match="does not greet"):
            render(recipe, tmp_path)
        first.close()
        result = render(recipe, tmp_path)
    result.check()
    assert len(result.samples) == 32


def test_a_server_that_leaves_tcp_is_found_at_its_unix_socket(client: str, tmp_path: Path) -> None:
    with StandIn(["close_mid_image"], tcp_once=True) as server:
        result = render(recipe_of(server), tmp_path)
    result.check()
    assert not result.lost
    assert server.clients > 1


def test_a_server_without_batches_or_a_list_of_commands_serves(client: str, tmp_path: Path) -> None:
    with StandIn(batches=False) as server:
        result = render(recipe_of(server), tmp_path)
    result.check()
    assert not result.lost
    assert server.commands.count("vbatch 1") == 1
    with StandIn() as server:
        render(recipe_of(server), tmp_path / "batches")
        assert sum(command.startswith("vbatch") for command in server.commands) > 32


def test_a_dead_server_stops_the_run_and_what_was_done_is_kept(tmp_path: Path) -> None:
    with StandIn(dies_at=28) as server:
        recipe = recipe_of(server, renderer={"patience": 0.5})
        with pytest.raises(UnitError, match="no server answered for"):
            render(recipe, tmp_path)
    with StandIn(port=server.port) as server:
        result = render(recipe, tmp_path)
    result.check()
    assert not result.lost
    assert server.pictures == 2 * (32 - 12)  # three pieces of four rows were saved; two pictures a row


def test_a_server_that_greets_and_never_renders_stops_the_run(tmp_path: Path) -> None:
    with StandIn(["close_mid_image"], every=1) as server:
        recipe = recipe_of(server, renderer={"give_up": 3, "backoff": 0.0})
        with pytest.raises(UnitError, match="3 rows in succession lost their connections"):
            render(recipe, tmp_path)
    with StandIn(port=server.port) as server:
        result = render(recipe, tmp_path)
    result.check()
    assert not result.lost


def test_pictures_that_differ_the_second_time_are_quarantined(tmp_path: Path) -> None:
    class Noisy(StandIn):
        def lit(self, state: str) -> bytes:
            seed = len(self.commands)
            pixels = np.random.default_rng(seed).integers(0, 255, (*self.shape, 3), dtype=np.uint8)
            return self.png(pixels)

    with Noisy() as server:
        result = render(recipe_of(server, checks={"twice": 1.0}), tmp_path)
    assert result.counters == {"NotRepeatable": 32}
    assert not result.samples


def test_a_binary_is_launched_and_launched_again(tmp_path: Path) -> None:
    game = tmp_path / "Game"
    script = ROOT / "tests" / "synth" / "unreal_stand_in.py"
    game.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    game.chmod(game.stat().st_mode | stat.S_IXUSR)
    recipe = recipe_of("-", renderer={"addresses": [], "binary": str(game), "timeout": 5.0})
    result = render(recipe, tmp_path / "run")
    result.check()
    assert not result.lost
    options = recipe.renderer.model_copy(update={"start_timeout": 20.0})
    server = servers.LaunchedServer(options)
    server.connect(5.0).close()
    first = server.process
    assert first is not None
    first.kill()
    first.wait()
    server.connect(5.0).close()
    assert server.process is not None
    assert server.process.pid != first.pid
    server.close()
    assert first.poll() is not None


def test_a_binary_that_does_not_serve_is_said(tmp_path: Path) -> None:
    recipe = recipe_of("-", renderer={"addresses": [], "binary": "/bin/false", "patience": 0.2})
    with pytest.raises(UnitError, match="exit status 1"):
        render(recipe, tmp_path)


@pytest.mark.parametrize("faulty", [True, False])
def test_each_trouble_of_the_wire_has_its_own_name(faulty: bool, client: str) -> None:
    """With both clients; without the fault the same words are answered well."""
    for fault, error in (
        *(("delay", TimedOut), ("wrong_id", WrongReply), ("close_mid_image", Closed), ("huge", BadFrame)),
        *(("bad_magic", (BadFrame, Closed)), ("empty", (BadFrame, Closed, WrongReply))),
    ):
        with StandIn([fault] if faulty else [], every=1) as server:
            connection = servers.open_connection(("127.0.0.1", server.port), 1.0, package=True)
            words = ["vget /unrealcv/echo one", "vget /camera/0/lit png", "vget /unrealcv/echo two"]
            if faulty:
                with pytest.raises(error):
                    connection.exchange(words, 0.4)
            else:
                replies = connection.exchange(words, 5.0)
                assert (replies[0], replies[2]) == (b"one", b"two")
                assert replies[1].startswith(b"\x89PNG")
            connection.close()


def test_nobody_at_the_address(client: str) -> None:
    port = free_port()
    with pytest.raises(Unreachable):
        servers.open_connection(("127.0.0.1", port), 1.0, package=True)


def test_a_missing_libgl_is_one_sentence_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLibrary:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "granary.synth.pug.renderer.unreal":
                raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.delitem(sys.modules, "granary.synth.pug.renderer.unreal", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoLibrary(), *sys.meta_path])
    with pytest.raises(UserError, match=r"libGL.so.1.*apt-get install libgl1") as caught:
        servers.check_package()
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_sentence_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoPackage:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "granary.synth.pug.renderer.unreal":
                raise ModuleNotFoundError("No module named 'unrealcv'")

    monkeypatch.delitem(sys.modules, "granary.synth.pug.renderer.unreal", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoPackage(), *sys.meta_path])
    with pytest.raises(UserError, match=r"No module named 'unrealcv'.*pip install 'granary-data\[unreal\]'"):
        servers.check_package()


def test_the_embedded_world_needs_no_unrealcv_package() -> None:
    modules = "granary.pipelines.kinds.render, granary.synth.pug.renderer.servers"
    words = f"import sys, {modules}; print('unrealcv' in sys.modules, 'cv2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_one_server_or_two_give_the_same_bytes_and_each_has_one_worker(tmp_path: Path) -> None:
    with StandIn() as one:
        alone = render(recipe_of(one, checks={"twice": 0.3}), tmp_path / "one", rows=8)
    with StandIn() as one, StandIn() as two:
        recipe = recipe_of(one, two, checks={"twice": 0.3}, renderer={"timeout": 5.0})
        pool = pools.Pool(recipe.renderer, ["lit", "mask"], {})
        held: list[int] = []

        def lease(number: int) -> int:
            with pool.lease() as renderer:
                assert id(renderer) not in held
                held.append(id(renderer))
                time.sleep(0.02)
                held.remove(id(renderer))
                return id(renderer)

        with ThreadPoolExecutor(6) as workers:
            assert len(set(workers.map(lease, range(24)))) == 2
        pool.close()
        both = render(recipe, tmp_path / "two", rows=8)
    both.check()
    assert both.files == alone.files


def test_a_listed_server_is_leased_to_one_process_at_a_time() -> None:
    with StandIn() as server:
        first, second = servers.ListedServer(server.address), servers.ListedServer(server.address)
        assert first.claim()
        assert not second.claim()
        first.close()
        assert second.claim()
        second.close()


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":9000", "host:99999", "host:port"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UserError, match="is no address"):
        servers.endpoint_of(address)


@pytest.mark.parametrize("settle", [{"enabled": False}, SETTLE])
def test_the_embedded_world_is_compared_with_its_own_empty_views(settle: dict[str, Any], tmp_path: Path) -> None:
    """As an UnrealCV server: its pictures change where the characters are, and not where one is hidden."""
    factors = {"world_name": ["Meadow"], "character_name": ["Cat", "Duck"], "character_scale": [0.7, 1.0]}
    with start_server() as server:
        options = {"timeout": 60.0, "settle": settle, "retries": 0}
        recipe = recipe_of(server.address, factors=factors, renderer=options)
        result = render(recipe, tmp_path)
        assert (len(result.samples), result.counters) == (4, {})
        pool = pools.Pool(recipe.renderer, ["lit", "mask"], {})
        scene = planned(recipe).scene(planned(recipe).row(0))
        with pool.lease() as renderer:
            frame = renderer.render(scene, "")
            view = next(renderer.without(scene, scene.actors[0]))
            assert apart(frame.lit, view, frame.mask == 1) > 5
            assert np.abs(frame.lit[:4].astype(int) - view[:4]).max() <= 1  # the sky is as it was
        pool.close()
