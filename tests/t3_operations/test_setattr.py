"""setattr in every combination: what is asked to change changes, and nothing else does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.tree.attributes import View
from sshmuxfs.tree.identity import IdentityMap, IdRule
from sshmuxfs.tree.inodes import ROOT_NUMBER
from tests.support.sftp_process import in_trio
from tests.t3_operations.world import CTX, NS, refused, world

# Who may give a file to whom: root to anybody, others to themselves only.
OTHER_UID, OTHER_GID = (1234, 4321) if os.geteuid() == 0 else (os.getuid(), os.getgid())


def made(path: Path) -> Path:
    path.write_bytes(b"0123456789")
    path.chmod(0o640)
    os.utime(path, (1000, 2000))
    return path


def state(path: Path) -> tuple[int, int, int, int, int, int]:
    """Mode, owner, group, size, atime, mtime."""
    real = os.lstat(path)
    return real.st_mode, real.st_uid, real.st_gid, real.st_size, int(real.st_atime), int(real.st_mtime)


BEFORE = (stat.S_IFREG | 0o640, os.getuid(), os.getgid(), 10, 1000, 2000)


@pytest.mark.parametrize(
    ("values", "position", "expected"),
    [
        ({"mode": stat.S_IFREG | 0o600}, 0, stat.S_IFREG | 0o600),
        ({"mode": stat.S_IFREG}, 0, stat.S_IFREG),
        ({"mode": stat.S_IFREG | 0o755}, 0, stat.S_IFREG | 0o755),
        ({"uid": OTHER_UID}, 1, OTHER_UID),
        ({"gid": OTHER_GID}, 2, OTHER_GID),
        ({"atime_ns": 5 * NS}, 4, 5),
        ({"mtime_ns": 6 * NS}, 5, 6),
        ({"atime_ns": 0}, 4, 0),
        ({"mtime_ns": 5 * NS - 1}, 5, 4),  # whole seconds, never later than asked for
        ({"mtime_ns": (2**32 - 1) * NS + 999_999_999}, 5, 2**32 - 1),
    ],
)
@in_trio
async def test_one_thing_changes_and_nothing_else(
    tmp_path: Path, values: dict[str, int], position: int, expected: int
) -> None:
    path = made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        entry = await w.setattr(number, **values)
        after = list(BEFORE)
        after[position] = expected
        assert list(state(path)) == after
        assert (entry.st_mode, entry.st_uid, entry.st_gid, entry.st_size) == tuple(after[:4])
        assert (entry.st_atime_ns, entry.st_mtime_ns) == (after[4] * NS, after[5] * NS)
        w.asked()
        again = await w.getattr(number)
        assert (again.st_mode, again.st_mtime_ns) == (entry.st_mode, entry.st_mtime_ns)
        assert w.asked() == [], "what came of it is known"


@in_trio
async def test_several_things_change_together(tmp_path: Path) -> None:
    path = made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        await w.setattr(number, mode=0o600, uid=OTHER_UID, gid=OTHER_GID, atime_ns=7 * NS, mtime_ns=8 * NS)
        assert state(path) == (stat.S_IFREG | 0o600, OTHER_UID, OTHER_GID, 10, 7, 8)


@in_trio
async def test_one_half_of_a_pair_keeps_the_other_as_it_is_on_the_server(tmp_path: Path) -> None:
    """Not as it was last known here."""
    path = made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        os.utime(path, (1000, 77))
        await w.setattr(number, atime_ns=5 * NS)
        assert state(path)[4:] == (5, 77)


@in_trio
async def test_nothing_to_change_is_no_request(tmp_path: Path) -> None:
    made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        w.asked()
        assert (await w.setattr(number)).st_size == 10
        assert (await w.setattr(number, ctime_ns=5)).st_size == 10
        assert w.asked() == []


@pytest.mark.parametrize("time_ns", [-1, -NS, 2**32 * NS, 2**40 * NS])
@pytest.mark.parametrize("which", ["atime_ns", "mtime_ns"])
@in_trio
async def test_times_that_version_3_cannot_say_are_refused(tmp_path: Path, which: str, time_ns: int) -> None:
    path = made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        assert await refused(w.setattr(number, mode=0o600, **{which: time_ns})) == "EINVAL"
        assert state(path) == BEFORE


@pytest.mark.parametrize("size", [0, 1, 10, 11, 1_000_000, 3 << 30])
@pytest.mark.parametrize("how", ["path", "handle", "another's handle"])
@in_trio
async def test_the_size(tmp_path: Path, size: int, how: str) -> None:
    path = made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number, os.O_RDWR) if how != "path" else None
        w.asked()
        entry = await w.setattr(number, size=size, fh=handle if how == "handle" else None)
        assert entry.st_size == path.stat().st_size == size
        assert w.asked()[0] == ("Setstat" if how == "path" else "Fsetstat")
        with path.open("rb") as real:
            assert real.read(10) == b"0123456789"[:size].ljust(min(size, 10), b"\0")
        if handle is not None:
            await w.operations.release(handle)


@in_trio
async def test_a_file_open_for_reading_alone_is_truncated_by_its_path(tmp_path: Path) -> None:
    path = made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number, os.O_RDONLY)
        assert (await w.setattr(number, size=3, fh=handle)).st_size == 3
        assert path.read_bytes() == b"012"
        await w.operations.release(handle)


@in_trio
async def test_a_truncation_comes_behind_what_was_written_before_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        w.process.pause()
        for number in range(10):
            await w.operations.write(handle, number * 100, b"x" * 100)
        w.process.resume()
        assert (await w.setattr(entry.st_ino, size=150, fh=handle)).st_size == 150
        await w.operations.flush(handle)
        assert (tmp_path / "file").read_bytes() == b"x" * 150
        await w.operations.write(handle, 150, b"y")
        await w.operations.flush(handle)
        assert (tmp_path / "file").stat().st_size == 151
        await w.operations.release(handle)


@in_trio
async def test_what_was_read_before_a_truncation_is_not_shown_after_it(tmp_path: Path) -> None:
    made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number, os.O_RDWR)
        assert bytes(await w.operations.read(handle, 0, 4096)) == b"0123456789"
        await w.setattr(number, size=5, fh=handle)
        assert bytes(await w.operations.read(handle, 0, 4096)) == b"01234"
        await w.setattr(number, size=8, fh=handle)
        assert bytes(await w.operations.read(handle, 0, 4096)) == b"01234\0\0\0"
        await w.operations.release(handle)


# -- symbolic links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["file", "nowhere"])
@in_trio
async def test_a_link_is_changed_and_never_its_target(tmp_path: Path, target: str) -> None:
    path = made(tmp_path / "file")
    (tmp_path / "link").symlink_to(target)
    async with world(tmp_path) as w:
        number = await w.number("link")
        await w.setattr(number, atime_ns=5 * NS, mtime_ns=6 * NS)
        await w.setattr(number, mtime_ns=7 * NS)
        await w.setattr(number, uid=OTHER_UID, gid=OTHER_GID)
        real = os.lstat(tmp_path / "link")
        assert (real.st_uid, real.st_gid, int(real.st_atime), int(real.st_mtime)) == (OTHER_UID, OTHER_GID, 5, 7)
        assert state(path) == BEFORE
        assert "Setstat" not in w.asked()


@in_trio
async def test_a_link_is_not_changed_where_that_would_change_its_target(tmp_path: Path) -> None:
    path = made(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    async with world(tmp_path) as w:
        extensions = (await w.link.client())._exchange.extensions
        assert extensions is not None
        del extensions[sftp.Lsetstat.EXTENSION]
        number = await w.number("link")
        assert await refused(w.setattr(number, atime_ns=5 * NS, mtime_ns=6 * NS)) == "ENOTSUP"
        assert state(path) == BEFORE


# -- without a name ---------------------------------------------------------------------------------------------------


@in_trio
async def test_a_removed_file_that_is_open_can_still_be_changed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file", 0o644)
        await w.operations.write(handle, 0, b"0123456789")
        await w.operations.unlink(ROOT_NUMBER, b"file", CTX)
        number = entry.st_ino
        assert (await w.setattr(number, size=4)).st_size == 4
        assert (await w.setattr(number, size=6, fh=handle)).st_size == 6
        changed = await w.setattr(number, mode=0o600, mtime_ns=5 * NS)
        assert (stat.S_IMODE(changed.st_mode), changed.st_mtime_ns, changed.st_nlink) == (0o600, 5 * NS, 0)
        assert bytes(await w.operations.read(handle, 0, 100)) == b"0123\0\0"
        await w.operations.release(handle)
        assert await refused(w.setattr(number, size=0)) == "ESTALE"
        assert os.listdir(tmp_path) == []


# -- owners that are shown as others ----------------------------------------------------------------------------------


@in_trio
async def test_owners_are_translated(tmp_path: Path) -> None:
    path = made(tmp_path / "file")
    login, here = os.getuid(), 4711
    async with world(tmp_path, view=View(IdentityMap(IdRule(remote=login, local=here), IdRule(shown=42)))) as w:
        number = await w.number("file")
        assert (await w.setattr(number, uid=here)).st_uid == here
        assert state(path)[1] == login
        w.asked()
        assert (await w.setattr(number, gid=42)).st_gid == 42
        assert w.asked() == [], "it is shown as that already"
        if login != 5:
            assert await refused(w.setattr(number, uid=login)) == "EINVAL"


@in_trio
async def test_what_the_server_refuses_leaves_everything_as_it_was(tmp_path: Path) -> None:
    made(tmp_path / "file")
    async with world(tmp_path) as w:
        number = await w.number("file")
        (tmp_path / "file").unlink()
        assert await refused(w.setattr(number, mode=0o600)) == "ENOENT"
        assert await refused(w.lookup("file")) == "ENOENT", "what is known of it is believed no more"
