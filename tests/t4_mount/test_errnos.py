"""Each operation in each situation fails with the errno of a local file system, and changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import bounded
from tests.t4_mount import errno_table
from tests.t4_mount.differences import Difference
from tests.t4_mount.errno_table import OPERATIONS, SITUATIONS
from tests.t4_mount.errnos import errno_of, name_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.t4_mount.trees import Tree


@pytest.fixture(scope="module")
def layout(tree: Tree) -> Path:
    """The table's files, made once for a tree."""
    directory = tree.path / "layout"
    directory.mkdir()
    errno_table.make_layout(directory)
    return directory


@pytest.fixture
def in_layout(layout: Path, guarded: None) -> Iterator[Path]:
    """The layout is the current directory, and afterwards as it was."""
    before = errno_table.snapshot(layout)
    left = os.open(".", os.O_RDONLY)
    os.chdir(layout)
    yield layout
    os.fchdir(left)
    os.close(left)
    assert errno_table.snapshot(layout) == before


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_operation_in_situation(in_layout: Path, name: str) -> None:
    situation = SITUATIONS[name]
    wrong = []
    for operation, number in situation.failing().items():
        found = errno_of(OPERATIONS[operation], situation.path)
        if found != name_of(number):
            wrong.append(f"{operation}: {found} instead of {name_of(number)}")
    assert not wrong


def test_the_table_is_large() -> None:
    assert sum(len(situation.failing()) for situation in SITUATIONS.values()) > 400


def test_renaming_a_directory_into_itself(area: Area) -> None:
    (area.here / "dir" / "sub").mkdir(parents=True)
    for target in ("dir/new", "dir/sub/new", "dir/sub"):
        assert errno_of(os.rename, area.here / "dir", area.here / target) in ("EINVAL", "ENOTEMPTY")
    assert errno_of(lambda: os.rename(area.here / "dir/sub", area.here / "dir")) == "ENOTEMPTY"


def test_rename_that_must_not_replace(area: Area) -> None:
    (area.here / "one").write_text("one")
    (area.here / "two").write_text("two")
    (area.here / "dir").mkdir()
    for target in ("two", "dir"):
        assert errno_of(renameat2, area.here / "one", area.here / target, RENAME_NOREPLACE) == "EEXIST"
    renameat2(area.here / "one", area.here / "new", RENAME_NOREPLACE)
    assert (area.here / "new").read_text() == "one" and (area.here / "two").read_text() == "two"
    renameat2(area.here / "dir", area.here / "newdir", RENAME_NOREPLACE)
    assert sorted(os.listdir(area.here)) == ["new", "newdir", "two"]


def test_rename_that_must_not_replace_what_the_server_made_meanwhile(area: Area) -> None:
    (area.here / "one").write_text("one")
    assert sorted(os.listdir(area.here)) == ["one"]
    (area.there / "two").write_text("two")
    assert errno_of(lambda: renameat2(area.here / "one", area.here / "two", RENAME_NOREPLACE)) == "EEXIST"
    assert (area.there / "two").read_text() == "two" and (area.there / "one").read_text() == "one"


def test_exchanging_rename(area: Area) -> None:
    (area.here / "one").write_text("one")
    (area.here / "two").write_text("two")
    expected = "EINVAL" if area.differs(Difference.NO_RENAME_EXCHANGE) else "success"
    assert errno_of(lambda: renameat2(area.here / "one", area.here / "two", RENAME_EXCHANGE)) == expected
    both = RENAME_EXCHANGE | RENAME_NOREPLACE
    assert errno_of(lambda: renameat2(area.here / "one", area.here / "two", both)) == "EINVAL"
    assert {(area.here / name).read_text() for name in ("one", "two")} == {"one", "two"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("fifo", stat.S_IFIFO), ("socket", stat.S_IFSOCK), ("character", stat.S_IFCHR), ("block", stat.S_IFBLK)],
)
def test_special_files(area: Area, name: str, kind: int) -> None:
    may_be_made = kind in (stat.S_IFIFO, stat.S_IFSOCK) or os.geteuid() == 0
    expected = "EPERM" if area.differs(Difference.NO_SPECIAL_FILES) or not may_be_made else "success"
    assert errno_of(lambda: os.mknod(area.here / name, kind | 0o600, os.makedev(1, 3))) == expected
    assert os.path.lexists(area.here / name) == (expected == "success")


def test_binding_a_socket(area: Area) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(area.here)
        found = errno_of(lambda: listener.bind("socket"))
        os.chdir("/")
    assert found == ("EPERM" if area.differs(Difference.NO_SPECIAL_FILES) else "success")


def test_special_files_of_the_server_are_seen(area: Area) -> None:
    os.mkfifo(area.there / "fifo")
    found = os.lstat(area.here / "fifo")
    assert stat.S_ISFIFO(found.st_mode)
    os.unlink(area.here / "fifo")
    assert os.listdir(area.there) == []


def test_link_targets(area: Area) -> None:
    assert errno_of(lambda: os.symlink("", area.here / "empty")) == "ENOENT"
    assert errno_of(lambda: os.symlink("t" * errno_table.PATH_MAX, area.here / "long")) == "ENAMETOOLONG"
    long_target = "/".join(["t" * 200] * 15)
    os.symlink(long_target, area.here / "longest")
    assert os.readlink(area.there / "longest") == long_target
    assert os.readlink(area.here / "longest") == long_target
    assert os.listdir(area.here) == ["longest"]


