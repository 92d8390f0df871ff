"""The machine that holds a connection, fed with what clients send, and with what they must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import LocalProtocolError, RemoteProtocolError
from mux.protocol.control import (
    MAX_MESSAGE_BYTES,
    ControlServer,
    NeedDescriptors,
    Requested,
    Signal,
    State,
)
from mux.protocol.framing import MAX_WAITING_DESCRIPTORS, frame
from mux.protocol.messages import (
    CLIENT_MESSAGES,
    INFO_EXTENSION,
    Alive,
    AliveCheck,
    ExitMessage,
    Failure,
    Hello,
    NewSession,
    Ok,
    OpenForward,
    Proxy,
    ProxyReady,
    RemotePort,
    Reply,
    SessionOpened,
    StdioForward,
    TtyAllocFail,
    encode,
)
from tests.t0_protocol.feeding import every_way

HELLO = encode(Hello())
SESSION = encode(NewSession(1, command=b"exit 3"))


def ready() -> ControlServer:
    server = ControlServer()
    server.data_to_send()
    server.receive(HELLO)
    assert server.next_event() == Hello()
    return server


def in_session() -> ControlServer:
    server = ready()
    server.receive(SESSION + b"\0\0\0", (7, 8, 9))
    server.next_event()
    server.send(SessionOpened(1, 2))
    server.data_to_send()
    return server


def listen(server: ControlServer, chunks: list[bytes]) -> None:
    for chunk in chunks:
        server.receive(chunk)
        while not isinstance(server.next_event(), Signal):
            pass


def test_it_greets_at_once_with_the_extensions_it_has() -> None:
    assert ControlServer().data_to_send() == [(encode(Hello(4, (INFO_EXTENSION,))), ())]
    assert ControlServer(()).data_to_send() == [(HELLO, ())]


def test_a_session_however_its_bytes_come() -> None:
    for chunks in every_way(HELLO + SESSION):
        server = ControlServer()
        found = []
        for chunk in chunks:
            server.receive(chunk)
            while isinstance(event := server.next_event(), Hello):
                found.append(event)
        assert found == [Hello()]
        assert server.next_event() == NeedDescriptors(3)
        for descriptor in (7, 8):
            server.receive(b"\0", (descriptor,))
            assert server.next_event() == NeedDescriptors(3)
            assert server.descriptors_to_close() == ()
        server.receive(b"\0", (9,))
        assert server.next_event() == Requested(NewSession(1, command=b"exit 3"), (7, 8, 9))
        assert server.descriptors_to_close() == ()


def test_packet_and_descriptors_in_one_call_with_what_follows() -> None:
    server = ready()
    server.receive(SESSION + b"\0\0\0" + encode(AliveCheck(2)), (7, 8, 9))
    assert server.next_event() == Requested(NewSession(1, command=b"exit 3"), (7, 8, 9))
    assert server.next_event() is Signal.NEED_REPLY
    server.send(SessionOpened(1, 0))
    assert server.next_event() == Requested(AliveCheck(2))


def test_a_stdio_forwarding_has_two_descriptors() -> None:
    server = ready()
    server.receive(encode(StdioForward(0, b"", b"h", 22)) + b"\0", (7,))
    assert server.next_event() == NeedDescriptors(2)
    server.receive(b"\0", (8,))
    assert server.next_event() == Requested(StdioForward(0, b"", b"h", 22), (7, 8))
    server.send(SessionOpened(0, 4))
    with pytest.raises(LocalProtocolError):
        server.send(ExitMessage(4, 0))


def test_a_byte_without_its_descriptor_is_refused_and_the_others_are_given_back() -> None:
    server = ready()
    server.receive(SESSION + b"\0", (7,))
    server.next_event()
    server.receive(b"\0")
    with pytest.raises(RemoteProtocolError, match="1 of 3"):
        server.next_event()
    assert server.descriptors_to_close() == (7,)


def test_descriptors_of_an_ended_client_are_given_back() -> None:
    server = ready()
    server.receive(SESSION + b"\0", (7,))
    server.receive(b"")
    with pytest.raises(RemoteProtocolError, match="closed before the 3 descriptors"):
        server.next_event()
    assert server.descriptors_to_close() == (7,)


def test_descriptors_that_belong_to_nothing_are_given_back() -> None:
    server = ready()
    server.receive(encode(AliveCheck(0)), (7, 8))
    assert server.next_event() == Requested(AliveCheck(0))
    server.send(Alive(0, 1))
    assert server.next_event() is Signal.NEED_DATA
    assert server.descriptors_to_close() == (7, 8)
    assert server.descriptors_to_close() == ()


def test_descriptors_ahead_of_their_request_are_kept() -> None:
    server = ready()
    server.receive(SESSION[:10], (7,))
    assert server.next_event() is Signal.NEED_DATA
    assert server.descriptors_to_close() == ()
    server.receive(SESSION[10:] + b"\0\0\0", (8, 9))
    assert server.next_event() == Requested(NewSession(1, command=b"exit 3"), (7, 8, 9))


def test_descriptors_may_not_pile_up() -> None:
    server = ready()
    server.receive(b"\0", range(MAX_WAITING_DESCRIPTORS + 1))
    with pytest.raises(RemoteProtocolError, match="not asked for"):
        server.next_event()
    assert server.descriptors_to_close() == tuple(range(MAX_WAITING_DESCRIPTORS + 1))


def test_descriptors_may_not_pile_up_while_a_reply_or_others_are_due() -> None:
    waiting = ready()
    waiting.receive(encode(Proxy(0)))
    waiting.next_event()
    receiving = ready()
    receiving.receive(SESSION)
    receiving.next_event()
    for server in (waiting, receiving):
        server.receive(b"\0", range(MAX_WAITING_DESCRIPTORS))
        server.next_event()
        server.receive(b"\0", (99,))
        with pytest.raises(RemoteProtocolError, match="not asked for"):
            server.next_event()
        assert server.descriptors_to_close() == (*range(MAX_WAITING_DESCRIPTORS), 99)


def test_an_unknown_request_is_refused_and_the_next_one_served() -> None:
    server = ready()
    server.receive(frame(bytes.fromhex("1000007700000009ffff")) + encode(AliveCheck(3)))
    assert server.next_event() == Requested(AliveCheck(3))
    assert server.data_to_send() == [(encode(Failure(9, b"unsupported request")), ())]


def test_requests_are_given_one_by_one_and_replies_must_fit_them() -> None:
    server = ready()
    server.receive(encode(OpenForward(0, 2, b"", 0, b"h", 1)) + encode(AliveCheck(1)))
    server.next_event()
    misfits: list[Reply] = [Ok(1), Alive(0, 1), SessionOpened(0, 1)]
    for misfit in misfits:
        with pytest.raises(LocalProtocolError):
            server.send(misfit)
    assert server.next_event() is Signal.NEED_REPLY
    server.send(RemotePort(0, 35209))
    assert server.next_event() == Requested(AliveCheck(1))
    with pytest.raises(LocalProtocolError):
        server.send(Failure(1, b"a client that asks this does not understand a refusal"))
    server.send(Alive(1, 5))
    assert b"".join(data for data, _ in server.data_to_send()) == encode(RemotePort(0, 35209)) + encode(Alive(1, 5))
    with pytest.raises(LocalProtocolError):
        server.send(Alive(1, 5))


def test_one_session_and_its_messages() -> None:
    server = in_session()
    server.receive(SESSION + b"\0\0\0", (4, 5, 6))
    assert server.next_event() == Requested(NewSession(1, command=b"exit 3"), (4, 5, 6))
    with pytest.raises(LocalProtocolError, match="one session"):
        server.send(SessionOpened(1, 3))
    server.send(Failure(1, b"Multiple sessions not supported"))
    with pytest.raises(LocalProtocolError):
        server.send(ExitMessage(3, 0))
    server.send(TtyAllocFail(2))
    server.send(ExitMessage(2, 255))
    with pytest.raises(LocalProtocolError):
        server.send(ExitMessage(2, 255))


def test_there_is_no_exit_without_a_session() -> None:
    with pytest.raises(LocalProtocolError):
        ready().send(ExitMessage(0, 0))


def test_proxy_mode_leaves_the_rest_alone() -> None:
    server = ready()
    server.receive(encode(Proxy(0)) + b"raw")
    assert server.next_event() == Requested(Proxy(0))
    server.send(ProxyReady(0))
    assert server.state is State.PROXY
    assert server.take_rest() == b"raw"
    assert server.next_event() is Signal.NEED_DATA


@pytest.mark.parametrize(
    "data",
    [
        encode(AliveCheck(0)),  # no greeting
        HELLO + HELLO,
        encode(Hello(3)),
        frame(bytes.fromhex("10000077")),  # not even an unknown request goes before the greeting
        HELLO + frame(bytes.fromhex("10000077")),  # too short to be answered
        HELLO + frame(bytes.fromhex("10000004 0000")),
        HELLO + frame(SESSION[4:20]),
        HELLO + b"\0\0\0\3",
        HELLO + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_what_a_master_hangs_up_on(data: bytes) -> None:
    for chunks in every_way(data):
        with pytest.raises(RemoteProtocolError):
            listen(ControlServer(), chunks)


def test_the_longest_message_is_taken() -> None:
    room = MAX_MESSAGE_BYTES - (len(encode(NewSession(0))) - 4)
    server = ready()
    server.receive(encode(NewSession(0, command=b"x" * room)))
    assert server.next_event() == NeedDescriptors(3)


def test_a_client_that_does_not_wait_for_replies_is_stopped_at_some_point() -> None:
    server = ready()
    server.receive(encode(AliveCheck(0)))
    server.next_event()
    with pytest.raises(RemoteProtocolError, match="without waiting"):
        listen(server, [bytes(4096)] * (2 + MAX_MESSAGE_BYTES // 4096))


def test_a_client_that_leaves_is_noticed_while_it_waits_for_a_reply() -> None:
    server = ready()
    server.receive(encode(AliveCheck(0)))
    server.next_event()
    server.receive(b"")
    assert server.next_event() is Signal.ENDED


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.binary(max_size=40),
                st.tuples(st.sampled_from(sorted(CLIENT_MESSAGES)), st.binary(max_size=60)).map(
                    lambda parts: frame(parts[0].to_bytes(4, "big") + parts[1])
                ),
            ),
            st.lists(st.integers(3, 20), max_size=3),
        )
    ),
    st.sampled_from([ControlServer, ready, in_session]),
)
def test_garbage_is_events_or_a_protocol_error_and_no_descriptor_is_lost(
    chunks: list[tuple[bytes, list[int]]], start: Callable[[], ControlServer]
) -> None:
    server = start()
    given_in: list[int] = []
    given_back: list[int] = []
    try:
        for data, descriptors in chunks:
            server.receive(data, descriptors)
            given_in += descriptors
            for _ in range(1000):
                event = server.next_event()
                if not isinstance(event, Hello | Requested):
                    break
                given_back += event.descriptors if isinstance(event, Requested) else ()
            given_back += server.descriptors_to_close()
        server.receive(b"")
        server.next_event()
    except RemoteProtocolError:
        pass
    given_back += server.descriptors_to_close()
    assert given_back == given_in
