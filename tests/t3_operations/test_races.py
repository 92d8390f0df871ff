"""Requests that cross on the way: several are answered in one go, and their tasks wake up in any order.

The server is stopped while they are sent, so that their answers come together; each is tried many times, since trio
shuffles who runs first.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sshmuxfs.stillness import LOOKUP_S
from sshmuxfs.tree.inodes import ROOT_NUMBER
from tests.support.sftp_process import eventually, handles_left_open, in_trio
from tests.t3_operations.world import CTX, World, refused, world

TIMES = 40
TRUNCATING = os.O_WRONLY | os.O_TRUNC


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


# -- opening what is renamed ------------------------------------------------------------------------------------------


async def rename(w: World, old: str, new: str) -> None:
    await w.operations.rename(ROOT_NUMBER, old.encode(), ROOT_NUMBER, new.encode(), 0, CTX)


async def replace(w: World, content: bytes, name: str = "file") -> None:
    """What an editor does: a new file, and a rename over the name."""
    handle, entry = await w.create("new")
    await w.operations.write(handle, 0, content)
    await w.operations.release(handle)
    await w.operations.rename(ROOT_NUMBER, b"new", ROOT_NUMBER, name.encode(), 0, CTX)
    await w.operations.forget([(entry.st_ino, 1)])


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
@in_trio
async def test_an_open_that_came_too_late_once_does_not_do_so_again(
    tmp_path: Path, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel looks the name up a second time, and no third time: till then the name keeps what it has."""
    for bound in ("HOLD_S", "LATE_S"):  # longer than any open here may take
        monkeypatch.setattr(f"sshmuxfs.stillness.{bound}", 60.0)
    (tmp_path / "file").write_bytes(b"first")
    async with world(tmp_path) as w, trio.open_nursery() as nursery:
        number = await w.number("file")
        await replace(w, b"second")
        assert await refused(w.open(number, flags)) == "ESTALE"
        (tmp_path / "third").write_bytes(b"third")
        await w.lookup("third")
        number = await w.number("file")
        w.asked()
        nursery.start_soon(rename, w, "third", "file")
        await trio.testing.wait_all_tasks_blocked()
        assert w.asked() == []
        handle = await w.open(number, flags)
        await eventually(lambda: w.inode(number).gone)
        assert w.operations._files[handle].inode is w.inode(number)
        if flags == os.O_RDONLY:
            assert bytes(await w.operations.read(handle, 0, 100)) == b"second"
        await w.operations.release(handle)
        assert (tmp_path / "file").read_bytes() == b"third"


@in_trio
async def test_a_name_is_looked_up_again_behind_the_rename_that_is_under_way(tmp_path: Path) -> None:
    for name in ("file", "second", "third"):
        (tmp_path / name).write_bytes(name.encode())
    async with world(tmp_path) as w:
        number, third = await w.number("file"), await w.number("third")
        await w.lookup("second")
        await w.operations.rename(ROOT_NUMBER, b"second", ROOT_NUMBER, b"file", 0, CTX)
        assert await refused(w.open(number)) == "ESTALE"
        _, entry = await together(
            w,
            partial(w.operations.rename, ROOT_NUMBER, b"third", ROOT_NUMBER, b"file", 0, CTX),
            partial(w.lookup, "file"),
        )
        assert entry.st_ino == third
        assert await w.contents(third) == b"third"


@in_trio
async def test_a_change_does_not_wait_for_an_open_that_never_comes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first")
    async with world(tmp_path) as w:
        number = await w.number("file")
        await replace(w, b"second")
        assert await refused(w.open(number)) == "ESTALE"
        await w.lookup("file")
        begun_s = trio.current_time()
        await w.operations.unlink(ROOT_NUMBER, b"file", CTX)
        assert trio.current_time() - begun_s < LOOKUP_S  # as long as it would take to wait for that open
        assert not (tmp_path / "file").exists()


@in_trio
async def test_a_name_that_was_not_found_is_held_for_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first")
    (tmp_path / "new").write_bytes(b"second")
    async with world(tmp_path) as w:
        number = await w.number("file")
        await w.lookup("new")
        await w.operations.unlink(ROOT_NUMBER, b"file", CTX)
        assert await refused(w.open(number)) == "ESTALE"
        assert await refused(w.lookup("file")) == "ENOENT"
        assert w.operations._names.stillness._holds == {}
        await rename(w, "new", "file")


