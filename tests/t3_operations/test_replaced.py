"""What somebody else puts under a name that is known here: one of several names of a file, or that of an open file.

Version 3 tells no identity of a file, so nothing but its attributes can show it. What must never come of it is that one
file is read, cut off or changed in the place of another.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from sshmuxfs.io.files import files_of
from sshmuxfs.tree.inodes import ROOT_NUMBER, Gone
from tests.support.sftp_process import SftpProcess, eventually, handles_left_open, in_trio
from tests.t3_operations.world import CTX, World, refused, world

OLD, NEW = b"what both names had", b"another file"
EMPTYING = os.O_WRONLY | os.O_TRUNC


async def linked(w: World) -> int:
    """The number of a file with the names `a` and `b`, both made here."""
    handle, entry = await w.create("a")
    await w.operations.write(handle, 0, OLD)
    await w.operations.flush(handle)
    await w.operations.release(handle)
    await w.operations.link(entry.st_ino, ROOT_NUMBER, b"b", CTX)
    assert (await w.lookup("a")).st_ino == (await w.lookup("b")).st_ino == entry.st_ino
    assert (await w.getattr(entry.st_ino)).st_nlink == 2
    return entry.st_ino


def put_there(directory: Path, name: str, content: bytes = NEW) -> None:
    """What an editor on the server does."""
    (directory / "put").write_bytes(content)
    os.replace(directory / "put", directory / name)


async def cut(w: World, number: int) -> None:
    await w.operations.release(await w.open(number, EMPTYING))


@contextmanager
def growing(path: Path) -> Iterator[None]:
    """Somebody appends to a file as fast as can be."""
    loop = "import os, sys\nlog = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\nwhile True: os.write(log, b'x')"
    with subprocess.Popen([sys.executable, "-c", loop, os.fspath(path)]) as writer:
        try:
            yield
        finally:
            writer.kill()


# -- one of several names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", ["a", "b"])
@in_trio
async def test_each_of_two_names_leads_to_what_the_server_has_there(tmp_path: Path, replaced: str) -> None:
    kept = "b" if replaced == "a" else "a"
    async with world(tmp_path, still=True) as w:
        number = await linked(w)
        put_there(tmp_path, replaced)
        w.jump(3600)
        assert await w.contents(await w.number(kept)) == OLD
        assert await w.contents(await w.number(replaced)) == NEW
        assert (await w.lookup(kept)).st_nlink == 1
        await cut(w, await w.number(kept))
        assert ((tmp_path / replaced).read_bytes(), (tmp_path / kept).read_bytes()) == (NEW, b"")
        assert await refused(w.getattr(number)) == "ESTALE"


@pytest.mark.parametrize(
    "what",
    [
        lambda w, number: w.open(number),
        lambda w, number: w.open(number, os.O_WRONLY),
        lambda w, number: w.open(number, EMPTYING),
        lambda w, number: w.setattr(number, size=0),
        lambda w, number: w.setattr(number, mode=0o600),
        lambda w, number: w.operations.link(number, ROOT_NUMBER, b"c", CTX),
    ],
    ids=["read", "write", "empty", "truncate", "chmod", "link"],
)
@pytest.mark.parametrize("replaced", ["a", "b", "neither, but one is gone"])
@in_trio
async def test_what_is_still_taken_for_one_file_is_looked_up_again(
    tmp_path: Path, what: Callable[[World, int], Awaitable[object]], replaced: str
) -> None:
    """Within the time that names are believed the kernel may mean either; it is told so before anything is done."""
    async with world(tmp_path, still=True) as w:
        number = await linked(w)
        if len(replaced) == 1:
            put_there(tmp_path, replaced)
        else:
            (tmp_path / "a").unlink()
        before = {each.name: (each.read_bytes(), each.stat().st_mode) for each in tmp_path.iterdir()}
        assert await refused(what(w, number)) == "ESTALE"
        assert {each.name: (each.read_bytes(), each.stat().st_mode) for each in tmp_path.iterdir()} == before
        assert {name: await w.contents(await w.number(name)) for name in before} == {
            name: content for name, (content, _) in before.items()
        }
        assert await handles_left_open(await w.link.client()) <= 1


@in_trio
async def test_what_cannot_be_opened_under_one_name_does_not_keep_the_other_shut(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        number = await linked(w)
        (tmp_path / "a").unlink()
        (tmp_path / "a").mkdir()
        assert await refused(w.open(number, os.O_WRONLY)) == "ESTALE"
        await cut(w, await w.number("b"))
        assert (tmp_path / "b").read_bytes() == b""
        assert stat.S_ISDIR((await w.lookup("a")).st_mode)


@in_trio
async def test_a_listing_does_not_speak_for_the_other_name(tmp_path: Path) -> None:
    async with world(tmp_path, still=True) as w:
        number = await linked(w)
        put_there(tmp_path, "a")
        w.jump(30)
        assert await w.list() == {b"a", b"b"}
        assert w.inode(number).attributes.size == len(OLD)
        assert [await w.contents(await w.number(name)) for name in ("a", "b")] == [NEW, OLD]


@in_trio
async def test_a_file_changed_in_place_keeps_its_names(tmp_path: Path) -> None:
    async with world(tmp_path, still=True) as w:
        number = await linked(w)
        for content in (b"shorter", b"much longer than it was before"):
            (tmp_path / "b").write_bytes(content)
            w.jump(30)
            entry = await w.lookup("a")
            assert (entry.st_ino, entry.st_nlink, entry.st_size) == (number, 2, len(content))
            assert await w.contents(await w.number("b")) == content
        w.jump(30)
        w.asked()
        await w.lookup("b")
        assert w.asked() == ["Lstat", "Lstat"]
        assert w.process.stream.sends == 0


@in_trio
async def test_a_name_below_a_directory_that_was_removed(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a").write_bytes(OLD)
    async with world(tmp_path, still=True) as w:
        number = await w.number("dir/a")
        await w.operations.link(number, ROOT_NUMBER, b"b", CTX)
        (tmp_path / "dir" / "a").unlink()
        (tmp_path / "dir").rmdir()
        w.jump(30)
        assert await refused(w.lookup("dir")) == "ENOENT"
        assert await w.contents(await w.number("b")) == OLD


@in_trio
async def test_a_name_that_cannot_be_asked_for_does_not_hide_the_other(tmp_path: Path) -> None:
    """The server says of it what it says of everything below a file: that it is not a directory."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a").write_bytes(OLD)
    async with world(tmp_path, still=True) as w:
        await w.operations.link(await w.number("dir/a"), ROOT_NUMBER, b"b", CTX)
        (tmp_path / "dir").rename(tmp_path / "moved")
        (tmp_path / "dir").touch()
        w.jump(30)
        assert await w.contents(await w.number("b")) == OLD


