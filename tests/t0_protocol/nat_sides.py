"""Both sides of a translation: a server as strict as sshd, and a client that keeps its own books.

`StrictServer` is the connection and the server in one: every packet that reaches it is parsed, and whatever would make
an sshd hang up on everybody is an AssertionError. It numbers its channels as sshd does, the lowest free number first,
so that a packet for a channel that is gone meets another's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mux.protocol.connection import Message
from mux.protocol.dialects import PROXY_MODE, Dialect
from mux.protocol.nat import Nat
from mux.protocol.shares import Shares
from mux.protocol.sides import Body, GiveUp, Key, OnReply, Route, Taker
from mux.protocol.wire import Reader, string, u32

WINDOW_BYTES = 2 << 20
PACKET_BYTES = 32768
LARGEST_WINDOW = 2**32 - 1


def boolean(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def lowest_free(used: object) -> int:
    """As sshd chooses numbers."""
    assert isinstance(used, dict)
    return next(number for number in range(len(used) + 1) if number not in used)


@dataclass(slots=True)
class ServerChannel:
    """One channel, as the server has it. `credit`: what it may send."""

    number: int
    peer: int
    kind: bytes
    rest: bytes
    window: int
    credit: int
    packet: int
    opening: bool = False
    eof_in: bool = False
    close_in: bool = False
    close_out: bool = False
    eof_out: bool = False
    asked: int = 0
    requests: deque[bytes] = field(default_factory=deque)
    terminal: bool = False
    data: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class Open:
    """A CHANNEL_OPEN, from either side."""

    kind: bytes
    sender: int
    window_bytes: int
    packet_bytes: int
    rest: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A global request that waits for its answer."""

    name: bytes
    body: bytes
    on_reply: OnReply


