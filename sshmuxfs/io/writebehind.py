"""Writing one open file: what is accepted before it is acknowledged.

The rules of this file:
- Bytes go to the server in the order in which they were accepted, uncopied: the pieces the kernel gave are what is
  sent.
- Small writes wait for company only while others are on the way (as Nagle's rule for TCP): the first goes out at once,
  those that follow each other directly are joined into one WRITE of the server's best size.
- A write that was accepted and then failed is told at the next write, fsync and close of that descriptor, each of them.
- Whoever is concerned is told of each WRITE in the step in which it is sent (`on_sent`): what was asked after the bytes
  were accepted and before they were sent is answered without them.

Imported by `sshmuxfs.io.files`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sshmuxfs.io import plan
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.exchange import Pending

# Many tiny pieces are cheaper copied together than named one by one to the kernel.
_MAX_PIECES = 64


@dataclass(slots=True)
class Dirty:
    """What all files of a mount together have accepted and not yet seen acknowledged, and what is enough."""

    total_bytes: int = plan.WRITE_BUDGET_BYTES
    used_bytes: int = 0


class WriteBehind:
    """The writes of one open file."""

    def __init__(self, client: Client, handle: bytes, dirty: Dirty) -> None:
        self.error: Exception | None = None  # what became of the first write that failed
        self.told = False  # whether an fsync or a close was told of it; behind a write may stand the kernel alone
        self.used = False  # whether anything was accepted
        self.on_sent: Callable[[], object] | None = None
        self._client = client
        self._handle = handle
        self._dirty = dirty
        self._pieces: deque[bytes | memoryview] = deque()  # accepted and not sent, a run from `_start` to `_end`
        self._start = self._end = 0
        self.failed: tuple[int, int] | None = None  # offset and length of the WRITE that failed first
        self._in_flight: dict[Pending, tuple[int, int]] = {}
        self._in_flight_bytes = 0

    @property
    def pending_bytes(self) -> int:
        """What was accepted and is not acknowledged."""
        return self._end - self._start + self._in_flight_bytes

    async def write(self, offset: int, data: bytes) -> None:
        """Accept `data` for `offset`. Returns when there is room for it, not when it is written. Raises `error`."""
        self._raise_error()
        if not data:
            return
        self.used = True
        if self._pieces and offset != self._end:
            self.submit()
        if not self._pieces:
            self._start = self._end = offset
        self._pieces.append(data)
        self._end += len(data)
        self._dirty.used_bytes += len(data)
        self._send_full_blocks()
        if not self._in_flight:
            self.submit()
        window_bytes = plan.write_window_bytes(near=self._client.pace.near)
        while self._in_flight and (
            self.pending_bytes > window_bytes or self._dirty.used_bytes > self._dirty.total_bytes
        ):
            await self._client.settled(next(iter(self._in_flight)))
        self._raise_error()

    def submit(self) -> None:
        """Send what was accepted, so that every later request on this channel sees it."""
        self._send_full_blocks()
        if self._pieces:
            self._send(self._end - self._start)

    async def drain(self) -> None:
        """Wait until all that was accepted so far is acknowledged. Raises `error`."""
        await self.settled()
        self.told = self.error is not None
        self._raise_error()

    async def settled(self) -> None:
        """Wait until all that was accepted so far is answered, one way or the other."""
        self.submit()
        for pending in reversed(list(self._in_flight)):  # the last first: then the others are done as a rule
            await self._client.settled(pending)

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error.with_traceback(None)  # told many times: each must not keep alive what the last refused

    def _send_full_blocks(self) -> None:
        while self._end - self._start >= self._client.max_write_bytes:
            self._send(self._client.max_write_bytes)

    def _send(self, length: int) -> None:
        """Send the first `length` accepted bytes as one WRITE."""
        batch: list[bytes | memoryview] = []
        left = length
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                view = memoryview(piece)
                self._pieces.appendleft(view[left:])
                piece = view[:left]
            batch.append(piece)
            left -= len(piece)
        if len(batch) > _MAX_PIECES:
            batch = [b"".join(batch)]
        offset, self._start = self._start, self._start + length
        if self.error is not None or self._client.lost is not None:
            # Order is kept among what reaches the server: nothing is written behind a write that failed.
            self._fail(None)
            self._dirty.used_bytes -= length
            return
        pending = self._client.submit_write(self._handle, offset, batch, length)
        self._in_flight[pending] = offset, length
        self._in_flight_bytes += length
        if self.on_sent is not None:
            self.on_sent()
        if pending.done:  # the stream broke in the sending
            self._acknowledged(pending)
        else:
            pending.on_done = self._acknowledged

    def _acknowledged(self, pending: Pending) -> None:
        offset, length = self._in_flight.pop(pending)
        self._in_flight_bytes -= length
        if pending.error is not None:
            self.failed = self.failed or (offset, length)
            self._fail(pending.error)
        if not self._in_flight and self._pieces:
            self.submit()
        self._dirty.used_bytes -= length

    def _fail(self, error: Exception | None) -> None:
        if self.error is None:
            self.error = error or self._client.lost_error()