# -- the name of an open file -----------------------------------------------------------------------------------------


@in_trio
async def test_a_descriptor_keeps_the_file_it_was_opened_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD * 100)
    async with world(tmp_path, still=True) as w:
        number = await w.number("file")
        handle = await w.open(number)
        put_there(tmp_path, "file")
        w.jump(30)
        found = await w.getattr(number)
        assert (found.st_size, found.st_nlink) == (len(OLD) * 100, 0)
        entry = await w.lookup("file")
        assert (entry.st_ino != number, entry.st_size) == (True, len(NEW))
        assert bytes(await w.operations.read(handle, 0, 10_000)) == OLD * 100
        assert await w.contents(entry.st_ino) == NEW
        w.jump(30)
        assert (await w.getattr(number)).st_size == len(OLD) * 100
        await w.operations.release(handle)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@in_trio
async def test_a_second_descriptor_is_of_what_is_there_now(tmp_path: Path, flags: int) -> None:
    """And shares nothing with the first: the kernel is told to look the name up again."""
    (tmp_path / "file").write_bytes(OLD)
    async with world(tmp_path) as w:
        number = await w.number("file")
        first = await w.open(number, flags)
        put_there(tmp_path, "file")
        assert await refused(w.open(number, flags)) == "ESTALE"
        entry = await w.lookup("file")
        second = await w.open(entry.st_ino, flags)
        assert entry.st_ino != number
        assert bytes(await w.operations.read(first, 0, 100)) == OLD
        assert bytes(await w.operations.read(second, 0, 100)) == NEW
        for handle in (second, first):
            await w.operations.release(handle)
        assert await handles_left_open(await w.link.client()) == 0


