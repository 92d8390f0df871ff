"""Our channel numbers: which are in use, by whom, and which may still be named although nobody uses them.

One rule: whatever the one behind a door does with a packet stays behind that door. Objects here stand where asyncssh
has channels and futures of its own, and so have the methods it calls. Imported by `mux.upstream.engine` only.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from asyncssh.packet import SSHPacket

from .company import Company
from .routes import Route

log = logging.getLogger(__name__)

REQUEST_SUCCESS: Final = 81  # RFC 4254 section 4
FIRST_KIND, LAST_KIND = 91, 100  # the messages to one channel number, RFC 4254 section 9
NUMBERS: Final = 1 << 32
# Numbers that the server may still name although both ends closed: none should be, a few late ones are.
REMEMBERED: Final = 1024

OnReply: TypeAlias = Callable[[bool, bytes], None]


class _Nobody:
    """The route of a number that is not in use any more."""

    def packet(self, kind: int, body: memoryview) -> None: ...
    def lost(self, reason: str) -> None: ...


_NOBODY: Final = _Nobody()


class Door:
    """One channel number. To asyncssh a channel."""

    __slots__ = ("_company", "route")

    def __init__(self, route: Route, company: Company) -> None:
        self.route = route
        self._company = company

    def deliver(self, kind: int, body: memoryview) -> None:
        """Hand a packet to the route; one that fails is told that it is lost, and gets no more."""
        if self._company.last is not self:
            self._company.enter(self)
        try:
            self.route.packet(kind, body)
        except Exception as error:
            log.exception("a channel is given up: its packet of kind %d was not taken", kind)
            self.lost(f"internal error: {error!r}")

    def lost(self, reason: str) -> None:
        """Tell the route that nothing more comes."""
        route, self.route = self.route, _NOBODY
        try:
            route.lost(reason)
        except Exception:
            log.exception("the end of a channel was not taken")

    def log_received_packet(self, *_: object) -> None:
        """Nothing is logged per packet."""

    def process_packet(self, kind: int, _sequence: int, packet: SSHPacket) -> bool:
        """Take a packet that came by asyncssh's own way. False: it is none that a channel knows."""
        if not FIRST_KIND <= kind <= LAST_KIND:
            return False
        self.deliver(kind, memoryview(packet.get_full_payload())[5:])
        return True

    def process_connection_close(self, _error: Exception | None) -> None:
        """Everybody was told already."""


class Doors:
    """All numbers. `table` is asyncssh's dictionary of channels, which only we write to; `company` knows whether it is
    one of them alone that packets come for."""

    __slots__ = ("_next", "_retired", "company", "table")

    def __init__(self, table: dict[int, Door]) -> None:
        self.table = table
        self.company = Company()
        self._next = 0
        self._retired: deque[int] = deque()

    def add(self, route: Route) -> int:
        """Return the next number. They are counted up, so that one comes again only after all others."""
        while self._next in self.table:
            self._next = (self._next + 1) % NUMBERS
        number = self._next
        self._next = (number + 1) % NUMBERS
        self.table[number] = Door(route, self.company)
        return number

    def retire(self, number: int) -> None:
        """Nobody is told of packets to this number any more; they do no harm for a while. Idempotent."""
        door = self.table.get(number)
        if door is None or number in self._retired:
            return
        door.route = _NOBODY
        self._retired.append(number)
        if len(self._retired) > REMEMBERED:
            self.table.pop(self._retired.popleft(), None)

    def used(self) -> list[tuple[int, Route]]:
        """The numbers in use, and by whom."""
        return [(number, door.route) for number, door in self.table.items() if door.route is not _NOBODY]

    def lost(self, reason: str) -> None:
        """Tell all routes."""
        for door in list(self.table.values()):
            door.lost(reason)


class Waiter:
    """Takes the reply to one global request in the very step in which it is read. To asyncssh a future."""

    __slots__ = ("_on_reply",)

    def __init__(self, on_reply: OnReply) -> None:
        self._on_reply = on_reply

    def cancelled(self) -> bool:
        """Never: whoever does not want the reply any more ignores it, since replies are told apart by their order."""
        return False

    def set_result(self, reply: tuple[int, SSHPacket]) -> None:
        """The reply: its kind, and the packet behind that."""
        kind, packet = reply
        try:
            self._on_reply(kind == REQUEST_SUCCESS, packet.get_remaining_payload())
        except Exception:
            log.exception("the reply to a request was not taken")