@in_trio
async def test_a_file_that_is_open_and_has_no_name_can_be_opened_again(tmp_path: Path) -> None:
    """As /proc/self/fd does: through the server's handle, as far as that was opened for it.

    The kernel is told to look again, once: had it come by a name, that would lead to another file now.
    """
    (tmp_path / "file").write_bytes(b"first")
    async with world(tmp_path) as w:
        number = await w.number("file")
        reading = await w.open(number)
        await replace(w, b"second")
        assert await refused(w.open(number)) == "ESTALE"
        again = await w.open(number)
        assert await refused(w.open(number, os.O_RDWR)) == "ESTALE"
        assert await refused(w.open(number, os.O_WRONLY | os.O_TRUNC)) == "ESTALE"
        await w.operations.release(reading)
        assert bytes(await w.operations.read(again, 0, 100)) == b"first"
        await w.operations.release(again)
        assert await refused(w.open(number)) == "ESTALE"
        assert await handles_left_open(await w.link.client()) == 0


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@in_trio
async def test_an_open_that_crosses_two_renames_is_of_the_file_that_was_asked_for(tmp_path: Path, flags: int) -> None:
    """Its name leads to another file by the time the server hears of it."""
    async with world(tmp_path) as w:
        for turn in range(TIMES):
            for name in ("a", "b"):
                (tmp_path / name).write_bytes(name.encode())
            number = await w.number("a")
            await w.lookup("b")
            *_, handle = await together(
                w,
                partial(w.operations.rename, ROOT_NUMBER, b"a", ROOT_NUMBER, b"c", 0, CTX),
                partial(w.operations.rename, ROOT_NUMBER, b"b", ROOT_NUMBER, b"a", 0, CTX),
                partial(w.open, number, flags),
            )
            assert bytes(await w.operations.read(handle, 0, 100)) == b"a", turn
            assert w.operations._files[handle].inode is w.inode(number)
            await w.operations.release(handle)
            w.tree.distrust(w.tree.root)
            for name in ("a", "c"):
                await w.operations.unlink(ROOT_NUMBER, name.encode(), CTX)
                await refused(w.lookup("b"))
            w.tree.distrust(w.tree.root)


@in_trio
async def test_what_is_emptied_on_opening_is_the_file_that_was_asked_for(tmp_path: Path) -> None:
    """What was opened by mistake can be given back; what was cut off by mistake cannot."""
    async with world(tmp_path) as w:
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(name.encode())
        number = await w.number("a")
        await w.lookup("b")
        *_, handle = await together(
            w, partial(rename, w, "a", "c"), partial(rename, w, "b", "a"), partial(w.open, number, TRUNCATING)
        )
        assert ((tmp_path / "a").read_bytes(), (tmp_path / "c").read_bytes()) == (b"b", b"")
        await w.operations.release(handle)


@in_trio
async def test_what_is_asked_below_a_directory_that_is_renamed(tmp_path: Path) -> None:
    """By a path that leads nowhere when the server hears of it: the directory is there, and what is in it too."""
    old, new = "old", "new"
    (tmp_path / "old" / "sub").mkdir(parents=True)
    (tmp_path / "old" / "link").symlink_to("target")
    async with world(tmp_path) as w:
        for turn in range(TIMES):
            for name in ("file", "other", "unknown"):
                (tmp_path / old / name).write_bytes(b"text")
            directory, file, other = (await w.number(old), *[await w.number(f"{old}/{n}") for n in ("file", "other")])
            link, sub = await w.number(f"{old}/link"), await w.number(f"{old}/sub")
            w.inode(link).link_target = None
            w.inode(sub).directory = None
            w.tree.touch(w.inode(other))
            outcomes = await together(
                w,
                partial(w.operations.rename, ROOT_NUMBER, old.encode(), ROOT_NUMBER, new.encode(), 0, CTX),
                partial(w.operations.lookup, directory, b"unknown", CTX),
                partial(w.getattr, other),
                partial(w.open, file),
                partial(w.setattr, file, mode=0o600),
                partial(w.operations.readlink, link, CTX),
                partial(w.operations.mkdir, directory, b"made", 0o755, CTX),
                partial(w.create, "created", parent=directory),
                partial(w.operations.unlink, directory, b"other", CTX),
                partial(w.list, sub),
            )
            assert {at: each for at, each in enumerate(outcomes) if isinstance(each, Exception)} == {}, turn
            assert sorted(os.listdir(tmp_path / new)) == ["created", "file", "link", "made", "sub", "unknown"]
            for handle in (outcomes[3], outcomes[7][0]):
                await w.operations.release(handle)
            await w.operations.rmdir(directory, b"made", CTX)
            for name in ("created", "file", "unknown"):
                await w.operations.unlink(directory, name.encode(), CTX)
            w.tree.distrust(w.inode(directory))
            old, new = new, old


@pytest.mark.parametrize("is_open", [True, False])
@in_trio
async def test_attributes_are_set_of_the_file_that_was_meant(tmp_path: Path, is_open: bool) -> None:
    """Its name leads to another file by the time the server hears of it."""
    async with world(tmp_path) as w:
        for name in ("a", "b"):
            (tmp_path / name).touch(mode=0o644)
        number = await w.number("a")
        await w.lookup("b")
        handle = await w.open(number) if is_open else None
        *_, changed = await together(
            w, partial(rename, w, "a", "c"), partial(rename, w, "b", "a"), partial(w.setattr, number, mode=0o600)
        )
        assert changed.st_mode & 0o777 == 0o600
        assert ((tmp_path / "c").stat().st_mode & 0o777, (tmp_path / "a").stat().st_mode & 0o777) == (0o600, 0o644)
        if handle is not None:
            await w.operations.release(handle)


@in_trio
async def test_a_handle_given_back_meanwhile_is_not_used(tmp_path: Path) -> None:
    """The server gives its number to the next file that is opened."""
    for name in ("file", "other"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (5, 5))
    async with world(tmp_path) as w:
        number, other = await w.number("file"), await w.number("other")
        handle = await w.open(number, os.O_RDWR)
        await w.operations.unlink(ROOT_NUMBER, b"file", CTX)
        refusal, _, opened = await together(
            w,
            partial(refused, w.setattr(number, atime_ns=7 * 10**9)),
            partial(w.operations.release, handle),
            partial(w.open, other, os.O_RDWR),
        )
        assert refusal == "ESTALE"
        assert (tmp_path / "other").stat().st_atime == 5
        await w.operations.release(opened)
