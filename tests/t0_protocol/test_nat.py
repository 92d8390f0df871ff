"""The channel-number translation: what passes, rewritten, and what does not."""

from __future__ import annotations

import pytest

from mux.errors import RemoteProtocolError
from mux.protocol.nat import BUSY_REQUESTS, MAX_CHANNELS, MAX_OFFERS
from mux.protocol.wire import string, u32

from .nat_sides import Client, StrictServer, boolean, opened

FIRST = 1001  # the first number the connection gives


def request(name: bytes, *rest: bytes, want_reply: bool = True) -> bytes:
    return string(name) + boolean(want_reply) + b"".join(rest)


def pty(modes: bytes = b"") -> bytes:
    return request(b"pty-req", string(b"xterm"), u32(80), u32(24), u32(0), u32(0), string(modes))


@pytest.fixture
def server() -> StrictServer:
    return StrictServer()


@pytest.fixture
def client(server: StrictServer) -> Client:
    return Client(server)


def test_a_whole_session(server: StrictServer, client: Client) -> None:
    client.say(90, string(b"session"), u32(7), u32(2097152), u32(32768))
    assert server.sent == [(90, string(b"session") + u32(FIRST) + u32(2097152) + u32(32768))]
    channel = server.confirm(server.opens[0])
    assert client.take() == [(91, u32(7) + u32(FIRST) + u32(2097152) + u32(32768))]
    server.sent.clear()

    client.say(98, u32(FIRST), request(b"exec", string(b"ls")))
    client.say(94, u32(FIRST), string(b"input"))
    client.say(95, u32(FIRST), u32(1), string(b"odd"))
    client.say(93, u32(FIRST), u32(500))
    client.say(96, u32(FIRST))
    assert server.sent == [
        (98, u32(0) + request(b"exec", string(b"ls"))),
        (94, u32(0) + string(b"input")),
        (95, u32(0) + u32(1) + string(b"odd")),
        (93, u32(0) + u32(500)),
        (96, u32(0)),
    ]
    server.to(channel, 93, u32(9))
    server.reply(channel, True)
    server.data(channel, b"output")
    server.data(channel, b"error", 1)
    server.to(channel, 96)
    server.to(channel, 98, request(b"exit-status", u32(3), want_reply=False))
    server.close(channel)
    assert client.take() == [
        (93, u32(7) + u32(9)),
        (99, u32(7)),
        (94, u32(7) + string(b"output")),
        (95, u32(7) + u32(1) + string(b"error")),
        (96, u32(7)),
        (98, u32(7) + request(b"exit-status", u32(3), want_reply=False)),
        (97, u32(7)),
    ]
    assert server.routes
    client.say(97, u32(FIRST))
    assert not server.routes and not server.channels and not client.nat.channels
    assert (server.shares.places, server.shares.lent_bytes) == (0, 0)
    client.open(7)  # its number is free again


def test_what_became_of_an_open_is_told(server: StrictServer, client: Client) -> None:
    opened(server, client)
    client.open(1, kind=b"direct-tcpip", rest=string(b"a") + u32(1) + string(b"b") + u32(2))
    client.open(2)
    server.refuse(server.opens[1])
    assert client.answers == [(b"session", True), (b"session", False)]
    client.nat.end()  # what is left of it goes on
    server.confirm(server.opens[0])
    assert client.answers[2:] == [(b"direct-tcpip", True)]


def test_a_refused_open_frees_everything(server: StrictServer, client: Client) -> None:
    client.open(7)
    server.refuse(server.opens[0])
    assert client.take() == [(92, u32(7) + u32(1) + string(b"open failed") + string(b""))]
    assert not server.routes and not client.nat.channels and not server.shares.places
    client.open(7)
    assert len(server.opens) == 1


