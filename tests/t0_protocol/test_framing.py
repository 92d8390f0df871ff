"""Packets and the descriptors beside them, in every way the kernel may deliver both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import RemoteProtocolError
from mux.protocol.framing import MAX_WAITING_DESCRIPTORS, PacketBuffer, frame
from tests.t0_protocol.feeding import every_way


def buffer(limit_bytes: int = 100) -> PacketBuffer:
    return PacketBuffer(least_bytes=4, limit_bytes=limit_bytes)


def test_a_frame_is_the_length_and_the_packet() -> None:
    assert frame(b"four") == bytes.fromhex("00000004666f7572")


def test_packets_come_out_whole_and_in_order_however_they_come_in() -> None:
    for chunks in every_way(frame(b"first") + frame(b"second") + b"\0\0\0"):
        received = buffer()
        packets = []
        for chunk in chunks:
            received.receive(chunk)
            while (packet := received.next_packet()) is not None:
                packets.append(packet)
        assert packets == [b"first", b"second"]
        assert received.take_rest() == b"\0\0\0"
        assert len(received) == 0


@pytest.mark.parametrize("length", [0, 1, 2, 3, 101, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_by_its_four_bytes(length: int) -> None:
    received = buffer()
    received.receive(length.to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match=f"{length} bytes"):
        received.next_packet()


@pytest.mark.parametrize("length", [4, 100])
def test_the_bounds_themselves_are_allowed(length: int) -> None:
    received = buffer()
    received.receive(frame(bytes(length)))
    assert received.next_packet() == bytes(length)


def test_descriptors_are_taken_with_their_bytes_when_all_came_in_one_call_with_the_packet() -> None:
    received = buffer()
    received.receive(frame(b"need three") + b"\0\0\0" + frame(b"next"), (7, 8, 9))
    assert received.next_packet() == b"need three"
    assert received.next_descriptors(3) == (7, 8, 9)
    assert received.next_packet() == b"next"


def test_descriptors_are_awaited_one_by_one() -> None:
    received = buffer()
    received.receive(frame(b"need three") + b"\0", (7,))
    assert received.next_packet() == b"need three"
    assert received.next_descriptors(3) is None
    received.receive(b"\0", (8,))
    assert received.next_descriptors(3) is None
    received.receive(b"\0", (9,))
    assert received.next_descriptors(3) == (7, 8, 9)
    assert len(received) == 0


def test_a_placeholder_without_its_descriptor_is_refused() -> None:
    received = buffer()
    received.receive(b"\0\0", (7,))
    with pytest.raises(RemoteProtocolError, match="1 of 3"):
        received.next_descriptors(3)
    assert received.take_surplus() == (7,)


def test_descriptors_nobody_asked_for_are_given_back_and_may_not_pile_up() -> None:
    received = buffer()
    received.receive(b"\0", range(MAX_WAITING_DESCRIPTORS))
    assert received.next_packet() is None
    received.receive(b"", (99,))
    with pytest.raises(RemoteProtocolError):
        received.next_packet()
    assert received.take_surplus() == (*range(MAX_WAITING_DESCRIPTORS), 99)
    assert received.take_surplus() == ()


@given(st.lists(st.binary(max_size=40)))
def test_garbage_is_split_or_refused(chunks: list[bytes]) -> None:
    received = buffer(limit_bytes=20)
    try:
        for chunk in chunks:
            received.receive(chunk)
            while (packet := received.next_packet()) is not None:
                assert 4 <= len(packet) <= 20
    except RemoteProtocolError:
        pass
