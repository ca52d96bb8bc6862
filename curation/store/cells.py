"""Values as cells of a table that people open in a spreadsheet."""

from __future__ import annotations

from granary.curation.store.addresses import without_secrets
from granary.curation.store.printable import printable

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes the text behind for


def cell(text: str) -> str:
    r"""Return a text for a cell of a table: no control character, and nothing that a spreadsheet would compute.

    >>> cell("pool/a.jpg"), cell("=1+1"), cell("a\x1b[2Jb")
    ('pool/a.jpg', "'=1+1", 'a\\x1b[2Jb')
    """
    safe = printable(text, keep="")
    return f"'{safe}" if text.startswith(FORMULAS) else safe


def written(value: object) -> str:
    """Return a value of a ledger for a cell: nothing for None, lists with commas, addresses without their secrets."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return cell(without_secrets(",".join(map(str, value)) if isinstance(value, list) else str(value)))