class StrictServer:
    """The connection (`sides.Server`), the server behind it, and the owner's rules (`sides.Rules`)."""

    def __init__(self) -> None:
        self.routes: dict[int, Route] = {}
        self.channels: dict[int, ServerChannel] = {}
        self.opens: list[Open] = []
        self.asked: deque[Asked] = deque()
        self.claims: dict[tuple[bytes, Key], list[Taker]] = {}
        self.sent: list[tuple[int, bytes]] = []
        self.shares = Shares()
        self.agent_allowed = False
        self.x11_body: bytes | None = None
        self.x11_waiting: list[Callable[[bytes | None], None]] | None = None
        self._next = 0

    # As the engine

    def add_route(self, route: Route) -> int:
        self._next += 1
        self.routes[1000 + self._next] = route
        return 1000 + self._next

    def remove_route(self, number: int) -> None:
        assert all(channel.peer != number for channel in self.channels.values() if not channel.opening)
        assert all(open_.sender != number for open_ in self.opens)
        del self.routes[number]

    def request(self, name: bytes, body: bytes, on_reply: OnReply) -> None:
        self.asked.append(Asked(name, body, on_reply))

    def send(self, kind: int, *parts: Body) -> None:
        payload = b"".join(bytes(part) for part in parts)
        self.sent.append((kind, payload))
        assert len(payload) <= 262144 - 260, "bad packet length"
        reader = Reader(payload)
        if kind == Message.CHANNEL_OPEN:
            opening = Open(reader.string(), reader.u32(), reader.u32(), reader.u32(), reader.rest())
            return self._take_open(opening)
        number = reader.u32()
        channel = self.channels.get(number)
        assert channel is not None, f"packet {kind} referred to nonexistent channel {number}"
        assert not channel.close_in, f"packet {kind} after CLOSE"
        if channel.opening:
            assert kind in (91, 92), f"packet {kind} for a channel that is being opened"
        _TAKE[kind](self, channel, reader)
        assert reader.at_end(), f"packet {kind} with bytes too many"
        return None

    def _take_open(self, open_: Open) -> None:
        assert open_.sender in self.routes
        assert open_.packet_bytes
        rest = Reader(open_.rest)
        if open_.kind == b"direct-tcpip":
            assert b"\0" not in rest.string()
            rest.u32()
            assert b"\0" not in rest.string()
            rest.u32()
        elif open_.kind == b"direct-streamlocal@openssh.com":
            assert b"\0" not in rest.string()
            assert b"\0" not in rest.string()
            rest.u32()
        else:
            assert open_.kind == b"session"
        rest.end()
        self.opens.append(open_)

    def _take_confirmation(self, channel: ServerChannel, reader: Reader) -> None:
        assert channel.opening, "open confirmation for non-opening channel"
        channel.opening = False
        channel.peer, channel.credit, channel.packet = reader.u32(), reader.u32(), reader.u32()
        assert channel.packet and channel.peer in self.routes

    def _take_failure(self, channel: ServerChannel, reader: Reader) -> None:
        assert channel.opening, "open failure for non-opening channel"
        reader.u32()
        assert b"\0" not in reader.string()
        reader.string()
        del self.channels[channel.number]

    def _take_adjust(self, channel: ServerChannel, reader: Reader) -> None:
        channel.credit += reader.u32()
        assert channel.credit <= LARGEST_WINDOW, "adjust overflows"

    def _take_data(self, channel: ServerChannel, reader: Reader) -> None:
        self._data(channel, reader.string())

    def _take_extended(self, channel: ServerChannel, reader: Reader) -> None:
        reader.u32()
        self._data(channel, reader.string())

    def _data(self, channel: ServerChannel, data: bytes) -> None:
        assert not channel.eof_in, "data after EOF"
        assert len(data) <= channel.window, "peer ignored channel window"
        assert len(data) <= PACKET_BYTES, "oversized packet"
        channel.window -= len(data)
        channel.data += data

    def _take_eof(self, channel: ServerChannel, reader: Reader) -> None:
        assert not channel.eof_in, "EOF twice"
        channel.eof_in = True

    def _take_close(self, channel: ServerChannel, reader: Reader) -> None:
        channel.close_in = True
        if channel.close_out:
            del self.channels[channel.number]

    def _take_request(self, channel: ServerChannel, reader: Reader) -> None:
        name, want_reply = reader.string(), reader.boolean()
        assert b"\0" not in name
        rest = reader.rest()
        if name == b"pty-req":
            assert not channel.terminal, "you already have a pty"
            channel.terminal = True
            modes_are_whole(rest)
        if want_reply:
            channel.requests.append(name)

    def _take_answer(self, channel: ServerChannel, reader: Reader) -> None:
        assert channel.asked, "unexpected channel response"
        channel.asked -= 1

    # As the server

    def to(self, channel: ServerChannel, kind: int, body: bytes = b"") -> None:
        """Say something to the other end of a channel."""
        self.routes[channel.peer].packet(kind, memoryview(body))

    def confirm(self, open_: Open) -> ServerChannel:
        self.opens.remove(open_)
        number = lowest_free(self.channels)
        channel = ServerChannel(
            number, open_.sender, open_.kind, open_.rest, WINDOW_BYTES, open_.window_bytes, open_.packet_bytes
        )
        self.channels[number] = channel
        self.to(channel, 91, u32(number) + u32(WINDOW_BYTES) + u32(PACKET_BYTES))
        return channel

    def refuse(self, open_: Open) -> None:
        self.opens.remove(open_)
        body = u32(1) + string(b"open failed") + string(b"")
        self.routes[open_.sender].packet(92, memoryview(body))

    def data(self, channel: ServerChannel, data: bytes, stream: int = 0) -> None:
        assert len(data) <= channel.credit and len(data) <= channel.packet
        channel.credit -= len(data)
        self.to(channel, 95 if stream else 94, (u32(stream) if stream else b"") + string(data))

    def ask(self, channel: ServerChannel, name: bytes, want_reply: bool = True) -> None:
        channel.asked += want_reply
        self.to(channel, 98, string(name) + boolean(want_reply))

    def reply(self, channel: ServerChannel, ok: bool) -> None:
        channel.requests.popleft()
        self.to(channel, 99 if ok else 100)

    def close(self, channel: ServerChannel) -> None:
        channel.close_out = True
        if channel.close_in:
            del self.channels[channel.number]
        self.to(channel, 97)

    def answer(self, ok: bool, body: bytes = b"") -> Asked:
        """Answer the oldest global request."""
        asked = self.asked.popleft()
        asked.on_reply(ok, body)
        return asked

    def offer(self, kind: bytes, key: Key, rest: bytes) -> ServerChannel | None:
        """Open a channel to whoever claimed this; None when nobody did, or it was refused at once."""
        takers = self.claims.get((kind, key))
        if not takers:
            return None
        number = lowest_free(self.channels)
        channel = ServerChannel(number, 0, kind, rest, WINDOW_BYTES, 0, 0, opening=True)
        self.channels[number] = channel
        takers[-1](Open(kind, number, WINDOW_BYTES, PACKET_BYTES, rest))
        return self.channels.get(number)

    # As the owner

    def claim(self, kind: bytes, key: Key, taker: Taker) -> GiveUp:
        takers = self.claims.setdefault((kind, key), [])
        takers.append(taker)

        def give_up() -> None:
            if taker in takers:
                takers.remove(taker)
            if not takers:
                self.claims.pop((kind, key), None)

        return give_up

    def agent(self) -> bool:
        return self.agent_allowed

    def x11(self, then: Callable[[bytes | None], None]) -> None:
        if self.x11_waiting is None:
            then(self.x11_body)
        else:
            self.x11_waiting.append(then)


