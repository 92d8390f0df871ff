"""Reading one open file: what the kernel asks, and what it will ask next.

The rule of this file: a byte from the server is received once, into the extent from which the kernel is answered.

A sequential reader has a *run*: extents side by side, each filled by READs of the server's best size that are kept in
flight a window ahead. Anything else is read as asked, into a buffer of its own, and leaves the run alone.

A run is of the file as it was known when the run began (`version`): when that is seen to have changed on the server, as
the kernel's pages it is of no use any more.

A short answer is not the end of the file unless it ends where the file is known to end; otherwise the rest is asked for
until the server says EOF. A failed READ is an error, never a short file.

Imported by `sshmuxfs.io.files`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from sshmuxfs.io import plan
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.exchange import Pending
from sshmuxfs.sftp.protocol import Status, StatusError


class _Piece:
    """One READ: `view` is where its bytes go. `end` is where its valid bytes end once it is complete."""

    __slots__ = ("complete", "end", "offset", "pending", "received_bytes", "view")

    def __init__(self, offset: int, view: memoryview) -> None:
        self.offset = offset
        self.view = view
        self.received_bytes = 0
        self.end = offset
        self.complete = False
        self.pending: Pending | None = None


class _Extent:
    """A stretch of the file in memory, requested from its start onwards."""

    __slots__ = ("buffer", "end", "pieces", "requested_end", "start", "view")

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.end = start + length
        self.requested_end = start
        self.buffer = bytearray(length)
        self.view = memoryview(self.buffer)
        self.pieces: list[_Piece] = []

    def piece(self, offset: int, length: int) -> _Piece:
        at = offset - self.start
        piece = _Piece(offset, self.view[at : at + length])
        self.pieces.append(piece)
        self.requested_end = offset + length
        return piece


class ReadAhead:
    """The reads of one open file.

    `size` tells how long the file is known to be, or None; `version` something that is different when its content is.
    """

    def __init__(
        self,
        client: Client,
        handle: bytes,
        size: Callable[[], int | None],
        budget: plan.Budget,
        *,
        ahead: bool,
        version: Callable[[], object] = lambda: None,
    ) -> None:
        self._client = client
        self._handle = handle
        self._size = size
        self._budget = budget
        self._ahead = ahead
        self._detector = plan.Detector()
        self._run: deque[_Extent] = deque()
        self._version = version
        self._run_version: object = None

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes of the file at `[offset, offset + size)`; fewer only at its end.

        Raises StatusError, ChannelLost, RequestTimeout.
        """
        known_end = self._size() or 0
        return await self._confirmed(offset, await self._read(offset, size), size, known_end)

    async def _read(self, offset: int, size: int) -> bytes | memoryview:
        sequential = self._detector.note(offset, size)
        end = offset + size
        if self._run and self._run_version != self._version():
            self.give_back()
        if not self._in_run(offset, end):
            if not sequential or not self._ahead or self._was_passed(offset):
                return await self._read_once(offset, size)
            if not self._continues(offset):
                self.give_back()
        self._extend(offset, end)
        if not self._in_run(offset, end):  # no memory to be had for a run, or past the known end
            return await self._read_once(offset, size)
        self._budget.touch(self)
        result = await self._take(tuple(self._run), offset, end)
        self._drop_before(offset - plan.REORDER_BYTES)
        return result

    def begin(self) -> None:
        """The file was opened to be read: ask for its head now, so that it is on the way when the kernel asks."""
        small = 0 < (self._size() or 0) <= plan.FIRST_FETCH_BYTES
        if self._ahead and small and self._client.lost is None:
            self._extend(0, 1)

    def invalidate(self) -> None:
        """The file was changed here: what was fetched before is not to be used any more."""
        if self._run:
            self.give_back()

    def give_back(self) -> None:
        """Forget the run. READs in flight keep their memory until they are answered."""
        self._run.clear()
        self._budget.release(self)

    # -- the run ------------------------------------------------------------------------------------------------------

    def _in_run(self, offset: int, end: int) -> bool:
        """Whether all that the file has of `[offset, end)` is requested."""
        run = self._run
        if not run or offset < run[0].start or offset >= run[-1].requested_end:
            return False
        known_end = self._size()
        return end <= run[-1].requested_end or (known_end is not None and known_end <= run[-1].requested_end)

    def _was_passed(self, offset: int) -> bool:
        """Whether the run has just left `offset` behind: a straggler among the reads of its stream."""
        return bool(self._run) and 0 < self._run[0].start - offset <= plan.REORDER_BYTES

    def _continues(self, offset: int) -> bool:
        """Whether a read at `offset`, late in the run or a little beyond its end, is best served by more of it."""
        run = self._run
        return bool(run) and run[0].start <= offset <= run[-1].requested_end + plan.REORDER_BYTES

    def _extend(self, offset: int, end: int) -> None:
        """Request what is missing of `[offset, end)` and of the window behind it, in one send."""
        known_end = self._size()
        if known_end is None or offset >= known_end:
            return
        want_end = end
        if self._ahead:
            streamed = self._detector.streamed_bytes
            window_bytes = plan.window_bytes(self._client.pace.in_flight_bytes, streamed)
            want_end += min(window_bytes, self._budget.share_bytes(self) // 2)
            if offset == 0:
                want_end = max(want_end, plan.FIRST_FETCH_BYTES)
        want_end = min(want_end, known_end)
        at = self._run[-1].requested_end if self._run else offset
        block_bytes = self._client.max_read_bytes
        new: list[_Piece] = []
        # Whole blocks only, but for the end of the file and for what the reader waits for now.
        while at < want_end and (want_end - at >= block_bytes or want_end == known_end or at < end):
            extent = self._run[-1] if self._run else None
            if extent is None or extent.requested_end == extent.end:
                extent = self._new_extent(at, known_end, block_bytes)
                if extent is None:
                    break
            length = min(block_bytes, extent.end - at, known_end - at)
            new.append(extent.piece(at, length))
            at += length
        if new:
            self._request(new)

    def _request(self, pieces: Sequence[_Piece]) -> None:
        reads = self._client.submit_reads(self._handle, [(piece.offset, piece.view) for piece in pieces])
        for piece, pending in zip(pieces, reads, strict=True):
            piece.pending = pending

    def _new_extent(self, start: int, known_end: int, block_bytes: int) -> _Extent | None:
        streamed = max(2 * self._detector.streamed_bytes, plan.FIRST_FETCH_BYTES)
        wanted = min(plan.EXTENT_BYTES, streamed, self._budget.share_bytes(self) // 2)
        length = min(max(1, wanted // block_bytes) * block_bytes, known_end - start)
        if not self._budget.take(self, length):
            return None
        extent = _Extent(start, length)
        if not self._run:
            self._run_version = self._version()
        self._run.append(extent)
        return extent

    def _drop_before(self, offset: int) -> None:
        run = self._run
        while len(run) > 1 and run[0].end <= offset:
            extent = run.popleft()
            self._budget.give(self, len(extent.buffer))

    async def _take(self, extents: Iterable[_Extent], offset: int, end: int) -> bytes | memoryview:
        """Wait for the pieces of `[offset, end)`; return their bytes, joined only where they span two extents."""
        parts: list[memoryview] = []
        ended = False
        for extent in extents:
            if ended or extent.end <= offset or extent.start >= end:
                continue
            last = min(end, extent.requested_end)
            for piece in extent.pieces:
                if piece.offset >= end:
                    break
                if piece.offset + len(piece.view) > offset:
                    await self._complete(piece)
                    if piece.end < piece.offset + len(piece.view):
                        last, ended = min(last, piece.end), True
                        break
            first = max(offset, extent.start)
            if last > first:
                parts.append(extent.view[first - extent.start : last - extent.start])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _complete(self, piece: _Piece) -> None:
        """Wait until all of a piece is there, or the file has ended within it."""
        length = len(piece.view)
        while not piece.complete:
            pending = piece.pending
            if pending is None:  # the channel ended before it could be asked for
                raise self._client.lost_error()
            if pending.done and pending.error is not None and not _is_end(pending.error):
                # It failed before anyone came for it, perhaps long ago: who comes now has it asked anew.
                self._ask_for_the_rest(piece)
                continue
            try:
                count = await self._client.wait(pending)
            except Exception as error:
                if not _is_end(error):
                    self.give_back()
                    raise
                count = 0
            if piece.pending is not pending:
                continue  # another reader of the same piece was first, and asked for the rest
            piece.received_bytes += count
            piece.end = piece.offset + piece.received_bytes
            if count == 0 or piece.received_bytes == length or piece.end == self._size():
                piece.complete, piece.pending = True, None
            else:
                self._ask_for_the_rest(piece)

    def _ask_for_the_rest(self, piece: _Piece) -> None:
        rest = piece.view[piece.received_bytes :]
        piece.pending = None  # counted; and asking may fail
        (piece.pending,) = self._client.submit_reads(self._handle, [(piece.offset + piece.received_bytes, rest)])

    async def _confirmed(
        self, offset: int, result: bytes | memoryview, size: int, known_end: int
    ) -> bytes | memoryview:
        """The result of a read, if it is whole or the file ends there. Raises StatusError.

        Before the end that was known when it was asked (what was written behind it since is not missing), and is now,
        that takes a question. A file that goes on was not read. One that has shrunk is answered up to its new end; an
        empty answer behind that would be a short one to the kernel too, which believes the first it gets and fills the
        others with zeros.
        """
        end = offset + len(result)
        if len(result) < size and end < min(known_end, self._size() or 0):
            now = (await self._client.fstat(self._handle)).size
            if now is not None and now != end and end < min(known_end, self._size() or 0):
                self.give_back()
                raise StatusError(Status.FAILURE, b"no data where there must be some")
        return result

    # -- without a run ------------------------------------------------------------------------------------------------

    async def _read_once(self, offset: int, size: int) -> bytes | memoryview:
        """Read exactly what is asked."""
        extent = _Extent(offset, size)
        pieces = [
            extent.piece(at, length) for at, length in plan.blocks(offset, offset + size, self._client.max_read_bytes)
        ]
        self._request(pieces)
        return await self._take((extent,), offset, offset + size)


def _is_end(error: Exception) -> bool:
    """Whether the server said that the file has ended."""
    return isinstance(error, StatusError) and error.code == Status.EOF
