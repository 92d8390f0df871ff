"""Requests that cross on the way: several are answered in one go, and their tasks wake up in any order.

The server is stopped while they are sent, so that their answers come together; each is tried many times, since trio
shuffles who runs first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sshmuxfs.tree.inodes import ROOT_NUMBER
from tests.support.sftp_process import in_trio
from tests.t3_operations.world import CTX, World, refused, world

TIMES = 40


async def together(w: World, *calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Have all sent in this order while the server does nothing; what each came to: its result, or what it raised."""
    outcomes: list[Any] = [None] * len(calls)

    async def run(number: int, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            outcomes[number] = await call()
        except Exception as error:
            outcomes[number] = error

    w.process.pause()
    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(run, number, call)
            await trio.testing.wait_all_tasks_blocked()
        w.process.resume()
    return outcomes


@in_trio
async def test_an_answer_of_before_does_not_bring_back_what_was_removed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for turn in range(TIMES):
            name = f"file{turn}"
            handle, entry = await w.create(name)
            await w.operations.release(handle)
            w.tree.touch(w.inode(entry.st_ino))
            await together(
                w,
                partial(w.getattr, entry.st_ino),
                partial(w.lookup, name),
                partial(w.operations.unlink, ROOT_NUMBER, name.encode(), CTX),
            )
            assert await refused(w.lookup(name)) == "ENOENT", turn


@in_trio
async def test_a_question_that_crosses_a_rename_does_no_harm_to_the_inode(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("a")
        number = entry.st_ino
        for turn in range(TIMES):
            old, new = ("a", "b") if turn % 2 == 0 else ("b", "a")
            w.tree.touch(w.inode(number))
            outcomes = await together(
                w,
                partial(w.getattr, number),
                partial(w.operations.rename, ROOT_NUMBER, old.encode(), ROOT_NUMBER, new.encode(), 0, CTX),
                partial(w.getattr, number),
            )
            assert not any(isinstance(outcome, Exception) for outcome in outcomes), (turn, outcomes)
            assert await w.number(new) == number, turn
            assert await refused(w.lookup(old)) == "ENOENT", turn
        await w.operations.release(handle)


@in_trio
async def test_a_listing_that_crosses_changes_shows_them_afterwards(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).touch()
    async with world(tmp_path) as w:
        for name in "abcdef":
            await w.lookup(name)
        expected = set("abcdef")
        for turn in range(TIMES):
            w.tree.distrust(w.tree.root)
            removed, made = sorted(expected)[turn % len(expected)], f"new{turn}"
            await together(
                w,
                w.list,
                partial(w.operations.unlink, ROOT_NUMBER, removed.encode(), CTX),
                partial(w.create, made),
            )
            expected = expected - {removed} | {made}
            assert {name.decode() for name in await w.list()} == expected, turn
            assert await refused(w.lookup(removed)) == "ENOENT"
            await w.lookup(made)


@in_trio
async def test_writes_and_a_truncation_in_order(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        for turn in range(TIMES):
            outcomes = await together(
                w,
                partial(w.operations.write, handle, 0, bytes(1000)),
                partial(w.setattr, entry.st_ino, size=10, fh=handle),
                partial(w.getattr, entry.st_ino),
            )
            assert outcomes[2].st_size == 10, turn
            assert (await w.getattr(entry.st_ino)).st_size == 10, turn
            assert (tmp_path / "file").stat().st_size == 10
        await w.operations.release(handle)


@in_trio
async def test_a_write_that_crosses_a_question_is_not_forgotten(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        for turn in range(TIMES):
            size = 100 * (turn + 1)
            w.tree.touch(w.inode(entry.st_ino))
            await together(
                w,
                partial(w.getattr, entry.st_ino),
                partial(w.operations.write, handle, size - 1, b"x"),
                partial(w.getattr, entry.st_ino),
            )
            assert (await w.getattr(entry.st_ino)).st_size == size, turn
        await w.operations.release(handle)


@pytest.mark.parametrize("count", [2, 10])
@in_trio
async def test_many_who_make_the_same_name_and_one_who_may(tmp_path: Path, count: int) -> None:
    async with world(tmp_path) as w:
        for turn in range(10):
            calls = [partial(w.operations.mkdir, ROOT_NUMBER, b"%d" % turn, 0o755, CTX) for _ in range(count)]
            outcomes = await together(w, *calls)
            made = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
            assert len(made) == 1
            assert (await w.lookup(str(turn))).st_ino == made[0].st_ino
            assert w.inode(made[0].st_ino).lookups == 2
