"""What PuTTY's protocol allows on our socket, and what not (U11, U17-U23, U38)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from mux.protocol.bare import LARGEST_LINE_BYTES
from mux.protocol.packets import LARGEST_FRAME_BYTES, PUTTY
from mux.protocol.wire import string, u32
from mux.upstream import upstream
from mux.upstream.clients import FULL
from tests.support.sshd import HOST, Sshd
from tests.t2_upstream.proxied import Packet, Proxied
from tests.t2_upstream.riding import eventually
from tests.t5_putty.bare_clients import GREETING, PREFIX, bare, connected, hear_greeting, relays, sharing, works

MIB = 1 << 20


def request(name: bytes, *rest: bytes, want_reply: bool = True) -> bytes:
    return string(name) + (b"\1" if want_reply else b"\0") + b"".join(rest)


def run(sshd: Sshd, scenario: Callable[..., object], **changes: object) -> None:
    """`scenario(ride)` on an upstream of its own, which has to go on afterwards."""

    async def main() -> None:
        async with sharing(sshd, **changes) as ride:
            await scenario(ride)  # type: ignore[misc]
            await eventually(lambda: not relays(ride))
            assert await works(ride)

    asyncio.run(main())


def test_u11_answers_come_in_the_order_of_requests() -> None:
    with Sshd(accept_env="LC_*") as sshd:

        async def scenario(ride: object) -> None:
            async with bare(ride) as client:  # type: ignore[arg-type]
                session = await client.open_session(256)
                modes = string(b"xterm") + u32(80) + u32(24) + u32(0) + u32(0) + string(b"\0")
                asked = [
                    (request(b"env", string(b"LC_ONE"), string(b"1")), 99),
                    (request(b"env", string(b"FORBIDDEN"), string(b"1")), 100),
                    (request(b"auth-agent-req@openssh.com"), 100),
                    (request(b"env", string(b"LC_TWO"), string(b"2"), want_reply=False), None),
                    (request(b"simple@putty.projects.tartarus.org"), 100),
                    (request(b"winadj@putty.projects.tartarus.org"), 100),
                    (request(b"pty-req", modes), 99),
                    (request(b"what@example"), 100),
                    (request(b"exec", string(b"echo $LC_ONE$LC_TWO$FORBIDDEN")), 99),
                ]
                await client.write(b"".join(PUTTY.pack(98, session + one) for one, _ in asked))
                expected = [answer for _, answer in asked if answer is not None]
                heard: list[int] = []
                while len(heard) < len(expected):
                    packet = await client.hear()
                    assert packet is not None
                    if packet.kind in (99, 100):
                        assert packet.body == u32(256)
                        heard.append(packet.kind)
                assert heard == expected
                output = b""
                while len(output) < 4:
                    output += (await client.hear_kind(94)).body[8:]
                assert output == b"12\r\n"

        run(sshd, scenario)


def test_u17_ten_with_the_same_numbers(sshd: Sshd) -> None:
    async def scenario(ride: object) -> None:
        async def one(mark: int) -> None:
            async with bare(ride) as client:  # type: ignore[arg-type]
                session = await client.execute(b"cat", number=256)
                for round_ in range(20):
                    text = b"%d %d\n" % (mark, round_)
                    await client.say(94, session, string(text))
                    data = b""
                    while len(data) < len(text):
                        packet = await client.hear_kind(94)
                        assert packet.number() == 256
                        data += packet.body[8:]
                    assert data == text

        await asyncio.gather(*map(one, range(10)))

    run(sshd, scenario)


def test_u18_the_line_tells_the_server(sshd: Sshd) -> None:
    with socket.create_connection(("127.0.0.1", sshd.port), 20) as connection:
        banner = connection.makefile("rb").readline().strip()

    async def scenario(ride: object) -> None:
        async with connected(ride) as raw:  # type: ignore[arg-type]
            assert b"SSH-2.0-" + await hear_greeting(raw) == banner

    run(sshd, scenario)


@pytest.mark.parametrize(
    "greeting",
    [
        b"SSH-2.0-PuTTY_Release_0.78\r\n",
        PREFIX.replace(b"2.0", b"1.0") + b"PuTTY\r\n",
        b"\r\n" + GREETING,
        GREETING.lower(),
        b"x" * (LARGEST_LINE_BYTES + 1),
        b"\0\0\0\5" + bytes(5) + b"\n",
    ],
)
def test_u19_greetings_that_are_none(sshd: Sshd, greeting: bytes) -> None:
    async def scenario(ride: object) -> None:
        async with connected(ride) as raw:  # type: ignore[arg-type]
            await raw.write(greeting)
            await hear_greeting(raw)
            assert await Proxied(raw, PUTTY).last_words()

    run(sshd, scenario)


PACKETS = PUTTY.pack(90, string(b"session") + u32(256) + u32(0x4000) + u32(0x4000)) + PUTTY.pack(2, string(b""))


@pytest.mark.parametrize("greeting", [GREETING, GREETING.replace(b"\r", b""), PREFIX + b"\r\n"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_u19_greetings_in_pieces_and_with_packets_behind(sshd: Sshd, greeting: bytes, size: int) -> None:
    async def scenario(ride: object) -> None:
        async with connected(ride) as raw:  # type: ignore[arg-type]
            data = greeting + PACKETS
            for at in range(0, len(data), size):
                await raw.write(data[at : at + size])
            await hear_greeting(raw)
            assert (await Proxied(raw, PUTTY).hear_kind(91)).number() == 256

    run(sshd, scenario)


@pytest.mark.parametrize("length", [0, LARGEST_FRAME_BYTES + 1, 2**32 - 1])
def test_u20_lengths_out_of_bounds(sshd: Sshd, length: int) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as client, bare(ride) as other:  # type: ignore[arg-type]
            session = await other.execute(b"cat")
            await client.write(u32(length) + bytes(8))
            assert f"a packet of {length} bytes" in await client.last_words()
            await other.say(94, session, string(b"as before"))
            assert (await other.hear_kind(94)).body[8:] == b"as before"

    run(sshd, scenario)


@pytest.mark.parametrize("length", [16396, 16397, LARGEST_FRAME_BYTES])
def test_u20_packets_longer_than_a_putty_takes(sshd: Sshd, length: int) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as client:  # type: ignore[arg-type]
            await client.write(u32(length) + b"\2" + bytes(length - 1))
            await client.execute(b"true")

    run(sshd, scenario)


@pytest.mark.parametrize("kind", [5, 7, 20, 30, 50, 79, 81, 82, 101, 127, 200, 255])
def test_u21_messages_that_have_no_place(sshd: Sshd, kind: int) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as client:  # type: ignore[arg-type]
            await client.say(kind, bytes(20))
            assert f"a message {kind}" in await client.last_words()

    run(sshd, scenario)


def test_u21_messages_without_effect(sshd: Sshd) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as client:  # type: ignore[arg-type]
            await client.say(2, string(b"ignored"))
            await client.say(3, u32(7))
            await client.say(4, b"\0", string(b"a word"), string(b""))
            await client.execute(b"true")

    run(sshd, scenario)


def test_u21_a_goodbye(sshd: Sshd) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as client:  # type: ignore[arg-type]
            await client.execute(b"cat")
            await client.say(1, u32(11), string(b"bye"), string(b""))
            assert await client.last_words() == ""

    run(sshd, scenario)


@pytest.mark.parametrize("kind", range(91, 101))
@pytest.mark.parametrize("whose", ["another's", "nobody's", "its own, closed"])
def test_u22_numbers_that_are_not_the_clients(sshd: Sshd, kind: int, whose: str) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as other, bare(ride) as client:  # type: ignore[arg-type]
            theirs = await other.execute(b"cat")
            own = await client.open_session()
            number = {"another's": theirs, "nobody's": u32(4711)}.get(whose, own)
            if whose == "its own, closed":
                await client.say(97, own)
                await client.hear_kind(97)
            await client.say(kind, number, string(b"exec") + b"\1" + string(b"true"))
            await client.say(127)
            words = await client.last_words()
            if kind == 93:  # that alone is overlooked, and does not end it
                assert words.startswith("the client sent a message 127, ")
            else:
                assert words.startswith(f"the client sent a message {kind} for channel ")
            await other.say(94, theirs, string(b"as before"))
            assert (await other.hear_kind(94)).body[8:] == b"as before"

    run(sshd, scenario)


def test_u23_requests_about_the_connection_stay_here(sshd: Sshd) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as client:  # type: ignore[arg-type]
            for name in (b"keepalive@openssh.com", b"no-more-sessions@openssh.com", b"hostkeys-00@openssh.com"):
                await client.say(80, request(name))
                assert await client.hear() == Packet(82, b"")
                await client.say(80, request(name, want_reply=False))
            await client.execute(b"echo", number=256)
            assert (await ride.ssh(HOST, "echo here")).out == b"here\n"  # type: ignore[attr-defined]

    run(sshd, scenario)


def test_u38_data_comes_in_pieces_that_the_client_takes(sshd: Sshd) -> None:
    async def scenario(ride: object) -> None:
        async with bare(ride) as client:  # type: ignore[arg-type]
            await client.say(90, string(b"session"), u32(256), u32(MIB), u32(0x4000))
            session = u32((await client.hear_kind(91)).number(1))
            await client.say(
                98, session, request(b"exec", string(b"head -c 500000 /dev/zero; head -c 9000 /dev/zero >&2"))
            )
            count = errors = 0
            while count < 500_000 or errors < 9000:
                packet = await client.hear()
                assert packet is not None
                if packet.kind == 94:
                    assert packet.number(1) == len(packet.body) - 8 <= 0x4000
                    count += packet.number(1)
                elif packet.kind == 95:
                    assert packet.number(2) == len(packet.body) - 12 <= 0x4000
                    errors += packet.number(2)
            assert (count, errors) == (500_000, 9000)

    run(sshd, scenario)


def test_one_more_than_there_is_room_for_is_told_so(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride:
            async with bare(ride) as client:
                monkeypatch.setattr(upstream, "MAX_CLIENTS", 1)
                async with bare(ride) as surplus:
                    assert await surplus.last_words() == FULL
                await client.execute(b"true")
            await eventually(lambda: not ride.upstream.clients)
            assert await works(ride)
            assert ride.upstream.tally.surplus == 1

    asyncio.run(main())


class Owner:
    """Who is asked."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def confirm(self, text: str) -> bool:
        self.asked.append(text)
        return self.answer


