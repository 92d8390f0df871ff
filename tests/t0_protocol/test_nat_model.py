"""Many clients, decent, careless and wild, on one strict server, in any order of events.

Each client writes its own byte into everything, and each may only ever get what the server wrote for it. The server
(`nat_sides.StrictServer`) fails at whatever would end the connection. In the end, when all clients have gone and the
server has answered what it was asked, nothing may be left: no number, no channel, no forwarding, nothing lent.

One seed is one life of a server; a state machine with rules to be shrunk does not come as deep in the same time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from mux.errors import RemoteProtocolError
from mux.protocol.connection import Message
from mux.protocol.wire import Reader, string, u32

from .nat_sides import Client, StrictServer, boolean

PLACES = [(b"localhost", 1), (b"localhost", 2), (b"", 0)]
REQUESTS = [
    (b"exec", string(b"true")),
    (b"shell", b""),
    (b"pty-req", string(b"vt100") + u32(1) * 4 + string(b"\0")),
    (b"window-change", u32(1) * 4),
    (b"auth-agent-req@openssh.com", b""),
    (b"x11-req", b"\0" + string(b"MIT-MAGIC-COOKIE-1") + string(b"c") + u32(0)),
    (b"unknown@example", b"junk"),
    (b"keepalive@openssh.com", b""),
]


@dataclass(slots=True)
class Book:
    """What a decent client knows of its channel. `ours`: how it has to name it, once it was told."""

    ours: bytes | None = None
    closed: bool = False
    over: bool = False
    eof: bool = False
    terminal: bool = False
    room: int = 0


class Rider:
    """A client with its books: which packets it may get, in which state of which channel. A wild one keeps none."""

    def __init__(self, server: StrictServer, mark: int, wild: bool) -> None:
        self.client = Client(server)
        self.mark = mark
        self.wild = wild
        self.books: dict[int, Book] = {}
        self.offers: list[bytes] = []

    @property
    def gone(self) -> bool:
        return self.client.nat.ended

    def open_books(self) -> list[Book]:
        return [book for book in self.books.values() if book.ours is not None and not book.closed]

    def end(self) -> None:
        self.client.nat.end()
        self.client.told.clear()

    def read(self) -> None:
        for kind, payload in self.client.take():
            reader = Reader(payload)
            if self.wild:
                if kind in (Message.CHANNEL_DATA, Message.CHANNEL_EXTENDED_DATA):
                    assert set(payload[8 if kind == Message.CHANNEL_DATA else 12 :]) <= {128 + self.mark}
                continue
            if kind == Message.CHANNEL_OPEN:
                reader.string()
                self.offers.append(u32(reader.u32()))
            elif kind >= Message.CHANNEL_OPEN_CONFIRMATION:
                self._read_channel(kind, reader.u32(), reader)
            else:
                assert kind in (Message.REQUEST_SUCCESS, Message.REQUEST_FAILURE)

    def _read_channel(self, kind: int, number: int, reader: Reader) -> None:
        book = self.books[number]  # a packet for another's channel has another's number, or a strange one
        if kind in (Message.CHANNEL_OPEN_CONFIRMATION, Message.CHANNEL_OPEN_FAILURE):
            assert book.ours is None
            if kind == Message.CHANNEL_OPEN_FAILURE:
                del self.books[number]
            else:
                book.ours, book.room = u32(reader.u32()), reader.u32()
            return
        assert book.ours is not None and not book.over, f"packet {kind} before it was open, or after CLOSE"
        if kind == Message.CHANNEL_CLOSE:
            book.over = True
            if book.closed:
                del self.books[number]
        elif kind == Message.CHANNEL_WINDOW_ADJUST:
            book.room += reader.u32()
        elif kind in (Message.CHANNEL_DATA, Message.CHANNEL_EXTENDED_DATA):
            if kind == Message.CHANNEL_EXTENDED_DATA:
                reader.u32()
            assert set(reader.string()) <= {128 + self.mark}, "data of another"


class Life:
    """One server, and who comes and goes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = StrictServer()
        self.server.agent_allowed = self.random.random() < 0.5
        self.server.x11_body = self.random.choice([None, b"x11 of the owner"])
        self.listening: dict[tuple[bytes, int], bool] = {}
        self.riders: list[Rider] = []
        self.come()

    def rider(self) -> Rider | None:
        present = [rider for rider in self.riders if not rider.gone]
        return self.random.choice(present) if present else None

    def step(self) -> None:
        turn = self.random.randrange(30)
        if turn == 0:
            self.come()
        elif turn < 10:
            self.random.choice(self.SERVER)(self)
        else:
            self.act(self.rider(), self.random.choice(self.RIDER))

    def act(self, rider: Rider | None, action: Callable[[Life, Rider], None]) -> None:
        if rider is None:
            self.come()
        elif rider.wild and action in (Life.speak, Life.open, Life.forward, Life.answer_offer):
            self.be_wild(rider)
        else:
            action(self, rider)

    # Clients

    def come(self) -> None:
        if len(self.riders) < 60:
            self.riders.append(Rider(self.server, len(self.riders), self.random.random() < 0.4))

    def go(self, rider: Rider) -> None:
        if self.random.random() < 0.15:
            rider.end()

    def read(self, rider: Rider) -> None:
        rider.read()

    def window(self) -> int:
        return self.random.choice([0, 10, 100_000, 2 << 20, 2**32 - 1])

    def free_number(self, rider: Rider) -> int:
        return next(number for number in range(len(rider.books) + 1) if number not in rider.books)

    def open(self, rider: Rider) -> None:
        number = self.free_number(rider)
        rider.books[number] = Book()
        rider.client.open(number, window=self.window())

    def speak(self, rider: Rider) -> None:
        """What a decent client says on a channel of its own: never an error."""
        books = rider.open_books()
        if not books:
            return self.open(rider)
        book = self.random.choice(books)
        assert book.ours is not None
        client, count = rider.client, self.random.choice([0, 1, 1000, 40000])
        what = self.random.choice(["data", "extended", "adjust", "eof", "close", "request", "request"])
        if what in ("data", "extended") and not book.eof:
            count = min(count, 32768, book.room)
            book.room -= count
            stream = b"" if what == "data" else u32(1)
            client.say(95 if stream else 94, book.ours, stream, string(bytes([rider.mark]) * count))
        elif what == "adjust":
            loan = client.nat.channels[int.from_bytes(book.ours, "big")].loan
            if loan.credit_bytes + loan.withheld_bytes + count < 2**32:
                client.say(93, book.ours, u32(count))
        elif what == "eof":
            book.eof = True
            client.say(96, book.ours)
        elif what == "request":
            name, body = self.random.choice(REQUESTS)
            if name != b"pty-req" or not book.terminal:
                book.terminal = book.terminal or name == b"pty-req"
                client.say(98, book.ours, string(name), boolean(self.random.random() < 0.7), body)
        elif what == "close":
            book.closed = True
            client.say(97, book.ours)
            if book.over:
                rider.books = {number: other for number, other in rider.books.items() if other is not book}
        return None

    def answer_offer(self, rider: Rider) -> None:
        if not rider.offers:
            return
        ours = rider.offers.pop(0)
        if self.random.random() < 0.7:
            number = self.free_number(rider)
            rider.books[number] = Book(ours, room=2 << 20)
            rider.client.say(91, ours, u32(number), u32(self.window()), u32(100))
        else:
            rider.client.say(92, ours, u32(1), string(b"no"), string(b""))

    def forward(self, rider: Rider) -> None:
        name = self.random.choice([b"tcpip-forward", b"cancel-tcpip-forward"])
        host, port = self.random.choice(PLACES)
        rider.client.say(80, string(name), boolean(self.random.random() < 0.7), string(host), u32(port))

    def be_wild(self, rider: Rider) -> None:
        """A whole packet or a broken one, for a channel of its own, of another, or of nobody, in any state."""
        roll = self.random
        own = list(rider.client.nat.channels)
        number = u32(roll.choice(own) if own and roll.random() < 0.85 else roll.randrange(1000, 1100))
        data = string(bytes([rider.mark]) * roll.choice([0, 1, 30000, 32768, 32769]))
        kind = roll.choice([80, 90, 90, *range(91, 101), 93, 94, 94, 94, 96, 97, 98, 98, 98, roll.randrange(256)])
        request, rest = roll.choice(REQUESTS)
        bodies = {
            80: string(roll.choice([b"tcpip-forward", b"cancel-tcpip-forward", b"x"]))
            + b"\1"
            + string(b"localhost")
            + u32(1),
            90: string(b"session") + number + u32(self.window()) + u32(roll.choice([0, 9, 2**32 - 1])),
            91: number + u32(roll.randrange(9)) + u32(self.window()) + u32(roll.choice([0, 9, 2**32 - 1])),
            92: number + u32(1) + string(b"no") + string(b""),
            93: number + u32(self.window()),
            94: number + data,
            95: number + u32(1) + data,
            98: number + string(request) + boolean(roll.random() < 0.7) + rest,
        }
        body = bodies.get(kind, number)
        if roll.random() < 0.05 and kind not in (94, 95):
            body = body[: roll.randrange(len(body) + 1)] + bytes(roll.randrange(3))
        try:
            rider.client.say(kind, body)
        except RemoteProtocolError:
            # A relay would end it here. That nothing is broken when it goes on proves more.
            if roll.random() < 0.1:
                rider.end()

    # The server

    def answer_open(self) -> None:
        if self.server.opens:
            open_ = self.random.choice(self.server.opens)
            if self.random.random() < 0.8:
                self.server.confirm(open_)
            else:
                self.server.refuse(open_)

    def owner(self, number: int) -> int:
        (mark,) = (rider.mark for rider in self.riders if number in rider.client.nat.channels)
        return mark

    def serve(self) -> None:
        server = self.server
        channels = [channel for channel in server.channels.values() if not channel.opening and not channel.close_out]
        if not channels:
            return
        channel, count = self.random.choice(channels), self.random.choice([0, 1, 1000, 40000])
        what = self.random.choice(["data", "data", "extended", "adjust", "eof", "close", "ask", "keepalive", "reply"])
        if what in ("data", "extended") and not channel.eof_out:
            mark = bytes([128 + self.owner(channel.peer)])
            server.data(channel, mark * min(count, channel.credit, channel.packet), int(what == "extended"))
        elif what == "adjust":
            channel.window += count
            server.to(channel, 93, u32(count))
        elif what == "eof" and not channel.eof_out:
            channel.eof_out = True
            server.to(channel, 96)
        elif what in ("ask", "keepalive"):
            server.ask(channel, b"keepalive@openssh.com" if what == "keepalive" else b"what@example")
        elif what == "reply" and channel.requests:
            server.reply(channel, bool(count % 2))
        elif what == "close":
            server.close(channel)

    def answer_request(self, ok: bool | None = None) -> None:
        """As sshd: one listener for each place, and a cancellation needs one."""
        if not self.server.asked:
            return
        asked = self.server.asked[0]
        if asked.name == b"keepalive@openssh.com":
            self.server.answer(False)
            return
        reader = Reader(asked.body)
        place = (reader.string(), reader.u32())
        chosen = not place[1]
        if chosen:
            place = (place[0], self.random.randrange(40000, 40004))
        if asked.name == b"tcpip-forward":
            ok = (ok or self.random.random() < 0.8) and place not in self.listening
            if ok:
                self.listening[place] = True
        else:
            ok = self.listening.pop(place, None) is not None
        self.server.answer(ok, u32(place[1]) if chosen and ok else b"")
        # Between two packets the owner of each listener is known, but for one that has gone.
        assert {key for _, key in self.server.claims} <= set(self.listening)

    def connect(self) -> None:
        """Somebody connects to where the server listens."""
        if self.listening:
            self.server.offer(b"forwarded-tcpip", self.random.choice(list(self.listening)), b"")

    RIDER = (go, read, open, speak, speak, speak, answer_offer, forward)
    SERVER = (answer_open, serve, serve, serve, answer_request, connect)

    # In the end

    def end(self) -> None:
        server = self.server
        for channel in server.channels.values():
            if not channel.opening:
                assert set(channel.data) <= {self.owner(channel.peer)}, "data of another"
        for rider in self.riders:
            if not rider.gone:
                rider.read()
                assert not rider.client.failed
            rider.end()
        assert not server.shares.lent_bytes and not server.claims
        while server.asked:
            self.answer_request(True)
        for open_ in list(server.opens):
            server.confirm(open_)
        for channel in list(server.channels.values()):
            if not channel.close_out:
                server.close(channel)
        assert not server.channels and not server.routes and not server.shares.places
        assert not server.claims and not self.listening
        assert not any(rider.client.nat.channels or rider.client.nat.requests.held for rider in self.riders)


@given(st.integers(0, 2**64 - 1), st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_any_life(seed: int, steps: int) -> None:
    life = Life(seed)
    for _ in range(steps):
        life.step()
    life.end()
