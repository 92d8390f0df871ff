"""The machines of both ends of OpenSSH's control protocol, version 4.

A machine takes bytes (and descriptors) by `receive`, gives what they mean by `next_event`, takes messages by `send`,
and gives by `data_to_send` what is to be written, in pieces of which each must go out in one `sendmsg` together with
its descriptors. One rule: a request is answered before the next one is looked at, on both ends, so that no reply can
be taken for another's. Whatever bytes come, `next_event` returns an event or raises `RemoteProtocolError`, and then
raises it for ever. Descriptors are numbers here: no machine opens, duplicates or closes one. May be imported by all
of `mux`.

The server end serves an upstream, and in the tests it proves the client end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mux.errors import LocalProtocolError, RemoteProtocolError, WireError

from .framing import PacketBuffer
from .messages import (
    CLIENT_MESSAGES,
    DESCRIPTORS,
    INFO_EXTENSION,
    REPLIES,
    SERVER_MESSAGES,
    VERSION,
    ExitMessage,
    Extensions,
    Failure,
    Hello,
    NewSession,
    ProxyReady,
    Reply,
    Request,
    ServerMessage,
    SessionMessage,
    SessionOpened,
    StdioForward,
    TtyAllocFail,
    UnknownMessage,
    decode,
    encode,
)
from .wire import Reader

LEAST_MESSAGE_BYTES: Final = 4  # the type; a master drops whoever sends less
MAX_MESSAGE_BYTES: Final = 256 * 1024  # what a master accepts; here it holds for both directions

Piece = tuple[bytes, tuple[int, ...]]  # bytes and the descriptors that go out with them


class Signal(enum.Enum):
    """Events without content."""

    NEED_DATA = enum.auto()  # nothing more to be had from what was received
    NEED_REPLY = enum.auto()  # server only: nothing more is looked at before the last request is answered
    ENDED = enum.auto()  # the peer has closed, between two messages


@dataclass(frozen=True, slots=True)
class NeedDescriptors:
    """Server only: a request is read, and this many descriptors are still to come. The time to set a deadline."""

    count: int


@dataclass(frozen=True, slots=True)
class Requested:
    """Server only: a request, with the descriptors that belong to it, which are now the caller's to close."""

    message: Request
    descriptors: tuple[int, ...] = ()


class State(enum.Enum):
    """Where the conversation is. `PROXY` has no way out: what comes is for `take_rest`."""

    HELLO = enum.auto()
    READY = enum.auto()
    DESCRIPTORS = enum.auto()
    WAITING = enum.auto()
    PROXY = enum.auto()


class Step(enum.Enum):
    """What moves a conversation on, in either end."""

    HELLO = enum.auto()
    REQUEST = enum.auto()
    REQUEST_WITH_DESCRIPTORS = enum.auto()
    DESCRIPTORS = enum.auto()
    REPLY = enum.auto()
    PROXY = enum.auto()


TRANSITIONS: Final[Mapping[tuple[State, Step], State]] = {
    (State.HELLO, Step.HELLO): State.READY,
    (State.READY, Step.REQUEST): State.WAITING,
    (State.READY, Step.REQUEST_WITH_DESCRIPTORS): State.DESCRIPTORS,
    (State.DESCRIPTORS, Step.DESCRIPTORS): State.WAITING,
    (State.WAITING, Step.REPLY): State.READY,
    (State.WAITING, Step.PROXY): State.PROXY,
}


class Session(enum.Enum):
    """What the one session of a control connection has come to. A stdio forwarding has no messages of its own."""

    NONE = enum.auto()
    OPEN = enum.auto()
    EXITED = enum.auto()
    STDIO = enum.auto()


SESSION_TRANSITIONS: Final[Mapping[tuple[Session, type[Request | SessionMessage]], Session]] = {
    (Session.NONE, NewSession): Session.OPEN,
    (Session.NONE, StdioForward): Session.STDIO,
    (Session.OPEN, TtyAllocFail): Session.OPEN,
    (Session.OPEN, ExitMessage): Session.EXITED,
}


