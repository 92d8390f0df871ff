"""A passenger's session without a client: its descriptors on one side, what its client would be told on the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mux.protocol.messages import NewSession
from mux.upstream.engine import Engine
from mux.upstream.sessions import Session
from tests.support.sshd import Sshd
from tests.t2_upstream.harness import engine_to


@dataclass(frozen=True, slots=True)
class Options:
    """What a session needs of the owner's configuration."""

    send_env: Sequence[str] = ()
    set_env: Sequence[str] = ()
    request_tty: str = "auto"


PLAIN = Options()


class Told:
    """What a client is told (`sessions.SessionTalk`)."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.no_tty = 0
        self.texts: list[bytes] = []  # the names of those that were asked for
        self.over = asyncio.Event()

    def exit(self, value: int) -> None:
        assert not self.over.is_set()
        self.values.append(value)

    def tty_failed(self) -> None:
        self.no_tty += 1

    def ended(self) -> None:
        assert not self.over.is_set()
        self.over.set()

    def info(self, name: bytes) -> bytes:
        self.texts.append(name)
        return b"all about " + name + b"\r\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended: what its command returned (None: unknown), and what it wrote."""

    value: int | None
    out: bytes
    err: bytes


@asynccontextmanager
async def connected(sshd: Sshd, **options: Any) -> AsyncIterator[Engine]:
    """An engine, for one test."""
    engine = await engine_to(sshd, **options)
    try:
        yield engine
    finally:
        engine.disconnect("the test is over")
        await engine.closed()


async def read_all(descriptor: int) -> bytes:
    """Everything to its end, of a descriptor which is then closed; in a thread, since it is the client's and blocks."""

    def read() -> bytes:
        with open(descriptor, "rb", buffering=0) as file:
            return file.readall() or b""

    return await asyncio.to_thread(read)


async def write_all(descriptor: int, data: bytes) -> None:
    """Everything, to a descriptor which is then closed."""

    def write() -> None:
        with open(descriptor, "wb") as file:
            file.write(data)

    await asyncio.to_thread(write)


async def start(
    engine: Engine, told: Told, command: bytes, stdin: int, stdout: int, stderr: int, options: Options, **asked: Any
) -> Session:
    """A session on duplicates of these, as a client keeps its own."""
    message = NewSession(0, command=command, **asked)
    return await Session.open(engine, options, message, (os.dup(stdin), os.dup(stdout), os.dup(stderr)), told)


async def command(engine: Engine, command: bytes, data: bytes = b"", options: Options = PLAIN, **asked: Any) -> Outcome:
    """A command on three pipes, to its end."""
    told = Told()
    pipes = [os.pipe() for _ in range(3)]
    (stdin, to), (out, stdout), (err, stderr) = pipes
    try:
        await start(engine, told, command, stdin, stdout, stderr, options, **asked)
    except BaseException:
        for descriptor in (to, out, err):
            os.close(descriptor)
        raise
    finally:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
    _, written, errors, _ = await asyncio.gather(write_all(to, data), read_all(out), read_all(err), told.over.wait())
    assert len(told.values) < 2
    return Outcome(told.values[0] if told.values else None, written, errors)
