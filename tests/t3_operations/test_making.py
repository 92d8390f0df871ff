"""create, mknod, mkdir, symlink, link, rename, unlink, rmdir: on the server, and in what is known here at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyfuse3
import pytest

from sshmuxfs.operations import Manners
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import RequestTimeout
from sshmuxfs.sftp.protocol import Status, StatusError
from sshmuxfs.tree.inodes import ROOT_NUMBER, Gone
from tests.support.sftp_process import SftpProcess, in_trio
from tests.t3_operations.world import CTX, World, refused, world

MODES = [0o644, 0o600, 0o777, 0o666, 0o444, 0o200, 0o000, 0o755, 0o1644]
UMASKS = [0o022, 0o077, 0o000]


def server_with_umask(umask: int) -> Callable[[], SftpProcess]:
    return lambda: SftpProcess(umask=umask)


async def rename(w: World, old: str, new: str, flags: int = 0) -> None:
    """By paths; every directory on the way is looked up."""
    places = []
    for path in (old, new):
        parent, _, name = path.rpartition("/")
        places.append((await w.number(parent) if parent else ROOT_NUMBER, os.fsencode(name)))
    if not flags:
        try:
            await w.lookup(old)  # as the kernel does
        except pyfuse3.FUSEError:
            pass
    await w.operations.rename(*places[0], *places[1], flags, CTX)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", UMASKS)
@in_trio
async def test_the_mode_of_a_new_file_is_what_was_asked_for_whatever_the_servers_umask(
    tmp_path: Path, umask: int
) -> None:
    async with world(tmp_path, make_process=server_with_umask(umask)) as w:
        for mode in MODES:
            name = f"{mode:o}"
            handle, entry = await w.create(name, mode)
            assert entry.st_mode == stat.S_IFREG | mode == os.lstat(tmp_path / name).st_mode
            await w.operations.write(handle, 0, b"written")
            await w.operations.flush(handle)
            await w.operations.release(handle)
            assert (tmp_path / name).stat().st_size == 7
            node = await w.operations.mknod(ROOT_NUMBER, f"n{name}".encode(), stat.S_IFREG | mode, 0, CTX)
            assert node.st_mode == stat.S_IFREG | mode == os.lstat(tmp_path / f"n{name}").st_mode


@in_trio
async def test_where_modes_cannot_be_changed_things_are_made_all_the_same(tmp_path: Path) -> None:
    refusing = ["sh", "-c", 'exec "$0" -P setstat,fsetstat']
    async with world(tmp_path, make_process=lambda: SftpProcess(umask=0o077, command=refusing)) as w:
        handle, entry = await w.create("file", 0o666)
        assert stat.S_IMODE(entry.st_mode) == stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        await w.operations.write(handle, 0, b"text")
        await w.operations.release(handle)
        made = await w.operations.mkdir(ROOT_NUMBER, b"dir", 0o777, CTX)
        assert stat.S_IMODE((await w.getattr(made.st_ino)).st_mode) == 0o700
        assert await refused(w.setattr(entry.st_ino, mode=0o666)) == "EPERM"


@pytest.mark.parametrize("umask", UMASKS)
@in_trio
async def test_the_mode_of_a_new_directory_too(tmp_path: Path, umask: int) -> None:
    async with world(tmp_path, make_process=server_with_umask(umask)) as w:
        for mode in (0o755, 0o700, 0o777, 0o1777, 0o000):
            entry = await w.operations.mkdir(ROOT_NUMBER, b"%o" % mode, stat.S_IFDIR | mode, CTX)
            assert entry.st_mode == stat.S_IFDIR | mode == os.lstat(tmp_path / f"{mode:o}").st_mode


@in_trio
async def test_a_directory_inherits_the_group_as_the_server_has_it(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    async with world(tmp_path, make_process=server_with_umask(0o077)) as w:
        entry = await w.operations.mkdir(await w.number("shared"), b"below", 0o750, CTX)
        real = os.lstat(tmp_path / "shared" / "below")
        assert stat.S_IMODE(entry.st_mode) == stat.S_IMODE(real.st_mode) == 0o2750


@in_trio
async def test_a_new_directory_is_kept_while_its_mode_is_set(tmp_path: Path) -> None:
    """However much is learned meanwhile. The same holds for what was found, while it is opened."""
    (tmp_path / "many").mkdir()
    for number in range(60):
        (tmp_path / "many" / str(number)).touch()
    async with world(tmp_path, make_process=partial(SftpProcess, umask=0o077), max_idle=20) as w:
        many = await w.number("many")

        def crowded(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def after_many(*args: Any, **kwargs: Any) -> Any:
                await w.names.list(w.inode(many))
                for number in range(60):
                    await w.names.find(w.inode(many), b"%d" % number)
                return await method(*args, **kwargs)

            return after_many

        with mock.patch.object(w.names, "set_attributes", crowded(w.names.set_attributes)):
            entry = await w.operations.mkdir(ROOT_NUMBER, b"made", stat.S_IFDIR | 0o755, CTX)
        assert (await w.getattr(entry.st_ino)).st_mode & 0o777 == 0o755
        (tmp_path / "there").touch()
        with mock.patch.object(w.names, "open", crowded(w.names.open)):
            handle, entry = await w.create("there")
        assert (await w.getattr(entry.st_ino)).st_ino == entry.st_ino
        await w.operations.release(handle)


@pytest.mark.parametrize("error", [RequestTimeout("silence"), StatusError(Status.FAILURE, b""), Gone("it is gone")])
@in_trio
async def test_a_directory_that_was_made_is_made_whatever_becomes_of_its_mode(tmp_path: Path, error: Exception) -> None:
    async with world(tmp_path, make_process=partial(SftpProcess, umask=0o077)) as w:

        async def failing(*_: object) -> None:
            raise error

        with mock.patch.object(w.names, "set_attributes", failing):
            entry = await w.operations.mkdir(ROOT_NUMBER, b"made", stat.S_IFDIR | 0o755, CTX)
        assert stat.S_ISDIR(entry.st_mode) and entry.st_mode & 0o777 == 0o700


@in_trio
async def test_a_new_directory_is_known_to_be_empty(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        number = (await w.operations.mkdir(ROOT_NUMBER, b"new", 0o755, CTX)).st_ino
        w.asked()
        assert await refused(w.operations.lookup(number, b"x", CTX)) == "ENOENT"
        assert await w.list(number) == set()
        assert w.asked() == []


@in_trio
async def test_exclusively(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "dir").mkdir()
    async with world(tmp_path) as w:
        for name in ("file", "dangling", "dir"):
            assert await refused(w.create(name, flags=os.O_RDWR | os.O_EXCL)) == "EEXIST"
            assert await refused(w.operations.mkdir(ROOT_NUMBER, name.encode(), 0o755, CTX)) == "EEXIST"
            node = w.operations.mknod(ROOT_NUMBER, name.encode(), stat.S_IFREG | 0o644, 0, CTX)
            assert await refused(node) == "EEXIST"
            assert await refused(w.operations.symlink(ROOT_NUMBER, name.encode(), b"t", CTX)) == "EEXIST"
        assert (tmp_path / "file").read_bytes() == b"kept"
        handle, _ = await w.create("new", flags=os.O_RDWR | os.O_EXCL)
        await w.operations.release(handle)


@in_trio
async def test_creating_what_somebody_else_made_meanwhile_opens_it_as_it_is(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert await refused(w.lookup("file")) == "ENOENT"
        (tmp_path / "file").write_bytes(b"theirs")
        (tmp_path / "file").chmod(0o600)
        handle, entry = await w.create("file", 0o777)
        assert (entry.st_mode, entry.st_size) == (stat.S_IFREG | 0o600, 6)
        assert bytes(await w.operations.read(handle, 0, 100)) == b"theirs"
        await w.operations.release(handle)
        (tmp_path / "second").write_bytes(b"theirs")
        handle, entry = await w.create("second", 0o777, os.O_RDWR | os.O_TRUNC)
        assert entry.st_size == 0
        await w.operations.release(handle)


@in_trio
async def test_opening_with_truncation(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number, os.O_WRONLY | os.O_TRUNC)
        assert (await w.getattr(number)).st_size == 0
        await w.operations.release(handle)
        assert (tmp_path / "file").read_bytes() == b""


@in_trio
async def test_appending_goes_to_the_end_wherever_that_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number, os.O_WRONLY | os.O_APPEND)
        with (tmp_path / "file").open("ab") as other:
            other.write(b"two")
        await w.operations.write(handle, 3, b"three")
        await w.operations.flush(handle)
        await w.operations.release(handle)
        assert (tmp_path / "file").read_bytes() == b"onetwothree"


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
@in_trio
async def test_nothing_but_files_can_be_made_as_nodes(tmp_path: Path, kind: int) -> None:
    async with world(tmp_path) as w:
        assert await refused(w.operations.mknod(ROOT_NUMBER, b"node", kind | 0o644, 0, CTX)) == "EPERM"
        assert os.listdir(tmp_path) == []


@in_trio
async def test_names_too_long_are_not_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        long = b"n" * 256
        (tmp_path / "file").touch()
        number = await w.number("file")
        w.asked()
        for call in (
            w.operations.create(ROOT_NUMBER, long, 0o644, os.O_RDWR, CTX),
            w.operations.mkdir(ROOT_NUMBER, long, 0o755, CTX),
            w.operations.symlink(ROOT_NUMBER, long, b"t", CTX),
            w.operations.link(number, ROOT_NUMBER, long, CTX),
            w.operations.rename(ROOT_NUMBER, b"file", ROOT_NUMBER, long, 0, CTX),
        ):
            assert await refused(call) == "ENAMETOOLONG"
        assert w.asked() == []


# -- links ------------------------------------------------------------------------------------------------------------


@in_trio
async def test_a_symbolic_link(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        entry = await w.operations.symlink(ROOT_NUMBER, b"link", b"some/\xff/where", CTX)
        assert stat.S_ISLNK(entry.st_mode)
        assert entry.st_size == 12
        assert os.readlink(os.fsencode(tmp_path / "link")) == b"some/\xff/where"
        assert await w.operations.readlink(entry.st_ino, CTX) == b"some/\xff/where"


@in_trio
async def test_hard_links_share_number_count_and_content(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        number = entry.st_ino
        linked = await w.operations.link(number, ROOT_NUMBER, b"second", CTX)
        assert (linked.st_ino, linked.st_nlink) == (number, 2)
        assert await w.number("second") == number
        await w.operations.write(handle, 0, b"seen by both")
        await w.operations.release(handle)
        assert await w.contents(await w.number("second")) == b"seen by both"
        assert os.lstat(tmp_path / "file").st_ino == os.lstat(tmp_path / "second").st_ino
        await w.operations.unlink(ROOT_NUMBER, b"file", CTX)
        assert (await w.getattr(number)).st_nlink == 1
        assert await refused(w.lookup("file")) == "ENOENT"
        assert await w.number("second") == number


@in_trio
async def test_hard_links_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    async with world(tmp_path) as w:
        number = await w.number("file")
        assert await refused(w.operations.link(number, ROOT_NUMBER, b"dir", CTX)) == "EEXIST"
        assert await refused(w.operations.link(await w.number("dir"), ROOT_NUMBER, b"x", CTX)) == "EPERM"
        extensions = (await w.link.client())._exchange.extensions
        assert extensions is not None
        del extensions[sftp.Hardlink.EXTENSION]
        assert await refused(w.operations.link(number, ROOT_NUMBER, b"x", CTX)) == "EPERM"
    async with world(tmp_path, manners=Manners(hard_links=False)) as w:
        assert await refused(w.operations.link(await w.number("file"), ROOT_NUMBER, b"x", CTX)) == "EPERM"
    assert sorted(os.listdir(tmp_path)) == ["dir", "file"]


# -- renames ----------------------------------------------------------------------------------------------------------


@in_trio
async def test_a_rename_replaces(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    async with world(tmp_path) as w:
        number, replaced = await w.number("old"), await w.number("new")
        await rename(w, "old", "new")
        assert (await w.number("new"), (tmp_path / "new").read_bytes()) == (number, b"old")
        assert await refused(w.lookup("old")) == "ENOENT"
        assert await refused(w.getattr(replaced)) == "ESTALE"


@in_trio
async def test_a_rename_that_must_not_replace(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    async with world(tmp_path) as w:
        flags = pyfuse3.RENAME_NOREPLACE
        assert await refused(rename(w, "old", "new", flags)) == "EEXIST"
        assert (tmp_path / "new").read_bytes() == b"new"
        await rename(w, "old", "other", flags)
        assert (tmp_path / "other").read_bytes() == b"old"


@pytest.mark.parametrize("flags", [pyfuse3.RENAME_EXCHANGE, 4, 8, pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE])
@in_trio
async def test_renames_of_other_kinds_are_refused(tmp_path: Path, flags: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    async with world(tmp_path) as w:
        assert await refused(rename(w, "a", "b", flags)) == "EINVAL"
        assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["a", "b"]


@in_trio
async def test_a_server_without_posix_rename(tmp_path: Path) -> None:
    """The rename of version 3 never replaces: better refused than done in two steps."""
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "new").write_bytes(b"new")
    async with world(tmp_path) as w:
        extensions = (await w.link.client())._exchange.extensions
        assert extensions is not None
        del extensions[sftp.PosixRename.EXTENSION]
        assert await refused(rename(w, "old", "new")) == "EEXIST"
        await rename(w, "old", "other")
        assert sorted(os.listdir(tmp_path)) == ["new", "other"]


@in_trio
async def test_open_files_move_along(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        directory = (await w.operations.mkdir(ROOT_NUMBER, b"dir", 0o755, CTX)).st_ino
        handle, entry = await w.create("file", parent=directory)
        await w.operations.write(handle, 0, b"before ")
        await rename(w, "dir/file", "dir/moved")
        await rename(w, "dir", "other")
        await w.operations.write(handle, 7, b"after")
        assert bytes(await w.operations.read(handle, 0, 100)) == b"before after"
        assert (await w.getattr(entry.st_ino)).st_size == 12
        await w.operations.release(handle)
        assert await w.number("other/moved") == entry.st_ino
        handle, _ = await w.create("within", parent=directory)
        await w.operations.release(handle)
        assert sorted(os.listdir(tmp_path / "other")) == ["moved", "within"]


@in_trio
async def test_renames_of_directories(tmp_path: Path) -> None:
    for name in ("dir", "empty", "full", "full/file"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        assert await refused(rename(w, "dir", "full")) == "ENOTEMPTY"
        assert await refused(rename(w, "dir", "file")) == "ENOTDIR"
        assert await refused(rename(w, "file", "dir")) == "EISDIR"
        assert await refused(rename(w, "dir", "dir/below")) == "EINVAL"
        assert await refused(rename(w, "none", "dir")) == "ENOENT"
        number = await w.number("dir")
        await rename(w, "dir", "empty")
        assert await w.number("empty") == number


# -- removing ---------------------------------------------------------------------------------------------------------


@in_trio
async def test_what_is_removed_is_gone_at_once(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    (tmp_path / "dir").mkdir()
    async with world(tmp_path) as w:
        assert await w.list() == {b"a", b"b", b"c", b"dir"}
        await w.operations.unlink(ROOT_NUMBER, b"b", CTX)
        await w.operations.rmdir(ROOT_NUMBER, b"dir", CTX)
        w.asked()
        assert await w.list() == {b"a", b"c"}
        for name in ("b", "dir"):
            assert await refused(w.lookup(name)) == "ENOENT"
        handle, _ = await w.create("b")
        await w.operations.release(handle)
        assert await w.list() == {b"a", b"b", b"c"}


@in_trio
async def test_what_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        assert await refused(w.operations.rmdir(ROOT_NUMBER, b"full", CTX)) == "ENOTEMPTY"
        assert await refused(w.operations.rmdir(ROOT_NUMBER, b"file", CTX)) == "ENOTDIR"
        assert await refused(w.operations.unlink(ROOT_NUMBER, b"full", CTX)) == "EISDIR"
        assert await refused(w.operations.unlink(ROOT_NUMBER, b"none", CTX)) == "ENOENT"
        assert await w.list() == {b"full", b"file"}


@in_trio
async def test_a_removed_file_that_is_open_goes_on(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        await w.operations.write(handle, 0, b"before ")
        await w.operations.unlink(ROOT_NUMBER, b"file", CTX)
        await w.operations.write(handle, 7, b"after")
        assert bytes(await w.operations.read(handle, 0, 100)) == b"before after"
        found = await w.getattr(entry.st_ino)
        assert (found.st_size, found.st_nlink) == (12, 0)
        second, other = await w.create("file")
        assert other.st_ino != entry.st_ino
        await w.operations.release(second)
        await w.operations.flush(handle)
        await w.operations.release(handle)
        assert w.inode(entry.st_ino).gone
        await w.operations.forget([(entry.st_ino, 1)])
        assert await refused(w.getattr(entry.st_ino)) == "ESTALE"
        assert (tmp_path / "file").read_bytes() == b""


@in_trio
async def test_a_file_replaced_by_rename_that_is_open_goes_on(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"replaced")
    (tmp_path / "new").write_bytes(b"new")
    async with world(tmp_path) as w:
        number = await w.number("old")
        handle = await w.open(number)
        await rename(w, "new", "old")
        assert bytes(await w.operations.read(handle, 0, 100)) == b"replaced"
        assert (await w.getattr(number)).st_nlink == 0
        await w.operations.release(handle)
        assert await w.contents(await w.number("old")) == b"new"
