"""A channel of the server whose first bytes say where it goes: SOCKS, or the cookie of X11.

One rule: a channel has one end at a time. Until it is known where it goes, what comes is kept here, bounded by the
window; then `go_on` hands it all to a `Stream`, and from then on everything is passed on. Imported by `forwards.py` and
`x11.py`, which await `more` in a task of their own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mux.errors import ConnectionLost

from .channels import LiveChannel

if TYPE_CHECKING:
    from .engine import Engine, IncomingOpen
    from .pumps import Stream


class Preamble:
    """The first end of an accepted channel (`channels.ChannelEnd`)."""

    channel: LiveChannel

    def __init__(self, engine: Engine, incoming: IncomingOpen, *, window_bytes: int) -> None:
        """Accept the channel. Raises `RemoteProtocolError` when what the server says of it makes no sense."""
        self._data = bytearray()
        self._taken_bytes = 0
        self._stream: Stream | None = None
        self._eof = False
        self._over: str | None = None
        self._something = asyncio.Event()
        self.channel = LiveChannel.accept(engine, incoming, self, window_bytes=window_bytes)

    async def more(self) -> bytes:
        """Take what has come, once there is something. Raises `ConnectionLost` when nothing more will."""
        while not self._data:
            if self._eof or self._over is not None:
                raise ConnectionLost(self._over or "it ended before it said where to")
            self._something.clear()
            await self._something.wait()
        data = bytes(self._data)
        self._data.clear()
        self._taken_bytes += len(data)
        return data

    def say(self, data: bytes) -> None:
        """Answer with a few bytes, for which a new channel has room; if it has none, its other end gets no answer."""
        if data and self._over is None and self.channel.write(data) < len(data):
            self.channel.close()

    def go_on(self, stream: Stream, rest: bytes) -> None:
        """Hand the channel over, with what is to come of the bytes that were taken; no more than there were."""
        self._stream = stream
        if self._over is not None:
            stream.close()
            return
        stream.opened(self.channel)
        self.channel.consumed(self._taken_bytes - len(rest))
        rest += self._data
        self._data.clear()
        if rest:
            stream.data(0, memoryview(rest))
        if self._eof:
            stream.eof()

    def give_up(self) -> None:
        """It goes nowhere. Idempotent."""
        self._data.clear()
        self.channel.close()

    # channels.ChannelEnd

    def opened(self, channel: LiveChannel) -> None:
        self.channel = channel

    def data(self, stream: int, data: memoryview) -> None:
        if self._stream is not None:
            self._stream.data(stream, data)
        elif stream:
            self.channel.consumed(len(data))  # of no use in a byte stream
        else:
            self._data += data
            self._something.set()

    def eof(self) -> None:
        self._eof = True
        self._something.set()
        if self._stream is not None:
            self._stream.eof()

    def closed(self) -> None:
        self._gone("the server closed the channel")
        if self._stream is not None:
            self._stream.closed()

    def lost(self, reason: str) -> None:
        self._gone(reason)
        if self._stream is not None:
            self._stream.lost(reason)

    def request(self, name: bytes, want_reply: bool, body: bytes) -> bool:
        return self._stream is not None and self._stream.request(name, want_reply, body)

    def room(self) -> None:
        if self._stream is not None:
            self._stream.room()

    def _gone(self, reason: str) -> None:
        self._over = reason
        self._something.set()
