"""One SFTP channel, in trio: requests go out as they come, one task reads all replies, nothing waits for its turn.

The rule of this file: a request is given its id and handed to the stream in one synchronous step, so what was submitted
first is on the wire first. There is no task and no queue per request: whoever needs the answer waits for the `Pending`.

Every wait ends: `Client.serve` fails each request that has met silence for the deadline, and all of them the moment the
stream ends or the server breaks the protocol.

Imported by `sshmuxfs.session` (which opens channels), `sshmuxfs.io`, `sshmuxfs.operations`.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Any

import trio

from mux.downstream.openssh import SessionStream
from mux.errors import ConnectionLost, printable
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.exchange import Exchange, Pending, ProtocolViolation
from sshmuxfs.sftp.pace import Pace
from sshmuxfs.sftp.protocol import Attributes, Entry, Limits, Request, Status, StatusError, Statvfs

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

# OpenSSH's sftp-server takes and gives this much at once (limits@openssh.com says so: 255 KiB); other servers that name
# no limit are only bound to 32 KiB by the draft (section 3).
BEST_BLOCK_BYTES = 255 * 1024
SAFE_BLOCK_BYTES = 32 * 1024
# Linux takes at most 1024 pieces in one sendmsg (UIO_MAXIOV).
_MAX_PIECES = 512
# After so many bytes the reader lets other tasks run even if more are there: about one reply of the largest size, some
# 100 µs of work.
_TURN_BYTES = 512 * 1024
# A request that nobody waits for (CLOSE) goes out with the next one, or after this long: each send by itself wakes four
# processes on its way to the sftp-server.
LAZY_S = 0.05
# A deadline is watched in so many naps: one that took twice as long as it should was none of the other end.
_NAPS = 8
# A server nearer than this is waited for in place while nobody else waits: two rounds of the scheduler would take as
# long as the answer itself.
IN_PLACE_S = 0.001
# A wait in place begins with looking instead of sleeping, for no longer than this: on two processors a trip to a server
# on the same machine takes 0.1 to 0.25 ms. With one processor the server could not work meanwhile.
LOOK_S = 0.0004
# With more than a question, its follow-up and a CLOSE or two on the way it is a transfer, which wants the processors
# for itself.
FEW_REQUESTS = 4
SPARE_PROCESSOR = len(os.sched_getaffinity(0)) > 1


class ChannelLost(Exception):
    """The channel ended, or was never there; the message says why."""


class RequestTimeout(Exception):
    """The server did not answer within the deadline."""


class Client:
    """The client of one SFTP session on `stream`. Run `serve()` in a task; then call `start()`.

    `max_read_bytes` and `max_write_bytes` cap what the server allows in one request.
    """

    def __init__(
        self,
        stream: SessionStream,
        *,
        deadline_s: float,
        max_read_bytes: int | None = None,
        max_write_bytes: int | None = None,
    ) -> None:
        self.deadline_s = deadline_s
        self.pace = Pace()
        self.lost: str | None = None  # why the channel ended
        self.watched: tuple[int, ...] = ()  # descriptors for whose sake a wait in place ends: the kernel's requests
        self.broke_protocol = False  # whether it was the server's fault
        self._caps = (max_read_bytes or BEST_BLOCK_BYTES, max_write_bytes or BEST_BLOCK_BYTES)
        self.max_read_bytes = min(SAFE_BLOCK_BYTES, self._caps[0])
        self.max_write_bytes = min(SAFE_BLOCK_BYTES, self._caps[1])
        self._stream = stream
        self._exchange = Exchange()
        self._outgoing: deque[Buffer] = deque()
        self._outgoing_event = trio.Event()
        self._waiting = 0  # tasks that wait for an answer, parked
        self._lazy: list[bytes] = []
        self._lazy_event = trio.Event()
        self._started = trio.Event()
        self._progress_at_s = 0.0
        self._scope = trio.CancelScope()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run the channel until it ends; then every waiter has been told. Never raises; does not close the stream."""
        self._progress_at_s = monotonic()
        reason = "closed"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._send_lazy)
                    reason = await self._read_loop()
                    nursery.cancel_scope.cancel()
        except Exception:
            log.exception("the channel failed in a way it should not")
            reason = "an error in this program; see the log"
        finally:
            self.end(reason)

    async def start(self) -> None:
        """Exchange versions and limits. Raises ChannelLost, RequestTimeout."""
        self._send([self._exchange.start()])
        await self._greeting()
        if self.lost is not None:
            raise ChannelLost(self.lost)
        if not self._started.is_set():
            raise RequestTimeout(f"the SFTP server sent nothing for {self.deadline_s:g} s")
        try:
            limits = await self.limits()
        except StatusError:
            return
        self.max_read_bytes = _block_bytes(limits.max_read_bytes, self._caps[0])
        self.max_write_bytes = _block_bytes(limits.max_write_bytes, self._caps[1])

    async def _greeting(self) -> None:
        """Wait until the server has said something, or nothing for the deadline, which is counted as in `_watch`."""
        nap_s = self.deadline_s / _NAPS
        naps = 0
        while naps < _NAPS and not self._started.is_set():
            due_s = monotonic() + nap_s
            with trio.move_on_after(nap_s):
                await self._started.wait()
            if monotonic() - due_s <= nap_s:
                naps += 1

    def end(self, reason: str) -> None:
        """End the channel now; every waiter gets ChannelLost with this reason. Idempotent."""
        if self.lost is None:
            self.lost = reason
            self._scope.cancel()
            self._outgoing.clear()
            self._exchange.fail_all(self.lost_error)
            self._started.set()

    @property
    def greeted(self) -> bool:
        """Whether the server has said that it speaks SFTP."""
        return self._exchange.extensions is not None

    @property
    def extensions(self) -> Mapping[bytes, bytes]:
        """What the server said it can do beyond version 3, by name."""
        return self._exchange.extensions or {}

    # -- the tasks of a channel ---------------------------------------------------------------------------------------

    async def _read_loop(self) -> str:
        """Receive until the end; return the reason of the end."""
        exchange, stream = self._exchange, self._stream
        turn_bytes = 0
        try:
            # Whoever waits in place receives meanwhile, and then other buffers are due.
            while count := await stream.receive(exchange.receive_buffers):
                self._received(count)
                turn_bytes += count
                if turn_bytes >= _TURN_BYTES:
                    turn_bytes = 0
                    await trio.lowlevel.checkpoint()
        except ProtocolViolation as error:
            self.broke_protocol = True
            return f"the SFTP server broke the protocol: {error}"
        except (ConnectionLost, trio.ClosedResourceError) as error:
            return f"the connection was lost: {error}"
        return "the server or the connection ended it"

    def _received(self, count: int) -> None:
        self._progress_at_s = now_s = monotonic()
        exchange, pace = self._exchange, self.pace
        completed = exchange.bytes_received(count, now_s)
        while exchange.orphans:
            self.close_nowait(exchange.orphans.pop())
        for pending in completed:
            if pending.sink is not None:
                pace.delivered(exchange.delivered_bytes - pending.delivered_bytes, pending.sent_at_s, now_s)
        if completed:
            pace.answered(completed[-1].sent_at_s, now_s)
        elif exchange.extensions is not None and not self._started.is_set():
            self._started.set()

    async def _write_loop(self) -> None:
        """Send what did not fit at once."""
        while self.lost is None:
            await self._outgoing_event.wait()
            self._outgoing_event = trio.Event()
            while self._outgoing:
                try:
                    await self._stream.wait_writable()
                    if self._push():
                        self._progress_at_s = monotonic()
                except (ConnectionLost, trio.ClosedResourceError) as error:
                    self.end(f"the connection was lost: {error}")

    async def _watch(self) -> None:
        """Give up on requests that met silence for the deadline; late by an eighth of it at most.

        Silence while this process itself stood still (SIGSTOP, a machine that was away) is nobody's: it counts from
        the moment it goes on.
        """
        while True:
            nap_s = self.deadline_s / _NAPS
            due_s = monotonic() + nap_s
            await trio.sleep(nap_s)
            now_s = monotonic()
            if now_s - due_s > nap_s:
                self._progress_at_s = now_s
            late = self._exchange.overdue(now_s, self._progress_at_s, self.deadline_s)
            if late:
                log.warning("no answer for %g s: giving up on %d requests", self.deadline_s, len(late))
            for pending in late:
                try:
                    self._exchange.abandon(pending, RequestTimeout(f"no answer for {self.deadline_s:g} s"))
                except ProtocolViolation as error:
                    self.end(str(error))

    async def _send_lazy(self) -> None:
        while True:
            await self._lazy_event.wait()
            await trio.sleep(LAZY_S)
            self._lazy_event = trio.Event()
            if self._lazy:
                self._send([])

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, buffers: list[Buffer]) -> None:
        if self._lazy:
            buffers = [*self._lazy, *buffers]
            self._lazy.clear()
        idle = not self._outgoing
        if idle and len(buffers) <= _MAX_PIECES:
            # The common case: the stream takes it all, and no other task has to wake up.
            try:
                taken = self._stream.send_nowait(buffers)
            except ConnectionLost as error:
                self.end(f"the connection was lost: {error}")
                return
            if taken == sum(map(len, buffers)):
                return
            self._outgoing.extend(buffers)
            self._drop(taken)
        else:
            self._outgoing.extend(buffers)
        self._outgoing_event.set()

    def _push(self) -> int:
        """Hand the stream what it takes; return the number of bytes."""
        taken = self._stream.send_nowait(list(islice(self._outgoing, _MAX_PIECES)))
        self._drop(taken)
        return taken

    def _drop(self, count: int) -> None:
        """Take `count` bytes off the queue: they are sent."""
        while count:
            first = self._outgoing.popleft()
            if len(first) > count:
                self._outgoing.appendleft(memoryview(first)[count:])
                return
            count -= len(first)

    def lost_error(self) -> ChannelLost:
        """A new exception that says why the channel ended."""
        return ChannelLost(self.lost or "the channel is closing")

    def _check(self) -> None:
        if self.lost is not None:
            raise self.lost_error()

    def submit(self, *requests: Request) -> list[Pending]:
        """Send the requests together, in order. Raises ChannelLost if the channel has ended."""
        self._check()
        now_s = monotonic()
        pairs = [self._exchange.request(request, now_s) for request in requests]
        self._send([packet for _, packet in pairs])
        return [pending for pending, _ in pairs]

    def submit_reads(self, handle: bytes, reads: Sequence[tuple[int, memoryview]]) -> list[Pending]:
        """Ask for each `(offset, sink)`, all in one send; each result is the number of bytes put into its sink."""
        self._check()
        now_s = monotonic()
        pairs = [self._exchange.read(handle, offset, sink, now_s) for offset, sink in reads]
        self._send([packet for _, packet in pairs])
        return [pending for pending, _ in pairs]

    def submit_write(self, handle: bytes, offset: int, pieces: Sequence[Buffer], length: int) -> Pending:
        """Write the `length` bytes of `pieces` at `offset`; the pieces are sent from where they lie, uncopied."""
        self._check()
        pending, header = self._exchange.write(handle, offset, length, monotonic())
        self._send([header, *pieces])
        return pending

    async def settled(self, pending: Pending) -> None:
        """Wait until `pending` is done, whatever came of it. Of several sent together, wait for the last."""
        if not pending.done and self._is_alone():
            self._wait_in_place(pending)
        if not pending.done:
            event = pending.event
            if not isinstance(event, trio.Event):
                event = pending.event = trio.Event()
            self._waiting += 1
            try:
                await event.wait()
            finally:
                self._waiting -= 1

    def _is_alone(self) -> bool:
        """Whether nobody else waits on this channel, and the server is near enough to wait for it in place."""
        few = self._exchange.outstanding <= FEW_REQUESTS
        return few and not self._waiting and not self._outgoing and self.pace.shortest_s < IN_PLACE_S

    def _wait_in_place(self, pending: Pending) -> None:
        """Wait for an answer that will be here at once, without a round of the scheduler and without waking the reader.

        Ends when it is there, when the kernel has another request for us, or after IN_PLACE_S; then the reader takes
        over.
        """
        exchange, stream, now = self._exchange, self._stream, monotonic
        until_s = now() + IN_PLACE_S
        try:
            while not pending.done and self._poll_in_place(until_s):
                count = stream.receive_nowait(exchange.receive_buffers())
                if not count:
                    return  # the end is the reader's to tell
                self._received(count)
        except ProtocolViolation as error:
            self.broke_protocol = True
            self.end(f"the SFTP server broke the protocol: {error}")
        except ConnectionLost as error:
            self.end(f"the connection was lost: {error}")

    def _poll_in_place(self, until_s: float) -> bool:
        """Whether there are bytes before `until_s`, and before the kernel has another request for us.

        To be woken takes some 30 µs, which on a near server is a quarter of the trip: so we look again and again for as
        long as two trips take. Between the looks the processor is offered to whoever wants it.
        """
        stream, now = self._stream, monotonic
        look_until_s = min(until_s, now() + 2 * self.pace.shortest_s, now() + LOOK_S)
        while SPARE_PROCESSOR and now() < look_until_s:
            if stream.poll_within(0, *self.watched):
                return True
            os.sched_yield()
        return stream.poll_within(max(0.0, until_s - now()), *self.watched)

    async def wait(self, pending: Pending) -> Any:
        """Wait until `pending` is done; return its result. Raises StatusError, ChannelLost, RequestTimeout."""
        if not pending.done:
            await self.settled(pending)
        if pending.error is not None:
            raise pending.error
        return pending.result

    async def call(self, request: Request) -> Any:
        """Send one request and wait for its answer, as `decode_reply` gives it."""
        if request.EXTENSION and request.EXTENSION not in self.extensions:
            raise StatusError(Status.OP_UNSUPPORTED, b"the server does not offer " + request.EXTENSION)
        return await self.wait(self.submit(request)[0])

    # -- the requests, each a line ------------------------------------------------------------------------------------

    async def open(self, path: bytes, pflags: int, attributes: Attributes = sftp.NO_ATTRIBUTES) -> bytes:
        """Open a file; return its handle."""
        handle: bytes = await self.call(sftp.Open(path, pflags, attributes))
        return handle

    def close_nowait(self, handle: bytes) -> Pending | None:
        """Close a handle, soon; None if the channel is lost, which has closed it already.

        The answer need not be waited for. It matters where the handle was written to: a server may tell of a late
        failure there.
        """
        if self.lost is not None:
            return None
        pending, packet = self._exchange.request(sftp.Close(handle), monotonic())
        self._lazy.append(packet)
        self._lazy_event.set()
        return pending

    async def lstat(self, path: bytes) -> Attributes:
        """Attributes of `path` itself, a link not followed."""
        attributes: Attributes = await self.call(sftp.Lstat(path))
        return attributes

    async def stat(self, path: bytes) -> Attributes:
        """Attributes of what `path` leads to."""
        attributes: Attributes = await self.call(sftp.Stat(path))
        return attributes

    async def fstat(self, handle: bytes) -> Attributes:
        """Attributes of an open file."""
        attributes: Attributes = await self.call(sftp.Fstat(handle))
        return attributes

    async def realpath(self, path: bytes) -> bytes:
        """The absolute form of `path`, as the server sees it."""
        return _one_name(await self.call(sftp.Realpath(path)))

    async def expand_path(self, path: bytes) -> bytes:
        """As `realpath`, with `~` and `~user` understood."""
        return _one_name(await self.call(sftp.ExpandPath(path)))

    async def home_directory(self, username: bytes) -> bytes:
        """The home directory of `username`; of the login for an empty name."""
        return _one_name(await self.call(sftp.HomeDirectory(username)))

    async def readlink(self, path: bytes) -> bytes:
        """The target of a symbolic link."""
        return _one_name(await self.call(sftp.Readlink(path)))

    async def fsync(self, handle: bytes) -> None:
        """Have the server's disk hold what was written."""
        await self.call(sftp.Fsync(handle))

    async def statvfs(self, path: bytes) -> Statvfs:
        """The file system that `path` is on."""
        return sftp.decode_statvfs(await self.call(sftp.StatvfsPath(path)))

    async def fstatvfs(self, handle: bytes) -> Statvfs:
        """The file system that an open file is on."""
        return sftp.decode_statvfs(await self.call(sftp.StatvfsHandle(handle)))

    async def limits(self) -> Limits:
        """The server's limits."""
        return sftp.decode_limits(await self.call(sftp.GetLimits()))

    async def users_groups_by_id(self, uids: Sequence[int], gids: Sequence[int]) -> tuple[list[bytes], list[bytes]]:
        """The names of user and group ids on the server, empty where it knows none."""
        packed = [b"".join(each.to_bytes(4, "big") for each in ids) for ids in (uids, gids)]
        return sftp.decode_users_groups(await self.call(sftp.UsersGroupsById(*packed)))


def _block_bytes(limit_bytes: int, cap_bytes: int) -> int:
    """The block size for a limit the server named (0: none named)."""
    return max(512, min(limit_bytes or SAFE_BLOCK_BYTES, BEST_BLOCK_BYTES, cap_bytes))


def _one_name(entries: list[Entry]) -> bytes:
    if len(entries) != 1:
        raise StatusError(Status.BAD_MESSAGE, b"one name was expected")
    return entries[0].filename


def describe(error: StatusError) -> str:
    """The server's own words for an error, safe for a terminal."""
    return f"{error} ({printable(error.text)})" if error.text else str(error)
