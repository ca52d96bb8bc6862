"""The grammar of UnrealCV's commands: templates, what matches them, what handles them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Concatenate

from granary.synth.pug.world.session import CommandError, Session

PATTERNS = {"[uint]": r"(\d+)", "[float]": r"([-+]?\d*[.]?\d+)", "[str]": r"([^ ]+)"}
INVALID = "Argument Invalid"
Handler = Callable[Concatenate[Session, ...], str | bytes | None]  # called with the texts of the placeholders


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Args:
        template: as `vget /unrealcv/commands` shows it.
        help: one line.
        pattern: what matches it.
        handler: what does it; None means `ok`.
    """

    template: str
    help: str
    pattern: re.Pattern[str]
    handler: Handler

    @staticmethod
    def of(template: str, handler: Handler) -> Command:
        """Return the command of a template; the first line of the handler's docstring is its help."""
        pieces = re.split(r"(\[\w+\])", template)
        pattern = "".join(PATTERNS[piece] if piece in PATTERNS else re.escape(piece) for piece in pieces)
        text = (handler.__doc__ or "").strip().splitlines()[0]
        return Command(template, text, re.compile(pattern + " *"), handler)


def commands(handlers: Mapping[str, Handler]) -> tuple[Command, ...]:
    """Return the commands of templates and their handlers, in order."""
    return tuple(Command.of(template, handler) for template, handler in handlers.items())


def triple(values: Iterable[float]) -> str:
    """Write three numbers as UnrealCV does."""
    return " ".join(f"{value:.3f}" for value in values)


def numbers(values: Iterable[str], bound: float) -> tuple[float, float, float]:
    """Read three numbers of at most `bound`; raises CommandError."""
    x, y, z = (float(value) for value in values)
    if max(abs(x), abs(y), abs(z)) > bound:
        raise CommandError(INVALID)
    return x, y, z
