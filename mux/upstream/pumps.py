"""Pumps: a byte stream between descriptors here and a channel of the server.

A `Source` reads a descriptor for the channel, a `Sink` writes to one what the channel brings, and a `Stream` is the
channel's end that has one of each. One rule: the two directions end one by one, and the channel is closed when both
have: EOF here becomes EOF there and the other way round, whatever the other direction still carries.

Imported by sessions, forwardings, and all else that ends in a descriptor.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from .channels import LiveChannel
from .ports import give_back
from .sinks import Sink
from .sources import Source, Translation

__all__ = ["Sink", "Source", "Stream"]


class Stream:
    """A channel's end (`channels.ChannelEnd`) that is a socket, or a descriptor to read and one to write.

    channel    once it is open
    """

    def __init__(
        self, reading: int | socket.socket, writing: int | socket.socket | None, on_end: Callable[[], None]
    ) -> None:
        """Takes ownership of both; without `writing` it is the same socket for both ways.

        `on_end` is called once, when the channel is closed, all that it brought is written and the descriptors are
        closed, or by `close`. Who made this calls `close` if the channel is never opened.
        """
        self.channel: LiveChannel | None = None
        self._reading = reading
        self._writing = writing
        self._on_end = on_end
        self._source: Source | None = None
        self._sink: Sink | None = None
        self._channel_over = False
        self._ended = False

    def close(self) -> None:
        """Give up both directions at once, and close the channel. Idempotent."""
        if self._ended:
            return
        self._release()
        if self.channel is not None:
            self.channel.close()
        self._end()

    # channels.ChannelEnd

    def opened(self, channel: LiveChannel) -> None:
        """The channel is open: bytes flow from now on."""
        self.channel = channel
        try:
            half_close = self._writing is None
            reading = self._reading = _descriptor(self._reading)
            # Two descriptors, so that each direction can give back its own.
            writing = os.dup(reading) if self._writing is None else _descriptor(self._writing)
        except OSError:  # out of descriptors
            self.close()
            return
        self._sink = Sink(
            writing, channel.consumed, failed=self._write_failed, done=self._write_done, half_close=half_close
        )
        self._source = Source(
            reading, channel, ended=self._read_ended, closed=self._end_when_done, translate=self._translation()
        )
        self._source.start()

    def data(self, stream: int, data: memoryview) -> None:
        """Write it."""
        if self._sink is not None and not stream:
            self._sink.write(data)
        elif self.channel is not None:
            self.channel.consumed(len(data))

    def eof(self) -> None:
        """The server sends no more."""
        if self._sink is not None:
            self._sink.finish()

    def closed(self) -> None:
        """The server has closed: what it sent before is still written."""
        self._channel_over = True
        if self._source is not None:
            self._source.close()
        if self._sink is not None:
            self._sink.finish()
        self._end_when_done()

    def lost(self, reason: str) -> None:
        """The connection ended."""
        self.closed()

    def request(self, name: bytes, want_reply: bool, body: bytes) -> bool:
        """Nothing can be asked of a byte stream."""
        return False

    def room(self) -> None:
        """The channel takes more."""
        if self._source is not None:
            self._source.room()

    def _translation(self) -> Translation | None:
        """What becomes of what is read before it is sent."""
        return None

    def _read_ended(self) -> None:
        if self.channel is not None:
            self.channel.eof()
        self._close_when_done()

    def _write_failed(self) -> None:
        """Whoever reads here has gone. The other direction goes on."""

    def _write_done(self) -> None:
        self._close_when_done()
        self._end_when_done()

    def _close_when_done(self) -> None:
        source, sink = self._source, self._sink
        if self.channel is not None and source is not None and source.done and sink is not None and sink.done:
            self.channel.close()

    def _end_when_done(self) -> None:
        source, sink = self._source, self._sink
        if self._channel_over and (sink is None or sink.done) and (source is None or not source.closing):
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._release()
            self._on_end()

    def _release(self) -> None:
        """Give back every descriptor. Idempotent."""
        if self._source is not None and self._sink is not None:
            self._source.close()
            self._sink.close()
            return
        ends, self._reading, self._writing = (self._reading, self._writing), -1, -1
        for end in ends:
            if isinstance(end, socket.socket):
                end.close()
            elif end is not None and end >= 0:
                give_back(end)


def _descriptor(end: int | socket.socket) -> int:
    return end.detach() if isinstance(end, socket.socket) else end