_TAKE: dict[int, Callable[[StrictServer, ServerChannel, Reader], None]] = {
    91: StrictServer._take_confirmation,
    92: StrictServer._take_failure,
    93: StrictServer._take_adjust,
    94: StrictServer._take_data,
    95: StrictServer._take_extended,
    96: StrictServer._take_eof,
    97: StrictServer._take_close,
    98: StrictServer._take_request,
    99: StrictServer._take_answer,
    100: StrictServer._take_answer,
}


def modes_are_whole(body: bytes) -> None:
    """As sshd reads a pty-req (session.c, ttymodes.c): everything cut short is fatal."""
    reader = Reader(body)
    reader.string()
    for _ in range(4):
        reader.u32()
    modes = Reader(reader.string())
    reader.end()
    while not modes.at_end():
        if not 1 <= modes.u8() <= 159:
            break
        modes.u32()


class Client:
    """A client as the translation sees it (`sides.Client`), and what it was told."""

    def __init__(
        self, server: StrictServer, *, largest_request_bytes: int = 200_000, dialect: Dialect = PROXY_MODE
    ) -> None:
        self.told: deque[tuple[int, bytes]] = deque()
        self.failed: list[str] = []
        self.answers: list[tuple[bytes, bool]] = []
        self.readies = 0
        self.unread_bytes = 0
        self.nat = Nat(
            server, self, server, server.shares, largest_request_bytes=largest_request_bytes, dialect=dialect
        )

    def deliver(self, kind: int, first: bytes, rest: Body) -> None:
        assert not self.nat.ended, f"packet {kind} for a client that has gone"
        self.told.append((kind, first + bytes(rest)))
        self.unread_bytes += len(first) + len(rest)

    def answered(self, kind: bytes, opened: bool) -> None:
        self.answers.append((kind, opened))

    def fail(self, reason: str) -> None:
        self.failed.append(reason)

    def ready(self) -> None:
        self.readies += 1

    def say(self, kind: int, *parts: bytes) -> None:
        """Send a packet. Raises what the translation says to it."""
        self.nat.receive(kind, memoryview(b"".join(parts)))

    def take(self) -> list[tuple[int, bytes]]:
        """Read all there is."""
        told = list(self.told)
        self.told.clear()
        self.unread_bytes = 0
        if not self.nat.ended:
            self.nat.loans.read_up(0)
        return told

    def open(self, number: int, kind: bytes = b"session", rest: bytes = b"", window: int = WINDOW_BYTES) -> None:
        self.say(90, string(kind), u32(number), u32(window), u32(PACKET_BYTES), rest)


def opened(
    server: StrictServer, client: Client, number: int = 0, kind: bytes = b"session"
) -> tuple[ServerChannel, bytes]:
    """An open channel: the server's end, and its number as the client has to write it."""
    client.open(number, kind)
    channel = server.confirm(server.opens[-1])
    kind_, told = client.take()[-1]
    assert (kind_, told[:4]) == (91, u32(number))
    return channel, told[4:8]
