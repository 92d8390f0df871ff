"""What one turn of the event loop sends, in one write.

One rule: bytes leave in the order they came, and wait no longer than this turn. Imported by `mux.upstream.engine` only.
"""

from __future__ import annotations

import asyncio
from typing import Final

# So much is written at once, however much more the same turn of the loop has to send: only what is written counts for
# the transport, which says when producers have to pause.
WRITE_BYTES: Final = 128 * 1024
# What is short of a write, and what one read of a source becomes (256 KiB, sealed).
_ROOM_BYTES: Final = 512 * 1024
_NO_ROOM: Final = memoryview(b"")


class Outbox:
    """Collects for `transport`; without one what is put in is dropped.

    Bytes are collected where they are written from: whoever makes them asks for `room`, and says how much it `filled`.

    sent_bytes    what was handed to the transport so far
    """

    __slots__ = ("_due", "_filled", "_loop", "_room", "sent_bytes", "transport")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = _NO_ROOM
        self._filled = 0
        self._due = False
        self.transport: asyncio.WriteTransport | None = None
        self.sent_bytes = 0

    def room(self, count: int) -> memoryview:
        """Where at least `count` bytes can be laid down, behind what is there. Only until the next call of any kind."""
        while len(self._room) - self._filled < count:
            if self._filled:
                self.write()
            else:
                self._room = memoryview(bytearray(max(count, _ROOM_BYTES)))
        return self._room[self._filled :]

    def filled(self, count: int) -> None:
        """Send the first `count` bytes of the room, together with what else this turn of the loop sends."""
        self._filled += count
        if self._filled >= WRITE_BYTES:
            self.write()
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._write_due)

    def put(self, data: bytes) -> None:
        """Send a copy of this, in the same way."""
        self.room(len(data))[: len(data)] = data
        self.filled(len(data))

    def write(self) -> None:
        """Write now what is there."""
        data, self._filled = self._room[: self._filled], 0
        transport = self.transport
        if not data or transport is None:
            return
        self.sent_bytes += len(data)
        if transport.get_write_buffer_size():
            transport.write(bytes(data))
            return
        # The transport may keep what it does not send at once where it lies, and calls who may send more meanwhile.
        room, self._room = self._room, _NO_ROOM
        transport.write(data)
        if not self._room and not transport.get_write_buffer_size():
            self._room = room

    def _write_due(self) -> None:
        self._due = False
        self.write()
