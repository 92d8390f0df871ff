"""The connection as all others in this process see it: `Engine`.

One rule: nothing in here waits for the server but `measure` and `closed`, and nothing here knows asyncssh. Imported as
`mux.upstream.engine.Engine`, which is where one is made.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from mux.errors import ConnectionLost, printable
from mux.protocol.connection import Packet, Part

from .doors import Doors, OnReply
from .keepalive import Keepalive
from .outbox import Outbox
from .routes import Address, Brake, Direction, Facts, Opener, Route

log = logging.getLogger(__name__)

KEEPALIVE: Final = b"keepalive@openssh.com"
# The first answer behind a login is late: the server is still making ready for its user.
FIRST_TRIPS: Final = 3

Close: TypeAlias = Callable[[], Awaitable[None]]


class Connection(Protocol):
    """What is needed of `engine`'s connection, authenticated."""

    host: str
    doors: Doors
    outbox: Outbox
    openers: dict[bytes, Opener]
    keepalive: Keepalive | None
    on_full: Callable[[bool], None]
    ended: asyncio.Future[None]
    local: Address | None
    peer: Address | None
    kex_name: str
    rekeys: int
    received_bytes: int
    told: bool

    def why(self) -> str | None:
        """Why it ended; None while it lives."""

    def post(self, posted: Sequence[Packet]) -> None:
        """Send one packet, unless the connection has ended."""

    def ask(self, name: bytes, body: bytes, on_reply: OnReply) -> None:
        """Make a global request. Only while the connection lives."""

    def rekey(self) -> None:
        """Start a key exchange, unless one is under way."""

    def leave(self, reason: str) -> None:
        """End it from here, and say so to the server."""

    def give_up(self) -> None:
        """End it: the server is silent."""

    def get_server_host_key(self) -> Any:
        """The key the server proved to have."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What was agreed, by asyncssh's words."""


