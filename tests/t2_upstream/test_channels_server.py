"""Channels and streams on a real server: connections it makes for us, both ways at once, half of it closed, refused."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mux.protocol.wire import string, u32
from mux.upstream.channels import SESSION_WINDOW_BYTES, LiveChannel, OpenRefused
from mux.upstream.engine import Engine
from mux.upstream.pumps import Stream
from tests.support.ports import free_port
from tests.support.sshd import Sshd
from tests.t2_upstream.ends import run, until
from tests.t2_upstream.passengers import connected

DATA = os.urandom(1 << 20)


@contextmanager
def echoing() -> Iterator[int]:
    """A port on which whoever comes gets back what he says, to its end."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


class Line:
    """A stream to a port of the server, with its other end here."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.over = asyncio.Event()
        self.stream = Stream(theirs, None, self.over.set)

    async def open(self, engine: Engine, port: int) -> LiveChannel:
        origin = string(b"127.0.0.1") + u32(1)
        return await LiveChannel.open(
            engine,
            b"direct-tcpip",
            string(b"127.0.0.1") + u32(port) + origin,
            self.stream,
            window_bytes=SESSION_WINDOW_BYTES,
            deadline_s=60,
        )


def read_all(ours: socket.socket) -> bytes:
    data = b""
    while more := ours.recv(1 << 18):
        data += more
    return data


def test_both_ways_at_once_and_half_of_it_closed(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            with echoing() as port:
                line = Line()
                channel = await line.open(engine, port)
                with line.ours:
                    reading = asyncio.ensure_future(asyncio.to_thread(read_all, line.ours))
                    for _ in range(10):
                        await asyncio.to_thread(line.ours.sendall, DATA)
                    line.ours.shutdown(socket.SHUT_WR)
                    assert await reading == 10 * DATA
                    await line.over.wait()
                assert channel.sent_bytes == channel.received_bytes == 10 * len(DATA)
                assert channel.over

    run(main)


def test_a_server_that_speaks_first_is_heard(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            line = Line()
            channel = await line.open(engine, sshd.port)
            with line.ours:
                assert (await asyncio.to_thread(line.ours.recv, 100)).startswith(b"SSH-2.0-")
            await line.over.wait()
            await until(lambda: channel.over)

    run(main)


def test_nobody_listens_there(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            port = free_port()
            before = os.listdir("/proc/self/fd")
            line = Line()
            with line.ours:
                with pytest.raises(OpenRefused, match="refused"):
                    await line.open(engine, port)
                line.stream.close()
                line.stream.close()
                assert line.over.is_set()
                assert line.ours.recv(1) == b""
            assert os.listdir("/proc/self/fd") == before

    run(main)


def test_given_up_in_the_middle(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd) as engine:
            with echoing() as port:
                line = Line()
                channel = await line.open(engine, port)
                with line.ours:
                    line.ours.sendall(b"x")
                    assert await asyncio.to_thread(line.ours.recv, 1) == b"x"
                    line.stream.close()
                    assert line.ours.recv(1) == b""
                assert line.over.is_set()
                await until(lambda: channel.over)

    run(main)


def test_many_bulk_senders_share_alike(sshd: Sshd) -> None:
    """None of them waits for another to have sent all it has."""

    async def main() -> None:
        async with connected(sshd) as engine:
            with echoing() as one, echoing() as two, echoing() as three:
                lines = [Line() for _ in range(3)]
                channels = [await line.open(engine, port) for line, port in zip(lines, (one, two, three), strict=True)]
                begin = threading.Barrier(3)
                threads = [asyncio.ensure_future(asyncio.to_thread(exchange, line.ours, 20, begin)) for line in lines]
                await until(lambda: max(channel.sent_bytes for channel in channels) >= 10 << 20)
                least = min(channel.sent_bytes for channel in channels)
                assert await asyncio.gather(*threads) == [20 << 20] * 3
                # A third each would be ten; that no one starves is all that is promised.
                assert least >= 1 << 20
                for line in lines:
                    line.ours.close()
                    await line.over.wait()

    run(main)


def exchange(ours: socket.socket, times: int, begin: threading.Barrier) -> int:
    """Send so many times `DATA`, from when all are ready to, and count what comes back."""

    def send() -> None:
        begin.wait()
        for _ in range(times):
            ours.sendall(DATA)
        ours.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send)
    sending.start()
    count = 0
    while data := ours.recv(1 << 18):
        count += len(data)
    sending.join()
    return count
