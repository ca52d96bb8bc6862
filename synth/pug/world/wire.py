"""UnrealCV's framing: magic, length, payload, little-endian; a request is `<id>:<command>`, a reply `<id>:<body>`."""

from __future__ import annotations

import re
import socket
import struct

MAGIC = 0x9E2B83C1
LARGEST_REQUEST = 256 * 2**20  # bytes; the plugin refuses more
HEADER = struct.Struct("<II")
REQUEST = re.compile(rb"(\d+):([^\r\n]*)")


class ProtocolError(Exception):
    """The peer does not speak the protocol: wrong magic, empty or oversized frame, no request id."""


def send_frame(connection: socket.socket, payload: bytes) -> None:
    """Send one frame; an empty payload is refused, because clients take it for a lost connection."""
    if not payload:
        raise ValueError("an empty frame would be taken for a lost connection")
    connection.sendall(HEADER.pack(MAGIC, len(payload)) + payload)


def receive_frame(connection: socket.socket) -> bytes | None:
    """Receive the payload of one frame, or None when the peer closed between frames; raises ProtocolError."""
    header = _receive(connection, HEADER.size)
    if not header:
        return None
    if len(header) < HEADER.size:
        raise ProtocolError(f"the connection ended after {len(header)} bytes of a header")
    magic, size = HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(f"a frame starts with {magic:#010x} instead of {MAGIC:#010x}")
    if not 0 < size <= LARGEST_REQUEST:
        raise ProtocolError(f"a frame announces {size} bytes; right is 1 to {LARGEST_REQUEST}")
    payload = _receive(connection, size)
    if len(payload) < size:
        raise ProtocolError(f"the connection ended after {len(payload)} of {size} bytes")
    return payload


def parse_request(payload: bytes) -> tuple[bytes, str]:
    """Split a request into its id, as sent, and its command; text after the first line is lost, as in the plugin."""
    match = REQUEST.match(payload)
    if match is None:
        raise ProtocolError("a request has no id")
    return match[1], match[2].decode("utf-8", errors="replace")


def _receive(connection: socket.socket, size: int) -> bytes:
    # Grows with what arrives, so that an announced length alone reserves no memory.
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 2**20))
        if not piece:
            break
        data += piece
    return bytes(data)