def test_two_clients_with_the_same_numbers(server: StrictServer) -> None:
    one, two = Client(server), Client(server)
    first, first_number = opened(server, one, 0)
    second, second_number = opened(server, two, 0)
    assert first_number != second_number
    one.say(94, first_number, string(b"one"))
    two.say(94, second_number, string(b"two"))
    assert (bytes(first.data), bytes(second.data)) == (b"one", b"two")
    server.data(first, b"for one")
    assert (one.take(), two.take()) == ([(94, u32(0) + string(b"for one"))], [])


@pytest.mark.parametrize("kind", range(91, 101))
def test_the_channel_of_another_is_out_of_reach(server: StrictServer, kind: int) -> None:
    owner, thief = Client(server), Client(server)
    channel, number = opened(server, owner)
    before = len(server.sent)
    body = {93: u32(1), 94: string(b"x"), 95: u32(1) + string(b"x"), 98: request(b"shell"), 91: u32(1) * 3}
    for recipient in (number, u32(channel.number), u32(4711)):
        if kind == 93:
            thief.say(kind, recipient, body[93])
        else:
            with pytest.raises(RemoteProtocolError):
                thief.say(kind, recipient, body.get(kind, b""))
    assert len(server.sent) == before


ILLEGAL = sorted(set(range(256)) - {2, 3, 4, 80, 81, 82} - set(range(90, 101)))


@pytest.mark.parametrize("kind", ILLEGAL)
def test_messages_that_have_no_place_here(server: StrictServer, client: Client, kind: int) -> None:
    for body in (b"", u32(0), bytes(40)):
        with pytest.raises(RemoteProtocolError, match="no place"):
            client.say(kind, body)
    assert not server.sent


@pytest.mark.parametrize("kind", [2, 3, 4, 81, 82])
def test_messages_without_effect(server: StrictServer, client: Client, kind: int) -> None:
    client.say(kind)
    client.say(kind, bytes(300_000))
    assert not server.sent and not client.told


BROKEN_OPENS = [
    b"",
    string(b"session"),
    string(b"session") + u32(0) + u32(1),
    string(b"session") + u32(0) + u32(1) + u32(1) + b"x",
    string(b"session") + u32(0) + u32(1) + u32(0),
    string(b"direct-tcpip") + u32(0) + u32(1) + u32(1) + string(b"h") + u32(80) + string(b"o"),
    string(b"direct-tcpip") + u32(0) + u32(1) + u32(1) + string(b"h\0") + u32(80) + string(b"o") + u32(1),
    string(b"direct-tcpip") + u32(0) + u32(1) + u32(1) + string(b"\xff") + u32(80) + string(b"o") + u32(1),
    string(b"direct-streamlocal@openssh.com") + u32(0) + u32(1) + u32(1) + string(b"/s"),
]


