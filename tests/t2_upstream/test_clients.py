"""Control clients of an upstream: what each request is answered with, by real clients and to the byte."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

import mux.upstream.lifetime
from mux.protocol.control import Signal
from mux.protocol.messages import (
    Alive,
    AliveCheck,
    CloseForward,
    Failure,
    ForwardKind,
    Hello,
    Info,
    InfoRequest,
    Ok,
    OpenForward,
    PermissionDenied,
    StopListening,
    Terminate,
)
from tests.support.sshd import HOST, Sshd

from .riding import Raw, eventually, riding

GREETING = bytes.fromhex("0000000800000001 00000004")  # as OpenSSH's clients send it
OUR_GREETING = bytes.fromhex("00000015 00000001 00000004 00000004") + b"info" + bytes.fromhex("00000001") + b"0"
CHECK = bytes.fromhex("00000008 10000004 00000007")


def alive(number: int = 7) -> bytes:
    return bytes.fromhex("0000000c 80000005") + number.to_bytes(4, "big") + os.getpid().to_bytes(4, "big")


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


def test_check_tells_our_pid(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            done = await ride.control("check")
            assert (done.code, done.out, done.err) == (0, b"", f"Master running (pid={os.getpid()})\r\n")

    asyncio.run(main())


def test_exit_ends_it_for_everybody(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as other:
                await other.greet()
                done = await ride.control("exit")
                assert (done.code, done.err) == (0, "Exit request sent.\r\n")
                assert await other.event() is Signal.ENDED
            assert await ride.served == "disconnected by user"
            assert not Path(path).exists()
            await ride.upstream.engine.closed()

    asyncio.run(main())


def test_stop_takes_no_more_clients_and_keeps_those_that_are_here(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as other:
                await other.greet()
                done = await ride.control("stop")
                assert (done.code, done.err) == (0, "Stop listening request sent.\r\n")
                assert not Path(path).exists()
                assert not ride.upstream.lifetime.listening
                assert await other.ask(AliveCheck(0)) == Alive(0, os.getpid())
                assert await other.ask(StopListening(1)) == Ok(1)
                gone = await ride.control("check")
                assert gone.code == 255 and "No such file or directory" in gone.err

    asyncio.run(main())


def test_greeting_and_answers_to_the_byte(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client:
                assert await client.read(len(OUR_GREETING)) == OUR_GREETING  # without a word of ours
                await client.write(GREETING + CHECK)
                assert await client.read(16) == alive()
                await client.write(bytes.fromhex("00000008 1000007f 00000003"))  # there is no such request
                refusal = bytes.fromhex("0000001f 80000003 00000003 00000013") + b"unsupported request"
                assert await client.read(len(refusal)) == refusal
                await client.write(CHECK)
                assert await client.read(16) == alive()

    asyncio.run(main())


def test_every_split_of_what_a_client_says(sshd: Sshd, path: str) -> None:
    said = GREETING + CHECK + bytes.fromhex("00000014 20000001 00000008 00000008") + b"whatever" + CHECK
    info = Info(8, False, b"info request type not supported")

    async def main() -> None:
        async with riding(sshd, path) as ride:
            for split in range(len(said) + 1):
                with await ride.raw() as client:
                    await client.write(said[:split])
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    await client.write(said[split:])
                    assert await client.read(len(OUR_GREETING)) == OUR_GREETING
                    assert await client.read(16) == alive()
                    length = int.from_bytes(await client.read(4), "big")
                    assert info.text in await client.read(length)
                    assert await client.read(16) == alive()

    asyncio.run(main())


def test_information(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client:
                await client.greet()
                connection = await client.ask(InfoRequest(0, b"connection"))
                assert isinstance(connection, Info) and connection.supported
                channels = await client.ask(InfoRequest(1, b"channels"))
                assert isinstance(channels, Info) and channels.supported
                status = await client.ask(InfoRequest(2, b"sshmux-status"))
                assert isinstance(status, Info) and status.text.startswith(b"{")
                other = await client.ask(InfoRequest(3, b"weather"))
                assert other == Info(3, False, b"info request type not supported")

    asyncio.run(main())


@pytest.mark.parametrize(
    "forward",
    [
        (9, b"", 8080, b"host", 80),
        (ForwardKind.LOCAL, b"", 8080, b"host", 0),
        (ForwardKind.LOCAL, b"", 8080, b"", 80),
        (ForwardKind.LOCAL, b"", 65536, b"host", 80),
        (ForwardKind.LOCAL, b"", 8080, b"host", 65536),
        (ForwardKind.LOCAL, b"", 0xFFFFFFFE, b"host", 80),
        (ForwardKind.REMOTE, b"", 8080, b"", 80),
        (ForwardKind.DYNAMIC, b"/a/path", 0xFFFFFFFE, b"socks", 0),
    ],
)
def test_forwardings_that_make_no_sense_are_refused(
    sshd: Sshd, path: str, forward: tuple[int, bytes, int, bytes, int]
) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client:
                await client.greet()
                assert await client.ask(OpenForward(0, *forward)) == Failure(0, b"Invalid forwarding request")
                assert await client.ask(CloseForward(1, *forward)) == Failure(1, b"port not forwarded")
                assert await client.ask(AliveCheck(2)) == Alive(2, os.getpid())

    asyncio.run(main())


class Person:
    """Somebody who is asked, and answers when the test says so."""

    def __init__(self, answer: bool) -> None:
        self.asked: list[str] = []
        self.answers = asyncio.Event()
        self.answer = answer

    async def confirm(self, text: str) -> bool:
        self.asked.append(text)
        await self.answers.wait()
        return self.answer


def test_the_owner_is_asked_and_nobody_else_waits(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        person = Person(False)
        async with riding(sshd, path, prompts=person, control_master="autoask") as ride:
            with await ride.raw() as first, await ride.raw() as second, await ride.raw() as third:
                for client in (first, second, third):
                    await client.greet()
                asking = asyncio.create_task(first.ask(Terminate(0)))
                await eventually(lambda: person.asked)
                waiting = asyncio.create_task(second.ask(StopListening(0)))
                assert await third.ask(AliveCheck(0)) == Alive(0, os.getpid())
                assert person.asked == ["Terminate shared connection to 127.0.0.1? "]
                person.answers.set()
                assert await asking == PermissionDenied(0, b"Permission denied")
                assert await waiting == PermissionDenied(0, b"Permission denied")
                nonsense = await third.ask(OpenForward(9, 9, b"", 8080, b"host", 80))
                assert nonsense == Failure(9, b"Invalid forwarding request")
                opened = await third.ask(OpenForward(1, ForwardKind.LOCAL, b"", 8080, b"host", 80))
                assert opened == PermissionDenied(1, b"Permission denied")
                dynamic = await third.ask(OpenForward(2, ForwardKind.DYNAMIC, b"*", 1080, b"socks", 0))
                assert dynamic == PermissionDenied(2, b"Permission denied")
            assert person.asked[1:] == [
                "Disable further multiplexing on shared connection to 127.0.0.1? ",
                "Open local forward LOCALHOST:8080 -> host:80 on 127.0.0.1?",
                "Open dynamic forward *:1080 -> * on 127.0.0.1?",
            ]
            denied = await ride.control("exit")
            assert denied.code == 255
            assert "Master refused termination request: Permission denied" in denied.err
            assert Path(path).exists()

    asyncio.run(main())


def test_a_question_ends_with_the_client_that_asked(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        person = Person(True)
        async with riding(sshd, path, prompts=person, control_master="ask") as ride:
            with await ride.raw() as impatient:
                await impatient.greet()
                impatient.core.send(Terminate(0))
                for data, _ in impatient.core.data_to_send():
                    await impatient.write(data)
                await eventually(lambda: person.asked)
            await eventually(lambda: not ride.upstream.clients)
            person.answers.set()
            with await ride.raw() as patient:
                await patient.greet()
                assert await patient.ask(StopListening(0)) == Ok(0)
            assert not ride.served.done()

    asyncio.run(main())


def test_without_anybody_to_ask_it_is_denied(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path, control_master="ask") as ride:
            done = await ride.control("exit")
            assert done.code == 255 and "Permission denied" in done.err
            assert (await ride.control("check")).code == 0

    asyncio.run(main())


def test_the_end_of_the_connection_is_everybodys_at_once(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as idle:
                await idle.greet()
                ride.upstream.engine.disconnect("cut")
                assert await idle.event() is Signal.ENDED
                await ride.served
                assert not Path(path).exists()

    asyncio.run(main())


def test_who_is_here_is_told_apart(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client:
                assert isinstance(await client.event(), Hello)
                (here,) = ride.upstream.clients
                assert (here.pid, here.uid, here.purpose) == (os.getpid(), os.getuid(), "control")
                await eventually(lambda: here.command)
                assert "pytest" in here.command
            await eventually(lambda: not ride.upstream.clients)
            assert (await ride.control("check", "-o", "LogLevel=ERROR")).code == 0
            assert ride.upstream.tally.clients == 2

    asyncio.run(main())


def test_who_came_as_it_was_about_to_end_is_served(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux.upstream.lifetime, "LINGER_S", 0.0)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            late = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            lifetime = ride.upstream.lifetime

            def why() -> str:
                for connection in late:
                    connection.connect(path)
                monkeypatch.undo()
                return lifetime.why()

            monkeypatch.setattr(lifetime, "why", why)
            lifetime.persist_s = 0.0
            lifetime.rode()
            ending = asyncio.create_task(ride.upstream.end_when_unneeded())
            await eventually(lambda: not lifetime.listening)
            assert not Path(path).exists()
            for connection in late:
                connection.setblocking(False)
                with Raw(connection) as client:
                    await client.greet()
                    assert await client.ask(AliveCheck(0)) == Alive(0, os.getpid())
                    assert not ride.served.done()
            assert await ride.served == "the last client has left, and no new ones are taken"
            await ending

    asyncio.run(main())


def test_lifetime_is_told(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            lifetime = ride.upstream.lifetime
            with await ride.raw() as client:
                await client.greet()
                await client.ask(AliveCheck(0))
                assert (lifetime.riders, lifetime.rode_once) == (1, False)
                await client.ask(OpenForward(1, 9, b"", 1, b"", 1))
                assert lifetime.rode_once
            await eventually(lambda: lifetime.riders == 0)
            assert (await ride.ssh("-O", "stop", HOST)).code == 0
            assert not lifetime.listening

    asyncio.run(main())
