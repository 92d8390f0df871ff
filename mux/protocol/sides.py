"""What stands around a `mux.protocol.nat.Nat`: the connection to the server, the owner's rules, the client.

One rule: types only. Imported by the parts of the translation, and by whoever gives it these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Key = tuple[bytes, int] | bytes  # (listen host, port) or path
Body = bytes | memoryview
GiveUp = Callable[[], None]
OnReply = Callable[[bool, bytes], None]


class Route(Protocol):
    """Takes what the server addresses to one channel number."""

    def packet(self, kind: int, body: memoryview) -> None: ...
    def lost(self, reason: str) -> None: ...


class Server(Protocol):
    """The connection to the server. `mux.upstream.engine.Engine` is one."""

    def add_route(self, route: Route) -> int: ...
    def remove_route(self, number: int) -> None: ...
    def send(self, kind: int, *parts: Body) -> None: ...
    def request(self, name: bytes, body: bytes, on_reply: OnReply) -> None: ...


class Offer(Protocol):
    """A channel that the server opens; `rest` is what belongs to its kind."""

    @property
    def kind(self) -> bytes: ...
    @property
    def sender(self) -> int: ...
    @property
    def window_bytes(self) -> int: ...
    @property
    def packet_bytes(self) -> int: ...
    @property
    def rest(self) -> bytes: ...


class Client(Protocol):
    """Who is served."""

    def deliver(self, kind: int, first: bytes, rest: Body) -> None:
        """A packet for it, in two parts. Views may be kept; nothing is called back from here."""

    def answered(self, kind: bytes, opened: bool) -> None:
        """The server has opened a channel of this kind, for which the client had asked, or has not."""

    def fail(self, reason: str) -> None:
        """It cannot be served any more, and is to be ended. May be called more than once."""

    def ready(self) -> None:
        """Packets of it are to be received again, which `Nat.stalled` or `Nat.busy` stopped, if they did."""


Taker = Callable[[Offer], None]  # answers with CHANNEL_OPEN_CONFIRMATION or CHANNEL_OPEN_FAILURE, now or later


class Rules(Protocol):
    """What the owner of the connection allows, and where channels of the server go."""

    def claim(self, kind: bytes, key: Key, taker: Taker) -> GiveUp:
        """Have channels of this kind and key given to `taker`, until what is returned is called."""

    def agent(self) -> bool:
        """Whether a session may ask for the owner's agent."""

    def x11(self, then: Callable[[bytes | None], None]) -> None:
        """Find what to ask of the server instead of the client's x11-req, None where there is to be no X11.

        `then` is called with it, now or later; until then nothing further is received from the client.
        """
