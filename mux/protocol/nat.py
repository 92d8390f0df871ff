"""Channel-number translation: one client of many that share a connection, as a machine.

`Nat` stands between one client, which speaks RFC 4254 as if the connection were its own, and the connection to the
server, which others use too. Packets of the client come in by `receive`, packets of the server by the channels it has
registered (`NatChannel.packet`); what follows from them goes to the sides it was given (`sides.py`). No socket, no
clock.

One rule: nothing that a client sends, leaves out, or does by going away may end the connection or touch a channel of
another. So each side sees only numbers of ours (a recipient is looked up among this client's channels, and a number
is not soon used again: `nat_channels.py`); what may pass is what `harmless.py` allows; data is checked against the
window and packet size that the server gave, since servers hang up on who ignores them; nothing follows EOF or CLOSE;
answers keep to the order of the questions (`channel_requests.py`); questions about the connection as a whole are
answered here (`forwardings.py`). A client that breaks the protocol gets `RemoteProtocolError` out of `receive`, and is
to be ended; a server that does so costs the client concerned (`fail`).

After `end` the machine goes on until nothing of the client is left: channels that were asked for are closed when they
are confirmed, a number is free only when CLOSE went both ways, answers to requests are swallowed in their places.
Windows are end to end, as far as `shares.py` lends them.

Proxy mode of OpenSSH and PuTTY's sharing differ in what `dialects.py` tells, and in nothing else. Imported by
`mux.upstream.relay`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

from mux.errors import RemoteProtocolError, WireError

from . import harmless
from .channel_requests import ChannelRequests
from .connection import LARGEST_WINDOW_BYTES, Message, OpenFailure
from .dialects import PROXY_MODE, Dialect
from .forwardings import GlobalRequests
from .nat_channels import DATA, MAX_CHANNELS, NatChannel, NatChannels, State, violation
from .shares import Loans, Shares
from .sides import Client, Offer, Rules, Server
from .wire import Reader, string, u32

__all__ = ["BUSY_REQUESTS", "MAX_CHANNELS", "MAX_OFFERS", "Nat", "NatChannel"]

EXTENDED_DATA: Final = int(Message.CHANNEL_EXTENDED_DATA)

MAX_OFFERS: Final = 64  # channels of the server that the client has not answered; a listen queue holds as many
# Questions of one client on their way to the server; with more it is not read from. PuTTY has five at a time.
BUSY_REQUESTS: Final = 256

_TWO: Final = struct.Struct(">II")
_THREE: Final = struct.Struct(">III")


class Nat:
    """One client.

    channels   by our numbers; what is left of a client that has gone among them
    ended      whether the client has gone
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
        self.ended = False
        self.loans = Loans(shares)
        self.requests = GlobalRequests(server, client, rules, shares, self.offer, promises=dialect.promises)
        self._asked = ChannelRequests(server, client, rules)
        self._table = NatChannels(self, server, self.loans, shares)
        self.channels: Mapping[int, NatChannel] = self._table.by_number
        self._swallowed = dialect.swallowed
        self._server = server
        self._client = client
        self._largest_request_bytes = largest_request_bytes
        self._offers = 0

    @property
    def stalled(self) -> bool:
        """Whether nothing may be received before something is known; `Client.ready` tells when it is."""
        return self._asked.stalled

    @property
    def busy(self) -> bool:
        """Whether so many questions wait for the server that the client should not be read from for now."""
        return self._asked.waiting + self.requests.waiting >= BUSY_REQUESTS

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
        if channel.state is not State.OPEN or channel.eof_sent:
            raise violation(f"data on channel {channel.number}, which was not open, or after EOF")
        if count != length:
            raise violation(f"data of {length} bytes that says it had {count}")
        if count > channel.window_bytes or count > channel.packet_bytes:
            raise violation(
                f"{count} bytes into a window of {channel.window_bytes}, in packets of {channel.packet_bytes}"
            )
        channel.window_bytes -= count
        channel.sent_bytes += count
        return True

    def _receive(self, kind: int, payload: memoryview) -> None:
        if kind in self._swallowed:
            return None
        if len(payload) > self._largest_request_bytes and kind not in (DATA, EXTENDED_DATA):
            raise violation(f"a message {kind} of {len(payload)} bytes, more than the server takes")
        if kind == Message.GLOBAL_REQUEST:
            return self.requests.receive(Reader(payload))
        if kind == Message.CHANNEL_OPEN:
            return self._open(Reader(payload), payload)
        handler = _FROM_CLIENT.get(kind)
        if handler is None:
            raise violation(f"a message {kind}, which has no place here")
        number = Reader(payload).u32()
        channel = self.channels.get(number)
        if channel is None:
            # sshd overlooks this one alone: a reader may be late to learn that its channel is closed.
            if kind == Message.CHANNEL_WINDOW_ADJUST:
                return None
            raise violation(f"a message {kind} for channel {number}, which it does not have")
        if channel.close_sent:
            return None
        answering = kind in (Message.CHANNEL_OPEN_CONFIRMATION, Message.CHANNEL_OPEN_FAILURE)
        if channel.state is not (State.OFFERED if answering else State.OPEN):
            raise violation(f"a message {kind} for channel {number}, which is {channel.state.name}")
        return handler(self, channel, payload[4:])

    def _open(self, reader: Reader, payload: memoryview) -> None:
        kind, client_number, window, packet = reader.string(), reader.u32(), reader.u32(), reader.u32()
        rest = payload[len(kind) + 16 :]
        self._table.check_client(client_number, packet)
        fields = harmless.OPENS.get(kind)
        if fields is None:
            return self._refuse(client_number, OpenFailure.UNKNOWN_CHANNEL_TYPE, b"unknown channel type")
        harmless.check(kind, fields, rest)
        if kind == b"session" and self.requests.no_more_sessions:
            text = b"no more sessions, as was asked for"
            return self._refuse(client_number, OpenFailure.ADMINISTRATIVELY_PROHIBITED, text)
        channel = self._table.add(kind, State.ASKED)
        if channel is None:
            return self._refuse(client_number, OpenFailure.RESOURCE_SHORTAGE, b"too many channels")
        ours = self._table.bind_client(channel, client_number, window, packet)
        self._server.send(Message.CHANNEL_OPEN, string(kind), ours, rest)
        return None

    def _refuse(self, client_number: int, code: OpenFailure, text: bytes) -> None:
        self.deliver(Message.CHANNEL_OPEN_FAILURE, u32(client_number), u32(code) + string(text) + string(b""))

    def _confirm(self, channel: NatChannel, body: memoryview) -> None:
        if len(body) != 12:
            raise WireError(f"{len(body)} bytes where 12 belong")
        client_number, window, packet = _THREE.unpack(body)
        self._table.check_client(client_number, packet)
        self._offers -= 1
        channel.state = State.OPEN
        ours = self._table.bind_client(channel, client_number, window, packet)
        self._server.send(Message.CHANNEL_OPEN_CONFIRMATION, channel.server, ours)
        self.loans.lend(channel.loan)

    def _decline(self, channel: NatChannel, body: memoryview) -> None:
        harmless.check("refusal", harmless.OPEN_FAILURE, body)
        self._server.send(Message.CHANNEL_OPEN_FAILURE, channel.server, body)
        self._offers -= 1
        self._table.free(channel)

    def _adjust(self, channel: NatChannel, body: memoryview) -> None:
        count = _number(body)
        loan = channel.loan
        if loan.credit_bytes + loan.withheld_bytes + count > LARGEST_WINDOW_BYTES:
            raise violation(f"a window of 4 GiB or more, on channel {channel.number}")
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
            self._table.free(channel)

    # From the server

    def offer(self, offer: Offer) -> None:
        """Offer a channel of the server to the client; the answer is sent to the server from here."""
        if self.ended:
            return self._refuse_offer(u32(offer.sender), OpenFailure.CONNECT_FAILED)
        channel = None
        if self._offers < MAX_OFFERS and offer.packet_bytes:
            channel = self._table.add(offer.kind, State.OFFERED)
        if channel is None:
            return self._refuse_offer(u32(offer.sender), OpenFailure.RESOURCE_SHORTAGE)
        self._offers += 1
        ours = self._table.bind_server(channel, offer.sender, offer.window_bytes, offer.packet_bytes)
        self.deliver(Message.CHANNEL_OPEN, string(offer.kind) + ours, offer.rest)
        return None

    def _refuse_offer(self, server_number: bytes, code: OpenFailure) -> None:
        text = b"the client has gone" if self.ended else b"the client cannot take it"
        self._server.send(Message.CHANNEL_OPEN_FAILURE, server_number, u32(code) + string(text) + string(b""))

    def from_server(self, channel: NatChannel, kind: int, body: memoryview) -> None:
        """Take a packet that is not data within bounds. Raises what `NatChannel.packet` turns into a failure."""
        if channel.state is State.ASKED:
            return self._answered_by_server(channel, kind, body)
        if channel.state is not State.OPEN or channel.close_received:
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
            self._table.free(channel)
            self._client.answered(channel.kind, False)
            return None if self.ended else self.deliver(kind, channel.client, body)
        if kind != Message.CHANNEL_OPEN_CONFIRMATION:
            raise RemoteProtocolError(f"message {kind} before it was open")
        reader = Reader(body)
        ours = self._table.bind_server(channel, reader.u32(), reader.u32(), reader.u32())
        channel.state = State.OPEN
        self._client.answered(channel.kind, True)
        if self.ended:
            return self._send_close(channel)
        self.deliver(kind, channel.client, ours + reader.rest())
        return self.loans.lend(channel.loan)

    def _closed_by_server(self, channel: NatChannel, body: memoryview) -> None:
        Reader(body).end()
        channel.close_received = True
        self._asked.closed(channel)
        self.loans.take_back(channel.loan)
        if not self.ended:
            self.deliver(Message.CHANNEL_CLOSE, channel.client, b"")
            self._client.ready()
        if channel.close_sent:
            self._table.free(channel)

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
        self._asked.end()
        for channel in tuple(self.channels.values()):
            self.loans.take_back(channel.loan)
            if channel.state is State.OFFERED:
                self._refuse_offer(channel.server, OpenFailure.CONNECT_FAILED)
                self._table.free(channel)
            elif channel.state is State.OPEN and not channel.close_sent:
                self._send_close(channel)
        self.loans.forgive()
        self.requests.end()


