"""Joining a PuTTY upstream: a connection to its socket, the lines that are said first, and what it is then used for.

An upstream listens before it is logged in, and one that is sent a packet then dies (PuTTY 0.71 to 0.84). So its line is
waited for before anything but ours is said, with a deadline, which PuTTY's tools do not have.

Imported by `join.py`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from mux.errors import ConnectionLost, ExitCode, JoinError, RemoteProtocolError, printable
from mux.protocol.bare import Greeting, Role, greeting_of_downstream
from mux.rendezvous.putty import not_logged_in, waiting_for

from .openssh import RETRY_S
from .passenger import close_waking
from .putty_session import OPEN_DEADLINE_S, PuttySession

SOFTWARE: Final = "sshmuxfs"
SAY_WAITING_S: Final = 1.0
READ_BYTES: Final = 4096
_UCRED: Final = struct.Struct("3i")  # pid, uid, gid: unix(7)


async def open_session(
    path: str,
    command: bytes,
    *,
    subsystem: bool,
    environment: Sequence[bytes] = (),
    deadline_s: float = OPEN_DEADLINE_S,
    say: Callable[[str], None] = lambda line: None,
) -> PuttySession:
    """Run a command (or start a subsystem) through the upstream that listens at `path`.

    `environment` holds b"NAME=value"; the server takes what its AcceptEnv names. A command or subsystem that cannot be
    started is no error here: the stream ends at once, without an exit value. `say` is told when the upstream has to be
    waited for. Raises `JoinError`: NOTHING_TO_JOIN, NO_ANSWER, UNSAFE_SOCKET, PROTOCOL, and REFUSED with the server's
    words; `ConnectionLost`.
    """
    connection = _new_socket()
    opening = _Opening(path, connection, say)
    session: PuttySession | None = None
    try:
        with trio.move_on_after(deadline_s), _told_as_join_error(path):
            session = PuttySession(connection, await opening.greet())
            await session.begin(command, subsystem, environment)
            return session
        raise opening.too_late(deadline_s, session is not None)
    except BaseException:
        if session is not None:
            session.close()
        close_waking(connection)
        raise


async def open_idle(path: str, *, deadline_s: float) -> Idle:
    """Be one of the upstream's downstreams, without a session: it then stays, as for `plink -share -N`.

    Raises `JoinError` and `ConnectionLost` as `open_session` does.
    """
    connection = _new_socket()
    opening = _Opening(path, connection, lambda line: None)
    try:
        with trio.move_on_after(deadline_s), _told_as_join_error(path):
            await opening.greet()
            return Idle(connection)
        raise opening.too_late(deadline_s, False)
    except BaseException:
        close_waking(connection)
        raise


class Idle:
    """A connection to an upstream on which nothing is said any more."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def close(self) -> None:
        """Release it. Idempotent."""
        self._socket.close()


class _Opening:
    """The way to an upstream's greeting."""

    def __init__(self, path: str, connection: socket.socket, say: Callable[[str], None]) -> None:
        self._path = path
        self._connection = connection
        self._say = say
        self._pid = 0
        self._connected = False

    async def greet(self) -> bytes:
        """Connect, exchange lines, and return what came behind the upstream's."""
        await self._connect()
        self._connected = True
        self._pid = self._check_peer()
        with _lost_if_gone():
            self._connection.send(greeting_of_downstream(SOFTWARE), socket.MSG_NOSIGNAL)
        with trio.move_on_after(SAY_WAITING_S):
            return await self._line(greeting := Greeting(Role.DOWNSTREAM))
        self._say(waiting_for(self._pid))
        return await self._line(greeting)

    def too_late(self, deadline_s: float, greeted: bool) -> JoinError:
        """What the deadline cut short."""
        where = printable(self._path)
        if greeted:
            message = f"the server opened no session within {deadline_s:g} s through the PuTTY upstream at {where}"
            return JoinError(message, ExitCode.NO_ANSWER)
        if self._connected:
            return JoinError(not_logged_in(self._path, self._pid), ExitCode.NO_ANSWER)
        message = f"the PuTTY upstream at {where} takes no client: its queue stayed full for {deadline_s:g} s"
        return JoinError(message, ExitCode.NO_ANSWER, "its process is stopped or stuck")

    async def _connect(self) -> None:
        """An unconnected socket has no event for a queue that has room again."""
        while True:
            try:
                return self._connection.connect(self._path)
            except BlockingIOError:
                await trio.sleep(RETRY_S)
            except OSError as error:
                gone = isinstance(error, FileNotFoundError | ConnectionRefusedError)
                raise JoinError(
                    f"no PuTTY upstream can be connected to at {printable(self._path)}: {error.strerror or error}",
                    ExitCode.NOTHING_TO_JOIN if gone else ExitCode.UNSAFE_SOCKET,
                ) from None

    def _check_peer(self) -> int:
        pid, uid, _ = _UCRED.unpack(self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            raise JoinError(
                f"the process that listens at {printable(self._path)} belongs to user {uid}: nothing was sent to it",
                ExitCode.UNSAFE_SOCKET,
            )
        return int(pid)

    async def _line(self, greeting: Greeting) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._connection)
            with _lost_if_gone():
                data = self._connection.recv(READ_BYTES)
            if not data:
                raise JoinError(
                    f"the PuTTY upstream at {printable(self._path)} hung up: it did not log in, or has just ended",
                    ExitCode.NOTHING_TO_JOIN,
                )
            if greeting.receive(data):
                return greeting.rest


def _new_socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise JoinError(f"there is no descriptor for a session: {error.strerror}") from None


@contextmanager
def _told_as_join_error(path: str) -> Iterator[None]:
    try:
        yield
    except RemoteProtocolError as error:
        message = f"the PuTTY upstream at {printable(path)} cannot be used: {error}"
        raise JoinError(message, ExitCode.PROTOCOL) from None
    except OSError as error:
        raise JoinError(f"there are no descriptors for a session: {error.strerror}") from None


@contextmanager
def _lost_if_gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConnectionLost(f"the PuTTY upstream is lost: {error.strerror}") from None
