"""SFTP channels without SSH: the real sftp-server as a child of ours, or a peer that says what the test says.

Both are reached through the `Passenger` that a session of a shared connection is: socket pairs, and a control
connection of which only the end matters here (the end of the child, told by its pidfd; or the closing of a socket). So
what is tested on top of it is the real thing from the socket upwards, and the server can be stopped, continued and
killed, or run in a namespace of its own.

Unlike the rest of tests/support this imports the package under test.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import trio
import trio.testing

from mux.downstream.passenger import Passenger, SessionStream
from mux.protocol.control import Signal
from mux.protocol.messages import ExitMessage, ServerMessage, UnknownMessage
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.protocol import Request
from tests.support.sshd import program, sftp_server

TEST_DEADLINE_S = 60.0
# More than any test has freed when it counts what is left open.
MOST_FREE_NUMBERS = 64
Buffers = Sequence[bytes | bytearray | memoryview]


async def eventually(condition: Callable[[], object], *, within_s: float = 20.0) -> None:
    """Return when it holds, for what nobody tells of. Raises TooSlowError."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.001)


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a test of an async function, with a deadline for the whole of it."""

    @functools.wraps(test)
    def run_test(**fixtures: Any) -> None:
        async def bounded() -> None:
            with trio.fail_after(TEST_DEADLINE_S):
                await test(**fixtures)

        trio.run(bounded)

    return run_test


class _EndOfChild:
    """What a control connection says of a session, made of a child process: its exit, then the end."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._descriptor = os.pidfd_open(child.pid)
        self._told = False

    def fileno(self) -> int:
        return self._descriptor

    def poll(self) -> ServerMessage | UnknownMessage | Signal:
        value = self._child.poll()
        if value is None:
            return Signal.NEED_DATA
        if self._told or value < 0:  # a session killed by a signal has no exit value
            return Signal.ENDED
        self._told = True
        return ExitMessage(0, value)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _EndOfPeer:
    """The same made of a socket: the end, when the other side is closed."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fileno(self) -> int:
        return self._control.fileno()

    def poll(self) -> ServerMessage | UnknownMessage | Signal:
        try:
            return Signal.NEED_DATA if self._control.recv(1) else Signal.ENDED
        except BlockingIOError:
            return Signal.NEED_DATA

    def close(self) -> None:
        self._control.close()


class Tap(Passenger):
    """A session that keeps what was sent through it. `hold` makes it take nothing more until `let_go`."""

    def __init__(
        self, end: _EndOfChild | _EndOfPeer, to_remote: socket.socket, from_remote: socket.socket, stderr: socket.socket
    ) -> None:
        super().__init__(end, to_remote, from_remote, stderr)
        self._free = trio.Event()
        self._free.set()
        self.sent = bytearray()
        self.sends = 0

    def send_nowait(self, buffers: Buffers) -> int:
        if not self._free.is_set():
            return 0
        count = super().send_nowait(buffers)
        self.sent += b"".join(buffers)[:count]
        self.sends += 1
        return count

    async def wait_writable(self) -> None:
        await self._free.wait()
        await super().wait_writable()

    def hold(self) -> None:
        self._free = trio.Event()

    def let_go(self) -> None:
        self._free.set()

    def requests(self) -> list[Request]:
        """The whole requests sent so far, INIT left out."""
        found = []
        at = 0
        while at + 4 <= len(self.sent):
            (length,) = struct.unpack_from(">I", self.sent, at)
            packet = bytes(self.sent[at : at + 4 + length])
            at += 4 + length
            if len(packet) == 4 + length and packet[4] != sftp.Type.INIT:
                found.append(sftp.decode_request(packet)[1])
        return found

    def forget(self) -> None:
        """Forget what was sent so far; nothing may be half sent."""
        self.sent.clear()
        self.sends = 0


def _pairs() -> tuple[list[socket.socket], list[socket.socket]]:
    """Three socket pairs, our ends first, which do not block."""
    pairs = [socket.socketpair() for _ in range(3)]
    for ours, _ in pairs:
        ours.setblocking(False)
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


class SftpProcess:
    """A running sftp-server. `command` stands in front of its path (`unshare ...`), `arguments` behind it."""

    def __init__(
        self,
        *,
        command: Iterable[str] = (),
        arguments: Iterable[str] = (),
        umask: int = 0o022,
        directory: Path | None = None,
    ) -> None:
        ours, theirs = _pairs()
        stdin, stdout, stderr = (each.fileno() for each in theirs)
        whole = [*command, sftp_server(), *arguments]
        try:
            self._child = subprocess.Popen(whole, stdin=stdin, stdout=stdout, stderr=stderr, umask=umask, cwd=directory)
        finally:
            for each in theirs:
                each.close()
        self.stream = Tap(_EndOfChild(self._child), *ours)
        self.pid = self._child.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def pause(self) -> None:
        """The server does nothing more, from now on: it is stopped when this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """The server is dead when this returns."""
        self._child.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        """Close the stream, and see the server end. Idempotent."""
        self.stream.close()
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait(10)


