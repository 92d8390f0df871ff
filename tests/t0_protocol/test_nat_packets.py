"""Frames of proxy mode and of PuTTY's sharing, to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import RemoteProtocolError
from mux.protocol.packets import LARGEST_FRAME_BYTES, PROXY, PUTTY, Framing

from .feeding import every_way

# As OpenSSH's client sends it in proxy mode, and PuTTY's.
OPEN = bytes.fromhex("0000000773657373696f6e 00000000 00200000 00008000")
CAPTURED = bytes.fromhex("00000019 00 5a") + OPEN
CAPTURED_PUTTY = bytes.fromhex("00000018 5a") + OPEN


def split(framing: Framing, pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bytes]:
    """What is in a stream that comes in pieces, and the beginning of what is not there yet."""
    found = []
    rest = b""
    for piece in pieces:
        data = memoryview(rest + piece)
        start = 0
        while (frame := framing.next(data, start)) is not None:
            found.append((frame.kind, bytes(frame.payload)))
            start = frame.end
        rest = bytes(data[start:])
    return found, rest


def test_as_captured() -> None:
    assert PROXY.pack(90, OPEN) == CAPTURED
    assert PUTTY.pack(90, OPEN) == CAPTURED_PUTTY
    for pieces in every_way(CAPTURED + CAPTURED):
        assert split(PROXY, pieces) == ([(90, OPEN), (90, OPEN)], b"")
    for pieces in every_way(CAPTURED_PUTTY + CAPTURED_PUTTY):
        assert split(PUTTY, pieces) == ([(90, OPEN), (90, OPEN)], b"")


def test_short_ones_are_filled_up_for_openssh() -> None:
    assert PROXY.pack(81, b"") == bytes.fromhex("00000005 03 51 000000")
    assert PROXY.pack(81, b"ab") == bytes.fromhex("00000005 01 51 6162 00")
    assert PROXY.pack(81, b"abc") == bytes.fromhex("00000005 00 51 616263")
    assert PUTTY.pack(81, b"") == bytes.fromhex("00000001 51")


def test_padding_is_taken_off() -> None:
    assert split(PROXY, [bytes.fromhex("00000005 03 51 000000")]) == ([(81, b"")], b"")
    assert split(PROXY, [bytes.fromhex("00000006 02 50 61620000")]) == ([(80, b"ab")], b"")
    with pytest.raises(RemoteProtocolError, match="4 bytes of padding in a packet of 5"):
        split(PROXY, [bytes.fromhex("00000005 04 51 000000")])


@pytest.mark.parametrize(
    ("framing", "length"),
    [(PROXY, 0), (PROXY, 1), (PUTTY, 0), *((f, n) for f in (PROXY, PUTTY) for n in (262145, 0xFFFFFFFF, 0x80000000))],
)
def test_lengths_out_of_bounds(framing: Framing, length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a packet of {length} bytes"):
        framing.next(memoryview(length.to_bytes(4, "big")), 0)


def test_the_longest() -> None:
    for framing in (PROXY, PUTTY):
        data = LARGEST_FRAME_BYTES.to_bytes(4, "big") + bytes(LARGEST_FRAME_BYTES)
        frame = framing.next(memoryview(data), 0)
        assert frame is not None and frame.end == len(data)
        assert framing.next(memoryview(data)[:-1], 0) is None


@given(st.sampled_from([PROXY, PUTTY]), st.integers(0, 255), st.binary(), st.binary(min_size=4), st.data())
def test_there_and_back(framing: Framing, kind: int, first: bytes, rest: bytes, data: st.DataObject) -> None:
    stream = framing.pack(kind, first, len(rest)) + rest + framing.pack(kind, first)
    cut = data.draw(st.integers(0, len(stream)))
    assert split(framing, [stream[:cut], stream[cut:]]) == ([(kind, first + rest), (kind, first)], b"")


@given(st.sampled_from([PROXY, PUTTY]), st.lists(st.binary(max_size=40)))
def test_garbage(framing: Framing, pieces: list[bytes]) -> None:
    try:
        found, rest = split(framing, pieces)
    except RemoteProtocolError:
        return
    overhead = 6 if framing.padded else 5
    padding = sum(map(len, pieces)) - len(rest) - sum(overhead + len(payload) for _, payload in found)
    assert 0 <= padding <= 255 * len(found)
