"""Every message of the control protocol: its exact bytes both ways, what it tolerates, and what it refuses.

The bytes of the session and of the greeting are those that went over a control socket between OpenSSH 9.2 and itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import LocalProtocolError, WireError
from mux.protocol.messages import (
    CLIENT_MESSAGES,
    DESCRIPTORS,
    INFO_EXTENSION,
    REPLIES,
    SERVER_MESSAGES,
    UNIX_SOCKET_PORT,
    Alive,
    AliveCheck,
    ClientMessage,
    CloseForward,
    ExitMessage,
    Failure,
    Forward,
    ForwardKind,
    Hello,
    Info,
    InfoRequest,
    NewSession,
    Ok,
    OpenForward,
    PermissionDenied,
    Proxy,
    ProxyReady,
    RemotePort,
    ServerMessage,
    SessionOpened,
    StdioForward,
    StopListening,
    Terminate,
    TtyAllocFail,
    UnknownMessage,
    decode,
    encode,
)

Message = ClientMessage | ServerMessage
Table = Mapping[int, type[ClientMessage]] | Mapping[int, type[ServerMessage]]

CLIENT_BYTES: list[tuple[Message, str]] = [
    (Hello(), "00000008 00000001 00000004"),
    (
        NewSession(1, escape_character=0x7E, terminal=b"xterm", command=b"exit 3", environment=(b"FOO=bar",)),
        "0000003e 10000002 00000001 00000000 00000000 00000000 00000000 00000000 0000007e"
        "00000005 787465726d 00000006 657869742033 00000007 464f4f3d626172",
    ),
    (
        NewSession(0, subsystem=True, command=b"sftp"),
        "0000002c 10000002 00000000 00000000 00000000 00000000 00000000 00000001 ffffffff 00000000 00000004 73667470",
    ),
    (
        NewSession(2, tty=True, x11=True, agent=True),
        "00000028 10000002 00000002 00000000 00000001 00000001 00000001 00000000 ffffffff 00000000 00000000",
    ),
    (AliveCheck(0), "00000008 10000004 00000000"),
    (Terminate(1), "00000008 10000005 00000001"),
    (
        OpenForward(3, *Forward(ForwardKind.LOCAL, b"*", 8080, b"h", 80)),
        "0000001e 10000006 00000003 00000001 00000001 2a 00001f90 00000001 68 00000050",
    ),
    (
        CloseForward(4, *Forward(ForwardKind.REMOTE, b"/s", UNIX_SOCKET_PORT, b"socks", 0)),
        "00000023 10000007 00000004 00000002 00000002 2f73 fffffffe 00000005 736f636b73 00000000",
    ),
    (StdioForward(1, b"", b"::1", 22), "00000017 10000008 00000001 00000000 00000003 3a3a31 00000016"),
    (StopListening(5), "00000008 10000009 00000005"),
    (Proxy(0), "00000008 1000000f 00000000"),
    (InfoRequest(6, b"channels"), "00000014 20000001 00000006 00000008 6368616e6e656c73"),
]
SERVER_BYTES: list[tuple[Message, str]] = [
    (Hello(4, (INFO_EXTENSION,)), "00000015 00000001 00000004 00000004 696e666f 00000001 30"),
    (Ok(7), "00000008 80000001 00000007"),
    (PermissionDenied(1, b"no"), "0000000e 80000002 00000001 00000002 6e6f"),
    (Failure(1, b""), "0000000c 80000003 00000001 00000000"),
    (ExitMessage(2, 3), "0000000c 80000004 00000002 00000003"),
    (Alive(0, 3028), "0000000c 80000005 00000000 00000bd4"),
    (SessionOpened(1, 2), "0000000c 80000006 00000001 00000002"),
    (RemotePort(3, 35209), "0000000c 80000007 00000003 00008989"),
    (TtyAllocFail(2), "00000008 80000008 00000002"),
    (ProxyReady(0), "00000008 8000000f 00000000"),
    (Info(6, True, b"hi\r\n"), "00000014 90000001 00000006 00000001 00000004 68690d0a"),
]
MESSAGE_CLASSES: list[type[Message]] = [*CLIENT_MESSAGES.values(), *SERVER_MESSAGES.values()]


def exact(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def table_of(message: Message) -> Table:
    return CLIENT_MESSAGES if type(message) in CLIENT_MESSAGES.values() else SERVER_MESSAGES


@pytest.mark.parametrize(("message", "text"), CLIENT_BYTES)
def test_exact_bytes_of_the_client(message: Message, text: str) -> None:
    assert encode(message) == exact(text)
    assert decode(exact(text)[4:], CLIENT_MESSAGES) == message


@pytest.mark.parametrize(("message", "text"), SERVER_BYTES)
def test_exact_bytes_of_the_master(message: Message, text: str) -> None:
    assert encode(message) == exact(text)
    assert decode(exact(text)[4:], SERVER_MESSAGES) == message


def test_the_tables_above_hold_every_message() -> None:
    assert {type(message) for message, _ in CLIENT_BYTES} == set(CLIENT_MESSAGES.values())
    assert {type(message) for message, _ in SERVER_BYTES} == set(SERVER_MESSAGES.values())
    assert set(REPLIES) == set(CLIENT_MESSAGES.values()) - {Hello}
    assert set(DESCRIPTORS) <= set(REPLIES)


@pytest.mark.parametrize(("message", "text"), CLIENT_BYTES + SERVER_BYTES)
def test_what_a_newer_version_may_append_is_ignored(message: Message, text: str) -> None:
    if isinstance(message, Hello | NewSession):
        return  # these end in a list, so that what follows belongs to it
    assert decode(exact(text)[4:] + b"more", table_of(message)) == message


@pytest.mark.parametrize(("message", "text"), CLIENT_BYTES + SERVER_BYTES)
def test_every_cut_message_is_refused_or_has_fewer_items_in_its_list(message: Message, text: str) -> None:
    packet = exact(text)[4:]
    for length in range(len(packet)):
        try:
            cut = decode(packet[:length], table_of(message))
        except WireError:
            continue
        assert isinstance(cut, Hello | NewSession)
        assert len(encode(cut)) == 4 + length


def test_the_numbers_of_one_side_mean_nothing_from_the_other() -> None:
    assert decode(encode(Ok(1))[4:], CLIENT_MESSAGES) == UnknownMessage(0x80000001, b"\0\0\0\1")
    assert decode(encode(AliveCheck(1))[4:], SERVER_MESSAGES) == UnknownMessage(0x10000004, b"\0\0\0\1")


def test_any_number_but_zero_is_true() -> None:
    packet = bytearray(encode(NewSession(0))[4:])
    packet[15] = 2
    session = decode(bytes(packet), CLIENT_MESSAGES)
    assert isinstance(session, NewSession)
    assert session.tty is True


def test_an_extension_without_a_value_is_refused() -> None:
    with pytest.raises(WireError, match="extension"):
        decode(exact("00000001 00000004 00000004 696e666f"), SERVER_MESSAGES)


def test_a_number_too_large_for_its_field_is_our_error() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        encode(StdioForward(0, b"", b"h", 2**32))


NUMBERS = st.integers(0, 2**32 - 1)
STRINGS = st.binary(max_size=30)
VALUES = {
    "int": NUMBERS,
    "bool": st.booleans(),
    "bytes": STRINGS,
    "tuple[bytes, ...]": st.lists(STRINGS, max_size=4).map(tuple),
    "Extensions": st.lists(st.tuples(STRINGS, STRINGS), max_size=4).map(tuple),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    cls: Callable[..., Message] = draw(st.sampled_from(MESSAGE_CLASSES))
    return cls(*(draw(VALUES[str(field.type)]) for field in dataclasses.fields(cls)))  # type: ignore[arg-type]


@given(messages())
def test_every_message_survives_its_bytes(message: Message) -> None:
    assert decode(encode(message)[4:], table_of(message)) == message


@given(st.sampled_from(sorted(CLIENT_MESSAGES) + sorted(SERVER_MESSAGES)), st.binary(max_size=60))
def test_garbage_is_decoded_or_refused(number: int, body: bytes) -> None:
    tables: list[Table] = [CLIENT_MESSAGES, SERVER_MESSAGES]
    for table in tables:
        try:
            decode(number.to_bytes(4, "big") + body, table)
        except WireError:
            pass
