"""Requests about the channels of one client of many, of either side, and the answers to them (RFC 4254 section 5.4).

One rule: an answer has no name on it, so each side gets its answers in the order in which it asked, and as many as it
asked for. What is refused here is answered behind what the server still owes; the server's own questions are asked of
the client only as far as that cannot cost everybody the connection. Imported by `nat.py` alone.
"""

from __future__ import annotations

from typing import Final

from mux.errors import RemoteProtocolError

from . import harmless
from .connection import Message
from .nat_channels import NatChannel, State, violation
from .sides import Body, Client, Rules, Server
from .wire import Reader, boolean, string

# Requests about one channel without an answer, of either side: more is a flood. What comes before a busy client stops
# being read from has to fit.
MAX_UNANSWERED: Final = 65536


class ChannelRequests:
    """Those of one client.

    waiting   how many the server is still to answer
    stalled   whether nothing may be received of the client before one is asked: it is not known yet how
    """

    def __init__(self, server: Server, client: Client, rules: Rules) -> None:
        self.waiting = 0
        self.stalled = False
        self._server = server
        self._client = client
        self._rules = rules
        self._ended = False

    def end(self) -> None:
        """The client has gone: it is told nothing any more."""
        self._ended = True

    def closed(self, channel: NatChannel) -> None:
        """The server closed the channel: it answers nothing any more, and waits for no answer."""
        self.waiting -= sum(channel.unanswered)
        channel.unanswered.clear()
        channel.owed = 0

    # Of the client

    def of_client(self, channel: NatChannel, body: memoryview) -> None:
        """Take a CHANNEL_REQUEST of the client. Raises `WireError` or `RemoteProtocolError` for a wrong one."""
        reader = Reader(body)
        name, want_reply = reader.string(), reader.boolean()
        rest = body[len(name) + 5 :]
        fields = harmless.REQUESTS.get(name)
        if fields is None:
            return self._refuse(channel, want_reply)
        harmless.check(name, fields, rest)
        if name == harmless.PTY:
            if channel.asked_terminal:
                raise violation(f"a second request for a terminal on channel {channel.number}")
            channel.asked_terminal = True
        elif name in harmless.AGENT and not self._rules.agent():
            return self._refuse(channel, want_reply)
        elif name == harmless.X11:
            return self._ask_x11(channel, want_reply, rest)
        return self._ask(channel, name, want_reply, rest)

    def answer_of_server(self, channel: NatChannel, kind: Message, body: memoryview) -> None:
        """Take CHANNEL_SUCCESS or CHANNEL_FAILURE of the server. Raises `RemoteProtocolError` for one too many."""
        Reader(body).end()
        if not channel.unanswered:
            raise RemoteProtocolError("an answer to a request that was never made")
        channel.unanswered.popleft()
        self.waiting -= 1
        self._client.deliver(kind, channel.client, b"")
        self._answer_refused(channel)
        self._client.ready()

    def _ask_x11(self, channel: NatChannel, want_reply: bool, rest: memoryview) -> None:
        if harmless.x11_protocol(rest) not in harmless.X11_PROTOCOLS:
            return self._refuse(channel, want_reply)

        def then(body: bytes | None) -> None:
            self.stalled = False
            if channel.state is State.OPEN and not channel.close_sent:
                if body is None:
                    self._refuse(channel, want_reply)
                else:
                    self._ask(channel, harmless.X11, want_reply, body)
            self._client.ready()

        self.stalled = True
        return self._rules.x11(then)

    def _ask(self, channel: NatChannel, name: bytes, want_reply: bool, rest: Body) -> None:
        if want_reply and not channel.close_received:
            channel.unanswered.append(True)
            self.waiting += 1
        self._server.send(Message.CHANNEL_REQUEST, channel.server, string(name) + boolean(want_reply), rest)

    def _refuse(self, channel: NatChannel, want_reply: bool) -> None:
        """Answer FAILURE, behind the answers the server still owes for earlier requests."""
        if not want_reply or channel.close_received:
            return
        if len(channel.unanswered) >= MAX_UNANSWERED:
            raise violation("requests without end, waiting for no answer")
        channel.unanswered.append(False)
        self._answer_refused(channel)

    def _answer_refused(self, channel: NatChannel) -> None:
        while channel.unanswered and not channel.unanswered[0]:
            channel.unanswered.popleft()
            self._client.deliver(Message.CHANNEL_FAILURE, channel.client, b"")

    # Of the server

    def of_server(self, channel: NatChannel, body: memoryview) -> None:
        """Take a CHANNEL_REQUEST of the server. Raises `WireError` or `RemoteProtocolError` for a wrong one."""
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
        if self._ended:
            return
        if want_reply and not channel.close_sent:
            if channel.owed >= MAX_UNANSWERED:
                raise RemoteProtocolError("requests without end, waiting for no answer")
            channel.owed += 1
        self._client.deliver(Message.CHANNEL_REQUEST, channel.client, body)

    def answer_of_client(self, channel: NatChannel, kind: Message, body: memoryview) -> None:
        """Take CHANNEL_SUCCESS or CHANNEL_FAILURE of the client. Raises `RemoteProtocolError` for one too many."""
        Reader(body).end()
        if not channel.owed:
            raise violation(f"an answer to a request that nobody made, on channel {channel.number}")
        channel.owed -= 1
        self._server.send(kind, channel.server)
