"""Clients that lie, hang, flood or hoard: each costs itself, and nobody else waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mux.protocol.control import Signal
from mux.protocol.messages import Alive, AliveCheck, Failure, InfoRequest, NewSession, Proxy, ProxyReady, encode
from mux.protocol.wire import string
from mux.upstream import clients, entrance, upstream
from mux.upstream.relay import Relay
from tests.support.sshd import HOST, Sshd, program

from .proxied import Proxied, relays
from .riding import Raw, eventually, riding

GREETING = bytes.fromhex("0000000800000001 00000004")
OUR_GREETING = bytes.fromhex("00000015 00000001 00000004 00000004") + b"info" + bytes.fromhex("00000001") + b"0"
CHECK = bytes.fromhex("00000008 10000004 00000007")
SESSION = encode(NewSession(0, command=b"true"))


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


class Undecided:
    """Who is asked, and never answers."""

    async def confirm(self, text: str) -> bool:
        await asyncio.Event().wait()
        return True


async def is_served(client: Raw) -> None:
    number = client.core.new_request_id()
    assert await client.ask(AliveCheck(number)) == Alive(number, os.getpid())


NONSENSE = {
    "no greeting": CHECK,
    "another version": bytes.fromhex("00000008 00000001 00000003"),
    "two greetings": GREETING + GREETING,
    "an extension without a value": bytes.fromhex("00000010 00000001 00000004 00000004") + b"info",
    "no type": GREETING + bytes.fromhex("00000003 000000"),
    "nothing in it": GREETING + bytes.fromhex("00000000"),
    "too long by one": GREETING + (256 * 1024 + 1).to_bytes(4, "big"),
    "too long by far": b"\xff" * 64,
    "ends early": GREETING + bytes.fromhex("00000006 10000004 0000"),
    "a string over the end": GREETING + bytes.fromhex("0000000c 10000002 00000000 00000001"),
    "a byte without its descriptor": GREETING + SESSION + b"\0",
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_hung_up_on(sshd: Sshd, path: str, name: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as decent, await ride.raw() as client:
                await decent.greet()
                await client.write(NONSENSE[name])
                assert await client.rest() == OUR_GREETING
                await is_served(decent)
                assert ride.upstream.tally.dropped == 1

    asyncio.run(main())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    pieces=st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([GREETING, CHECK, SESSION, b"\0"])), max_size=9)
)
def test_garbage(sshd: Sshd, path: str, pieces: list[bytes]) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as decent:
                await decent.greet()
                for piece in (b"", GREETING):
                    with await ride.raw() as client:
                        for garbage in (piece, *pieces):
                            try:
                                await client.write(garbage)
                            except (BrokenPipeError, ConnectionResetError):
                                break
                        await is_served(decent)
                await eventually(lambda: len(ride.upstream.clients) == 1)

    asyncio.run(main())


def test_withheld_descriptors(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client, await ride.raw() as decent:
                await decent.greet()
                await client.write(GREETING + SESSION)
                await client.write(b"\0", [client.socket.fileno()])
                await eventually(lambda: any("rest" in each._timers for each in ride.clients))
                await is_served(decent)  # a real master serves nobody now
                assert (await ride.ssh("box", "echo also served")).out == b"also served\n"
                for each in ride.clients:
                    if "rest" in each._timers:
                        fire(each)
                assert await client.rest() == OUR_GREETING
                await is_served(decent)

    asyncio.run(main())


def fire(client: clients.Client) -> None:
    """Let the deadline of this client's request be over."""
    timer = client._timers["rest"]
    assert timer.when() - asyncio.get_running_loop().time() <= clients.REST_DEADLINE_S
    client._set_timer("rest", 0, client.drop, "in a test")


def test_the_rest_of_a_request_has_a_deadline(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "REST_DEADLINE_S", 0.02)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            for said in (GREETING[:5], GREETING + CHECK[:9], GREETING + SESSION, GREETING + SESSION + b"\0"):
                with await ride.raw() as client:
                    descriptors = [client.socket.fileno()] if said.endswith(b"\0") else []
                    await client.write(said[:-1] if descriptors else said)
                    if descriptors:
                        await client.write(b"\0", descriptors)
                    assert await client.rest() == OUR_GREETING
            with await ride.raw() as client:
                await client.greet()
                await client.write(CHECK[:7])
                await client.write(CHECK[7:])
                assert await client.read(16)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await client.read(1)

    asyncio.run(main())


def test_a_client_that_does_not_greet(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "HELLO_DEADLINE_S", 0.02)

    async def main() -> None:
        async with riding(sshd, path) as ride, asyncio.timeout(60):
            with await ride.raw() as client:
                assert await client.rest() == OUR_GREETING

    asyncio.run(main())