class Fault(Owner):
    """Who cannot be asked."""

    async def confirm(self, text: str) -> bool:
        raise ValueError(text)


def test_a_question_that_fails_costs_the_one_it_is_about(sshd: Sshd, expect_log: Callable[[str], None]) -> None:
    expect_log("the owner could not be asked")

    async def main() -> None:
        async with sharing(sshd, control_master="ask", prompts=Fault(False)) as ride:
            async with bare(ride) as client:
                assert await client.last_words() == "the question about it met with a fault of ours"
            await eventually(lambda: not ride.upstream.clients)
            assert ride.upstream.tally.dropped == 1

    asyncio.run(main())


class Undecided(Owner):
    """Who is asked first, and answers the second question only."""

    async def confirm(self, text: str) -> bool:
        self.asked.append(text)
        if len(self.asked) == 1:
            await asyncio.Event().wait()
        return self.answer


@pytest.mark.parametrize("said", [b"", PACKETS, bytes(20_000)], ids=["nothing", "packets", "more than is read at once"])
def test_a_question_ends_with_the_client_that_it_is_about(sshd: Sshd, said: bytes) -> None:
    owner = Undecided(True)

    async def main() -> None:
        async with sharing(sshd, control_master="ask", prompts=owner) as ride:
            async with connected(ride) as raw:
                await raw.write(GREETING + said)
                await hear_greeting(raw)
                await eventually(lambda: owner.asked)
            await eventually(lambda: not ride.upstream.clients)
            async with connected(ride) as raw:
                await raw.write(GREETING + PACKETS)
                await hear_greeting(raw)
                assert (await Proxied(raw, PUTTY).hear_kind(91)).number() == 256
            assert len(owner.asked) == 2

    asyncio.run(main())


@pytest.mark.parametrize("answer", [True, False])
def test_the_owner_is_asked_where_he_wants_to_be(sshd: Sshd, answer: bool) -> None:
    owner = Owner(answer)

    async def main() -> None:
        async with sharing(sshd, control_master="ask", prompts=owner) as ride:
            async with connected(ride):
                pass  # who looks is not asked about
            assert not owner.asked
            async with connected(ride) as raw:
                await raw.write(GREETING + PACKETS)
                await hear_greeting(raw)
                client = Proxied(raw, PUTTY)
                if answer:
                    assert (await client.hear_kind(91)).number() == 256
                else:
                    assert await client.last_words() == "Permission denied"
            (question,) = owner.asked
            assert question.startswith("Allow shared connection to ")
            await eventually(lambda: not ride.upstream.clients)

    asyncio.run(main())
