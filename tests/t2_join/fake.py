"""A control path of our own, with whatever a test puts behind it: raw bytes, or the server machine of the protocol.

Both ends run in one thread. So what a joining side sends without waiting for anything is all there when the other first
looks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio

from mux.protocol.control import ControlServer, NeedDescriptors, Requested, Signal
from mux.protocol.messages import (
    INFO_EXTENSION,
    Alive,
    AliveCheck,
    Extensions,
    Info,
    InfoRequest,
    NewSession,
    Ok,
    OpenForward,
    RemotePort,
    Reply,
    Request,
    SessionMessage,
    SessionOpened,
    StdioForward,
)

PID = 4711


class Peer:
    """The master's side of one client's connection."""

    def __init__(self, accepted: socket.socket, core: ControlServer) -> None:
        self.socket = accepted
        self.core = core
        self.heard = b""  # everything the client said
        self.descriptors: list[int] = []  # everything it handed over, to be closed here
        accepted.setblocking(False)

    def close(self) -> None:
        """Hang up, and let go of what was handed over. Idempotent."""
        self.socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()

    async def write(self, data: bytes) -> None:
        while data:
            await trio.lowlevel.wait_writable(self.socket)
            data = data[self.socket.send(data) :]

    async def send(self, *messages: Reply | SessionMessage) -> None:
        for message in messages:
            self.core.send(message)
        for data, _ in self.core.data_to_send():
            await self.write(data)

    async def read(self) -> bytes:
        """What is there, once there is something; nothing at the end."""
        await trio.lowlevel.wait_readable(self.socket)
        return self.read_nowait()

    def read_nowait(self) -> bytes:
        """Raises BlockingIOError."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, 65536, 16, socket.MSG_CMSG_CLOEXEC)
        self.heard += data
        self.descriptors += descriptors
        self.core.receive(data, descriptors)
        return data

    async def request(self) -> Request | None:
        """The client's next request, or None when it has gone. Greets first."""
        while True:
            await self.send()
            event = self.core.next_event()
            if isinstance(event, Requested):
                return event.message
            if event is Signal.ENDED:
                return None
            if event is Signal.NEED_DATA or isinstance(event, NeedDescriptors):
                await self.read()

    async def serve(self) -> None:
        """Say yes to everything until the client goes."""
        while (request := await self.request()) is not None:
            await self.send(yes(request))


def yes(request: Request) -> Reply:
    """The answer of a master that has and does everything."""
    number = request.request_id
    if isinstance(request, AliveCheck):
        return Alive(number, PID)
    if isinstance(request, NewSession | StdioForward):
        return SessionOpened(number, 0)
    if isinstance(request, InfoRequest):
        return Info(number, True, b"cipher none\r\n\x1b[31mred")
    if isinstance(request, OpenForward) and request.listen_port == 0:
        return RemotePort(number, 40000)
    return Ok(number)


@contextmanager
def listening(path: str, backlog: int = 8) -> Iterator[socket.socket]:
    """A socket that takes clients at `path`; without somebody who accepts them, a frozen master."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        try:
            listener.listen(backlog)
            listener.setblocking(False)
            yield listener
        finally:
            os.unlink(path)


@asynccontextmanager
async def master_at(
    path: str, handle: Callable[[Peer], Awaitable[None]] = Peer.serve, extensions: Extensions = (INFO_EXTENSION,)
) -> AsyncIterator[list[Peer]]:
    """A control path where each client is handled by `handle`, all closed at the end. Gives the list of them."""
    peers: list[Peer] = []

    async def accept(listener: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            peers.append(Peer(listener.accept()[0], ControlServer(extensions)))
            nursery.start_soon(handle, peers[-1])

    try:
        with listening(path) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept, listener, nursery)
                yield peers
                nursery.cancel_scope.cancel()
    finally:
        for peer in peers:
            peer.close()
