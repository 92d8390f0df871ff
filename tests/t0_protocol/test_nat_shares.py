"""What is lent to clients that grant more than they read."""

from __future__ import annotations

from mux.protocol.shares import ALL_CLIENTS_BYTES, CLIENT_BYTES, LEAST_WINDOW_BYTES, READ_UP_BYTES
from mux.protocol.wire import u32

from .nat_sides import WINDOW_BYTES, Client, ServerChannel, StrictServer, opened

ENDLESS = 2**32 - 1
PIECE = bytes(32768)


def pour(server: StrictServer, channel: ServerChannel) -> int:
    """Send all that the server may; returns how much that was."""
    poured = 0
    while channel.credit:
        size = min(channel.credit, len(PIECE))
        server.data(channel, PIECE[:size])
        poured += size
    return poured


def channel_of(server: StrictServer, client: Client, number: int, window: int) -> ServerChannel:
    client.open(number, window=window)
    return server.confirm(server.opens[-1])


def test_windows_of_ssh_pass_unchanged() -> None:
    server = StrictServer()
    client = Client(server)
    channel, number = opened(server, client)
    assert channel.credit == WINDOW_BYTES
    for _ in range(20):
        for _ in range(32):
            server.data(channel, PIECE)
        client.take()
        client.say(93, number, u32(32 * len(PIECE)))
        assert server.sent[-1] == (93, u32(channel.number) + u32(32 * len(PIECE)))
        assert channel.credit == WINDOW_BYTES


def test_one_that_grants_all_and_reads_nothing() -> None:
    server = StrictServer()
    client = Client(server)
    channel = channel_of(server, client, 0, ENDLESS)
    held = pour(server, channel)
    assert CLIENT_BYTES // 5 < held <= CLIENT_BYTES // 4
    assert client.unread_bytes < held + held // 1000  # numbers and lengths before each piece
    client.nat.loans.read_up(client.unread_bytes)  # a flush that wrote nothing
    assert channel.credit == 0
    total = held
    while total < 5 * CLIENT_BYTES:  # it reads: all of it comes, in the end
        client.take()
        assert channel.credit > 0
        total += pour(server, channel)
        assert client.unread_bytes < CLIENT_BYTES


def test_some_unread_bytes_do_not_stop_it() -> None:
    server = StrictServer()
    client = Client(server)
    channel = channel_of(server, client, 0, ENDLESS)
    pour(server, channel)
    client.nat.loans.read_up(READ_UP_BYTES + 1)
    assert channel.credit == 0
    client.nat.loans.read_up(READ_UP_BYTES)
    assert channel.credit > 0


def test_many_channels_of_one_that_reads_nothing() -> None:
    server = StrictServer()
    client = Client(server)
    channels = [channel_of(server, client, number, ENDLESS) for number in range(500)]
    assert all(channel.credit >= LEAST_WINDOW_BYTES for channel in channels)
    assert sum(pour(server, channel) for channel in channels) <= CLIENT_BYTES + 500 * LEAST_WINDOW_BYTES
    late = channel_of(server, client, 500, ENDLESS)
    assert late.credit == 0  # it reads nothing, so it misses nothing
    client.take()
    assert late.credit >= LEAST_WINDOW_BYTES


def test_many_clients_that_read_nothing() -> None:
    server = StrictServer()
    clients = [Client(server) for _ in range(40)]
    channels = [channel_of(server, client, 0, ENDLESS) for client in clients]
    assert sum(pour(server, channel) for channel in channels) <= ALL_CLIENTS_BYTES + 80 * LEAST_WINDOW_BYTES
    reader = Client(server)
    channel = channel_of(server, reader, 0, ENDLESS)
    assert channel.credit >= LEAST_WINDOW_BYTES
    for client in clients:
        client.nat.end()
    pour(server, channel)
    reader.take()
    assert channel.credit > CLIENT_BYTES // 5


def test_all_comes_back() -> None:
    server = StrictServer()
    client = Client(server)
    for ending in ("read", "closed unread", "gone"):
        channel = channel_of(server, client, 0, ENDLESS)
        assert server.shares.lent_bytes > 0
        server.data(channel, PIECE)
        if ending == "read":
            client.take()
        if ending != "gone":
            server.close(channel)
            client.say(97, u32(next(iter(server.routes))))
            client.take()
        else:
            client.nat.end()
        assert server.shares.lent_bytes == 0


def test_nothing_is_told_after_close() -> None:
    server = StrictServer()
    client = Client(server)
    channel, number = opened(server, client)
    client.say(93, number, u32(ENDLESS - WINDOW_BYTES))
    client.say(97, number)
    pour(server, channel)
    sent = len(server.sent)
    client.take()
    assert len(server.sent) == sent


def test_what_is_granted_to_a_closed_channel() -> None:
    server = StrictServer()
    client = Client(server)
    channel, number = opened(server, client)
    server.close(channel)
    client.say(93, number, u32(1000))
    assert server.shares.lent_bytes == 0
    client.say(97, number)
    assert not server.routes