@pytest.mark.parametrize("body", BROKEN_OPENS)
def test_malformed_opens(server: StrictServer, client: Client, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        client.say(90, body)
    assert not server.sent and not server.routes


@pytest.mark.parametrize("kind", [b"", b"tun@openssh.com", b"x11", b"session\0", b"forwarded-tcpip"])
def test_kinds_of_channels_no_client_opens(server: StrictServer, client: Client, kind: bytes) -> None:
    client.open(3, kind, b"whatever")
    assert client.take() == [(92, u32(3) + u32(3) + string(b"unknown channel type") + string(b""))]
    assert not server.sent and not server.routes


def test_numbers_are_used_once_at_a_time(server: StrictServer, client: Client) -> None:
    client.open(3)
    with pytest.raises(RemoteProtocolError, match="that of another"):
        client.open(3)


BROKEN = [
    (93, b""),
    (93, u32(1) + b"x"),
    (94, b"\0\0\0"),
    (94, u32(2) + b"x"),
    (94, u32(0) + b"x"),
    (95, u32(1)),
    (95, u32(1) + u32(2) + b"x"),
    (95, u32(1) + string(b"x") + b"x"),
    (96, b"x"),
    (97, b"x"),
    (98, b""),
    (98, string(b"shell")),
    (98, request(b"shell", b"x")),
    (98, request(b"exec")),
    (98, request(b"exec", string(b"a\0b"))),
    (98, request(b"exec", string(b"a"), b"x")),
    (98, request(b"env", string(b"A"))),
    (98, request(b"pty-req", string(b"xterm"), u32(80))),
    (98, request(b"window-change", u32(1), u32(1), u32(1))),
    (98, request(b"signal", string(b"TERM"), b"x")),
    (98, request(b"eow@openssh.com", b"x")),
    (98, request(b"x11-req", b"\0", string(b"p"), string(b"d"))),
    (98, pty(b"\x01")),
    (98, pty(b"\x01\0\0\0")),
    (98, pty(b"\x80\0\0\0\1\x9f\0")),
    (99, b""),
    (100, b""),
    (91, u32(1) * 3),
    (92, u32(1) + string(b"") + string(b"")),
]


@pytest.mark.parametrize(("kind", "body"), BROKEN)
def test_malformed_messages_on_an_open_channel(server: StrictServer, client: Client, kind: int, body: bytes) -> None:
    _, number = opened(server, client)
    before = len(server.sent)
    with pytest.raises(RemoteProtocolError):
        client.say(kind, number, body)
    assert len(server.sent) == before
    client.nat.end()
    assert server.sent[before:] == [(97, u32(0))]


@pytest.mark.parametrize("modes", [b"", b"\0", b"\0\x01", b"\xa0junk", b"\x01\0\0\0\3\x9f\0\0\0\1\0"])
def test_terminal_modes_that_are_whole(server: StrictServer, client: Client, modes: bytes) -> None:
    channel, number = opened(server, client)
    client.say(98, number, pty(modes))
    assert channel.terminal


def test_a_second_terminal_is_not_asked_for(server: StrictServer, client: Client) -> None:
    _, number = opened(server, client)
    client.say(98, number, pty())
    with pytest.raises(RemoteProtocolError, match="second request for a terminal"):
        client.say(98, number, pty())


def test_the_window_of_the_server_is_kept(server: StrictServer, client: Client) -> None:
    channel, number = opened(server, client)
    with pytest.raises(RemoteProtocolError):
        client.say(94, number, string(bytes(32769)))
    for _ in range(64):
        client.say(94, number, string(bytes(32768)))
    assert channel.window == 0
    client.say(94, number, string(b""))
    for stream in (94, 95):
        with pytest.raises(RemoteProtocolError, match="into a window of 0"):
            client.say(stream, number, u32(1) if stream == 95 else b"", string(b"x"))
    server.to(channel, 93, u32(1))
    channel.window += 1
    client.say(94, number, string(b"x"))


def test_a_window_beyond_all_bounds(server: StrictServer, client: Client) -> None:
    _, number = opened(server, client)
    client.say(93, number, u32(2**32 - 1 - 2097152))
    with pytest.raises(RemoteProtocolError, match="4 GiB"):
        client.say(93, number, u32(1))


def test_nothing_follows_eof_and_close(server: StrictServer, client: Client) -> None:
    channel, number = opened(server, client)
    client.say(96, number)
    client.say(96, number)
    assert server.sent[-1] == (96, u32(0)) and server.sent[-2] != (96, u32(0))
    with pytest.raises(RemoteProtocolError, match="after EOF"):
        client.say(94, number, string(b"x"))
    client.say(97, number)
    sent = len(server.sent)
    for kind, body in [(94, string(b"x")), (96, b""), (97, b""), (98, request(b"shell")), (93, u32(1)), (100, b"")]:
        client.say(kind, number, body)
    assert len(server.sent) == sent
    server.close(channel)
    client.take()
    client.say(93, number, u32(1))
    with pytest.raises(RemoteProtocolError, match="does not have"):
        client.say(94, number, string(b"x"))
    assert len(server.sent) == sent


def test_large_packets_the_server_would_not_take(server: StrictServer) -> None:
    client = Client(server, largest_request_bytes=34000)
    _, number = opened(server, client)
    client.say(98, number, request(b"exec", string(bytes(b"x" * 33000))))
    with pytest.raises(RemoteProtocolError, match="more than the server takes"):
        client.say(98, number, request(b"exec", string(bytes(b"x" * 34000))))


def test_the_size_of_packets_to_the_client_is_bounded(server: StrictServer, client: Client) -> None:
    client.say(90, string(b"session"), u32(0), u32(100), u32(2**32 - 1))
    assert server.opens[0].packet_bytes == 32768


# Requests and their answers


def test_unknown_requests_are_refused_in_order(server: StrictServer, client: Client) -> None:
    channel, number = opened(server, client)
    client.say(98, number, request(b"first@example"))
    assert client.take() == [(100, u32(0))]
    client.say(98, number, request(b"shell"))
    client.say(98, number, request(b"second@example"))
    client.say(98, number, request(b"third@example", want_reply=False))
    client.say(98, number, request(b"eow@openssh.com"))
    client.say(98, number, request(b"fourth@example"))
    assert client.take() == []
    assert list(channel.requests) == [b"shell", b"eow@openssh.com"]
    server.reply(channel, True)
    assert client.take() == [(99, u32(0)), (100, u32(0))]
    server.reply(channel, False)
    assert client.take() == [(100, u32(0)), (100, u32(0))]


def test_the_agent_by_the_owners_options(server: StrictServer, client: Client) -> None:
    channel, number = opened(server, client)
    client.say(98, number, request(b"auth-agent-req@openssh.com"))
    assert client.take() == [(100, u32(0))] and not channel.requests
    server.agent_allowed = True
    client.say(98, number, request(b"auth-agent-req@openssh.com"))
    assert list(channel.requests) == [b"auth-agent-req@openssh.com"]


X11 = request(b"x11-req", b"\0", string(b"MIT-MAGIC-COOKIE-1"), string(b"00"), u32(0))


def test_x11_by_the_owners_options(server: StrictServer, client: Client) -> None:
    channel, number = opened(server, client)
    client.say(98, number, X11)
    assert client.take() == [(100, u32(0))] and not channel.requests and not client.nat.stalled
    server.x11_body = b"\0" + string(b"ours") + string(b"11") + u32(2)
    client.say(98, number, X11)
    assert server.sent[-1] == (98, u32(0) + request(b"x11-req", server.x11_body))
    server.reply(channel, True)
    assert client.take() == [(99, u32(0))]


def test_x11_that_takes_its_time(server: StrictServer, client: Client) -> None:
    server.x11_waiting = []
    channel, number = opened(server, client)
    client.say(98, number, X11)
    assert (client.nat.stalled, client.readies) == (True, 0)
    server.x11_waiting[0](b"body")
    assert (client.nat.stalled, client.readies) == (False, 1)
    assert server.sent[-1] == (98, u32(0) + request(b"x11-req", b"body"))
    client.say(98, number, X11)
    server.close(channel)
    client.say(97, number)
    sent = len(server.sent)
    server.x11_waiting[1](b"body")  # the channel has gone meanwhile
    assert len(server.sent) == sent and not client.nat.stalled


def test_the_servers_question_whether_we_live_is_answered_here(server: StrictServer, client: Client) -> None:
    channel, _ = opened(server, client)
    server.ask(channel, b"keepalive@openssh.com")
    assert (channel.asked, client.take()) == (0, [])
    assert server.sent[-1] == (100, u32(0))


def test_the_server_hears_of_us_on_a_channel_that_is_closed_here(server: StrictServer, client: Client) -> None:
    """One whose command does not read its input stays open at sshd, which asks there whether we live."""
    channel, number = opened(server, client)
    client.say(97, number)
    sent = len(server.sent)
    server.ask(channel, b"keepalive@openssh.com")
    assert [asked.name for asked in server.asked] == [b"keepalive@openssh.com"]
    assert [kind for kind, _ in client.take()] == [98]
    client.nat.end()
    server.ask(channel, b"keepalive@openssh.com")
    server.ask(channel, b"keepalive@openssh.com", want_reply=False)
    assert len(server.asked) == 2 and len(server.sent) == sent and not client.failed
    server.answer(False)


def test_requests_of_the_server_are_answered_by_the_client_once(server: StrictServer, client: Client) -> None:
    channel, number = opened(server, client)
    server.ask(channel, b"what@example")
    server.ask(channel, b"keepalive@openssh.com")  # behind it, so that the order holds
    assert [kind for kind, _ in client.take()] == [98, 98]
    client.say(99, number)
    client.say(100, number)
    assert channel.asked == 0
    with pytest.raises(RemoteProtocolError, match="nobody made"):
        client.say(100, number)


def test_a_flood_of_questions_makes_it_busy(server: StrictServer, client: Client) -> None:
    channel, number = opened(server, client)
    busy = []
    for _ in range(BUSY_REQUESTS):
        client.say(98, number, request(b"keepalive@openssh.com"))
        busy.append(client.nat.busy)
    assert busy == [False] * (BUSY_REQUESTS - 1) + [True]
    server.reply(channel, False)
    assert (client.nat.busy, client.readies) == (False, 1)
    client.say(98, number, request(b"keepalive@openssh.com"))
    server.close(channel)
    assert (client.nat.busy, client.readies) == (False, 2)


# Bounds


def test_channels_of_one_client_are_bounded(server: StrictServer, client: Client) -> None:
    for number in range(MAX_CHANNELS + 1):
        client.open(number)
    assert len(server.opens) == MAX_CHANNELS
    assert client.take() == [(92, u32(MAX_CHANNELS) + u32(4) + string(b"too many channels") + string(b""))]


def test_channels_of_all_clients_are_bounded(server: StrictServer) -> None:
    clients = [Client(server) for _ in range(10)]
    for client in clients:
        for number in range(MAX_CHANNELS):
            client.open(number)
    assert len(server.opens) == server.shares.places == 5000
    for client in clients:
        client.nat.end()
    assert server.shares.places == 5000  # the server has them yet
    for open_ in list(server.opens):
        server.refuse(open_)
    assert (server.shares.places, server.routes) == (0, {})


# The end


@pytest.mark.parametrize("refused", [False, True])
def test_gone_before_the_channel_is_confirmed(server: StrictServer, client: Client, refused: bool) -> None:
    client.open(0)
    client.nat.end()
    client.nat.end()
    assert len(server.sent) == 1
    if refused:
        server.refuse(server.opens[0])
    else:
        channel = server.confirm(server.opens[0])
        assert server.sent[1:] == [(97, u32(0))]
        server.data(channel, b"late")
        server.ask(channel, b"what@example")
        server.close(channel)
    assert not server.routes and not server.channels and not server.shares.places and not client.told


def test_gone_with_an_open_channel(server: StrictServer, client: Client) -> None:
    channel, _ = opened(server, client)
    server.data(channel, b"unread")
    client.nat.end()
    assert server.sent[-1] == (97, u32(0))
    server.data(channel, b"late")
    server.to(channel, 93, u32(1))
    server.to(channel, 96)
    assert server.routes and server.shares.lent_bytes == 0
    server.close(channel)
    assert not server.routes and not server.shares.places


def test_gone_when_the_server_had_closed(server: StrictServer, client: Client) -> None:
    channel, _ = opened(server, client)
    server.close(channel)
    client.nat.end()
    assert server.sent[-1] == (97, u32(0)) and not server.routes


def test_the_numbers_of_one_that_has_gone_are_not_anothers(server: StrictServer) -> None:
    gone, next_one = Client(server), Client(server)
    channel, _ = opened(server, gone)
    gone.nat.end()
    server.close(channel)
    again, number = opened(server, next_one)
    assert again.number == channel.number
    next_one.say(94, number, string(b"mine"))
    assert again.data == b"mine"


# A server that breaks the protocol costs the client concerned


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (94, string(bytes(32768)) * 65),
        (94, b"\0\0"),
        (95, u32(1) + bytes(2097157)),
        (91, u32(1) * 3),
        (92, u32(1)),
        (93, b""),
        (93, u32(2**32 - 1)),
        (99, b""),
        (97, b"x"),
        (98, u32(9)),
        (80, b""),
    ],
)
def test_a_server_that_breaks_the_protocol(server: StrictServer, kind: int, body: bytes) -> None:
    client, other = Client(server), Client(server)
    channel, _ = opened(server, client)
    opened(server, other)
    server.to(channel, kind, body)
    assert len(client.failed) == 1 and "broke the protocol" in client.failed[0]
    assert not other.failed