class Lent:
    """A pipe whose writing end is handed over: its end shows only when nobody has kept that."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reading)
        self._close()

    async def given_back(self) -> None:
        """Close our own, and return once that was the last."""
        self._close()
        await eventually(lambda: select.select([self._reading], [], [], 0)[0])

    def _close(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1


def test_surplus_descriptors_are_closed(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with Lent() as lent, await ride.raw() as client:
                await client.greet()
                await client.write(CHECK, [lent.writing, lent.writing])
                assert await client.read(16)
                await lent.given_back()
                await is_served(client)

    asyncio.run(main())


@pytest.mark.parametrize("count", [17, 60, 253])
def test_more_descriptors_than_anybody_needs(sshd: Sshd, path: str, count: int) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as decent, await ride.raw() as client:
                await decent.greet()
                before = set(os.listdir("/proc/self/fd"))
                await client.write(GREETING, [client.socket.fileno()] * count)
                await client.rest()
                assert len(os.listdir("/proc/self/fd")) <= len(before)
                await is_served(decent)
                assert ride.upstream.tally.dropped == 1

    asyncio.run(main())


def test_descriptors_in_drops_are_closed_with_the_client(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client:
                await client.write(GREETING + SESSION)
                await client.write(b"\0", [client.socket.fileno()])
                await client.write(b"\0", [client.socket.fileno()])
            await eventually(lambda: not ride.upstream.clients)
            # The leak check of every test does the rest.

    asyncio.run(main())


def test_descriptors_may_not_pile_up_while_the_owner_is_asked(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path, prompts=Undecided(), control_master="ask") as ride:
            with await ride.raw() as client:
                await client.write(GREETING + encode(Proxy(0)))
                before = len(os.listdir("/proc/self/fd"))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for _ in range(40):
                        await client.write(b"\0", [client.socket.fileno()] * 16)
                        await asyncio.sleep(0)
                        assert len(os.listdir("/proc/self/fd")) <= before + 3 * 16
                assert await client.rest() == OUR_GREETING
            await eventually(lambda: ride.upstream.tally.dropped == 1)

    asyncio.run(main())


def test_descriptors_of_a_client_that_has_gone_before_its_request_is_looked_at(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with Lent() as lent:
                with await ride.raw() as client:
                    await client.greet()
                    await client.write(CHECK + SESSION + b"\0\0\0", [lent.writing] * 3)
                await eventually(lambda: not ride.upstream.clients)
                await lent.given_back()
                assert ride.upstream.tally.sessions == 0

    asyncio.run(main())


def test_a_flood_that_ends_in_proxy_mode_is_one_relays(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PORTION_S", 0.0)  # the pause ends as soon as proxy mode has begun
    begun: list[Relay] = []

    def counted(*arguments: Any) -> Relay:
        begun.append(Relay(*arguments))
        return begun[-1]

    monkeypatch.setattr(clients, "Relay", counted)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client:
                count = clients.REQUESTS_PER_PORTION
                await client.write(GREETING + CHECK * count + encode(Proxy(0)))
                assert await client.read(len(OUR_GREETING)) == OUR_GREETING
                assert len(await client.read(16 * count)) == 16 * count
                assert await client.read(12) == encode(ProxyReady(0))
                proxied = Proxied(client)
                session = await proxied.execute(b"cat")
                await proxied.say(94, session, string(b"word"))
                assert (await proxied.hear_kind(94)).body[8:] == b"word"
                assert len(begun) == 1
            await eventually(lambda: not ride.upstream.clients and not begun[0].channels)

    asyncio.run(main())


def test_descriptors_that_came_with_a_request_for_proxy_mode(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with Lent() as lent, await ride.raw() as client:
                await client.greet()
                await client.write(encode(Proxy(0)) + b"\0", [lent.writing] * 16)
                assert await client.read(12) == encode(ProxyReady(0))
                await lent.given_back()
                assert relays(ride)

    asyncio.run(main())


def test_a_flood_of_requests_whose_answers_nobody_reads(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as flood, await ride.raw() as decent:
                await decent.greet()
                await flood.write(GREETING)
                flooding = asyncio.create_task(flood.write(CHECK * 200_000))
                for _ in range(200):
                    await is_served(decent)
                assert (await ride.ssh("box", "echo served")).out == b"served\n"
                worst = max(ride.clients, key=lambda client: client._unsent.queued_bytes)
                assert worst._unsent.queued_bytes <= clients.MAX_UNSENT_BYTES + clients.READ_BYTES * 2
                assert not flooding.done()
                flooding.cancel()
                await asyncio.gather(flooding, return_exceptions=True)
            await eventually(lambda: not ride.upstream.clients)

    asyncio.run(main())


@pytest.mark.parametrize("request_bytes", [CHECK, bytes.fromhex("00000008 1000007f 00000003")])
def test_a_flood_whose_answers_are_read_is_served_in_portions(
    sshd: Sshd, path: str, request_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as flood, await ride.raw() as decent:
                await flood.write(GREETING)
                await decent.greet()
                assert await flood.read(len(OUR_GREETING)) == OUR_GREETING
                monkeypatch.setattr(clients, "PORTION_S", 3600.0)
                await flood.write(request_bytes * 2000)
                await eventually(lambda: any("pace" in client._timers for client in ride.clients))
                length = 4 + int.from_bytes(await flood.read(4), "big")
                answers = flood.socket.recv(length * 2000)
                most = clients.REQUESTS_PER_PORTION + clients.READ_BYTES // len(request_bytes)
                assert clients.REQUESTS_PER_PORTION <= len(answers) // length + 1 <= most
                await is_served(decent)
                (paced,) = (client for client in ride.clients if "pace" in client._timers)
                monkeypatch.undo()
                paced._clear_timer("pace")
                paced._flush()
                assert len(await flood.read(length * 2000 - 4 - len(answers))) == length * 2000 - 4 - len(answers)

    asyncio.run(main())


def test_a_flood_of_questions_about_everything_is_answered_one_by_one(
    sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = encode(InfoRequest(0, b"sshmux-status"))
    count = clients.READ_BYTES // len(question)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as flood, await ride.raw() as decent:
                await flood.greet()
                await decent.greet()
                monkeypatch.setattr(clients, "PORTION_S", 3600.0)
                await flood.write(question * count)
                await flood.read(int.from_bytes(await flood.read(4), "big"))
                await is_served(decent)
                with pytest.raises(BlockingIOError):
                    flood.socket.recv(1)
                (paced,) = (client for client in ride.clients if "pace" in client._timers)
                monkeypatch.setattr(clients, "PORTION_S", 0.0)
                monkeypatch.setattr(clients, "TELLING_SHARE", 1.0)
                paced._set_timer("pace", 0, paced._advance)
                for _ in range(count - 1):
                    await flood.read(int.from_bytes(await flood.read(4), "big"))
                await flood.write(CHECK)
                assert await flood.read(16)

    asyncio.run(main())


def test_many_unfinished_requests_are_too_many(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_HELD_BYTES", 10_000)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as small, await ride.raw() as large, await ride.raw() as larger:
                for client, count in ((small, 100), (large, 4000), (larger, 7000)):
                    await client.write(GREETING + (100_000).to_bytes(4, "big") + bytes(count))
                assert await larger.rest() == OUR_GREETING
                await eventually(lambda: ride.upstream.held_bytes == 104 + 4004)
                assert len(ride.upstream.clients) == 2
            await eventually(lambda: not ride.upstream.clients)
            assert ride.upstream.held_bytes == 0

    asyncio.run(main())


def test_a_client_talks_on_while_its_request_is_served(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path, prompts=Undecided(), control_master="ask") as ride:
            with await ride.raw() as client, await ride.raw() as decent:
                await decent.greet()
                await client.write(GREETING + bytes.fromhex("00000008 10000005 00000000"))
                talking = asyncio.create_task(client.write(CHECK * 100_000))
                assert await client.rest() == OUR_GREETING
                await asyncio.gather(talking, return_exceptions=True)
                await is_served(decent)
                assert ride.upstream.held_bytes == 0

    asyncio.run(main())


def test_more_clients_than_there_is_room_for(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_CLIENTS", 3)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            here = [await (await ride.raw()).greet() for _ in range(3)]
            done = await ride.control("check")
            assert (done.code, done.out, done.err) == (0, b"", f"Master running (pid={os.getpid()})\r\n")
            alone = await ride.ssh(HOST, "echo by itself")
            assert (alone.code, alone.out) == (0, b"by itself\n")
            assert "too many clients share this connection" in alone.err
            with await ride.raw() as surplus:
                await surplus.greet()
                assert await surplus.ask(Proxy(0)) == Failure(0, clients.FULL.encode())
                assert await surplus.event() is Signal.ENDED
            for client in here:
                await is_served(client)
            here[0].socket.close()
            await eventually(lambda: len(ride.upstream.clients) == 2)
            assert (await ride.ssh(HOST, "echo rides")).out == b"rides\n"
            assert (ride.upstream.tally.surplus, ride.upstream.tally.sessions) == (3, 1)
            for client in here:
                client.socket.close()

    asyncio.run(main())


def test_more_clients_than_are_told_that_there_is_no_room(
    sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "MAX_CLIENTS", 1)
    monkeypatch.setattr(upstream, "MAX_SURPLUS", 1)
    monkeypatch.setattr(clients, "SURPLUS_DEADLINE_S", 0.02)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client, await ride.raw() as surplus, await ride.raw() as too_many:
                await client.greet()
                assert await too_many.rest() == b""
                assert await surplus.rest() == OUR_GREETING
                await is_served(client)
                assert (ride.upstream.tally.surplus, ride.upstream.tally.dropped) == (2, 1)

    asyncio.run(main())


def test_whoever_is_idle_gives_way_to_somebody_else(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_CLIENTS", 3)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as rider, await ride.raw() as idle, await ride.raw() as later:
                for client in (rider, idle, later):
                    await client.greet()
                assert await rider.ask(Proxy(0)) == ProxyReady(0)
                await is_served(idle)
                await is_served(later)
                with monkeypatch.context() as patch:
                    patch.setattr(upstream, "IDLE_S", 0.0)
                    assert (await ride.ssh(HOST, "echo rides")).out == b"rides\n"
                assert await idle.event() is Signal.ENDED
                await is_served(later)
                assert relays(ride)
                assert ride.upstream.tally.surplus == 0

    asyncio.run(main())


def test_out_of_descriptors(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "ACCEPT_PAUSE_S", 0.02)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as decent:
                await decent.greet()
                client = await ride.raw()
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
                try:
                    door = ride.upstream._entrance
                    assert door is not None
                    await eventually(lambda: door._retry is not None)
                    await is_served(decent)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                with client:
                    await client.greet()
                    await is_served(client)

    asyncio.run(main())


def test_another_user_is_turned_away_unheard(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can come as somebody else; when others come, the upstream takes itself for somebody else."""
    me = os.geteuid()
    directory = Path("/tmp") / Path(sshd.directory).name.replace("-", "-u", 1)
    directory.mkdir(mode=0o755)
    path = str(directory / "upstream")
    script = (
        "import os, socket, sys; os.geteuid() or (os.setgid(65534), os.setuid(65534));"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(100))"
    )

    async def main() -> None:
        async with riding(sshd, path) as ride:
            os.chmod(path, 0o666)
            with monkeypatch.context() as patch:
                if me != 0:
                    patch.setattr(os, "geteuid", lambda: me + 1)
                done = await ride.run(sys.executable, "-c", script, path)
            assert (done.out, done.code) == (b"b''\n", 0), done
            assert ride.upstream.tally.foreign == 1
            assert ride.upstream.tally.clients == 0

    try:
        asyncio.run(main())
    finally:
        directory.rmdir()


