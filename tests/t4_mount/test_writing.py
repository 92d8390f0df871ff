"""Flags of open, appending, truncating while writes are on their way, and large sparse files."""

from __future__ import annotations

import mmap
import os
import random
import shutil
from contextlib import ExitStack

import pytest

from tests.t4_mount.descriptors import opened
from tests.t4_mount.differences import Difference
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup

pytestmark = pytest.mark.variants(PLAIN, MOUNT, Setup("mount", ("direct_io",)))

NEW = os.O_CREAT | os.O_RDWR
LETTERS = b"abcdefghijklmnopqrstuvwxyz" * 20_000
GIB = 1 << 30


def test_exclusive_creation(area: Area) -> None:
    with opened(area.here / "file", NEW | os.O_EXCL) as descriptor:
        os.write(descriptor, b"text")
    assert errno_of(lambda: os.open(area.here / "file", NEW | os.O_EXCL)) == "EEXIST"
    (area.there / "other").write_text("text")
    assert errno_of(lambda: os.open(area.here / "other", NEW | os.O_EXCL)) == "EEXIST"
    os.unlink(area.here / "file")
    with opened(area.here / "file", NEW | os.O_EXCL):
        pass


def test_exclusive_creation_of_what_the_server_made_after_we_looked(area: Area) -> None:
    assert errno_of(lambda: os.stat(area.here / "file")) == "ENOENT"
    assert os.listdir(area.here) == []
    (area.there / "file").write_text("text")
    assert errno_of(lambda: os.open(area.here / "file", NEW | os.O_EXCL)) == "EEXIST"
    assert (area.there / "file").read_text() == "text"


def test_creating_what_the_server_made_after_we_looked(area: Area) -> None:
    assert errno_of(lambda: os.stat(area.here / "file")) == "ENOENT"
    (area.there / "file").write_text("text")
    with opened(area.here / "file", NEW) as descriptor:
        assert os.fstat(descriptor).st_size == 4
        assert os.read(descriptor, 10) == b"text"


def test_creating_what_the_server_removed_after_we_looked(area: Area) -> None:
    (area.here / "file").write_text("text")
    os.unlink(area.there / "file")
    with opened(area.here / "file", NEW) as descriptor:
        os.write(descriptor, b"new")
    assert (area.there / "file").read_text() == "new"


def test_truncating_when_opened(area: Area) -> None:
    (area.here / "file").write_bytes(LETTERS)
    with opened(area.here / "file", os.O_RDWR) as held:
        assert os.pread(held, 3, 0) == b"abc"
        with opened(area.here / "file", os.O_WRONLY | os.O_TRUNC) as descriptor:
            assert os.fstat(descriptor).st_size == os.fstat(held).st_size == 0
            assert os.pread(held, 3, 0) == b""
            os.write(descriptor, b"new")
        assert os.pread(held, 10, 0) == b"new"
    assert (area.there / "file").read_bytes() == b"new"


def test_two_appending_descriptors(area: Area) -> None:
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
    expected = b""
    with opened(area.here / "file", flags) as one, opened(area.here / "file", flags) as two:
        for number in range(100):
            part = LETTERS[: number * 7 + 1]
            os.write((one, two)[number % 2], part)
            expected += part
            assert os.fstat(one).st_size == len(expected)
    assert (area.here / "file").read_bytes() == (area.there / "file").read_bytes() == expected


def test_appending_from_each_side(area: Area) -> None:
    expected = b""
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
    with opened(area.here / "file", flags) as here, opened(area.there / "file", flags) as there:
        for number in range(20):
            os.write(here, b"here-%d " % number)
            os.fsync(here)
            os.write(there, b"there-%d " % number)
            expected += b"here-%d there-%d " % (number, number)
    assert (area.there / "file").read_bytes() == expected
    assert (area.here / "file").read_bytes() == expected


def test_appending_ignores_offsets(area: Area) -> None:
    (area.here / "file").write_bytes(b"0123456789")
    with opened(area.here / "file", os.O_RDWR | os.O_APPEND) as descriptor:
        os.lseek(descriptor, 2, os.SEEK_SET)
        os.write(descriptor, b"end")
        assert os.pread(descriptor, 100, 0) == b"0123456789end"
        os.ftruncate(descriptor, 5)
        os.write(descriptor, b"END")
        assert os.pread(descriptor, 100, 0) == b"01234END"
    assert (area.there / "file").read_bytes() == b"01234END"


