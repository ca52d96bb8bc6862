"""What a user sees when something is wrong: one sentence."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


class UserError(Exception):
    """A mistake the user can fix; its message is one sentence, shown without a traceback."""


def lacks_space(error: OSError) -> bool:
    """Say whether writing failed because a disk, or a user's share of one, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import packages of an extra in this block; one that is not installed becomes a UserError that says what to do.

    Args:
        extra: name of the extra of granary-data, for example "train".

    Raises:
        UserError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).split(".")[0]
        if package == "granary":
            raise
        raise UserError(f"{package} is not installed; run: pip install 'granary-data[{extra}]'") from error