_Handler = Callable[[Nat, NatChannel, memoryview], None]
_FROM_CLIENT: Final[Mapping[int, _Handler]] = {
    Message.CHANNEL_OPEN_CONFIRMATION: Nat._confirm,
    Message.CHANNEL_OPEN_FAILURE: Nat._decline,
    Message.CHANNEL_WINDOW_ADJUST: Nat._adjust,
    Message.CHANNEL_DATA: Nat._data_cut_short,
    Message.CHANNEL_EXTENDED_DATA: Nat._extended_data,
    Message.CHANNEL_EOF: Nat._eof,
    Message.CHANNEL_CLOSE: Nat._close,
    Message.CHANNEL_REQUEST: lambda nat, channel, body: nat._asked.of_client(channel, body),
    Message.CHANNEL_SUCCESS: lambda nat, channel, body: nat._asked.answer_of_client(
        channel, Message.CHANNEL_SUCCESS, body
    ),
    Message.CHANNEL_FAILURE: lambda nat, channel, body: nat._asked.answer_of_client(
        channel, Message.CHANNEL_FAILURE, body
    ),
}
_FROM_SERVER: Final[Mapping[int, _Handler]] = {
    Message.CHANNEL_DATA: Nat._data_to_client,
    Message.CHANNEL_EXTENDED_DATA: Nat._extended_data_to_client,
    Message.CHANNEL_WINDOW_ADJUST: Nat._grow,
    Message.CHANNEL_EOF: Nat._eof_to_client,
    Message.CHANNEL_REQUEST: lambda nat, channel, body: nat._asked.of_server(channel, body),
    Message.CHANNEL_SUCCESS: lambda nat, channel, body: nat._asked.answer_of_server(
        channel, Message.CHANNEL_SUCCESS, body
    ),
    Message.CHANNEL_FAILURE: lambda nat, channel, body: nat._asked.answer_of_server(
        channel, Message.CHANNEL_FAILURE, body
    ),
}


def _number(body: memoryview) -> int:
    if len(body) != 4:
        raise WireError(f"{len(body)} bytes where 4 belong")
    return int.from_bytes(body, "big")
