"""Files that are only written, whose writes go past the kernel's pages, and those who have pages beside them.

Mappings and what may hang are in a child, with a deadline.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import bounded
from tests.t4_mount.descriptors import opened
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup

pytestmark = pytest.mark.variants(PLAIN, MOUNT, Setup("mount", ("no_direct_io",)))

KIB = 1024
SIZE = 300_000
NEW = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
PIECES = [(0, 1), (4095, 2), (4096, 4096), (5000, 17_000), (131_000, 200), (100_001, 131_072), (SIZE - 3, 100)]


def test_a_reader_beside_the_writer_sees_each_write(area: Area) -> None:
    def body() -> None:
        expected = bytearray(random.Random(1).randbytes(SIZE))
        with opened(area.here / "file", NEW) as writer, opened(area.here / "file") as reader:
            os.pwrite(writer, expected, 0)
            assert os.pread(reader, SIZE, 0) == expected  # and now there are pages
            for turn, (offset, length) in enumerate(PIECES):
                data = bytes([turn + 1]) * length
                expected[offset : offset + length] = data
                assert os.pwrite(writer, data, offset) == length
                assert os.fstat(reader).st_size == len(expected)
                assert os.pread(reader, len(data) + 10, offset) == expected[offset : offset + length + 10], turn
                assert os.pread(reader, 2 * SIZE, 0) == expected, turn

    bounded.in_subprocess(body)


def test_a_mapping_beside_the_writer_sees_each_write(area: Area) -> None:
    def body() -> None:
        expected = bytearray(random.Random(2).randbytes(SIZE))
        with opened(area.here / "file", NEW) as writer, opened(area.here / "file") as reader:
            os.write(writer, expected)
            with mmap.mmap(reader, 0, access=mmap.ACCESS_READ) as view:
                assert view[:] == expected
                for turn, (offset, length) in enumerate(PIECES[:-1]):
                    expected[offset : offset + length] = bytes([turn + 1]) * length
                    os.pwrite(writer, expected[offset : offset + length], offset)
                    assert view[:] == expected, turn

    bounded.in_subprocess(body)


def test_a_page_that_is_changed_in_both_ways(area: Area) -> None:
    """Neither takes back what the other has written, wherever the page was written back in between."""

    def body() -> bytes:
        expected = bytearray(64 * KIB)
        with opened(area.here / "file", NEW) as writer, opened(area.here / "file", os.O_RDWR) as reader:
            os.write(writer, expected)
            with mmap.mmap(reader, 0) as view:
                for turn in range(100):
                    here, there = turn * 601, turn * 601 + 300
                    view[here : here + 6] = expected[here : here + 6] = b"mapped"
                    os.pwrite(writer, b"written", there)
                    expected[there : there + 7] = b"written"
                    assert view[here : here + 310] == expected[here : here + 310], turn
                    if turn % 3 == 0:
                        view.flush()
                        assert (area.there / "file").read_bytes() == expected, turn
                view.flush()
        return bytes(expected)

    expected = bounded.in_subprocess(body)
    assert (area.there / "file").read_bytes() == (area.here / "file").read_bytes() == expected


@contextmanager
def written_back(descriptor: int) -> Iterator[None]:
    """Another process has the kernel write changed pages back all the time, as it does by itself now and then."""
    parent = os.getpid()
    if (child := os.fork()) == 0:
        libc = ctypes.CDLL(None)
        while os.getppid() == parent:
            libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(4 * KIB), 2)  # SYNC_FILE_RANGE_WRITE
            time.sleep(0.0005)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.deadline(60)
def test_a_page_that_is_written_back_takes_no_later_write_with_it(area: Area) -> None:
    """A program changes a page through a mapping, then writes into it; the page is on its way to the server."""

    def body() -> None:
        with (
            opened(area.here / "file", NEW) as writer,
            opened(area.here / "file", os.O_RDWR) as reader,
            written_back(reader),
        ):
            os.write(writer, bytes(4 * KIB))
            with mmap.mmap(reader, 0) as view:
                for turn in range(1, 301):
                    value = turn.to_bytes(8, "big")
                    view[0:8] = value
                    os.pwrite(writer, value, 2 * KIB)
                    assert view[2 * KIB : 2 * KIB + 8] == value
                    if turn % 5 == 0:
                        view.flush()
                        os.fsync(writer)
                        there = (area.there / "file").read_bytes()
                        assert (there[:8], there[2 * KIB : 2 * KIB + 8]) == (value, value), turn

    bounded.in_subprocess(body, 50.0)


@pytest.mark.deadline(60)
def test_reading_and_writing_in_the_same_moment(area: Area) -> None:
    """Pages are read while they are renewed: who reads after a write was acknowledged sees it, or a later one."""
    slots, turns = 64, 40
    length = 4 * KIB + 512  # so that pages are shared by two slots

    def body() -> int:
        acknowledged = 0
        looked = 0
        with opened(area.here / "file", NEW) as writer, opened(area.here / "file") as reader:
            os.write(writer, bytes(slots * length))

            def write() -> None:
                nonlocal acknowledged
                for turn in range(1, turns + 1):
                    for slot in range(slots):
                        os.pwrite(writer, turn.to_bytes(2, "big") * (length // 2), slot * length)
                    acknowledged = turn

            thread = threading.Thread(target=write)
            thread.start()
            chance = random.Random(3)
            while thread.is_alive():
                if chance.random() < 0.2:
                    os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)  # so that pages are read anew
                least, slot = acknowledged, chance.randrange(slots)
                found = os.pread(reader, length, slot * length)
                numbers = {int.from_bytes(found[at : at + 2], "big") for at in range(0, length, 2)}
                assert least <= min(numbers), (least, numbers)
                looked += 1
            thread.join()
            last = turns.to_bytes(2, "big") * (slots * length // 2)
            assert os.pread(reader, slots * length, 0) == last
        return looked

    assert bounded.in_subprocess(body, 50.0) > 0
    assert (area.there / "file").read_bytes() == turns.to_bytes(2, "big") * (slots * length // 2)


def test_from_whatever_memory(area: Area) -> None:
    """Buffers that begin anywhere, one of many pieces, a mapping of another file here, and one of the same file."""
    chance = random.Random(4)
    data = chance.randbytes(3 << 20)
    (area.there / "source").write_bytes(data)

    def body() -> None:
        view = memoryview(data)
        with opened(area.here / "file", NEW) as writer:
            assert os.write(writer, view[1:]) == len(data) - 1  # in one call
            assert os.pwritev(writer, [view[at : at + 1000] for at in range(0, 1_000_000, 1000)], 5) == 1_000_000
            with opened(area.here / "source") as source, mmap.mmap(source, 0, access=mmap.ACCESS_READ) as mapping:
                assert os.pwrite(writer, memoryview(mapping)[3:], len(data) + 7) == len(data) - 3
            with opened(area.here / "file") as own, mmap.mmap(own, 0, access=mmap.ACCESS_READ) as mapping:
                assert os.pwrite(writer, memoryview(mapping)[: 1 << 20], 6 << 20) == 1 << 20

    bounded.in_subprocess(body)
    expected = bytearray(data[1:])
    expected[5:1_000_005] = data[:1_000_000]
    expected += bytes(8) + data[3:]
    expected[6 << 20 :] = expected[: 1 << 20] + expected[7 << 20 :]
    assert (area.there / "file").read_bytes() == expected


def test_from_another_descriptor(area: Area) -> None:
    """sendfile, splice and copy_file_range, of which the kernel makes writes."""
    data = random.Random(5).randbytes(700_001)
    (area.there / "source").write_bytes(data)

    def sent(target: int, source: int) -> None:
        while os.sendfile(target, source, None, 1 << 20):
            pass

    def copied(target: int, source: int) -> None:
        while os.copy_file_range(source, target, 1 << 20):
            pass

    def spliced(target: int, source: int) -> None:
        reading, writing = os.pipe()
        while count := os.splice(source, writing, 1 << 16):
            while count:
                count -= os.splice(reading, target, count)
        os.close(reading)
        os.close(writing)

    def body() -> None:
        for way in (sent, copied, spliced):
            with opened(area.here / way.__name__, NEW) as target, opened(area.here / "source") as source:
                way(target, source)

    bounded.in_subprocess(body)
    for way in (sent, copied, spliced):
        assert (area.there / way.__name__).read_bytes() == data, way.__name__


def test_two_writers_and_one_who_reads_and_writes(area: Area) -> None:
    chance = random.Random(6)

    def body() -> bytes:
        expected = bytearray(SIZE)
        path = area.here / "file"
        with opened(path, NEW) as one, opened(path, os.O_WRONLY) as two:
            os.write(one, expected)
            with opened(path, os.O_RDWR) as three, opened(path, os.O_WRONLY) as four:
                for turn in range(300):
                    offset, length = chance.randrange(SIZE - 9000), chance.randrange(1, 9000)
                    data = bytes([turn % 255 + 1]) * length
                    os.pwrite(chance.choice([one, two, three, four]), data, offset)
                    expected[offset : offset + length] = data
                    offset = chance.randrange(SIZE)
                    assert os.pread(three, 9000, offset) == expected[offset : offset + 9000], turn
            os.pwrite(two, b"last", 0)
            expected[:4] = b"last"
        assert Path(path).read_bytes() == expected
        return bytes(expected)

    expected = bounded.in_subprocess(body)
    assert (area.there / "file").read_bytes() == expected


def test_what_was_written_is_read_by_the_next(area: Area) -> None:
    """Pages that were read before a writer came by itself are not shown again."""
    (area.there / "file").write_bytes(b"old" * 3000)
    os.utime(area.there / "file", (1000, 1000))  # long ago: the kernel may keep the pages
    with opened(area.here / "file") as reader:
        assert os.read(reader, 3) == b"old"
    with opened(area.here / "file", os.O_WRONLY) as writer:
        os.write(writer, b"new")
        os.utime(writer, (1000, 1000))
    with opened(area.here / "file") as reader:
        assert os.read(reader, 6) == b"newold"
