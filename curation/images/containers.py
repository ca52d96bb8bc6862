"""What the bytes of two containers need before Pillow opens them: HEIC a plugin, PNG sometimes fewer text chunks."""

from __future__ import annotations

import functools
import struct

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
HEIF_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"])
AVIF_BRANDS = (b"avif", b"avis")


def is_heif(data: bytes) -> bool:
    """Say whether bytes are a HEIF file that is no AVIF (ISO/IEC 23008-12, ftyp box)."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 256)
    compatible = [data[start : start + 4] for start in range(16, size, 4)]
    return data[8:12] in HEIF_BRANDS and not any(brand in compatible for brand in AVIF_BRANDS)


@functools.cache
def can_read_heif() -> bool:
    """Register the plugin of the extra `heic` with Pillow, once; False where it is not installed."""
    try:
        import pillow_heif
    except ModuleNotFoundError:
        return False
    pillow_heif.register_heif_opener()
    return True


def without_text(data: bytes) -> bytes:
    """Return a PNG without its text chunks (PNG, third edition, 11.3.3), which say nothing of its pixels."""
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        (length,), name = struct.unpack_from(">I", data, position), data[position + 4 : position + 8]
        end = position + 12 + length
        if name not in TEXT_CHUNKS:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)
