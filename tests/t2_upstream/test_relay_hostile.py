"""Proxy clients that break every rule, flood, freeze, or grant without end: the connection and the others go on."""

from __future__ import annotations

import asyncio
import hashlib
import random
import resource
import signal
from collections.abc import Callable

import pytest

from mux.protocol.packets import LARGEST_FRAME_BYTES, PROXY
from mux.protocol.wire import string, u32
from mux.upstream.relay import Relay
from tests.support import processes
from tests.support.sshd import HOST, Sshd

from .proxied import Proxied, proxied, proxy, relays, start, works
from .riding import DEADLINE_S, Ride, eventually, riding

ENDLESS = 2**32 - 1
OPEN = string(b"session") + u32(9) + u32(1000) + u32(1000)


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


def request(name: bytes, *rest: bytes) -> bytes:
    return string(name) + b"\1" + b"".join(rest)


PTY = request(b"pty-req", string(b"xterm"), u32(80), u32(24), u32(0), u32(0), string(b"\0"))

# (message, what stands before the channel's number, what follows it): each ends the whole connection at an sshd that
# gets it, or would end it somewhere else.
DEADLY: dict[str, list[tuple[int, bytes, bytes | None]]] = {
    "disconnect": [(1, u32(11) + string(b"bye") + string(b""), None)],
    "key exchange": [(20, bytes(40), None)],
    "service request": [(5, string(b"ssh-userauth"), None)],
    "unknown number": [(127, b"", None)],
    "data for no channel": [(94, u32(4711) + string(b"x"), None)],
    "data for another's channel": [(94, u32(0) + string(b"x"), None)],
    "confirmation of nothing": [(91, u32(0) + u32(0) + u32(0) + u32(1), None)],
    "open cut short": [(90, string(b"session") + u32(0), None)],
    "session with something behind": [(90, OPEN + b"x", None)],
    "request of a name with a NUL": [(98, b"", string(b"ex\0ec") + b"\1")],
    "command with a NUL": [(98, b"", request(b"exec", string(b"true\0false")))],
    "command cut short": [(98, b"", request(b"exec", u32(100) + b"true"))],
    "environment cut short": [(98, b"", request(b"env", string(b"A")))],
    "terminal cut short": [(98, b"", PTY[:30])],
    "terminal modes cut short": [(98, b"", PTY[:-5] + string(b"\x01\0\0"))],
    "two terminals": [(98, b"", PTY), (98, b"", PTY)],
    "too much data": [(94, b"", string(bytes(32768)))] * 80,
    "one packet too large": [(94, b"", string(bytes(40000)))],
    "data cut short": [(94, b"", u32(100) + b"x")],
    "end of data with something behind": [(96, b"", b"x")],
    "extended data after the end of data": [(96, b"", b""), (95, b"", u32(1) + string(b"x"))],
    "close with something behind": [(97, b"", b"x")],
    "window beyond all bounds": [(93, b"", u32(ENDLESS)), (93, b"", u32(ENDLESS))],
    "window cut short": [(93, b"", b"\0")],
    "answer to nothing": [(99, b"", b"x")],
    "forwarding cut short": [(80, request(b"tcpip-forward", string(b"localhost")), None)],
    "cancelled with something behind": [(80, request(b"cancel-tcpip-forward", string(b""), u32(1), b"x"), None)],
}


