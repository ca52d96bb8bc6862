"""What a command that failed says: one sentence, whatever happened, and the trace where it was asked for."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
from typing import NoReturn

from granary.curation.errors import UserError, lacks_space
from granary.curation.store.printable import printable
from granary.curation.store.trees import one_line

MISTAKE, FAILED, INTERRUPTED = 2, 1, 130
NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM}


def status_of(error: BaseException) -> int:
    """Say in one sentence on stderr why a command failed; returns its exit status."""
    if isinstance(error, BrokenPipeError):  # who read the output has seen enough
        drop_output()
        return FAILED
    logging.getLogger(__name__).debug("the command stopped", exc_info=error)
    if not isinstance(error, UserError | KeyboardInterrupt):
        drop_output()
    with contextlib.suppress(OSError):  # stderr may be as full as stdout
        print(f"granary: {printable(sentence(error))}", file=sys.stderr)
    return MISTAKE if isinstance(error, UserError) else INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED


def sentence(error: BaseException) -> str:
    """Return one sentence about a failure."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on where it stopped"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{_of_the_system(error)} (--debug shows where)"
    if isinstance(error, MemoryError):
        return "not enough memory; give the command less at a time or more memory (--debug shows where)"
    return (
        f"{type(error).__name__}: {one_line(error)}. That is not foreseen: --debug shows where it happened, and "
        "`granary check RUN` whether a file of a run is damaged"
    )


def _of_the_system(error: OSError) -> str:
    what = f"{error.filename}: " if error.filename is not None else ""
    return f"{what}{error.strerror}; {remedy(error)}"


def remedy(error: OSError) -> str:
    """Return what helps against an error of the file system, as the end of a sentence."""
    if lacks_space(error):
        return "free space there and run the same command again"
    if error.errno in NO_PERMISSION:
        return "give what may be read and written, and run the same command again"
    return "correct that, and run the same command again"


def end_at_once(error: KeyboardInterrupt) -> NoReturn:
    """Say that the command was interrupted and end the process, without waiting for threads that work on units.

    Nothing is lost by that: what a unit has not finished was never there. A second Ctrl-C finds nothing to disturb.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = status_of(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def drop_output() -> None:
    """Let the interpreter end quietly where stdout cannot be written: what is left in its buffer goes nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a stdout without a file, as in a notebook
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
