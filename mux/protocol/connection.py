"""One channel of the SSH connection protocol (RFC 4254 section 5) as a machine, and the protocol's numbers.

A machine says what to send as packets `(message number, part, part ...)`, the parts being what follows the number, and
takes what the peer sends to this end as `(message number, body)`, the body being what follows the recipient's channel
number. One rule: both windows, EOF and CLOSE are accounted for here and nowhere else, so that this end never sends
what the peer did not allow, and a peer that sends what we did not allow is found out by the very packet. Nothing is
sent after CLOSE; what the peer sent before it saw ours is taken, checked, and where it carries data dropped.

Who chooses channel numbers, and where packets go, is the caller's. May be imported by all of `mux`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, TypeAlias

from mux.errors import LocalProtocolError, RemoteProtocolError, WireError

from .wire import Reader, boolean, string, u32

LARGEST_WINDOW_BYTES: Final = 2**32 - 1  # RFC 4254 section 5.2
# What an implementation has to take (RFC 4253 section 6.1), what OpenSSH announces, and as long as another channel's
# packet should have to wait for one of ours.
LARGEST_PACKET_BYTES: Final = 32768
# The window is opened again by so much at once, or by half of it where it is small: one packet for sixteen of data.
LARGEST_UNTOLD_BYTES: Final = 512 * 1024

STDERR: Final = 1  # SSH_EXTENDED_DATA_STDERR (RFC 4254 section 5.2)


class Message(enum.IntEnum):
    """Message numbers of RFC 4254 section 9."""

    GLOBAL_REQUEST = 80
    REQUEST_SUCCESS = 81
    REQUEST_FAILURE = 82
    CHANNEL_OPEN = 90
    CHANNEL_OPEN_CONFIRMATION = 91
    CHANNEL_OPEN_FAILURE = 92
    CHANNEL_WINDOW_ADJUST = 93
    CHANNEL_DATA = 94
    CHANNEL_EXTENDED_DATA = 95
    CHANNEL_EOF = 96
    CHANNEL_CLOSE = 97
    CHANNEL_REQUEST = 98
    CHANNEL_SUCCESS = 99
    CHANNEL_FAILURE = 100


class OpenFailure(enum.IntEnum):
    """Reason codes of CHANNEL_OPEN_FAILURE (RFC 4254 section 5.1)."""

    ADMINISTRATIVELY_PROHIBITED = 1
    CONNECT_FAILED = 2
    UNKNOWN_CHANNEL_TYPE = 3
    RESOURCE_SHORTAGE = 4


Part: TypeAlias = bytes | memoryview
Packet: TypeAlias = tuple[int, *tuple[Part, ...]]


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer accepted the channel; `extra` is what its kind of channel adds, mostly nothing."""

    extra: bytes = b""


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer refused the channel: the number is free again. The text is the peer's, unchecked."""

    code: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Data:
    """Data of stream 0, or of an extended stream (`STDERR`). The view is of the packet and is not copied."""

    stream: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Eof:
    """The peer will send no more data."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer has closed: nothing more comes, and requests still unanswered never will be."""


