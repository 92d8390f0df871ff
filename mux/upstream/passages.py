"""One connection through a forwarding: its two ends, its share of the limits, and SOCKS where it has to say where to.

One rule: nothing of what a client says behind its SOCKS request is taken, and nothing of its target is told it before
the answer. Imported by `forwards.py`, whose limits it counts in, and by `stdio.py`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mux.errors import ConnectionLost, RemoteProtocolError, printable
from mux.protocol import harmless
from mux.protocol.messages import UNIX_SOCKET_PORT
from mux.protocol.socks import Connect, Outcome, SocksServer
from mux.protocol.wire import string, u32

from .channels import LiveChannel
from .preamble import Preamble
from .pumps import Stream
from .windows import path_bytes

if TYPE_CHECKING:
    from .engine import Engine
    from .forwards import Forwards, Standing

OPEN_DEADLINE_S: Final = 150.0  # the server connects somewhere first, which Linux gives up after 127 s


class Passage:
    """One connection through a forwarding, and its share of the limits."""

    def __init__(self, engine: Engine, forwards: Forwards, standing: Standing) -> None:
        self.standing = standing
        self.window_bytes = forwards.gate.enter(path_bytes(engine.shortest_round_trip_s))
        standing.connections += 1
        standing.taken += 1
        self._forwards = forwards
        self._stream: Stream | None = None
        self._over = False

    def stream(self, connection: socket.socket, core: SocksServer | None = None) -> Stream:
        """The two ways between a socket and a channel; the passage is over when they are."""
        stream = Stream(connection, None, self.over) if core is None else SocksStream(connection, core, self.over)
        self._stream = stream
        self._forwards.streams.add(stream)
        return stream

    def over(self) -> None:
        """The connection is no more. Idempotent."""
        if not self._over:
            self._over = True
            self._forwards.gate.leave(self.window_bytes)
            self.standing.connections -= 1
            if self._stream is not None:
                self._forwards.streams.discard(self._stream)


class SocksStream(Stream):
    """A stream that first tells its SOCKS client that it is connected: before any byte of the channel."""

    def __init__(self, connection: socket.socket, core: SocksServer, on_end: Callable[[], None]) -> None:
        super().__init__(connection, None, on_end)
        self._connection = connection
        self._core = core

    def opened(self, channel: LiveChannel) -> None:
        self._core.answer(Outcome.CONNECTED)
        tell(self._connection, self._core)
        super().opened(channel)


async def open_direct(
    engine: Engine, stream: Stream, host: bytes, port: int, origin: tuple[str, int], window_bytes: int
) -> LiveChannel:
    """Open a channel to where the server is to connect: a host and port, or a path.

    Raises `OpenRefused`, and RemoteProtocolError for what the server might hang up over.
    """
    if port == UNIX_SOCKET_PORT:
        kind, extra = b"direct-streamlocal@openssh.com", string(host) + string(b"") + u32(0)
        description = f"direct-streamlocal {printable(host)}"
    else:
        kind, extra = b"direct-tcpip", string(host) + u32(port) + string(origin[0].encode()) + u32(origin[1])
        description = f"direct-tcpip {printable(host)}:{port}"
    harmless.check(kind, harmless.OPENS[kind], extra, engine.facts().server_version)
    channel = await LiveChannel.open(engine, kind, extra, stream, window_bytes=window_bytes, deadline_s=OPEN_DEADLINE_S)
    channel.description = description
    return channel


async def converse(core: SocksServer, connection: socket.socket) -> Connect:
    """Talk SOCKS on a socket, without taking a byte of what is behind the request."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            data = await loop.sock_recv(connection, core.wanted_bytes)
            if not data:
                raise ConnectionLost("the client left before it said where to")
            core.receive(data)
            wish = core.next_event()
            tell(connection, core)
            if wish is not None:
                return wish
    except RemoteProtocolError:
        tell(connection, core)
        raise


async def converse_on(core: SocksServer, preamble: Preamble) -> Connect:
    """Talk SOCKS on a channel."""
    while True:
        core.receive(await preamble.more())
        wish = core.next_event()
        preamble.say(core.data_to_send())
        if wish is not None:
            return wish


def tell(connection: socket.socket, core: SocksServer) -> None:
    """Say what there is to say; it is a few bytes, for which a socket always has room."""
    try:
        connection.send(core.data_to_send(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass  # who is gone is found to be gone by whoever reads


def permitted(wish: Connect, rules: tuple[str, ...]) -> bool:
    """Whether PermitRemoteOpen lets a remote dynamic forwarding go there: `any`, `none`, host:port with `*` for any."""
    for rule in rules:
        host, _, port = rule.rpartition(":")
        if rule == "any":
            return True
        if port in ("*", str(wish.port)) and host.strip("[]") in ("*", printable(wish.host)):
            return True
    return False
