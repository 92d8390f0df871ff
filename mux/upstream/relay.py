"""Clients who speak the connection protocol themselves: their sockets, joined to the connection by `protocol.nat`.

They are proxy clients (`ssh -O proxy`, after MUX_S_PROXY) and PuTTY's tools (after their greeting).

One rule: nothing here waits. The client is read in pieces of bounded size; while the connection has enough it stands
in the same row as everybody who sends (`channels.Turns`), so that a flood gets its turns and no more. What it does not
read is bounded by what is lent to it (`protocol.shares`), and while it leaves answers unread it is not read from. A
client that breaks the protocol is told why by DISCONNECT, as a server would, and is cut off alone.

Bytes are not copied on their way: packets of the client are views of one buffer that all relays share, and go from it
under the cipher; those of the server go from the cipher's output into one gathering write per turn of the loop, small
ones joined. Imported by `clients.py` and `putty.py`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from mux.errors import RemoteProtocolError
from mux.protocol.bare import BY_APPLICATION, DISCONNECT, PROTOCOL_ERROR, disconnect_body
from mux.protocol.dialects import PROXY_MODE, Dialect
from mux.protocol.harmless import largest_request_bytes
from mux.protocol.nat import Nat, NatChannel
from mux.protocol.nat_channels import State
from mux.protocol.packets import LARGEST_FRAME_BYTES
from mux.protocol.shares import Shares
from mux.protocol.sides import Body, GiveUp, Key, Taker

from .channels import Turns
from .unsent import Unsent
from .watching import Watch

if TYPE_CHECKING:
    from .engine import Engine
    from .farewells import Farewells
    from .incoming import Incoming

READ_BYTES: Final = 128 << 10  # of one turn: four packets of data, and half of what stops the producers
# Answers and other packets without data that the client leaves unread; then it is not read from. It may have asked
# some thousand questions by then.
UNREAD_BYTES: Final = 256 << 10
# Over all that is lent to a client, with the frames around it; a server that sends more breaks the rules.
MAX_QUEUED_BYTES: Final = 160 << 20

SESSION: Final = b"session"

log = logging.getLogger(__name__)


class Shared(Protocol):
    """What is needed of `upstream.Upstream`."""

    @property
    def engine(self) -> Engine: ...
    @property
    def incoming(self) -> Incoming: ...
    @property
    def farewells(self) -> Farewells: ...
    def note_session(self) -> None: ...
    def note_refusal(self) -> None: ...


_SHARES: weakref.WeakKeyDictionary[Engine, Shares] = weakref.WeakKeyDictionary()
# Where every relay's socket is read into, one at a time: the longest frame, begun before, and the piece that ends it.
_BUFFER: Final = memoryview(bytearray(4 + LARGEST_FRAME_BYTES + READ_BYTES))


class Relay:
    """One such client, until it or the connection has gone. The socket is closed here.

    received_bytes, sent_bytes   on the client's socket: from the server, and to it
    description                  one line for lists
    """

    def __init__(
        self,
        upstream: Shared,
        connection: socket.socket,
        rest: bytes,
        on_end: Callable[[], None],
        dialect: Dialect = PROXY_MODE,
    ) -> None:
        """`rest`: what came behind the request. `on_end` is called once, unless `hang_up` was called before."""
        engine = upstream.engine
        self._upstream = upstream
        self.description = dialect.name
        self.received_bytes = 0
        self.sent_bytes = 0
        self._framing = dialect.framing
        self._engine = engine
        self._incoming = upstream.incoming
        self._farewells = upstream.farewells
        self._socket = connection
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._turns = Turns.of(engine)
        self._nat = Nat(
            engine,
            self,
            self,
            _SHARES.setdefault(engine, Shares()),
            largest_request_bytes=largest_request_bytes(engine.facts().server_version),
            dialect=dialect,
        )
        self._rest = rest
        self._unsent = Unsent()
        self._watch = Watch(connection.fileno(), self._readable, self._flush)
        self._ended = False
        self._flush_due = False
        self._in_row = False
        self._x11: asyncio.Task[None] | None = None
        connection.setblocking(False)
        self._loop.call_soon(self._take_up)

    @property
    def channels(self) -> list[NatChannel]:
        """Its channels; what is left of a client that has gone among them."""
        return list(self._nat.channels.values())

    @property
    def sessions(self) -> int:
        """How many sessions it has open."""
        return sum(one.kind == SESSION and one.state is State.OPEN for one in self._nat.channels.values())

    @property
    def forwardings(self) -> list[tuple[bytes, Key]]:
        """Where the server listens for it: the kind of channel that comes from there, and the place."""
        return [(forwarding.kind.channel, forwarding.key) for forwarding in self._nat.requests.held]

    def hang_up(self) -> None:
        """End it: its channels are closed, its forwardings cancelled. Idempotent."""
        if not self._ended:
            self._leave()
            self._socket.close()

    def _leave(self) -> None:
        self._ended = True
        self._watch.stop()
        self._unsent = Unsent()
        self._rest = b""
        if self._x11 is not None:
            self._x11.cancel()
        self._nat.end()

    def dismiss(self, reason: str) -> None:
        """End it, and tell the client why as far as its socket takes it."""
        if not self._ended:
            self._say_goodbye(reason, BY_APPLICATION)

    def _cut(self, reason: str, code: int) -> None:
        """End it from this side, for what it or the server did."""
        if self._ended:
            return
        log.info("a %s client is cut off: %s", self.description, reason)
        self._say_goodbye(reason, code)

    def _say_goodbye(self, reason: str, code: int) -> None:
        self.deliver(DISCONNECT, disconnect_body(code, reason), b"")
        unsent = self._unsent
        self._leave()
        self._farewells.part(self._socket, unsent)
        self._on_end()

    def _end(self) -> None:
        if not self._ended:
            self.hang_up()
            self._on_end()

    # What comes from the client

    def take_turn(self) -> None:
        """The connection takes another piece (`channels.Turns`)."""
        self._in_row = False
        if not self._ended and not self._nat.stalled:
            self._read_piece()

    def _readable(self) -> None:
        if self._engine.paused:
            self._watch.read(False)
            self._in_row = True
            self._turns.wait(self)
        else:
            self._read_piece()

    def _read_piece(self) -> None:
        begun = len(self._rest)
        try:
            count = self._socket.recv_into(_BUFFER[begun:], READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return self._read_on()
        except OSError:
            return self._end()
        if not count:  # half a hang-up is one: nothing of the client's could be closed otherwise
            return self._end()
        self.sent_bytes += count
        _BUFFER[:begun] = self._rest
        self._take(_BUFFER[: begun + count])
        return self._read_on()

    def _take_up(self) -> None:
        """Go on with what has come already."""
        if not self._ended:
            self._take(memoryview(self._rest))
            self._read_on()

    def _take(self, data: memoryview) -> None:
        """Take the packets of `data`, and keep what is not a whole one."""
        nat = self._nat
        start = 0
        try:
            while not nat.stalled and (frame := self._framing.next(data, start)) is not None:
                kind, payload, start = frame
                if kind == DISCONNECT:
                    return self._end()
                nat.receive(kind, payload)
        except RemoteProtocolError as error:
            return self._cut(str(error), PROTOCOL_ERROR)
        if not self._ended:
            self._rest = bytes(data[start:])
        return None

    def _read_on(self) -> None:
        """Read on, unless that has to wait for something that will call here again."""
        if self._ended or self._in_row:
            return
        unread = self._unsent.queued_bytes - self._nat.loans.waiting_bytes
        self._watch.read(not self._nat.stalled and not self._nat.busy and unread <= UNREAD_BYTES)

    # What goes to the client (`sides.Client`)

    def deliver(self, kind: int, first: bytes, rest: Body) -> None:
        """Send a packet, with what else this turn of the loop brings."""
        self._unsent.put(self._framing.pack(kind, first, len(rest)), rest)
        if not self._flush_due and not self._watch.writing:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def answered(self, kind: bytes, opened: bool) -> None:
        """Sessions are counted with those of everybody else."""
        if kind == SESSION:
            if opened:
                self._upstream.note_session()
            else:
                self._upstream.note_refusal()

    def fail(self, reason: str) -> None:
        """The server broke the protocol, or has gone."""
        self._loop.call_soon(self._cut, reason, BY_APPLICATION)

    def ready(self) -> None:
        """What the client's next packets had to wait for is there."""
        if self._nat.stalled or self._nat.busy or self._watch.reading:
            return
        self._loop.call_soon(self._take_up)

    def _flush(self) -> None:
        self._flush_due = False
        if self._ended:
            return
        try:
            self.received_bytes += self._unsent.send(self._socket)
        except OSError:
            return self._end()
        waiting = self._unsent.queued_bytes
        if waiting > MAX_QUEUED_BYTES:
            return self._cut(f"{waiting} bytes wait for it, more than it was lent", BY_APPLICATION)
        self._nat.loans.read_up(waiting)
        self._watch.write(waiting > 0)
        return self._read_on()

    # What the owner allows (`sides.Rules`)

    def claim(self, kind: bytes, key: Key, taker: Taker) -> GiveUp:
        """Channels that the server opens for a forwarding of this client's are its own."""
        return self._incoming.claim(kind, key, taker)

    def agent(self) -> bool:
        """Whether the owner's options allow the agent."""
        return self._incoming.agent()

    def x11(self, then: Callable[[bytes | None], None]) -> None:
        """Ask for X11 as a session of our own would, with the owner's display and a cookie of ours."""

        async def ask() -> None:
            body = None
            try:
                body = await self._incoming.x11.request()
            except Exception:
                log.exception("X11 for a %s client met with a fault", self.description)
            self._x11 = None
            then(body)

        self._x11 = self._loop.create_task(ask())
