"""The grammar of UnrealCV's commands: templates, what matches them, what handles them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

PATTERNS = {"[uint]": r"(\d+)", "[float]": r"([-+]?\d*[.]?\d+)", "[str]": r"([^ ]+)"}
INVALID = "Argument Invalid"


class CommandError(Exception):
    """A command cannot be done; the client gets `error ` and the message."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Args:
        template: as `vget /unrealcv/commands` shows it.
        help: one line.
        pattern: what matches it.
        handler: called with the session and the placeholders' texts.
    """

    template: str
    help: str
    pattern: re.Pattern[str]
    handler: Callable[..., str | bytes | None]


COMMANDS: list[Command] = []


def command(*templates: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a handler for templates; its docstring is the help."""

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        for template in templates:
            pieces = re.split(r"(\[\w+\])", template)
            pattern = "".join(PATTERNS[piece] if piece in PATTERNS else re.escape(piece) for piece in pieces)
            text = (handler.__doc__ or "").strip().splitlines()[0]
            COMMANDS.append(Command(template, text, re.compile(pattern + " *"), handler))
        return handler

    return register


def triple(values: Iterable[float]) -> str:
    """Write three numbers as UnrealCV does."""
    return " ".join(f"{value:.3f}" for value in values)


def numbers(values: Iterable[str], bound: float) -> tuple[float, float, float]:
    """Read three numbers of at most `bound`; raises CommandError."""
    x, y, z = (float(value) for value in values)
    if max(abs(x), abs(y), abs(z)) > bound:
        raise CommandError(INVALID)
    return x, y, z
