"""TCP ports of this machine for programs that are started to listen on one."""

from __future__ import annotations

import errno
import secrets
import socket

OFFERED = range(20_000, 32_000)  # below 32,768, where systems begin to hand ports to outgoing connections
TRIES = 100


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens now, nor will before it is used, but by a rare chance.

    A port that the system picks for us is one that it gives to the next outgoing connection as well. These are of a
    range that it leaves alone, and picked at random, so that two programs that pick at once pick differently.

    Raises:
        OSError: no port could be opened.
    """
    for _ in range(TRIES):
        port = secrets.choice(OFFERED)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise OSError(errno.EADDRINUSE, f"none of {TRIES} ports from {OFFERED[0]} to {OFFERED[-1]} is free")
