"""The answers to UnrealCV's commands: those about the server and the level, and all of them together."""

from __future__ import annotations

import json
import re
from pathlib import Path

from granary.synth.pug.world.commands import camera, objects
from granary.synth.pug.world.commands.blueprint import call
from granary.synth.pug.world.commands.pawn import call_pawn
from granary.synth.pug.world.commands.registry import INVALID, Handler, commands
from granary.synth.pug.world.content.worlds import WORLDS
from granary.synth.pug.world.scene import Scene
from granary.synth.pug.world.session import CommandError, Session

VERSION = "1.1.0.3"  # three numbers of UnrealCV's plugin, whose commands these are; the fourth, of how pictures look
MOST_ARGUMENTS = 10  # of a blueprint function, and of a console command
VIEW_MODES = ("lit", "unlit", "depth", "object_mask", "normal", "wireframe")
SET_RESOLUTION = re.compile(r"(?:r\.)?setres (\d+)x(\d+)[wf]{0,2}", re.IGNORECASE)


class Interpreter:
    """Answers commands by changing a session.

    Args:
        session: the world that they are about.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def answer(self, command: str) -> bytes:
        """Return the body of the reply to a command; those listed last are tried first."""
        for known in reversed(COMMANDS):
            match = known.pattern.fullmatch(command)
            if match:
                try:
                    body = known.handler(self.session, *match.groups())
                except CommandError as error:
                    body = f"error {error}"
                except MemoryError:
                    body = "error Out of memory"
                return body if isinstance(body, bytes) else (body or "ok").encode()
        return f"error No handler found for URI '{command}'. Can not find a handler".encode()


def _status(session: Session) -> str:
    """Get the status of the server"""
    first = session.cameras[0]
    lines = ["Is Listening", "Client Connected", str(session.port), "Configuration"]
    lines += [f"Config file: {Path(session.save_to or '.').resolve() / 'unrealcv.ini'}", f"Port: {session.port}"]
    return "\n".join([*lines, f"Width: {first.width}", f"Height: {first.height}", f"FOV: {first.fov:f}"])


def _version(session: Session) -> str:
    """Get the version of the commands"""
    return VERSION


def _echo(session: Session, text: str) -> str:
    """Return the argument"""
    return text


def _commands(session: Session) -> str:
    """List the templates of all commands"""
    return "\n".join(dict.fromkeys(known.template for known in COMMANDS))


def _help(session: Session) -> str:
    """List all commands, each followed by what it does"""
    return "\n".join(line for known in COMMANDS for line in (known.template, known.help))


def _level_name(session: Session) -> str:
    """Get the name of the level"""
    return session.scene.world.name


def _set_level(session: Session, name: str) -> None:
    """Load a level; everything spawned is gone, light is the level's own"""
    if name not in WORLDS:
        raise CommandError(f"Cannot find level {name}")
    session.scene = Scene.load(name)


def _pause(session: Session) -> None:
    """Accepted; nothing moves by itself here"""


def _is_paused(session: Session) -> str:
    """Tell whether the game is paused; nothing moves by itself here"""
    return "true"


def _batch(session: Session, count: str) -> None:
    """Run the next requests in one tick: here nothing happens between requests anyway"""
    if not int(count):
        raise CommandError(INVALID)


def _blueprint(session: Session, name: str, function: str, *arguments: str) -> str:
    """Call a function of the Director, who changes textures and light and knows the assets, or of an object; JSON"""
    answer = call(session, function, list(arguments)) if name == "Director" else None
    return json.dumps(call_pawn(session, name, function, list(arguments)) if answer is None else answer)


def _console(session: Session, *words: str) -> None:
    """Run a console command: setres WIDTHxHEIGHT; as in Unreal, what the console does not know is passed over"""
    if match := SET_RESOLUTION.fullmatch(" ".join(words)):
        camera.set_size(session, "0", match[1], match[2])


def _view_mode(session: Session, mode: str) -> None:
    """Accepted; there is no window here whose view could change"""
    if mode not in VIEW_MODES:
        raise CommandError(f"{INVALID}: {mode} is none of {', '.join(VIEW_MODES)}")


def _input(session: Session) -> None:
    """Accepted; there is no window here that could have input"""


HANDLERS: dict[str, Handler] = {
    "vget /unrealcv/status": _status,
    "vget /unrealcv/version": _version,
    "vget /unrealcv/echo [str]": _echo,
    "vget /unrealcv/commands": _commands,
    "vget /unrealcv/help": _help,
    "vget /scene/name": _level_name,
    "vget /level/name": _level_name,
    "vset /action/game/level [str]": _set_level,
    "vset /action/game/pause": _pause,
    "vset /action/game/resume": _pause,
    "vget /action/game/is_paused": _is_paused,
    "vset /action/input/enable": _input,
    "vset /action/input/disable": _input,
    "vset /viewmode [str]": _view_mode,
    "vbatch [uint]": _batch,
    **dict.fromkeys(("vrun [str]" + " [str]" * count for count in range(MOST_ARGUMENTS + 1)), _console),
    **dict.fromkeys(("vexec [str] [str]" + " [str]" * count for count in range(MOST_ARGUMENTS + 1)), _blueprint),
    **dict.fromkeys(("vbp [str] [str]" + " [str]" * count for count in range(MOST_ARGUMENTS + 1)), _blueprint),
}
COMMANDS = (*camera.COMMANDS, *objects.COMMANDS, *commands(HANDLERS))