@dataclass(frozen=True, slots=True)
class Request:
    """A channel request. With `want_reply` it is to be answered, in order, by `Channel.answer`."""

    name: bytes
    want_reply: bool
    body: memoryview


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the oldest of our requests that wanted one."""

    ok: bool


@dataclass(frozen=True, slots=True)
class WindowGrown:
    """More may be sent."""

    count: int


Event: TypeAlias = Opened | Refused | Data | Eof | Closed | Request | Reply | WindowGrown


class State(enum.Enum):
    """How far a channel has come. In `OPEN` the flags for EOF and CLOSE of both ends tell the rest."""

    NEW = enum.auto()
    OPENING = enum.auto()
    OPEN = enum.auto()
    REFUSED = enum.auto()


class Channel:
    """One end of one channel.

    number        ours: how the peer names this end
    remote        the peer's number, once open
    room_bytes    what may be sent now
    """

    __slots__ = (
        "_eof_received",
        "_eof_sent",
        "_full_header",
        "_owed",
        "_packet_bytes",
        "_recipient",
        "_untold_bytes",
        "_untold_limit_bytes",
        "_waiting",
        "_window_bytes",
        "close_received",
        "close_sent",
        "number",
        "remote",
        "remote_packet_bytes",
        "room_bytes",
        "state",
        "window_bytes",
    )

    def __init__(self, number: int, *, window_bytes: int, packet_bytes: int = LARGEST_PACKET_BYTES) -> None:
        """`window_bytes` is what the peer may send ahead of `consumed`; `packet_bytes` what it may send at once."""
        self.number = number
        self.state = State.NEW
        self.remote: int | None = None
        self.remote_packet_bytes = 0
        self.room_bytes = 0
        self.window_bytes = window_bytes
        self.close_sent = False
        self.close_received = False
        self._eof_sent = False
        self._eof_received = False
        self._packet_bytes = packet_bytes
        self._window_bytes = window_bytes  # what the peer may still send
        self._untold_bytes = 0  # consumed, and the peer does not know yet
        self._untold_limit_bytes = max(1, min(window_bytes // 2, LARGEST_UNTOLD_BYTES))
        self._waiting = 0  # our requests without an answer
        self._owed = 0  # the peer's
        self._recipient = b""
        self._full_header = b""

    @property
    def finished(self) -> bool:
        """Whether the number is free again: CLOSE went both ways, or the channel was never opened."""
        return self.state is State.REFUSED or (self.close_sent and self.close_received)

    @property
    def eof_sent(self) -> bool:
        """Whether we said that no more data comes from here."""
        return self._eof_sent

    @property
    def eof_received(self) -> bool:
        """Whether the peer said that no more data comes from there."""
        return self._eof_received

    # What we send

    def open(self, kind: bytes, extra: bytes = b"") -> Packet:
        """Ask the peer for a channel; `extra` is what belongs to its kind."""
        self._need(State.NEW, "open")
        self.state = State.OPENING
        ours = u32(self.number) + u32(self.window_bytes) + u32(self._packet_bytes)
        return Message.CHANNEL_OPEN, string(kind), ours, extra

    def accept(self, remote: int, window_bytes: int, packet_bytes: int, extra: bytes = b"") -> Packet:
        """Confirm a channel that the peer asked for with these numbers.

        Raises `RemoteProtocolError` when they make no sense; the caller then refuses.
        """
        self._need(State.NEW, "accept")
        self._set_remote(remote, window_bytes, packet_bytes)
        ours = u32(self.number) + u32(self.window_bytes) + u32(self._packet_bytes)
        return Message.CHANNEL_OPEN_CONFIRMATION, self._recipient, ours, extra

    def data(self, data: bytes | bytearray | memoryview, stream: int = 0) -> tuple[int, list[Packet]]:
        """Return how much of `data` may go now, and the packets to send it with, which are views of it."""
        self._need(State.OPEN, "send data")
        if self._eof_sent or self.close_sent:
            raise LocalProtocolError(f"channel {self.number}: data after our own EOF or CLOSE")
        count = min(len(data), self.room_bytes)
        if not count:
            return 0, []
        self.room_bytes -= count
        view = memoryview(data)
        size = self.remote_packet_bytes
        if stream:
            head = self._recipient + u32(stream)
            starts = range(0, count, size)
            pieces = [view[start : min(start + size, count)] for start in starts]
            return count, [(Message.CHANNEL_EXTENDED_DATA, head + u32(len(piece)), piece) for piece in pieces]
        packets: list[Packet] = []
        whole = count - count % size
        for start in range(0, whole, size):
            packets.append((94, self._full_header, view[start : start + size]))
        if whole < count:
            packets.append((94, self._recipient + u32(count - whole), view[whole:count]))
        return count, packets

    def consumed(self, count: int, window_bytes: int | None = None) -> Packet | None:
        """Note that so much of the received data is done with; returns what to tell the peer, if it is time.

        The window is opened again to `window_bytes` for now, where that is less than what it began with.
        """
        told = self._untold_bytes = self._untold_bytes + count
        if self._window_bytes + told > self.window_bytes:
            raise LocalProtocolError(f"channel {self.number}: more was consumed than was received")
        enough = self._untold_limit_bytes
        if window_bytes is not None:
            told, enough = min(told, window_bytes - self._window_bytes), min(enough, max(1, window_bytes // 2))
        if told < enough or self._eof_received or self.close_sent:
            return None
        self._untold_bytes -= told
        self._window_bytes += told
        return Message.CHANNEL_WINDOW_ADJUST, self._recipient, u32(told)

    def eof(self) -> Packet | None:
        """Say that no more data comes from here; None when that was said before."""
        self._need(State.OPEN, "send EOF")
        if self._eof_sent or self.close_sent:
            return None
        self._eof_sent = True
        return Message.CHANNEL_EOF, self._recipient

    def close(self) -> Packet | None:
        """Close this end; None when it is closed. The peer's CLOSE is still to be waited for, unless it has come."""
        self._need(State.OPEN, "send CLOSE")
        if self.close_sent:
            return None
        self.close_sent = True
        self.room_bytes = 0
        return Message.CHANNEL_CLOSE, self._recipient

    def request(self, name: bytes, want_reply: bool, body: bytes = b"") -> Packet:
        """Make a channel request."""
        self._need(State.OPEN, "make a request")
        if self.close_sent:
            raise LocalProtocolError(f"channel {self.number}: a request after our own CLOSE")
        self._waiting += want_reply
        return Message.CHANNEL_REQUEST, self._recipient, string(name), boolean(want_reply), body

    def answer(self, ok: bool) -> Packet | None:
        """Answer the oldest request of the peer that wanted it; None when it is too late to say anything."""
        self._need(State.OPEN, "answer a request")
        if not self._owed:
            raise LocalProtocolError(f"channel {self.number}: there is no request to answer")
        self._owed -= 1
        if self.close_sent:
            return None
        return Message.CHANNEL_SUCCESS if ok else Message.CHANNEL_FAILURE, self._recipient

    # What we receive

    def receive(self, kind: int, body: memoryview) -> Event | None:
        """Return what a packet to this end means; None when that changes nothing any more (data after our CLOSE).

        Raises `RemoteProtocolError` when the peer must not have sent it; the channel is then of no further use.
        """
        if kind == Message.CHANNEL_DATA and self.state is State.OPEN:
            return self._received(0, body)
        if kind == Message.CHANNEL_WINDOW_ADJUST and len(body) == 4 and self._is_open:
            return self._grow(int.from_bytes(body, "big"))  # the most frequent one of an upload
        try:
            return self._receive(kind, Reader(body), body)
        except WireError as error:
            raise RemoteProtocolError(f"channel {self.number}: malformed message {kind}: {error}") from None

    def _receive(self, kind: int, reader: Reader, body: memoryview) -> Event | None:
        if self.state is State.OPENING:
            return self._receive_answer(kind, reader)
        if not self._is_open:
            raise self._violation(f"message {kind} when it was closed or not open")
        match kind:
            case Message.CHANNEL_EXTENDED_DATA:
                stream = reader.u32()
                if not stream:
                    raise self._violation("extended data of stream 0")
                return self._received(stream, body[4:])
            case Message.CHANNEL_WINDOW_ADJUST:
                count = reader.u32()
                reader.end()
                return self._grow(count)
            case Message.CHANNEL_EOF:
                reader.end()
                if self._eof_received:
                    raise self._violation("a second EOF")
                self._eof_received = True
                return Eof()
            case Message.CHANNEL_CLOSE:
                reader.end()
                self.close_received = self._eof_received = True
                self._waiting = self.room_bytes = 0
                return Closed()
            case Message.CHANNEL_REQUEST:
                name, want_reply = reader.string(), reader.boolean()
                self._owed += want_reply
                return Request(name, want_reply, body[len(name) + 5 :])
            case Message.CHANNEL_SUCCESS | Message.CHANNEL_FAILURE:
                reader.end()
                if not self._waiting:
                    raise self._violation("an answer to a request that was never made")
                self._waiting -= 1
                return Reply(kind == Message.CHANNEL_SUCCESS)
        raise self._violation(f"message {kind} for an open channel")

    def _receive_answer(self, kind: int, reader: Reader) -> Event:
        if kind == Message.CHANNEL_OPEN_CONFIRMATION:
            self._set_remote(reader.u32(), reader.u32(), reader.u32())
            return Opened(reader.rest())
        if kind == Message.CHANNEL_OPEN_FAILURE:
            code, text = reader.u32(), reader.string()
            self.state = State.REFUSED
            return Refused(code, text)
        raise self._violation(f"message {kind} before it was open")

    def _received(self, stream: int, body: memoryview) -> Event | None:
        count = len(body) - 4
        if count < 0 or int.from_bytes(body[:4], "big") != count:
            raise self._violation("data of another length than it says")
        return Data(stream, body[4:]) if self.expect(count) else None

    def expect(self, count: int) -> bool:
        """Account for CHANNEL_DATA of `count` bytes, which the caller takes by itself; False when it is to be dropped.

        Raises `RemoteProtocolError` when the peer must not have sent it.
        """
        if self.state is not State.OPEN or self._eof_received:
            raise self._violation("data before it was open, or after EOF or CLOSE")
        if count > self._window_bytes:
            raise self._violation(f"{count} bytes into a window of {self._window_bytes}")
        if count > self._packet_bytes:
            raise self._violation(f"{count} bytes in one packet of at most {self._packet_bytes}")
        self._window_bytes -= count
        return not self.close_sent

    def spend(self, count: int) -> None:
        """Account for data that the caller sends in packets of its own making, within `room_bytes`."""
        self._need(State.OPEN, "send data")
        if self._eof_sent or self.close_sent or count > self.room_bytes:
            raise LocalProtocolError(f"channel {self.number}: data after our own EOF or CLOSE, or beyond the window")
        self.room_bytes -= count

    @property
    def _is_open(self) -> bool:
        return self.state is State.OPEN and not self.close_received

    def _grow(self, count: int) -> Event | None:
        if self.close_sent:
            return None
        if self.room_bytes + count > LARGEST_WINDOW_BYTES:
            raise self._violation("a window of 4 GiB or more")
        self.room_bytes += count
        return WindowGrown(count)

    def _set_remote(self, remote: int, window_bytes: int, packet_bytes: int) -> None:
        if not packet_bytes:
            raise self._violation("that it takes no data at all, by a packet size of 0")
        self.remote = remote
        self.room_bytes = window_bytes
        self.remote_packet_bytes = min(packet_bytes, LARGEST_PACKET_BYTES)
        self._recipient = u32(remote)
        self._full_header = self._recipient + u32(self.remote_packet_bytes)
        self.state = State.OPEN

    def _need(self, state: State, what: str) -> None:
        if self.state is not state:
            raise LocalProtocolError(f"channel {self.number}: cannot {what} in state {self.state.name}")

    def _violation(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"channel {self.number}: the peer sent {what}")
