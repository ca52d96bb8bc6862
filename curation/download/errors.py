"""Why an address gave no file."""

from __future__ import annotations

# Statuses of a server that may answer otherwise a minute or a day later (RFC 9110, RFC 6585, RFC 8470).
PASSING_STATUSES = frozenset((408, 425, 429, *range(500, 600)))
PASSING = frozenset(
    (
        *(f"HTTP {status}" for status in PASSING_STATUSES),
        "TimeoutError",
        "ConnectionError",
        "CutShort",
        "UnknownHost",
        "SilentHost",
    )
)
"""Kinds of failures that can pass: they are tried again, in this run and by the next."""


class DownloadError(OSError):
    """An address gave no file; the message holds no address.

    Args:
        kind: short name, for tables: HTTP 404, TimeoutError, CutShort, PrivateAddress.
        message: what happened.
        wait: seconds after which the server wants to be asked again, where it says so.
    """

    def __init__(self, kind: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait

    @property
    def passing(self) -> bool:
        """Whether the same address may give its file later."""
        return self.kind in PASSING

    def __reduce__(self) -> tuple[type[DownloadError], tuple[str, str, float | None]]:
        return type(self), (self.kind, str(self), self.wait)
