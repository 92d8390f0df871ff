"""Old bytes and old sizes are not shown: neither what was asked too early, nor what was kept too long."""

from __future__ import annotations

import os
from pathlib import Path
from time import time

import pytest
import trio
import trio.testing

from tests.support.sftp_process import eventually, in_trio
from tests.t3_operations.world import CTX, World, world

# A file is as if just changed for at least as long as a test takes, by a clock that is so far ahead.
A_WHILE_S = 120


async def queued(w: World, count: int) -> None:
    """Wait until so many requests are without an answer, while nothing more is sent."""
    client = await w.link.client()
    await eventually(lambda: client._exchange.outstanding == count)


def changed(path: Path, content: bytes, at: int) -> None:
    """Somebody on the server writes the file, at that second."""
    path.write_bytes(content)
    os.utime(path, (at, at))


# -- asked before a write was sent, and after it was accepted ---------------------------------------------------------


@in_trio
async def test_a_listing_that_overtakes_an_accepted_write_does_not_tell_the_size(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        w.process.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.list)  # OPENDIR is sent
            await trio.testing.wait_all_tasks_blocked()
            w.process.stream.hold()
            await w.operations.write(handle, 0, b"x" * 10)
            await w.operations.write(handle, 10, b"x" * 10)  # waits for the first to be acknowledged
            w.process.resume()
            await queued(w, 4)  # the WRITE, and behind it two READDIR and what readdir itself asks
            w.process.stream.let_go()
        await w.operations.flush(handle)
        assert (await w.getattr(entry.st_ino)).st_size == 20
        await w.operations.release(handle)


@in_trio
async def test_a_walk_that_overtakes_an_accepted_write_does_not_tell_the_size(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).touch()
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        for name in "abc":
            await w.lookup(name)
        w.process.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.lookup, "d")
            await trio.testing.wait_all_tasks_blocked()
            assert w.asked()[-1] == "Opendir"
            w.process.stream.hold()
            await w.operations.write(handle, 0, b"x" * 10)
            await w.operations.write(handle, 10, b"x" * 10)
            w.process.resume()
            await queued(w, 3)
            w.process.stream.let_go()
        await w.operations.flush(handle)
        assert (await w.getattr(entry.st_ino)).st_size == 20
        await w.operations.release(handle)


@in_trio
async def test_the_head_of_a_file_is_not_fetched_ahead_of_an_accepted_write(tmp_path: Path) -> None:
    """What a write() has returned for is what an open() that returns later reads."""
    (tmp_path / "file").write_bytes(b"first")
    async with world(tmp_path) as w:
        number = await w.number("file")
        writing = await w.open(number, os.O_WRONLY)
        opened: list[int] = []

        async def open_it() -> None:
            opened.append(await w.open(number))

        w.process.pause()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            await trio.testing.wait_all_tasks_blocked()
            w.process.stream.hold()
            await w.operations.write(writing, 0, b"other")
            await w.operations.write(writing, 0, b"third")  # waits for the other to be acknowledged
            w.process.resume()
        w.process.stream.let_go()
        assert bytes(await w.operations.read(opened[0], 0, 100)) == b"third"
        for each in (writing, opened[0]):
            await w.operations.flush(each)
            await w.operations.release(each)


# -- kept --------------------------------------------------------------------------------------------------------------


@in_trio
async def test_pages_of_a_file_that_had_not_settled_are_not_kept_when_it_has(tmp_path: Path) -> None:
    """They may be of what it was before another change within the same second."""
    path = tmp_path / "file"
    now = int(time()) + A_WHILE_S
    changed(path, b"first", now)
    async with world(tmp_path) as w:
        number = await w.number("file")

        async def kept() -> bool:
            info = await w.operations.open(number, os.O_RDONLY, CTX)
            await w.operations.release(info.fh)
            return info.keep_cache

        assert await kept() is False
        changed(path, b"other", now)
        w.names.server_ahead_s += 3600  # an hour later by the server's clock
        assert [await kept(), await kept()] == [False, True]


@pytest.mark.parametrize("reads", [True, False])
@in_trio
async def test_what_was_read_ahead_is_not_shown_when_the_file_is_seen_to_have_changed(
    tmp_path: Path, reads: bool
) -> None:
    path = tmp_path / "file"
    changed(path, b"first", 1000)
    async with world(tmp_path, still=True) as w:
        number = await w.number("file")
        handle = await w.open(number)  # asks for the head of the file
        if reads:
            assert bytes(await w.operations.read(handle, 0, 100)) == b"first"
        await (await w.link.client()).lstat(b"/")  # behind what was asked ahead
        changed(path, b"other", 1001)
        w.jump(3600)
        await w.getattr(number)
        assert bytes(await w.operations.read(handle, 0, 100)) == b"other"
        await w.operations.release(handle)


@in_trio
async def test_what_is_seen_not_to_have_changed_is_not_fetched_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    changed(path, bytes(50_000), 1000)
    async with world(tmp_path, still=True) as w:
        number = await w.number("file")
        handle = await w.open(number)
        await w.operations.read(handle, 0, 4096)
        w.jump(3600)
        await w.getattr(number)
        w.asked()
        await w.operations.read(handle, 4096, 4096)
        assert w.asked() == []
        await w.operations.release(handle)


@in_trio
async def test_an_open_that_drops_the_kernels_pages_drops_what_others_have_read_ahead(tmp_path: Path) -> None:
    """Of a file that changed twice in one second; the kernel may ask for its pages through any descriptor."""
    path = tmp_path / "file"
    now = int(time()) + A_WHILE_S
    changed(path, b"first", now)
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number)
        assert bytes(await w.operations.read(handle, 0, 100)) == b"first"
        changed(path, b"other", now)
        again = await w.open(number)
        for each in (handle, again):
            assert bytes(await w.operations.read(each, 0, 100)) == b"other"
            await w.operations.release(each)