@pytest.mark.parametrize("name", sorted(DEADLY))
def test_what_would_end_the_connection(sshd: Sshd, path: str, name: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            other = await start(ride, HOST, "echo up; cat")
            assert other.stdin is not None and other.stdout is not None
            assert await other.stdout.readline() == b"up\n"
            async with proxied(ride) as client:
                number = await client.open_session()
                for kind, before, after in DEADLY[name]:
                    await client.say(kind, before if after is None else number + after)
                if name == "request of a name with a NUL":  # unknown, as far as we are concerned
                    assert (await client.hear_kind(100)).body == u32(0)
                else:
                    words = await client.last_words()
                    assert words.startswith("the client ") or name == "disconnect"
            other.stdin.write(b"as before\n")
            async with asyncio.timeout(DEADLINE_S):
                assert await other.stdout.readline() == b"as before\n"
                await other.communicate(b"")
            assert await works(ride)

    asyncio.run(main())


def test_every_message_number_and_garbage(sshd: Sshd, path: str) -> None:
    roll = random.Random(3)

    async def babble(ride: Ride, kind: int | None) -> None:
        async with proxied(ride) as client:
            if kind is None:
                await client.write(roll.randbytes(roll.choice([1, 5, 100, 100_000])))
            else:
                number = await client.open_session()
                await client.say(kind, number, roll.randbytes(roll.randrange(50)))
                await client.say(kind, roll.randbytes(roll.randrange(50)))
                await client.say(kind)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            kinds: list[int | None] = [*range(256), *[None] * 50]
            for at in range(0, len(kinds), 10):
                await asyncio.gather(*(babble(ride, kind) for kind in kinds[at : at + 10]))
            await eventually(lambda: not ride.upstream.clients)
            assert await works(ride)

    asyncio.run(main())


@pytest.mark.parametrize("length", [0, 1, LARGEST_FRAME_BYTES + 1, ENDLESS])
def test_lengths_out_of_bounds(sshd: Sshd, path: str, length: int) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, proxied(ride) as client:
            await client.write(u32(length) + bytes(8))
            assert f"a packet of {length} bytes" in await client.last_words()

    asyncio.run(main())


def test_byte_by_byte_and_all_at_once(sshd: Sshd, path: str) -> None:
    packets = PROXY.pack(90, string(b"session") + u32(3) + u32(1000) + u32(1000)) + PROXY.pack(
        80, request(b"keepalive@openssh.com")
    )

    async def main() -> None:
        async with riding(sshd, path) as ride:
            for size in (1, 2, 7, len(packets)):
                async with proxied(ride) as client:
                    for at in range(0, len(packets), size):
                        await client.write(packets[at : at + size])
                        await asyncio.sleep(0)
                    kinds = {packet.kind for packet in (await client.hear(), await client.hear()) if packet}
                    assert kinds == {82, 91}

    asyncio.run(main())


async def unread(relay: Relay, least_bytes: int = 1) -> int:
    """How much waits for a client that reads nothing, once it is that much and no more comes."""
    before = -1
    async with asyncio.timeout(DEADLINE_S):
        while relay._unsent.queued_bytes != before or before < least_bytes:
            before = relay._unsent.queued_bytes
            await asyncio.sleep(0.1)  # long enough, mostly, for a server on this machine to send what it may
    return before


def test_one_that_grants_all_and_reads_nothing(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with proxied(ride) as client:
                await client.execute(b"cat /dev/zero", window=ENDLESS)
                (relay,) = relays(ride)
                assert await unread(relay, (4 << 20) + 1) < (10 << 20)
                for number in range(1, 6):
                    await client.say(90, string(b"session"), u32(number), u32(ENDLESS), u32(1))
                await client.say(93, u32(relay.channels[0].number), u32(0))
                assert await works(ride)
                assert await unread(relay) < (33 << 20)
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grown < (64 << 10)
                # It is served as soon as it reads, far beyond what was lent at first.
                got = 0
                while got < (64 << 20):
                    packet = await client.hear()
                    assert packet is not None
                    got += len(packet.body)
            await eventually(lambda: not ride.upstream.clients)
            assert await works(ride)

    asyncio.run(main())


def test_a_client_that_is_stopped(sshd: Sshd, path: str) -> None:
    """It loses nothing when it goes on, and nobody else notices."""

    async def main() -> None:
        async with riding(sshd, path) as ride:
            count = 64 << 20
            client = await start(ride, HOST, f"head -c {count} /dev/zero | tee >(md5sum >&2)")
            assert client.stdout is not None
            digest = hashlib.md5()
            got = len(first := await client.stdout.read(1 << 20))
            digest.update(first)
            client.send_signal(signal.SIGSTOP)
            (relay,) = relays(ride)
            assert await unread(relay) <= (2 << 20) + (1 << 17)
            assert await works(ride)
            done = await proxy(ride, HOST, "head -c 10000000 /dev/zero | md5sum")
            assert done.out.split()[0].decode() == hashlib.md5(bytes(10_000_000)).hexdigest()
            client.send_signal(signal.SIGCONT)
            async with asyncio.timeout(DEADLINE_S):
                while piece := await client.stdout.read(1 << 20):
                    got += len(piece)
                    digest.update(piece)
                await client.communicate(b"")
            assert got == count and digest.hexdigest() == hashlib.md5(bytes(count)).hexdigest()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["stopped", "gone"])
def test_a_silent_client_does_not_cost_the_connection(make_sshd: Callable[..., Sshd], how: str) -> None:
    """The server asks on the first channel whether we live, and hangs up on all when it hears nothing.

    One channel is that of a client that is stopped, or of one that has gone and whose command does not read its input,
    so that the server cannot close it.
    """
    sshd = make_sshd(extra=("ClientAliveInterval 2", "ClientAliveCountMax 3"))

    async def main() -> None:
        async with riding(sshd, str(sshd.control_dir / "upstream")) as ride:
            async with proxied(ride) as client:
                number = await client.execute(b"sleep 100")
                for _ in range(40):
                    await client.say(94, number, string(bytes(32768)))
                (relay,) = relays(ride)
                await eventually(lambda: relay.channels[0].sent_bytes == 40 * 32768)
                if how == "stopped":
                    done = await ride.ssh(HOST, "sleep 12; echo alive")
            await eventually(lambda: not ride.upstream.clients)
            if how == "gone":
                done = await ride.ssh(HOST, "sleep 12; echo alive")
                assert relay.channels
            assert (done.code, done.out) == (0, b"alive\n")
            # Nobody else would: it has no terminal, and does not look at its input.
            processes.end(process for process in sshd.sessions() if process.command == "sleep 100")

    asyncio.run(main())


async def flood(client: Proxied, packets: bytes) -> int:
    """Write until it does not take any more for a while; returns how often that went."""
    rounds = 0
    try:
        async with asyncio.timeout(2):
            while rounds < 2000 and not client.hung_up:
                await client.write(packets)
                rounds += 1
    except TimeoutError:
        pass
    return rounds


@pytest.mark.parametrize("kind", ["questions", "channel requests", "opens", "forwardings", "data"])
def test_floods(sshd: Sshd, path: str, kind: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride, proxied(ride) as client:
            number = await client.execute(b"cat", window=0)
            packets = {
                "questions": PROXY.pack(80, request(b"keepalive@openssh.com")),
                "channel requests": PROXY.pack(98, number + request(b"keepalive@openssh.com")),
                "opens": b"",
                "forwardings": PROXY.pack(80, request(b"tcpip-forward", string(b"localhost"), u32(0))),
                "data": PROXY.pack(94, number + string(b"x")),
            }[kind] * 200
            if kind == "opens":
                packets = b"".join(
                    PROXY.pack(90, string(b"direct-tcpip") + u32(n) + u32(9) + u32(9) + string(b"127.0.0.1") + u32(9)
                               + string(b"") + u32(0)) for n in range(100, 1300)
                )  # fmt: skip
            flooding = asyncio.create_task(flood(client, packets))
            for _ in range(3):
                assert await works(ride)
            for relay in relays(ride):
                assert relay._unsent.queued_bytes < (2 << 20) and len(relay.channels) <= 1000
            await flooding
            assert await works(ride)

    asyncio.run(main())
