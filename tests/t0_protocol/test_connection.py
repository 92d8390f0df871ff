"""One channel as a machine: exact packets both ways, windows, ends, and everything a peer must not send."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import LocalProtocolError, RemoteProtocolError
from mux.protocol.connection import (
    LARGEST_PACKET_BYTES,
    LARGEST_UNTOLD_BYTES,
    STDERR,
    Channel,
    Closed,
    Data,
    Eof,
    Event,
    Message,
    Opened,
    Packet,
    Refused,
    Reply,
    Request,
    State,
    WindowGrown,
)
from mux.protocol.wire import boolean, string, u32

OURS, THEIRS = 7, 0x01020304


def wire(packet: Packet | None) -> bytes:
    """A packet's payload, the message number included."""
    assert packet is not None
    return bytes([packet[0]]) + b"".join(bytes(part) for part in packet[1:])


def tell(channel: Channel, kind: int, body: bytes = b"") -> Event | None:
    return channel.receive(kind, memoryview(body))


def confirmation(window: int = 1000, packet: int = 100) -> bytes:
    return u32(THEIRS) + u32(window) + u32(packet)


def opened(*, window: int = 1000, packet: int = 100, ours: int = 64, our_packet: int = 32) -> Channel:
    """An open channel: the peer lets us send `window`, we let it send `ours`."""
    channel = Channel(OURS, window_bytes=ours, packet_bytes=our_packet)
    channel.open(b"session")
    assert tell(channel, 91, confirmation(window, packet)) == Opened()
    return channel


def violates(channel: Channel, kind: int, body: bytes = b"") -> None:
    with pytest.raises(RemoteProtocolError, match=f"channel {OURS}"):
        tell(channel, kind, body)


def test_numbers_are_those_of_the_rfc() -> None:
    assert {message.name: message.value for message in Message} == {
        "GLOBAL_REQUEST": 80,
        "REQUEST_SUCCESS": 81,
        "REQUEST_FAILURE": 82,
        "CHANNEL_OPEN": 90,
        "CHANNEL_OPEN_CONFIRMATION": 91,
        "CHANNEL_OPEN_FAILURE": 92,
        "CHANNEL_WINDOW_ADJUST": 93,
        "CHANNEL_DATA": 94,
        "CHANNEL_EXTENDED_DATA": 95,
        "CHANNEL_EOF": 96,
        "CHANNEL_CLOSE": 97,
        "CHANNEL_REQUEST": 98,
        "CHANNEL_SUCCESS": 99,
        "CHANNEL_FAILURE": 100,
    }


def test_what_is_sent_byte_by_byte() -> None:
    channel = Channel(OURS, window_bytes=0x200000, packet_bytes=0x8000)
    assert wire(channel.open(b"session", b"more")) == bytes.fromhex(
        "5a 00000007 73657373696f6e 00000007 00200000 00008000 6d6f7265"
    )
    assert tell(channel, 91, confirmation(20, 8) + b"extra") == Opened(b"extra")
    assert channel.remote == THEIRS
    assert wire(channel.request(b"exec", True, string(b"ls"))) == bytes.fromhex(
        "62 01020304 00000004 65786563 01 00000002 6c73"
    )
    assert wire(channel.request(b"env", False)) == bytes.fromhex("62 01020304 00000003 656e76 00")
    count, packets = channel.data(b"hello world")
    assert count == 11
    assert [wire(packet) for packet in packets] == [
        bytes.fromhex("5e 01020304 00000008") + b"hello wo",
        bytes.fromhex("5e 01020304 00000003") + b"rld",
    ]
    count, packets = channel.data(b"trouble that is long", STDERR)
    assert count == 9
    assert [wire(packet) for packet in packets] == [
        bytes.fromhex("5f 01020304 00000001 00000008") + b"trouble ",
        bytes.fromhex("5f 01020304 00000001 00000001") + b"t",
    ]
    assert channel.data(b"more") == (0, [])
    assert tell(channel, 98, string(b"ask") + boolean(True)) == Request(b"ask", True, memoryview(b""))
    assert wire(channel.answer(True)) == bytes.fromhex("63 01020304")
    tell(channel, 98, string(b"ask") + boolean(True))
    assert wire(channel.answer(False)) == bytes.fromhex("64 01020304")
    assert wire(channel.eof()) == bytes.fromhex("60 01020304")
    assert wire(channel.close()) == bytes.fromhex("61 01020304")


