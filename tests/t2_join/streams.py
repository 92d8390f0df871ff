"""What tests do with a session's stream, and a way to be an async test."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from mux.downstream.openssh import SessionStream, open_control

BUFFER_BYTES = 65536
TEST_DEADLINE_S = 60.0


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a test of an async function, with a deadline for the whole of it."""

    @functools.wraps(test)
    def run_test(**fixtures: Any) -> None:
        async def bounded() -> None:
            with trio.fail_after(TEST_DEADLINE_S):
                await test(**fixtures)

        trio.run(bounded)

    return run_test


async def read_all(stream: SessionStream) -> bytes:
    """Everything up to the end."""
    room = bytearray(BUFFER_BYTES)
    found = bytearray()
    while count := await stream.receive_into([memoryview(room)]):
        found += room[:count]
    return bytes(found)


async def read_exactly(stream: SessionStream, count: int) -> bytes:
    """`count` bytes, and none behind them."""
    room = memoryview(bytearray(count))
    done = 0
    while done < count:
        received = await stream.receive_into([room[done:]])
        assert received, f"the stream ended {done} bytes into {count}"
        done += received
    return bytes(room)


async def write_all(stream: SessionStream, data: bytes) -> None:
    """All of it, waiting where it must."""
    rest = memoryview(data)
    while rest:
        taken = stream.send_nowait([rest])
        rest = rest[taken:]
        if not taken:
            await stream.wait_writable()


async def run(path: str, command: bytes, *, environment: tuple[bytes, ...] = ()) -> tuple[bytes, int | None, str]:
    """A command's output, exit value and stderr."""
    connection = await open_control(path)
    with await connection.open_session(command, subsystem=False, environment=environment) as stream:
        output = await read_all(stream)
        return output, await stream.wait_closed(), stream.stderr_text()
