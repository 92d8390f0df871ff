"""Waiting at the device: who goes to read it finds something there, for a read that finds nothing stops everything."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from types import ModuleType

import pytest
import trio
import trio.testing

from sshmuxfs.turns import Device, install
from tests.support.sftp_process import in_trio

TIMES = 40


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Stands for the device: both block who reads when there is nothing."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


@in_trio
async def test_what_is_taken_back_before_it_is_read_wakes_nobody(pipe: tuple[int, int]) -> None:
    """In the round of the scheduler in which it was noticed; that is tried often, since either may run first."""
    source, sink = pipe
    device, also = Device(), os.dup(source)
    found: list[bool] = []

    async def wait() -> None:
        await device.wait_readable(source)
        found.append(readable(source))

    async def take_back() -> None:
        await trio.lowlevel.wait_readable(also)
        os.read(also, 1)

    for turn in range(TIMES):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(take_back)
            await trio.testing.wait_all_tasks_blocked()
            os.write(sink, b"x")
            await trio.testing.wait_all_tasks_blocked()
            if len(found) == turn:
                os.write(sink, b"y")
        if readable(source):
            os.read(source, 1)
    os.close(also)
    assert found == [True] * TIMES


@in_trio
async def test_an_end_is_told_to_who_waits_and_to_who_comes_later(pipe: tuple[int, int]) -> None:
    source, _ = pipe
    device = Device()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await device.wait_readable(source)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        device.notify_closing(source)
    await wait()


def known() -> ModuleType:
    """What `install` takes for pyfuse3, installed in."""
    module = ModuleType("pyfuse3")
    setattr(module, "trio", trio)  # noqa: B010 - a name a module does not have for a type checker
    assert install(module)
    return module


@in_trio
async def test_a_read_that_meets_the_end_of_the_mount_is_an_end() -> None:
    """The task ends; the others, and the mount's own, go on."""
    ended: list[int] = []

    async def read(number: int) -> None:
        ended.append(number)
        raise OSError(number, os.strerror(number))

    async with known().trio.open_nursery() as nursery:
        nursery.start_soon(read, errno.ECONNABORTED)
        nursery.start_soon(trio.lowlevel.checkpoint)
    with pytest.raises(ExceptionGroup):
        async with known().trio.open_nursery() as nursery:
            nursery.start_soon(read, errno.EIO)
    assert ended == [errno.ECONNABORTED, errno.EIO]
