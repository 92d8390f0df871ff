"""The engine on a real server: channels, global requests, channels the server opens, and what is told of it all."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import socket
from typing import Any

import pytest

from mux.errors import ConnectionLost
from mux.protocol.wire import Reader, string, u32
from mux.upstream import doors
from mux.upstream.engine import IncomingOpen
from mux.upstream.handle import FIRST_TRIPS
from tests.support import processes
from tests.support.sshd import HOST, Sshd
from tests.t2_upstream.harness import DEADLINE_S, Exec, connected

FORWARD = b"tcpip-forward"


def test_a_command_runs(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            ran = Exec(engine, "cat; exit 3", send=b"some words")
            assert await ran.done() == b"some words"
            assert ran.status == 3
            assert ran.kinds[0] == 91 and ran.kinds[-1] == 97
            assert engine.lost is None

    asyncio.run(main())


def test_channels_at_the_same_time_get_their_own(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            texts = [os.urandom(50_000 + number) for number in range(12)]
            running = [Exec(engine, f"cat; exit {number}", send=text) for number, text in enumerate(texts)]
            assert [await ran.done() for ran in running] == texts
            assert [ran.status for ran in running] == list(range(12))

    asyncio.run(main())


def test_parts_are_not_needed_after_they_were_sent(sshd: Sshd) -> None:
    """Also while keys are exchanged, when packets are kept."""

    async def main() -> None:
        async with connected(sshd) as engine:
            for keys_change in (False, True):
                route = Exec(engine, "true")
                await route.done()
                if keys_change:
                    engine.rekey()
                kind, number = bytearray(string(b"session")), bytearray(u32(route.number))
                got: list[tuple[int, bytes]] = []
                answered = asyncio.Event()
                taker = Taker(got, answered)
                number[:] = u32(engine.add_route(taker))
                engine.send(90, memoryview(kind), memoryview(number), u32(1 << 20), u32(1 << 15))
                kind[:] = bytes(len(kind))
                number[:] = bytes(4)
                await asyncio.wait_for(answered.wait(), DEADLINE_S)
                assert [kind for kind, _ in got] == [91]

    asyncio.run(main())


class Taker:
    """Notes the packets to one number."""

    def __init__(self, got: list[tuple[int, bytes]], came: asyncio.Event) -> None:
        self.got = got
        self.came = came

    def packet(self, kind: int, body: memoryview) -> None:
        self.got.append((kind, bytes(body)))
        self.came.set()

    def lost(self, reason: str) -> None:
        """Not of interest here."""


def test_a_packet_to_a_number_that_was_given_back_does_no_harm(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            ran = Exec(engine, "true")
            engine.remove_route(ran.number)
            engine.remove_route(ran.number)
            await engine.measure(DEADLINE_S)
            assert ran.kinds == []
            assert await Exec(engine, "echo alive").done() == b"alive\n"

    asyncio.run(main())


def test_numbers_are_not_used_again_and_not_remembered_for_ever(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            taker = Taker([], asyncio.Event())
            numbers = [engine.add_route(taker) for _ in range(3 * doors.REMEMBERED)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert engine.routes() == [(number, taker) for number in numbers]
            for number in numbers:
                engine.remove_route(number)
            assert engine.routes() == []
            assert engine.add_route(taker) == numbers[-1] + 1
            await engine.measure(DEADLINE_S)

    asyncio.run(main())


def test_numbers_start_again_behind_the_last_and_leave_out_those_in_use() -> None:
    table: dict[int, doors.Door] = {}
    numbers = doors.Doors(table)
    taker = Taker([], asyncio.Event())
    assert [numbers.add(taker) for _ in range(3)] == [0, 1, 2]
    numbers.retire(1)
    numbers._next = doors.NUMBERS - 1
    assert [numbers.add(taker) for _ in range(2)] == [doors.NUMBERS - 1, 3]


def test_a_route_that_fails_is_lost_alone(sshd: Sshd, expect_log: Any) -> None:
    class Failing(Exec):
        def packet(self, kind: int, body: memoryview) -> None:
            if kind == 94:
                raise ValueError("no such idea")
            super().packet(kind, body)

    expect_log("a channel is given up")

    async def main() -> None:
        async with connected(sshd) as engine:
            failing, other = Failing(engine, "echo x"), Exec(engine, "echo y")
            await failing.done()
            assert failing.gone is not None and "no such idea" in failing.gone
            assert await other.done() == b"y\n"

    asyncio.run(main())


def test_replies_come_in_the_order_of_the_requests(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            replies: list[tuple[int, bool, bytes]] = []
            last = asyncio.Event()

            def note(number: int, success: bool, rest: bytes) -> None:
                replies.append((number, success, rest))
                if len(replies) == 30:
                    last.set()

            for number in range(30):
                name, body = (FORWARD, string(b"127.0.0.1") + u32(0)) if number % 3 == 0 else (b"no@such.request", b"")
                engine.request(name, body, functools.partial(note, number))
                if number == 15:
                    engine.rekey()
            await asyncio.wait_for(last.wait(), DEADLINE_S)
            assert [number for number, _, _ in replies] == list(range(30))
            assert [success for _, success, _ in replies] == [number % 3 == 0 for number in range(30)]
            ports = {Reader(rest).u32() for _, success, rest in replies if success}
            assert len(ports) == 10
            assert all(rest == b"" for _, success, rest in replies if not success)

    asyncio.run(main())


def test_what_the_server_opens_goes_to_who_takes_its_kind(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            asked: list[IncomingOpen] = []

            def take(incoming: IncomingOpen) -> bool:
                asked.append(incoming)
                engine.send(92, u32(incoming.sender), u32(2), string(b"nobody is in"), string(b""))
                return True

            engine.openers[b"forwarded-tcpip"] = take
            engine.request(
                FORWARD,
                string(b"127.0.0.1") + u32(0),
                lambda ok, rest: port.set_result(Reader(rest).u32() if ok else 0),
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", await asyncio.wait_for(port, DEADLINE_S))
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            mine = writer.get_extra_info("sockname")
            writer.close()
            (incoming,) = asked
            assert incoming.kind == b"forwarded-tcpip"
            assert incoming.window_bytes > 0 and incoming.packet_bytes > 0
            rest = Reader(incoming.rest)
            assert (rest.string(), rest.u32()) == (b"127.0.0.1", port.result())
            assert (rest.string().decode(), rest.u32()) == mine[:2]
            rest.end()

            # Without a taker the server is told so, and the client of the port sees its end.
            del engine.openers[b"forwarded-tcpip"]
            reader, writer = await asyncio.open_connection("127.0.0.1", port.result())
            assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            writer.close()

    asyncio.run(main())


def test_facts(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd, encryption_algs=["aes256-gcm@openssh.com"]) as engine:
            facts = engine.facts()
            assert facts.host == HOST
            assert facts.peer == ("127.0.0.1", sshd.port)
            assert facts.local is not None and facts.local[0] == "127.0.0.1"
            assert facts.server_version.startswith("SSH-2.0-OpenSSH")
            assert facts.kex and facts.host_key == "ssh-ed25519"
            assert facts.sending == facts.receiving
            assert facts.sending.cipher == "aes256-gcm@openssh.com"
            assert (facts.sending.mac, facts.sending.compression) == ("<implicit>", "none")
            assert (facts.rekeys, facts.round_trip_s) == (0, None)

            for _ in range(FIRST_TRIPS + 1):  # behind this one it measures nothing by itself any more
                measured_s = await engine.measure(DEADLINE_S)
            assert engine.facts().round_trip_s == measured_s > 0
            engine.rekey()
            engine.rekey()
            await engine.measure(DEADLINE_S)
            assert engine.facts().rekeys == 1
            before = engine.facts()
            await Exec(engine, "cat", send=bytes(100_000)).done()
            after = engine.facts()
            for count in (after.sent_bytes - before.sent_bytes, after.received_bytes - before.received_bytes):
                assert 100_000 < count < 110_000

    asyncio.run(main())


def test_askers_for_the_round_trip_share_one(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            first, second = await asyncio.gather(engine.measure(DEADLINE_S), engine.measure(DEADLINE_S))
            assert first == second
            engine.disconnect("enough")
            with pytest.raises(ConnectionLost, match="enough"):
                await engine.measure(DEADLINE_S)

    asyncio.run(main())


def test_a_round_trip_has_a_deadline(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            echo = Exec(engine, "echo $PPID; cat")
            await asyncio.wait_for(engine.measure(DEADLINE_S), DEADLINE_S)
            await echo.done()
            match = re.match(rb"(\d+)\n", bytes(echo.output))
            assert match is not None
            served = processes.known(int(match[1]))
            processes.send_signal(served, signal.SIGSTOP)
            try:
                with pytest.raises(TimeoutError):
                    await engine.measure(0.2)
            finally:
                processes.send_signal(served, signal.SIGCONT)
            assert await engine.measure(DEADLINE_S) > 0

    asyncio.run(main())


def test_a_small_packet_does_not_wait_behind_much_that_is_unsent(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            sock = engine._connection.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024

    asyncio.run(main())
