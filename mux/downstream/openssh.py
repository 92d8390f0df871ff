"""Joining an OpenSSH master, or whoever speaks its control protocol: a control connection, and a session on it.

One rule: no byte is sent to a process that is neither ours nor root's, and every wait has a deadline, since OpenSSH
itself has none and a stopped master accepts connections for ever. A connection on which a request failed half-way is
closed: its next reply would be taken for another's.

We only ever travel as a passenger. The other way, proxy mode, is never asked for: a master (up to 10.5 at least) ends
with all its sessions when a channel opened that way is refused. Imported by `join.py`, and by the mount for
`SessionStream`.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Self

import trio

from mux.errors import ConnectionLost, ExitCode, JoinError, printable
from mux.protocol.control import ControlClient, Signal
from mux.protocol.messages import (
    DESCRIPTORS,
    Alive,
    AliveCheck,
    CloseForward,
    Failure,
    Forward,
    Info,
    InfoRequest,
    NewSession,
    OpenForward,
    PermissionDenied,
    RemotePort,
    Reply,
    Request,
    ServerMessage,
    StdioForward,
    StopListening,
    Terminate,
    UnknownMessage,
)

from .passenger import Passenger, SessionStream, close_waking, closed_is_lost

__all__ = ["ControlConnection", "Passenger", "SessionStream", "open_control"]

HELLO_DEADLINE_S: Final = 5.0  # a master answers from its event loop; only a prompt or a stop holds it up
REQUEST_DEADLINE_S: Final = 10.0  # holds a round trip to the server, and a slow one of some seconds

LONGEST_PATH_BYTES: Final = 107  # sun_path of Linux, less its NUL
RETRY_S: Final = 0.02  # a full queue of clients cannot be waited for: no event comes from an unconnected socket
READ_BYTES: Final = 4096
UCRED: Final = struct.Struct("3i")  # pid, uid, gid: unix(7)

# One channel's window, which OpenSSH sets to 2 MiB, can then stand in the socket while either side is busy. More would
# only hide data from whoever measures what is in flight; the system may allow less (net.core.wmem_max).
SOCKET_BUFFER_BYTES: Final = 2 * 1024 * 1024

SESSIONS_HINT: Final = (
    "the server allows only so many sessions on one connection (MaxSessions, 10 unless set): "
    "end one of them, or use a connection of its own"
)
DENIED_HINT: Final = "this connection asks before it is shared (`ControlMaster ask`), and the answer was no"


async def open_control(path: str, *, deadline_s: float = HELLO_DEADLINE_S) -> ControlConnection:
    """Connect to a control path, check whose it is, and exchange greetings.

    Raises `JoinError` when nothing (`NOTHING_TO_JOIN`), nobody in time (`NO_ANSWER`) or somebody else (`UNSAFE_SOCKET`)
    is there, and `RemoteProtocolError` when what is there speaks otherwise.
    """
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        raise JoinError(
            f"the control path {printable(path)} is longer than the {LONGEST_PATH_BYTES} bytes of a unix socket's name",
            ExitCode.UNSAFE_SOCKET,
            "set a shorter ControlPath; %C in it is a hash of fixed length",
        )
    try:
        connection = ControlConnection(path)
    except OSError as error:
        raise JoinError(f"there is no descriptor for a control connection: {error.strerror}") from None
    with connection._closed_on_failure():
        await connection._connect(deadline_s)
    return connection


class ControlConnection:
    """One connection to a control path, greetings exchanged: any number of requests, one after another, one session.

    The requests raise `JoinError` when refused or not answered in time, `ConnectionLost` when the other end goes,
    and `RemoteProtocolError`. Deadlines are in seconds and cover the whole request.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._shown = printable(path)
        self._core = ControlClient()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor of the socket, to wait on; -1 when closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Release the descriptor, at once; with it ends the session that was opened here. Idempotent."""
        close_waking(self._socket)

    async def alive(self, *, deadline_s: float = HELLO_DEADLINE_S) -> int:
        """Return the pid of the process that holds the connection. It says nothing on the link to the server."""
        reply = await self._request(AliveCheck(self._core.new_request_id()), deadline_s=deadline_s)
        assert isinstance(reply, Alive)
        return reply.pid

    async def open_session(
        self,
        command: bytes,
        *,
        subsystem: bool,
        environment: Sequence[bytes] = (),
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Passenger:
        """Run a command (or start a subsystem) on the server, without a terminal; the result owns this connection.

        `environment` holds b"NAME=value"; the master passes on what its SendEnv names, the server takes what its
        AcceptEnv does. A command or subsystem that cannot be started is no error here: the stream ends at once,
        without an exit value when it is a subsystem. Raises `JoinError` with `REFUSED` or `DENIED`; this connection
        is then closed.
        """
        request = NewSession(
            self._core.new_request_id(), subsystem=subsystem, command=command, environment=tuple(environment)
        )
        return await self._open_stream(request, 3, deadline_s)

    async def stdio_forward(self, host: bytes, port: int, *, deadline_s: float = REQUEST_DEADLINE_S) -> Passenger:
        """Connect to a host and port as seen from the server; the result owns this connection, and has no exit value.

        Raises `JoinError` with `REFUSED` or `DENIED`; this connection is then closed.
        """
        return await self._open_stream(StdioForward(self._core.new_request_id(), b"", host, port), 2, deadline_s)

    async def open_forward(self, forward: Forward, *, deadline_s: float = REQUEST_DEADLINE_S) -> int:
        """Open a forwarding, which then belongs to the master. Return its listening port, also if 0 was asked."""
        reply = await self._request(OpenForward(self._core.new_request_id(), *forward), deadline_s=deadline_s)
        return reply.port if isinstance(reply, RemotePort) else forward.listen_port

    async def close_forward(self, forward: Forward, *, deadline_s: float = REQUEST_DEADLINE_S) -> None:
        """Close a forwarding, named by exactly what opened it. Connections through it stay."""
        await self._request(CloseForward(self._core.new_request_id(), *forward), deadline_s=deadline_s)

    async def stop_listening(self, *, deadline_s: float = HELLO_DEADLINE_S) -> None:
        """Have the master take no more clients; those there are stay."""
        await self._request(StopListening(self._core.new_request_id()), deadline_s=deadline_s)

    async def terminate(self, *, deadline_s: float = HELLO_DEADLINE_S) -> None:
        """Have the master end, with every session on it. It may go before its answer comes, which is as good."""
        with suppress(ConnectionLost):
            await self._request(Terminate(self._core.new_request_id()), deadline_s=deadline_s)

    async def info(self, name: bytes, *, deadline_s: float = HELLO_DEADLINE_S) -> str:
        """Return the master's text on its "connection" or "channels": from 10.3 on, before that `JoinError`."""
        reply = await self._request(InfoRequest(self._core.new_request_id(), name), deadline_s=deadline_s)
        assert isinstance(reply, Info)
        if not reply.supported:
            raise JoinError(f"the master at {self._shown} does not tell: {printable(reply.text)}")
        return "\n".join(printable(line, 2000) for line in reply.text.splitlines())

    def poll(self) -> ServerMessage | UnknownMessage | Signal:
        """Return the next event without waiting: `NEED_DATA` when there is none yet."""
        event = self._core.next_event()
        if event is not Signal.NEED_DATA:
            return event
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return Signal.NEED_DATA
        except ConnectionResetError:  # closed before it read all we sent
            data = b""
        except OSError as error:
            raise ConnectionLost(f"the control connection can no longer be read: {error.strerror}") from None
        self._core.receive(data)
        return self._core.next_event()

    async def _connect(self, deadline_s: float) -> None:
        found = "its queue of clients stays full"
        with trio.move_on_after(deadline_s):
            await self._connect_socket()
            self._check_peer()
            found = "it accepts clients but does not greet them"
            await self._send()
            if await self._next_event() is Signal.ENDED:
                raise JoinError(f"what listens at {self._shown} hangs up without a greeting", ExitCode.PROTOCOL)
            return
        raise JoinError(
            f"no answer at {self._shown} within {deadline_s:g} s: {found}",
            ExitCode.NO_ANSWER,
            "its process is stopped or stuck, or waits for somebody to answer a question",
        )

    async def _connect_socket(self) -> None:
        while True:
            try:
                return self._socket.connect(self.path)
            except BlockingIOError:
                await trio.sleep(RETRY_S)
            except OSError as error:
                gone = isinstance(error, FileNotFoundError | ConnectionRefusedError)
                raise JoinError(
                    f"the control path {self._shown} cannot be connected to: {error.strerror}",
                    ExitCode.NOTHING_TO_JOIN if gone else ExitCode.UNSAFE_SOCKET,
                ) from None

    def _check_peer(self) -> None:
        _, uid, _ = UCRED.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        if uid not in (0, os.geteuid()):
            raise JoinError(
                f"the process that listens at {self._shown} belongs to user {uid}: nothing was sent to it",
                ExitCode.UNSAFE_SOCKET,
            )

    async def _open_stream(self, request: Request, count: int, deadline_s: float) -> Passenger:
        near, far = [], []
        try:
            with ExitStack() as ours, ExitStack() as theirs:
                for _ in range(count):
                    pair = _socket_pair()
                    near.append(ours.enter_context(pair[0]))
                    far.append(theirs.enter_context(pair[1]))
                await self._request(request, tuple(end.fileno() for end in far), deadline_s=deadline_s)
                stream = Passenger(self, near[0], near[1], near[2] if count == 3 else None)
                ours.pop_all()
                return stream
        except JoinError:
            self.close()  # a master closes its end as well once it has refused a session
            raise
        except OSError as error:
            self.close()
            raise JoinError(f"there are no descriptors for a session: {error.strerror}") from None

    async def _request(self, request: Request, descriptors: tuple[int, ...] = (), *, deadline_s: float) -> Reply:
        what = type(request).__name__
        self._core.send(request, descriptors)
        with self._closed_on_failure():
            with trio.move_on_after(deadline_s) as scope:
                await self._send()
                reply = await self._next_reply(what)
            if scope.cancelled_caught:
                raise JoinError(
                    f"the master at {self._shown} did not answer {what} within {deadline_s:g} s",
                    ExitCode.NO_ANSWER,
                    "its process or the server is stuck, or it waits for somebody to answer a question",
                )
        if isinstance(reply, PermissionDenied):
            raise JoinError(self._refused(what, reply.reason), ExitCode.DENIED, DENIED_HINT)
        if isinstance(reply, Failure):
            code = ExitCode.REFUSED if type(request) in DESCRIPTORS else ExitCode.FAILURE
            hint = SESSIONS_HINT if isinstance(request, NewSession) else ""
            raise JoinError(self._refused(what, reply.reason), code, hint)
        return reply

    def _refused(self, what: str, reason: bytes) -> str:
        return f"the master at {self._shown} refused {what}: {printable(reason)}"

    async def _next_reply(self, what: str) -> Reply:
        while True:
            event = await self._next_event()
            if event is Signal.ENDED:
                raise ConnectionLost(f"the master at {self._shown} closed the connection instead of answering {what}")
            if isinstance(event, Reply):
                return event

    async def _next_event(self) -> ServerMessage | UnknownMessage | Signal:
        while (event := self.poll()) is Signal.NEED_DATA:
            with closed_is_lost():
                await trio.lowlevel.wait_readable(self._socket)
        return event

    async def _send(self) -> None:
        """Write what the core has to send, a request and its descriptors without a pause: until it has them all, a
        master serves nobody."""
        for data, descriptors in self._core.data_to_send():
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            while data:
                try:
                    data = data[self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    with closed_is_lost():
                        await trio.lowlevel.wait_writable(self._socket)
                except OSError as error:
                    raise ConnectionLost(f"the master at {self._shown} takes no request: {error.strerror}") from None

    @contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """Our end, which does not block, and the one to hand over, of which that is for its owner to decide."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    ours.setblocking(False)
    return ours, theirs
