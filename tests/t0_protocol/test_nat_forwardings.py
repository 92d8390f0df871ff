"""Global requests of one client of many: order of answers, and remote forwardings from the cradle to the grave."""

from __future__ import annotations

import pytest

from mux.errors import RemoteProtocolError
from mux.protocol.forwardings import MAX_FORWARDINGS
from mux.protocol.wire import string, u32

from .nat_sides import Client, StrictServer, boolean

PLACE = string(b"localhost") + u32(8080)
KEY = (b"forwarded-tcpip", (b"localhost", 8080))
OK, NO = (81, b""), (82, b"")


@pytest.fixture
def server() -> StrictServer:
    return StrictServer()


@pytest.fixture
def client(server: StrictServer) -> Client:
    return Client(server)


def ask(client: Client, name: bytes, body: bytes = b"", want_reply: bool = True) -> None:
    client.say(80, string(name) + boolean(want_reply) + body)


def names(server: StrictServer) -> list[bytes]:
    return [asked.name for asked in server.asked]


def nothing_left(server: StrictServer) -> bool:
    return not (server.asked or server.claims or server.shares.places)


def test_questions_about_the_connection_are_answered_here(server: StrictServer, client: Client) -> None:
    for name in (b"keepalive@openssh.com", b"hostkeys-prove-00@openssh.com", b"what@example", b""):
        ask(client, name, b"whatever")
        ask(client, name, b"", want_reply=False)
        assert client.take() == [NO]
    assert not server.asked and not server.sent


def test_no_more_sessions_is_this_clients_promise(server: StrictServer, client: Client) -> None:
    ask(client, b"no-more-sessions@openssh.com", want_reply=False)
    assert client.take() == []
    ask(client, b"no-more-sessions@openssh.com")
    assert client.take() == [OK]
    client.open(0)
    text = string(b"no more sessions, as was asked for")
    assert client.take() == [(92, u32(0) + u32(1) + text + string(b""))]
    client.open(0, b"direct-tcpip", string(b"h") + u32(80) + string(b"o") + u32(1))
    other = Client(server)
    other.open(0)
    assert not server.asked and [open_.kind for open_ in server.opens] == [b"direct-tcpip", b"session"]


@pytest.mark.parametrize(
    ("kind", "place", "channel", "key"),
    [
        (b"tcpip-forward", PLACE, b"forwarded-tcpip", (b"localhost", 8080)),
        (b"streamlocal-forward@openssh.com", string(b"/s"), b"forwarded-streamlocal@openssh.com", b"/s"),
    ],
)
def test_opened_used_and_cancelled(
    server: StrictServer, client: Client, kind: bytes, place: bytes, channel: bytes, key: tuple[bytes, int] | bytes
) -> None:
    ask(client, kind, place)
    assert (server.asked[0].name, server.asked[0].body) == (kind, place)
    assert not server.claims and client.take() == []
    server.answer(True, b"junk that belongs to nothing")
    assert list(server.claims) == [(channel, key)] and client.take() == [OK]
    ask(client, b"cancel-" + kind, place)
    assert server.claims  # what the server opens before it has answered is still the client's
    server.answer(True)
    assert client.take() == [OK] and nothing_left(server)
    ask(client, b"cancel-" + kind, place)
    assert client.take() == [NO] and nothing_left(server)


