"""A sink: what writes to a descriptor what a channel brings.

One rule: bytes are consumed, in the sense of a channel's window, only when they are written. So a slow reader stops its
own remote command and nobody else, and the window is all the limit that a sink's queue needs. Where nothing is queued
a write is tried at once. Which calls may be made where is `ports.py`'s knowledge. It is done when the descriptor is
closed, as a program is that has ended: a mount that was written to may be unmounted then. Imported through `pumps.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, TypeAlias

from .ports import GATHER_LIMIT, SAFE_WRITE_BYTES, Port
from .workers import WORKERS

THREAD_BYTES: Final = 1024 * 1024  # what is written to a file in one turn of a thread
# Pieces below this are joined, so that a window full of single bytes does not become a million objects.
SMALL_BYTES: Final = 4096
JOINED_BYTES: Final = 32 * 1024

Bytes: TypeAlias = bytes | bytearray | memoryview


class Sink:
    """Writes what a channel brings to a descriptor, in order."""

    def __init__(
        self,
        descriptor: int,
        consumed: Callable[[int], None],
        *,
        failed: Callable[[], None],
        done: Callable[[], None],
        half_close: bool = False,
    ) -> None:
        """Takes ownership of `descriptor`.

        consumed     told of bytes that were written, or can be no more
        failed       called once when it can no longer be written to; what comes then is dropped
        done         called once, when all is written after `finish` and the descriptor is closed, or it has failed;
                     not after `close`
        half_close   a socket's other end is told of `finish`, because somebody else still has it open
        """
        self._loop = asyncio.get_running_loop()
        self._consumed = consumed
        self._failed = failed
        self._call_done = done
        self._half_close = half_close
        self._queue: deque[Bytes] = deque()
        self.queued_bytes = 0
        self._watching = False
        self._busy = False  # a thread is writing
        self._finishing = False
        self._ending = False  # all is written, and the descriptor is being closed
        self._done = False
        self._port: Port | None
        try:
            self._port = Port(descriptor, writing=True)
        except OSError:
            # It is found out when something is written, as with any other that fails.
            self._port = None

    @property
    def done(self) -> bool:
        """Whether all was written and the descriptor closed, it has failed, or it was closed."""
        return self._done

    def write(self, data: memoryview) -> None:
        """Write `data` now, or as soon as what was before it is written. The view is kept until then."""
        port = self._port
        if self._done or port is None:
            self._drop(len(data))
            return
        if port.null:
            self._consumed(len(data))
            return
        if self._queue or self._busy or not port.direct:
            self._enqueue(data)
            if not self._watching and not self._busy:
                self._wait()
            return
        try:
            count = port.write(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError:
            self._fail(len(data))
            return
        if count:
            self._consumed(count)
        if count < len(data):
            self._enqueue(data[count:])
            self._wait()

    def finish(self) -> None:
        """Nothing more comes: release the descriptor when all is written."""
        self._finishing = True
        if not self._queue and not self._busy:
            self._end()

    def close(self) -> None:
        """Release the descriptor now, whatever is queued; a thread that writes still has it until it returns.
        Idempotent; `failed` and `done` are not called any more."""
        self._done = True
        self._clear()
        self._release()

    def _wait(self) -> None:
        if self._port is None:
            return
        if self._port.pollable:
            self._watching = True
            self._loop.add_writer(self._port.descriptor, self._writable)
        else:
            self._write_in_thread()

    def _writable(self) -> None:
        port = self._port
        if port is None:
            return
        if not port.direct:
            self._unwatch()
            self._write_in_thread()
            return
        try:
            count = port.write_gathered(list(islice(self._queue, GATHER_LIMIT)))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._fail(0)
            return
        self._take_off(count)
        if not self._queue:
            self._unwatch()
            if self._finishing:
                self._end()

    def _write_in_thread(self) -> None:
        port = self._port
        if port is None:
            return
        pieces = [memoryview(self._queue[0])[:SAFE_WRITE_BYTES]] if port.pollable else self._batch()
        # What is joined may still grow meanwhile, which it could not while it is looked at.
        pieces = [memoryview(bytes(piece)) if isinstance(piece.obj, bytearray) else piece for piece in pieces]
        self._busy = True
        WORKERS.submit(lambda: _write_all(port, pieces), self._written)

    def _written(self, count: int | None, error: OSError | None) -> None:
        self._busy = False
        if self._done:
            self._release()
            return
        if error is not None:
            self._fail(0)
            return
        if count:
            self._take_off(count)
        if self._queue:
            self._wait()
        elif self._finishing:
            self._end()

    def _batch(self) -> list[memoryview]:
        pieces: list[memoryview] = []
        total = 0
        for piece in self._queue:
            pieces.append(memoryview(piece))
            total += len(piece)
            if total >= THREAD_BYTES or len(pieces) == GATHER_LIMIT:
                break
        return pieces

    def _enqueue(self, data: memoryview) -> None:
        self.queued_bytes += len(data)
        if len(data) >= SMALL_BYTES:
            self._queue.append(data)
            return
        last = self._queue[-1] if self._queue else None
        if isinstance(last, bytearray) and len(last) < JOINED_BYTES:
            last += data
        else:
            self._queue.append(bytearray(data))

    def _take_off(self, count: int) -> None:
        """So much of the queue's front is written."""
        left = count
        queue = self._queue
        while left:
            first = queue[0]
            if len(first) > left:
                queue[0] = memoryview(first)[left:]
                break
            left -= len(first)
            queue.popleft()
        self.queued_bytes -= count
        self._consumed(count)

    def _drop(self, count: int) -> None:
        if self._port is None and not self._done:
            self._fail(count)
        elif count:
            self._consumed(count)

    def _clear(self) -> None:
        self._queue.clear()
        count, self.queued_bytes = self.queued_bytes, 0
        if count:
            self._consumed(count)

    def _fail(self, more: int) -> None:
        """It takes no more: drop what is queued, and `more` that came just now."""
        self.close()
        if more:
            self._consumed(more)
        self._failed()
        self._call_done()

    def _end(self) -> None:
        if self._done or self._ending:
            return
        self._ending = True
        self._unwatch()
        port, self._port = self._port, None
        if port is not None and self._half_close:
            port.shut_down_writing()
        if port is None or port.close(self._closed):
            self._closed()

    def _closed(self) -> None:
        if not self._done:
            self._done = True
            self._call_done()

    def _release(self) -> None:
        self._unwatch()
        if self._port is not None and not self._busy:
            self._port.close()
            self._port = None

    def _unwatch(self) -> None:
        if self._watching and self._port is not None:
            self._loop.remove_writer(self._port.descriptor)
        self._watching = False


def _write_all(port: Port, pieces: list[memoryview]) -> int:
    """In a thread: write the pieces, or to a pollable one what it takes at once; nothing if the loop can do it."""
    if not port.known:
        port.find_out()
        if port.pollable:
            return 0
    written = 0
    for piece in pieces:
        while piece:
            try:
                count = port.write(piece)
            except BlockingIOError:
                return written
            written += count
            if port.pollable:
                return written
            piece = piece[count:]
    return written
