"""An SSH server that says what no honest one would, and the cable that corrupts what an honest one says.

Both run in the test's own event loop, on loopback.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh

from tests.t2_upstream.harness import DEADLINE_S


class _Evil(asyncssh.SSHServer):
    def __init__(self, came: asyncio.Future[asyncssh.SSHServerConnection]) -> None:
        self._came = came

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._came.set_result(conn)

    def begin_auth(self, username: str) -> bool:
        return False


class EvilServer:
    """Lets one client in without a question. `port` is on 127.0.0.1; `options` are those for `engine.start`."""

    def __init__(self, port: int, key: asyncssh.SSHKey, came: asyncio.Future[asyncssh.SSHServerConnection]) -> None:
        self.port = port
        self.options: dict[str, Any] = {
            "host": "evil",
            "username": "somebody",
            "client_keys": None,
            "known_hosts": ([key], [], []),
            "agent_path": None,
            "encryption_algs": ["aes128-gcm@openssh.com"],
        }
        self._came = came

    async def peer(self) -> asyncssh.SSHServerConnection:
        """The server's side of the connection: `send_packet(kind, *parts)` sends anything."""
        return await asyncio.wait_for(asyncio.shield(self._came), DEADLINE_S)


@asynccontextmanager
async def evil_server(**options: Any) -> AsyncIterator[EvilServer]:
    """`options` are asyncssh's, for its server."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    came: asyncio.Future[asyncssh.SSHServerConnection] = asyncio.get_running_loop().create_future()
    acceptor = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=lambda: _Evil(came), server_host_keys=[key], config=None, **options
    )
    try:
        yield EvilServer(acceptor.get_port(), key.convert_to_public(), came)
    finally:
        acceptor.close()
        await acceptor.wait_closed()
        if came.done():
            came.result().abort()
            await came.result().wait_closed()


class Cable:
    """A TCP proxy. What comes from the server passes `change`, which is set at any time.

    port    where it listens, on 127.0.0.1
    """

    def __init__(self) -> None:
        self.port = 0
        self.change: Callable[[bytes], bytes] = lambda data: data

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, far_writer, lambda data: data))
                group.create_task(self._carry(far_reader, writer, lambda data: self.change(data)))
        except* ConnectionError:
            pass
        finally:
            for end in (writer, far_writer):
                end.close()

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        while data := await source.read(1 << 16):
            sink.write(change(data))
            await sink.drain()
        raise ConnectionResetError


@asynccontextmanager
async def cable(target_port: int) -> AsyncIterator[Cable]:
    """A cable to 127.0.0.1:`target_port`."""
    made = Cable()
    running: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.create_task(made.serve(reader, writer, target_port)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
