"""Texts that others wrote, made safe to print: a file name can hold what a terminal obeys."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # of Persian words, of emoji
OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, direction marks, halves of pairs, line and paragraph separators


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Return a text with all that moves the cursor, changes colours or turns words around written as an escape.

        >>> print(printable("a\x1b[2Jb\u202egpj.exe"))
        a\x1b[2Jb\u202egpj.exe

    Args:
        text: what is to be printed.
        keep: the controls that stay.
    """
    safe = keep + JOINERS
    return "".join(letter if letter in safe or not _obeyed(letter) else _escaped(letter) for letter in text)


def _obeyed(letter: str) -> bool:
    return unicodedata.category(letter) in OBEYED


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
