"""PuTTYs that die, freeze, flood or never say a word, and our own end (U25-U28, U33, U34)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from typing import BinaryIO

import pytest

from mux.protocol.bare import PREFIX
from mux.protocol.packets import PUTTY
from mux.protocol.wire import string, u32
from mux.upstream import farewells
from mux.upstream import putty as serving
from mux.upstream.farewells import MAX_PARTING
from tests.support import processes
from tests.support.putty import environment
from tests.support.sshd import Sshd, program
from tests.support.upstream import Upstream
from tests.support.waiting import wait_until
from tests.t2_upstream.riding import eventually
from tests.t5_putty.bare_clients import GREETING, bare, connected, hear_greeting, putty_path, relays, sharing, works
from tests.t5_putty.riders import Riders, said
from tests.t5_putty.riders import works as riders_work
from tests.t5_putty.shown import clients
from tests.t5_upstream.sockets import read_exactly

ENDLESS = 2**32 - 1


@pytest.mark.parametrize("command", ["cat", "cat /dev/zero", "cat >/dev/null"])
def test_u25_killed_at_any_moment(riders: Riders, server: Sshd, command: str) -> None:
    with riders.started("echo bystander; exec cat") as bystander:
        said(bystander, b"bystander\n")
        before = len(server.sessions())
        for _ in range(5):
            with riders.started(f"echo up; {command}") as plink:
                said(plink, b"up\n")
                if command == "cat /dev/zero":
                    assert plink.stdout is not None and len(plink.stdout.read(1 << 20)) == 1 << 20
                elif command == "cat >/dev/null":
                    flood(plink)
                plink.kill()
        wait_until(lambda: len(server.sessions()) <= before, "the server has closed what was the dead ones'")
        assert bystander.communicate(b"as before", timeout=20)[0] == b"as before"
    assert riders_work(riders)


def flood(plink: subprocess.Popen[bytes]) -> None:
    assert plink.stdin is not None
    for _ in range(64):
        plink.stdin.write(bytes(1 << 16))


def test_u25_killed_before_the_answer_and_numbers_are_free_again(sshd: Sshd) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride:
            for _ in range(150):  # more than the server has sessions: each has to be closed
                async with bare(ride) as client:
                    await client.say(90, string(b"session"), u32(256), u32(0x4000), u32(0x4000))
            await eventually(lambda: not relays(ride))
            await eventually(lambda: not ride.upstream.engine.routes())
            assert await works(ride)

    asyncio.run(main())


def test_u26_half_a_hang_up_is_one(sshd: Sshd) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride:
            async with connected(ride) as raw:
                await raw.write(GREETING)
                await hear_greeting(raw)
                await eventually(lambda: relays(ride))
                raw.socket.shutdown(socket.SHUT_WR)
                assert await raw.rest() == b""
            assert await works(ride)

    asyncio.run(main())


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ask_without_end(connection: socket.socket, path: str) -> None:
    """Open five sessions that write for ever into endless windows, and read nothing of it."""
    connection.settimeout(20)
    connection.connect(path)
    connection.sendall(GREETING)
    while read_exactly(connection, 1) != b"\n":
        pass
    numbers: list[bytes] = []
    for channel in range(5):
        opening = string(b"session") + u32(256 + channel) + u32(ENDLESS) + u32(0x8000)
        connection.sendall(PUTTY.pack(90, opening))
        while len(numbers) == channel:
            packet = read_exactly(connection, int.from_bytes(read_exactly(connection, 4)))
            numbers += [packet[5:9]] if packet[0] == 91 else []
    for number in numbers:
        connection.sendall(PUTTY.pack(98, number + string(b"exec") + b"\0" + string(b"cat /dev/zero")))


def test_u27_who_never_reads_holds_little_and_stops_nobody(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]], stack: ExitStack
) -> None:
    upstream, riders = make_ours(make_sshd(max_sessions=100))
    assert riders_work(riders)
    before = resident_bytes(upstream.pid)
    for _ in range(4):
        frozen = stack.enter_context(socket.socket(socket.AF_UNIX))
        ask_without_end(frozen, riders.path)
        assert riders_work(riders)
    for _ in range(5):
        data = os.urandom(4 << 20)
        assert riders.plink("cat", data=data).stdout == data
        assert resident_bytes(upstream.pid) - before < 160 << 20


def test_u27_a_stopped_plink(riders: Riders) -> None:
    with riders.started("echo up; cat /dev/zero") as plink:
        said(plink, b"up\n")
        plink.send_signal(signal.SIGSTOP)
        for _ in range(3):
            assert riders_work(riders)
        plink.send_signal(signal.SIGCONT)
        assert plink.stdout is not None
        assert len(plink.stdout.read(8 << 20)) == 8 << 20


def test_u28_who_never_greets_is_nobody(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride:
            async with connected(ride) as silent, connected(ride) as slow:
                await slow.write(PREFIX)
                await eventually(lambda: len(ride.upstream.clients) == 2)
                assert await works(ride)
                await eventually(lambda: not ride.upstream.engine.routes())
            await eventually(lambda: not ride.upstream.clients)
            monkeypatch.setattr(serving, "GREETING_DEADLINE_S", 0.05)
            async with connected(ride) as silent:
                assert b"no greeting came in time" in await silent.rest()
            assert ride.upstream.tally.dropped == 0

    asyncio.run(main())


def test_u28_an_upstream_does_not_stay_for_who_never_greets(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    """A connection that is looked at again and again ends as soon as if it were not."""
    upstream, riders = make_ours(make_sshd(), options=["--persist=5"])
    with riders.started("echo up") as plink:
        said(plink, b"up\n")
    until = time.monotonic() + 40
    while riders.exists():
        assert time.monotonic() < until, "looking keeps it"
    upstream.wait_ended()


def last_words(plink: subprocess.Popen[bytes]) -> bytes:
    """What it writes to stderr until it ends; its own input goes on, so that it does not end by itself."""
    assert plink.stderr is not None
    words = plink.stderr.read()
    plink.wait(20)
    return words


@pytest.mark.parametrize("way", ["exit", "SIGTERM"])
def test_u33_everybody_is_told_that_we_go(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]], way: str
) -> None:
    upstream, riders = make_ours(make_sshd())
    with riders.started("echo up; cat") as busy, riders.started(options=("-v", "-N")) as idle:
        said(busy, b"up\n")
        assert idle.stderr is not None
        idle.stderr.readline()
        wait_until(lambda: len(clients(upstream)) == 2, "both ride")
        upstream.exit() if way == "exit" else upstream.terminate()
        for plink in (busy, idle):
            words = last_words(plink)
            assert plink.returncode == 1
            assert b"Remote side sent disconnect message" in words, words
            assert (b"disconnected by user" if way == "exit" else b"SIGTERM was received") in words
    upstream.wait_ended()


def test_u33_of_many_each_is_told(sshd: Sshd) -> None:
    """Of more than are waited for, too."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            async with sharing(sshd) as ride:
                crowd = [await stack.enter_async_context(bare(ride)) for _ in range(MAX_PARTING + 6)]
                await eventually(lambda: len(relays(ride)) == len(crowd))
                ride.upstream.end("everybody out")
            assert [await one.last_words() for one in crowd] == ["everybody out"] * len(crowd)

    asyncio.run(main())


