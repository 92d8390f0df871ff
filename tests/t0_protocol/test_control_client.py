"""The joining machine, fed with what masters send, and with what they must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import LocalProtocolError, RemoteProtocolError
from mux.protocol.control import MAX_MESSAGE_BYTES, ControlClient, Session, Signal, State
from mux.protocol.framing import frame
from mux.protocol.messages import (
    INFO_EXTENSION,
    SERVER_MESSAGES,
    Alive,
    AliveCheck,
    ExitMessage,
    Failure,
    Hello,
    NewSession,
    Ok,
    PermissionDenied,
    Proxy,
    ProxyReady,
    ServerMessage,
    SessionOpened,
    StdioForward,
    Terminate,
    TtyAllocFail,
    UnknownMessage,
    encode,
)
from tests.t0_protocol.feeding import every_way

HELLO = bytes.fromhex("000000080000000100000004")
ALIVE = bytes.fromhex("0000000c800000050000000000000bd4")
SESSION_AND_EXIT = bytes.fromhex("0000000c8000000600000001000000020000000c800000040000000200000003")


def events(client: ControlClient) -> list[object]:
    """Everything it has to say, up to the point where it needs more."""
    found: list[object] = []
    while not isinstance(event := client.next_event(), Signal):
        found.append(event)
    return found


def ready() -> ControlClient:
    client = ControlClient()
    client.data_to_send()
    client.receive(HELLO)
    assert events(client) == [Hello()]
    return client


def in_session() -> ControlClient:
    client = ready()
    client.send(NewSession(0), (5, 6, 7))
    client.data_to_send()
    client.receive(encode(SessionOpened(0, 2)))
    assert events(client) == [SessionOpened(0, 2)]
    return client


def test_it_greets_at_once_and_asks_only_when_greeted() -> None:
    client = ControlClient()
    assert client.data_to_send() == [(HELLO, ())]
    with pytest.raises(LocalProtocolError, match="HELLO"):
        client.send(AliveCheck(0))
    client.receive(HELLO)
    assert client.next_event() == Hello()
    assert client.state is State.READY
    assert client.data_to_send() == []


def test_the_bytes_of_a_session_as_openssh_has_them() -> None:
    client = ready()
    client.send(AliveCheck(client.new_request_id()))
    assert client.data_to_send() == [(bytes.fromhex("000000081000000400000000"), ())]
    client.receive(ALIVE)
    assert events(client) == [Alive(0, 3028)]
    assert client.new_request_id() == 1


def test_a_session_however_its_bytes_come() -> None:
    for chunks in every_way(SESSION_AND_EXIT):
        client = ready()
        client.send(NewSession(1, command=b"exit 3"), (5, 6, 7))
        found = []
        for chunk in chunks:
            client.receive(chunk)
            found += events(client)
        client.receive(b"")
        assert found == [SessionOpened(1, 2), ExitMessage(2, 3)]
        assert client.next_event() is Signal.ENDED
        assert client.session is Session.EXITED


def test_each_descriptor_goes_out_with_a_byte_of_its_own_behind_the_packet() -> None:
    client = ready()
    session = NewSession(0, subsystem=True, command=b"sftp")
    client.send(session, (5, 6, 7))
    assert client.data_to_send() == [(encode(session), ()), (b"\0", (5,)), (b"\0", (6,)), (b"\0", (7,))]
    client = ready()
    client.send(StdioForward(0, b"", b"h", 1), (5, 6))
    assert [fds for _, fds in client.data_to_send()] == [(), (5,), (6,)]


@pytest.mark.parametrize("descriptors", [(), (1, 2), (1, 2, 3, 4)])
def test_a_wrong_number_of_descriptors_is_our_error_and_changes_nothing(descriptors: tuple[int, ...]) -> None:
    client = ready()
    with pytest.raises(LocalProtocolError, match="3 descriptors"):
        client.send(NewSession(0), descriptors)
    assert client.data_to_send() == []
    assert client.state is State.READY


def test_extensions_of_the_greeting_are_kept_and_unknown_ones_harmless() -> None:
    client = ControlClient()
    client.receive(encode(Hello(4, (INFO_EXTENSION, (b"later@example.org", b"\xff")))))
    assert client.next_event() == Hello(4, (INFO_EXTENSION, (b"later@example.org", b"\xff")))
    assert client.extensions == (INFO_EXTENSION, (b"later@example.org", b"\xff"))
    assert client.state is State.READY


@pytest.mark.parametrize("version", [0, 3, 5, 2**32 - 1])
def test_another_version_is_refused(version: int) -> None:
    client = ControlClient()
    client.receive(encode(Hello(version)))
    with pytest.raises(RemoteProtocolError, match=f"version {version} "):
        client.next_event()


@pytest.mark.parametrize("message", [Ok(0), Alive(0, 1), ExitMessage(0, 0), UnknownMessage(2, b"")])
def test_nothing_goes_before_the_greeting(message: ServerMessage | UnknownMessage) -> None:
    client = ControlClient()
    client.receive(frame(bytes.fromhex("00000002")) if isinstance(message, UnknownMessage) else encode(message))
    with pytest.raises(RemoteProtocolError):
        client.next_event()


@pytest.mark.parametrize("length", [0, 1, 2, 3, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_lengths_out_of_bounds_are_refused(length: int) -> None:
    client = ControlClient()
    client.receive(length.to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match="bytes"):
        client.next_event()


def test_after_an_error_there_is_nothing_but_the_error() -> None:
    client = ControlClient()
    client.receive(b"\0\0\0\0")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            client.next_event()
        client.receive(HELLO)


@pytest.mark.parametrize(
    "message",
    [
        Alive(1, 2),  # an id that was not asked
        Ok(0),  # the wrong kind of answer
        SessionOpened(0, 1),
        ProxyReady(0),
        Hello(),
        ExitMessage(0, 0),  # there is no session
        TtyAllocFail(0),
    ],
)
def test_what_does_not_answer_the_question_is_refused(message: ServerMessage) -> None:
    client = ready()
    client.send(AliveCheck(0))
    client.receive(encode(message))
    with pytest.raises(RemoteProtocolError):
        client.next_event()


@pytest.mark.parametrize("message", [Alive(0, 1), Ok(0), Failure(0, b""), SessionOpened(0, 1), Hello()])
def test_an_answer_without_a_question_is_refused(message: ServerMessage) -> None:
    client = ready()
    client.receive(encode(message))
    with pytest.raises(RemoteProtocolError):
        client.next_event()


@pytest.mark.parametrize("message", [ExitMessage(3, 0), TtyAllocFail(3), SessionOpened(0, 2), Ok(0), Hello()])
def test_a_session_hears_of_its_own_end_only(message: ServerMessage) -> None:
    client = in_session()
    client.receive(encode(message))
    with pytest.raises(RemoteProtocolError):
        client.next_event()


def test_a_session_may_lose_its_terminal_and_exits_once() -> None:
    client = in_session()
    client.receive(encode(TtyAllocFail(2)) + encode(ExitMessage(2, 255)))
    assert events(client) == [TtyAllocFail(2), ExitMessage(2, 255)]
    client.receive(encode(ExitMessage(2, 0)))
    with pytest.raises(RemoteProtocolError, match="EXITED"):
        client.next_event()


def test_nothing_is_said_to_a_stdio_forwarding() -> None:
    client = ready()
    client.send(StdioForward(0, b"", b"h", 1), (5, 6))
    client.receive(encode(SessionOpened(0, 2)))
    assert events(client) == [SessionOpened(0, 2)]
    client.receive(encode(ExitMessage(2, 0)))
    with pytest.raises(RemoteProtocolError, match="STDIO"):
        client.next_event()


def test_one_session_only_but_questions_during_it() -> None:
    client = in_session()
    with pytest.raises(LocalProtocolError, match="one session"):
        client.send(NewSession(1), (5, 6, 7))
    client.send(AliveCheck(1))
    client.receive(encode(ExitMessage(2, 0)) + encode(Alive(1, 9)))
    assert events(client) == [ExitMessage(2, 0), Alive(1, 9)]


def test_one_question_at_a_time() -> None:
    client = ready()
    client.send(AliveCheck(0))
    with pytest.raises(LocalProtocolError, match="WAITING"):
        client.send(Terminate(1))


@pytest.mark.parametrize("refusal", [Failure(0, b"Session open refused by peer"), PermissionDenied(0, b"no")])
def test_after_a_refusal_it_may_ask_again(refusal: ServerMessage) -> None:
    client = ready()
    client.send(NewSession(0), (5, 6, 7))
    client.receive(encode(refusal))
    assert events(client) == [refusal]
    assert client.session is Session.NONE
    client.send(NewSession(1), (5, 6, 7))


def test_messages_of_later_versions_are_shown_and_change_nothing() -> None:
    client = ready()
    client.send(AliveCheck(0))
    client.receive(frame(bytes.fromhex("8000007700000000ffff")) + frame(bytes.fromhex("00000002")))
    client.receive(encode(Alive(0, 1)))
    assert events(client) == [
        UnknownMessage(0x80000077, bytes.fromhex("00000000ffff")),
        UnknownMessage(2, b""),
        Alive(0, 1),
    ]


def test_what_follows_the_start_of_proxy_mode_is_left_alone() -> None:
    client = ready()
    client.send(Proxy(0))
    client.receive(encode(ProxyReady(0)) + b"\0\0\0\0raw")
    assert client.next_event() == ProxyReady(0)
    assert client.next_event() is Signal.NEED_DATA
    assert client.take_rest() == b"\0\0\0\0raw"
    client.receive(b"")
    assert client.next_event() is Signal.ENDED
    with pytest.raises(LocalProtocolError):
        client.send(AliveCheck(1))


def test_there_is_no_rest_before_proxy_mode() -> None:
    with pytest.raises(LocalProtocolError):
        ready().take_rest()


def test_the_end_between_messages_is_an_event_and_within_one_an_error() -> None:
    for length in range(1, len(ALIVE)):
        client = ready()
        client.send(AliveCheck(0))
        client.receive(ALIVE[:length])
        client.receive(b"")
        with pytest.raises(RemoteProtocolError, match="into a message"):
            client.next_event()
    client = ready()
    client.receive(b"")
    assert client.next_event() is Signal.ENDED


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.tuples(st.sampled_from(sorted(SERVER_MESSAGES)), st.binary(max_size=30)).map(
                lambda parts: frame(parts[0].to_bytes(4, "big") + parts[1])
            ),
        )
    ),
    st.sampled_from([ControlClient, ready, in_session]),
)
def test_garbage_is_events_or_a_protocol_error(chunks: list[bytes], start: Callable[[], ControlClient]) -> None:
    client = start()
    try:
        for chunk in chunks:
            client.receive(chunk)
            events(client)
    except RemoteProtocolError:
        pass
