"""What is to be sent on a socket, and what of it the socket has not taken yet.

One rule: bytes leave in the order in which they were put in, large pieces without a copy, small ones joined: a buffer
more in a write costs what a copy of some KiB costs. How much may wait here is the owner's to bound. Imported by those
who have clients on sockets: `clients.py`, `relay.py`, `putty.py`, `farewells.py`.
"""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice
from typing import Final

JOINED_BYTES: Final = 4 << 10  # up to here a copy costs less than a buffer more in the write
TAIL_BYTES: Final = 64 << 10  # small pieces joined in one buffer
GATHERED: Final = 64  # buffers of one write


class Unsent:
    """Bytes for one socket.

    queued_bytes   how many wait
    """

    __slots__ = ("_pieces", "_tail", "queued_bytes")

    def __init__(self, *pieces: bytes) -> None:
        self._pieces: deque[bytes | bytearray | memoryview] = deque()
        self._tail: bytearray | None = None  # the last piece, while more may be joined to it
        self.queued_bytes = 0
        for piece in pieces:
            self.put(piece)

    def put(self, head: bytes, rest: bytes | memoryview = b"") -> None:
        """Add these two in a row. A large `rest` is kept as it is, and so what it is a view of."""
        tail = self._tail
        if tail is None or len(tail) > TAIL_BYTES:
            tail = self._tail = bytearray()
            self._pieces.append(tail)
        tail += head
        size = len(rest)
        if size <= JOINED_BYTES:
            tail += rest
        else:
            self._pieces.append(rest)
            self._tail = None
        self.queued_bytes += len(head) + size

    def send(self, connection: socket.socket) -> int:
        """Send what the socket takes now, without waiting; returns how much that was.

        Raises `OSError` when the other end has gone.
        """
        pieces = self._pieces
        self._tail = None
        sent = 0
        try:
            while self.queued_bytes:
                count = connection.sendmsg(islice(pieces, GATHERED), (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                sent += count
                self._take_off(count)
        except (BlockingIOError, InterruptedError):
            pass
        return sent

    def _take_off(self, count: int) -> None:
        self.queued_bytes -= count
        pieces = self._pieces
        while count:
            first = pieces[0]
            size = len(first)
            if count < size:
                pieces[0] = memoryview(first)[count:]
                return
            pieces.popleft()
            count -= size