def test_a_channel_of_the_peer_is_confirmed_with_our_numbers() -> None:
    channel = Channel(OURS, window_bytes=64, packet_bytes=32)
    assert wire(channel.accept(THEIRS, 10, 5)) == bytes.fromhex("5b 01020304 00000007 00000040 00000020")
    assert channel.data(b"123456789012")[0] == 10


def test_packets_are_views_of_what_was_given() -> None:
    data = bytearray(b"0123456789")
    _, packets = opened(packet=4).data(data)
    data[:] = b"abcdefghij"
    assert b"".join(wire(packet)[9:] for packet in packets) == b"abcdefghij"


def test_a_peer_that_takes_more_at_once_gets_no_larger_packets() -> None:
    channel = opened(window=10**6, packet=10**6)
    sizes = [len(wire(packet)) - 9 for packet in channel.data(bytes(80_000))[1]]
    assert sizes == [32768, 32768, 14464]


def test_the_window_grows_by_what_the_peer_says() -> None:
    channel = opened(window=3)
    assert channel.data(b"abcde")[0] == 3
    assert tell(channel, 93, u32(4)) == WindowGrown(4)
    assert channel.room_bytes == 4
    assert channel.data(b"de")[0] == 2
    assert tell(channel, 93, u32(2**32 - 3)) == WindowGrown(2**32 - 3)
    violates(channel, 93, u32(1))


def test_what_comes() -> None:
    channel = opened()
    assert tell(channel, 94, string(b"out")) == Data(0, memoryview(b"out"))
    assert tell(channel, 95, u32(STDERR) + string(b"err")) == Data(STDERR, memoryview(b"err"))
    assert tell(channel, 95, u32(9) + string(b"odd")) == Data(9, memoryview(b"odd"))
    assert tell(channel, 98, string(b"exit-status") + boolean(False) + u32(3)) == Request(
        b"exit-status", False, memoryview(u32(3))
    )
    assert tell(channel, 96) == Eof()
    assert tell(channel, 97) == Closed()
    assert not channel.finished
    assert channel.close() is not None
    assert channel.finished


def test_the_window_opens_again_by_halves() -> None:
    channel = opened(ours=64)
    for _ in range(2):
        tell(channel, 94, string(bytes(16)))
    assert channel.consumed(31) is None
    assert wire(channel.consumed(1)) == bytes.fromhex("5d 01020304 00000020")
    tell(channel, 94, string(bytes(32)))
    tell(channel, 94, string(bytes(32)))
    violates(channel, 94, string(b"x"))


