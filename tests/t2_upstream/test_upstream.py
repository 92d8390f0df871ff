"""What belongs to all clients of an upstream: windows that change, proxy clients, the end, and the server's loss."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import struct
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from mux.protocol.control import Signal
from mux.protocol.messages import AliveCheck, ExitMessage, NewSession, SessionOpened, StdioForward
from mux.upstream.upstream import Upstream
from mux.upstream.windows import LEAST_WINDOW_BYTES
from tests.support.sshd import HOST, Sshd

from .harness import engine_to
from .riding import NamedPlace, Ride, eventually, riding, settings_for

WAIT = "tail -f /dev/null --pid=$PPID"  # as long as the server's end of the connection lives


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


def set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


async def hear(terminal: int, word: bytes) -> None:
    """Read until this has been said."""
    loop = asyncio.get_running_loop()
    heard = bytearray()
    said = asyncio.Event()

    def read() -> None:
        heard.extend(os.read(terminal, 4096))
        if word in heard:
            said.set()

    loop.add_reader(terminal, read)
    try:
        async with asyncio.timeout(60):
            await said.wait()
    finally:
        loop.remove_reader(terminal)


def test_sigwinch_tells_each_session_its_own_size(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            terminals = [pty.openpty() for _ in range(2)]
            clients = []
            for number, (controller, terminal) in enumerate(terminals):
                set_size(terminal, 20 + number, 70 + number)
                client = await (await ride.raw()).greet()
                command = b"trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.02; done"
                request = NewSession(0, tty=True, terminal=b"xterm", command=command)
                opened = await client.ask(request, (terminal, terminal, terminal))
                assert isinstance(opened, SessionOpened)
                await hear(controller, b"%d %d" % (20 + number, 70 + number))
                clients.append(client)
            for number, (_, terminal) in enumerate(terminals):
                set_size(terminal, 30 + number, 90 + number)
            os.kill(os.getpid(), signal.SIGWINCH)
            for number, (controller, terminal) in enumerate(terminals):
                await hear(controller, b"%d %d" % (30 + number, 90 + number))
                assert isinstance(await clients[number].event(), ExitMessage)
                assert await clients[number].event() is Signal.ENDED
                clients[number].socket.close()
                os.close(controller)
                os.close(terminal)

    asyncio.run(main())


def test_proxy_clients(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            done = await ride.ssh("-O", "proxy", HOST, "cat; exit 3", data=b"proxied" * 100_000)
            assert (done.code, done.out) == (3, b"proxied" * 100_000)
            await eventually(lambda: not ride.upstream.clients)
            assert (await ride.ssh(HOST, "echo after")).out == b"after\n"

    asyncio.run(main())


def test_a_proxy_client_is_listed_and_ends_with_the_rest(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with riding(sshd, path) as ride:
            running = asyncio.create_task(ride.ssh("-O", "proxy", HOST, WAIT))
            await eventually(lambda: [client.purpose for client in ride.upstream.clients] == ["proxy"])
            ride.upstream.end("enough")
            done = await running
            assert done.code == 255

    asyncio.run(main())


def test_the_loss_of_the_server(make_sshd: Callable[..., Sshd]) -> None:
    async def main() -> None:
        sshd = make_sshd()
        path = str(sshd.control_dir / "upstream")
        async with riding(sshd, path) as ride:
            silent = socket.create_server(("127.0.0.1", 0))
            running = [
                asyncio.create_task(ride.ssh(*how))
                for how in (
                    (HOST, WAIT),
                    ("-tt", HOST, WAIT),
                    ("-W", f"127.0.0.1:{silent.getsockname()[1]}", HOST),
                    ("-O", "proxy", HOST, WAIT),
                )
            ]
            purposes = ["proxy", "session", "session", "stdio forward"]
            await eventually(lambda: sorted(client.purpose for client in ride.upstream.clients) == purposes)
            with await ride.raw() as idle:
                await idle.greet()
                sshd.kill()
                assert await idle.event() is Signal.ENDED
            async with asyncio.timeout(60):
                reason = await ride.served
                codes = [(await each).code for each in running]
            silent.close()
            assert codes[0] == codes[1] == codes[3] == 255
            assert "box" in reason
            assert not Path(path).exists()

    asyncio.run(main())


def test_output_that_had_come_is_written_though_the_server_is_lost(
    make_sshd: Callable[..., Sshd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mux.upstream.upstream.DRAIN_S", 30.0)  # the thread that reads may get no processor for a while
    size = LEAST_WINDOW_BYTES - 8  # comes unread, however near the server is; of it the pipe has room for a part

    async def main() -> None:
        sshd = make_sshd()
        async with riding(sshd, str(sshd.control_dir / "upstream")) as ride:
            stdin, feed = os.pipe()
            out, stdout = os.pipe()
            with await ride.raw() as client:
                await client.greet()
                request = NewSession(0, command=b"head -c %d /dev/zero; echo the end; cat" % size)
                assert isinstance(await client.ask(request, (stdin, stdout, stdout)), SessionOpened)
                os.close(stdin)
                os.close(stdout)
                (here,) = ride.upstream.clients
                session = here.session
                assert session is not None and session.channel is not None
                channel = session.channel
                await eventually(lambda: channel.received_bytes == size + 8)
                sshd.kill()
                written = bytearray()
                while piece := await asyncio.to_thread(os.read, out, 1 << 16):
                    written += piece
                assert written == bytes(size) + b"the end\n"
                assert await client.event() is Signal.ENDED
            os.close(out)
            os.close(feed)

    asyncio.run(main())


def test_cancelled_it_leaves_nothing(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        engine = await engine_to(sshd)
        upstream = Upstream(engine, settings_for(sshd))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        served = asyncio.create_task(upstream.serve(listener, NamedPlace(path)))
        await asyncio.sleep(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            await eventually(lambda: upstream.clients)
            served.cancel()
            with pytest.raises(asyncio.CancelledError):
                await served
            assert not upstream.clients
        assert not Path(path).exists()
        await engine.closed()

    asyncio.run(main())


def test_an_end_that_was_asked_for_before(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        engine = await engine_to(sshd)
        upstream = Upstream(engine, settings_for(sshd))
        upstream.end("first")
        upstream.end("second")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        assert await upstream.serve(listener, NamedPlace(path)) == "first"
        assert not Path(path).exists()
        await engine.closed()

    asyncio.run(main())


def test_many_at_once(make_sshd: Callable[..., Sshd]) -> None:
    async def main() -> None:
        sshd = make_sshd(max_sessions=64)
        async with riding(sshd, str(sshd.control_dir / "upstream")) as ride:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                done = await asyncio.gather(*(ride.ssh(HOST, f"echo {n}; exit {n}") for n in range(16)))
                assert [(each.code, each.out) for each in done] == [(n, b"%d\n" % n) for n in range(16)]
            await eventually(lambda: not ride.upstream.clients)
            await eventually(lambda: len(os.listdir("/proc/self/fd")) == before)

    asyncio.run(main())


async def is_idle(ride: Ride) -> None:
    with await ride.raw() as client:
        await client.greet()
        await client.ask(AliveCheck(0))


def test_clients_that_change_their_minds(sshd: Sshd, path: str) -> None:
    """Requests are made, and whoever made them is gone: nothing is left here, and nothing on the server."""

    async def main() -> None:
        async with riding(sshd, path) as ride:
            null = os.open(os.devnull, os.O_RDWR)
            handed = (null,) * 3
            try:
                for request in (NewSession(0, command=WAIT.encode()), StdioForward(0, b"", b"127.0.0.1", sshd.port)):
                    for _ in range(5):
                        with await ride.raw() as client:
                            await client.greet()
                            count = 3 if isinstance(request, NewSession) else 2
                            client.core.send(request, handed[:count])
                            for data, descriptors in client.core.data_to_send():
                                await client.write(data, descriptors)
                            await asyncio.sleep(0)
            finally:
                os.close(null)
            await eventually(lambda: not ride.upstream.clients)
            await is_idle(ride)
            async with asyncio.timeout(60):
                while (await ride.ssh(HOST, "true")).code != 0:  # as soon as the server has seen that they are gone
                    pass

    asyncio.run(main())
