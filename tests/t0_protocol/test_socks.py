"""SOCKS 4, 4a and 5, the server's end: exact bytes, every split, and garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mux.errors import RemoteProtocolError
from mux.protocol.socks import Connect, Outcome, SocksServer, State

# (what the client says, where it wants to go, what it is told before the outcome, and with each of two outcomes)
SAYINGS = {
    "4": (
        bytes.fromhex("0401 0050 c0000201") + b"me\0",
        Connect(b"192.0.2.1", 80),
        b"",
        bytes.fromhex("005a 0000 00000000"),
        bytes.fromhex("005b 0000 00000000"),
    ),
    "4 without a user": (
        bytes.fromhex("0401 ffff 7f000001 00"),
        Connect(b"127.0.0.1", 65535),
        b"",
        bytes.fromhex("005a 0000 00000000"),
        bytes.fromhex("005b 0000 00000000"),
    ),
    "4a": (
        bytes.fromhex("0401 0016 00000007") + b"\0box.example\0",
        Connect(b"box.example", 22),
        b"",
        bytes.fromhex("005a 0000 00000000"),
        bytes.fromhex("005b 0000 00000000"),
    ),
    "5, IPv4": (
        bytes.fromhex("050100 0501 00 01 c0000201 0050"),
        Connect(b"192.0.2.1", 80),
        bytes.fromhex("0500"),
        bytes.fromhex("0500 00 01 00000000 0000"),
        bytes.fromhex("0505 00 01 00000000 0000"),
    ),
    "5, name": (
        bytes.fromhex("05020200 0501 00 03 0b") + b"box.example" + bytes.fromhex("0016"),
        Connect(b"box.example", 22),
        bytes.fromhex("0500"),
        bytes.fromhex("0500 00 01 00000000 0000"),
        bytes.fromhex("0505 00 01 00000000 0000"),
    ),
    "5, IPv6": (
        bytes.fromhex("050100 0501 00 04 20010db8000000000000000000000001 01bb"),
        Connect(b"2001:db8::1", 443),
        bytes.fromhex("0500"),
        bytes.fromhex("0500 00 01 00000000 0000"),
        bytes.fromhex("0505 00 01 00000000 0000"),
    ),
}

# (what the client says, and all it is told)
REFUSED = {
    "another version": (b"\x03", b""),
    "HTTP": (b"GET / HTTP/1.0\r\n\r\n", b""),
    "4, bind": (bytes.fromhex("0402 0050 c0000201 00"), bytes.fromhex("005b 0000 00000000")),
    "4, a user that never ends": (bytes.fromhex("0401 0050 c0000201") + b"x" * 256, bytes.fromhex("005b000000000000")),
    "4a, a name that never ends": (
        bytes.fromhex("0401 0050 00000001 00") + b"x" * 256,
        bytes.fromhex("005b000000000000"),
    ),
    "4a, no name": (bytes.fromhex("0401 0050 00000001 00 00"), bytes.fromhex("005b000000000000")),
    "5, only passwords": (bytes.fromhex("050102"), bytes.fromhex("05ff")),
    "5, no methods": (bytes.fromhex("0500"), bytes.fromhex("05ff")),
    "5, bind": (bytes.fromhex("050100 0502 00 01 c0000201 0050"), bytes.fromhex("0500 0507 00 01 00000000 0000")),
    "5, datagrams": (bytes.fromhex("050100 0503 00 01 c0000201 0050"), bytes.fromhex("0500 0507 00 01 00000000 0000")),
    "5, unknown address": (bytes.fromhex("050100 0501 00 05 c0000201"), bytes.fromhex("0500 0508 00 01 00000000 0000")),
    "5, no name": (bytes.fromhex("050100 0501 00 03 00 0050"), bytes.fromhex("0500 0501 00 01 00000000 0000")),
    "5, a NUL in the name": (
        bytes.fromhex("050100 0501 00 03 03 61 00 62 0050"),
        bytes.fromhex("0500 0501 00 01 00000000 0000"),
    ),
    "5, a name that is not UTF-8": (
        bytes.fromhex("050100 0501 00 03 01 ff 0050"),
        bytes.fromhex("0500 0501 00 01 00000000 0000"),
    ),
    "4a, a name that is not UTF-8": (bytes.fromhex("0401 0050 00000001 00 ff 00"), bytes.fromhex("005b000000000000")),
    "5, then 4": (bytes.fromhex("050100 0401 00 01 c0000201"), bytes.fromhex("0500")),
}


@pytest.mark.parametrize("name", SAYINGS)
@pytest.mark.parametrize("rest", [b"", b"\x05\x01\x00 and more"])
def test_every_split(name: str, rest: bytes) -> None:
    said, wish, told, connected, failed = SAYINGS[name]
    for split in range(len(said) + 1):
        for outcome, answer in ((Outcome.CONNECTED, connected), (Outcome.REFUSED, failed)):
            server = SocksServer()
            server.receive(said[:split])
            found = server.next_event()
            assert (found is None) == (split < len(said))
            server.receive(said[split:] + rest)
            found = found or server.next_event()
            assert found == wish
            assert server.data_to_send() == told
            assert server.next_event() is None
            server.answer(outcome)
            assert server.data_to_send() == answer
            assert server.take_rest() == rest
            assert server.state is State.ANSWERED


@pytest.mark.parametrize("name", SAYINGS)
def test_who_reads_what_is_wanted_reads_nothing_more(name: str) -> None:
    said, wish, *_ = SAYINGS[name]
    server, position, found = SocksServer(), 0, None
    while found is None:
        wanted = server.wanted_bytes
        assert wanted > 0
        server.receive((said + b"what is behind")[position : position + wanted])
        position += wanted
        found = server.next_event()
    assert found == wish
    assert position == len(said)
    assert server.wanted_bytes == 0
    assert server.take_rest() == b""


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_told_and_final(name: str) -> None:
    said, told = REFUSED[name]
    for pieces in ([said], [said[n : n + 1] for n in range(len(said))]):
        server, heard = SocksServer(), b""

        def feed(server: SocksServer = server, pieces: list[bytes] = pieces) -> None:
            for piece in pieces:
                server.receive(piece)
                while server.next_event() is not None:
                    pass

        with pytest.raises(RemoteProtocolError):
            feed()
        heard += server.data_to_send()
        assert heard == told
        server.receive(SAYINGS["4"][0])
        with pytest.raises(RemoteProtocolError):
            server.next_event()
        assert server.data_to_send() == b""


@given(st.sampled_from([b"", b"\4\1", b"\5\1\0\5\1\0"]), st.lists(st.binary(max_size=400), max_size=12))
def test_garbage_is_a_wish_or_a_protocol_error_and_is_not_hoarded(start: bytes, pieces: list[bytes]) -> None:
    server = SocksServer()
    for piece in [start, *pieces]:
        server.receive(piece)
        try:
            event = server.next_event()
        except RemoteProtocolError:
            assert len(server.data_to_send()) <= 12
            return
        if event is not None:
            assert event.host and 0 <= event.port <= 65535
            return
    assert len(server.take_rest()) <= 8 + 256 + 256  # two names of SOCKS 4a, not ended yet
