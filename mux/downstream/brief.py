"""A wait too short to be worth a round of the scheduler.

One rule: it blocks the whole thread, so whoever calls bounds it by what a round of the scheduler costs. Imported by the
streams of this package.
"""

from __future__ import annotations

import select
import socket

from mux.errors import ConnectionLost


class BriefWait:
    """For a stream's socket, and whatever else the caller has an eye on: mostly the same each time."""

    __slots__ = ("_others", "_poll", "_stream")

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._poll: select.poll | None = None
        self._others: tuple[int, ...] = ()

    def readable(self, timeout_s: float, others: tuple[int, ...]) -> bool:
        """Block until the stream or one of the descriptors `others` can be read, or the time is over.

        Returns whether the stream can be read. Raises `ConnectionLost` when it is closed.
        """
        stream = self._stream.fileno()
        if stream < 0:
            raise ConnectionLost("the session is closed")
        if self._others != others or self._poll is None:
            self._others, self._poll = others, select.poll()
            for descriptor in (stream, *others):
                self._poll.register(descriptor, select.POLLIN)
        return any(descriptor == stream for descriptor, _ in self._poll.poll(timeout_s * 1000))
