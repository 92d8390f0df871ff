"""What one turn of the event loop sends, in one write.

One rule: bytes leave in the order they came, and wait no longer than this turn. Imported by `mux.upstream.engine` only.
"""

from __future__ import annotations

import asyncio
from typing import Final

# So much is written at once, however much more the same turn of the loop has to send: only what is written counts for
# the transport, which says when producers have to pause.
WRITE_BYTES: Final = 128 * 1024


class Outbox:
    """Collects for `transport`; without one what is put in is dropped.

    sent_bytes    what was handed to the transport so far
    """

    __slots__ = ("_bytes", "_due", "_loop", "_pieces", "sent_bytes", "transport")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._due = False
        self.transport: asyncio.WriteTransport | None = None
        self.sent_bytes = 0

    def put(self, *pieces: bytes) -> None:
        """Send these, together with what else this turn of the loop sends."""
        self._pieces += pieces
        self._bytes += sum(map(len, pieces))
        if self._bytes >= WRITE_BYTES:
            self.write()
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._write_due)

    def write(self) -> None:
        """Write now what is there."""
        if not self._pieces:
            return
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._bytes = 0
        if self.transport is not None:
            self.sent_bytes += len(data)
            self.transport.write(data)

    def _write_due(self) -> None:
        self._due = False
        self.write()
