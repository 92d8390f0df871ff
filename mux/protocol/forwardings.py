"""Global requests of one client of many (RFC 4254 sections 4 and 7): answers in order, and its remote forwardings.

Requests that concern a forwarding go to the server, and its answer comes back in the client's order; all others concern
the connection, which is not this client's, and are answered here, behind those that still wait.

One rule: what the server listens for belongs to whoever asked, from the very answer that says so. It is claimed then,
and cancelled by its owner only, once, when it is known to be open: a cancellation that hits what was never opened, or
is not open any more, would hit what another client opened at the same place. So requests of one client about one place
wait for each other. Whether a place is free is the server's to say. Imported by `nat.py` alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mux.errors import RemoteProtocolError

from . import harmless
from .connection import Message
from .shares import Shares
from .sides import Client, GiveUp, Key, OnReply, Rules, Server, Taker
from .wire import Reader, string, u32

PLACES: Final = 2  # of a forwarding: it listens on IPv4 and IPv6
MAX_FORWARDINGS: Final = 128  # of one client; ssh has one for each -R
MAX_WAITING: Final = 65536  # requests without an answer; the client is not read from long before


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of remote forwarding is asked for, given up, and used."""

    open: bytes
    cancel: bytes
    channel: bytes
    with_port: bool


# RFC 4254 section 7.1 and OpenSSH's PROTOCOL section 2.4
KINDS: Final = (
    Kind(b"tcpip-forward", b"cancel-tcpip-forward", b"forwarded-tcpip", True),
    Kind(
        b"streamlocal-forward@openssh.com",
        b"cancel-streamlocal-forward@openssh.com",
        b"forwarded-streamlocal@openssh.com",
        False,
    ),
)
_OPENING: Final[Mapping[bytes, Kind]] = {kind.open: kind for kind in KINDS}
_CANCELLING: Final[Mapping[bytes, Kind]] = {kind.cancel: kind for kind in KINDS}
NO_MORE_SESSIONS: Final = b"no-more-sessions@openssh.com"


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A place where the server listens, or is asked to."""

    kind: Kind
    key: Key

    @property
    def body(self) -> bytes:
        """As it stands in requests."""
        return string(self.key[0]) + u32(self.key[1]) if isinstance(self.key, tuple) else string(self.key)

    @property
    def chosen_by_server(self) -> bool:
        """Whether the server is to choose the port."""
        return isinstance(self.key, tuple) and not self.key[1]

    @property
    def valid(self) -> bool:
        """Whether the port is one."""
        return not isinstance(self.key, tuple) or self.key[1] <= 65535

    def bound(self, answer: bytes) -> Forwarding | None:
        """Where the server listens, by its answer; None when it does not say."""
        if not self.chosen_by_server:
            return self
        port = int.from_bytes(answer, "big")
        if len(answer) != 4 or not 0 < port <= 65535 or not isinstance(self.key, tuple):
            return None
        return Forwarding(self.kind, (self.key[0], port))


class _Answer:
    """A place in the order of answers."""

    __slots__ = ("body", "kind")

    def __init__(self) -> None:
        self.kind = 0
        self.body = b""


class _Place:
    """Where a client listens, or wants to: what it asked for that, in order, of which one is on its way at a time."""

    __slots__ = ("asked", "give_up", "turns")

    def __init__(self) -> None:
        self.give_up: GiveUp | None = None  # the claim, while the server listens
        self.asked = False
        self.turns: deque[tuple[bool, _Answer | None]] = deque()  # whether to open it, or to cancel


class GlobalRequests:
    """Those of one client.

    no_more_sessions   whether the client said that it will open no more
    """

    def __init__(
        self, server: Server, client: Client, rules: Rules, shares: Shares, taker: Taker, *, promises: bool
    ) -> None:
        """`promises`: whether the client may say so."""
        self.no_more_sessions = False
        self._server = server
        self._client = client
        self._rules = rules
        self._shares = shares
        self._taker = taker
        self._promises = promises
        self._ended = False
        self._answers: deque[_Answer] = deque()
        self._places: dict[Forwarding, _Place] = {}
        self._waiting = 0  # requests about a place without an answer yet
        self._open = 0  # forwardings that are open, or asked for

    @property
    def held(self) -> list[Forwarding]:
        """Where the server listens in the client's name."""
        return [forwarding for forwarding, place in self._places.items() if place.give_up is not None]

    @property
    def waiting(self) -> int:
        """How many answers are due, of the server or to the client."""
        return max(self._waiting, len(self._answers))

    def receive(self, reader: Reader) -> None:
        """Take a GLOBAL_REQUEST. Raises `WireError` for a malformed one, `RemoteProtocolError` for one too many."""
        name, want_reply = reader.string(), reader.boolean()
        if self.waiting >= MAX_WAITING:
            raise RemoteProtocolError("the client sent requests without end, waiting for no answer")
        answer = None
        if want_reply:
            answer = _Answer()
            self._answers.append(answer)
        if name in _OPENING or name in _CANCELLING:
            opening = name in _OPENING
            forwarding = _read(_OPENING[name] if opening else _CANCELLING[name], reader)
            self._request(forwarding, opening, answer)
        else:
            # no-more-sessions is a promise, held for this client. A keepalive is content with any answer.
            promised = self._promises and name == NO_MORE_SESSIONS
            self.no_more_sessions = self.no_more_sessions or promised
            self._answer(answer, promised)

    def end(self) -> None:
        """The client has gone: forwardings are cancelled, and answers that still come are nobody's."""
        self._ended = True
        self._answers.clear()
        for forwarding, place in tuple(self._places.items()):
            self._waiting -= len(place.turns)
            place.turns.clear()
            if place.give_up is not None:
                place.give_up()
                self._queue(place, False, None)
            self._advance(forwarding, place)

    def _request(self, forwarding: Forwarding, opening: bool, answer: _Answer | None) -> None:
        if not forwarding.valid or (forwarding.chosen_by_server and not opening):
            self._answer(answer, False)
        elif forwarding.chosen_by_server:
            self._ask_open(forwarding, _Place(), answer)
        else:
            place = self._places.setdefault(forwarding, _Place())
            self._queue(place, opening, answer)
            self._advance(forwarding, place)

    def _queue(self, place: _Place, opening: bool, answer: _Answer | None) -> None:
        place.turns.append((opening, answer))
        self._waiting += 1

    def _advance(self, forwarding: Forwarding, place: _Place) -> None:
        """Ask what is to be asked next about a place; what makes no sense by now is refused here."""
        while place.turns and not place.asked:
            opening, answer = place.turns.popleft()
            self._waiting -= 1
            if opening == (place.give_up is not None):
                self._answer(answer, False)
            elif opening:
                self._ask_open(forwarding, place, answer)
            else:
                self._ask_cancel(forwarding, place, answer)
        if not place.asked and place.give_up is None and self._places.get(forwarding) is place:
            del self._places[forwarding]

    def _ask_open(self, forwarding: Forwarding, place: _Place, answer: _Answer | None) -> None:
        if self._open >= MAX_FORWARDINGS or not self._shares.take(PLACES):
            return self._answer(answer, False)
        self._open += 1

        def replied(ok: bool, body: bytes) -> None:
            bound = forwarding.bound(body) if ok else None
            if bound is None or not self._hold(bound):
                self._give_place()
                self._answer(answer, False)
            else:
                self._answer(answer, True, body if forwarding.chosen_by_server else b"")

        return self._ask(forwarding, place, forwarding.kind.open, replied)

    def _ask_cancel(self, forwarding: Forwarding, place: _Place, answer: _Answer | None) -> None:
        def replied(ok: bool, body: bytes) -> None:
            if place.give_up is not None and (ok or self._ended):
                place.give_up()
                place.give_up = None
                self._give_place()
            self._answer(answer, ok)

        self._ask(forwarding, place, forwarding.kind.cancel, replied)

    def _ask(self, forwarding: Forwarding, place: _Place, name: bytes, replied: OnReply) -> None:
        def take_reply(ok: bool, body: bytes) -> None:
            self._waiting -= 1
            place.asked = False
            replied(ok, body)
            self._advance(forwarding, place)
            if not self._ended:
                self._client.ready()

        self._waiting += 1
        place.asked = True
        self._server.request(name, forwarding.body, take_reply)

    def _hold(self, forwarding: Forwarding) -> bool:
        """The server listens there now. False when that is no news: then it is not the client's a second time."""
        place = self._places.setdefault(forwarding, _Place())
        if place.give_up is not None:
            return False
        if self._ended:
            place.give_up = _nothing
            self._queue(place, False, None)
            self._advance(forwarding, place)
        else:
            place.give_up = self._rules.claim(forwarding.kind.channel, forwarding.key, self._taker)
        return True

    def _answer(self, answer: _Answer | None, ok: bool, body: bytes = b"") -> None:
        if answer is None or self._ended:
            return
        answer.kind = Message.REQUEST_SUCCESS if ok else Message.REQUEST_FAILURE
        answer.body = body
        while self._answers and self._answers[0].kind:
            first = self._answers.popleft()
            self._client.deliver(first.kind, first.body, b"")

    def _give_place(self) -> None:
        self._open -= 1
        self._shares.give(PLACES)


def _read(kind: Kind, reader: Reader) -> Forwarding:
    place = harmless.name(reader)
    key: Key = (place, reader.u32()) if kind.with_port else place
    reader.end()
    return Forwarding(kind, key)


def _nothing() -> None:
    """Gives up no claim."""
