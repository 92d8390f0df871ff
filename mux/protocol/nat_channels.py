"""The channels of one client of many: the two ends of each, their numbers, and what each of them may still be sent.

One rule: each end knows a channel by a number of ours, the same for both, which stands for that channel alone until
CLOSE went both ways. So the table says whose a packet is, and only it gives numbers and takes them back. Imported by
the parts of `nat.py`; `mux.upstream` looks at entries for its lists.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, Protocol

from mux.errors import RemoteProtocolError, WireError

from .connection import LARGEST_PACKET_BYTES, Message
from .shares import Loan, Loans, Shares
from .sides import Body, Server
from .wire import u32

# A plain number: members of an enumeration cost more to compare, and this is compared for every packet.
DATA: Final = int(Message.CHANNEL_DATA)

MAX_CHANNELS: Final = 1000  # of one client: what a browser behind -D opens, and a multiple


class State(enum.Enum):
    """Of a channel."""

    ASKED = enum.auto()  # by the client; the server has not answered
    OFFERED = enum.auto()  # by the server; the client has not answered
    OPEN = enum.auto()  # until CLOSE went both ways
    FREE = enum.auto()


class Owner(Protocol):
    """What is needed of `nat.Nat`, whose channels these are."""

    @property
    def ended(self) -> bool: ...
    @property
    def loans(self) -> Loans: ...
    def deliver(self, kind: int, first: bytes, rest: Body, /) -> None: ...
    def from_server(self, channel: NatChannel, kind: int, body: memoryview) -> None: ...
    def adjust_server(self, channel: NatChannel, count: int) -> None: ...
    def broken(self, reason: str) -> None: ...


class NatChannel:
    """One channel of a client, between its two ends; a `Route`.

    number     ours, by which both ends address it
    kind       "session", "direct-tcpip" ...
    received_bytes, sent_bytes   of data, from the server and to it
    """

    __slots__ = (
        "_owner",
        "asked_terminal",
        "client",
        "client_number",
        "close_received",
        "close_sent",
        "eof_sent",
        "kind",
        "loan",
        "number",
        "owed",
        "packet_bytes",
        "piece_bytes",
        "received_bytes",
        "sent_bytes",
        "server",
        "state",
        "unanswered",
        "window_bytes",
    )

    def __init__(self, owner: Owner, kind: bytes, state: State) -> None:
        self._owner = owner
        self.kind = kind
        self.state = state
        self.number = 0
        self.client_number: int | None = None
        self.client = b""  # its number for the channel, as it stands in packets to it
        self.server = b""  # the server's
        self.window_bytes = 0  # what the client may still send
        self.packet_bytes = 0  # and how much at once
        self.piece_bytes = 0  # how much at once the client takes
        self.loan = Loan(self._tell)
        self.eof_sent = False
        self.close_sent = False  # by the client, or for it
        self.close_received = False
        self.asked_terminal = False
        self.unanswered: deque[bool] = deque()  # the client's requests: whether the server is to answer, or we refuse
        self.owed = 0  # the server's requests
        self.received_bytes = 0
        self.sent_bytes = 0

    def packet(self, kind: int, body: memoryview) -> None:
        """Take a packet of the server; `body` is what follows our number."""
        owner = self._owner
        if kind == DATA and self.state is State.OPEN and not (owner.ended or self.close_received):
            count = len(body) - 4
            loan = self.loan
            if 0 <= count <= loan.credit_bytes and count <= self.piece_bytes:
                loan.credit_bytes -= count
                self.received_bytes += count
                owner.loans.waiting_bytes += count
                owner.deliver(DATA, self.client, body)
                if loan.withheld_bytes:
                    owner.loans.lend(loan)
                return
        try:
            owner.from_server(self, kind, body)
        except (WireError, RemoteProtocolError) as error:
            owner.broken(f"the server broke the protocol on channel {self.number}: {error}")

    def lost(self, reason: str) -> None:
        """The connection has ended, or the channel met with a fault of ours."""
        self._owner.broken(reason)

    def _tell(self, count: int) -> None:
        self._owner.adjust_server(self, count)


class NatChannels:
    """Those of one client.

    by_number   by our numbers; what is left of a client that has gone among them
    """

    def __init__(self, owner: Owner, server: Server, loans: Loans, shares: Shares) -> None:
        self.by_number: dict[int, NatChannel] = {}
        self._owner = owner
        self._server = server
        self._loans = loans
        self._shares = shares
        self._client_numbers: set[int] = set()

    def check_client(self, client_number: int, packet_bytes: int) -> None:
        """Raise `RemoteProtocolError` unless the client may have a channel of this number and packet size."""
        if client_number in self._client_numbers:
            raise violation(f"number {client_number} for a channel, which is that of another")
        if not packet_bytes:
            raise violation("that it takes no data at all, by a packet size of 0")

    def add(self, kind: bytes, state: State) -> NatChannel | None:
        """Begin one, with a number; None when there are too many, of this client or of all."""
        if len(self.by_number) >= MAX_CHANNELS or not self._shares.take(1):
            return None
        channel = NatChannel(self._owner, kind, state)
        channel.number = self._server.add_route(channel)
        self.by_number[channel.number] = channel
        return channel

    def bind_client(self, channel: NatChannel, number: int, window_bytes: int, packet_bytes: int) -> bytes:
        """Note the client's side of a channel; returns what the server is told of it."""
        self._client_numbers.add(number)
        channel.client_number = number
        channel.client = u32(number)
        channel.piece_bytes = packet_bytes
        # Larger ones the transport need not take: a packet beyond 256 KiB would end the connection.
        packet_bytes = min(packet_bytes, LARGEST_PACKET_BYTES)
        return u32(channel.number) + u32(self._loans.begin(channel.loan, window_bytes)) + u32(packet_bytes)

    def bind_server(self, channel: NatChannel, number: int, window_bytes: int, packet_bytes: int) -> bytes:
        """Note the server's side of a channel; returns what the client is told of it."""
        channel.server = u32(number)
        channel.window_bytes = window_bytes
        channel.packet_bytes = min(packet_bytes, LARGEST_PACKET_BYTES)
        return u32(channel.number) + u32(window_bytes) + u32(channel.packet_bytes)

    def free(self, channel: NatChannel) -> None:
        """Give its number back: nobody will use it any more."""
        channel.state = State.FREE
        self._loans.take_back(channel.loan)
        del self.by_number[channel.number]
        if channel.client_number is not None:
            self._client_numbers.discard(channel.client_number)
        self._server.remove_route(channel.number)
        self._shares.give(1)


def violation(what: str) -> RemoteProtocolError:
    """To be raised when a client breaks the protocol by what it sent."""
    return RemoteProtocolError(f"the client sent {what}")