def test_u33_who_writes_without_end_is_told(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is closed with something unread in it is reset, and a PuTTY then forgets what it was told."""
    monkeypatch.setattr(farewells, "PARTING_S", 30.0)  # or a plink that gets no processor meanwhile is reset after all

    async def main(zeros: BinaryIO) -> None:
        async with sharing(sshd) as ride:
            command = [program("plink"), "-ssh-connection", "-batch", putty_path(ride), "cat >/dev/null"]
            flooding = await asyncio.create_subprocess_exec(
                *command, stdin=zeros, stderr=asyncio.subprocess.PIPE, env=environment(sshd)
            )
            try:
                await eventually(lambda: [relay.sent_bytes > 8 << 20 for relay in relays(ride)] == [True])
                ride.upstream.end("everybody out")
                async with asyncio.timeout(20):
                    _, words = await flooding.communicate()
            finally:
                if flooding.returncode is None:
                    flooding.kill()
                    await flooding.communicate()
        assert flooding.returncode == 1 and b"everybody out" in words, words

    with open("/dev/zero", "rb") as zeros:
        asyncio.run(main(zeros))


def test_u33_who_reads_nothing_keeps_nobody(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    upstream, riders = make_ours(make_sshd())
    with riders.started("echo up; cat /dev/zero") as frozen:
        said(frozen, b"up\n")
        frozen.send_signal(signal.SIGSTOP)
        upstream.terminate()
        upstream.wait_ended()


def test_u33_it_stays_for_its_riders_when_nobody_new_is_taken(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    upstream, riders = make_ours(make_sshd())
    with riders.started("echo up; cat") as plink:
        said(plink, b"up\n")
        assert upstream.control("stop").returncode == 0
        assert not riders.published and not riders.exists()
        assert upstream.running
        assert plink.communicate(b"to the last", timeout=20)[0] == b"to the last"
    upstream.wait_ended()


def test_u34_the_server_is_lost(
    make_sshd: Callable[..., Sshd], make_ours: Callable[..., tuple[Upstream, Riders]]
) -> None:
    sshd = make_sshd()
    upstream, riders = make_ours(sshd)
    with ExitStack() as stack:
        plinks = [stack.enter_context(riders.started("echo up; cat")) for _ in range(5)]
        for plink in plinks:
            said(plink, b"up\n")
        idle = stack.enter_context(riders.started(options=("-v", "-N")))
        assert idle.stderr is not None
        idle.stderr.readline()
        wait_until(lambda: len(clients(upstream)) == 6, "all ride")
        sshd.kill()
        for plink in (*plinks, idle):
            words = last_words(plink)
            assert plink.returncode == 1 and b"disconnect message" in words, words
    upstream.wait_ended()
    assert not riders.published
    assert not [one for one in processes.descendants(os.getpid()) if one.pid == upstream.pid and one.running]
