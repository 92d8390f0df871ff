"""What is changed here is seen here at once, whatever was looked at and cached before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.t4_mount.descriptors import opened
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup

pytestmark = pytest.mark.variants(PLAIN, MOUNT, Setup("mount", ("direct_io",)), Setup("mount", ("dcache_timeout=600",)))

ROUNDS = 30


def look(area: Area) -> set[str]:
    """Fill every cache there is: the listing, and the attributes of all in it."""
    names = set(os.listdir(area.here))
    for name in names:
        os.lstat(area.here / name)
    return names


def test_size_after_each_write(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY) as descriptor:
        for number in range(1, ROUNDS):
            os.write(descriptor, b"x" * 1000)
            assert os.stat(area.here / "file").st_size == number * 1000
            assert os.fstat(descriptor).st_size == number * 1000


def test_content_after_each_write_through_another_descriptor(area: Area) -> None:
    with opened(area.here / "file", os.O_CREAT | os.O_WRONLY) as writer, opened(area.here / "file") as reader:
        for number in range(ROUNDS):
            os.pwrite(writer, b"%07d" % number, number * 7)
            assert os.pread(reader, 7, number * 7) == b"%07d" % number
            os.pwrite(writer, b"%07d" % (number + 500), 0)
            assert os.pread(reader, 7, 0) == b"%07d" % (number + 500)


def test_overwriting_within_what_was_read(area: Area) -> None:
    (area.there / "file").write_bytes(b"a" * 500_000)
    with opened(area.here / "file", os.O_RDWR) as descriptor:
        assert os.pread(descriptor, 500_000, 0) == b"a" * 500_000
        os.pwrite(descriptor, b"b" * 100_000, 150_001)
        assert os.pread(descriptor, 500_000, 0) == b"a" * 150_001 + b"b" * 100_000 + b"a" * 249_999
        with opened(area.here / "file") as other:
            assert os.pread(other, 10, 249_996) == b"bbbbbaaaaa"


def test_writing_in_the_midst_of_sequential_reading(area: Area) -> None:
    """What was fetched ahead is not what is read after it was overwritten."""
    (area.there / "file").write_bytes(b"a" * 2_000_000)
    with opened(area.here / "file") as reader, opened(area.here / "file", os.O_WRONLY) as writer:
        for offset in range(0, 2_000_000, 50_000):
            assert os.pread(reader, 50_000, offset) == (b"b" if offset else b"a") + b"a" * 49_999
            os.pwrite(writer, b"b", offset + 50_000)
    assert (area.there / "file").read_bytes().count(b"b") == 40


def test_truncating_what_is_being_read(area: Area) -> None:
    (area.there / "file").write_bytes(b"a" * 1_000_000)
    with opened(area.here / "file") as reader:
        assert os.pread(reader, 100_000, 0) == b"a" * 100_000
        os.truncate(area.here / "file", 150_000)
        assert os.pread(reader, 100_000, 100_000) == b"a" * 50_000
        os.truncate(area.here / "file", 200_000)
        assert os.pread(reader, 100_000, 100_000) == b"a" * 50_000 + bytes(50_000)


def test_names_after_each_change(area: Area) -> None:
    expected: set[str] = set()
    assert look(area) == expected
    for number in range(ROUNDS):
        name = f"name-{number}"
        assert errno_of(os.lstat, area.here / name) == "ENOENT"
        match number % 4:
            case 0:
                (area.here / name).write_text("text")
            case 1:
                (area.here / name).mkdir()
            case 2:
                (area.here / name).symlink_to("target")
            case _:
                os.link(area.here / f"name-{number - 3}", area.here / name)
        os.lstat(area.here / name)
        expected.add(name)
        assert look(area) == expected
    for name in sorted(expected):
        path = area.here / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        expected.remove(name)
        assert errno_of(os.lstat, path) == "ENOENT"
        assert look(area) == expected


def test_both_names_after_renaming(area: Area) -> None:
    (area.here / "other").mkdir()
    (area.here / "0").write_text("text")
    for number in range(ROUNDS):
        look(area)
        old, new = area.here / f"{number}", area.here / f"{number + 1}"
        assert errno_of(os.lstat, new) == "ENOENT"
        os.rename(old, new)
        assert errno_of(os.lstat, old) == "ENOENT"
        assert new.read_text() == "text"
        assert look(area) == {"other", f"{number + 1}"}
    os.rename(area.here / f"{ROUNDS}", area.here / "other" / "moved")
    assert look(area) == {"other"} and os.listdir(area.here / "other") == ["moved"]


def test_a_directory_made_again(area: Area) -> None:
    for number in range(ROUNDS):
        (area.here / "dir").mkdir()
        assert os.listdir(area.here / "dir") == []
        (area.here / "dir" / f"{number}").write_text("text")
        assert os.listdir(area.here / "dir") == [f"{number}"]
        shutil.rmtree(area.here / "dir")
        assert errno_of(lambda: os.listdir(area.here / "dir")) == "ENOENT"


def test_a_name_that_changes_its_kind(area: Area) -> None:
    path = area.here / "name"
    for _ in range(5):
        path.write_text("text")
        assert path.is_file()
        path.unlink()
        path.mkdir()
        assert path.is_dir() and os.listdir(path) == []
        path.rmdir()
        path.symlink_to("elsewhere")
        assert path.is_symlink() and os.readlink(path) == "elsewhere"
        path.unlink()


def test_a_file_replaced_again_and_again(area: Area) -> None:
    """Rename over a name that was just read: the new content, the new size."""
    for number in range(ROUNDS):
        text = b"%d" % number * (number + 1)
        (area.here / "new").write_bytes(text)
        os.rename(area.here / "new", area.here / "file")
        assert (area.here / "file").read_bytes() == text
        assert os.stat(area.here / "file").st_size == len(text)


def test_attributes_after_each_change(area: Area) -> None:
    (area.here / "file").write_text("text")
    with opened(area.here / "file") as descriptor:
        for number in range(ROUNDS):
            mode = 0o600 + number % 64
            os.chmod(area.here / "file", mode)
            assert os.stat(area.here / "file").st_mode & 0o777 == os.fstat(descriptor).st_mode & 0o777 == mode
            os.utime(area.here / "file", (number, number * 2))
            assert os.stat(area.here / "file").st_mtime == os.fstat(descriptor).st_mtime == number * 2
            os.truncate(area.here / "file", number)
            assert os.stat(area.here / "file").st_size == os.fstat(descriptor).st_size == number


def test_attributes_of_the_other_name_of_a_link(area: Area) -> None:
    (area.here / "one").write_text("text")
    os.link(area.here / "one", area.here / "two")
    for number in range(1, ROUNDS):
        look(area)
        os.chmod(area.here / "one", 0o600 + number % 64)
        with open(area.here / "two", "ab") as file:
            file.write(b"x")
        one, two = os.stat(area.here / "one"), os.stat(area.here / "two")
        assert (one.st_mode, one.st_size, one.st_mtime) == (two.st_mode, two.st_size, two.st_mtime)
        assert one.st_size == 4 + number


def descriptors(area: Area) -> Iterator[int]:
    """Ten names of new files, open."""
    with ExitStack() as stack:
        for number in range(10):
            yield stack.enter_context(opened(area.here / f"{number}", os.O_CREAT | os.O_WRONLY))


def test_sizes_in_a_listing_while_files_are_written(area: Area) -> None:
    for number, descriptor in enumerate(descriptors(area)):
        os.write(descriptor, b"x" * (number * 1000 + 1))
        with os.scandir(area.here) as entries:
            for entry in entries:
                assert entry.stat().st_size == int(entry.name) * 1000 + 1
