"""A session on PuTTY's bare protocol, byte by byte: what goes up, what comes down, and where it is put."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mux.errors import LocalProtocolError, RemoteProtocolError
from mux.protocol import bare
from mux.protocol.bare_session import NUMBER, PACKET_BYTES, WINDOW_BYTES, BareSession
from mux.protocol.connection import Message
from mux.protocol.wire import boolean, string, u32

REMOTE = 5
OURS = u32(NUMBER)
THEIRS = u32(REMOTE)


def packet(kind: int, *parts: bytes) -> bytes:
    return bare.frame(kind, *parts, limit_bytes=1 << 20)


def confirmation(window_bytes: int = 1 << 21, packet_bytes: int = 32768) -> bytes:
    return packet(Message.CHANNEL_OPEN_CONFIRMATION, OURS, THEIRS, u32(window_bytes), u32(packet_bytes))


def data(text: bytes) -> bytes:
    return packet(Message.CHANNEL_DATA, OURS, string(text))


def request(name: bytes, want_reply: bool, body: bytes = b"") -> bytes:
    return packet(Message.CHANNEL_REQUEST, OURS, string(name), boolean(want_reply), body)


EOF = packet(Message.CHANNEL_EOF, OURS)
CLOSE = packet(Message.CHANNEL_CLOSE, OURS)


def said(core: BareSession) -> list[tuple[int, bytes]]:
    """The packets in `outgoing`, which are then sent."""
    found = split(bytes(core.outgoing))
    core.outgoing.clear()
    return found


def split(stream: bytes) -> list[tuple[int, bytes]]:
    found = []
    while stream:
        (length,) = struct.unpack_from(">I", stream)
        assert 1 <= length <= 16396
        assert len(stream) >= 4 + length
        found.append((stream[4], stream[5 : 4 + length]))
        stream = stream[4 + length :]
    return found


def receive(
    core: BareSession, stream: bytes, piece: int = 1 << 20, sink_bytes: int = 1 << 20, got: bytearray | None = None
) -> bytes:
    """Feed it in pieces, as a socket would; return what the caller got, which `got` has even if it fails."""
    got = bytearray() if got is None else got
    sink = memoryview(bytearray(sink_bytes))
    while stream or core.ready:
        count = core.take([sink])
        if not count:
            rest = stream[:piece]
            taken = 0
            for place in core.buffers([sink]):
                part = rest[taken : taken + len(place)]
                place[: len(part)] = part
                taken += len(part)
            stream = stream[taken:]
            count = core.received(taken)
        got += sink[:count]
        core.consumed(count)
    return bytes(got)


def opened(**arguments: int) -> BareSession:
    core = BareSession()
    core.open()
    receive(core, confirmation(**arguments))
    assert core.opened
    core.start(b"sftp", subsystem=True)
    core.outgoing.clear()
    return core


def send_all(core: BareSession, text: bytes) -> bytes:
    """What it sends of `text`, whole."""
    stream = b"".join(map(bytes, core.gather([text])))
    core.sent(len(stream))
    return stream


# -- what we say ------------------------------------------------------------------------------------------------------


def test_the_first_words() -> None:
    core = BareSession()
    core.open()
    assert said(core) == [(90, string(b"session") + OURS + u32(WINDOW_BYTES) + u32(PACKET_BYTES))]
    assert not core.takes_data
    assert core.gather([b"too early"]) == []
    receive(core, confirmation())
    core.start(b"sftp", subsystem=True, environment=[b"LANG=C", b"EMPTY="])
    assert said(core) == [
        (98, THEIRS + string(b"env") + b"\0" + string(b"LANG") + string(b"C")),
        (98, THEIRS + string(b"env") + b"\0" + string(b"EMPTY") + string(b"")),
        (98, THEIRS + string(b"subsystem") + b"\1" + string(b"sftp")),
    ]


def test_a_command_that_is_too_long_is_not_sent() -> None:
    core = opened()
    core.start(b"x" * (16396 - 1 - 4 - 8 - 1 - 4), subsystem=False)
    assert len(said(core)[0][1]) == 16395
    with pytest.raises(LocalProtocolError):
        core.start(b"x" * 16384, subsystem=False)
    assert not core.outgoing


def test_data_goes_up_in_packets_that_a_putty_takes() -> None:
    core = opened()
    text = bytes(range(256)) * 200
    sent = split(b"".join(map(bytes, core.gather([text[:10], b"", text[10:20000], memoryview(text)[20000:]]))))
    assert [len(body) - 8 for _, body in sent] == [16384, 16384, 16384, 51200 - 3 * 16384]
    assert all(kind == 94 and body[:4] == THEIRS for kind, body in sent)
    assert b"".join(body[8:] for _, body in sent) == text


def test_data_keeps_to_the_servers_window_and_packet_size() -> None:
    core = opened(window_bytes=10, packet_bytes=4)
    assert send_all(core, b"0123456789abc") == b"".join(
        packet(94, THEIRS, string(part)) for part in (b"0123", b"4567", b"89")
    )
    assert core.room_bytes == 0
    assert core.gather([b"abc"]) == []
    receive(core, packet(93, OURS, u32(2)))
    assert send_all(core, b"abc") == packet(94, THEIRS, string(b"ab"))


@pytest.mark.parametrize("pending", [b"", b"\x00\x00\x00\x02\x04\x00"])
def test_a_send_cut_anywhere(pending: bytes) -> None:
    """What was begun is finished before anything else, and what was not begun is not taken."""
    text = bytes(range(40))
    for cut in range(len(pending) + 40 + 4 * 13 + 1):
        core = opened(packet_bytes=10)
        core.outgoing += pending
        stream = b"".join(map(bytes, core.gather([text[:3], text[3:25], text[25:]])))
        assert len(stream) == len(pending) + 40 + 4 * 13
        taken = core.sent(cut)
        rest = bytes(core.outgoing)
        core.outgoing.clear()
        whole = stream[:cut] + rest
        assert whole.startswith(pending)
        assert taken == 10 * (len(whole[len(pending) :]) // 23)
        assert b"".join(body[8:] for _, body in split(whole[len(pending) :])) == text[:taken]
        assert send_all(core, text[taken:]) == stream[len(whole) :]


def test_a_send_has_few_pieces() -> None:
    core = opened(window_bytes=1 << 30)
    assert len(core.gather([b"x"] * 5000)) <= 1024
    core.sent(0)
    core.outgoing += b"answer"
    assert len(core.gather([bytes(20000)] * 5000)) <= 1024


# -- what comes down --------------------------------------------------------------------------------------------------


def conversation() -> tuple[bytes, bytes]:
    """Everything an upstream may pass on, and the output in it."""
    texts = [b"first", b"", bytes(range(256)) * 126, b"x" * 40, b"last"]
    stream = data(texts[0]) + packet(Message.CHANNEL_EXTENDED_DATA, OURS, u32(1), string(b"oops\n"))
    stream += data(texts[1]) + packet(bare.IGNORE, string(b"nothing")) + data(texts[2]) + packet(93, OURS, u32(7))
    stream += packet(bare.DEBUG, b"\1" + string(b"x") + string(b"")) + packet(80, string(b"keepalive@x"), b"\1")
    stream += packet(99, OURS) + request(b"keepalive@openssh.com", True) + data(texts[3])
    stream += request(b"exit-status", False, u32(3)) + data(texts[4]) + packet(bare.UNIMPLEMENTED, u32(9))
    return stream + packet(7, u32(0)) + EOF + CLOSE, b"".join(texts)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 13, 4096, 1 << 20])
@pytest.mark.parametrize("sink_bytes", [1, 10, 32768, 1 << 20])
def test_a_conversation_in_pieces(piece: int, sink_bytes: int) -> None:
    stream, output = conversation()
    core = opened()
    assert receive(core, stream, piece, sink_bytes) == output
    assert core.exit_value == 3
    assert core.stderr == b"oops\n"
    assert core.room_bytes == 0  # closed
    assert core.ended and core.closed
    assert said(core) == [(100, THEIRS), (97, THEIRS)]


def test_payload_is_received_where_it_belongs() -> None:
    core = opened()
    place = core.buffers([memoryview(bytearray(1))])[0]
    head = data(bytes(1000))[:13]
    place[:13] = head
    assert core.received(13) == 0
    sinks = [memoryview(bytearray(300)), memoryview(bytearray(0)), memoryview(bytearray(1200))]
    places = core.buffers(sinks)
    assert [len(each) for each in places] == [300, 0, 700, 13]
    places[0][:] = b"a" * 300
    places[2][:] = b"b" * 700
    places[3][:] = head
    assert core.received(1013) == 1000
    assert bytes(sinks[0]) == b"a" * 300
    assert bytes(sinks[2][:700]) == b"b" * 700
    assert [len(each) for each in core.buffers(sinks)] == [300, 0, 700, 13]


def test_the_window_is_opened_by_what_was_consumed() -> None:
    core = opened()
    told = 0
    for _ in range(100):
        receive(core, data(bytes(PACKET_BYTES)))
        told += sum(int.from_bytes(body[4:8], "big") for kind, body in said(core) if kind == 93)
    assert 100 * PACKET_BYTES - WINDOW_BYTES // 2 < told <= 100 * PACKET_BYTES
    assert told > WINDOW_BYTES // 4


def test_more_than_the_window_is_a_violation() -> None:
    core = opened()
    sink = memoryview(bytearray(32768))
    with pytest.raises(RemoteProtocolError, match="into a window of"):
        for _ in range(WINDOW_BYTES // PACKET_BYTES + 1):
            stream = data(bytes(PACKET_BYTES))
            while stream:
                place = core.buffers([sink])[0]
                count = min(len(place), len(stream))
                place[:count] = stream[:count]
                stream = stream[count:]
                core.received(count)
                core.take([sink])


def test_a_refused_channel() -> None:
    core = BareSession()
    core.open()
    core.outgoing.clear()
    receive(core, packet(92, OURS, u32(4), string(b"open failed"), string(b"en")))
    assert core.refused is not None
    assert (core.refused.code, core.refused.text) == (4, b"open failed")
    assert core.closed
    core.close()
    assert not core.outgoing


def test_a_refused_subsystem_is_the_end() -> None:
    core = opened()
    receive(core, packet(100, OURS))
    assert core.ended and core.closed
    assert core.exit_value is None
    assert said(core) == [(97, THEIRS)]


def test_after_our_close_nothing_is_said() -> None:
    core = opened()
    core.close()
    core.close()
    assert said(core) == [(97, THEIRS)]
    assert not core.takes_data
    late = data(b"late") + request(b"keepalive@openssh.com", True) + packet(93, OURS, u32(100)) + EOF + CLOSE
    assert receive(core, late) == b""
    assert core.gather([b"more"]) == []
    assert not core.outgoing


def test_a_channel_for_us_is_refused() -> None:
    core = opened()
    receive(core, packet(90, string(b"x11"), u32(9), u32(1), u32(1)))
    assert said(core) == [(92, u32(9) + u32(1) + string(b"nothing is taken in here") + string(b""))]


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (u32(0), "a packet of 0 bytes"),
        (u32(0x9000) + b"\x5e", "a packet of 36864 bytes"),
        (u32(0xFFFFFFFF) + b"\x5e", "a packet of 4294967295 bytes"),
        (packet(94, u32(NUMBER + 1), string(b"x")), "no channel of ours"),
        (packet(94, OURS, u32(2), b"x"), "another length"),
        (packet(94, OURS), "too short"),
        (packet(93, u32(NUMBER + 1), u32(1)), "no channel of ours"),
        (packet(93, OURS), "malformed"),
        (packet(99, OURS) * 2, "never made"),
        (packet(94, OURS, string(bytes(PACKET_BYTES + 1))), f"in one packet of at most {PACKET_BYTES}"),
        (packet(20, b"kexinit"), "a packet of type 20"),
        (packet(200), "a packet of type 200"),
        (packet(96, OURS) * 2, "second EOF"),
        (packet(1, u32(11), string(b"bye \x1b[31m"), string(b"")), r"hung up: bye \\x1b\[31m"),
        (packet(90, string(b"x11")), "malformed"),
    ],
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_violations(stream: bytes, complaint: str, piece: int) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        receive(opened(), stream, piece)


def test_questions_without_end_are_not_answered_without_end() -> None:
    core = opened()
    with pytest.raises(RemoteProtocolError, match="on and on"):
        for _ in range(100_000):
            receive(core, request(b"keepalive@openssh.com", True))
    assert len(core.outgoing) < 300_000


@settings(max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(range(80, 101)), st.just(0)), max_size=20))
def test_garbage_never_makes_us_say_what_we_must_not(parts: list[bytes | int]) -> None:
    stream = b"".join(packet(part, OURS + bytes(9)) if isinstance(part, int) else part for part in parts)
    core = opened()
    with suppress(RemoteProtocolError):
        receive(core, stream, 11)
    kinds = [kind for kind, _ in said(core)]
    assert set(kinds) <= {92, 93, 97, 99, 100}
    assert 97 not in kinds[:-1]


@pytest.mark.parametrize("piece", range(1, 60))
@pytest.mark.parametrize("sink_bytes", [3, 1 << 16])
def test_what_came_before_a_goodbye_is_the_callers(piece: int, sink_bytes: int) -> None:
    core = opened()
    stream = packet(94, OURS, string(b"last words")) + packet(1, u32(11), string(b"leaving"), string(b"en"))
    got = bytearray()
    with pytest.raises(RemoteProtocolError, match="leaving"):
        receive(core, stream, piece, sink_bytes, got)
        core.take([memoryview(bytearray(sink_bytes))])
    assert got == b"last words"
