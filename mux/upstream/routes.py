"""What the engine and those who use it know of each other.

One rule: no state and no asyncssh in here, so that whoever is routed to, and every test, can be written against these
alone. Imported through `mux.upstream.engine`, which names them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Address: TypeAlias = tuple[str, int]


class Route(Protocol):
    """Takes the packets the server addresses to one of our channel numbers."""

    def packet(self, kind: int, body: memoryview) -> None:
        """One packet, of kind 91 to 100; `body` is what follows the recipient's channel number.

        The view is of immutable bytes and may be kept. Must not raise, and never waits.
        """

    def lost(self, reason: str) -> None:
        """The connection ended; nothing more comes. Must not raise."""


class Brake(Protocol):
    """Who produces data for the connection."""

    def pause(self) -> None:
        """The connection has enough for now. What is sent nevertheless is kept and goes out in order."""

    def resume(self) -> None:
        """It may take more."""


@dataclass(frozen=True, slots=True)
class IncomingOpen:
    """A CHANNEL_OPEN of the server (RFC 4254 section 5.1). `rest` is what its kind of channel adds."""

    kind: bytes
    sender: int
    window_bytes: int
    packet_bytes: int
    rest: bytes


# True when it is taken.
Opener: TypeAlias = Callable[[IncomingOpen], bool]


@dataclass(frozen=True, slots=True)
class Direction:
    """What was agreed for one direction, in the words of the key exchange."""

    cipher: str
    mac: str
    compression: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to tell of a connection. Byte counts are those of the wire; `started_s` is `time.monotonic()`.

    `local` and `peer` are None where bytes go through a program; `round_trip_s` until it was measured.
    """

    host: str
    local: Address | None
    peer: Address | None
    server_version: str
    kex: str
    host_key: str
    sending: Direction
    receiving: Direction
    sent_bytes: int
    received_bytes: int
    rekeys: int
    started_s: float
    round_trip_s: float | None
