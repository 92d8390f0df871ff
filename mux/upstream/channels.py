"""One channel on the engine: `connection.Channel` with asyncio around it.

One rule: whatever the server says to a channel is told to its `ChannelEnd` at once and in order, with no task and no
future per packet, and nothing is buffered here in either direction. What comes is bounded by our window, which only
`consumed` opens again; what goes is bounded by `room_bytes`, and `ChannelEnd.room` is called when there is some again.

When the transport has enough, those who want to send wait for their turn (`turns.py`), which is one piece each. A few
bytes may pass even then, so that a key pressed or a stat asked for does not wait for everybody's bulk.

A server that breaks the rules of one channel loses that channel, not the connection and with it everybody's work.
Imported by whoever in `mux.upstream` opens or accepts channels; knows the engine by the protocol `Transport` only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from mux.errors import RemoteProtocolError, printable
from mux.protocol.connection import (
    LARGEST_PACKET_BYTES,
    Channel,
    Closed,
    Data,
    Eof,
    Event,
    Opened,
    Packet,
    Refused,
    Reply,
    Request,
    State,
    WindowGrown,
)
from mux.protocol.harmless import KEEPALIVE
from mux.protocol.sides import Offer

from .channel_sides import NOBODY, ChannelEnd, OpenRefused, Transport, words
from .turns import Turns
from .windows import SESSION_WINDOW_BYTES

__all__ = ["SESSION_WINDOW_BYTES", "ChannelEnd", "LiveChannel", "OpenRefused", "Turns"]

log = logging.getLogger(__name__)

# What a channel may send while the transport has enough: a few keys, or SFTP requests that carry no data.
URGENT_BYTES: Final = 4096


class LiveChannel:
    """A channel of the engine, from its first packet to CLOSE both ways. Made by `open` or `accept`.

    number, kind                   ours, and what it is ("session", "direct-tcpip" ...)
    sent_bytes, received_bytes     data so far, both streams
    description                    for lists; who opens it may say more than its kind
    """

    __slots__ = (
        "__weakref__",
        "_abandoned",
        "_answers",
        "_broken",
        "_channel",
        "_company",
        "_end",
        "_engine",
        "_in_row",
        "_opening",
        "_over",
        "_period",
        "_period_bytes",
        "_shared_bytes",
        "_turns",
        "_wants_room",
        "description",
        "kind",
        "number",
        "received_bytes",
        "sent_bytes",
    )

    def __init__(
        self,
        engine: Transport,
        kind: bytes,
        end: ChannelEnd,
        window_bytes: int,
        packet_bytes: int,
        shared_bytes: int | None = None,
    ) -> None:
        """For `open` and `accept`."""
        self.kind = kind
        self.description = printable(kind)
        self.sent_bytes = self.received_bytes = 0
        self.number = engine.add_route(self)
        self._engine = engine
        self._end = end
        self._channel = Channel(self.number, window_bytes=window_bytes, packet_bytes=packet_bytes)
        self._shared_bytes = shared_bytes
        self._company = engine.company
        self._turns = Turns.of(engine)
        self._opening: asyncio.Future[Refused | None] | None = None
        self._answers: deque[Callable[[bool], None]] = deque()
        self._abandoned = self._over = self._broken = False
        self._wants_room = self._in_row = False
        self._period = 0
        self._period_bytes = 0  # sent since the transport last had room again

    @classmethod
    async def open(
        cls,
        engine: Transport,
        kind: bytes,
        extra: bytes,
        end: ChannelEnd,
        *,
        window_bytes: int,
        packet_bytes: int = LARGEST_PACKET_BYTES,
        shared_bytes: int | None = None,
        deadline_s: float,
    ) -> LiveChannel:
        """Open a channel; `end.opened` was called when this returns. Its window is `window_bytes`, or `shared_bytes`
        while the server sends to others as well.

        Raises `OpenRefused` when the server refuses, does not answer in time, or is lost. An open that is given up or
        cancelled leaves nothing behind: the channel is closed as soon as the server confirms it.
        """
        if engine.lost is not None:
            raise OpenRefused(0, engine.lost)
        self = cls(engine, kind, end, window_bytes, packet_bytes, shared_bytes)
        opening = self._opening = asyncio.get_running_loop().create_future()
        engine.send(*self._channel.open(kind, extra))
        try:
            async with asyncio.timeout(deadline_s):
                refused = await opening
        except TimeoutError:
            self._abandon()
            raise OpenRefused(0, f"no answer within {deadline_s:g} s") from None
        except BaseException:
            self._abandon()
            raise
        if refused is not None:
            raise OpenRefused(refused.code, printable(refused.text) or words(refused.code))
        return self

    @classmethod
    def accept(
        cls,
        engine: Transport,
        incoming: Offer,
        end: ChannelEnd,
        *,
        window_bytes: int,
        packet_bytes: int = LARGEST_PACKET_BYTES,
    ) -> LiveChannel:
        """Confirm a channel that the server opens; `end.opened` was called when this returns.

        Raises `RemoteProtocolError`, with nothing sent, when what the server said of itself makes no sense.
        """
        self = cls(engine, incoming.kind, end, window_bytes, packet_bytes)
        try:
            confirmation = self._channel.accept(incoming.sender, incoming.window_bytes, incoming.packet_bytes)
        except RemoteProtocolError:
            self._over = True
            engine.remove_route(self.number)
            raise
        engine.send(*confirmation)
        end.opened(self)
        return self

    @property
    def over(self) -> bool:
        """Whether nothing more can be sent or will come."""
        return self._over

    @property
    def eof_received(self) -> bool:
        """Whether the server sends no more data."""
        return self._channel.eof_received

    @property
    def room_bytes(self) -> int:
        """How much `write` would take now. When less than wanted, `want_room` asks for a call of `ChannelEnd.room`."""
        channel = self._channel
        if self._over or channel.eof_sent or channel.state is not State.OPEN:
            return 0
        if not self._engine.paused:
            return channel.room_bytes
        used = self._period_bytes if self._period == self._turns.period else 0
        return min(channel.room_bytes, max(0, URGENT_BYTES - used))

    def want_room(self) -> None:
        """Have `ChannelEnd.room` called, once, when `room_bytes` is no longer 0. To be called when it is."""
        if self._over:
            return
        self._wants_room = True
        if self._engine.paused and not self._in_row:
            self._in_row = True
            self._turns.wait(self)

    def write(self, data: bytes | bytearray | memoryview, stream: int = 0) -> int:
        """Send from the front of `data` what may be sent now, and return how much that is.

        When that is not all, `ChannelEnd.room` is called when it is worth trying again. The bytes are no longer needed
        when this returns.
        """
        room = self.room_bytes
        taken = 0
        if room:
            taken, packets = self._channel.data(memoryview(data)[:room], stream)
            self._engine.send_all(packets)
            self.sent_bytes += taken
            if self._period != self._turns.period:
                self._period, self._period_bytes = self._turns.period, 0
            self._period_bytes += taken
        if taken < len(data):
            self.want_room()
        return taken

    def consumed(self, count: int) -> None:
        """Give back so much of what `ChannelEnd.data` brought: the server may send as much again."""
        if count and not self._over and not self._broken:
            shared_bytes = self._shared_bytes
            if shared_bytes is not None and self._company.alone():
                shared_bytes = None
            self._send(self._channel.consumed(count, shared_bytes))

    def eof(self) -> None:
        """Say that no more data comes from here. Once; later calls do nothing."""
        if self._can_send():
            self._send(self._channel.eof())

    def close(self) -> None:
        """Close. Once; later calls do nothing. `ChannelEnd.closed` comes when the server has closed too."""
        if self._can_send():
            self._send(self._channel.close())
            self._forget_if_finished()

    def request(self, name: bytes, body: bytes = b"") -> None:
        """Make a request without an answer; nothing happens on a closed channel."""
        if self._can_send():
            self._send(self._channel.request(name, False, body))

    def ask(self, name: bytes, body: bytes = b"") -> asyncio.Future[bool]:
        """Make a request with an answer; answers come in the order of the requests, and False on a closed channel."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ask_then(name, body, lambda ok: _set_result(answer, ok))
        return answer

    def ask_then(self, name: bytes, body: bytes, then: Callable[[bool], None]) -> None:
        """As `ask`, with `then(ok)` called the moment the answer comes, before anything that came behind it.

        The channel is `over` when it is called because no answer can come any more.
        """
        if self._can_send():
            self._answers.append(then)
            self._send(self._channel.request(name, True, body))
        else:
            then(False)

    # Called by the engine

    def packet(self, kind: int, body: memoryview) -> None:
        """A packet of the server for this channel (`engine.Route`)."""
        if self._broken:
            self._receive_broken(kind, body)
            return
        try:
            event = self._channel.receive(kind, body)
            if event is not None:
                self._handle(event)
        except RemoteProtocolError as error:
            self._break(error.message)
        except Exception:
            # A bug of ours in one channel's end is not to end everybody's connection.
            log.exception("channel %d (%s) failed", self.number, self.description)
            self._break("an error of this program; see its log")

    def lost(self, reason: str) -> None:
        """The connection ended (`engine.Route`)."""
        if self._over:
            return
        self._over = True
        self._settle(Refused(0, reason.encode()))
        end, self._end = self._end, NOBODY
        if self._channel.state is State.OPEN:
            end.lost(reason)

    def take_turn(self) -> None:
        """The transport has room for a piece of this channel (`Turns`)."""
        self._in_row = False
        if self._wants_room and self.room_bytes:
            self._wants_room = False
            self._end.room()

    def _handle(self, event: Event) -> None:
        match event:
            case Data(stream, data):
                self.received_bytes += len(data)
                self._end.data(stream, data)
            case WindowGrown():
                if self._wants_room and not self._in_row:
                    if self.room_bytes:
                        self._wants_room = False
                        self._end.room()
                    else:  # the transport has enough, which it had not when the window was used up
                        self.want_room()
            case Request(name, want_reply, body):
                ok = self._end.request(name, want_reply, bytes(body))
                if want_reply and not self._broken:
                    self._answer(ok)
            case Reply(ok):
                self._answers.popleft()(ok)
            case Eof():
                self._end.eof()
            case Closed():
                self.close()
                self._forget_if_finished()
            case Opened():
                self._confirmed()
            case Refused():
                self._over = True
                self._engine.remove_route(self.number)
                self._settle(event)

    def _answer(self, ok: bool) -> None:
        """Answer the oldest request of the server, or show in another way that we are there.

        sshd asks for that (ClientAliveInterval) on its first channel, be it one that is closed on our side, where
        nothing may be said any more; without a word from us it ends the connection of all.
        """
        answer = self._channel.answer(ok)
        if answer is None:
            self._engine.request(KEEPALIVE, b"", lambda *_: None)
        else:
            self._send(answer)

    def _confirmed(self) -> None:
        if self._abandoned:
            self.close()
            return
        self._end.opened(self)
        if self._opening is not None:
            _set_result(self._opening, None)

    def _abandon(self) -> None:
        """Whoever opens this does not want it any more, and hears nothing of it."""
        self._abandoned = True
        self._end = NOBODY
        if self._channel.state is State.OPEN:
            self.close()

    def _break(self, reason: str) -> None:
        """The server broke the rules here: this channel is lost. Its number stays taken until the server closes it."""
        self._broken = True
        told, self._over = self._over, True
        is_open = self._channel.state is State.OPEN
        if is_open:
            self._send(self._channel.close())
        self._settle(Refused(0, reason.encode()))
        end, self._end = self._end, NOBODY
        if is_open and not told:
            end.lost(reason)
        if self._channel.finished:
            self._engine.remove_route(self.number)

    def _receive_broken(self, kind: int, body: memoryview) -> None:
        """Of a broken channel only what frees its number is of interest."""
        try:
            event = self._channel.receive(kind, body)
        except RemoteProtocolError:
            return
        if isinstance(event, Opened):
            self._send(self._channel.close())
        elif isinstance(event, Request):
            if event.want_reply:
                self._answer(False)
        elif isinstance(event, Closed | Refused):
            self._engine.remove_route(self.number)

    def _forget_if_finished(self) -> None:
        if self._channel.finished and not self._over:
            self._over = True
            self._engine.remove_route(self.number)
            self._settle(None)
            end, self._end = self._end, NOBODY
            end.closed()

    def _settle(self, refused: Refused | None) -> None:
        """Whoever still waits for something of this channel gets an answer."""
        if self._opening is not None:
            _set_result(self._opening, refused)
        while self._answers:
            self._answers.popleft()(False)

    def _can_send(self) -> bool:
        return self._channel.state is State.OPEN and not self._channel.close_sent and not self._over

    def _send(self, packet: Packet | None) -> None:
        if packet is not None:
            self._engine.send(*packet)


def _set_result(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)
