"""lookup, forget, getattr, access, readlink, statfs: what the kernel is told, how often, and what is asked for it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshmuxfs.tree.attributes import View
from sshmuxfs.tree.cache import CacheTimes
from sshmuxfs.tree.identity import IdentityMap, IdRule
from sshmuxfs.tree.inodes import ROOT_NUMBER, Gone
from sshmuxfs.tree.symlinks import SymlinkPolicy
from tests.support import processes
from tests.support.sftp_process import in_trio, unprivileged
from tests.t3_operations.world import CTX, NS, refused, world


@in_trio
async def test_an_entry_is_what_the_server_has(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    (tmp_path / "file").chmod(0o640)
    os.utime(tmp_path / "file", (1_000_000_001, 1_000_000_002))
    (tmp_path / "dir").mkdir(mode=0o2750)
    (tmp_path / "link").symlink_to("file")
    async with world(tmp_path, still=True) as w:
        for name in ("file", "dir", "link"):
            entry, real = await w.lookup(name), os.lstat(tmp_path / name)
            assert (entry.st_mode, entry.st_uid, entry.st_gid) == (real.st_mode, real.st_uid, real.st_gid)
            assert entry.st_nlink == 1
            if name != "dir":
                assert entry.st_size == real.st_size
                assert entry.st_blocks == (real.st_size + 511) // 512
            assert entry.st_mtime_ns == int(real.st_mtime) * NS
            assert (entry.attr_timeout, entry.entry_timeout) == pytest.approx((20.0, 20.0), abs=1)
        root = await w.getattr(ROOT_NUMBER)
        assert stat.S_ISDIR(root.st_mode)
        assert root.st_ino == ROOT_NUMBER


@in_trio
async def test_numbers_are_stable_and_different(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    found = []
    for _ in range(2):
        async with world(tmp_path) as w:
            numbers = [await w.number(name) for name in ("a", "b", "a", "b")]
            assert numbers[:2] == numbers[2:]
            assert len(set(numbers)) == 2
            found.append(numbers)
    assert found[0] == found[1]


@in_trio
async def test_the_kernels_references_are_counted_exactly(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        (number,) = {await w.number("file") for _ in range(5)}
        assert w.inode(number).lookups == 5
        await w.operations.forget([(number, 2), (number, 2)])
        assert w.inode(number).lookups == 1
        await w.operations.unlink(ROOT_NUMBER, b"file", CTX)
        assert w.inode(number).gone
        await w.operations.forget([(number, 1), (999_999, 4)])
        with pytest.raises(Gone):
            w.inode(number)


@in_trio
async def test_every_way_to_get_an_entry_counts_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        _, made = await w.create("created")
        entries = {
            "create": made.st_ino,
            "mkdir": (await w.operations.mkdir(ROOT_NUMBER, b"dir", 0o755, CTX)).st_ino,
            "mknod": (await w.operations.mknod(ROOT_NUMBER, b"node", stat.S_IFREG | 0o644, 0, CTX)).st_ino,
            "symlink": (await w.operations.symlink(ROOT_NUMBER, b"link", b"file", CTX)).st_ino,
            "lookup": await w.number("file"),
        }
        assert {how: w.inode(number).lookups for how, number in entries.items()} == dict.fromkeys(entries, 1)
        await w.operations.link(entries["lookup"], ROOT_NUMBER, b"second", CTX)
        assert w.inode(entries["lookup"]).lookups == 2
        await w.getattr(entries["lookup"])
        await w.setattr(entries["lookup"], mode=0o600)
        await w.open(entries["lookup"])
        assert w.inode(entries["lookup"]).lookups == 2


@in_trio
async def test_an_unknown_number_is_stale(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert await refused(w.operations.lookup(12345, b"x", CTX)) == "ESTALE"
        assert await refused(w.getattr(12345)) == "ESTALE"
        assert await refused(w.open(12345)) == "ESTALE"


@in_trio
async def test_what_is_fresh_is_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    async with world(tmp_path, still=True) as w:
        number = await w.number("file")
        assert w.asked() == ["Lstat"]
        path.write_bytes(b"newer")
        w.jump(19)
        assert (await w.lookup("file")).st_size == 3
        assert (await w.getattr(number)).st_size == 3
        assert (await w.getattr(number)).attr_timeout == pytest.approx(1.0)
        assert w.asked() == []
        w.jump(2)
        assert (await w.getattr(number)).st_size == 5
        assert (await w.lookup("file")).st_ino == number
        assert w.asked() == ["Lstat"]


@in_trio
async def test_without_caches_everything_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    none = CacheTimes(stat_s=0.0, link_s=0.0, dir_s=0.0, negative_s=0.0)
    async with world(tmp_path, still=True, times=none) as w:
        entry = await w.lookup("file")
        assert (entry.attr_timeout, entry.entry_timeout) == (0.0, 0.0)
        (tmp_path / "file").write_bytes(b"newer")
        assert (await w.getattr(entry.st_ino)).st_size == 5
        await w.list()
        (tmp_path / "other").touch()
        assert await w.list() == {b"file", b"other"}
        assert await refused(w.lookup("none")) == "ENOENT"
        (tmp_path / "none").touch()
        await w.lookup("none")


@in_trio
async def test_absence_is_remembered_for_a_while(tmp_path: Path) -> None:
    async with world(tmp_path, still=True) as w:
        for _ in range(3):
            assert await refused(w.lookup("file")) == "ENOENT"
        assert w.asked() == ["Lstat"]
        (tmp_path / "file").touch()
        w.jump(2.9)
        assert await refused(w.lookup("file")) == "ENOENT"
        w.jump(0.2)
        await w.lookup("file")


@in_trio
async def test_the_kernel_may_remember_absence_where_that_is_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path, times=CacheTimes(kernel_negative_s=7.0)) as w:
        entry = await w.lookup("none")
        assert (entry.st_ino, entry.entry_timeout) == (0, 7.0)
        assert await refused(w.operations.lookup(ROOT_NUMBER, b"n" * 256, CTX)) == "ENAMETOOLONG"


@in_trio
async def test_a_listing_answers_lookups_of_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    for number in range(150):
        (tmp_path / str(number)).write_bytes(bytes(number))
    async with world(tmp_path) as w:
        assert len(await w.list()) == 150
        w.asked()
        for number in range(150):
            assert (await w.lookup(str(number))).st_size == number
        for name in ("150", "other", ".gitignore"):
            assert await refused(w.lookup(name)) == "ENOENT"
        assert w.asked() == []


@in_trio
async def test_a_name_too_long_is_not_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert await refused(w.lookup("n" * 256)) == "ENAMETOOLONG"
        assert await refused(w.lookup("ä" * 128)) == "ENAMETOOLONG"
        assert w.asked() == []
        assert await refused(w.lookup("n" * 255)) == "ENOENT"


@in_trio
async def test_a_file_removed_elsewhere_is_stale(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with world(tmp_path, still=True) as w:
        number = await w.number("file")
        (tmp_path / "file").unlink()
        w.jump(30)
        assert await refused(w.getattr(number)) == "ESTALE"
        assert await refused(w.lookup("file")) == "ENOENT"


@in_trio
async def test_a_file_that_became_a_directory_elsewhere_is_another(tmp_path: Path) -> None:
    (tmp_path / "thing").touch()
    async with world(tmp_path, still=True) as w:
        number = await w.number("thing")
        (tmp_path / "thing").unlink()
        (tmp_path / "thing").mkdir()
        w.jump(30)
        assert await refused(w.getattr(number)) == "ESTALE"
        entry = await w.lookup("thing")
        assert stat.S_ISDIR(entry.st_mode)
        assert entry.st_ino != number
        assert await refused(w.open(number)) == "ESTALE"


@in_trio
async def test_a_file_that_became_another_is_noticed_when_it_is_opened(tmp_path: Path) -> None:
    """Within the time its attributes are believed."""
    (tmp_path / "thing").touch()
    async with world(tmp_path, still=True) as w:
        number = await w.number("thing")
        (tmp_path / "thing").unlink()
        (tmp_path / "thing").mkdir()
        assert await refused(w.open(number)) == "ESTALE"
        assert stat.S_ISDIR((await w.lookup("thing")).st_mode)


@in_trio
async def test_whose_files_and_which_modes_are_shown(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    identity = IdentityMap(IdRule(remote=os.getuid(), local=4711), IdRule(shown=4712))
    async with world(tmp_path, view=View(identity, umask=0o027)) as w:
        entry = await w.lookup("file")
        assert (entry.st_uid, entry.st_gid, entry.st_mode) == (4711, 4712, stat.S_IFREG | 0o750)


@in_trio
async def test_who_may_execute(tmp_path: Path) -> None:
    (tmp_path / "program").touch(mode=0o755)
    (tmp_path / "text").touch(mode=0o644)
    (tmp_path / "dir").mkdir(mode=0o700)
    async with world(tmp_path) as w:
        for name, may in (("program", True), ("text", False), ("dir", True)):
            number = await w.number(name)
            assert await w.operations.access(number, os.X_OK, CTX) is may
            assert await w.operations.access(number, os.R_OK | os.W_OK, CTX) is True
            assert await w.operations.access(number, os.F_OK, CTX) is True


@in_trio
async def test_a_link_target_is_asked_for_once_and_judged(tmp_path: Path) -> None:
    (tmp_path / "inside").symlink_to("some/where")
    (tmp_path / "absolute").symlink_to("/etc/passwd")
    (tmp_path / "above").symlink_to("../x")
    async with world(tmp_path, still=True) as w:
        number = await w.number("inside")
        w.asked()
        for _ in range(3):
            assert await w.operations.readlink(number, CTX) == b"some/where"
        assert w.asked() == ["Readlink"]
        w.jump(30)
        assert await w.operations.readlink(number, CTX) == b"some/where"
        assert "Readlink" in w.asked()
        for name in ("absolute", "above"):
            assert await refused(w.operations.readlink(await w.number(name), CTX)) == "EPERM"
    free = SymlinkPolicy(contain=False, transform=False, base=os.fsencode(tmp_path))
    async with world(tmp_path, still=True, symlinks=free) as w:
        assert await w.operations.readlink(await w.number("absolute"), CTX) == b"/etc/passwd"


@in_trio
async def test_links_shown_as_what_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    async with world(tmp_path, follow=True) as w:
        entry = await w.lookup("link")
        assert (entry.st_mode, entry.st_size) == (os.stat(tmp_path / "file").st_mode, 5)
        assert stat.S_ISLNK((await w.lookup("dangling")).st_mode)
        assert await w.contents(entry.st_ino) == b"12345"
        assert await w.list() == {b"file", b"link", b"dangling"}


@in_trio
async def test_the_size_of_the_file_system(tmp_path: Path) -> None:
    async with world(tmp_path, still=True) as w:
        real = os.statvfs(tmp_path)
        told = await w.operations.statfs(CTX)
        assert (told.f_bsize, told.f_frsize, told.f_blocks) == (real.f_bsize, real.f_frsize, real.f_blocks)
        assert told.f_namemax == 255
        for _ in range(5):
            await w.operations.statfs(CTX)
        assert w.asked() == ["StatvfsPath"]
        w.jump(3)
        await w.operations.statfs(CTX)
        assert w.asked() == ["StatvfsPath"]


@in_trio
async def test_a_file_system_whose_size_cannot_be_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (await w.link.client())._exchange.extensions = {}
        told = await w.operations.statfs(CTX)
        assert (told.f_blocks, told.f_bavail, told.f_namemax) == (0, 0, 255)
        assert told.f_bsize > 0


@pytest.fixture
def searched_but_not_read() -> Iterator[Path]:
    """A directory in which names can be looked up and not listed, by others and (unless we are root) by us."""
    top = processes.make_directory()
    top.chmod(0o755)
    directory = top / "directory"
    directory.mkdir()
    for number in range(9):
        (directory / str(number)).write_bytes(bytes(number))
    directory.chmod(0o311)
    yield directory
    directory.chmod(0o700)
    shutil.rmtree(top)


@in_trio
async def test_a_directory_that_can_be_searched_and_not_read(searched_but_not_read: Path) -> None:
    async with world(searched_but_not_read, make_process=unprivileged) as w:
        for number in range(9):
            assert (await w.lookup(str(number))).st_size == number
        assert await refused(w.lookup("none")) == "ENOENT"
        assert await refused(w.list()) == "EACCES"


@in_trio
async def test_names_asked_for_one_by_one_are_learned_together(tmp_path: Path) -> None:
    for number in range(150):
        (tmp_path / f"{number:03}").write_bytes(bytes(number))
    async with world(tmp_path) as w:
        for number in range(3):
            await w.lookup(f"{number:03}")
        assert [each for each in w.asked() if each != "Lstat"] == []
        for number in range(3, 150):
            assert (await w.lookup(f"{number:03}")).st_size == number
        assert set(w.asked()) <= {"Opendir", "Readdir", "Close"}


@in_trio
async def test_names_learned_that_way_do_not_speak_for_others(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).touch()
    async with world(tmp_path) as w:
        for name in "abcde":
            await w.lookup(name)
        (tmp_path / "made").mkdir()
        (tmp_path / "f").unlink()
        assert stat.S_ISDIR((await w.lookup("made")).st_mode)
        assert await w.list() == {b"a", b"b", b"c", b"d", b"e", b"made"}


@in_trio
async def test_a_directory_is_not_learned_again_and_again(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / str(number)).touch()
    async with world(tmp_path, still=True) as w:
        for number in range(9):
            await w.lookup(str(number))
        w.asked()
        for number in range(20):
            (tmp_path / f"later{number}").touch()
            await w.lookup(f"later{number}")
        assert set(w.asked()) == {"Lstat"}
        w.jump(21)
        for number in range(20):
            await w.lookup(f"later{number}")
        assert w.asked().count("Opendir") == 1


@in_trio
async def test_names_that_are_not_there_start_no_listing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for number in range(9):
            assert await refused(w.lookup(str(number))) == "ENOENT"
        assert set(w.asked()) == {"Lstat"}