def test_an_appending_and_a_writing_descriptor(area: Area) -> None:
    with opened(area.here / "file", NEW) as writer, opened(area.here / "file", os.O_RDWR | os.O_APPEND) as appender:
        os.pwrite(writer, b"a" * 1000, 0)
        os.write(appender, b"b" * 1000)
        os.pwrite(writer, b"c" * 10, 995)
        os.write(appender, b"d")
        expected = b"a" * 995 + b"c" * 10 + b"b" * 995 + b"d"
        assert os.pread(appender, 5000, 0) == os.pread(writer, 5000, 0) == expected
    assert (area.there / "file").read_bytes() == expected


def test_descriptors_that_overwrite_each_other(area: Area) -> None:
    """The last write counts, whichever descriptor made it, also when the one before is still on its way."""
    chance = random.Random(5)
    with ExitStack() as stack:
        descriptors = [stack.enter_context(opened(area.here / "file", NEW)) for _ in range(4)]
        expected = bytearray(20_000)
        os.ftruncate(descriptors[0], len(expected))
        for number in range(1500):
            # Each writes twice, so that its second write may be waiting for the first when the next one overwrites it.
            offset = chance.randrange(18_000)
            for place in (chance.randrange(18_000), offset):
                text = b"%08d" % number * 125
                os.pwrite(descriptors[number % 4], text, place)
                expected[place : place + 1000] = text
            text = b"%08x" % number * 125
            os.pwrite(descriptors[(number + 1) % 4], text, offset + 500)
            expected[offset + 500 : offset + 1500] = text
        assert os.pread(descriptors[0], len(expected), 0) == expected
        for descriptor in descriptors:
            os.fsync(descriptor)
        assert (area.there / "file").read_bytes() == expected


@pytest.mark.parametrize("by", ["path", "descriptor", "other descriptor"])
def test_truncating_while_writes_are_on_their_way(area: Area, by: str) -> None:
    path = area.here / "file"
    chance = random.Random(1)
    with opened(path, NEW) as descriptor, opened(path, os.O_RDWR) as other:
        expected = bytearray()
        for _ in range(40):
            offset, size = chance.randrange(400_000), chance.randrange(1, 60_000)
            os.pwrite(descriptor, LETTERS[:size], offset)
            expected.extend(bytes(max(0, offset + size - len(expected))))
            expected[offset : offset + size] = LETTERS[:size]
            new_size = chance.randrange(450_000)
            if by == "path":
                os.truncate(path, new_size)
            else:
                os.ftruncate(descriptor if by == "descriptor" else other, new_size)
            expected = expected[:new_size] + bytes(max(0, new_size - len(expected)))
            assert os.fstat(descriptor).st_size == os.stat(path).st_size == new_size
            assert os.pread(other, 500_000, 0) == expected
    assert path.read_bytes() == (area.there / "file").read_bytes() == expected


def test_small_writes(area: Area) -> None:
    """One byte at a time, forward, then backward."""
    with opened(area.here / "file", NEW) as descriptor:
        for offset in range(3000):
            os.pwrite(descriptor, LETTERS[offset : offset + 1], offset)
        assert os.fstat(descriptor).st_size == 3000
        for offset in reversed(range(3000, 5000)):
            os.pwrite(descriptor, LETTERS[offset : offset + 1], offset)
        assert os.pread(descriptor, 10_000, 0) == LETTERS[:5000]
    assert (area.there / "file").read_bytes() == LETTERS[:5000]


@pytest.mark.parametrize("size", [1, 511, 4095, 4096, 4097, 131071, 131072, 131073, 261119, 261120, 261121, 1_000_003])
def test_sizes_around_every_border(area: Area, size: int) -> None:
    text = random.Random(size).randbytes(size)
    with opened(area.here / "file", NEW) as descriptor:
        assert os.write(descriptor, text) == size
        assert os.pread(descriptor, size + 1, 0) == text
    assert (area.there / "file").read_bytes() == text
    assert (area.here / "file").read_bytes() == text
    assert os.stat(area.here / "file").st_size == size


def test_reading_at_and_beyond_the_end(area: Area) -> None:
    (area.there / "file").write_bytes(LETTERS[:1000])
    with opened(area.here / "file") as descriptor:
        for offset, size, expected in ((990, 100, 10), (1000, 100, 0), (5000, 100, 0), (999, 1, 1), (0, 5000, 1000)):
            assert len(os.pread(descriptor, size, offset)) == expected
        assert os.pread(descriptor, 10, 1 << 40) == b""


