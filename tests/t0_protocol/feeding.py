"""Ways in which a stream may deliver the same bytes: a core has to give the same events for all of them."""

from __future__ import annotations


def every_way(data: bytes) -> list[list[bytes]]:
    """Whole, byte by byte, and cut in two at every place."""
    cut = [[data[:at], data[at:]] for at in range(1, len(data))]
    return [[data], [bytes([byte]) for byte in data], *cut]
