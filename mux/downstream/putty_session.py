"""A session on a PuTTY upstream, as a byte stream.

The rules are those of a passenger (`passenger.py`), and this is the same `SessionStream`: raw non-blocking reads and
writes from and to the caller's buffers, trio only when one would block, no task and no queue. What a master does for a
passenger is done here, by `BareSession`: packets and windows. So whoever waits for output sends what is left of an
answer as well, and who waits for room takes what comes in, as long as nobody else does.

Made by `putty.py`.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Self

import trio

from mux.errors import ConnectionLost, ExitCode, JoinError, LocalProtocolError, RemoteProtocolError, printable
from mux.protocol.bare_session import BareSession

from .brief import BriefWait
from .openssh import SESSIONS_HINT
from .passenger import close_waking, closed_is_lost

OPEN_DEADLINE_S: Final = 10.0  # as for a session of a master: a round trip, and a server slow to start what is asked
SOCKET_BUFFER_BYTES: Final = 2 * 1024 * 1024  # one window of the server
BACKLOG_PIECE_BYTES: Final = 32768  # one packet


class PuttySession:
    """Implements `SessionStream`; owns the connection."""

    def __init__(self, connection: socket.socket, received: bytes) -> None:
        """`received`: what came behind the upstream's line."""
        self._socket = connection
        self._core = BareSession()
        self._early = received
        self._lost: str | None = None  # why there is no connection any more
        self._backlog: deque[memoryview] = deque()  # output that was taken by who waited for something else
        self._brief = BriefWait(self._socket)
        self._waiting_for_output = False
        self._room = trio.Event()
        self._eager = False  # whether the epoll waits for room in the socket as well
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        # Two tasks may wait for what comes in, which trio allows only for two descriptors.
        self._output = select.epoll()
        self._output.register(connection, select.EPOLLIN)
        self._input = select.epoll()
        self._input.register(connection, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def begin(self, command: bytes, subsystem: bool, environment: Sequence[bytes]) -> None:
        """Open the channel and ask for the command. Raises `JoinError`, `ConnectionLost`."""
        core = self._core
        core.open()
        self._feed(self._early)
        self._flush()
        while not core.opened:
            self._check()
            if core.refused is not None:
                text = printable(core.refused.text) or f"reason {core.refused.code}"
                raise JoinError(f"the server refused a session: {text}", ExitCode.REFUSED, SESSIONS_HINT)
            await trio.lowlevel.wait_readable(self._output.fileno())
            self._pump()
        try:
            core.start(command, subsystem=subsystem, environment=environment)
        except LocalProtocolError as error:
            raise JoinError(f"the command is too long for a PuTTY upstream: {error}", ExitCode.REFUSED) from None
        self._flush()

    # -- the stream ---------------------------------------------------------------------------------------------------

    async def receive_into(self, buffers: list[memoryview]) -> int:
        """As `Passenger.receive_into`. Raises `ConnectionLost` also when the upstream has gone."""
        return await self.receive(lambda: buffers)

    async def receive(self, buffers: Callable[[], list[memoryview]]) -> int:
        """As `receive_into`, with buffers that are asked for anew after each wait."""
        while (count := self.receive_nowait(buffers())) is None:
            self._waiting_for_output = True
            try:
                with closed_is_lost():
                    await trio.lowlevel.wait_readable(self._output.fileno())
            finally:
                self._waiting_for_output = False
        return count

    def receive_nowait(self, buffers: list[memoryview]) -> int | None:
        """As `receive_into`, but returns None when nothing is there."""
        count = self._from_backlog(buffers) if self._backlog else self._receive(buffers)
        if count:
            self._core.consumed(count)
            if self._core.outgoing:
                self._flush()
        return count

    def poll_within(self, timeout_s: float, *others: int) -> bool:
        """As `Passenger.poll_within`."""
        if self._core.ready or self._backlog:
            return True
        return self._brief.readable(timeout_s, others)

    def send_nowait(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        """Send from the front of `buffers` in one call, and return how many bytes were taken: 0 if it would block.

        Raises `ConnectionLost` when the other end has closed, or this one.
        """
        self._check()
        core = self._core
        if not core.takes_data:
            raise ConnectionLost("the session takes no more data: the other end has closed it")
        pieces = core.gather(buffers)
        if not pieces:
            return 0
        try:
            taken = core.sent(self._send(pieces))
        except OSError as error:
            self._pump()  # what it said before it went
            self._check()
            raise ConnectionLost(f"the session takes no more data: {error.strerror}") from None
        self._be_told_of_room()
        return taken

    async def wait_writable(self) -> None:
        """Return when `send_nowait` can make progress (or fail): a checkpoint. Raises `ConnectionLost` when closed."""
        core = self._core
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._lost is not None or not core.takes_data:
                return
            if core.room_bytes:
                with closed_is_lost():
                    await trio.lowlevel.wait_writable(self._socket)
                return
            if self._waiting_for_output:
                self._room = trio.Event()
                await self._room.wait()
                continue
            with closed_is_lost():
                await trio.lowlevel.wait_readable(self._input.fileno())
            if not self._waiting_for_output:
                self._pump()

    def stderr_text(self) -> str:
        """As `Passenger.stderr_text`."""
        self._pump()
        lines = (printable(line) for line in self._core.stderr.splitlines())
        return "; ".join(line for line in lines if line)

    async def wait_closed(self, *, deadline_s: float = OPEN_DEADLINE_S) -> int | None:
        """As `Passenger.wait_closed`; output that nobody received is dropped."""
        with trio.move_on_after(deadline_s):
            while True:
                self._pump()
                if self._core.closed or self._lost is not None:
                    return self._core.exit_value
                self._check_open()
                self._drop_backlog()
                with closed_is_lost():
                    await trio.lowlevel.wait_readable(self._output.fileno())
        raise ConnectionLost(f"the session did not end within {deadline_s:g} s", ExitCode.NO_ANSWER)

    def close(self) -> None:
        """Release every descriptor, at once. Whoever waits in another task gets `ConnectionLost`. Idempotent."""
        if self._socket.fileno() >= 0 and self._lost is None and not self._core.outgoing:
            self._core.close()  # behind what was not sent it would come too late, and the end of the socket says it too
            self._flush()
        for resource in (self._socket, self._output, self._input):
            close_waking(resource)
        self._room.set()

    # -- the connection -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._check_open()
        if self._lost is not None:
            raise self._lost_error()

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise ConnectionLost("the session was closed on this side")

    def _lost_error(self) -> ConnectionLost:
        return ConnectionLost(f"the PuTTY upstream is lost: {self._lost}")

    def _send(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        try:
            return self._socket.sendmsg(pieces, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def _flush(self) -> None:
        """Send what the core has to say; what does not fit is left to who next waits for output."""
        core = self._core
        try:
            core.gather(())
            core.sent(self._send([core.outgoing]))
        except OSError:  # who receives is told, after what came before the end
            core.outgoing.clear()
        self._be_told_of_room()

    def _be_told_of_room(self) -> None:
        """Have who waits for output woken as well when the socket takes more, as long as there is more to say."""
        if bool(self._core.outgoing) is not self._eager:
            self._eager = not self._eager
            events = select.EPOLLIN | select.EPOLLOUT if self._eager else select.EPOLLIN
            self._output.modify(self._socket, events)

    def _receive(self, buffers: list[memoryview], *, to_the_end: bool = False) -> int | None:
        """Fill `buffers` with output; 0 when there is no more of it, or, `to_the_end`, when the session is over."""
        core = self._core
        try:
            while True:
                count = core.take(buffers)
                if not count:
                    if core.closed or (core.ended and not to_the_end):
                        return 0
                    self._check()
                    received = self._socket.recvmsg_into(core.buffers(buffers))[0]
                    if not received:
                        raise RemoteProtocolError("it ended")
                    count = core.received(received)
                if core.outgoing:
                    self._flush()
                if core.room_bytes or core.ended:
                    self._room.set()
                if count:
                    return count
        except BlockingIOError:
            if core.outgoing:
                self._flush()
            return None
        except RemoteProtocolError as error:
            self._lost = str(error)
        except OSError as error:
            self._lost = error.strerror or str(error)
        self._room.set()
        raise self._lost_error()

    def _feed(self, data: bytes) -> None:
        place = self._core.buffers(())[0]
        place[: len(data)] = data
        self._core.received(len(data))

    def _pump(self) -> None:
        """Take what is there, output into the backlog, which the window bounds."""
        while self._lost is None and not self._core.closed and self._socket.fileno() >= 0:
            piece = memoryview(bytearray(BACKLOG_PIECE_BYTES))
            try:
                count = self._receive([piece], to_the_end=True)
            except ConnectionLost:
                return
            if not count:
                return
            self._backlog.append(piece[:count])

    def _from_backlog(self, buffers: list[memoryview]) -> int:
        done = 0
        for buffer in buffers:
            at = 0
            while at < len(buffer) and self._backlog:
                piece = self._backlog.popleft()
                count = min(len(piece), len(buffer) - at)
                buffer[at : at + count] = piece[:count]
                at += count
                if count < len(piece):
                    self._backlog.appendleft(piece[count:])
            done += at
        return done

    def _drop_backlog(self) -> None:
        count = sum(map(len, self._backlog))
        self._backlog.clear()
        self._core.consumed(count)
        if self._core.outgoing:
            self._flush()
