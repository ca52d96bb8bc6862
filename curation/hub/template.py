"""The card's jinja2 template: granary's own, or one that the user wrote, which gets a process with limits.

A template is a program: it may divide by zero, never end or write without end. One of the user's is rendered in a
process of its own, so that it can be stopped whatever it is doing.
"""

from __future__ import annotations

import importlib.resources
import json
import subprocess
import sys
from collections.abc import Mapping

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from granary.curation.errors import UserError

TEMPLATE, MODEL_TEMPLATE = "card.md.j2", "model_card.md.j2"
SECONDS, CARD_BYTES, MEMORY_BYTES = 20, 1 << 20, 1 << 30


def shipped_template(name: str = TEMPLATE) -> str:
    """Return a jinja2 template that granary ships; a run's own card.md.j2 takes its place.

    Args:
        name: TEMPLATE for the card of a dataset, MODEL_TEMPLATE for that of a model.
    """
    return importlib.resources.files("granary.curation.hub").joinpath(name).read_text(encoding="utf-8")


def render(
    template: str | None, values: Mapping[str, object], yours: Mapping[str, str], shipped: str = TEMPLATE
) -> str:
    """Return the card.

    Args:
        template: of the user; None takes the shipped one.
        values: what the template may name, as plain data.
        yours: the user's sections, for `slot(name)`.
        shipped: the name of the shipped one.

    Raises:
        UserError: the user's template cannot be rendered, or not within SECONDS, CARD_BYTES and MEMORY_BYTES.
    """
    if template is None:
        return filled(shipped_template(shipped), values, yours)
    job = json.dumps([template, values, yours])
    words = [sys.executable, "-m", "granary.curation.hub.template"]
    try:
        done = subprocess.run(words, input=job, capture_output=True, encoding="utf-8", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise _refused(f"it is not done after {SECONDS} s") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise _refused(last or f"its process ended with status {done.returncode}")
    return done.stdout


def _refused(cause: str) -> UserError:
    return UserError(f"card: the template {TEMPLATE} of the run cannot be rendered: {cause}; correct it, or delete it")


def filled(template: str, values: Mapping[str, object], yours: Mapping[str, str]) -> str:
    """Return a template with its values filled in; raises what the template raises."""

    def slot(name: str) -> str:
        return f"<!-- yours: begin {name} -->\n{yours.get(name, '')}<!-- yours: end {name} -->"

    environment = SandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the card is Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pieces, size = [], 0
    for piece in environment.from_string(template).generate({**values, "slot": slot}):
        pieces.append(piece)
        size += len(piece)
        if size > CARD_BYTES:
            raise ValueError(f"it writes more than {CARD_BYTES:,} characters")
    return "".join(pieces)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _main() -> None:
    """Render what stands in stdin to stdout; the last line of stderr says why not."""
    _limit_memory()
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    sys.stdout.write(filled(*json.load(sys.stdin)))


if __name__ == "__main__":
    _main()