def test_names_up_to_255_bytes(area: Area) -> None:
    name = "n" * 255
    (area.here / name).write_text("text")
    os.rename(area.here / name, area.here / ("m" * 255))
    os.mkdir(area.here / name)
    assert sorted(os.listdir(area.there)) == ["m" * 255, name]


def test_a_path_beyond_what_the_server_can_name(area: Area) -> None:
    """Directory below directory, each by a short relative path, until the whole is longer than PATH_MAX."""

    def descend() -> str:
        os.chdir(area.here)
        for _ in range(errno_table.PATH_MAX // 200 + 2):
            found = errno_of(lambda: os.mkdir("d" * 200))
            if found != "success":
                return found
            os.chdir("d" * 200)
        return "success"

    expected = "ENAMETOOLONG" if area.differs(Difference.SERVER_PATH_LIMIT) else "success"
    assert bounded.in_subprocess(descend) == expected


def test_descriptors_of_the_wrong_kind(area: Area) -> None:
    (area.here / "file").write_text("text")
    directory = os.open(area.here, os.O_RDONLY)
    reading = os.open(area.here / "file", os.O_RDONLY)
    writing = os.open(area.here / "file", os.O_WRONLY)
    try:
        assert errno_of(lambda: os.read(directory, 10)) == "EISDIR"
        assert errno_of(lambda: os.ftruncate(directory, 0)) in ("EINVAL", "EBADF")
        assert errno_of(lambda: os.ftruncate(reading, 0)) == "EINVAL"
        assert errno_of(lambda: os.write(reading, b"x")) == "EBADF"
        assert errno_of(lambda: os.read(writing, 1)) == "EBADF"
        assert errno_of(lambda: os.pread(reading, 1, -1)) == "EINVAL"
        assert errno_of(lambda: os.lseek(reading, -1, os.SEEK_SET)) == "EINVAL"
        assert errno_of(lambda: os.listdir(reading)) == "ENOTDIR"
        assert errno_of(lambda: os.truncate(area.here / "file", -1)) == "EINVAL"
        os.fsync(directory)
        os.fsync(reading)
    finally:
        for descriptor in (directory, reading, writing):
            os.close(descriptor)
    assert (area.here / "file").read_text() == "text"


def test_a_file_too_large_for_the_server(area: Area) -> None:
    (area.here / "file").write_text("text")
    found = errno_of(lambda: os.truncate(area.here / "file", (1 << 63) - 1))
    if found != "success":
        assert found == "EFBIG"
        assert (area.here / "file").stat().st_size == (area.there / "file").stat().st_size == 4


def test_a_file_without_a_name(area: Area) -> None:
    expected = "ENOTSUP" if area.differs(Difference.NO_UNNAMED_FILES) else "success"
    assert errno_of(lambda: os.close(os.open(area.here, os.O_TMPFILE | os.O_RDWR, 0o600))) == expected


def test_reserving_space(area: Area) -> None:
    with open(area.here / "file", "wb") as file:
        found = errno_of(lambda: os.posix_fallocate(file.fileno(), 0, 8192))
        # The C library falls back to writing zeros when the file system says that it cannot.
        assert found in ("success", "ENOTSUP" if area.differs(Difference.NO_ALLOCATE) else "success")
        assert os.fstat(file.fileno()).st_size == (8192 if found == "success" else 0)


def test_extended_attributes(area: Area) -> None:
    (area.here / "file").write_text("text")
    unsupported = area.differs(Difference.NO_XATTRS)
    for _ in range(3):
        for name in ("user.test", "security.capability", "system.posix_acl_access", "trusted.test"):
            assert errno_of(os.getxattr, area.here / "file", name) in ("ENODATA", "ENOTSUP")
    assert errno_of(lambda: os.setxattr(area.here / "file", "user.test", b"v" * 65536)) != "success"
    assert errno_of(lambda: os.setxattr(area.here / "file", "user.test", b"v")) in (
        ("ENOTSUP",) if unsupported else ("success", "ENOTSUP")
    )
    assert errno_of(lambda: os.removexattr(area.here / "file", "user.other")) in ("ENODATA", "ENOTSUP")
    assert errno_of(lambda: os.listxattr(area.here / "file")) in ("success", "ENOTSUP")
    if unsupported:
        assert errno_of(lambda: os.listxattr(area.here / "file")) == "ENOTSUP" or os.listxattr(area.here / "file") == []


def test_a_program_that_runs_on_the_server(area: Area) -> None:
    """It can be read and replaced. Writing to it is ETXTBSY wherever the server's kernel says so (6.11 did not)."""
    program = area.there / "program"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as running:
        try:
            assert (area.here / "program").read_bytes() == Path("/bin/sleep").read_bytes()
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_TRUNC):
                here, there = (
                    errno_of(lambda: os.close(os.open(side / "program", flags)))  # noqa: B023
                    for side in (area.here, area.there)
                )
                assert here == there
            assert errno_of(os.truncate, area.here / "program", 0) == errno_of(os.truncate, program, 0)
            (area.here / "new").write_text("text")
            os.rename(area.here / "new", area.here / "program")
        finally:
            running.kill()
    (area.here / "program").write_text("another")
