"""Times, modes and owners, of files, directories and links."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

import pytest

from tests.t4_mount.descriptors import opened
from tests.t4_mount.differences import Difference
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.syscalls import UTIME_NOW, UTIME_OMIT, utimensat

NOW = (0, UTIME_NOW)
OMIT = (0, UTIME_OMIT)
OLD = 1_000_000_000
OLDER = 900_000_000


def times(area: Area, name: str) -> tuple[int, int]:
    """atime and mtime, in whole seconds, the same on both sides."""
    here, there = os.lstat(area.here / name), os.lstat(area.there / name)
    assert (int(here.st_atime), int(here.st_mtime)) == (int(there.st_atime), int(there.st_mtime))
    return int(here.st_atime), int(here.st_mtime)


def is_now(seconds: int, before: float) -> bool:
    """Whether that is a time since `before`."""
    return int(before) - 1 <= seconds <= time.time() + 1


@pytest.fixture(params=["file", "dir", "link"])
def name(area: Area, request: pytest.FixtureRequest) -> str:
    """Something with times of its own, long ago."""
    (area.here / "file").write_text("text")
    (area.here / "dir").mkdir()
    (area.here / "link").symlink_to("file")
    chosen: str = request.param
    os.utime(area.here / chosen, (OLDER, OLDER), follow_symlinks=False)
    assert times(area, chosen) == (OLDER, OLDER)
    return chosen


def test_both_times(area: Area, name: str) -> None:
    utimensat(area.here / name, (OLDER + 5, 0), (OLD, 0), follow=False)
    assert times(area, name) == (OLDER + 5, OLD)


def test_only_the_time_of_access(area: Area, name: str) -> None:
    utimensat(area.here / name, (OLD, 0), OMIT, follow=False)
    assert times(area, name) == (OLD, OLDER)


def test_only_the_time_of_change(area: Area, name: str) -> None:
    utimensat(area.here / name, OMIT, (OLD, 0), follow=False)
    assert times(area, name) == (OLDER, OLD)


def test_neither_time(area: Area, name: str) -> None:
    utimensat(area.here / name, OMIT, OMIT, follow=False)
    assert times(area, name) == (OLDER, OLDER)


def test_access_now_and_change_kept(area: Area, name: str) -> None:
    before = time.time()
    utimensat(area.here / name, NOW, OMIT, follow=False)
    accessed, changed = times(area, name)
    assert is_now(accessed, before) and changed == OLDER


def test_change_now_and_access_kept(area: Area, name: str) -> None:
    before = time.time()
    utimensat(area.here / name, OMIT, NOW, follow=False)
    accessed, changed = times(area, name)
    assert accessed == OLDER and is_now(changed, before)


def test_both_now(area: Area, name: str) -> None:
    before = time.time()
    utimensat(area.here / name, NOW, NOW, follow=False)
    assert all(is_now(seconds, before) for seconds in times(area, name))


def test_one_now_and_one_set(area: Area, name: str) -> None:
    before = time.time()
    utimensat(area.here / name, NOW, (OLD, 0), follow=False)
    accessed, changed = times(area, name)
    assert is_now(accessed, before) and changed == OLD
    utimensat(area.here / name, (OLD, 0), NOW, follow=False)
    accessed, changed = times(area, name)
    assert accessed == OLD and is_now(changed, before)


@pytest.mark.parametrize("seconds", [0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_times_at_the_edges(area: Area, name: str, seconds: int) -> None:
    utimensat(area.here / name, (seconds, 0), (seconds, 0), follow=False)
    assert times(area, name) == (seconds, seconds)


@pytest.mark.parametrize("seconds", [-1, -1_000_000_000, 1 << 32, (1 << 32) + 1_000_000_000])
def test_times_that_cannot_be_carried(area: Area, seconds: int) -> None:
    """They fail; a time that is silently another one would be worse."""
    (area.here / "file").write_text("text")
    os.utime(area.here / "file", (OLD, OLD))
    refused = area.differs(Difference.TIMES_OF_1970_TO_2106)
    for accessed, changed in ((seconds, OLD + 1), (OLD + 1, seconds), (seconds, seconds)):
        found = errno_of(os.utime, area.here / "file", (accessed, changed))
        assert found == ("EINVAL" if refused else "success")
    if refused:
        assert times(area, "file") == (OLD, OLD)


def test_parts_of_seconds(area: Area) -> None:
    (area.here / "file").write_text("text")
    os.utime(area.here / "file", ns=(OLD * 10**9 + 123_456_789, OLD * 10**9 + 987_654_321))
    found = os.stat(area.here / "file")
    assert times(area, "file") == (OLD, OLD)
    if not area.differs(Difference.WHOLE_SECONDS):
        assert (found.st_atime_ns % 10**9, found.st_mtime_ns % 10**9) == (123_456_789, 987_654_321)


def test_times_of_an_open_file_stay_when_it_is_closed(area: Area) -> None:
    """What tar and rsync do: write, set the times, close. Writes that were accepted earlier do not move them."""
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
        for _ in range(10):
            os.write(descriptor, b"x" * 40_000)
        os.utime(descriptor, (OLDER, OLD))
    assert times(area, "file") == (OLDER, OLD)


def test_times_set_by_name_while_writing(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
        os.write(descriptor, b"x" * 400_000)
        os.utime(area.here / "file", (OLDER, OLD))
        assert times(area, "file") == (OLDER, OLD)
    assert times(area, "file") == (OLDER, OLD)


def test_writing_moves_the_time_of_change(area: Area) -> None:
    (area.here / "file").write_text("text")
    os.utime(area.here / "file", (OLD, OLD))
    before = time.time()
    with opened(area.here / "file", os.O_WRONLY) as descriptor:
        os.write(descriptor, b"more")
    assert is_now(times(area, "file")[1], before)


def test_changes_in_a_directory_move_its_time(area: Area) -> None:
    steps: dict[str, Callable[[], object]] = {
        "create": lambda: (area.here / "dir" / "a").write_text("text"),
        "rename": lambda: os.rename(area.here / "dir" / "a", area.here / "dir" / "b"),
        "link": lambda: os.link(area.here / "dir" / "b", area.here / "dir" / "c"),
        "unlink": lambda: os.unlink(area.here / "dir" / "b"),
        "mkdir": lambda: os.mkdir(area.here / "dir" / "sub"),
        "rmdir": lambda: os.rmdir(area.here / "dir" / "sub"),
        "symlink": lambda: os.symlink("target", area.here / "dir" / "link"),
    }
    (area.here / "dir").mkdir()
    for step, action in steps.items():
        os.utime(area.here / "dir", (OLD, OLD))
        before = time.time()
        action()
        assert is_now(int(os.stat(area.here / "dir").st_mtime), before), step


def test_times_of_a_link_leave_its_target_alone(area: Area) -> None:
    (area.here / "file").write_text("text")
    os.utime(area.here / "file", (OLDER, OLDER))
    for target in ("file", "missing"):
        (area.here / f"to-{target}").symlink_to(target)
        os.utime(area.here / f"to-{target}", (OLD, OLD), follow_symlinks=False)
        assert times(area, f"to-{target}") == (OLD, OLD)
    assert times(area, "file") == (OLDER, OLDER)
    os.utime(area.here / "to-file", (OLD + 1, OLD + 1))
    assert times(area, "file") == (OLD + 1, OLD + 1)
    assert errno_of(lambda: os.utime(area.here / "to-missing", (OLD, OLD))) == "ENOENT"


def test_owner_of_a_link_leaves_its_target_alone(area: Area) -> None:
    (area.here / "file").write_text("text")
    (area.here / "link").symlink_to("file")
    (area.here / "dangling").symlink_to("missing")
    uid, gid = (1234, 4321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    for name in ("link", "dangling"):
        os.lchown(area.here / name, uid, gid)
        for side in (area.here, area.there):
            found = os.lstat(side / name)
            assert (found.st_uid, found.st_gid) == (uid, gid)
    assert os.stat(area.here / "file").st_uid == os.getuid()
    assert os.readlink(area.here / "link") == "file"


@pytest.mark.parametrize("mask", [0, 0o022, 0o027, 0o077])
@pytest.mark.parametrize("mode", [0o666, 0o642, 0o777, 0o600, 0o400, 0o000])
def test_mode_of_new_things(area: Area, mask: int, mode: int) -> None:
    previous = os.umask(mask)
    try:
        with opened(area.here / "file", os.O_CREAT | os.O_WRONLY, mode) as descriptor:
            assert stat.S_IMODE(os.fstat(descriptor).st_mode) == mode & ~mask
        os.mkdir(area.here / "dir", mode)
        os.mknod(area.here / "node", mode)
    finally:
        os.umask(previous)
    for side in (area.here, area.there):
        for name in ("file", "dir", "node"):
            assert stat.S_IMODE(os.stat(side / name).st_mode) == mode & ~mask, name


def test_opening_what_exists_does_not_change_its_mode(area: Area) -> None:
    (area.there / "file").write_text("text")
    (area.there / "file").chmod(0o640)
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o777):
        pass
    assert stat.S_IMODE(os.stat(area.here / "file").st_mode) == 0o640


@pytest.mark.parametrize("bits", [stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX, 0o7000])
def test_special_bits_are_kept(area: Area, bits: int) -> None:
    (area.here / "file").write_text("text")
    (area.here / "dir").mkdir()
    for name in ("file", "dir"):
        os.chmod(area.here / name, 0o755 | bits)
        for side in (area.here, area.there):
            assert stat.S_IMODE(os.stat(side / name).st_mode) == 0o755 | bits
    os.rename(area.here / "file", area.here / "renamed")
    assert stat.S_IMODE(os.stat(area.here / "renamed").st_mode) == 0o755 | bits


def test_a_new_directory_with_the_sticky_bit(area: Area) -> None:
    previous = os.umask(0)
    try:
        os.mkdir(area.here / "dir", 0o1777)
    finally:
        os.umask(previous)
    for side in (area.here, area.there):
        assert stat.S_IMODE(os.stat(side / "dir").st_mode) == 0o1777


def test_mode_of_an_open_file(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
        os.fchmod(descriptor, 0o604)
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o604
        if os.geteuid() == 0:
            os.fchown(descriptor, 12, 34)
            assert (os.fstat(descriptor).st_uid, os.fstat(descriptor).st_gid) == (12, 34)
        os.write(descriptor, b"text")
    assert stat.S_IMODE(os.stat(area.there / "file").st_mode) == 0o604


def test_the_time_of_attributes(area: Area) -> None:
    """It never goes back; where it cannot be carried, it is a time that the server told."""
    (area.here / "file").write_text("text")
    os.utime(area.here / "file", (OLD, OLD))
    before = os.stat(area.here / "file")
    os.chmod(area.here / "file", 0o600)
    after = os.stat(area.here / "file")
    if area.differs(Difference.NO_CHANGE_TIME):
        assert after.st_ctime >= before.st_ctime >= before.st_mtime
    else:
        assert after.st_ctime_ns > before.st_ctime_ns > before.st_mtime_ns
