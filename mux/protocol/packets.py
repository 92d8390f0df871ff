"""How bare packets of the SSH connection protocol are framed on the socket of a client that shares a connection.

OpenSSH's proxy mode (`ssh_packet_read_poll2_mux` of its packet.c) keeps the shape of RFC 4253 section 6 without
encryption: length, padding length, type, payload, padding. PuTTY's sharing (its bpp-bare.c) has length, type, payload.
One rule: a length out of bounds is refused when its four bytes are read, and nothing is copied: payloads are views of
the caller's buffer. Imported by `mux.upstream.relay` and, for PuTTY's side, by whoever joins a PuTTY.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from mux.errors import RemoteProtocolError

# What OpenSSH's packet layer takes (PACKET_MAX_SIZE of packet.c): a command of 128 KiB, the longest argument Linux
# passes to a program, goes through.
LARGEST_FRAME_BYTES: Final = 256 * 1024
# A proxy client of OpenSSH takes no frame of less than 5 bytes behind the length ("incomplete message").
LEAST_PROXY_FRAME_BYTES: Final = 5

_LENGTH: Final = struct.Struct(">I")
_PROXY_HEAD: Final = struct.Struct(">IBB")
_BARE_HEAD: Final = struct.Struct(">IB")


class Frame(NamedTuple):
    """One packet: its message number, a view of what follows it, and where the next one begins."""

    kind: int
    payload: memoryview
    end: int


@dataclass(frozen=True, slots=True)
class Framing:
    """One of the two ways. `padded`: a byte that counts padding stands before the type, and the padding at the end."""

    padded: bool

    def next(self, data: memoryview, start: int) -> Frame | None:
        """Return the packet that begins at `start`, or None until all of it is there.

        Raises `RemoteProtocolError` for a length out of bounds, and for padding longer than the packet.
        """
        if len(data) - start < 4:
            return None
        (length,) = _LENGTH.unpack_from(data, start)
        before = 2 if self.padded else 1
        if not before <= length <= LARGEST_FRAME_BYTES:
            raise RemoteProtocolError(
                f"the client announced a packet of {length} bytes, outside of {before} to {LARGEST_FRAME_BYTES}"
            )
        end = start + 4 + length
        if end > len(data):
            return None
        if not self.padded:
            return Frame(data[start + 4], data[start + 5 : end], end)
        padding = data[start + 4]
        if padding > length - 2:
            raise RemoteProtocolError(f"the client announced {padding} bytes of padding in a packet of {length} bytes")
        return Frame(data[start + 5], data[start + 6 : end - padding], end)

    def pack(self, kind: int, first: bytes, rest_bytes: int = 0) -> bytes:
        """Return the beginning of a frame: everything up to and with `first`. `rest_bytes` of payload follow it."""
        count = len(first) + rest_bytes
        if not self.padded:
            return _BARE_HEAD.pack(1 + count, kind) + first
        padding = LEAST_PROXY_FRAME_BYTES - 2 - count
        if padding > 0 and not rest_bytes:
            return _PROXY_HEAD.pack(LEAST_PROXY_FRAME_BYTES, padding, kind) + first + bytes(padding)
        return _PROXY_HEAD.pack(2 + count, 0, kind) + first


PROXY: Final = Framing(padded=True)
PUTTY: Final = Framing(padded=False)
