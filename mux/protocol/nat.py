"""Channel-number translation: one client of many that share a connection, as a machine.

`Nat` stands between one client, which speaks RFC 4254 as if the connection were its own, and the connection to the
server, which others use too. Packets of the client come in by `receive`, packets of the server by the channels it has
registered (`NatChannel.packet`); what follows from them goes to the sides it was given (`sides.py`). No socket, no
clock.

One rule: nothing that a client sends, leaves out, or does by going away may end the connection or touch a channel of
another. So each side sees only numbers of ours (a recipient is looked up among this client's channels, and a number
is not soon used again); what may pass is what `harmless.py` allows; data is checked against the window and packet size
that the server gave, since servers hang up on who ignores them; nothing follows EOF or CLOSE; questions about the
connection as a whole are answered here (`forwardings.py`). A client that breaks the protocol gets
`RemoteProtocolError` out of `receive`, and is to be ended; a server that does so costs the client concerned (`fail`).

After `end` the machine goes on until nothing of the client is left: channels that were asked for are closed when they
are confirmed, a number is free only when CLOSE went both ways, answers to requests are swallowed in their places.
Windows are end to end, as far as `shares.py` lends them.

Proxy mode of OpenSSH and PuTTY's sharing differ in what `dialects.py` tells, and in nothing else. Imported by
`mux.upstream.relay`.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from mux.errors import RemoteProtocolError, WireError

from . import harmless
from .connection import LARGEST_PACKET_BYTES, LARGEST_WINDOW_BYTES, Message, OpenFailure
from .dialects import PROXY_MODE, Dialect
from .forwardings import GlobalRequests
from .shares import Loan, Loans, Shares
from .sides import Body, Client, Offer, Rules, Server
from .wire import Reader, boolean, string, u32

# Plain numbers: members of an enumeration cost more to compare, and these are compared for every packet.
DATA: Final = int(Message.CHANNEL_DATA)
EXTENDED_DATA: Final = int(Message.CHANNEL_EXTENDED_DATA)

MAX_CHANNELS: Final = 1000  # of one client: what a browser behind -D opens, and a multiple
MAX_OFFERS: Final = 64  # channels of the server that the client has not answered; a listen queue holds as many
# Questions of one client on their way to the server; with more it is not read from. PuTTY has five at a time.
BUSY_REQUESTS: Final = 256
# Requests about one channel without an answer, of either side: more is a flood. What comes before a busy client stops
# being read from has to fit.
MAX_UNANSWERED: Final = 65536

_TWO: Final = struct.Struct(">II")
_THREE: Final = struct.Struct(">III")


class _State(enum.Enum):
    ASKED = enum.auto()  # by the client; the server has not answered
    OFFERED = enum.auto()  # by the server; the client has not answered
    OPEN = enum.auto()  # until CLOSE went both ways
    FREE = enum.auto()


class NatChannel:
    """One channel of a client, between its two ends; a `Route`.

    number     ours, by which both ends address it
    kind       "session", "direct-tcpip" ...
    received_bytes, sent_bytes   of data, from the server and to it
    """

    __slots__ = (
        "_nat",
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

    def __init__(self, nat: Nat, kind: bytes, state: _State) -> None:
        self._nat = nat
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
        nat = self._nat
        if kind == DATA and self.state is _State.OPEN and not (nat.ended or self.close_received):
            count = len(body) - 4
            loan = self.loan
            if 0 <= count <= loan.credit_bytes and count <= self.piece_bytes:
                loan.credit_bytes -= count
                self.received_bytes += count
                nat.loans.waiting_bytes += count
                nat.deliver(DATA, self.client, body)
                if loan.withheld_bytes:
                    nat.loans.lend(loan)
                return
        try:
            nat.from_server(self, kind, body)
        except (WireError, RemoteProtocolError) as error:
            nat.broken(f"the server broke the protocol on channel {self.number}: {error}")

    def lost(self, reason: str) -> None:
        """The connection has ended, or the channel met with a fault of ours."""
        self._nat.broken(reason)

    def _tell(self, count: int) -> None:
        self._nat.adjust_server(self, count)


class Nat:
    """One client.

    channels   by our numbers; what is left of a client that has gone among them
    ended      whether the client has gone
    stalled    whether nothing may be received before something is known; `Client.ready` tells when it is
    deliver    `Client.deliver`
    loans      what it has not read yet, and may yet get
    requests   its global requests, and what the server listens for in its name
    """

    def __init__(
        self,
        server: Server,
        client: Client,
        rules: Rules,
        shares: Shares,
        *,
        largest_request_bytes: int,
        dialect: Dialect = PROXY_MODE,
    ) -> None:
        """`largest_request_bytes`: what the server takes in one packet that is not data."""
        self.deliver = client.deliver
        self.stalled = False
        self.channels: dict[int, NatChannel] = {}
        self.ended = False
        self.loans = Loans(shares)
        self.requests = GlobalRequests(server, client, rules, shares, self.offer, promises=dialect.promises)
        self._swallowed = dialect.swallowed
        self._server = server
        self._client = client
        self._rules = rules
        self._shares = shares
        self._largest_request_bytes = largest_request_bytes
        self._client_numbers: set[int] = set()
        self._unanswered = 0  # channel requests that the server is still to answer
        self._offers = 0

    @property
    def busy(self) -> bool:
        """Whether so many questions wait for the server that the client should not be read from for now."""
        return self._unanswered + self.requests.waiting >= BUSY_REQUESTS

    # From the client

    def receive(self, kind: int, payload: memoryview) -> None:
        """Take a packet of the client: its number, and what follows that. Raises `RemoteProtocolError`."""
        if kind == DATA and len(payload) >= 8:
            number, count = _TWO.unpack_from(payload)
            channel = self.channels.get(number)
            if channel is not None:
                if self._may_send(channel, count, len(payload) - 8):
                    self._server.send(DATA, channel.server, payload[4:])
                return
        try:
            self._receive(kind, payload)
        except WireError as error:
            raise RemoteProtocolError(f"the client sent a malformed message {kind}: {error}")

    def _may_send(self, channel: NatChannel, count: int, length: int) -> bool:
        """Whether data may pass. False when the channel is closed, and it is too late to say anything."""
        if channel.close_sent:
            return False
        if channel.state is not _State.OPEN or channel.eof_sent:
            raise _violation(f"data on channel {channel.number}, which was not open, or after EOF")
        if count != length:
            raise _violation(f"data of {length} bytes that says it had {count}")
        if count > channel.window_bytes or count > channel.packet_bytes:
            raise _violation(
                f"{count} bytes into a window of {channel.window_bytes}, in packets of {channel.packet_bytes}"
            )
        channel.window_bytes -= count
        channel.sent_bytes += count
        return True

    def _receive(self, kind: int, payload: memoryview) -> None:
        if kind in self._swallowed:
            return None
        if len(payload) > self._largest_request_bytes and kind not in (DATA, EXTENDED_DATA):
            raise _violation(f"a message {kind} of {len(payload)} bytes, more than the server takes")
        if kind == Message.GLOBAL_REQUEST:
            return self.requests.receive(Reader(payload))
        if kind == Message.CHANNEL_OPEN:
            return self._open(Reader(payload), payload)
        handler = _FROM_CLIENT.get(kind)
        if handler is None:
            raise _violation(f"a message {kind}, which has no place here")
        number = Reader(payload).u32()
        channel = self.channels.get(number)
        if channel is None:
            # sshd overlooks this one alone: a reader may be late to learn that its channel is closed.
            if kind == Message.CHANNEL_WINDOW_ADJUST:
                return None
            raise _violation(f"a message {kind} for channel {number}, which it does not have")
        if channel.close_sent:
            return None
        answering = kind in (Message.CHANNEL_OPEN_CONFIRMATION, Message.CHANNEL_OPEN_FAILURE)
        if channel.state is not (_State.OFFERED if answering else _State.OPEN):
            raise _violation(f"a message {kind} for channel {number}, which is {channel.state.name}")
        return handler(self, channel, payload[4:])

    def _open(self, reader: Reader, payload: memoryview) -> None:
        kind, client_number, window, packet = reader.string(), reader.u32(), reader.u32(), reader.u32()
        rest = payload[len(kind) + 16 :]
        self._check_client(client_number, packet)
        fields = harmless.OPENS.get(kind)
        if fields is None:
            return self._refuse(client_number, OpenFailure.UNKNOWN_CHANNEL_TYPE, b"unknown channel type")
        harmless.check(kind, fields, rest)
        if kind == b"session" and self.requests.no_more_sessions:
            text = b"no more sessions, as was asked for"
            return self._refuse(client_number, OpenFailure.ADMINISTRATIVELY_PROHIBITED, text)
        if len(self.channels) >= MAX_CHANNELS or not self._shares.take(1):
            return self._refuse(client_number, OpenFailure.RESOURCE_SHORTAGE, b"too many channels")
        channel = self._add(kind, _State.ASKED)
        ours = self._bind_client(channel, client_number, window, packet)
        self._server.send(Message.CHANNEL_OPEN, string(kind), ours, rest)
        return None

    def _refuse(self, client_number: int, code: OpenFailure, text: bytes) -> None:
        self.deliver(Message.CHANNEL_OPEN_FAILURE, u32(client_number), u32(code) + string(text) + string(b""))

    def _confirm(self, channel: NatChannel, body: memoryview) -> None:
        if len(body) != 12:
            raise WireError(f"{len(body)} bytes where 12 belong")
        client_number, window, packet = _THREE.unpack(body)
        self._check_client(client_number, packet)
        self._offers -= 1
        channel.state = _State.OPEN
        ours = self._bind_client(channel, client_number, window, packet)
        self._server.send(Message.CHANNEL_OPEN_CONFIRMATION, channel.server, ours)
        self.loans.lend(channel.loan)

    def _decline(self, channel: NatChannel, body: memoryview) -> None:
        harmless.check("refusal", harmless.OPEN_FAILURE, body)
        self._server.send(Message.CHANNEL_OPEN_FAILURE, channel.server, body)
        self._offers -= 1
        self._free(channel)

    def _adjust(self, channel: NatChannel, body: memoryview) -> None:
        count = _number(body)
        loan = channel.loan
        if loan.credit_bytes + loan.withheld_bytes + count > LARGEST_WINDOW_BYTES:
            raise _violation(f"a window of 4 GiB or more, on channel {channel.number}")
        if not channel.close_received:
            self.loans.lend(loan, count)

    def adjust_server(self, channel: NatChannel, count: int) -> None:
        """Let the server send more."""
        if not channel.close_sent:
            self._server.send(Message.CHANNEL_WINDOW_ADJUST, channel.server, u32(count))

    def _data_cut_short(self, channel: NatChannel, body: memoryview) -> None:
        raise WireError(f"{len(body)} bytes, which is not even a length")

    def _extended_data(self, channel: NatChannel, body: memoryview) -> None:
        reader = Reader(body)
        reader.u32()
        if self._may_send(channel, reader.u32(), len(body) - 8):
            self._server.send(EXTENDED_DATA, channel.server, body)

    def _eof(self, channel: NatChannel, body: memoryview) -> None:
        Reader(body).end()
        if not channel.eof_sent:
            channel.eof_sent = True
            self._server.send(Message.CHANNEL_EOF, channel.server)

    def _close(self, channel: NatChannel, body: memoryview) -> None:
        Reader(body).end()
        self._send_close(channel)

    def _send_close(self, channel: NatChannel) -> None:
        channel.close_sent = True
        self._server.send(Message.CHANNEL_CLOSE, channel.server)
        if channel.close_received:
            self._free(channel)

    def _request(self, channel: NatChannel, body: memoryview) -> None:
        reader = Reader(body)
        name, want_reply = reader.string(), reader.boolean()
        rest = body[len(name) + 5 :]
        fields = harmless.REQUESTS.get(name)
        if fields is None:
            return self._refuse_request(channel, want_reply)
        harmless.check(name, fields, rest)
        if name == harmless.PTY:
            if channel.asked_terminal:
                raise _violation(f"a second request for a terminal on channel {channel.number}")
            channel.asked_terminal = True
        elif name in harmless.AGENT and not self._rules.agent():
            return self._refuse_request(channel, want_reply)
        elif name == harmless.X11:
            return self._request_x11(channel, want_reply, rest)
        return self._pass_request(channel, name, want_reply, rest)

    def _request_x11(self, channel: NatChannel, want_reply: bool, rest: memoryview) -> None:
        if harmless.x11_protocol(rest) not in harmless.X11_PROTOCOLS:
            return self._refuse_request(channel, want_reply)

        def then(body: bytes | None) -> None:
            self.stalled = False
            if channel.state is _State.OPEN and not channel.close_sent:
                if body is None:
                    self._refuse_request(channel, want_reply)
                else:
                    self._pass_request(channel, harmless.X11, want_reply, body)
            self._client.ready()

        self.stalled = True
        return self._rules.x11(then)

    def _pass_request(self, channel: NatChannel, name: bytes, want_reply: bool, rest: Body) -> None:
        if want_reply and not channel.close_received:
            channel.unanswered.append(True)
            self._unanswered += 1
        self._server.send(Message.CHANNEL_REQUEST, channel.server, string(name) + boolean(want_reply), rest)

    def _refuse_request(self, channel: NatChannel, want_reply: bool) -> None:
        """Answer FAILURE, behind the answers the server still owes for earlier requests."""
        if not want_reply or channel.close_received:
            return
        if len(channel.unanswered) >= MAX_UNANSWERED:
            raise _violation("requests without end, waiting for no answer")
        channel.unanswered.append(False)
        self._answer_refused(channel)

    def _answer_refused(self, channel: NatChannel) -> None:
        while channel.unanswered and not channel.unanswered[0]:
            channel.unanswered.popleft()
            self.deliver(Message.CHANNEL_FAILURE, channel.client, b"")

    def _success(self, channel: NatChannel, body: memoryview) -> None:
        self._answer_server(channel, body, Message.CHANNEL_SUCCESS)

    def _failure(self, channel: NatChannel, body: memoryview) -> None:
        self._answer_server(channel, body, Message.CHANNEL_FAILURE)

    def _answer_server(self, channel: NatChannel, body: memoryview, kind: int) -> None:
        Reader(body).end()
        if not channel.owed:
            raise _violation(f"an answer to a request that nobody made, on channel {channel.number}")
        channel.owed -= 1
        self._server.send(kind, channel.server)

    # From the server

    def offer(self, offer: Offer) -> None:
        """Offer a channel of the server to the client; the answer is sent to the server from here."""
        full = self._offers >= MAX_OFFERS or len(self.channels) >= MAX_CHANNELS
        if self.ended or full or not offer.packet_bytes or not self._shares.take(1):
            code = OpenFailure.CONNECT_FAILED if self.ended else OpenFailure.RESOURCE_SHORTAGE
            return self._refuse_offer(u32(offer.sender), code, b"the client cannot take it")
        channel = self._add(offer.kind, _State.OFFERED)
        self._offers += 1
        ours = self._bind_server(channel, offer.sender, offer.window_bytes, offer.packet_bytes)
        self.deliver(Message.CHANNEL_OPEN, string(offer.kind) + ours, offer.rest)
        return None

    def _refuse_offer(self, server_number: bytes, code: OpenFailure, text: bytes) -> None:
        self._server.send(Message.CHANNEL_OPEN_FAILURE, server_number, u32(code) + string(text) + string(b""))

    def from_server(self, channel: NatChannel, kind: int, body: memoryview) -> None:
        """Take a packet that is not data within bounds. Raises what `NatChannel.packet` turns into a failure."""
        if channel.state is _State.ASKED:
            return self._answered_by_server(channel, kind, body)
        if channel.state is not _State.OPEN or channel.close_received:
            raise RemoteProtocolError(f"message {kind} when it was closed or not open")
        if kind == Message.CHANNEL_CLOSE:
            return self._closed_by_server(channel, body)
        handler = _FROM_SERVER.get(kind)
        if handler is None:
            raise RemoteProtocolError(f"message {kind} for an open channel")
        if self.ended and kind != Message.CHANNEL_REQUEST:
            return None
        return handler(self, channel, body)

    def _answered_by_server(self, channel: NatChannel, kind: int, body: memoryview) -> None:
        if kind == Message.CHANNEL_OPEN_FAILURE:
            self._free(channel)
            return None if self.ended else self.deliver(kind, channel.client, body)
        if kind != Message.CHANNEL_OPEN_CONFIRMATION:
            raise RemoteProtocolError(f"message {kind} before it was open")
        reader = Reader(body)
        ours = self._bind_server(channel, reader.u32(), reader.u32(), reader.u32())
        channel.state = _State.OPEN
        if self.ended:
            return self._send_close(channel)
        self.deliver(kind, channel.client, ours + reader.rest())
        return self.loans.lend(channel.loan)

    def _closed_by_server(self, channel: NatChannel, body: memoryview) -> None:
        Reader(body).end()
        channel.close_received = True
        self._unanswered -= sum(channel.unanswered)
        channel.unanswered.clear()
        channel.owed = 0
        self.loans.take_back(channel.loan)
        if not self.ended:
            self.deliver(Message.CHANNEL_CLOSE, channel.client, b"")
            self._client.ready()
        if channel.close_sent:
            self._free(channel)

    def _data_to_client(self, channel: NatChannel, body: memoryview) -> None:
        self._pass_data(channel, DATA, channel.client, body[4:], len(body) - 4)

    def _extended_data_to_client(self, channel: NatChannel, body: memoryview) -> None:
        self._pass_data(channel, EXTENDED_DATA, channel.client + bytes(body[:4]), body[8:], len(body) - 8)

    def _pass_data(self, channel: NatChannel, kind: int, head: bytes, data: memoryview, count: int) -> None:
        """Data for the client, in pieces that it takes: a server may not care how large they are to be."""
        loan = channel.loan
        if not 0 <= count <= loan.credit_bytes:
            raise RemoteProtocolError(f"{count} bytes into a window of {loan.credit_bytes}")
        loan.credit_bytes -= count
        channel.received_bytes += count
        self.loans.waiting_bytes += count
        for start in range(0, count, channel.piece_bytes) or (0,):
            piece = data[start : start + channel.piece_bytes]
            self.deliver(kind, head + u32(len(piece)), piece)
        if loan.withheld_bytes:
            self.loans.lend(loan)

    def _grow(self, channel: NatChannel, body: memoryview) -> None:
        count = _number(body)
        if channel.window_bytes + count > LARGEST_WINDOW_BYTES:
            raise RemoteProtocolError("a window of 4 GiB or more")
        channel.window_bytes += count
        self.deliver(Message.CHANNEL_WINDOW_ADJUST, channel.client, body)

    def _eof_to_client(self, channel: NatChannel, body: memoryview) -> None:
        Reader(body).end()
        self.deliver(Message.CHANNEL_EOF, channel.client, b"")

    def _request_of_server(self, channel: NatChannel, body: memoryview) -> None:
        reader = Reader(body)
        name, want_reply = reader.string(), reader.boolean()
        if want_reply and channel.close_sent:
            # It is too late to answer, but not to be heard of: see below. A question is as good as an answer.
            self._server.request(harmless.KEEPALIVE, b"", lambda ok, body: None)
        elif want_reply and name == harmless.KEEPALIVE and not channel.owed:
            # sshd asks on whatever channel is open whether we are alive, and hangs up on all if it hears nothing: that
            # must not depend on a client that may be stopped. It is asked only where it owes others, to keep order.
            self._server.send(Message.CHANNEL_FAILURE, channel.server)
            return
        if self.ended:
            return
        if want_reply and not channel.close_sent:
            if channel.owed >= MAX_UNANSWERED:
                raise RemoteProtocolError("requests without end, waiting for no answer")
            channel.owed += 1
        self.deliver(Message.CHANNEL_REQUEST, channel.client, body)

    def _success_of_server(self, channel: NatChannel, body: memoryview) -> None:
        self._answered_request(channel, body, Message.CHANNEL_SUCCESS)

    def _failure_of_server(self, channel: NatChannel, body: memoryview) -> None:
        self._answered_request(channel, body, Message.CHANNEL_FAILURE)

    def _answered_request(self, channel: NatChannel, body: memoryview, kind: int) -> None:
        Reader(body).end()
        if not channel.unanswered:
            raise RemoteProtocolError("an answer to a request that was never made")
        channel.unanswered.popleft()
        self._unanswered -= 1
        self.deliver(kind, channel.client, b"")
        self._answer_refused(channel)
        self._client.ready()

    def broken(self, reason: str) -> None:
        """The client cannot be served any more: the server broke the protocol, or has gone."""
        if not self.ended:
            self._client.fail(reason)

    # The end of the client

    def end(self) -> None:
        """The client has gone. What is left of it goes away with the answers of the server. Idempotent."""
        if self.ended:
            return
        self.ended = True
        for channel in tuple(self.channels.values()):
            self.loans.take_back(channel.loan)
            if channel.state is _State.OFFERED:
                self._refuse_offer(channel.server, OpenFailure.CONNECT_FAILED, b"the client has gone")
                self._free(channel)
            elif channel.state is _State.OPEN and not channel.close_sent:
                self._send_close(channel)
        self.loans.forgive()
        self.requests.end()

    # Channels

    def _check_client(self, client_number: int, packet_bytes: int) -> None:
        if client_number in self._client_numbers:
            raise _violation(f"number {client_number} for a channel, which is that of another")
        if not packet_bytes:
            raise _violation("that it takes no data at all, by a packet size of 0")

    def _add(self, kind: bytes, state: _State) -> NatChannel:
        channel = NatChannel(self, kind, state)
        channel.number = self._server.add_route(channel)
        self.channels[channel.number] = channel
        return channel

    def _bind_client(self, channel: NatChannel, number: int, window_bytes: int, packet_bytes: int) -> bytes:
        """Note the client's side of a channel; returns what the server is told of it."""
        self._client_numbers.add(number)
        channel.client_number = number
        channel.client = u32(number)
        channel.piece_bytes = packet_bytes
        # Larger ones the transport need not take: a packet beyond 256 KiB would end the connection.
        packet_bytes = min(packet_bytes, LARGEST_PACKET_BYTES)
        return u32(channel.number) + u32(self.loans.begin(channel.loan, window_bytes)) + u32(packet_bytes)

    def _bind_server(self, channel: NatChannel, number: int, window_bytes: int, packet_bytes: int) -> bytes:
        """Note the server's side of a channel; returns what the client is told of it."""
        channel.server = u32(number)
        channel.window_bytes = window_bytes
        channel.packet_bytes = min(packet_bytes, LARGEST_PACKET_BYTES)
        return u32(channel.number) + u32(window_bytes) + u32(channel.packet_bytes)

    def _free(self, channel: NatChannel) -> None:
        channel.state = _State.FREE
        self.loans.take_back(channel.loan)
        del self.channels[channel.number]
        if channel.client_number is not None:
            self._client_numbers.discard(channel.client_number)
        self._server.remove_route(channel.number)
        self._shares.give(1)


