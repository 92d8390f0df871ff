"""Both machines back to back: what one says the other understands, through a stream that cuts as it likes."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from mux.protocol.control import ControlClient, ControlServer, Piece, Requested, Signal
from mux.protocol.messages import (
    DESCRIPTORS,
    REPLIES,
    Alive,
    AliveCheck,
    CloseForward,
    ExitMessage,
    Failure,
    Hello,
    Info,
    InfoRequest,
    NewSession,
    Ok,
    OpenForward,
    PermissionDenied,
    RemotePort,
    Reply,
    Request,
    SessionOpened,
    StopListening,
    Terminate,
)

CONVERSATION: list[tuple[Request, list[Reply]]] = [
    (AliveCheck(0), [Alive(0, 77)]),
    (OpenForward(1, 1, b"", 80, b"h", 80), [Ok(1), Failure(1, b"Port forwarding failed"), PermissionDenied(1, b"no")]),
    (OpenForward(2, 2, b"", 0, b"h", 80), [RemotePort(2, 4000)]),
    (CloseForward(3, 2, b"", 0, b"h", 80), [Ok(3), Failure(3, b"port not forwarded")]),
    (InfoRequest(4, b"connection"), [Info(4, True, b"text"), Info(4, False, b"none")]),
    (NewSession(5, command=b"true"), [SessionOpened(5, 0), Failure(5, b"Session open refused by peer")]),
    (StopListening(6), [Ok(6)]),
    (Terminate(7), [Ok(7), PermissionDenied(7, b"Permission denied")]),
]


def deliver(pieces: list[Piece], cuts: Iterator[int]) -> Iterator[Piece]:
    """The pieces as receive calls may bring them: plain bytes merge with what follows and are cut anywhere, and a call
    ends behind bytes that carry descriptors, as unix(7) has it.
    """
    pending = b""
    for data, descriptors in pieces:
        pending += data
        if descriptors:
            yield pending, descriptors
            pending = b""
    while pending:
        size = next(cuts)
        yield pending[:size], ()
        pending = pending[size:]


@given(st.data())
def test_a_conversation(data: st.DataObject) -> None:
    cuts = iter(lambda: data.draw(st.integers(1, 9)), None)
    client, server = ControlClient(), ControlServer()
    for piece in deliver(client.data_to_send(), cuts):
        server.receive(*piece)
    for piece in deliver(server.data_to_send(), cuts):
        client.receive(piece[0])
    assert isinstance(client.next_event(), Hello)
    assert isinstance(server.next_event(), Hello)

    for request, replies in CONVERSATION:
        assert all(isinstance(reply, REPLIES[type(request)]) for reply in replies)
        descriptors = tuple(range(50, 50 + DESCRIPTORS.get(type(request), 0)))
        client.send(request, descriptors)
        seen = []
        for piece in deliver(client.data_to_send(), cuts):
            server.receive(*piece)
            event = server.next_event()
            if isinstance(event, Requested):
                seen.append(event)
        assert seen == [Requested(request, descriptors)]
        assert server.descriptors_to_close() == ()

        reply = data.draw(st.sampled_from(replies))
        server.send(reply)
        if isinstance(reply, SessionOpened):
            server.send(ExitMessage(reply.session_id, 5))
        answered = []
        for piece in deliver(server.data_to_send(), cuts):
            client.receive(piece[0])
            while (answer := client.next_event()) is not Signal.NEED_DATA:
                answered.append(answer)
        assert answered == [reply, *([ExitMessage(0, 5)] if isinstance(reply, SessionOpened) else [])]
        assert client.session is server.session