def test_random_reading(area: Area) -> None:
    (area.there / "file").write_bytes(LETTERS)
    chance = random.Random(2)
    with opened(area.here / "file") as descriptor:
        for _ in range(300):
            offset, size = chance.randrange(len(LETTERS)), chance.randrange(1, 70_000)
            assert os.pread(descriptor, size, offset) == LETTERS[offset : offset + size]


def test_copying_within_the_kernel(area: Area) -> None:
    """sendfile, splice and copy_file_range read and write by other ways than read and write."""
    (area.here / "file").write_bytes(LETTERS)
    with opened(area.here / "file") as source, opened(area.here / "sent", NEW) as target:
        sent = 0
        while part := os.sendfile(target, source, sent, len(LETTERS)):
            sent += part
    with opened(area.here / "file") as source, opened(area.here / "copied", NEW) as target:
        while os.copy_file_range(source, target, len(LETTERS)):
            pass
    shutil.copyfile(area.here / "file", area.here / "shutil")
    for name in ("sent", "copied", "shutil"):
        assert (area.there / name).read_bytes() == LETTERS, name


def test_unbuffered_access(area: Area) -> None:
    """O_DIRECT, with an aligned buffer."""
    buffer = mmap.mmap(-1, 65536)
    buffer[:] = LETTERS[:65536]
    with opened(area.here / "file", NEW) as plain, opened(area.here / "file", os.O_RDWR | os.O_DIRECT) as direct:
        os.pwrite(plain, b"x" * 131_072, 0)
        assert os.pwritev(direct, [buffer], 4096) == 65536
        expected = b"x" * 4096 + LETTERS[:65536] + b"x" * (131_072 - 65536 - 4096)
        assert os.pread(plain, 200_000, 0) == expected
        buffer[:] = bytes(65536)
        assert os.preadv(direct, [buffer], 65536) == 65536
        assert buffer[:] == expected[65536:131072]
    assert (area.there / "file").read_bytes() == expected


def test_synchronous_writing(area: Area) -> None:
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(area.here / "file", NEW | flag) as descriptor:
            os.write(descriptor, LETTERS[:300_000])
            assert (area.there / "file").read_bytes() == LETTERS[:300_000]
        os.unlink(area.here / "file")


@pytest.mark.deadline(120)
def test_a_sparse_file_of_three_gibibytes(area: Area) -> None:
    path = area.here / "file"
    places = {0: b"first", GIB - 3: b"across 1 GiB", 2 * GIB - 5: b"across 2 GiB", 3 * GIB - 4: b"last"}
    with opened(path, NEW) as descriptor:
        for offset, text in places.items():
            os.pwrite(descriptor, text, offset)
        assert os.fstat(descriptor).st_size == 3 * GIB
        for offset, text in places.items():
            assert os.pread(descriptor, len(text), offset) == text
            assert os.pread(descriptor, 100, offset + len(text)) == bytes(min(100, 3 * GIB - offset - len(text)))
    assert os.stat(path).st_size == os.stat(area.there / "file").st_size == 3 * GIB
    assert os.stat(area.there / "file").st_blocks * 512 < 1 << 20
    with opened(area.there / "file") as descriptor:
        for offset, text in places.items():
            assert os.pread(descriptor, len(text), offset) == text
    os.unlink(path)


def test_beyond_four_gibibytes(area: Area) -> None:
    with opened(area.here / "file", NEW) as descriptor:
        for offset in (4 * GIB - 2, 5 * GIB, 700 * GIB):
            os.pwrite(descriptor, b"text", offset)
            assert os.fstat(descriptor).st_size == offset + 4
            assert os.pread(descriptor, 10, offset - 2) == b"\0\0text"
        os.ftruncate(descriptor, 4 * GIB + 1)
        assert os.pread(descriptor, 10, 4 * GIB - 2) == b"tex"
    assert os.stat(area.there / "file").st_size == 4 * GIB + 1
    os.unlink(area.here / "file")


def test_seeking_to_holes(area: Area) -> None:
    with opened(area.here / "file", NEW) as descriptor:
        os.pwrite(descriptor, b"text", 10 << 20)
        size = (10 << 20) + 4
        data = os.lseek(descriptor, 0, os.SEEK_DATA)
        assert data in ((0,) if area.differs(Difference.NO_HOLES) else (0, 10 << 20))
        assert os.lseek(descriptor, 10 << 20, os.SEEK_HOLE) == size
        assert errno_of(lambda: os.lseek(descriptor, size, os.SEEK_DATA)) == "ENXIO"
