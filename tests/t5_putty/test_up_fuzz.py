"""Anything at all on our PuTTY socket: before the greeting, behind it, and in packets that are nearly right."""

from __future__ import annotations

import asyncio
import random
import resource

import pytest

from mux.protocol.packets import PUTTY
from mux.protocol.wire import string, u32
from tests.support.sshd import Sshd
from tests.t2_upstream.proxied import Proxied
from tests.t2_upstream.riding import Ride, eventually
from tests.t5_putty.bare_clients import GREETING, bare, connected, sharing, works

ROUNDS = 60
LARGEST_GROWTH_KIB = 64 << 10
NAMES = [b"session", b"direct-tcpip", b"exec", b"env", b"tcpip-forward", b"x11", b"", b"\xff\0", b"winadj@putty"]


@pytest.mark.parametrize("seed", range(3))
def test_garbage_before_and_behind_the_greeting(sshd: Sshd, seed: int) -> None:
    roll = random.Random(seed)

    async def babble(ride: Ride) -> None:
        async with connected(ride) as raw:
            data = roll.randbytes(roll.choice([1, 3, 40, 2000, 40_000]))
            greeting = roll.choice([b"", GREETING, GREETING[: roll.randrange(60)], GREETING[::-1]])
            try:
                await raw.write(greeting + data)
            except (BrokenPipeError, ConnectionResetError):
                return

    async def main() -> None:
        async with sharing(sshd) as ride:
            for _ in range(ROUNDS // 10):
                await asyncio.gather(*(babble(ride) for _ in range(10)))
            await eventually(lambda: not ride.upstream.clients)
            assert await works(ride)

    asyncio.run(main())


def nearly(roll: random.Random, session: bytes) -> bytes:
    """A packet that could be one."""
    kind = roll.choice([*range(80, 101), roll.randrange(256)])
    parts = [session] if roll.random() < 0.7 else [u32(roll.randrange(300))]
    for _ in range(roll.randrange(5)):
        parts.append(
            roll.choice([string(roll.choice(NAMES)), u32(roll.choice([0, 1, 256, 2**31, 2**32 - 1])), b"\0", b"\1"])
        )
    body = b"".join(parts)
    return PUTTY.pack(kind, body[: roll.randrange(len(body) + 1)] if roll.random() < 0.2 else body)


@pytest.mark.parametrize("seed", range(3))
def test_packets_that_are_nearly_right(sshd: Sshd, seed: int) -> None:
    roll = random.Random(100 + seed)

    async def babble(ride: Ride) -> None:
        async with bare(ride) as client:
            session = await client.open_session(roll.randrange(300))
            for _ in range(20):
                await client.write(nearly(roll, session))
            if roll.random() < 0.5:
                await client.say(127)  # is answered by the last words
                await client.last_words()

    async def main() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with sharing(sshd) as ride, bare(ride) as decent:
            session = await decent.execute(b"cat")
            for round_ in range(ROUNDS // 10):
                await asyncio.gather(*(babble(ride) for _ in range(10)))
                await decent.say(94, session, string(b"%d" % round_))
                assert (await decent.hear_kind(94)).body[8:] == b"%d" % round_
            await eventually(lambda: len(ride.upstream.clients) == 1)
            await eventually(lambda: len(ride.upstream.engine.routes()) == 1)
            assert await works(ride)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LARGEST_GROWTH_KIB

    asyncio.run(main())


def test_every_message_number_with_and_without_a_channel(sshd: Sshd) -> None:
    roll = random.Random(7)

    async def babble(ride: Ride, kind: int) -> None:
        async with bare(ride) as client:
            number = await client.open_session()
            await client.say(kind, number, roll.randbytes(roll.randrange(50)))
            await client.say(kind, roll.randbytes(roll.randrange(50)))
            await client.say(kind)

    async def main() -> None:
        async with sharing(sshd) as ride:
            for start in range(0, 256, 16):
                await asyncio.gather(*(babble(ride, kind) for kind in range(start, start + 16)))
            await eventually(lambda: not ride.upstream.clients)
            assert await works(ride)

    asyncio.run(main())


def test_questions_without_end_whose_answers_nobody_reads(sshd: Sshd) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride, connected(ride) as raw:
            await raw.write(GREETING)
            question = PUTTY.pack(80, string(b"keepalive@openssh.com") + b"\1")
            flooding = asyncio.create_task(raw.write(question * 500_000))
            for _ in range(5):
                assert await works(ride)
            assert not flooding.done()  # it is not read from
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            flood = Proxied(raw, PUTTY)
            assert flood.hung_up is False

    asyncio.run(main())