def test_a_large_window_opens_again_in_steps() -> None:
    channel = opened(ours=16 << 20, our_packet=LARGEST_PACKET_BYTES)
    for _ in range(LARGEST_UNTOLD_BYTES // LARGEST_PACKET_BYTES):
        tell(channel, 94, string(bytes(LARGEST_PACKET_BYTES)))
    assert channel.consumed(LARGEST_UNTOLD_BYTES - 1) is None
    assert wire(channel.consumed(1)) == b"\x5d" + u32(THEIRS) + u32(LARGEST_UNTOLD_BYTES)


def test_for_now_the_window_opens_no_further_than_asked() -> None:
    channel = opened(ours=64)
    for _ in range(2):
        tell(channel, 94, string(bytes(32)))
    assert channel.consumed(15, 32) is None
    assert wire(channel.consumed(1, 32)) == bytes.fromhex("5d 01020304 00000010")
    assert wire(channel.consumed(40, 32)) == bytes.fromhex("5d 01020304 00000010")
    assert channel.consumed(8, 32) is None
    tell(channel, 94, string(bytes(8)))
    assert wire(channel.consumed(8)) == bytes.fromhex("5d 01020304 00000028")
    tell(channel, 94, string(bytes(32)))
    tell(channel, 94, string(bytes(32)))
    violates(channel, 94, string(b"x"))


@pytest.mark.parametrize("for_now", [1, 2, 3, 31, 32, 33, 64, 100, None])
@pytest.mark.parametrize("piece", [1, 5, 32])
def test_whatever_it_opens_to_a_peer_never_waits_for_ever(for_now: int | None, piece: int) -> None:
    channel, room_bytes, most_bytes = opened(ours=64), 64, 64 if for_now is None else min(64, for_now)
    for _ in range(500):
        assert room_bytes
        count = min(piece, room_bytes)
        assert isinstance(tell(channel, 94, string(bytes(count))), Data)
        room_bytes -= count
        opened_again = channel.consumed(count, for_now)
        if opened_again is not None:
            room_bytes += int.from_bytes(wire(opened_again)[5:], "big")
            assert room_bytes <= most_bytes


def test_both_streams_share_one_window() -> None:
    channel = opened(ours=64)
    tell(channel, 94, string(bytes(32)))
    tell(channel, 95, u32(1) + string(bytes(32)))
    violates(channel, 95, u32(1) + string(b"x"))


def test_no_window_is_given_to_who_has_ended() -> None:
    ended = opened(ours=64)
    tell(ended, 94, string(bytes(32)))
    tell(ended, 94, string(bytes(32)))
    tell(ended, 96)
    assert ended.consumed(64) is None
    closed = opened(ours=64)
    tell(closed, 94, string(bytes(32)))
    tell(closed, 94, string(bytes(32)))
    closed.close()
    assert closed.consumed(64) is None


def test_more_than_was_received_cannot_be_consumed() -> None:
    with pytest.raises(LocalProtocolError):
        opened(ours=64).consumed(64)


def test_refused_with_a_reason() -> None:
    channel = Channel(OURS, window_bytes=64)
    channel.open(b"session")
    assert tell(channel, 92, u32(2) + string(b"no \xff") + string(b"en")) == Refused(2, b"no \xff")
    assert channel.finished
    assert channel.state is State.REFUSED
    violates(channel, 91, confirmation())


def test_a_refusal_without_a_language_is_one() -> None:
    channel = Channel(OURS, window_bytes=64)
    channel.open(b"session")
    assert tell(channel, 92, u32(1) + string(b"")) == Refused(1, b"")


def test_answers_are_counted() -> None:
    channel = opened()
    violates(opened(), 99)
    violates(opened(), 100)
    channel.request(b"quiet", False)
    channel.request(b"one", True)
    channel.request(b"two", True)
    assert tell(channel, 100) == Reply(False)
    assert tell(channel, 99) == Reply(True)
    violates(channel, 99)


def test_there_must_be_something_to_answer() -> None:
    channel = opened()
    tell(channel, 98, string(b"quiet") + boolean(False))
    with pytest.raises(LocalProtocolError):
        channel.answer(True)


def test_half_closed_each_way() -> None:
    channel = opened()
    channel.eof()
    assert channel.eof() is None
    assert tell(channel, 94, string(b"still")) == Data(0, memoryview(b"still"))
    assert channel.request(b"break", False)
    with pytest.raises(LocalProtocolError):
        channel.data(b"x")
    other = opened()
    tell(other, 96)
    assert other.data(b"still")[0] == 5
    violates(other, 94, string(b"x"))


def test_nothing_is_sent_after_close() -> None:
    channel = opened()
    tell(channel, 98, string(b"ask") + boolean(True))
    channel.close()
    assert channel.close() is None
    assert channel.eof() is None
    assert channel.answer(True) is None
    assert channel.room_bytes == 0
    with pytest.raises(LocalProtocolError):
        channel.request(b"late", False)
    with pytest.raises(LocalProtocolError):
        channel.data(b"x")


def test_what_was_under_way_when_we_closed_is_taken() -> None:
    channel = opened(ours=64)
    channel.request(b"asked", True)
    channel.close()
    assert tell(channel, 94, string(bytes(32))) is None
    assert tell(channel, 93, u32(5)) is None
    assert channel.room_bytes == 0
    assert tell(channel, 99) == Reply(True)
    # sshd says how the command ended even to who has closed already.
    assert tell(channel, 98, string(b"exit-status") + boolean(False) + u32(1)) is not None
    assert tell(channel, 96) == Eof()
    assert tell(channel, 97) == Closed()
    assert channel.finished


def test_the_window_counts_after_our_close_too() -> None:
    channel = opened(ours=64)
    channel.close()
    tell(channel, 94, string(bytes(32)))
    tell(channel, 94, string(bytes(32)))
    violates(channel, 94, string(b"x"))


@pytest.mark.parametrize("kind", range(93, 101))
def test_nothing_comes_after_the_peers_close(kind: int) -> None:
    channel = opened()
    channel.request(b"asked", True)
    tell(channel, 97)
    bodies = {93: u32(1), 94: string(b"x"), 95: u32(1) + string(b"x"), 98: string(b"x") + boolean(False)}
    violates(channel, kind, bodies.get(kind, b""))


@pytest.mark.parametrize("kind", [*range(93, 101), 90, 80, 127])
def test_nothing_but_the_answer_comes_before_it_is_open(kind: int) -> None:
    channel = Channel(OURS, window_bytes=64)
    channel.open(b"session")
    violates(channel, kind, u32(0))


@pytest.mark.parametrize("kind", [90, 91, 92, 80, 101, 127])
def test_nothing_else_comes_when_it_is_open(kind: int) -> None:
    violates(opened(), kind, confirmation())


def test_it_ends_once() -> None:
    channel = opened()
    tell(channel, 96)
    violates(channel, 96)


def test_a_packet_size_of_nothing_makes_no_sense() -> None:
    channel = Channel(OURS, window_bytes=64)
    channel.open(b"session")
    violates(channel, 91, confirmation(packet=0))
    with pytest.raises(RemoteProtocolError):
        Channel(OURS, window_bytes=64).accept(1, 100, 0)


def test_more_in_a_packet_than_allowed() -> None:
    violates(opened(ours=64, our_packet=32), 94, string(bytes(33)))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (93, u32(1)),
        (94, string(b"data")),
        (95, u32(1) + string(b"data")),
        (98, string(b"name") + boolean(True)),
        (91, confirmation()),
        (92, u32(1) + string(b"text")),
    ],
)
def test_every_message_cut_anywhere(kind: int, body: bytes) -> None:
    for length in range(len(body)):
        channel = opened() if kind > 92 else Channel(OURS, window_bytes=64)
        if channel.state is State.NEW:
            channel.open(b"session")
        violates(channel, kind, body[:length])


