"""The renderer: apply a scene to an UnrealCV server and capture it, so that no picture is ever of another scene.

What guards a frame: echoes of fresh nonces around every bundle of requests; the world, the objects and every pose read
back in the bundle that captures; mask colours that are new for every attempt, so that an old mask has none of them; and
for servers that render behind the game thread, pictures captured until two agree. A connection that failed is closed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from granary.synth.pug.plan.scenes import Actor, SceneSpec
from granary.synth.pug.recipe import RendererOptions
from granary.synth.pug.renderer.changes import changes_for
from granary.synth.pug.renderer.connection import (
    Connection,
    ConnectionLost,
    ErrorReply,
    RenderError,
    TimedOut,
    WrongReply,
)
from granary.synth.pug.renderer.frames import (
    COMMANDS,
    Colour,
    Frame,
    InvalidFrame,
    NotDecodable,
    Unsettled,
    WrongPose,
    depth_of,
    difference,
    indexed_mask,
    picture_of,
    png,
)
from granary.synth.pug.renderer.probes import OURS, Probe, colour_of, mask_colours, near, numbers, probes_of

BACKGROUND: Colour = (0, 0, 0)
AWAY = 1e5  # cm upwards, where a character is out of sight and still in the world
POLL = 0.05  # seconds between two looks at a loading level


Assets = dict[str, Collection[str]]  # names of worlds, objects, textures, lights; nothing of kinds that are not told


class Description(NamedTuple):
    """What a server says of itself.

    Args:
        version: of its commands, and of what is known of it beside.
        assets: the names that it can show, by kind.
    """

    version: str
    assets: Assets


class ServerHandle(Protocol):
    """A place where an UnrealCV server is, or can be started. `about`: what is known of it that it does not say."""

    about: str

    def connect(self, timeout: float) -> Connection:
        """Return a new connection, starting the server when it does not run; raises ConnectionLost."""

    def close(self) -> None:
        """Stop what was started."""


class UnrealCVRenderer:
    """A renderer that talks to one UnrealCV server, ours or any other.

    Args:
        server: where it is.
        options: timeouts, director and the guard against stale frames.
        modes: of `frames.MODES`; lit and mask always.
        meshes: the user's own meshes: names and paths that the server can read.
    """

    def __init__(
        self, server: ServerHandle, options: RendererOptions, modes: Sequence[str], meshes: Mapping[str, str]
    ) -> None:
        self.server, self.options, self.modes, self.meshes = server, options, tuple(modes), dict(meshes)
        enabled = options.settle.enabled
        self.settles = options.kind == "unrealcv" if enabled is None else enabled
        # The embedded world is on this machine: there packing a picture costs more than sending it as it is.
        self.captures = {mode: _plain(text) if options.kind == "embedded" else text for mode, text in COMMANDS.items()}
        self.connection: Connection | None = None
        self.previous: tuple[SceneSpec, bytes] | None = None
        self.batches = False
        self._forget()

    def _forget(self) -> None:
        self.world: str | None = None
        self.objects: list[str] = []
        self.others: set[Colour] = set()
        self.applied: SceneSpec | None = None

    def render(self, scene: SceneSpec, salt: str) -> Frame:
        """Apply a scene and return its frame.

        Args:
            scene: what to show.
            salt: new for every attempt; decides the colours of the mask.

        Raises:
            RenderError: with `lost` where the connection was closed for it.
        """
        self.reach()
        with self._forgetting():
            self._enter(scene)
            colours = mask_colours(scene.actors, salt, self.others)
            probes = probes_of(scene, colours)
            changes = changes_for(scene, colours, self.options.director)
            frame = self._settled(scene, changes, probes, colours) if self.settles else None
            frame = frame or self._capture(scene, changes, probes, colours)
        self.previous = (scene, frame.lit.tobytes())
        return frame

    def without(self, scene: SceneSpec, actor: Actor) -> Iterator[NDArray[np.uint8]]:
        """Give pictures of the scene just rendered without one of its characters, which is moved far up.

        Args:
            scene: what was rendered last.
            actor: the character to leave out.

        Yields:
            (h, w, 3) uint8, as many as a server may take to show a change.

        Raises:
            RenderError: as `render`.
        """
        x, y, z = actor.location
        path, away = f"/object/{actor.name}/location", (x, y, z + AWAY)
        places = [f"vset /object/{other.name}/location {numbers(*other.location)}" for other in scene.actors]
        moves = [*places, f"vset {path} {numbers(*away)}"]
        self.applied = None  # the next render finds a view that is not of its scene
        for _ in range(self.options.settle.attempts if self.settles else 1):
            with self._forgetting():
                *_, place, lit = self._require([*moves, f"vget {path}", self.captures["lit"]])
                if wrong := near("location", away)(_text(place)):
                    raise WrongPose(f"{actor.name} was moved away and reads back {wrong}")
                picture = picture_of(lit, scene.width, scene.height)
            yield picture
            moves = []

    @contextlib.contextmanager
    def _forgetting(self) -> Iterator[None]:
        """After an error, know nothing of the server's state; after the worst kind, close the connection too."""
        try:
            yield
        except ConnectionLost:
            self.drop()
            raise
        except ErrorReply:
            self._forget()
            raise

    def reach(self) -> None:
        """Connect and greet, where that is not done; raises RenderError."""
        try:
            self._connect()
        except RenderError:
            self.drop()
            raise

    def describe(self) -> Description:
        """Return the server's version and the assets it says it has."""
        self.reach()
        return Description(self.version, self.assets)

    def drop(self) -> None:
        """Throw the connection away: what comes over it now would answer something else."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None
        self._forget()

    def close(self) -> None:
        """Disconnect, and stop the server if it was started for us."""
        self.drop()
        self.server.close()

    # -- conversation ------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self.connection is not None:
            return
        self._nonces = (f"{secrets.token_hex(4)}-{number}" for number in itertools.count())
        self.connection, self.batches = self.server.connect(self.options.timeout), False
        version, commands = self._ask(["vget /unrealcv/version", "vget /unrealcv/commands"])
        self.version = " ".join([_text(version), self.server.about]).strip()
        self.batches = b"vbatch" in commands if not _failed(commands) else self._offers_batches()
        self.assets = self._assets()
        for name, path in self.meshes.items():  # even if it is there: perhaps from another file
            self._require([f"vbp {self.options.director} AddMesh {name} {path}"])
        if self.meshes:
            self.assets = self._assets()

    def _offers_batches(self) -> bool:
        return not _failed(self._ask(["vbatch 1", "vget /unrealcv/status"])[0])

    def _assets(self) -> Assets:
        """Return the director's lists; {} where there is no director."""
        reply = self._ask([f"vbp {self.options.director} Assets"])[0]
        try:
            assets = json.loads(reply)
            if isinstance(assets, dict) and "worlds" not in assets and len(assets) == 1:
                assets = json.loads(next(iter(assets.values())))  # an out-parameter that holds the text
        except (ValueError, TypeError):
            return {}
        return assets if isinstance(assets, dict) else {}

    def _ask(self, commands: Sequence[str]) -> list[bytes]:
        """Send commands between two echoes, in one tick where the server can; returns their replies."""
        assert self.connection is not None
        before, after = next(self._nonces), next(self._nonces)
        bundle = [f"vget /unrealcv/echo {before}", *commands, f"vget /unrealcv/echo {after}"]
        if self.batches:
            bundle = [f"vbatch {len(bundle)}", *bundle]
        replies = self.connection.exchange(bundle, self.options.timeout)
        if self.batches and _failed(replies.pop(0)):
            raise WrongReply("the server refused a batch that it offers")
        for nonce, reply in ((before, replies[0]), (after, replies[-1])):
            if reply.decode("utf-8", "replace").strip() != nonce:
                raise WrongReply(f"the echo of {nonce} came back as {reply[:40]!r}")
        return replies[1:-1]

    def _require(self, commands: Sequence[str]) -> list[bytes]:
        """Send commands of which none may fail; raises ErrorReply."""
        replies = self._ask(commands)
        for command, reply in zip(commands, replies, strict=True):
            if _failed(reply):
                raise ErrorReply(f"{command!r} was answered: {_text(reply)[:200]}")
        return replies

    # -- the world ---------------------------------------------------------------------------------------------------

    def _enter(self, scene: SceneSpec) -> None:
        """Load the world and put exactly the scene's characters into it."""
        if scene.world != self.world:
            self._load(scene.world)
        names = [actor.name for actor in scene.actors]
        surplus = [name for name in self.objects if name.startswith(OURS) and name not in names]
        missing = [actor for actor in scene.actors if actor.name not in self.objects]
        if surplus or missing:
            self._require(
                [f"vset /object/{name}/destroy" for name in surplus]
                + [f"vset /objects/spawn {actor.asset} {actor.name}" for actor in missing]
            )
            self.objects = _text(self._require(["vget /objects"])[0]).split()
            self._check_objects(names)

    def _load(self, world: str) -> None:
        self._forget()
        deadline = time.monotonic() + self.options.timeout
        if world:  # even if it is there: light and textures of whoever came before go with it
            self._require([f"vset /action/game/level {world}"])
            while _text(self._require(["vget /level/name"])[0]) != world:
                if time.monotonic() > deadline:
                    raise TimedOut(f"the level {world} was not loaded in time")
                time.sleep(POLL)
        self.objects = _text(self._require(["vget /objects"])[0]).split()
        theirs = [name for name in self.objects if not name.startswith(OURS)]
        replies = self._ask([f"vget /object/{name}/color" for name in theirs]) if theirs else []
        self.others = {BACKGROUND, *filter(None, map(colour_of, map(_text, replies)))}
        self.world = world

    def _check_objects(self, names: Sequence[str]) -> None:
        present = sorted(name for name in self.objects if name.startswith(OURS))
        if present != sorted(names):
            raise ErrorReply(f"the characters {', '.join(names) or 'none'} were asked for, there are {present}")

    # -- capture -----------------------------------------------------------------------------------------------------

    def _capture(
        self, scene: SceneSpec, changes: Sequence[str], probes: Sequence[Probe], colours: Mapping[int, Colour]
    ) -> Frame:
        """Send the changes, capture, and read everything back, in one bundle."""
        captures = [self.captures[mode] for mode in self.modes]
        replies = self._require([*changes, *captures, *(command for command, _ in probes)])[len(changes) :]
        for (command, judge), reply in zip(probes, replies[len(captures) :], strict=True):
            if wrong := judge(_text(reply)):
                self._forget()
                raise WrongPose(f"{command!r} reads back {wrong}", replies[0])
        data = dict(zip(self.modes, replies, strict=False))
        size = (scene.width, scene.height)
        lit = picture_of(data["lit"], *size)
        try:
            mask = indexed_mask(picture_of(data["mask"], *size), colours, self.others)
        except InvalidFrame as error:
            error.picture = error.picture or png(lit)
            raise
        return Frame(
            lit,
            mask,
            depth_of(data["depth"], *size) if "depth" in data else None,
            picture_of(data["normals"], *size) if "normals" in data else None,
        )

    def _settled(
        self, scene: SceneSpec, changes: Sequence[str], probes: Sequence[Probe], colours: Mapping[int, Colour]
    ) -> Frame:
        """Capture until two frames in succession agree and are not the picture of the scene before."""
        options, last = self.options.settle, None
        trouble: InvalidFrame = Unsettled(f"no two of {options.attempts} pictures agreed")
        resize = f"vset /camera/0/size {scene.width} {scene.height}"
        before = self._require([resize, self.captures["lit"], *changes, *[self.captures["lit"]] * options.discard])[1]
        stale = self._stale_pictures(scene, before)
        self.applied = scene
        for _ in range(options.attempts):
            try:
                frame = self._capture(scene, [], probes, colours)
            except WrongPose:
                raise
            except InvalidFrame as error:  # perhaps a mask of the scene before
                trouble, last = error, None
                continue
            if frame.lit.tobytes() in stale:
                trouble = Unsettled("the picture stays that of the scene before", png(frame.lit))
            elif last is not None and difference(last, frame) <= options.bound:
                return frame
            last = frame
        raise trouble

    def _stale_pictures(self, scene: SceneSpec, before: bytes) -> set[bytes]:
        """Return what the picture must not be: what was there before the changes, unless it showed this very scene."""
        stale = {self.previous[1]} if self.previous is not None and self.previous[0] != scene else set()
        if self.applied != scene and (scene.actors or self.applied is not None):
            with contextlib.suppress(NotDecodable):  # of another size
                stale.add(picture_of(before, scene.width, scene.height).tobytes())
        return stale


def _plain(command: str) -> str:
    return command.replace(" png", " bmp")


def _failed(reply: bytes) -> bool:
    return reply[:5].lower() == b"error"


def _text(reply: bytes) -> str:
    return reply.decode("utf-8", "replace").strip()
