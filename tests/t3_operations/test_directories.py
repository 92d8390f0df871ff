"""opendir, readdir, releasedir: positions that stay, entries that count as lookups, changes in between."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from sshmuxfs.tree.inodes import ROOT_NUMBER
from tests.support.sftp_process import in_trio
from tests.t3_operations.world import CTX, Reply, World, refused, world


def fill(directory: Path, names: Iterable[str]) -> set[bytes]:
    for name in names:
        (directory / name).touch()
    return {os.fsencode(name) for name in names}


async def opened(w: World, number: int = ROOT_NUMBER) -> int:
    return await w.operations.opendir(number, CTX)


@in_trio
async def test_dots_come_first_and_every_entry_has_the_position_behind_it(tmp_path: Path) -> None:
    names = fill(tmp_path, ["a", "b", "c"])
    async with world(tmp_path) as w:
        reply = await w.readdir(await opened(w))
        assert reply.names()[:2] == [b".", b".."]
        assert set(reply.names()[2:]) == names
        positions = [position for _, _, position in reply.entries]
        assert positions == sorted(set(positions))
        assert positions[0] > 0, "0 would be the beginning"


@pytest.mark.parametrize("room", [1, 2, 3, 7, 100, 101])
@in_trio
async def test_a_directory_comes_whole_in_buffers_of_any_size(tmp_path: Path, room: int) -> None:
    names = fill(tmp_path, [f"file{number}" for number in range(230)])
    async with world(tmp_path) as w:
        handle, position = await opened(w), 0
        found: list[bytes] = []
        while (reply := await w.readdir(handle, position, room)).entries:
            assert len(reply.entries) <= room
            found += reply.names()
            position = reply.entries[-1][2]
        assert found[:2] == [b".", b".."]
        assert sorted(found[2:]) == sorted(names)
        await w.operations.releasedir(handle)


@in_trio
async def test_any_position_that_was_given_can_be_gone_back_to(tmp_path: Path) -> None:
    fill(tmp_path, [f"file{number}" for number in range(150)])
    async with world(tmp_path) as w:
        handle = await opened(w)
        whole = await w.readdir(handle)
        for index in (0, 1, 2, 50, 101, 151):
            position = whole.entries[index][2]
            assert (await w.readdir(handle, position)).names() == whole.names()[index + 1 :]
        await w.operations.releasedir(handle)


@in_trio
async def test_entries_count_as_lookups_but_for_dots_and_what_did_not_fit(tmp_path: Path) -> None:
    fill(tmp_path, [f"file{number}" for number in range(10)])
    async with world(tmp_path) as w:
        before = w.tree.root.lookups
        handle = await opened(w)
        reply = await w.readdir(handle, 0, 7)
        assert reply.refused == 1
        taken = {name for name in reply.names() if not name.startswith(b".")}
        assert len(taken) == 5
        assert w.tree.root.directory is not None
        lookups = {name: inode.lookups for name, inode in w.tree.root.directory.children.items()}
        assert lookups == {name: int(name in taken) for name in lookups}
        assert w.tree.root.lookups == before
        await w.readdir(handle, reply.entries[-1][2])
        assert {inode.lookups for inode in w.tree.root.directory.children.values()} == {1}
        await w.operations.forget([(inode.number, 1) for inode in w.tree.root.directory.children.values()])
        assert {inode.lookups for inode in w.tree.root.directory.children.values()} == {0}


@in_trio
async def test_attributes_come_along(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(77))
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("file")
    async with world(tmp_path) as w:
        reply = await w.readdir(await opened(w))
        entries = {name: entry for name, entry, _ in reply.entries}
        assert entries[b"file"].st_size == 77
        assert stat.S_ISDIR(entries[b"dir"].st_mode)
        assert stat.S_ISLNK(entries[b"link"].st_mode)
        assert entries[b"file"].st_ino == await w.number("file")
        assert stat.S_ISDIR(entries[b"."].st_mode)
        assert w.asked().count("Lstat") <= 1


@in_trio
async def test_a_rewind_shows_the_directory_as_it_is_now(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b"])
    async with world(tmp_path) as w:
        handle = await opened(w)
        assert len((await w.readdir(handle)).entries) == 4
        made, _ = await w.create("c")
        await w.operations.release(made)
        await w.operations.unlink(ROOT_NUMBER, b"a", CTX)
        assert set((await w.readdir(handle)).names()) == {b".", b"..", b"b", b"c"}
        await w.operations.releasedir(handle)


@in_trio
async def test_what_is_removed_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    """As `rm -r` does it."""
    names = fill(tmp_path, [f"file{number:03}" for number in range(350)])
    async with world(tmp_path) as w:
        handle, position = await opened(w), 0
        removed: set[bytes] = set()
        while (reply := await w.readdir(handle, position, 20)).entries:
            for name in reply.names():
                if name not in (b".", b".."):
                    assert name not in removed
                    await w.operations.unlink(ROOT_NUMBER, name, CTX)
                    removed.add(name)
            position = reply.entries[-1][2]
        assert removed == names
        assert os.listdir(tmp_path) == []
        assert await w.list() == set()


@in_trio
async def test_what_is_removed_ahead_of_the_reader_is_not_shown(tmp_path: Path) -> None:
    fill(tmp_path, [f"file{number:03}" for number in range(60)])
    async with world(tmp_path) as w:
        handle = await opened(w)
        first = await w.readdir(handle, 0, 10)
        shown = set(first.names())
        ahead = [name for name in sorted(os.listdir(os.fsencode(tmp_path))) if name not in shown][:20]
        for name in ahead:
            await w.operations.unlink(ROOT_NUMBER, name, CTX)
        rest = await w.readdir(handle, first.entries[-1][2])
        assert not set(rest.names()) & set(ahead)
        assert len(rest.entries) == 62 - 10 - 20


@in_trio
async def test_several_readers_of_one_directory_do_not_mind_each_other(tmp_path: Path) -> None:
    names = fill(tmp_path, [f"file{number:03}" for number in range(250)])
    async with world(tmp_path) as w:
        handles = [await opened(w) for _ in range(3)]
        positions, found = [0, 0, 0], [set[bytes]() for _ in handles]
        done = [False] * 3
        while not all(done):
            for number, handle in enumerate(handles):
                reply = await w.readdir(handle, positions[number], 10 * (number + 1))
                found[number] |= set(reply.names())
                done[number] = not reply.entries
                if reply.entries:
                    positions[number] = reply.entries[-1][2]
        assert all(each - {b".", b".."} == names for each in found)
        for handle in handles:
            await w.operations.releasedir(handle)
        assert w.tree.root.directory is not None
        assert w.tree.root.directory.asking == 0


@in_trio
async def test_a_removed_directory_that_is_open_is_empty(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    async with world(tmp_path) as w:
        number = await w.number("dir")
        handle = await opened(w, number)
        await w.operations.rmdir(ROOT_NUMBER, b"dir", CTX)
        assert [name for name in (await w.readdir(handle)).names() if name not in (b".", b"..")] == []
        await w.operations.fsyncdir(handle, False)
        await w.operations.releasedir(handle)


@in_trio
async def test_a_directory_removed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    async with world(tmp_path, still=True) as w:
        number = await w.number("dir")
        (tmp_path / "dir").rmdir()
        assert await refused(opened(w, number)) == "ENOENT"
        w.jump(30)
        assert await refused(w.getattr(number)) == "ESTALE"


@in_trio
async def test_a_listing_is_believed_for_its_time(tmp_path: Path) -> None:
    fill(tmp_path, ["a"])
    async with world(tmp_path, still=True) as w:
        assert await w.list() == {b"a"}
        fill(tmp_path, ["b"])
        w.asked()
        assert await w.list() == {b"a"}
        assert w.asked() == []
        w.jump(21)
        assert await w.list() == {b"a", b"b"}


@in_trio
async def test_a_directory_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        assert await refused(opened(w, await w.number("file"))) == "ENOTDIR"
        assert w.tree.root.directory is not None
        assert w.tree.root.directory.asking == 0


@in_trio
async def test_a_listing_with_room_for_a_few_inodes_shows_all(tmp_path: Path) -> None:
    names = fill(tmp_path, [f"file{number}" for number in range(300)])
    async with world(tmp_path, max_idle=5) as w:
        for _ in range(2):
            handle, position = await opened(w), 0
            found: set[bytes] = set()
            while (reply := await w.readdir(handle, position, 50)).entries:
                found |= set(reply.names())
                position = reply.entries[-1][2]
                await w.operations.forget([(entry.st_ino, 1) for name, entry, _ in reply.entries if name[:1] != b"."])
            assert found - {b".", b".."} == names
            await w.operations.releasedir(handle)
        assert await refused(w.lookup("none")) == "ENOENT"
        for name in ("file0", "file150", "file299"):
            await w.lookup(name)


def test_the_stand_in_for_the_kernels_buffer_refuses_what_does_not_fit() -> None:
    reply = Reply(room=0)
    assert not reply.take(b"a", None, 1)  # type: ignore[arg-type]
    assert reply.refused == 1


@in_trio
async def test_a_directory_that_stays_open_remembers_no_names(tmp_path: Path) -> None:
    """What is removed while it is being read is kept in mind until all of it was read, and not for ever."""
    for number in range(150):
        (tmp_path / f"file{number}").touch()
    async with world(tmp_path) as w:
        for names in ("from the server", "from the tree"):
            handle = await w.operations.opendir(ROOT_NUMBER, CTX)
            reply = await w.readdir(handle, 0, 10)
            await w.operations.unlink(ROOT_NUMBER, reply.names()[5], CTX)
            position = reply.entries[-1][2]
            while reply.entries:
                reply = await w.readdir(handle, position)
                position = reply.entries[-1][2] if reply.entries else position
            removed = w.tree.root.directory
            for number in range(10):
                file, _ = await w.create(f"temporary{number}")
                await w.operations.release(file)
                await w.operations.unlink(ROOT_NUMBER, b"temporary%d" % number, CTX)
            assert removed is not None and removed.removed == {}, names
            await w.operations.releasedir(handle)