def test_a_frozen_client_delays_nobody(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            reading, writing = os.pipe()
            command = [program("ssh"), "-F", str(sshd.ssh_config), "-S", path, "box", "yes"]
            frozen = await asyncio.create_subprocess_exec(*command, stdout=writing, env=sshd.environment())
            os.close(writing)
            try:
                await eventually(lambda: ride.upstream.tally.sessions == 1)
                frozen.send_signal(signal.SIGSTOP)
                for number in range(5):
                    assert (await ride.ssh("box", f"echo {number}")).out == f"{number}\n".encode()
            finally:
                frozen.kill()
                await frozen.wait()
                os.close(reading)
            await eventually(lambda: not ride.upstream.clients)

    asyncio.run(main())


def test_clients_that_come_and_go_leave_nothing(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            before, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
            for _ in range(300):
                with await ride.raw() as client:
                    await client.write(GREETING + CHECK + SESSION[:9])
            await eventually(lambda: ride.upstream.tally.clients == 300 and not ride.upstream.clients)
            assert len(os.listdir("/proc/self/fd")) == before
            assert len(asyncio.all_tasks()) == tasks
            at_once = [await ride.raw() for _ in range(100)]
            for client in at_once:
                with client:
                    await client.greet()
                    await is_served(client)

    asyncio.run(main())


def test_the_end_comes_between_two_pieces(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            for length in range(len(GREETING + CHECK)):
                with await ride.raw() as client:
                    await client.write((GREETING + CHECK)[:length])
                    client.socket.shutdown(socket.SHUT_WR)
                    assert (await client.rest()).startswith(OUR_GREETING)
            with await ride.raw() as client:
                await client.greet()
                client.socket.shutdown(socket.SHUT_WR)
                assert await client.event() is Signal.ENDED

    asyncio.run(main())
