"""Where proxy mode and PuTTY's sharing differ, and what a server's large packets become for either."""

from __future__ import annotations

import pytest

from mux.errors import RemoteProtocolError
from mux.protocol.dialects import PROXY_MODE, PUTTY_SHARING, Dialect
from mux.protocol.wire import string, u32

from .nat_sides import PACKET_BYTES, WINDOW_BYTES, Client, ServerChannel, StrictServer, opened

SMALL_BYTES = 0x4000  # what PuTTY's tools take


@pytest.fixture
def server() -> StrictServer:
    return StrictServer()


@pytest.mark.parametrize("kind", [81, 82])
def test_answers_to_what_nobody_asked(server: StrictServer, kind: int) -> None:
    Client(server, dialect=PROXY_MODE).say(kind)
    with pytest.raises(RemoteProtocolError, match=f"a message {kind}"):
        Client(server, dialect=PUTTY_SHARING).say(kind)


@pytest.mark.parametrize("kind", [2, 3, 4])
@pytest.mark.parametrize("dialect", [PROXY_MODE, PUTTY_SHARING])
def test_messages_without_effect(server: StrictServer, dialect: Dialect, kind: int) -> None:
    client = Client(server, dialect=dialect)
    client.say(kind, b"anything")
    assert not server.sent and not client.take()


@pytest.mark.parametrize(("dialect", "answer"), [(PROXY_MODE, 81), (PUTTY_SHARING, 82)])
def test_no_more_sessions(server: StrictServer, dialect: Dialect, answer: int) -> None:
    client = Client(server, dialect=dialect)
    client.say(80, string(b"no-more-sessions@openssh.com"), b"\1")
    assert client.take() == [(answer, b"")]
    client.open(256)
    assert bool(server.opens) is (answer == 82)


def open_small(server: StrictServer, client: Client) -> ServerChannel:
    client.say(90, string(b"session"), u32(256), u32(WINDOW_BYTES), u32(SMALL_BYTES))
    channel = server.confirm(server.opens[-1])
    client.take()
    return channel


@pytest.mark.parametrize(
    "count", [0, 1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, PACKET_BYTES, 3 * SMALL_BYTES + 5]
)
@pytest.mark.parametrize("stream", [0, 1])
def test_data_is_split_into_what_the_client_takes(server: StrictServer, count: int, stream: int) -> None:
    """A server may not care how large the client's packets are to be."""
    client = Client(server, dialect=PUTTY_SHARING)
    channel = open_small(server, client)
    data = bytes(index % 251 for index in range(count))
    channel.packet = 1 << 20
    before = client.nat.loans.waiting_bytes
    server.data(channel, data, stream)
    assert client.nat.loans.waiting_bytes - before == count
    told = client.take()
    head = u32(256) + (u32(stream) if stream else b"")
    assert all(kind == (95 if stream else 94) and body.startswith(head) for kind, body in told)
    pieces = [body[len(head) :] for _, body in told]
    assert all(piece == string(piece[4:]) and len(piece) - 4 <= SMALL_BYTES for piece in pieces)
    assert b"".join(piece[4:] for piece in pieces) == data
    assert len(pieces) == max(1, -(-count // SMALL_BYTES))
    assert next(iter(client.nat.channels.values())).received_bytes == count


@pytest.mark.parametrize("stream", [0, 1])
def test_more_than_the_window_costs_the_client(server: StrictServer, stream: int) -> None:
    client = Client(server, dialect=PUTTY_SHARING)
    channel = open_small(server, client)
    channel.credit = channel.packet = 1 << 30
    server.data(channel, bytes(WINDOW_BYTES + 1), stream)
    assert client.failed and not client.take()


@pytest.mark.parametrize("protocol", [b"", b"MIT-MAGIC-COOKIE-2", b"mit-magic-cookie-1"])
def test_x11_by_a_way_that_cannot_be_swapped(server: StrictServer, protocol: bytes) -> None:
    server.x11_body = b"\0" + string(b"MIT-MAGIC-COOKIE-1") + string(b"11") + u32(2)
    client = Client(server, dialect=PUTTY_SHARING)
    channel, number = opened(server, client)
    client.say(98, number, string(b"x11-req"), b"\1\0", string(protocol), string(b"00"), u32(0))
    assert client.take() == [(100, u32(0))]
    assert not channel.requests and not client.nat.stalled
    client.say(98, number, string(b"x11-req"), b"\1\0", string(b"XDM-AUTHORIZATION-1"), string(b"00"), u32(0))
    assert list(channel.requests) == [b"x11-req"]