def unprivileged() -> SftpProcess:
    """A server that is not root: as we are, or as nobody."""
    if os.geteuid():
        return SftpProcess()
    return SftpProcess(command=[program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"])


def in_namespace(directory: Path, script: str) -> SftpProcess:
    """A server in a mount namespace of its own, in which `script` was run in `directory` first, as root."""
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    return SftpProcess(
        command=[*namespace, "--propagation", "private", "--", "sh", "-e", "-c", f'{script}\nexec "$0"'],
        directory=directory,
    )


class Peer:
    """The other end of a channel, played by the test. `requests` are those received, by id, in order."""

    def __init__(self) -> None:
        ours, theirs = _pairs()
        control, self._control = socket.socketpair()
        control.setblocking(False)
        self.stream = Tap(_EndOfPeer(control), *ours)
        self._outlet = theirs[1]
        self._from_client, self._to_client, self._stderr = (
            trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in theirs
        )
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.hang_up()

    def hang_up(self) -> None:
        """The server is gone."""
        for each in (self._from_client, self._to_client, self._stderr):
            each.socket.close()
        self._control.close()

    async def _packet(self) -> bytes:
        while len(self._buffer) < 4 or len(self._buffer) < 4 + struct.unpack_from(">I", self._buffer)[0]:
            received = await self._from_client.receive_some(1 << 20)
            assert received, "the client hung up"
            self._buffer += received
        length = 4 + struct.unpack_from(">I", self._buffer)[0]
        packet = bytes(self._buffer[:length])
        del self._buffer[:length]
        return packet

    async def request(self) -> tuple[int, Request]:
        """The next request and its id."""
        return sftp.decode_request(await self._packet())

    async def read(self) -> tuple[int, int, int]:
        """The id, offset and length of the next request, which has to be a READ."""
        request_id, request = await self.request()
        assert isinstance(request, sftp.Read)
        return request_id, request.offset, request.length

    async def silent(self) -> bool:
        """Whether the client has sent no request that was not taken yet; it had every chance to."""
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            self._buffer += await self._from_client.receive_some(1 << 20)
        return not self._buffer

    async def send(self, *packets: bytes) -> None:
        await self._to_client.send_all(b"".join(packets))

    def put_nowait(self, data: bytes) -> int:
        """Send what the socket takes at once; return how much that is."""
        return self._outlet.send(data)

    async def greet(self, greeting: bytes) -> None:
        """Take INIT and answer with `greeting`."""
        assert await self._packet() == sftp.INIT_PACKET
        await self.send(greeting)


@asynccontextmanager
async def serving(
    stream: SessionStream,
    *,
    deadline_s: float = 10.0,
    max_read_bytes: int | None = None,
    max_write_bytes: int | None = None,
) -> AsyncIterator[Client]:
    """A client on a stream, with its tasks running; not started yet."""
    client = Client(stream, deadline_s=deadline_s, max_read_bytes=max_read_bytes, max_write_bytes=max_write_bytes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.serve)
        try:
            yield client
        finally:
            client.end("the test ends")


@asynccontextmanager
async def real_channel(
    process: SftpProcess | None = None,
    *,
    deadline_s: float = 10.0,
    max_read_bytes: int | None = None,
    max_write_bytes: int | None = None,
) -> AsyncIterator[tuple[Client, SftpProcess]]:
    """A started client on a real sftp-server; its `Tap` holds nothing of the greetings."""
    with process or SftpProcess() as process:
        channel = serving(
            process.stream, deadline_s=deadline_s, max_read_bytes=max_read_bytes, max_write_bytes=max_write_bytes
        )
        async with channel as client:
            await client.start()
            process.stream.forget()
            yield client, process


async def handles_left_open(client: Client) -> int:
    """How many handles the server holds: it numbers them from 0, and gives numbers that are free before new ones."""
    handles: list[bytes] = [await client.call(sftp.Opendir(b"/")) for _ in range(MOST_FREE_NUMBERS)]
    for handle in handles:
        await client.call(sftp.Close(handle))
    return max(int.from_bytes(handle, "big") for handle in handles) + 1 - len(handles)


@asynccontextmanager
async def scripted_channel(
    greeting: bytes,
    *,
    deadline_s: float = 10.0,
    max_read_bytes: int | None = None,
    max_write_bytes: int | None = None,
) -> AsyncIterator[tuple[Client, Peer]]:
    """A started client on a peer that greets with `greeting`, and so names no limits unless that offers them."""
    with Peer() as peer:
        channel = serving(
            peer.stream, deadline_s=deadline_s, max_read_bytes=max_read_bytes, max_write_bytes=max_write_bytes
        )
        async with channel as client, trio.open_nursery() as nursery:
            nursery.start_soon(peer.greet, greeting)
            await client.start()
            peer.stream.forget()
            yield client, peer
