"""What holds it all together: the connection to the server, the clients who ride on it, the forwardings, the end.

One rule: nothing is awaited here on behalf of one client. Clients are taken in as they come, each lives by callbacks of
its own (`clients.py`), and what may have to wait for a person or for the server waits in a task of the client that
asked. So a client that is slow, frozen, wrong or greedy costs itself only.

Imported by `daemon.py`, which hands in what listens and what the end of it all means; `status.py` reads what is here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from .clients import Client
from .entrance import Entrance
from .farewells import Farewells
from .forwards import Forwards
from .incoming import Incoming
from .lifetime import Lifetime, unneeded
from .putty import PuttyClient
from .putty_places import PuttyPlaces

if TYPE_CHECKING:
    from .engine import Engine
    from .settings import Settings

MAX_CLIENTS: Final = 512  # each may hold a socket and six descriptors, of the 4096 a hard limit usually allows
# Those above that are told so: `ssh -O check` opens a login shell of its own if it is not even greeted (mux.c).
MAX_SURPLUS: Final = 64
# When a place is needed, who has been idle for so long gives up his: a client asks for something within milliseconds.
IDLE_S: Final = 10.0
MAX_HELD_BYTES: Final = 8 << 20  # unfinished requests of all clients: 32 of the largest there can be
BACKLOG: Final = 128  # so many may come in one turn of the loop, as fifty starts at once do; OpenSSH has 64
# What clients do who have nothing left to write out when the server is gone.
NOTHING_TO_WRITE: Final = frozenset({"control", "putty"})
DRAIN_S: Final = 0.8  # what sessions may take to write out what had come when the server was lost: all know in a second

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid: unix(7)

log = logging.getLogger(__name__)


class Place(Protocol):
    """Where the listening socket is published."""

    def withdraw(self) -> None:
        """Remove the name, if it still is that of our socket. Idempotent."""


class Asker(Protocol):
    """Who asks a person at a terminal or through askpass."""

    async def confirm(self, text: str) -> bool: ...


@dataclass(slots=True)
class Tally:
    """What has happened since the start, for `status`."""

    clients: int = 0
    foreign: int = 0  # turned away: of another user
    surplus: int = 0  # refused, or turned away: `MAX_CLIENTS` were there
    dropped: int = 0  # broke the protocol, or a deadline
    sessions: int = 0
    refused: int = 0  # sessions the server did not open
    full_at: int = 0  # the most sessions that were open when it did not: MaxSessions, as far as it shows


class Upstream:
    """One connection to a server, and everybody who rides on it."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        prompts: Asker | None = None,
        path: str | None = None,
        lifetime: Lifetime | None = None,
    ) -> None:
        """Without `prompts` whatever would have to be asked is denied. `path`: where it is published, for lists.

        `lifetime` is told who comes and goes; without one it stays until `end`.
        """
        self.engine = engine
        self.settings = settings
        self.path = path
        self.clients: set[Client | PuttyClient] = set()
        self.tally = Tally()
        self.started_s = time.monotonic()
        self.held_bytes = 0
        self.lifetime = lifetime or Lifetime(persist_s=None, now_s=self.started_s)
        self.incoming = Incoming(engine, settings)
        self.forwards = Forwards(engine, settings, self.incoming)
        self._prompts = prompts
        self._one_question = asyncio.Lock()
        self._end: asyncio.Future[str] | None = None
        self._reason: str | None = None
        self._entrance: Entrance | None = None
        self._place: Place | None = None
        self.putty: PuttyPlaces | None = None
        self.farewells = Farewells()

    @property
    def listening(self) -> bool:
        return self._entrance is not None

    @property
    def ending(self) -> bool:
        return self._reason is not None or self.engine.lost is not None

    async def serve(self, listener: socket.socket, place: Place | None = None) -> str:
        """Serve whoever connects to `listener`, which is ours from now on, until the end; returns its reason.

        It ends with the connection to the server, or by `end`. Then the name is withdrawn, every client is hung up on,
        every forwarding is closed, and the server is told.
        """
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        if self._reason is not None:
            self._end.set_result(self._reason)
        self._place = place
        self._entrance = Entrance(listener, self._take_in_client, BACKLOG)
        # Signals are the main thread's; a test may run this in another.
        signals = threading.current_thread() is threading.main_thread()
        if signals:
            loop.add_signal_handler(signal.SIGWINCH, self.resize)
        closed = asyncio.ensure_future(self.engine.closed())
        try:
            await asyncio.wait((closed, self._end), return_when=asyncio.FIRST_COMPLETED)
            reason = closed.result() if closed.done() and self._reason is None else self._reason or self._end.result()
            self._reason = reason
            if closed.done():
                await self._drain()
            return reason
        finally:
            closed.cancel()
            if signals:
                loop.remove_signal_handler(signal.SIGWINCH)
            self.stop_listening()
            self._hang_up(self._reason or "cancelled")
            await self.farewells.over()

    def stop_listening(self) -> None:
        """Take no more clients and withdraw the name; those who have connected stay. Idempotent."""
        entrance, self._entrance = self._entrance, None
        if self._place is not None:
            self._place.withdraw()
        if self.putty is not None:
            self.putty.close()
        if entrance is not None:
            entrance.close()
            self.lifetime.stopped_listening()

    def end(self, reason: str) -> None:
        """Let `serve` return; the first reason stands."""
        if self._reason is None:
            self._reason = reason
        if self._end is not None and not self._end.done():
            self._end.set_result(self._reason)

    async def end_when_unneeded(self) -> None:
        """Wait until nobody needs the connection, and end it then."""
        why = await unneeded(self.lifetime)
        # That takes in whoever has connected meanwhile, since we seemed to be here. They are served to their end.
        self.stop_listening()
        self.end(await unneeded(self.lifetime) if self.lifetime.riders else why)

    async def allow(self, question: str) -> bool:
        """Ask the owner, if `ControlMaster ask` says so: one question at a time, and nobody else waits for it."""
        if not self.settings.control_ask:
            return True
        if self._prompts is None:
            return False
        async with self._one_question:
            return await self._prompts.confirm(question)

    def resize(self) -> None:
        """Some terminal has another size now, as SIGWINCH says: each session looks at its own."""
        for client in tuple(self.clients):
            if client.session is not None:
                client.session.resize()

    @property
    def sessions(self) -> int:
        """How many sessions are open, those of clients who open theirs themselves included."""
        relays = (client.relay for client in self.clients if client.relay is not None)
        return sum(client.session is not None for client in self.clients) + sum(relay.sessions for relay in relays)

    def note_session(self) -> None:
        """The server opened a session."""
        self.tally.sessions += 1

    def note_refusal(self) -> None:
        """The server did not open a session."""
        self.tally.refused += 1
        self.tally.full_at = max(self.tally.full_at, self.sessions)  # it may still count one that has just ended

    def left(self, client: Client | PuttyClient, *, looked: bool = False) -> None:
        """A client has gone; it holds nothing any more. `looked`: it only saw that somebody is here."""
        if client in self.clients:
            self.clients.remove(client)
            self.lifetime.left(None if looked else time.monotonic())

    async def offer_to_putty(self, names: Iterable[str]) -> list[str]:
        """Be found by PuTTY's tools too, under these names; returns why that is impossible, in words, if it is."""
        self.putty = PuttyPlaces(names, self._take_in_putty)
        return await self.putty.open()

    def hold(self, client: Client, more_bytes: int) -> None:
        """A client's unfinished input has grown or shrunk. Over the common limit, whoever holds most is dropped."""
        self.held_bytes += more_bytes
        if more_bytes > 0 and self.held_bytes > MAX_HELD_BYTES:
            max(self.clients, key=lambda other: other.held_bytes).drop("it holds most of too many unfinished requests")

    def _take_in_client(self, connection: socket.socket) -> None:
        self._take_in(connection, Client)

    def _take_in_putty(self, connection: socket.socket) -> None:
        self._take_in(connection, PuttyClient)

    def _take_in(self, connection: socket.socket, kind: type[Client] | type[PuttyClient]) -> None:
        pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            log.info("multiplex uid mismatch: peer euid %d != uid %d", uid, os.geteuid())
            self.tally.foreign += 1
            connection.close()
            return
        surplus = not self._has_room()
        if surplus:
            log.info("%d clients are here already: process %d is turned away", len(self.clients), pid)
            self.tally.surplus += 1
        if len(self.clients) >= MAX_CLIENTS + MAX_SURPLUS:
            # Closed at once, it goes on by itself with a connection of its own; left waiting, it would hang.
            connection.close()
            return
        client = kind(self, connection, pid=pid, uid=uid, surplus=surplus)
        self.clients.add(client)
        self.lifetime.came()
        client.start()

    def _has_room(self) -> bool:
        """Whether one more may ride. If none may, whoever has been idle for long is dropped for it."""
        if sum(not client.surplus for client in self.clients) < MAX_CLIENTS:
            return True
        idle = [client for client in self.clients if client.idle_since_s is not None and not client.surplus]
        longest = min(idle, key=lambda client: client.idle_since_s or 0.0, default=None)
        if longest is None or time.monotonic() - (longest.idle_since_s or 0.0) < IDLE_S:
            return False
        longest.drop("it asks for nothing, and its place is needed")
        return True

    async def _drain(self) -> None:
        """The server is gone: who waits for it knows at once, and who has output to write when that is written."""
        self.stop_listening()
        for client in tuple(self.clients):
            if client.purpose in NOTHING_TO_WRITE:
                client.dismiss(self._reason or "the connection to the server has ended")
        going = [asyncio.ensure_future(client.gone.wait()) for client in self.clients]
        if going:
            await asyncio.wait(going, timeout=DRAIN_S)
        for wait in going:
            wait.cancel()

    def _hang_up(self, reason: str) -> None:
        for client in tuple(self.clients):
            client.dismiss(reason)
        self.forwards.close_all()
        self.incoming.close()
        if self.engine.lost is None:
            self.engine.disconnect(reason)
