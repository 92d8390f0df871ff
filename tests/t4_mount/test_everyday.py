"""The everyday operations, one by one: what sshfs promises in its own tests, in every mode of caching."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tests.t4_mount.descriptors import opened
from tests.t4_mount.differences import Difference
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup

pytestmark = [
    pytest.mark.over_putty,
    pytest.mark.variants(
        PLAIN,
        MOUNT,
        Setup("mount", ("direct_io",)),
        Setup("mount", ("dir_cache=no", "attr_timeout=0", "entry_timeout=0")),
        Setup("mount", ("sshfs_sync", "no_readahead")),
    ),
]

TEXT = os.urandom(100_003)


def same_attributes(one: os.stat_result, other: os.stat_result) -> None:
    """Everything SFTP carries is equal; times to the second."""
    for field in ("st_size", "st_uid", "st_gid", "st_mode"):
        assert getattr(one, field) == getattr(other, field), field
    assert int(one.st_mtime) == int(other.st_mtime)
    assert int(one.st_atime) == int(other.st_atime)


def test_file_system_figures_are_those_of_the_server(area: Area) -> None:
    here, there = os.statvfs(area.here), os.statvfs(area.there)
    for field in ("f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(here, field) == getattr(there, field), field
    # Others write to the same disk meanwhile.
    close_bytes = 64 << 20
    assert abs(here.f_bavail - there.f_bavail) * here.f_frsize < close_bytes
    assert abs(here.f_bfree - there.f_bfree) * here.f_frsize < close_bytes


def test_listing_of_what_the_server_has(area: Area) -> None:
    (area.there / "sub").mkdir()
    for name in ("one", "two", "three"):
        (area.there / "sub" / name).write_bytes(b"")
    assert sorted(os.listdir(area.here / "sub")) == ["one", "three", "two"]
    assert os.listdir(area.here) == ["sub"]


def test_listing_again_and_again(area: Area) -> None:
    for name in ("one", "two"):
        (area.there / name).write_bytes(b"")
    for _ in range(10):
        assert sorted(os.listdir(area.here)) == ["one", "two"]


def test_reading(area: Area) -> None:
    (area.there / "file").write_bytes(TEXT)
    assert (area.here / "file").read_bytes() == TEXT


def test_writing(area: Area) -> None:
    (area.here / "file").write_bytes(TEXT)
    assert (area.there / "file").read_bytes() == TEXT


def test_appending(area: Area) -> None:
    for part in (b"one", b"two", TEXT):
        with open(area.here / "file", "ab") as file:
            file.write(part)
    assert (area.there / "file").read_bytes() == b"onetwo" + TEXT


def test_holes_and_overwriting(area: Area) -> None:
    with open(area.here / "file", "wb", buffering=0) as file:
        file.seek(10_000)
        file.write(b"end")
        file.seek(5)
        file.write(b"middle")
        file.seek(7)
        file.write(b"DD")
    expected = bytes(5) + b"miDDle" + bytes(10_000 - 11) + b"end"
    assert (area.here / "file").read_bytes() == expected
    assert (area.there / "file").read_bytes() == expected


def test_creating(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_RDWR, 0o644) as descriptor:
        found = os.fstat(descriptor)
    assert stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size == 0
    assert os.listdir(area.here) == ["file"]
    same_attributes(found, os.stat(area.there / "file"))


def test_each_side_sees_the_files_of_the_other(area: Area) -> None:
    (area.here / "from-here").write_bytes(TEXT)
    (area.there / "from-there").write_bytes(TEXT)
    for name in ("from-here", "from-there"):
        same_attributes(os.stat(area.here / name), os.stat(area.there / name))
        assert (area.here / name).read_bytes() == (area.there / name).read_bytes() == TEXT
    assert sorted(os.listdir(area.there)) == ["from-here", "from-there"]


def test_making_a_directory(area: Area) -> None:
    os.mkdir(area.here / "dir")
    found = os.stat(area.here / "dir")
    assert stat.S_ISDIR(found.st_mode)
    assert os.listdir(area.here / "dir") == []
    assert os.listdir(area.here) == os.listdir(area.there) == ["dir"]


def test_making_a_directory_that_exists(area: Area) -> None:
    os.mkdir(area.here / "dir")
    assert errno_of(lambda: os.mkdir(area.here / "dir")) == "EEXIST"


def test_removing_a_directory(area: Area) -> None:
    os.mkdir(area.here / "dir")
    os.rmdir(area.here / "dir")
    assert errno_of(lambda: os.stat(area.here / "dir")) == "ENOENT"
    assert os.listdir(area.here) == os.listdir(area.there) == []


def test_renaming(area: Area) -> None:
    (area.here / "old").write_bytes(TEXT)
    os.rename(area.here / "old", area.here / "new")
    assert errno_of(lambda: os.stat(area.here / "old")) == "ENOENT"
    assert (area.here / "new").read_bytes() == TEXT
    assert os.listdir(area.here) == os.listdir(area.there) == ["new"]


def test_renaming_over_a_file(area: Area) -> None:
    (area.here / "old").write_bytes(b"old")
    (area.here / "new").write_bytes(b"to be replaced")
    os.rename(area.here / "old", area.here / "new")
    assert (area.here / "new").read_bytes() == b"old"
    assert os.stat(area.here / "new").st_size == 3
    assert os.listdir(area.here) == ["new"]


def test_renaming_one_of_two_with_a_common_beginning(area: Area) -> None:
    (area.here / "name").mkdir()
    (area.here / "name" / "in").write_bytes(b"first")
    (area.here / "name-longer").mkdir()
    (area.here / "name-longer" / "in").write_bytes(b"second")
    os.rename(area.here / "name", area.here / "moved")
    assert (area.here / "name-longer" / "in").read_bytes() == b"second"
    assert (area.here / "moved" / "in").read_bytes() == b"first"
    assert sorted(os.listdir(area.here)) == ["moved", "name-longer"]


def test_renaming_an_open_file_then_closing_it(area: Area) -> None:
    with opened(area.here / "old", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, b"first")
        os.rename(area.here / "old", area.here / "new")
        os.write(descriptor, b"second")
    assert (area.here / "new").read_bytes() == (area.there / "new").read_bytes() == b"firstsecond"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o755, 0o000, 0o777])
def test_changing_the_mode(area: Area, mode: int) -> None:
    (area.here / "file").write_bytes(b"")
    os.chmod(area.here / "file", mode)
    for side in (area.here, area.there):
        assert stat.S_IMODE(os.stat(side / "file").st_mode) == mode


def test_fsync_puts_the_data_on_the_server(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
        os.write(descriptor, TEXT)
        os.fsync(descriptor)
        assert (area.there / "file").read_bytes() == TEXT
        os.write(descriptor, TEXT)
        os.fdatasync(descriptor)
        assert (area.there / "file").read_bytes() == TEXT + TEXT


def test_unlinking(area: Area) -> None:
    (area.here / "file").write_bytes(b"")
    os.unlink(area.here / "file")
    assert errno_of(lambda: os.stat(area.here / "file")) == "ENOENT"
    assert os.listdir(area.here) == os.listdir(area.there) == []


def test_symbolic_links(area: Area) -> None:
    (area.here / "dir").mkdir()
    (area.here / "dir" / "file").write_bytes(TEXT)
    os.symlink("dir/file", area.here / "link")
    assert os.readlink(area.here / "link") == os.readlink(area.there / "link") == "dir/file"
    assert stat.S_ISLNK(os.lstat(area.here / "link").st_mode)
    assert os.lstat(area.here / "link").st_size == len("dir/file")
    assert (area.here / "link").read_bytes() == TEXT


def test_changing_the_owner(area: Area) -> None:
    (area.here / "file").write_bytes(b"")
    uid, gid = (1234, 4321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    for new_uid, new_gid in ((uid, -1), (-1, gid), (os.getuid(), os.getgid()), (uid, gid)):
        before = os.stat(area.here / "file")
        os.chown(area.here / "file", new_uid, new_gid)
        for side in (area.here, area.there):
            found = os.stat(side / "file")
            assert found.st_uid == (before.st_uid if new_uid == -1 else new_uid)
            assert found.st_gid == (before.st_gid if new_gid == -1 else new_gid)


def test_setting_times(area: Area) -> None:
    (area.here / "file").write_bytes(b"")
    (area.here / "dir").mkdir()
    for name in ("file", "dir"):
        os.utime(area.here / name, (1_000_000_000, 1_100_000_000))
        for side in (area.here, area.there):
            found = os.stat(side / name)
            assert (found.st_atime, found.st_mtime) == (1_000_000_000, 1_100_000_000)


def test_setting_times_to_now(area: Area) -> None:
    (area.here / "file").write_bytes(b"")
    os.utime(area.here / "file", (0, 0))
    before = int(time.time()) - 1  # the clock that files are stamped by lags behind this one
    os.utime(area.here / "file")
    found = os.stat(area.here / "file")
    assert before <= found.st_atime <= time.time() + 1
    assert before <= found.st_mtime <= time.time() + 1


def test_hard_links(area: Area) -> None:
    (area.here / "one").write_bytes(TEXT)
    os.link(area.here / "one", area.here / "two")
    one, two = os.stat(area.here / "one"), os.stat(area.here / "two")
    same_attributes(one, two)
    assert one.st_ino == two.st_ino and one.st_nlink == two.st_nlink == 2
    assert os.path.samefile(area.there / "one", area.there / "two")
    os.unlink(area.here / "one")
    assert (area.here / "two").read_bytes() == TEXT
    assert os.stat(area.here / "two").st_nlink == 1


@pytest.mark.parametrize("size", [0, 1, 1024, len(TEXT) - 1, len(TEXT), len(TEXT) + 1024])
@pytest.mark.parametrize("by", ["path", "descriptor"])
def test_truncating(area: Area, size: int, by: str) -> None:
    path = area.here / "file"
    path.write_bytes(TEXT)
    if by == "path":
        os.truncate(path, size)
    else:
        with open(path, "r+b") as file:
            os.ftruncate(file.fileno(), size)
            assert os.fstat(file.fileno()).st_size == size
    assert os.stat(path).st_size == size
    expected = TEXT[:size] + bytes(max(0, size - len(TEXT)))
    assert path.read_bytes() == expected
    assert (area.there / "file").read_bytes() == expected


def test_reading_and_writing_after_unlinking(area: Area) -> None:
    with open(area.here / "file", "w+b", buffering=0) as file:
        file.write(b"before")
        os.unlink(area.here / "file")
        assert os.listdir(area.here) == []
        file.write(b"after")
        file.seek(0)
        assert file.read() == b"beforeafter"


def test_reading_what_is_open_for_writing_only(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
        os.write(descriptor, b"text")
        assert errno_of(lambda: os.pread(descriptor, 4, 0)) == "EBADF"
    with opened(area.here / "file") as descriptor:
        assert errno_of(lambda: os.pwrite(descriptor, b"x", 0)) == "EBADF"


def test_access(area: Area) -> None:
    file = area.here / "file"
    file.write_bytes(b"")
    file.chmod(0o600)
    assert os.access(file, os.F_OK) and os.access(file, os.R_OK | os.W_OK)
    assert not os.access(file, os.X_OK)
    file.chmod(0o700)
    assert os.access(file, os.X_OK)
    assert not os.access(area.here / "missing", os.F_OK)
    assert os.access(area.here, os.R_OK | os.W_OK | os.X_OK)


def test_links_out_of_the_tree_are_made_and_not_followed(area: Area) -> None:
    os.symlink(Path("/etc/hostname"), area.here / "link")
    assert os.readlink(area.there / "link") == "/etc/hostname"
    if area.differs(Difference.LINKS_CONTAINED):
        assert errno_of(lambda: os.readlink(area.here / "link")) == "EPERM"
    else:
        assert os.readlink(area.here / "link") == "/etc/hostname"