_Handler = Callable[[Nat, NatChannel, memoryview], None]
_FROM_CLIENT: Final[Mapping[int, _Handler]] = {
    Message.CHANNEL_OPEN_CONFIRMATION: Nat._confirm,
    Message.CHANNEL_OPEN_FAILURE: Nat._decline,
    Message.CHANNEL_WINDOW_ADJUST: Nat._adjust,
    Message.CHANNEL_DATA: Nat._data_cut_short,
    Message.CHANNEL_EXTENDED_DATA: Nat._extended_data,
    Message.CHANNEL_EOF: Nat._eof,
    Message.CHANNEL_CLOSE: Nat._close,
    Message.CHANNEL_REQUEST: Nat._request,
    Message.CHANNEL_SUCCESS: Nat._success,
    Message.CHANNEL_FAILURE: Nat._failure,
}
_FROM_SERVER: Final[Mapping[int, _Handler]] = {
    Message.CHANNEL_DATA: Nat._data_to_client,
    Message.CHANNEL_EXTENDED_DATA: Nat._extended_data_to_client,
    Message.CHANNEL_WINDOW_ADJUST: Nat._grow,
    Message.CHANNEL_EOF: Nat._eof_to_client,
    Message.CHANNEL_REQUEST: Nat._request_of_server,
    Message.CHANNEL_SUCCESS: Nat._success_of_server,
    Message.CHANNEL_FAILURE: Nat._failure_of_server,
}


def _violation(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the client sent {what}")


def _number(body: memoryview) -> int:
    if len(body) != 4:
        raise WireError(f"{len(body)} bytes where 4 belong")
    return int.from_bytes(body, "big")