def test_a_malformed_confirmation(server: StrictServer, client: Client) -> None:
    client.open(0)
    server.routes[FIRST].packet(91, memoryview(u32(1)))
    assert client.failed
    client.nat.end()


def test_the_end_of_the_connection(server: StrictServer, client: Client) -> None:
    opened(server, client)
    server.routes[FIRST].lost("gone")
    assert client.failed == ["gone"]
    client.nat.end()
    server.routes[FIRST].lost("gone")
    assert client.failed == ["gone"]


# Channels that the server opens


def listening(server: StrictServer, client: Client) -> None:
    client.say(80, string(b"tcpip-forward"), boolean(True), string(b"localhost"), u32(8080))
    server.answer(True)
    assert client.take() == [(81, b"")]


REST = string(b"localhost") + u32(8080) + string(b"127.0.0.1") + u32(999)


def test_a_channel_of_the_server(server: StrictServer, client: Client) -> None:
    listening(server, client)
    channel = server.offer(b"forwarded-tcpip", (b"localhost", 8080), REST)
    assert channel is not None
    assert client.take() == [(90, string(b"forwarded-tcpip") + u32(FIRST) + u32(2 << 20) + u32(32768) + REST)]
    with pytest.raises(RemoteProtocolError):
        client.say(94, u32(FIRST), string(b"too early"))
    client.say(91, u32(FIRST), u32(5), u32(1000), u32(99999))
    assert server.sent[-1] == (91, u32(0) + u32(FIRST) + u32(1000) + u32(32768))
    with pytest.raises(RemoteProtocolError):
        client.say(91, u32(FIRST), u32(6), u32(1000), u32(9))
    server.data(channel, b"request")
    client.say(94, u32(FIRST), string(b"response"))
    assert client.take() == [(94, u32(5) + string(b"request"))] and channel.data == b"response"
    client.say(97, u32(FIRST))
    server.close(channel)
    assert not server.routes


def test_a_channel_of_the_server_that_the_client_refuses(server: StrictServer, client: Client) -> None:
    listening(server, client)
    server.offer(b"forwarded-tcpip", (b"localhost", 8080), REST)
    for broken in (b"", u32(2) + string(b"\0") + string(b""), u32(2) + string(b"no")):
        with pytest.raises(RemoteProtocolError):
            client.say(92, u32(FIRST), broken)
    client.say(92, u32(FIRST), u32(2), string(b"no"), string(b""))
    assert server.sent[-1] == (92, u32(0) + u32(2) + string(b"no") + string(b""))
    assert not server.routes and not server.channels and not client.nat.channels


def test_channels_of_the_server_without_an_answer_are_bounded(server: StrictServer, client: Client) -> None:
    listening(server, client)
    for _ in range(MAX_OFFERS):
        assert server.offer(b"forwarded-tcpip", (b"localhost", 8080), REST) is not None
    assert server.offer(b"forwarded-tcpip", (b"localhost", 8080), REST) is None
    assert server.sent[-1][0] == 92
    client.nat.end()
    assert not server.channels and not server.routes
    assert [kind for kind, _ in server.sent[-MAX_OFFERS:]] == [92] * MAX_OFFERS
