"""RFC 4251 section 5: each type's bytes in both directions, its ends, and what is too short or too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import WireError
from mux.protocol import wire
from mux.protocol.wire import Reader

EXACT: list[tuple[Callable[[Any], bytes], Callable[[Reader], Any], Any, str]] = [
    (wire.u8, Reader.u8, 0, "00"),
    (wire.u8, Reader.u8, 255, "ff"),
    (wire.u32, Reader.u32, 0, "00000000"),
    (wire.u32, Reader.u32, 699921578, "29b7f4aa"),
    (wire.u32, Reader.u32, 2**32 - 1, "ffffffff"),
    (wire.u64, Reader.u64, 0x0102030405060708, "0102030405060708"),
    (wire.u64, Reader.u64, 2**64 - 1, "ffffffffffffffff"),
    (wire.boolean, Reader.boolean, True, "01"),
    (wire.boolean, Reader.boolean, False, "00"),
    (wire.string, Reader.string, b"", "00000000"),
    (wire.string, Reader.string, b"testing", "0000000774657374696e67"),
    (wire.string, Reader.string, b"\x00\xff", "0000000200ff"),
]


@pytest.mark.parametrize(("write", "read", "value", "exact"), EXACT)
def test_exact_bytes_both_ways(
    write: Callable[[Any], bytes], read: Callable[[Reader], Any], value: object, exact: str
) -> None:
    data = bytes.fromhex(exact)
    assert write(value) == data
    reader = Reader(data)
    assert read(reader) == value
    reader.end()


@pytest.mark.parametrize(("write", "read", "value", "exact"), EXACT)
def test_every_shorter_message_is_refused(
    write: Callable[[Any], bytes], read: Callable[[Reader], Any], value: object, exact: str
) -> None:
    data = bytes.fromhex(exact)
    for length in range(len(data)):
        with pytest.raises(WireError):
            read(Reader(data[:length]))


def test_any_byte_but_zero_is_true() -> None:
    assert Reader(b"\x02").boolean() is True


def test_bytes_that_are_left_are_refused_at_the_end_and_given_as_the_rest() -> None:
    reader = Reader(memoryview(b"\x01abc"))
    reader.u8()
    assert not reader.at_end()
    with pytest.raises(WireError, match="3 bytes too many"):
        reader.end()
    assert reader.rest() == b"abc"
    assert reader.rest() == b""
    reader.end()


def test_strings_are_copies() -> None:
    data = bytearray(wire.string(b"kept"))
    taken = Reader(data).string()
    data[:] = bytes(len(data))
    assert taken == b"kept"


@pytest.mark.parametrize(("write", "limit"), [(wire.u8, 2**8), (wire.u32, 2**32), (wire.u64, 2**64)])
def test_numbers_outside_of_their_range_are_not_written(write: Callable[[int], bytes], limit: int) -> None:
    write(limit - 1)
    for number in (-1, limit):
        with pytest.raises(OverflowError):
            write(number)


@given(st.binary(max_size=64), st.lists(st.sampled_from(["u8", "u32", "u64", "boolean", "string", "rest"])))
def test_garbage_is_read_or_refused(data: bytes, kinds: list[str]) -> None:
    reader = Reader(data)
    taken = 0
    try:
        for kind in kinds:
            value = getattr(reader, kind)()
            taken += len(value) if isinstance(value, bytes) else 1
        reader.end()
    except WireError:
        pass
    assert taken <= len(data)
