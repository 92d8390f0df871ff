"""Data types of RFC 4251 section 5: a reader that checks the end, and writers.

One rule: a length that came from a peer is compared with the bytes at hand before anything is made of it, so that no
number on the wire can allocate memory. Imports nothing but our errors; anybody may import it.
"""

from __future__ import annotations

from mux.errors import WireError


class Reader:
    """Takes values off the front of one message. Every method raises `WireError` when the bytes run out."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data)
        self._position = 0

    def u8(self) -> int:
        """byte"""
        return self._take(1)[0]

    def u32(self) -> int:
        """uint32"""
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        """uint64"""
        return int.from_bytes(self._take(8), "big")

    def boolean(self) -> bool:
        """boolean: one byte, of which every value but 0 means true"""
        return self.u8() != 0

    def string(self) -> bytes:
        """string: uint32 length, then as many bytes, returned as a copy"""
        return bytes(self._take(self.u32()))

    def rest(self) -> bytes:
        """Everything that is left, which may be nothing."""
        return bytes(self._take(len(self._data) - self._position))

    def at_end(self) -> bool:
        """Whether all bytes are taken."""
        return self._position == len(self._data)

    def end(self) -> None:
        """Raise `WireError` unless all bytes are taken."""
        if not self.at_end():
            raise WireError(f"{len(self._data) - self._position} bytes too many in a message of {len(self._data)}")

    def _take(self, count: int) -> memoryview:
        start, self._position = self._position, self._position + count
        if self._position > len(self._data):
            raise WireError(f"a field of {count} bytes at {start} runs over the end of a message of {len(self._data)}")
        return self._data[start : self._position]


def u8(number: int) -> bytes:
    """byte; raises `OverflowError` outside of 0..2^8-1, as the other writers do outside of their ranges"""
    return number.to_bytes(1, "big")


def u32(number: int) -> bytes:
    """uint32"""
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    """uint64"""
    return number.to_bytes(8, "big")


def boolean(value: bool) -> bytes:
    """boolean"""
    return b"\x01" if value else b"\x00"


def string(data: bytes | bytearray | memoryview) -> bytes:
    """string"""
    return len(data).to_bytes(4, "big") + data
