"""Progress in a notebook: one line of the cell that is written over, as a terminal's bar is."""

from __future__ import annotations

import html
from typing import Protocol


class Handle(Protocol):
    """What IPython's `display` returns for an output that is written over."""

    def update(self, shown: object) -> None:
        """Show something else in its place."""


class CellBar:
    """A bar in the output of the cell that runs; a notebook is known by `rich.console.Console.is_jupyter`.

    Args:
        name: of what is under way.
        total: items, or steps, of it.
    """

    def __init__(self, name: str, total: int) -> None:
        from IPython.display import display  # a notebook has it

        self.name, self.total = name, total
        self.handle: Handle = display(self._line(0, ""), display_id=True)

    def show(self, done: int, text: str) -> None:
        """Show how much is done, and a text beside the bar."""
        self.handle.update(self._line(done, text))

    def _line(self, done: int, text: str) -> object:
        from IPython.display import HTML

        bar = f'<progress value="{done}" max="{max(1, self.total)}"></progress>'
        beside = html.escape(f"{done:,}/{self.total:,} {text}")
        return HTML(f"<div><code>{html.escape(self.name)}</code> {bar} {beside}</div>")
