"""A server that breaks the protocol: always ProtocolViolation, never another exception, never memory without bound."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.exchange import MAX_ABANDONED, MAX_REPLY_BYTES, Exchange, Pending, ProtocolViolation
from sshmuxfs.sftp.protocol import Attributes, Type
from tests.t0_protocol.feeding import every_way
from tests.t1_cores import replies
from tests.t1_cores.replies import Stream, greeted, packet


class GaveUp(Exception):
    """What the waiter of an abandoned request is told."""


def deliver(exchange: Exchange, chunks: list[bytes]) -> None:
    for chunk in chunks:
        Stream(exchange).deliver(chunk)


def asking() -> tuple[Exchange, list[Pending], bytearray]:
    """An exchange with a LSTAT (0), a READ of 8 bytes (1) and a REMOVE (2) under way."""
    exchange = greeted()
    buffer = bytearray(8)
    asked = [
        exchange.request(sftp.Lstat(b"/a"), 0.0)[0],
        exchange.read(b"h", 0, memoryview(buffer), 0.0)[0],
        exchange.request(sftp.Remove(b"/a"), 0.0)[0],
    ]
    return exchange, asked, buffer


BROKEN = {
    "an unknown id": replies.status(3),
    "an unknown id, with DATA": replies.data(77, b"x"),
    "the same reply twice": replies.status(2) * 2,
    "the same DATA twice": replies.data(1, b"12345678") * 2,
    "attributes for a READ": replies.attributes(1, Attributes()),
    "DATA for a LSTAT": replies.data(0, b"x"),
    "a handle for a REMOVE": replies.handle(2, b"h"),
    "a request": packet(Type.LSTAT, struct.pack(">I", 0) + replies.string(b"/a")),
    "VERSION again": replies.version(),
    "an unknown type": packet(99, struct.pack(">I", 0)),
    "more DATA than was asked for": replies.data(1, b"123456789"),
    "OK for a LSTAT": replies.status(0),
    "OK for a READ": replies.status(1),
    "attributes cut short": packet(Type.ATTRS, struct.pack(">II", 0, 0xF)),
    "a STATUS without a code": packet(Type.STATUS, struct.pack(">I", 2)),
    "a DATA that is shorter than it says": packet(Type.DATA, struct.pack(">II", 1, 8) + b"1234567"),
    "a DATA that is longer than it says": packet(Type.DATA, struct.pack(">II", 1, 4) + b"12345"),
    "a DATA without a length": packet(Type.DATA, struct.pack(">I", 1)) + bytes(8),
    **{f"a length of {length}": struct.pack(">I", length) + bytes(16) for length in range(5)},
    "a length of 2 GiB": struct.pack(">IBI", 0x7FFFFFFF, Type.ATTRS, 0),
    "a length of 4 GiB": struct.pack(">IBI", 0xFFFFFFFF, Type.ATTRS, 0),
    "a length over the limit": struct.pack(">IBI", MAX_REPLY_BYTES + 1, Type.ATTRS, 0),
    "a DATA of 2 GiB": struct.pack(">IBII", 0x7FFFFFFF, Type.DATA, 1, 0x7FFFFFFF - 9),
    "a shell's words": b"bash: warning: setlocale: LC_ALL: cannot change locale\n",
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_reply_ends_the_channel_in_every_shape(reply: bytes) -> None:
    for chunks in every_way(reply):
        exchange, asked, _ = asking()
        with pytest.raises(ProtocolViolation):
            deliver(exchange, chunks)
        exchange.fail_all(GaveUp)
        assert all(pending.done for pending in asked), "someone would wait for ever"


def test_a_name_list_that_lies_about_its_length() -> None:
    for count in (2, 0xFFFFFFFF):
        exchange = greeted()
        pending, _ = exchange.request(sftp.Readdir(b"h"), 0.0)
        one = bytes.fromhex("00000001 61 00000000 00000000")
        with pytest.raises(ProtocolViolation):
            Stream(exchange).deliver(packet(Type.NAME, struct.pack(">II", 0, count) + one))
        exchange.fail_all(GaveUp)
        assert isinstance(pending.error, GaveUp)


GREETINGS = {
    "version 2": (replies.version(2), "speaks SFTP version 2"),
    "version 0": (replies.version(0), "speaks SFTP version 0"),
    "a banner": (b"Welcome to example.org!\r\n", "did not speak SFTP.*Welco"),
    "an escape sequence": (b"\x1b[2J\x1b]0;owned\x07 hello", r"did not speak SFTP.*\\x1b"),
    "a reply": (replies.status(0), "did not speak SFTP"),
    "no version": (packet(Type.VERSION, b"\0\0"), "did not speak SFTP"),
    "an extension cut short": (packet(Type.VERSION, struct.pack(">II", 3, 9) + b"short"), "9 bytes"),
    "an extension without a value": (packet(Type.VERSION, struct.pack(">I", 3) + replies.string(b"a")), "cut short"),
    "too long": (struct.pack(">IB", MAX_REPLY_BYTES + 1, Type.VERSION) + bytes(9), "did not speak SFTP"),
    "lengths of zero": (bytes(20), "did not speak SFTP"),
}


@pytest.mark.parametrize(("greeting", "message"), GREETINGS.values(), ids=GREETINGS.keys())
def test_a_greeting_that_is_none(greeting: bytes, message: str) -> None:
    for chunks in every_way(greeting):
        exchange = Exchange()
        with pytest.raises(ProtocolViolation, match=message) as caught:
            deliver(exchange, chunks)
        assert "\x1b" not in str(caught.value)
        assert "\x07" not in str(caught.value)


def test_a_violation_leaves_the_others_to_be_failed_and_keeps_what_was_answered() -> None:
    exchange, (stat, read, remove), _ = asking()
    with pytest.raises(ProtocolViolation):
        Stream(exchange).deliver(replies.attributes(0, Attributes()) + replies.status(9))
    assert stat.result == Attributes()
    assert not read.done
    assert not remove.done
    exchange.fail_all(GaveUp)
    assert isinstance(read.error, GaveUp)
    assert isinstance(remove.error, GaveUp)
    assert stat.error is None


# -- requests that nobody waits for any more --------------------------------------------------------------------------


def test_the_reply_of_an_abandoned_request_is_dropped_once() -> None:
    late = replies.attributes(0, Attributes()) + replies.data(1, b"1234") + replies.status(2)
    for chunks in every_way(late):
        exchange, asked, buffer = asking()
        for pending in asked:
            exchange.abandon(pending, GaveUp())
            assert isinstance(pending.error, GaveUp)
        assert exchange.outstanding == 0
        for chunk in chunks:
            assert Stream(exchange).deliver(chunk) == []
        assert bytes(buffer) == bytes(8), "the memory of a READ that was given up is not its own any more"
        for reply in (replies.status(0), replies.data(1, b""), replies.status(2)):
            with pytest.raises(ProtocolViolation):
                Stream(exchange).deliver(reply)


def test_any_reply_does_for_a_request_that_was_abandoned() -> None:
    exchange, (stat, read, remove), _ = asking()
    exchange.abandon(stat, GaveUp())
    exchange.abandon(read, GaveUp())
    Stream(exchange).deliver(replies.data(0, bytes(1000)) + replies.names(1, (b"a", Attributes())))
    assert Stream(exchange).deliver(replies.status(2)) == [remove]


def test_a_read_abandoned_in_the_middle_of_its_payload() -> None:
    for arrived in range(1, 8):
        exchange, (_, read, remove), buffer = asking()
        reply = replies.data(1, b"12345678")
        Stream(exchange).deliver(reply[: 13 + arrived])
        exchange.abandon(read, GaveUp())
        assert isinstance(read.error, GaveUp)
        completed = Stream(exchange).deliver(reply[13 + arrived :] + replies.status(2))
        assert completed == [remove]
        assert isinstance(read.error, GaveUp)
        assert read.result is None
        assert len(buffer) == 8
        with pytest.raises(ProtocolViolation):
            Stream(exchange).deliver(reply)


def test_abandoning_what_is_done_changes_nothing() -> None:
    exchange, (stat, *_), _ = asking()
    Stream(exchange).deliver(replies.attributes(0, Attributes()))
    exchange.abandon(stat, GaveUp())
    assert stat.error is None
    assert stat.result == Attributes()


def test_failing_all_reaches_a_read_in_the_middle_of_its_payload() -> None:
    exchange, asked, _ = asking()
    Stream(exchange).deliver(replies.data(1, b"12345678")[:-1])
    exchange.fail_all(GaveUp)
    assert [type(pending.error) for pending in asked] == [GaveUp] * 3
    assert len({id(pending.error) for pending in asked}) == 3, "each waiter raises an exception of its own"


def test_a_server_that_leaves_thousands_unanswered_has_broken_the_protocol() -> None:
    exchange = greeted()
    pending = [exchange.request(sftp.Lstat(b"/"), 0.0)[0] for _ in range(MAX_ABANDONED + 1)]
    for each in pending[:-1]:
        exchange.abandon(each, GaveUp())
    with pytest.raises(ProtocolViolation, match="unanswered"):
        exchange.abandon(pending[-1], GaveUp())
    assert pending[-1].done


# -- anything ---------------------------------------------------------------------------------------------------------


def settled_or_refused(exchange: Exchange, asked: list[Pending], chunks: list[bytes]) -> None:
    try:
        deliver(exchange, chunks)
    except ProtocolViolation:
        pass
    exchange.fail_all(GaveUp)
    assert all(pending.done and (pending.error is None or pending.result is None) for pending in asked)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_in_place_of_a_greeting(chunks: list[bytes]) -> None:
    settled_or_refused(Exchange(), [], chunks)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_in_place_of_replies(chunks: list[bytes]) -> None:
    exchange, asked, _ = asking()
    settled_or_refused(exchange, asked, chunks)


GOOD = [
    *(replies.attributes(0, Attributes(size=1)), replies.data(1, b"1234567"), replies.status(2)),
    *(replies.status(0, 2), replies.status(1, 1), replies.status(2, 4), replies.data(1, b"")),
]


@given(st.lists(st.sampled_from(GOOD), max_size=6), st.data())
def test_replies_with_damage(parts: list[bytes], draw: st.DataObject) -> None:
    """Replies that could be, with some bytes changed, in any pieces."""
    stream = bytearray(b"".join(parts))
    for _ in range(draw.draw(st.integers(0, 3))):
        if stream:
            stream[draw.draw(st.integers(0, len(stream) - 1))] = draw.draw(st.integers(0, 255))
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [bytes(stream[a:b]) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    exchange, asked, _ = asking()
    settled_or_refused(exchange, asked, chunks)


def test_what_a_server_announces_takes_no_memory() -> None:
    """The longest reply allowed, announced 200 times and abandoned; only what arrives is ever held."""
    exchange = greeted()
    data_bytes = MAX_REPLY_BYTES - 9
    tracemalloc.start()
    try:
        for _ in range(200):
            pending, _ = exchange.read(b"h", 0, memoryview(bytearray(16)), 0.0)
            exchange.abandon(pending, GaveUp())
            Stream(exchange).deliver(replies.data(pending.request_id, bytes(data_bytes)))
        exchange.request(sftp.Readdir(b"h"), 0.0)
        Stream(exchange).deliver(struct.pack(">IBI", MAX_REPLY_BYTES, Type.NAME, 200))
        assert tracemalloc.get_traced_memory()[0] < 4 * MAX_REPLY_BYTES
    finally:
        tracemalloc.stop()
