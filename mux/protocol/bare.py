"""PuTTY's bare connection protocol: greetings, frames and their limits, from either end. Sans-IO.

PuTTY's tools share a connection over a unix socket on which the SSH connection protocol runs as it is: a line from each
end, then packets of a length, a type and a payload, with nothing around them (its ssh/bpp-bare.c, ssh/verstring.c and
ssh/sharing.c). One rule: every length is compared with what this direction allows before anything is kept, and what
goes up is never longer than a PuTTY takes, since it cuts off whoever sends more.

Imported by `mux.downstream`, `mux.upstream` and `mux.rendezvous.putty`.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from mux.errors import LocalProtocolError, RemoteProtocolError, WireError, printable

from .wire import Reader, string, u32

PREFIX: Final = b"SSHCONNECTION@putty.projects.tartarus.org-"
VERSION: Final = b"2.0"

# A PuTTY upstream counts the length field as well: 0x4010 bytes in all.
LARGEST_UP_BYTES: Final = 0x4010 - 4
# A PuTTY downstream takes everything below this, and nothing else ever reached one from an upstream.
LARGEST_DOWN_BYTES: Final = 0x9000 - 1
# What one CHANNEL_DATA may carry on its way up: what PuTTY itself sends at most.
LARGEST_DATA_UP_BYTES: Final = 0x4000
# What PuTTY keeps of a line that does not end.
LARGEST_LINE_BYTES: Final = 0x4010
# Lines before the greeting are somebody's chatter, and there is none from a PuTTY.
MOST_LINES_BEFORE: Final = 64

DISCONNECT: Final = 1  # RFC 4253 section 11: these four, and two of the reasons of the first
IGNORE: Final = 2
UNIMPLEMENTED: Final = 3
DEBUG: Final = 4
EXT_INFO: Final = 7  # RFC 8308
PROTOCOL_ERROR: Final = 2
BY_APPLICATION: Final = 11

_HEAD: Final = struct.Struct(">IB")


class Role(enum.Enum):
    """Which end this is."""

    UPSTREAM = enum.auto()
    DOWNSTREAM = enum.auto()


def greeting_of_downstream(software: str) -> bytes:
    """Return the first line up. Blanks and `-` separate fields of the line, so PuTTY has neither in the last one."""
    return PREFIX + VERSION + b"-" + software.replace("-", "_").replace(" ", "_").encode("ascii", "replace") + b"\r\n"


def greeting_of_upstream(server: bytes) -> bytes:
    """Return the line down, with the server's software version and comments, by which downstreams know its bugs."""
    return PREFIX + VERSION + b"-" + server + b"\r\n"


class Greeting:
    """Waits for the other end's line. `software` is None until it came; `rest` is what came behind it."""

    def __init__(self, role: Role) -> None:
        self.software: bytes | None = None
        self.rest = b""
        self._role = role
        self._data = bytearray()
        self._lines = 0

    def receive(self, data: bytes) -> bool:
        """Take what came; return whether the line is complete. Raises `RemoteProtocolError` for anything else.

        A downstream passes over other lines, as PuTTY does. The line of a downstream has to be its first.
        """
        self._data += data
        while self.software is None:
            end = self._data.find(b"\n")
            if end > LARGEST_LINE_BYTES or (end < 0 and len(self._data) > LARGEST_LINE_BYTES):
                raise RemoteProtocolError(f"it sent a line of more than {LARGEST_LINE_BYTES} bytes for a greeting")
            if self._role is Role.DOWNSTREAM and self._data.startswith(b"\0"):
                self._take_packet()
            if end < 0:
                return False
            line = bytes(self._data[:end]).removesuffix(b"\r")
            del self._data[: end + 1]
            self._take_line(line)
        self.rest = bytes(self._data)
        return True

    def _take_line(self, line: bytes) -> None:
        if line.startswith(PREFIX):
            version, dash, software = line[len(PREFIX) :].partition(b"-")
            if not dash or version != VERSION:
                raise RemoteProtocolError(
                    f"it shares by version {printable(version, 40)} of PuTTY's protocol, and there is only 2.0"
                )
            self.software = software
            return
        self._lines += 1
        if self._role is Role.UPSTREAM or self._lines > MOST_LINES_BEFORE:
            raise RemoteProtocolError(f"it greets as something else: {printable(line, 80)}")

    def _take_packet(self) -> None:
        """An upstream that could not log in says so in a packet, before any line. No line begins with a NUL."""
        if len(self._data) < _HEAD.size:
            return
        length, kind = _HEAD.unpack_from(self._data)
        if kind != DISCONNECT or length > LARGEST_DOWN_BYTES:
            raise RemoteProtocolError("it sent something that is neither a greeting nor a goodbye")
        if len(self._data) >= 4 + length:
            raise RemoteProtocolError(f"it hung up: {disconnect_text(self._data[_HEAD.size : 4 + length])}")


def check_length(length: int, limit_bytes: int) -> None:
    """Raise `RemoteProtocolError` for a packet's length out of bounds."""
    if not 1 <= length <= limit_bytes:
        raise RemoteProtocolError(f"it announced a packet of {length} bytes, outside of 1 to {limit_bytes}")


def frame(kind: int, *parts: bytes | bytearray | memoryview, limit_bytes: int = LARGEST_UP_BYTES) -> bytes:
    """Return one whole packet. Raises `LocalProtocolError` when the other end would not take it."""
    payload = b"".join(parts)
    if len(payload) >= limit_bytes:
        raise LocalProtocolError(f"a packet of {len(payload) + 1} bytes, where {limit_bytes} are taken")
    return _HEAD.pack(len(payload) + 1, kind) + payload


def disconnect_body(code: int, reason: str) -> bytes:
    """Return what follows the type of a DISCONNECT."""
    return u32(code) + string(printable(reason).encode()) + string(b"")


def disconnect_text(body: bytes | bytearray | memoryview) -> str:
    """Return the words of a DISCONNECT, fit to be shown."""
    try:
        reader = Reader(body)
        code, text = reader.u32(), reader.string()
    except WireError:
        return "without a word"
    return printable(text) or f"reason {code}"