class Engine:
    """A connection that is up. It belongs to the event loop it was started in.

    paused     it has enough: producers stop (and their brakes were told)
    brakes     who is told
    shortest_round_trip_s   of those measured so far, the first right after the login: what the path takes, without
               what was in flight in front; None until then
    company    knows whether the server sends to one of our channels alone
    openers    by kind of channel, who takes what the server opens: True when taken, and then the taker answers with
               CHANNEL_OPEN_CONFIRMATION or _FAILURE by `send`; refused here otherwise
    """

    def __init__(self, connection: Connection, interval_s: float, count: int, close: Close | None) -> None:
        """As `start` makes it, from a connection that is authenticated."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._started_s = time.monotonic()
        self._round_trip_s: float | None = None
        self.shortest_round_trip_s: float | None = None
        self._measuring: asyncio.Future[float | None] | None = None
        self._gone = self._loop.create_task(_gone(connection, close))
        self.paused = False
        self.brakes: set[Brake] = set()
        self.company = connection.doors.company
        self.openers = connection.openers
        connection.on_full = self._set_paused
        if interval_s > 0:
            connection.keepalive = Keepalive(interval_s, count, self._ask, connection.give_up)
        self._trips_left = FIRST_TRIPS
        self._ask()

    @property
    def lost(self) -> str | None:
        """Why the connection ended; None while it lives."""
        return self._connection.why()

    # Channels

    def add_route(self, route: Route) -> int:
        """Return the next of our channel numbers; what the server addresses to it goes to `route`.

        When the connection has ended already, the route is told so in the next turn of the loop.
        """
        number = self._connection.doors.add(route)
        if self._connection.told:
            door = self._connection.doors.table.pop(number)
            self._loop.call_soon(door.lost, self.lost or "")
        return number

    def remove_route(self, number: int) -> None:
        """Nobody is told of packets to this number any more. Only after OPEN_FAILURE, or CLOSE both ways.

        The number is not used again while the server may name it; a late packet does no harm.
        """
        self._connection.doors.retire(number)

    def routes(self) -> list[tuple[int, Route]]:
        """Our channel numbers in use, and what they lead to."""
        return self._connection.doors.used()

    # Sending

    def send(self, kind: int, *parts: Part) -> None:
        """Send one packet; `parts` are what follows its number, and are not needed any more afterwards.

        Never waits; packets go out in order, over new keys too. Dropped when the connection has ended.
        """
        self._connection.post([(kind, *parts)])

    def send_all(self, packets: Sequence[Packet]) -> None:
        """`send` of several packets in a row, which costs less than one by one."""
        self._connection.post(packets)

    def request(self, name: bytes, body: bytes, on_reply: OnReply) -> None:
        """Make a global request (RFC 4254 section 4), always one that wants a reply.

        `on_reply(success, rest of the reply)` is called in the order of the requests and before any later packet is
        looked at; with (False, b"") when the connection ends, and at once when it has ended.
        """
        connection = self._connection
        if connection.why() is None:
            connection.ask(name, body, on_reply)
        else:
            on_reply(False, b"")

    def _set_paused(self, paused: bool) -> None:
        if paused == self.paused:
            return
        self.paused = paused
        for brake in list(self.brakes):
            try:
                (brake.pause if paused else brake.resume)()
            except Exception:
                log.exception("a brake failed")

    # The connection as a whole

    def rekey(self) -> None:
        """Exchange keys now (the escape ~R). Nothing happens when that is under way."""
        self._connection.rekey()

    def disconnect(self, reason: str) -> None:
        """Tell the server, and end. Idempotent."""
        self._connection.leave(reason)

    async def closed(self) -> str:
        """Wait for the end, with all that belongs to it; return its reason."""
        await asyncio.shield(self._gone)
        return self.lost or ""

    async def measure(self, deadline_s: float) -> float:
        """Return the time of one round trip to the server program, in seconds. Askers at the same time share one.

        Raises `TimeoutError` after `deadline_s`, `ConnectionLost` when the connection ends or has ended.
        """
        measuring = self._measuring
        if measuring is None:
            measuring = self._measuring = self._loop.create_future()
            self._ask()
        async with asyncio.timeout(deadline_s):
            measured_s = await asyncio.shield(measuring)
        if measured_s is None:
            raise ConnectionLost(self.lost or "")
        return measured_s

    def _ask(self) -> None:
        asked_s = self._loop.time()
        measuring = self._measuring

        def answered(_success: bool, _rest: bytes) -> None:
            alive = self.lost is None
            if alive:
                self._round_trip_s = took_s = self._loop.time() - asked_s
                self.shortest_round_trip_s = min(took_s, self.shortest_round_trip_s or took_s)
            if measuring is not None and not measuring.done():
                measuring.set_result(self._round_trip_s if alive else None)
            if self._measuring is measuring:
                self._measuring = None
            self._trips_left -= 1
            if alive and self._trips_left > 0:
                self._ask()

        self.request(KEEPALIVE, b"", answered)

    def facts(self) -> Facts:
        """What there is to tell of the connection."""
        connection = self._connection
        known = functools.partial(connection.get_extra_info, default="")
        key = connection.get_server_host_key()
        return Facts(
            host=connection.host,
            local=connection.local,
            peer=connection.peer,
            server_version=printable(known("server_version")),
            kex=connection.kex_name,
            host_key="" if key is None else key.algorithm.decode("ascii", "replace"),
            sending=_direction(known("send_cipher"), known("send_mac"), known("send_compression")),
            receiving=_direction(known("recv_cipher"), known("recv_mac"), known("recv_compression")),
            sent_bytes=connection.outbox.sent_bytes,
            received_bytes=connection.received_bytes,
            rekeys=connection.rekeys,
            started_s=self._started_s,
            round_trip_s=self._round_trip_s,
        )


def _direction(cipher: str, mac: str, compression: str) -> Direction:
    return Direction(cipher, "<implicit>" if mac == cipher else mac, compression)


async def _gone(connection: Connection, close: Close | None) -> None:
    await connection.ended
    if close is not None:
        await close()
