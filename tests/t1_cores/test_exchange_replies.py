"""The client's half of a conversation: replies in every shape a stream may give them, and where their bytes go."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.exchange import Exchange, Pending
from sshmuxfs.sftp.protocol import Attributes, Entry, Status, StatusError
from tests.t0_protocol.feeding import every_way
from tests.t1_cores import replies
from tests.t1_cores.replies import Stream, greeted

FILE = Attributes(5, 1000, 100, 0o100644, 1, 2)
BLOCK_BYTES = 255 * 1024
HEADER_BYTES = 13  # of a DATA: length, type, id, length of the data


def call(exchange: Exchange, request: sftp.Request) -> Pending:
    return exchange.request(request, 0.0)[0]


def read(exchange: Exchange, buffer: bytearray, offset: int = 0) -> Pending:
    return exchange.read(b"h", offset, memoryview(buffer), 0.0)[0]


def error_code(pending: Pending) -> int:
    assert isinstance(pending.error, StatusError)
    return pending.error.code


def test_the_first_packet_is_init() -> None:
    assert Exchange.start() == bytes.fromhex("00000005 01 00000003")


def test_the_greeting_comes_in_every_shape() -> None:
    extensions = [(b"posix-rename@openssh.com", b"1"), (b"limits@openssh.com", b"1")]
    for chunks in every_way(replies.version(3, extensions)):
        exchange = Exchange()
        stream = Stream(exchange)
        for chunk in chunks[:-1]:
            stream.deliver(chunk)
        assert exchange.extensions is None
        stream.deliver(chunks[-1])
        assert exchange.extensions == dict(extensions)


def test_a_later_version_is_taken_as_ours() -> None:
    exchange = Exchange()
    Stream(exchange).deliver(replies.version(6))
    assert exchange.extensions == {}


def test_packets_carry_ids_that_count_up() -> None:
    exchange = greeted()
    first, packet = exchange.request(sftp.Lstat(b"/a"), 0.0)
    assert (first.request_id, packet) == (0, bytes.fromhex("0000000b 07 00000000 00000002 2f61"))
    second, packet = exchange.read(b"h", 3, memoryview(bytearray(4)), 0.0)
    expected = bytes.fromhex("00000016 05 00000001 00000001 68 0000000000000003 00000004")
    assert (second.request_id, packet) == (1, expected)
    third, header = exchange.write(b"h", 3, 4, 0.0)
    assert (third.request_id, header) == (
        2,
        bytes.fromhex("0000001a 06 00000002 00000001 68 0000000000000003 00000004"),
    )
    assert exchange.outstanding == 3
    assert exchange.oldest() is first


def conversation(exchange: Exchange) -> tuple[bytes, list[Pending], bytearray]:
    """One request of each kind of reply, and the replies."""
    buffer = bytearray(8)
    asked = [
        call(exchange, sftp.Lstat(b"/a")),
        call(exchange, sftp.Open(b"/a", 1, sftp.NO_ATTRIBUTES)),
        read(exchange, buffer),
        call(exchange, sftp.Readdir(b"h")),
        call(exchange, sftp.Remove(b"/a")),
        call(exchange, sftp.GetLimits()),
        call(exchange, sftp.Lstat(b"/b")),
    ]
    stream = b"".join(
        (
            replies.attributes(0, FILE),
            replies.handle(1, b"\0\0\0\1"),
            replies.data(2, b"content"),
            replies.names(3, (b"x", FILE), (b"y", FILE)),
            replies.status(4),
            replies.extended(5, bytes(32)),
            replies.status(6, Status.NO_SUCH_FILE, b"not there"),
        )
    )
    return stream, asked, buffer


def test_replies_come_in_every_shape() -> None:
    stream, _, _ = conversation(greeted())
    for chunks in every_way(stream):
        exchange = greeted()
        _, asked, buffer = conversation(exchange)
        completed = [pending for chunk in chunks for pending in Stream(exchange).deliver(chunk)]
        assert completed == asked
        assert all(pending.done for pending in asked)
        assert [pending.result for pending in asked] == [
            *(FILE, b"\0\0\0\1", 7, [Entry(b"x", FILE), Entry(b"y", FILE)], None, bytes(32), None)
        ]
        assert bytes(buffer) == b"content\0"
        assert error_code(asked[-1]) == Status.NO_SUCH_FILE
        assert [pending.error for pending in asked[:-1]] == [None] * 6
        assert exchange.outstanding == 0


def test_many_replies_in_one_receive_and_over_its_edges() -> None:
    """2,000 replies, in receives of every awkward size: more than the packet buffer holds at once."""
    for most_bytes in (1_000_000, 65_536, 65_535, 4097, 13):
        exchange = greeted()
        asked = [call(exchange, sftp.Lstat(b"/%d" % number)) for number in range(2000)]
        values = [Attributes(number, 1, 1, 0o100644, 1, 1) for number in range(2000)]
        stream = b"".join(replies.attributes(number, value) for number, value in enumerate(values))
        assert Stream(exchange).deliver(stream, most_bytes) == asked
        assert [pending.result for pending in asked] == values


def test_a_reply_longer_than_the_buffer_makes_it_grow() -> None:
    for most_bytes in (None, 1000):
        exchange = greeted()
        pending = call(exchange, sftp.Readdir(b"h"))
        entries = [(b"%0200d" % number, FILE) for number in range(900)]
        reply = replies.names(0, *entries)
        assert 200_000 < len(reply) <= 256 * 1024
        Stream(exchange).deliver(reply, most_bytes)
        assert [name for name, _ in pending.result] == [name for name, _ in entries]


def test_out_of_order() -> None:
    exchange = greeted()
    buffers = [bytearray(4) for _ in range(3)]
    asked = [read(exchange, buffer) for buffer in buffers]
    stat = call(exchange, sftp.Lstat(b"/a"))
    stream = replies.data(2, b"2222") + replies.attributes(3, FILE) + replies.data(0, b"0000") + replies.data(1, b"11")
    for chunks in every_way(stream):
        exchange = greeted()
        buffers = [bytearray(4) for _ in range(3)]
        asked = [read(exchange, buffer) for buffer in buffers]
        stat = call(exchange, sftp.Lstat(b"/a"))
        completed = [pending for chunk in chunks for pending in Stream(exchange).deliver(chunk)]
        assert completed == [asked[2], stat, asked[0], asked[1]]
        assert [bytes(buffer) for buffer in buffers] == [b"0000", b"11\0\0", b"2222"]
        assert [pending.result for pending in asked] == [4, 2, 4]


def test_reads_of_no_bytes_at_the_end_and_of_an_empty_sink() -> None:
    for chunks in every_way(replies.data(0, b"") + replies.status(1, Status.EOF) + replies.data(2, b"")):
        exchange = greeted()
        asked = [read(exchange, bytearray(4)), read(exchange, bytearray(4)), read(exchange, bytearray(0))]
        completed = [pending for chunk in chunks for pending in Stream(exchange).deliver(chunk)]
        assert completed == asked
        assert asked[0].result == asked[2].result == 0
        assert error_code(asked[1]) == Status.EOF


# -- where the bytes go -----------------------------------------------------------------------------------------------


def test_only_headers_of_a_stream_of_reads_go_through_the_packet_buffer() -> None:
    """20 blocks answered in order by a stream that is always full: each byte is received where it belongs."""
    exchange = greeted()
    buffers = [bytearray(BLOCK_BYTES) for _ in range(20)]
    for number, buffer in enumerate(buffers):
        read(exchange, buffer, number * BLOCK_BYTES)
    content = [bytes([number + 1]) * BLOCK_BYTES for number in range(20)]
    stream = Stream(exchange)
    stream.deliver(b"".join(replies.data(number, block) for number, block in enumerate(content)))
    assert buffers == content
    assert [stream.received_into(buffer) for buffer in buffers] == [BLOCK_BYTES] * 20
    others = set(stream.into) - {id(buffer) for buffer in buffers}
    assert sum(stream.into[each] for each in others) == 20 * HEADER_BYTES
    assert stream.receives <= 21  # a payload and the next header come together
    assert exchange.delivered_bytes == 20 * BLOCK_BYTES


def test_where_bytes_go_is_said_as_views_of_the_callers_buffer() -> None:
    exchange = greeted()
    buffer = bytearray(10)
    exchange.read(b"h", 0, memoryview(buffer)[2:8], 0.0)
    stream = Stream(exchange)
    stream.deliver(replies.data(0, b"abcdef")[:HEADER_BYTES])
    sink, header = exchange.receive_buffers()
    assert sink.obj is buffer
    assert len(sink) == 6
    assert header.obj is not buffer
    sink[:2] = b"ab"
    exchange.bytes_received(2, 0.0)
    sink = exchange.receive_buffers()[0]
    assert sink.obj is buffer
    assert len(sink) == 4
    stream.deliver(b"cdef")
    assert bytes(buffer) == b"\0\0abcdef\0\0"


def test_a_read_behind_another_reply_costs_at_most_a_buffer_of_copies() -> None:
    """The guess of what comes next is wrong here; all is still served right."""
    exchange = greeted()
    stat = call(exchange, sftp.Lstat(b"/a"))
    buffer = bytearray(BLOCK_BYTES)
    pending = read(exchange, buffer)
    content = bytes(range(256)) * 1020
    stream = Stream(exchange)
    stream.deliver(replies.attributes(0, FILE) + replies.data(1, content))
    assert (stat.result, pending.result, bytes(buffer)) == (FILE, BLOCK_BYTES, content)
    assert stream.received_into(buffer) > BLOCK_BYTES - 65536


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 300)), min_size=1, max_size=12), st.data())
def test_any_order_any_split(asked: list[tuple[int, int]], draw: st.DataObject) -> None:
    """Requests of all kinds, answered in any order, delivered in any pieces."""
    exchange = greeted()
    stream = b""
    expected: dict[int, object] = {}
    sinks: dict[int, bytearray] = {}
    parts = []
    for number, (kind, size) in enumerate(asked):
        if kind < 5:
            sinks[number] = bytearray(size)
            read(exchange, sinks[number])
            expected[number] = size
            parts.append(replies.data(number, bytes([number + 1]) * size))
        elif kind < 8:
            call(exchange, sftp.Lstat(b"/"))
            expected[number] = Attributes(size=size)
            parts.append(replies.attributes(number, Attributes(size=size)))
        else:
            call(exchange, sftp.Open(b"/", 1, sftp.NO_ATTRIBUTES))
            expected[number] = bytes(size % 257)
            parts.append(replies.handle(number, bytes(size % 257)))
    order = draw.draw(st.permutations(range(len(asked))))
    stream = b"".join(parts[number] for number in order)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    completed: list[Pending] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        completed += Stream(exchange).deliver(stream[start:end])
    assert [pending.request_id for pending in completed] == order
    assert {pending.request_id: pending.result for pending in completed} == expected
    for number, sink in sinks.items():
        assert bytes(sink) == bytes([number + 1]) * len(sink)


def test_what_is_done_is_told_before_anyone_wakes_up() -> None:
    order: list[str] = []

    class Bell:
        def set(self) -> None:
            order.append("woken")

    exchange = greeted()
    pending = call(exchange, sftp.Lstat(b"/a"))
    pending.event = Bell()
    pending.on_done = lambda each: order.append(f"told {each.result}")
    Stream(exchange).deliver(replies.attributes(0, Attributes(size=1))[:-1])
    assert order == []
    Stream(exchange).deliver(replies.attributes(0, Attributes(size=1))[-1:])
    assert order == [f"told {Attributes(size=1)}", "woken"]


def test_ids_wrap_around_and_pass_those_in_use() -> None:
    exchange = greeted()
    first = call(exchange, sftp.Lstat(b"/first"))
    second = call(exchange, sftp.Lstat(b"/second"))
    exchange.abandon(second, TimeoutError())
    exchange._next_id = 0xFFFFFFFE  # 4 billion requests later
    ids = [call(exchange, sftp.Lstat(b"/more")).request_id for _ in range(4)]
    assert ids == [0xFFFFFFFE, 0xFFFFFFFF, 2, 3]
    completed = Stream(exchange).deliver(replies.attributes(1, FILE) + replies.attributes(0, FILE))
    assert completed == [first]


def test_the_length_word_of_requests_counts_what_follows() -> None:
    exchange = greeted()
    for request in (sftp.Lstat(b"/a" * 100), sftp.Rename(b"/a", b"/b"), sftp.GetLimits()):
        packet = exchange.request(request, 0.0)[1]
        assert struct.unpack(">I", packet[:4])[0] == len(packet) - 4
