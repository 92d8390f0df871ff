"""Sessions and stdio forwardings as their clients see them: what is said, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mux.protocol.control import Signal
from mux.protocol.messages import (
    UNIX_SOCKET_PORT,
    Alive,
    AliveCheck,
    ExitMessage,
    Failure,
    NewSession,
    SessionOpened,
    StdioForward,
)
from mux.upstream.listeners import LARGEST_WINDOW_BYTES, LEAST_WINDOW_BYTES
from tests.support.sshd import HOST, Sshd

from .riding import Raw, eventually, riding

BANNER = b"SSH-2.0-OpenSSH"


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


class Standard:
    """Three pipes for a session: what is handed over, and our ends."""

    def __init__(self) -> None:
        self.stdin, self.feed = os.pipe()
        self.out, self.stdout = os.pipe()
        self.err, self.stderr = os.pipe()
        self.handed = (self.stdin, self.stdout, self.stderr)
        self._open = {self.stdin, self.feed, self.out, self.stdout, self.err, self.stderr}

    def __enter__(self) -> Standard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(*self._open)

    def close(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            self._open.remove(descriptor)
            os.close(descriptor)

    async def output(self) -> bytes:
        """All of stdout, once nobody else has it."""
        self.close(*self._open & set(self.handed))
        return await asyncio.to_thread(_read_all, self.out)


def _read_all(descriptor: int) -> bytes:
    data = b""
    while piece := os.read(descriptor, 65536):
        data += piece
    return data


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_codes_and_streams(sshd: Sshd, path: str, code: int) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            done = await ride.ssh(HOST, f"cat; echo err >&2; exit {code}", data=b"in\n" * 100_000)
            assert (done.code, done.out, done.err) == (code, b"in\n" * 100_000, "err\n")
            assert ride.upstream.tally.sessions == 1
            await eventually(lambda: not ride.upstream.clients)

    asyncio.run(main())


def test_what_is_said_to_the_byte(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client, Standard() as standard:
                await client.greet()
                opened = await client.ask(NewSession(0, command=b"echo out; exit 44"), standard.handed)
                assert isinstance(opened, SessionOpened)
                standard.close(standard.feed)
                assert await standard.output() == b"out\n"
                assert await client.event() == ExitMessage(opened.session_id, 44)
                assert await client.event() is Signal.ENDED

    asyncio.run(main())


def test_the_descriptors_may_come_in_any_portion(sshd: Sshd, path: str) -> None:
    async def three_in_one(client: Raw, standard: Standard) -> None:
        await client.write(bytes(3), standard.handed)

    async def with_pauses(client: Raw, standard: Standard) -> None:
        for descriptor in standard.handed:
            await asyncio.sleep(0)
            await client.write(b"\0", [descriptor])

    async def one_and_two(client: Raw, standard: Standard) -> None:
        await client.write(b"\0", standard.handed[:1])
        await client.write(b"\0\0", standard.handed[1:])

    async def main() -> None:
        async with riding(sshd, path) as ride:
            for hand_over in (three_in_one, with_pauses, one_and_two):
                with await ride.raw() as client, Standard() as standard:
                    await client.greet()
                    client.core.send(NewSession(0, command=b"cat"), standard.handed)
                    await client.write(client.core.data_to_send()[0][0])
                    await hand_over(client, standard)
                    opened = await client.event()
                    assert isinstance(opened, SessionOpened)
                    os.write(standard.feed, b"there and back")
                    standard.close(standard.feed)
                    assert await standard.output() == b"there and back"
                    assert await client.event() == ExitMessage(opened.session_id, 0)

    asyncio.run(main())


def test_one_session_each_and_other_requests_beside_it(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client, Standard() as standard, Standard() as more:
                await client.greet()
                opened = await client.ask(NewSession(0, command=b"cat"), standard.handed)
                assert isinstance(opened, SessionOpened)
                assert await client.ask(AliveCheck(1)) == Alive(1, os.getpid())
                client.core.session = type(client.core.session).NONE  # so that the core lets us
                refused = await client.ask(NewSession(2, command=b"cat"), more.handed)
                assert refused == Failure(2, b"Multiple sessions not supported")
                client.core.session = type(client.core.session).NONE
                refused = await client.ask(StdioForward(3, b"", b"127.0.0.1", sshd.port), more.handed[:2])
                assert refused == Failure(3, b"Multiple sessions not supported")
                client.core.session = type(client.core.session).OPEN
                assert await more.output() == b""
                standard.close(standard.feed)
                assert await client.event() == ExitMessage(opened.session_id, 0)

    asyncio.run(main())


def test_a_session_outlives_stop_and_not_exit(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client, await ride.raw() as other, Standard() as standard:
                await client.greet()
                await other.greet()
                assert isinstance(await client.ask(NewSession(0, command=b"cat"), standard.handed), SessionOpened)
                assert (await ride.control("stop")).code == 0
                os.write(standard.feed, b"still here")
                assert await asyncio.to_thread(os.read, standard.out, 100) == b"still here"
                ride.upstream.end("enough")
                assert await client.event() is Signal.ENDED
                assert await standard.output() == b""

    asyncio.run(main())


def test_a_session_the_server_refuses(make_sshd: Callable[..., Sshd]) -> None:
    async def main() -> None:
        sshd = make_sshd(max_sessions=1)
        async with riding(sshd, str(sshd.control_dir / "upstream")) as ride:
            with await ride.raw() as client, await ride.raw() as other, Standard() as standard:
                await client.greet()
                await other.greet()
                assert isinstance(await client.ask(NewSession(0, command=b"cat"), standard.handed), SessionOpened)
                with Standard() as more:
                    refused = await other.ask(NewSession(0, command=b"cat"), more.handed)
                    assert refused == Failure(0, b"Session open refused by peer")
                    assert await other.event() is Signal.ENDED
                    assert await more.output() == b""
                assert (ride.upstream.tally.refused, ride.upstream.tally.full_at) == (1, 1)
                standard.close(standard.feed)
                assert isinstance(await client.event(), ExitMessage)
            done = await ride.ssh(HOST, "echo later")
            assert (done.code, done.out) == (0, b"later\n")

    asyncio.run(main())


def test_a_session_ends_with_its_client(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client, Standard() as standard:
                await client.greet()
                await client.ask(NewSession(0, command=b"cat; echo over"), standard.handed)
                client.socket.close()
                assert await standard.output() in (b"", b"over\n")
            await eventually(lambda: not ride.upstream.clients)
            # Asked for and given up at once.
            with await ride.raw() as client, Standard() as standard:
                await client.greet()
                client.core.send(NewSession(0, command=b"cat"), standard.handed)
                for data, descriptors in client.core.data_to_send():
                    await client.write(data, descriptors)
                client.socket.close()
                assert await standard.output() == b""
            await eventually(lambda: not ride.upstream.clients)
            assert (await ride.ssh(HOST, "true")).code == 0

    asyncio.run(main())


def test_a_stdio_forwarding(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            done = await ride.ssh("-W", f"127.0.0.1:{sshd.port}", HOST, data=b"SSH-2.0-nobody\r\n")
            assert done.out.startswith(BANNER)
            assert (done.code, done.err) == (0, "")
            await eventually(lambda: not ride.upstream.clients)

    asyncio.run(main())


def test_a_stdio_forwarding_refused(sshd: Sshd, path: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def main() -> None:
            async with riding(sshd, path) as ride:
                done = await ride.ssh("-W", f"127.0.0.1:{port}", HOST)
                assert done.code == 255
                assert "Stdio forwarding request failed: Session open refused by peer" in done.err

        asyncio.run(main())


def test_half_close_of_a_stdio_forwarding(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read()).upper())  # only once there is an end
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with riding(sshd, path) as ride, server:
            done = await ride.ssh("-W", f"127.0.0.1:{port}", HOST, data=b"half" * 100_000)
            assert (done.code, done.out) == (0, b"HALF" * 100_000)

    asyncio.run(main())


def test_a_stdio_forwarding_to_a_path(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        target = str(sshd.root / "target")

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()

        server = await asyncio.start_unix_server(answer, target)
        async with riding(sshd, path) as ride, server:
            with await ride.raw() as client, Standard() as standard:
                await client.greet()
                request = StdioForward(0, b"", target.encode(), 0xFFFFFFFE)
                opened = await client.ask(request, (standard.stdin, standard.stdout))
                assert isinstance(opened, SessionOpened)
                standard.close(standard.feed)
                assert await standard.output() == b"hello"
                assert await client.event() is Signal.ENDED
        Path(target).unlink(missing_ok=True)  # from Python 3.13 on a server removes its own

    asyncio.run(main())


@pytest.mark.parametrize("how", ["it ends", "its client goes", "refused"])
def test_the_window_of_a_stdio_forwarding_is_a_forwarded_connections(sshd: Sshd, path: str, how: str) -> None:
    """There may be as many of them as clients, and none need ever read: all their windows come out of one budget."""

    async def main() -> None:
        async with riding(sshd, path) as ride:
            gate = ride.upstream.forwards.gate
            taken = [gate.enter() for _ in range(1000)]
            with await ride.raw() as client, Standard() as standard:
                await client.greet()
                host = b"/nonexistent" if how == "refused" else b"127.0.0.1"
                port = UNIX_SOCKET_PORT if how == "refused" else sshd.port
                reply = await client.ask(StdioForward(0, b"", host, port), (standard.stdin, standard.stdout))
                if how == "refused":
                    assert isinstance(reply, Failure)
                else:
                    assert isinstance(reply, SessionOpened)
                    (rider,) = ride.clients
                    assert rider.stream is not None
                    assert rider.stream.channel._channel.window_bytes == LEAST_WINDOW_BYTES
                    assert gate.inside == 1001
                if how == "it ends":
                    os.write(standard.feed, b"SSH-2.0-nobody\r\n")
                    standard.close(standard.feed)
                    assert (await standard.output()).startswith(BANNER)
                    assert await client.event() is Signal.ENDED
            await eventually(lambda: gate.inside == 1000)
            for window_bytes in taken:
                gate.leave(window_bytes)
            assert gate.enter() == LARGEST_WINDOW_BYTES

    asyncio.run(main())
