"""PuTTY's tools as clients: from their connection to one of our PuTTY sockets until they have gone.

One rule: who has not said by PuTTY's greeting that it wants to ride is nobody: it is not in the log, not in the
counts, and does not keep the connection alive for longer than it takes to greet. `plink -shareexists`, and every PuTTY
that looks whether we are here, connects, sees that it is let in, and hangs up.

Behind the greeting there are packets of the connection protocol, which are the relay's business. Facts: PuTTY's
ssh/sharing.c, ssh/verstring.c and ssh/bpp-bare.c. Imported by `upstream.py`.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mux.errors import RemoteProtocolError, printable
from mux.protocol.bare import (
    BY_APPLICATION,
    DISCONNECT,
    PROTOCOL_ERROR,
    Greeting,
    Role,
    disconnect_body,
    frame,
    greeting_of_upstream,
)
from mux.protocol.dialects import PUTTY_SHARING

from . import commandlines
from .clients import FULL
from .relay import Relay
from .unsent import Unsent
from .watching import Watch

if TYPE_CHECKING:
    from .upstream import Upstream

READ_BYTES: Final = 16 << 10  # a greeting, and what a hasty client sends behind it
# PuTTY sends its greeting without waiting for ours. As long as it is due the connection is kept for it.
GREETING_DEADLINE_S: Final = 30.0

log = logging.getLogger(__name__)


class PuttyClient:
    """A connection to one of our PuTTY sockets. Alive from `start` until `gone` is set; the upstream forgets it then.

    Its public parts are those of `clients.Client`, of which it never has a session or a stream; and

    software   what it calls itself; empty until it greeted
    """

    purpose = "putty"
    session = None
    stream = None
    idle_since_s = None  # who does not greet has a deadline, and who has greeted rides

    def __init__(
        self, upstream: Upstream, connection: socket.socket, *, pid: int, uid: int, surplus: bool = False
    ) -> None:
        self.upstream = upstream
        self.pid = pid
        self.uid = uid
        self.surplus = surplus  # there are too many already: it is told so
        self.command = ""
        self.since_s = time.monotonic()
        self.software = ""
        self.relay: Relay | None = None
        self.held_bytes = 0
        self.gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._socket = connection
        self._greeting = Greeting(Role.UPSTREAM)
        self._watch = Watch(connection.fileno(), self._readable)
        self._parted = False
        self._asking: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._lookup: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Greet, with the server's version, by which PuTTY knows what is wrong with a server; then listen."""
        self._socket.setblocking(False)
        # "SSH-2.0-" and what the server calls itself: RFC 4253 section 4.2
        server = self.upstream.engine.facts().server_version.split("-", 2)[-1]
        if not self._send(greeting_of_upstream(server.encode(errors="replace"))):
            return self.close()
        if self.surplus:
            return self.dismiss(FULL)
        self._deadline = self._loop.call_later(GREETING_DEADLINE_S, self.dismiss, "no greeting came in time")
        self._watch.read(True)
        return None

    def close(self) -> None:
        """Hang up at once, and let go of everything. Idempotent."""
        if self.gone.is_set():
            return
        self.gone.set()
        self._watch.read(False)
        for timer in (self._deadline, self._lookup):
            if timer is not None:
                timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        if self.relay is not None:
            self.relay.hang_up()
        elif not self._parted:
            self._socket.close()
        self.upstream.left(self, looked=not self.software)

    def dismiss(self, reason: str) -> None:
        """Hang up, and say why."""
        if self.relay is not None:
            self.relay.dismiss(reason)
        else:
            self._refuse(reason, BY_APPLICATION)
        self.close()

    def drop(self, reason: str) -> None:
        """Hang up on a client that broke a rule."""
        log.info("the PuTTY client of process %d is dropped: %s", self.pid, reason)
        self.upstream.tally.dropped += 1
        self.dismiss(reason)

    def _refuse(self, reason: str, code: int) -> None:
        if not self.gone.is_set():
            self._watch.read(False)
            self.upstream.farewells.part(self._socket, Unsent(frame(DISCONNECT, disconnect_body(code, reason))))
            self._parted = True
            self.close()

    def _send(self, data: bytes) -> bool:
        """Send what certainly fits into a fresh socket; False when the client has gone."""
        try:
            self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    # Until it rides

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            return self.close()
        if not data:
            return self.close()
        try:
            if self._greeting.receive(data):
                self._greeted(self._greeting.software or b"")
        except RemoteProtocolError as error:
            log.info("what connected as a PuTTY from process %d is not one: %s", self.pid, error)
            self.upstream.tally.dropped += 1
            self._refuse(str(error), PROTOCOL_ERROR)

    def _greeted(self, software: bytes) -> None:
        self.software = printable(software, 100) or "?"
        self._watch.read(False)
        if self._deadline is not None:
            self._deadline.cancel()
        self.upstream.tally.clients += 1
        self.upstream.lifetime.rode()
        self._lookup = commandlines.look_up(self.pid, self._command_known)
        if self.upstream.settings.control_ask:
            self._asking = self._loop.create_task(self._ask())
        else:
            self._ride()

    async def _ask(self) -> None:
        allowed = None
        try:
            with self._watched_for_its_end():
                allowed = await self.upstream.allow(f"Allow shared connection to {self.upstream.settings.hostname}? ")
        except Exception:
            log.exception("the owner could not be asked about the PuTTY client of process %d", self.pid)
        self._asking = None
        if self.gone.is_set():
            return
        if allowed is None:
            self.drop("the question about it met with a fault of ours")
        elif allowed:
            self._ride()
        else:
            self._refuse("Permission denied", BY_APPLICATION)

    @contextmanager
    def _watched_for_its_end(self) -> Iterator[None]:
        """What it says meanwhile stays in its socket, where a read would not get behind it to see that it hung up."""
        with select.epoll() as hang_up:
            hang_up.register(self._socket, select.EPOLLRDHUP)
            self._loop.add_reader(hang_up, self.close)
            try:
                yield
            finally:
                self._loop.remove_reader(hang_up)

    def _command_known(self, command: str) -> None:
        self.command = command

    def _ride(self) -> None:
        self.relay = Relay(self.upstream, self._socket, self._greeting.rest, self.close, PUTTY_SHARING)