def test_a_port_that_the_server_chooses(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", string(b"") + u32(0))
    server.answer(True, u32(40001))
    assert client.take() == [(81, u32(40001))] and list(server.claims) == [(b"forwarded-tcpip", (b"", 40001))]
    ask(client, b"tcpip-forward", string(b"") + u32(0))
    server.answer(True, u32(40002))
    assert client.take() == [(81, u32(40002))] and len(server.claims) == 2
    ask(client, b"cancel-tcpip-forward", string(b"") + u32(0))
    assert client.take() == [NO]
    ask(client, b"cancel-tcpip-forward", string(b"") + u32(40001))
    assert server.answer(True).body == string(b"") + u32(40001)
    client.nat.end()
    assert server.answer(True).body == string(b"") + u32(40002)
    assert nothing_left(server)


@pytest.mark.parametrize("body", [b"", u32(0), u32(65536), b"\0\0\1", u32(9) + b"x"])
def test_a_server_that_does_not_say_which_port(server: StrictServer, client: Client, body: bytes) -> None:
    ask(client, b"tcpip-forward", string(b"") + u32(0))
    server.answer(True, body)
    assert client.take() == [NO] and nothing_left(server)


def test_refused_by_the_server(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    server.answer(False)
    assert client.take() == [NO] and nothing_left(server)
    client.nat.end()
    assert nothing_left(server)


def test_without_a_wish_for_an_answer(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE, want_reply=False)
    server.answer(True)
    assert client.take() == [] and KEY in server.claims
    ask(client, b"cancel-tcpip-forward", PLACE, want_reply=False)
    server.answer(True)
    assert client.take() == [] and nothing_left(server)


@pytest.mark.parametrize(
    "body",
    [b"", string(b"h"), string(b"h") + u32(1) + b"x", string(b"h\0") + u32(1), string(b"\xff") + u32(1)],
)
@pytest.mark.parametrize("name", [b"tcpip-forward", b"cancel-tcpip-forward"])
def test_malformed(server: StrictServer, client: Client, name: bytes, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        ask(client, name, body)
    assert not server.asked
    client.nat.end()
    assert nothing_left(server)


def test_a_port_that_is_none(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", string(b"") + u32(65536))
    assert client.take() == [NO] and nothing_left(server)


def test_answers_keep_the_order_of_the_questions(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    ask(client, b"keepalive@openssh.com")
    ask(client, b"tcpip-forward", string(b"") + u32(0))
    ask(client, b"no-more-sessions@openssh.com")
    ask(client, b"keepalive@openssh.com", want_reply=False)
    assert client.take() == []
    server.answer(False)
    assert client.take() == [NO, NO]
    server.answer(True, u32(5))
    assert client.take() == [(81, u32(5)), OK]
    ask(client, b"keepalive@openssh.com")
    assert client.take() == [NO]


def test_nobody_else_can_cancel(server: StrictServer, client: Client) -> None:
    thief = Client(server)
    ask(client, b"tcpip-forward", PLACE)
    server.answer(True)
    ask(thief, b"cancel-tcpip-forward", PLACE)
    assert thief.take() == [NO] and not server.asked and KEY in server.claims
    thief.nat.end()
    assert not server.asked and KEY in server.claims


# Requests that do not wait for each other's answers


def test_opened_cancelled_and_opened_at_once(server: StrictServer, client: Client) -> None:
    for name in (b"tcpip-forward", b"cancel-tcpip-forward", b"tcpip-forward"):
        ask(client, name, PLACE)
    for claimed in (True, False, True):
        server.answer(True)
        assert (KEY in server.claims) is claimed
    assert client.take() == [OK, OK, OK]
    client.nat.end()
    assert names(server) == [b"cancel-tcpip-forward"]
    server.answer(True)
    assert nothing_left(server)


def test_opened_twice(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    ask(client, b"tcpip-forward", PLACE)
    server.answer(True)
    assert client.take() == [OK, NO] and len(server.claims[KEY]) == 1 and not server.asked
    ask(client, b"cancel-tcpip-forward", PLACE)
    server.answer(True)
    assert client.take() == [OK] and nothing_left(server)


def test_opened_twice_and_the_first_is_refused(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    ask(client, b"tcpip-forward", PLACE)
    server.answer(False)
    server.answer(True)
    assert client.take() == [NO, OK]
    client.nat.end()
    assert names(server) == [b"cancel-tcpip-forward"]
    server.answer(True)
    assert nothing_left(server)


def test_a_server_that_chooses_a_port_twice(server: StrictServer, client: Client) -> None:
    for _ in range(2):
        ask(client, b"tcpip-forward", string(b"") + u32(0))
    server.answer(True, u32(7))
    server.answer(True, u32(7))
    assert client.take() == [(81, u32(7)), NO]
    client.nat.end()
    server.answer(True)
    assert nothing_left(server)


def test_a_cancellation_does_not_hit_what_another_opened(server: StrictServer) -> None:
    """The first finds the place taken; its cancellation, sent without waiting, must not reach the server."""
    client, other = Client(server), Client(server)
    ask(client, b"tcpip-forward", PLACE)
    ask(client, b"cancel-tcpip-forward", PLACE)
    ask(client, b"keepalive@openssh.com")
    ask(other, b"tcpip-forward", PLACE)
    assert names(server) == [b"tcpip-forward"] * 2
    server.answer(False)
    server.answer(True)
    assert client.take() == [NO, NO, NO] and other.take() == [OK] and not server.asked
    assert KEY in server.claims


def test_a_cancellation_that_is_refused(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    server.answer(True)
    ask(client, b"cancel-tcpip-forward", PLACE)
    server.answer(False)
    assert client.take() == [OK, NO] and KEY in server.claims
    client.nat.end()
    assert names(server) == [b"cancel-tcpip-forward"] and not server.claims
    server.answer(False)
    assert nothing_left(server)


# The end, at every moment


def test_gone_before_the_answer(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    ask(client, b"tcpip-forward", string(b"") + u32(0))
    ask(client, b"keepalive@openssh.com")
    client.nat.end()
    server.answer(True)
    server.answer(True, u32(7))
    assert [(asked.name, asked.body) for asked in server.asked] == [
        (b"cancel-tcpip-forward", PLACE),
        (b"cancel-tcpip-forward", string(b"") + u32(7)),
    ]
    assert not server.claims
    server.answer(True)
    server.answer(True)
    assert nothing_left(server) and not client.told


def test_gone_while_it_is_cancelled_is_cancelled_once(server: StrictServer) -> None:
    """A second cancellation would hit what another client opened at the same place meanwhile."""
    client, other = Client(server), Client(server)
    ask(client, b"tcpip-forward", PLACE)
    server.answer(True)
    ask(client, b"cancel-tcpip-forward", PLACE)
    ask(other, b"tcpip-forward", PLACE)
    client.nat.end()
    assert names(server) == [b"cancel-tcpip-forward", b"tcpip-forward"]
    server.answer(True)
    server.answer(True)
    assert other.take() == [OK] and len(server.claims[KEY]) == 1 and not server.asked
    other.nat.end()
    server.answer(True)
    assert nothing_left(server)


def test_gone_with_opened_and_cancelled_on_the_way(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    ask(client, b"cancel-tcpip-forward", PLACE)
    client.nat.end()
    server.answer(True)
    server.answer(True)
    assert nothing_left(server)


def test_what_the_server_opens_for_one_that_has_gone(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    server.answer(True)
    taker = server.claims[KEY][0]
    client.nat.end()
    assert not server.claims
    server.claims[KEY] = [taker]  # a taker that was looked up before
    assert server.offer(b"forwarded-tcpip", (b"localhost", 8080), b"") is None
    assert server.sent[-1][0] == 92


# Bounds


def test_forwardings_of_one_client_are_bounded(server: StrictServer, client: Client) -> None:
    for port in range(1, MAX_FORWARDINGS + 2):
        ask(client, b"tcpip-forward", string(b"h") + u32(port))
    assert len(server.asked) == MAX_FORWARDINGS
    for _ in range(MAX_FORWARDINGS):
        server.answer(True)
    assert client.take() == [OK] * MAX_FORWARDINGS + [NO]
    client.nat.end()
    while server.asked:
        server.answer(True)
    assert nothing_left(server)


def test_questions_behind_one_that_is_not_answered_are_bounded(server: StrictServer, client: Client) -> None:
    ask(client, b"tcpip-forward", PLACE)
    while not client.nat.busy:
        ask(client, b"keepalive@openssh.com")
    assert not client.told and not client.readies
    server.answer(True)
    assert (client.nat.busy, client.readies) == (False, 1)
