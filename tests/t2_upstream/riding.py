"""An upstream in this very process, on a real server, with real and raw clients on its control path.

The upstream runs in the test's own event loop, so that a test can look at it and turn its knobs; what rides on it are
processes, or sockets that say what no decent client would.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from mux.protocol.control import ControlClient, Signal
from mux.protocol.messages import Request, ServerMessage, UnknownMessage
from mux.rendezvous.target import SshOptions, resolve
from mux.upstream.clients import Client
from mux.upstream.configuration import settings_of
from mux.upstream.settings import Settings
from mux.upstream.upstream import Upstream
from tests.support.sshd import HOST, Sshd, program

from .harness import engine_to

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended."""

    code: int
    out: bytes
    err: str


class NamedPlace:
    """A published socket (the real thing is `mux.rendezvous.publish`'s business)."""

    def __init__(self, path: str) -> None:
        self._path: str | None = path

    def withdraw(self) -> None:
        if self._path is not None:
            os.unlink(self._path)
            self._path = None


class Ride:
    """An upstream that is served at `path`."""

    def __init__(self, upstream: Upstream, path: str, sshd: Sshd, served: asyncio.Task[str]) -> None:
        self.upstream = upstream
        self.path = path
        self.sshd = sshd
        self.served = served

    @property
    def clients(self) -> list[Client]:
        """Those at the control path."""
        return [client for client in self.upstream.clients if isinstance(client, Client)]

    async def run(self, *command: str, data: bytes | None = None) -> Done:
        """A program, to its end."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL if data is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.sshd.environment(),
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                out, err = await process.communicate(data)
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
            raise AssertionError(f"{command} does not end; so far: {out!r} {err!r}") from None
        assert process.returncode is not None
        return Done(process.returncode, out, err.decode(errors="replace"))

    async def ssh(self, *arguments: str, data: bytes | None = None) -> Done:
        """`ssh -S path ARGUMENTS`: the host is the caller's to name."""
        return await self.run(program("ssh"), "-F", str(self.sshd.ssh_config), "-S", self.path, *arguments, data=data)

    async def control(self, request: str, *arguments: str) -> Done:
        """`ssh -O request`"""
        return await self.ssh("-O", request, *arguments, HOST)

    async def raw(self) -> Raw:
        """A client that says what it is told to."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        while True:
            try:
                connection.connect(self.path)
                return Raw(connection)
            except BlockingIOError:  # the queue is full, and the upstream gets no turn as long as we have ours
                await asyncio.sleep(0)


class Raw:
    """The client's end of a control connection, by bytes or by messages; a context manager."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.core = ControlClient()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def write(self, data: bytes, descriptors: Iterable[int] = ()) -> None:
        """Send bytes, with the descriptors in the call of the first."""
        loop = asyncio.get_running_loop()
        numbers = list(descriptors)
        if numbers:
            count = socket.send_fds(self.socket, [data], numbers)
            data = data[count:]
        async with asyncio.timeout(DEADLINE_S):
            await loop.sock_sendall(self.socket, data)

    async def read(self, count: int) -> bytes:
        """So many bytes, or fewer at the end."""
        loop = asyncio.get_running_loop()
        data = b""
        async with asyncio.timeout(DEADLINE_S):
            while len(data) < count:
                try:
                    piece = await loop.sock_recv(self.socket, count - len(data))
                except ConnectionResetError:  # what we sent was not read before it was closed
                    break
                if not piece:
                    break
                data += piece
        return data

    async def rest(self) -> bytes:
        """All until it is hung up on."""
        return await self.read(1 << 30)

    async def greet(self) -> Self:
        """Greet, as a decent client."""
        await self._flush()
        await self.event()
        return self

    async def ask(self, request: Request, descriptors: tuple[int, ...] = ()) -> ServerMessage | UnknownMessage:
        """A request and its answer."""
        self.core.send(request, descriptors)
        await self._flush()
        event = await self.event()
        assert not isinstance(event, Signal), event
        return event

    async def event(self) -> ServerMessage | UnknownMessage | Signal:
        """The next message, or `Signal.ENDED`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE_S):
            while (event := self.core.next_event()) is Signal.NEED_DATA:
                try:
                    self.core.receive(await loop.sock_recv(self.socket, 4096))
                except ConnectionResetError:
                    self.core.receive(b"")
        return event

    async def _flush(self) -> None:
        for data, descriptors in self.core.data_to_send():
            await self.write(data, descriptors)


def settings_for(sshd: Sshd, **changes: Any) -> Settings:
    """What `sshd`'s client configuration says, and `changes` to it."""
    target = resolve(HOST, None, SshOptions(config_file=str(sshd.ssh_config)))
    return dataclasses.replace(settings_of(target), **changes)


@asynccontextmanager
async def riding(sshd: Sshd, path: str, *, prompts: Any = None, **changes: Any) -> AsyncIterator[Ride]:
    """Serve an upstream at `path`; `changes` are to its settings. At the end it is ended, and has to end in order."""
    engine = await engine_to(sshd)
    upstream = Upstream(engine, settings_for(sshd, **changes), prompts=prompts, path=path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    served = asyncio.create_task(upstream.serve(listener, NamedPlace(path)))
    await asyncio.sleep(0)
    try:
        yield Ride(upstream, path, sshd, served)
    finally:
        upstream.end("the test is over")
        async with asyncio.timeout(DEADLINE_S):
            await served
            await engine.closed()
    assert not upstream.clients
    assert not os.path.exists(path)


async def eventually(condition: Any) -> None:
    """Wait until this is so, which nothing tells."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)
