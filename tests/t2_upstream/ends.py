"""What pumps are tried on: a window that is no channel's, and pairs of every kind of descriptor."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import socket
import tty
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async test, which has to end in time."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await main()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something has come true."""
    while not condition():
        await asyncio.sleep(0.001)


async def one_turn() -> None:
    """Let the loop look at its descriptors once."""
    await asyncio.sleep(0)


class Window:
    """What a source writes to: takes `room` bytes, then asks for more by `grow`."""

    def __init__(self, room: int) -> None:
        self.room_bytes = room
        self.taken = bytearray()
        self.wanted = False
        self.ended = asyncio.Event()

    def want_room(self) -> None:
        self.wanted = True

    def write(self, data: bytes | bytearray | memoryview, stream: int = 0) -> int:
        assert stream == 0
        count = min(len(data), self.room_bytes)
        self.room_bytes -= count
        self.taken += data[:count]
        if count < len(data):
            self.want_room()
        return count


def flags(descriptor: int) -> int:
    """The flags of its open file description, which all who share it see."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


class Ends:
    """Two ends of something: what is written to `writing` can be read from `reading`."""

    def __init__(self, reading: int, writing: int, *others: int) -> None:
        self.reading = reading
        self.writing = writing
        self._open = {reading, writing, *others}

    def give(self, descriptor: int) -> int:
        """A duplicate to hand over, as a client keeps its own."""
        return os.dup(descriptor)

    def close(self, descriptor: int | None = None) -> None:
        """Close one, or all that are left."""
        for each in [descriptor] if descriptor is not None else list(self._open):
            self._open.discard(each)
            os.close(each)


def pipe() -> Ends:
    return Ends(*os.pipe())


def sockets() -> Ends:
    one, other = socket.socketpair()
    return Ends(one.detach(), other.detach())


def tcp() -> Ends:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return Ends(one.detach(), other.detach())


def terminal_read() -> Ends:
    """Somebody types at `writing`, and it is read from the terminal `reading`."""
    user, terminal = pty.openpty()
    tty.setraw(terminal)
    return Ends(terminal, user)


def terminal_write() -> Ends:
    """What is written to the terminal `writing` is seen at `reading`."""
    user, terminal = pty.openpty()
    tty.setraw(terminal)
    return Ends(user, terminal)


@contextmanager
def fifo(directory: Path) -> Iterator[Ends]:
    path = directory / "fifo"
    os.mkfifo(path)
    ends = Ends(os.open(path, os.O_RDONLY | os.O_NONBLOCK), os.open(path, os.O_WRONLY))
    os.set_blocking(ends.reading, True)
    try:
        yield ends
    finally:
        ends.close()