@in_trio
async def test_who_knows_it_by_its_old_number_looks_again(tmp_path: Path) -> None:
    """It was noticed by the descriptor; the kernel may take the name for the old file still."""
    (tmp_path / "file").write_bytes(OLD)
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number, os.O_RDWR)
        put_there(tmp_path, "file")
        w.tree.touch(w.inode(number))
        await w.getattr(number)
        assert w.inode(number).gone
        assert await refused(w.open(number)) == "ESTALE"
        assert await w.contents(await w.number("file")) == NEW
        await w.operations.release(handle)


@in_trio
async def test_neither_a_listing_nor_a_change_of_mode_tells_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD * 100)
    async with world(tmp_path, still=True) as w:
        number = await w.number("file")
        handle = await w.open(number)
        put_there(tmp_path, "file")
        w.jump(30)
        await w.list()
        assert w.inode(number).attributes.size == len(OLD) * 100
        assert (await w.setattr(number, mode=0o640)).st_size == len(OLD) * 100
        await w.operations.release(handle)


@in_trio
async def test_a_file_that_grows_all_the_time_is_no_other_file(tmp_path: Path) -> None:
    """A log under `tail -f`: the answers differ because it was longer when the second was given."""
    path = tmp_path / "log"
    path.touch()
    async with world(tmp_path) as w:
        number = await w.number("log")
        handle = await w.open(number)
        with growing(path):
            await eventually(lambda: path.stat().st_size > 1000)
            last = turns = asked = 0
            w.asked()
            while turns < 300 or asked == 2 * turns:  # until two answers differed, and further questions were sent
                w.tree.touch(w.inode(number))
                size = (await w.getattr(number)).st_size
                assert size >= last and not w.inode(number).gone
                last, turns, asked = size, turns + 1, asked + len(w.asked())
                await trio.lowlevel.checkpoint()
            for _ in range(100):
                await w.operations.release(await w.open(number))
            assert await w.number("log") == number
        await w.operations.release(handle)


@in_trio
async def test_own_writes_are_no_other_file(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        for turn in range(200):
            await w.operations.write(handle, turn * 10, b"0123456789")
            assert (await w.getattr(entry.st_ino)).st_size == turn * 10 + 10
            assert await w.number("file") == entry.st_ino
            other = await w.open(entry.st_ino)
            await w.operations.release(other)
        assert not w.inode(entry.st_ino).gone
        await w.operations.release(handle)


@in_trio
async def test_a_server_that_says_nothing_of_handles(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    async with world(tmp_path, make_process=partial(SftpProcess, arguments=["-P", "fstat"]), still=True) as w:
        number = await w.number("file")
        handle = await w.open(number)
        with (tmp_path / "file").open("ab") as other:
            other.write(NEW)
        w.jump(30)
        assert (await w.getattr(number)).st_size == len(OLD + NEW)
        await w.operations.release(handle)


@in_trio
async def test_what_the_handle_is_asked_for_comes_behind_what_was_accepted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        inode = w.inode(entry.st_ino)
        client = await w.link.client()
        w.process.pause()
        await w.operations.write(handle, 0, b"0123456789")
        await w.operations.write(handle, 10, b"0123456789")
        writer = files_of(inode)[0].writer
        assert writer is not None and writer.pending_bytes == 20 and len(writer._in_flight) == 1
        w.process.resume()
        await w.names._ask_by_handle(client, inode, Gone())
        assert inode.attributes.size == 20
        await w.operations.release(handle)
