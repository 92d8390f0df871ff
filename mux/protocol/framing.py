"""Packets with a length in front, on a stream that may carry file descriptors beside its bytes.

One rule: nothing is sized by a length the peer announced; bytes are kept only once they have come, and a length over
the limit is refused when its four bytes are read. Descriptors wait in a first-in-first-out queue parallel to the
bytes: the kernel delivers one together with (or before) the byte it was sent with, and may deliver the packet before
it in the same call. Used by `control.py`; not by the mount, whose SFTP stream is split where its payload goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mux.errors import RemoteProtocolError

from . import wire

MAX_WAITING_DESCRIPTORS = (
    16  # nobody needs more than 3 at a time; each one kept is one less for everyone in this process
)


class PacketBuffer:
    """Splits what was received into packets, and hands out the descriptors that came beside them.

    It never closes a descriptor: those it no longer needs are returned by `take_surplus`.
    """

    def __init__(self, *, least_bytes: int, limit_bytes: int) -> None:
        self._least_bytes = least_bytes
        self._limit_bytes = limit_bytes
        self._data = bytearray()
        self._descriptors: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._data)

    def receive(self, data: bytes | bytearray | memoryview, descriptors: Iterable[int] = ()) -> None:
        """Append what one receive call of the caller brought."""
        self._data += data
        self._descriptors.extend(descriptors)

    def check_descriptors(self) -> None:
        """Raises `RemoteProtocolError` when more wait than anyone needs; for whoever asks for nothing else for now."""
        if len(self._descriptors) > MAX_WAITING_DESCRIPTORS:
            raise RemoteProtocolError(
                f"the peer sent {len(self._descriptors)} file descriptors that were not asked for"
            )

    def next_packet(self) -> bytes | None:
        """Return the next packet without its length, or None until it is there.

        Raises `RemoteProtocolError` for a length out of bounds, and when more descriptors pile up than anyone needs.
        """
        self.check_descriptors()
        if len(self._data) < 4:
            return None
        length = int.from_bytes(self._data[:4], "big")
        if not self._least_bytes <= length <= self._limit_bytes:
            raise RemoteProtocolError(
                f"the peer announced a message of {length} bytes, outside of {self._least_bytes} to {self._limit_bytes}"
            )
        if len(self._data) < 4 + length:
            return None
        packet = bytes(self._data[4 : 4 + length])
        del self._data[: 4 + length]
        return packet

    def next_descriptors(self, count: int) -> tuple[int, ...] | None:
        """Take `count` descriptors and the `count` placeholder bytes they came with, or None until all are there.

        Raises `RemoteProtocolError` when a placeholder came without its descriptor, or too many descriptors with it.
        """
        self.check_descriptors()
        if len(self._descriptors) < min(count, len(self._data)):
            raise RemoteProtocolError(f"the peer sent {len(self._descriptors)} of {count} announced file descriptors")
        if len(self._data) < count:
            return None
        del self._data[:count]
        return tuple(self._descriptors.popleft() for _ in range(count))

    def take_rest(self) -> bytes:
        """Take all bytes that are left, for whoever reads this stream from here on."""
        rest = bytes(self._data)
        self._data.clear()
        return rest

    def take_surplus(self) -> tuple[int, ...]:
        """Take all descriptors that wait here, for the caller to close."""
        surplus = tuple(self._descriptors)
        self._descriptors.clear()
        return surplus


def frame(payload: bytes) -> bytes:
    """Put the length in front of a packet."""
    return wire.string(payload)
