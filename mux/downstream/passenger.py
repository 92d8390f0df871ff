"""A session whose descriptors were handed over: what the other end of three socket pairs looks like from here.

The connection's holder does encryption and flow control; we have a byte stream each way. One rule: the streams are
raw non-blocking sockets, read and written by one system call straight from and to the caller's buffers, and trio is
asked only when that call would block. Nothing is ever half-closed: to a master, a client that shuts down one
direction has gone.

stderr needs no task and no call of its own. Left alone, a full stderr would stop the remote command once the
channel's window is used up, and then no output would come either. So whoever waits for output waits for stderr as
well (one epoll descriptor stands for both), and reads it only when a wake-up brought no output. While output flows,
stderr costs nothing, and can stop nothing for longer than until the reader next has to wait.

Made by `openssh.py`; used through the `SessionStream` protocol.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, Self

import trio

from mux.errors import ConnectionLost, ExitCode, printable
from mux.protocol.control import Signal
from mux.protocol.messages import ExitMessage, ServerMessage, UnknownMessage

from .brief import BriefWait

GATHER_LIMIT: Final = 1024  # IOV_MAX of Linux: more buffers in one call are an error
STDERR_KEPT_BYTES: Final = 4096  # enough for what a failing sftp-server or shell says; the end of it matters
STDERR_READ_BYTES: Final = 65536
STDERR_READS_LIMIT: Final = 64  # without waiting: more than a socket holds, so that only a flood is cut short


class SessionStream(Protocol):
    """A byte stream each way to a remote command. One task may receive and one may send at a time."""

    async def receive_into(self, buffers: list[memoryview]) -> int: ...
    async def receive(self, buffers: Callable[[], list[memoryview]]) -> int: ...
    def receive_nowait(self, buffers: list[memoryview]) -> int | None: ...
    def poll_within(self, timeout_s: float, *others: int) -> bool: ...
    def send_nowait(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int: ...
    async def wait_writable(self) -> None: ...
    def stderr_text(self) -> str: ...
    async def wait_closed(self) -> int | None: ...
    def close(self) -> None: ...


class ControlEvents(Protocol):
    """What a passenger needs of its control connection: one connection carries one session, and says how it ends."""

    def fileno(self) -> int: ...
    def poll(self) -> ServerMessage | UnknownMessage | Signal: ...
    def close(self) -> None: ...


class Passenger:
    """Implements `SessionStream` over the ends of socket pairs, all of which, and the control connection, it owns."""

    def __init__(
        self,
        control: ControlEvents,
        to_remote: socket.socket,
        from_remote: socket.socket,
        stderr: socket.socket | None,
    ) -> None:
        """Take ownership of non-blocking sockets; `stderr` is None where there is none (a stdio forwarding)."""
        self._control = control
        self._to_remote = to_remote
        self._from_remote = from_remote
        self._stderr = stderr
        self._stderr_tail = b""
        self._brief = BriefWait(self._from_remote)
        self._ended = False
        self._exit_value: int | None = None
        # What is waited for while the session runs, and for its end. A socket that is closed leaves both by itself.
        self._output = _epoll(from_remote, stderr)
        self._end = _epoll(control, stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def receive_into(self, buffers: list[memoryview]) -> int:
        """Fill `buffers` in order with what is there, and return how many bytes that is; 0 at the end of the stream.

        This is no checkpoint when bytes are there, however often it is called: a caller that may find them always there
        yields by itself now and then. The buffers hold at least one byte in all, and are 1024 at most.
        Raises `ConnectionLost` when the session was closed on this side.
        """
        return await self.receive(lambda: buffers)

    async def receive(self, buffers: Callable[[], list[memoryview]]) -> int:
        """As `receive_into`, with buffers that are asked for anew after each wait: for who also receives meanwhile."""
        woken = False
        while (count := self.receive_nowait(buffers())) is None:
            if woken:
                self._take_stderr()
            with closed_is_lost():
                await trio.lowlevel.wait_readable(self._output.fileno())
            woken = True
        return count

    def receive_nowait(self, buffers: list[memoryview]) -> int | None:
        """As `receive_into`, but returns None when nothing is there."""
        try:
            return self._from_remote.recvmsg_into(buffers)[0]
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConnectionLost(f"the session can no longer be read: {error.strerror}") from None

    def poll_within(self, timeout_s: float, *others: int) -> bool:
        """Block until there are bytes to receive, one of the descriptors `others` can be read, or the time is over.

        Returns whether there are bytes. For waits too short to be worth a round of the scheduler.
        """
        return self._brief.readable(timeout_s, others)

    def send_nowait(self, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        """Send from the front of `buffers` in one call, and return how many bytes were taken: 0 if it would block.

        Raises `ConnectionLost` when the other end has closed, or this one.
        """
        if len(buffers) > GATHER_LIMIT:
            buffers = buffers[:GATHER_LIMIT]
        try:
            return self._to_remote.sendmsg(buffers, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(f"the session takes no more data: {error.strerror}") from None

    async def wait_writable(self) -> None:
        """Return when `send_nowait` can make progress (or fail): a checkpoint. Raises `ConnectionLost` when closed."""
        if self._to_remote.fileno() < 0:
            raise ConnectionLost("the session is closed")
        with closed_is_lost():
            await trio.lowlevel.wait_writable(self._to_remote)

    def stderr_text(self) -> str:
        """Return the end of what the remote command wrote on stderr so far, its lines joined by "; ", safe to show."""
        self._take_stderr(STDERR_READS_LIMIT)
        lines = (printable(line) for line in self._stderr_tail.splitlines())
        return "; ".join(line for line in lines if line)

    async def wait_closed(self, *, deadline_s: float = 10.0) -> int | None:
        """Wait for the end of a session whose output has ended, and return its exit value.

        None means that it ended without one: killed by a signal, refused (as an unknown subsystem is), or lost.
        Raises `ConnectionLost` when the end does not come within `deadline_s`, `RemoteProtocolError` for nonsense.
        """
        with trio.move_on_after(deadline_s):
            while not self._read_control():
                self._take_stderr()  # a master ends the session only when its stderr is read
                with closed_is_lost():
                    await trio.lowlevel.wait_readable(self._end.fileno())
            return self._exit_value
        raise ConnectionLost(f"the session did not end within {deadline_s:g} s", ExitCode.NO_ANSWER)

    def close(self) -> None:
        """Release every descriptor, at once. Whoever waits in another task gets `ConnectionLost`. Idempotent."""
        for stream in (self._to_remote, self._from_remote, self._stderr, self._output, self._end):
            close_waking(stream)
        self._control.close()

    def _read_control(self) -> bool:
        """Take what the control connection says, and return whether it has ended. The loss of a terminal we never asked
        for changes nothing, and neither does a message that a later version may have added."""
        while not self._ended:
            if self._end.closed:
                raise ConnectionLost("the session was closed on this side")
            event = self._control.poll()
            if event is Signal.NEED_DATA:
                return False
            self._ended = event is Signal.ENDED
            if isinstance(event, ExitMessage):
                self._exit_value = event.exit_value
        return True

    def _take_stderr(self, reads: int = 1) -> None:
        for _ in range(reads):
            if self._stderr is None:
                return
            try:
                data = self._stderr.recv(STDERR_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._stderr_tail = (self._stderr_tail + data)[-STDERR_KEPT_BYTES:]
            if not data:
                self._stderr.close()
                self._stderr = None


def close_waking(resource: socket.socket | select.epoll | None) -> None:
    """Close something that has a descriptor, if it is open, and wake with an error whoever waits for it in trio."""
    if resource is None or _is_closed(resource):
        return
    if trio.lowlevel.in_trio_run():
        trio.lowlevel.notify_closing(resource.fileno())
    resource.close()


def _is_closed(resource: socket.socket | select.epoll) -> bool:
    return resource.closed if isinstance(resource, select.epoll) else resource.fileno() < 0


def _epoll(*streams: socket.socket | ControlEvents | None) -> select.epoll:
    together = select.epoll()
    for stream in streams:
        if stream is not None:
            together.register(stream, select.EPOLLIN)
    return together


@contextmanager
def closed_is_lost() -> Iterator[None]:
    """Around a wait for a descriptor: raises `ConnectionLost` when `close_waking` closed it meanwhile."""
    try:
        yield
    except trio.ClosedResourceError:
        raise ConnectionLost("the session was closed on this side while it was waited for") from None