@pytest.mark.parametrize("kind", [93, 94, 95, 96, 97, 99, 100])
def test_bytes_too_many(kind: int) -> None:
    channel = opened()
    channel.request(b"asked", True)
    bodies = {93: u32(1), 94: string(b"x"), 95: u32(1) + string(b"x")}
    violates(channel, kind, bodies.get(kind, b"") + b"!")


def test_extended_data_has_a_stream() -> None:
    violates(opened(), 95, u32(0) + string(b"x"))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda channel: channel.data(b"x"),
        lambda channel: channel.eof(),
        lambda channel: channel.close(),
        lambda channel: channel.request(b"x", False),
        lambda channel: channel.answer(True),
    ],
)
def test_nothing_can_be_sent_before_it_is_open(misuse: Callable[[Channel], object]) -> None:
    for asked in (False, True):
        channel = Channel(OURS, window_bytes=64)
        if asked:
            channel.open(b"session")
        with pytest.raises(LocalProtocolError):
            misuse(channel)


def test_it_is_opened_once() -> None:
    channel = opened()
    with pytest.raises(LocalProtocolError):
        channel.open(b"session")
    with pytest.raises(LocalProtocolError):
        channel.accept(1, 1, 1)


@given(st.lists(st.tuples(st.integers(88, 102), st.binary(max_size=40)), max_size=30))
def test_whatever_comes_is_an_event_or_a_violation(packets: list[tuple[int, bytes]]) -> None:
    channel = opened()
    for kind, body in packets:
        try:
            tell(channel, kind, body)
        except RemoteProtocolError:
            break
        assert 0 <= channel.room_bytes < 2**32


@given(
    st.integers(1, 50),
    st.integers(1, 300),
    st.lists(st.one_of(st.binary(min_size=1, max_size=200), st.integers(1, 100)), max_size=40),
)
def test_what_is_sent_arrives_in_order_and_within_the_window(
    packet_bytes: int, window_bytes: int, steps: list[bytes | int]
) -> None:
    """Two machines, one as the peer of the other: it would find out whoever sends too much."""
    sender = opened(window=window_bytes, packet=packet_bytes)
    receiver = Channel(1, window_bytes=window_bytes, packet_bytes=packet_bytes)
    receiver.accept(OURS, 64, 32)
    sent, arrived, unread = b"", b"", 0
    for step in steps:
        if isinstance(step, bytes):
            count, packets = sender.data(step)
            sent += step[:count]
            for packet in packets:
                event = tell(receiver, packet[0], wire(packet)[5:])
                assert isinstance(event, Data)
                arrived += event.data
                unread += len(event.data)
        else:
            count = min(step, unread)
            unread -= count
            adjust = receiver.consumed(count) if count else None
            if adjust is not None:
                tell(sender, 93, wire(adjust)[5:])
        assert sender.room_bytes + unread <= window_bytes
    assert arrived == sent
