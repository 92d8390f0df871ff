"""An engine on a real server, for whoever tests what works on one; and a command run over it with bare packets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncssh

from mux.protocol.wire import Reader, string, u32
from mux.upstream.engine import Engine, start
from tests.support.sshd import HOST, Sshd

LOGIN_DEADLINE_S = 60.0
# For everything that has to happen at all: a hang ends the test here, with a line that says where.
DEADLINE_S = 60.0
WINDOW_BYTES = 2 << 20
PACKET_BYTES = 32768


def options_for(sshd: Sshd, **more: Any) -> dict[str, Any]:
    """What `engine.start` needs to log in at `sshd` with its user key; `more` is added, or taken instead."""
    host_key = asyncssh.read_public_key(sshd.directory / "host_key.pub")
    return {
        "host": HOST,
        "username": sshd.user,
        "client_keys": [asyncssh.read_private_key(sshd.directory / "user_key")],
        "known_hosts": ([host_key], [], []),
        "agent_path": None,
        "encryption_algs": ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"],
        **more,
    }


async def engine_to(sshd: Sshd, port: int | None = None, **more: Any) -> Engine:
    """A connection to `sshd`, through 127.0.0.1:`port` if given (a proxy). End it with `disconnect` and `closed`."""
    sock = socket.create_connection(("127.0.0.1", port or sshd.port), LOGIN_DEADLINE_S)
    return await start(sock, asyncssh.SSHClient(), options_for(sshd, **more), deadline_s=LOGIN_DEADLINE_S)


@asynccontextmanager
async def connected(sshd: Sshd, port: int | None = None, **more: Any) -> AsyncIterator[Engine]:
    """`engine_to` for one block."""
    engine = await engine_to(sshd, port, **more)
    try:
        yield engine
    finally:
        engine.disconnect("the test is over")
        await asyncio.wait_for(engine.closed(), DEADLINE_S)


class Exec:
    """A session that runs a command: a route and a brake, with bare packets and the least of a channel.

    output     what came on stdout
    status     the exit status
    gone       why the connection ended under it
    kinds      the numbers of the packets that came, in order
    """

    def __init__(
        self, engine: Engine, command: str, *, send: bytes = b"", eof: bool = True, window_bytes: int = WINDOW_BYTES
    ) -> None:
        """Its input is `send`; without `eof` it never ends, so that `cat` stays until the connection has gone."""
        self._engine = engine
        self._command = command
        self._left = memoryview(send)
        self._window_bytes = window_bytes
        self._remote = b""
        self._room_bytes = 0
        self._owed_bytes = 0
        self._sending = False
        self._eof_sent = not eof
        self.output = bytearray()
        self.status: int | None = None
        self.gone: str | None = None
        self.kinds: list[int] = []
        self.pauses = 0
        self.ended = asyncio.Event()
        self.number = engine.add_route(self)
        engine.brakes.add(self)
        engine.send(90, string(b"session"), u32(self.number), u32(window_bytes), u32(PACKET_BYTES))

    async def done(self) -> bytes:
        """Wait for CLOSE both ways; return the output."""
        await asyncio.wait_for(self.ended.wait(), DEADLINE_S)
        return bytes(self.output)

    @property
    def unsent_bytes(self) -> int:
        return len(self._left)

    def packet(self, kind: int, body: memoryview) -> None:
        self.kinds.append(kind)
        reader = Reader(body)
        match kind:
            case 91:
                self._remote, self._room_bytes = u32(reader.u32()), reader.u32()
                self._engine.send(98, self._remote, string(b"exec"), b"\1", string(self._command.encode()))
                self._send()
            case 93:
                self._room_bytes += reader.u32()
                self._send()
            case 94:
                data = reader.string()
                self.output += data
                self._consumed(len(data))
            case 95:
                reader.u32()
                self._consumed(len(reader.string()))
            case 98:
                if reader.string() == b"exit-status":
                    assert not reader.boolean()
                    self.status = reader.u32()
            case 97:
                self._engine.send(97, self._remote)
                self._engine.remove_route(self.number)
                self._end()
            case 92 | 100:
                self._end()

    def lost(self, reason: str) -> None:
        self.gone = reason
        self._end()

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None:
        self._send()

    def _end(self) -> None:
        self._engine.brakes.discard(self)
        self.ended.set()

    def _consumed(self, count: int) -> None:
        self._owed_bytes += count
        if self._owed_bytes >= self._window_bytes // 2:
            self._engine.send(93, self._remote, u32(self._owed_bytes))
            self._owed_bytes = 0

    def _send(self) -> None:
        # What is sent may pause and resume us at once.
        if self._sending or not self._remote:
            return
        self._sending = True
        while self._left and self._room_bytes and not self._engine.paused:
            count = min(len(self._left), self._room_bytes, PACKET_BYTES)
            self._engine.send(94, self._remote, u32(count), self._left[:count])
            self._left = self._left[count:]
            self._room_bytes -= count
        if not self._left and not self._eof_sent:
            self._eof_sent = True
            self._engine.send(96, self._remote)
        self._sending = False