class _Machine:
    """What both ends have in common: buffers, state, and the error that ended it."""

    def __init__(self) -> None:
        self.state = State.HELLO
        self.session = Session.NONE
        self.session_id: int | None = None
        self._input = PacketBuffer(least_bytes=LEAST_MESSAGE_BYTES, limit_bytes=MAX_MESSAGE_BYTES)
        self._ended = False
        self._error: RemoteProtocolError | None = None
        self._output: list[Piece] = []
        self._request: Request | None = None

    def data_to_send(self) -> list[Piece]:
        """Take what is to be written, in order."""
        pieces, self._output = self._output, []
        return pieces

    def take_rest(self) -> bytes:
        """Take the bytes behind the last control message, once the state is `PROXY`."""
        if self.state is not State.PROXY:
            raise LocalProtocolError(f"there is nothing behind the control messages in state {self.state.name}")
        return self._input.take_rest()

    def _step(self, step: Step) -> None:
        try:
            self.state = TRANSITIONS[self.state, step]
        except KeyError:
            raise LocalProtocolError(f"{step.name} is not possible in state {self.state.name}") from None

    def _check_version(self, hello: Hello) -> None:
        if hello.version != VERSION:
            raise RemoteProtocolError(f"the peer speaks version {hello.version} of the control protocol, not {VERSION}")
        self._step(Step.HELLO)

    def _next_packet(self) -> bytes | Signal:
        packet = self._input.next_packet()
        if packet is not None:
            return packet
        if not self._ended:
            return Signal.NEED_DATA
        if len(self._input):
            raise RemoteProtocolError(f"the peer closed the connection {len(self._input)} bytes into a message")
        return Signal.ENDED


