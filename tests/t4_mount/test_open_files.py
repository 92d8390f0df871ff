"""Open files live on: without a name, under another one, below another directory, replaced by another file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.t4_mount.descriptors import opened
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup

pytestmark = pytest.mark.variants(PLAIN, MOUNT, Setup("mount", ("direct_io",)))

BLOCK = bytes(range(256)) * 1200


def test_reading_what_was_deleted(area: Area) -> None:
    (area.there / "file").write_bytes(BLOCK)
    with open(area.here / "file", "rb") as file:
        first = file.read(1000)
        os.unlink(area.here / "file")
        assert first + file.read() == BLOCK
        assert os.fstat(file.fileno()).st_size == len(BLOCK)
    assert os.listdir(area.there) == []


def test_working_on_what_was_deleted(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.write(descriptor, BLOCK)
        os.unlink(area.here / "file")
        assert os.fstat(descriptor).st_nlink == 0
        os.pwrite(descriptor, b"changed", 100)
        assert os.pread(descriptor, 7, 100) == b"changed"
        os.ftruncate(descriptor, 50)
        assert os.fstat(descriptor).st_size == 50
        os.ftruncate(descriptor, 5000)
        assert os.pread(descriptor, 10_000, 0) == BLOCK[:50] + bytes(4950)
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o640)
        os.utime(descriptor, (1_000_000_000, 1_000_000_000))
        found = os.fstat(descriptor)
        assert found.st_mode & 0o777 == 0o640 and found.st_mtime == 1_000_000_000
        assert errno_of(lambda: os.stat(area.here / "file")) == "ENOENT"
        assert os.listdir(area.here) == os.listdir(area.there) == []


def test_two_descriptors_of_what_was_deleted(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT) as two:
        with opened(area.here / "file", os.O_RDWR) as one:
            os.unlink(area.here / "file")
            os.write(one, b"text")
            assert os.pread(two, 10, 0) == b"text"
        assert os.pread(two, 10, 0) == b"text"


def test_opening_what_was_deleted_by_its_descriptor(area: Area) -> None:
    """By /proc, which needs no name."""
    (area.here / "file").write_text("text")
    with opened(area.here / "file", os.O_RDWR) as one:
        os.unlink(area.here / "file")
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDONLY):
            with opened(Path(f"/proc/self/fd/{one}"), flags) as two:
                assert os.pread(two, 10, 0) == b"text"


def test_a_new_file_under_the_name_of_what_was_deleted(area: Area) -> None:
    with open(area.here / "file", "w+b", buffering=0) as old:
        old.write(b"old")
        os.unlink(area.here / "file")
        (area.here / "file").write_bytes(b"the new one")
        old.write(b"-and-more")
        assert os.pread(old.fileno(), 100, 0) == b"old-and-more"
        assert os.fstat(old.fileno()).st_size == 12
        assert (area.here / "file").read_bytes() == b"the new one"
        assert (area.here / "file").stat().st_size == 11
    assert (area.there / "file").read_bytes() == b"the new one"


def test_removing_the_directory_of_what_was_deleted(area: Area) -> None:
    (area.here / "dir").mkdir()
    with open(area.here / "dir" / "file", "w+b", buffering=0) as file:
        file.write(b"text")
        os.unlink(area.here / "dir" / "file")
        os.rmdir(area.here / "dir")
        assert os.pread(file.fileno(), 10, 0) == b"text"
        file.write(b"more")
        assert os.pread(file.fileno(), 10, 0) == b"textmore"
    assert os.listdir(area.there) == []


def test_renaming_an_open_file_while_writing(area: Area) -> None:
    (area.here / "dir").mkdir()
    names = ["a", "b", "dir/c", "dir/d", "e"]
    with open(area.here / names[0], "wb", buffering=0) as file:
        for number, name in enumerate(names):
            if number:
                os.rename(area.here / names[number - 1], area.here / name)
            file.write(BLOCK[number * 1000 : (number + 1) * 1000])
            assert (area.here / name).stat().st_size == (number + 1) * 1000
    assert (area.there / "e").read_bytes() == BLOCK[: len(names) * 1000]
    assert sorted(os.listdir(area.there)) == ["dir", "e"]


def test_renaming_an_open_file_while_reading(area: Area) -> None:
    (area.there / "old").write_bytes(BLOCK)
    with open(area.here / "old", "rb") as file:
        first = file.read(10)
        os.rename(area.here / "old", area.here / "new")
        assert first + file.read() == BLOCK


def test_renaming_directories_above_open_files(area: Area) -> None:
    deep = area.here / "a" / "b" / "c"
    deep.mkdir(parents=True)
    with open(deep / "file", "w+b", buffering=0) as file:
        file.write(b"one")
        os.rename(area.here / "a", area.here / "x")
        file.write(b"two")
        os.rename(area.here / "x" / "b", area.here / "y")
        file.write(b"three")
        assert os.fstat(file.fileno()).st_size == 11
        os.ftruncate(file.fileno(), 9)
        new = area.here / "y" / "c" / "file"
        assert new.stat().st_size == 9
        new.chmod(0o600)
        assert new.read_bytes() == b"onetwothr"
    assert errno_of(lambda: os.stat(deep / "file")) == "ENOENT"
    assert (area.there / "y" / "c" / "file").read_bytes() == b"onetwothr"


def test_a_name_made_again_after_its_directory_was_renamed(area: Area) -> None:
    (area.here / "dir").mkdir()
    (area.here / "dir" / "file").write_text("old")
    os.rename(area.here / "dir", area.here / "moved")
    (area.here / "dir").mkdir()
    assert os.listdir(area.here / "dir") == []
    assert errno_of(lambda: os.stat(area.here / "dir" / "file")) == "ENOENT"
    (area.here / "dir" / "file").write_text("new")
    assert (area.here / "moved" / "file").read_text() == "old"
    assert (area.there / "dir" / "file").read_text() == "new"


def test_a_working_directory_that_is_renamed(area: Area) -> None:
    (area.here / "dir").mkdir()
    left = os.open(".", os.O_RDONLY)
    try:
        os.chdir(area.here / "dir")
        os.rename(area.here / "dir", area.here / "moved")
        Path("file").write_text("text")
        assert os.listdir(".") == ["file"]
    finally:
        os.fchdir(left)
        os.close(left)
    assert (area.there / "moved" / "file").read_text() == "text"


def test_replacing_an_open_file(area: Area) -> None:
    (area.here / "file").write_bytes(b"old")
    (area.here / "new").write_bytes(b"new content")
    with open(area.here / "file", "r+b", buffering=0) as old:
        os.rename(area.here / "new", area.here / "file")
        assert os.fstat(old.fileno()).st_nlink == 0
        assert old.read() == b"old"
        old.write(b"-more")
        assert os.pread(old.fileno(), 100, 0) == b"old-more"
        assert (area.here / "file").read_bytes() == b"new content"
    assert (area.there / "file").read_bytes() == b"new content"
    assert (area.here / "file").stat().st_nlink == 1


def test_replacing_a_file_by_one_that_is_being_written(area: Area) -> None:
    (area.here / "file").write_bytes(b"old")
    with open(area.here / "temporary", "wb", buffering=0) as file:
        file.write(BLOCK)
        os.rename(area.here / "temporary", area.here / "file")
        assert (area.here / "file").read_bytes() == BLOCK
        file.write(b"more")
    assert (area.here / "file").read_bytes() == (area.there / "file").read_bytes() == BLOCK + b"more"


def test_opening_again_while_open(area: Area) -> None:
    with open(area.here / "file", "wb", buffering=0) as writer:
        for number in range(20):
            writer.write(b"%04d" % number)
            with open(area.here / "file", "rb") as reader:
                assert reader.read()[-4:] == b"%04d" % number


@pytest.mark.parametrize("count", [200])
def test_many_open_files(area: Area, count: int) -> None:
    with ExitStack() as stack:
        flags = os.O_CREAT | os.O_RDWR
        descriptors = [stack.enter_context(opened(area.here / f"{number}", flags)) for number in range(count)]
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, b"%d" % number)
        for number, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 10, 0) == b"%d" % number
    assert len(os.listdir(area.there)) == count


def test_the_directory_of_an_open_stream_is_removed(area: Area) -> None:
    (area.here / "dir").mkdir()
    with opened(area.here / "dir") as descriptor:
        os.rmdir(area.here / "dir")
        assert errno_of(lambda: os.listdir(descriptor)) in ("success", "ENOENT")
        assert errno_of(lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)) == "ENOENT"
    assert os.listdir(area.here) == []