class ControlClient(_Machine):
    """The joining end. Its greeting is ready to be sent from the start.

    Session messages come as events between or instead of replies. Messages of unknown number come as `UnknownMessage`
    and change nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extensions: Extensions = ()
        self._next_request_id = 0
        self._output.append((encode(Hello()), ()))

    def new_request_id(self) -> int:
        """Return the id for the next request: 0, 1, 2 ... as OpenSSH's own client counts."""
        request_id, self._next_request_id = (
            self._next_request_id,
            self._next_request_id + 1,
        )
        return request_id

    def send(self, request: Request, descriptors: tuple[int, ...] = ()) -> None:
        """Queue a request and its descriptors, which must stay open until they are sent.

        Raises `LocalProtocolError` before the greeting has come, while another request waits for its reply, for a
        second session, and for a wrong number of descriptors.
        """
        due = DESCRIPTORS.get(type(request), 0)
        if len(descriptors) != due:
            raise LocalProtocolError(f"{type(request).__name__} goes with {due} descriptors, not {len(descriptors)}")
        if due and self.session is not Session.NONE:
            raise LocalProtocolError("a control connection carries one session only")
        packet = encode(request)
        self._step(Step.REQUEST)
        self._request = request
        self._output.append((packet, ()))
        # A master takes one descriptor with one byte per call (mm_receive_fd), and hangs up on several in one.
        self._output += [(b"\0", (descriptor,)) for descriptor in descriptors]

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the master; none at all means that it has closed."""
        self._input.receive(data)
        self._ended = self._ended or not data

    def next_event(self) -> ServerMessage | UnknownMessage | Signal:
        """Return what the bytes received so far say, one message at a time.

        Raises `RemoteProtocolError`; the connection must then be closed.
        """
        if self._error is not None:
            raise self._error
        if self.state is State.PROXY:
            return Signal.ENDED if self._ended else Signal.NEED_DATA
        try:
            packet = self._next_packet()
            if isinstance(packet, Signal):
                return packet
            message = decode(packet, SERVER_MESSAGES)
            if not isinstance(message, UnknownMessage):
                self._accept(message)
            elif self.state is State.HELLO:
                raise RemoteProtocolError(f"the master began with message {message.number:#x} and not with a greeting")
            return message
        except WireError as error:
            self._error = RemoteProtocolError(f"the master sent a malformed message: {error}")
        except RemoteProtocolError as error:
            self._error = error
        raise self._error

    def _accept(self, message: ServerMessage) -> None:
        if self.state is State.HELLO and isinstance(message, Hello):
            self._check_version(message)
            self.extensions = message.extensions
        elif isinstance(message, SessionMessage) and message.session_id == self.session_id:
            self._accept_session_message(message)
        elif isinstance(message, Reply) and self._request is not None:
            self._accept_reply(message, self._request)
        else:
            raise RemoteProtocolError(f"the master sent {message} in state {self.state.name}, which does not fit there")

    def _accept_session_message(self, message: SessionMessage) -> None:
        after = SESSION_TRANSITIONS.get((self.session, type(message)))
        if after is None:
            raise RemoteProtocolError(f"the master sent {message} for a session that is {self.session.name}")
        self.session = after

    def _accept_reply(self, reply: Reply, request: Request) -> None:
        if reply.request_id != request.request_id or not isinstance(reply, REPLIES[type(request)]):
            raise RemoteProtocolError(f"the master answered {type(request).__name__} {request.request_id} with {reply}")
        self._step(Step.PROXY if isinstance(reply, ProxyReady) else Step.REPLY)
        self._request = None
        if isinstance(reply, SessionOpened):
            self.session_id = reply.session_id
            self.session = SESSION_TRANSITIONS[self.session, type(request)]


class ControlServer(_Machine):
    """The end that holds the connection. Its greeting, with the "info" extension, is ready to be sent from the start.

    A request of unknown number is refused here, with the words OpenSSH uses, and is no event. While
    `Signal.NEED_REPLY` stands the caller may go on receiving, to notice that the client has gone; what the client
    says and hands over meanwhile is kept, up to a limit.
    """

    def __init__(self, extensions: Extensions = (INFO_EXTENSION,)) -> None:
        super().__init__()
        self._output.append((encode(Hello(extensions=extensions)), ()))

    def receive(self, data: bytes | bytearray | memoryview, descriptors: Iterable[int] = ()) -> None:
        """Take bytes from the client, and the descriptors the same call brought; no bytes mean that it has closed."""
        self._input.receive(data, descriptors)
        self._ended = self._ended or not data

    def next_event(self) -> Hello | Requested | NeedDescriptors | Signal:
        """Return what the bytes received so far say, one message at a time.

        Raises `RemoteProtocolError`; the connection must then be closed, and so must what `descriptors_to_close`
        returns.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._advance()
        except WireError as error:
            self._error = RemoteProtocolError(f"the client sent a malformed message: {error}")
        except RemoteProtocolError as error:
            self._error = error
        raise self._error

    def descriptors_to_close(self) -> tuple[int, ...]:
        """Take the descriptors that belong to no request, whenever `next_event` has no more to give, or raised."""
        idle = not len(self._input) and self.state is not State.DESCRIPTORS
        return self._input.take_surplus() if idle or self._ended or self._error else ()

    def send(self, message: Reply | SessionMessage) -> None:
        """Queue the reply to the last request, or a message of the open session.

        Raises `LocalProtocolError` for a reply to something else or of a kind its client does not understand, for a
        second session, and for session messages without a session.
        """
        packet = encode(message)
        if isinstance(message, SessionMessage):
            after = SESSION_TRANSITIONS.get((self.session, type(message)))
            if after is None or message.session_id != self.session_id:
                raise LocalProtocolError(
                    f"{message} does not fit session {self.session_id}, which is {self.session.name}"
                )
            self.session = after
        else:
            self._check_reply(message)
        self._output.append((packet, ()))

    def _check_reply(self, reply: Reply) -> None:
        request = self._request
        if self.state is not State.WAITING or request is None:
            raise LocalProtocolError(f"{reply} answers nothing in state {self.state.name}")
        if reply.request_id != request.request_id or not isinstance(reply, REPLIES[type(request)]):
            raise LocalProtocolError(f"{reply} is no answer to {type(request).__name__} {request.request_id}")
        if isinstance(reply, SessionOpened):
            if self.session is not Session.NONE:
                raise LocalProtocolError("a control connection carries one session only")
            self.session = SESSION_TRANSITIONS[self.session, type(request)]
            self.session_id = reply.session_id
        self._step(Step.PROXY if isinstance(reply, ProxyReady) else Step.REPLY)
        self._request = None

    def _advance(self) -> Hello | Requested | NeedDescriptors | Signal:
        if self.state is State.PROXY:
            return Signal.ENDED if self._ended else Signal.NEED_DATA
        if self.state is State.WAITING:
            if len(self._input) > LEAST_MESSAGE_BYTES + MAX_MESSAGE_BYTES:
                raise RemoteProtocolError("the client goes on sending without waiting for a reply")
            self._input.check_descriptors()
            return Signal.ENDED if self._ended else Signal.NEED_REPLY
        if self.state is State.DESCRIPTORS:
            return self._take_descriptors()
        while True:
            packet = self._next_packet()
            if isinstance(packet, Signal):
                return packet
            message = decode(packet, CLIENT_MESSAGES)
            if isinstance(message, Hello) and self.state is State.HELLO:
                self._check_version(message)
                return message
            if isinstance(message, Hello) or self.state is State.HELLO:
                raise RemoteProtocolError("the client greeted twice, or not first")
            if not isinstance(message, UnknownMessage):
                return self._begin(message)
            refusal = Failure(Reader(message.body).u32(), b"unsupported request")
            self._output.append((encode(refusal), ()))

    def _begin(self, request: Request) -> Requested | NeedDescriptors | Signal:
        self._request = request
        if type(request) in DESCRIPTORS:
            self._step(Step.REQUEST_WITH_DESCRIPTORS)
            return self._take_descriptors()
        self._step(Step.REQUEST)
        return Requested(request)

    def _take_descriptors(self) -> Requested | NeedDescriptors | Signal:
        request = self._request
        assert request is not None
        count = DESCRIPTORS[type(request)]
        descriptors = self._input.next_descriptors(count)
        if descriptors is None:
            if self._ended:
                raise RemoteProtocolError(f"the client closed before the {count} descriptors of its request had come")
            return NeedDescriptors(count)
        self._step(Step.DESCRIPTORS)
        return Requested(request, descriptors)
