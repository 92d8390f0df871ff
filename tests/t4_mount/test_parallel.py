"""Many at a time: threads and processes, their own files, one file, one directory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.support import bounded
from tests.t4_mount.descriptors import opened
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area

WORKERS = 200
BLOCK = 16_384


def at_once(work: Callable[[int], object], count: int = WORKERS) -> list[object]:
    """Call it with 0, 1, ... in as many threads."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def content(number: int, size: int) -> bytes:
    """What worker `number` writes."""
    return random.Random(number).randbytes(size)


def test_two_hundred_files(area: Area) -> None:
    def work(number: int) -> None:
        text = content(number, 50_000 + number)
        path = area.here / f"file-{number}"
        path.write_bytes(text)
        assert path.read_bytes() == text
        with opened(path, os.O_RDWR) as descriptor:
            for offset in range(0, 50_000, 9_973):
                assert os.pread(descriptor, 1000, offset) == text[offset : offset + 1000]
            os.pwrite(descriptor, b"changed", 10_000)
        assert path.stat().st_size == len(text)

    at_once(work)
    for number in range(WORKERS):
        text = content(number, 50_000 + number)
        assert (area.there / f"file-{number}").read_bytes() == text[:10_000] + b"changed" + text[10_007:]
    assert len(os.listdir(area.here)) == WORKERS


def test_two_hundred_writers_of_one_file(area: Area) -> None:
    (area.here / "file").write_bytes(b"")

    def work(number: int) -> None:
        with opened(area.here / "file", os.O_RDWR) as descriptor:
            os.pwrite(descriptor, content(number, BLOCK), number * BLOCK)
            assert os.pread(descriptor, BLOCK, number * BLOCK) == content(number, BLOCK)

    at_once(work)
    expected = b"".join(content(number, BLOCK) for number in range(WORKERS))
    assert (area.there / "file").read_bytes() == (area.here / "file").read_bytes() == expected


def test_two_hundred_readers_of_one_file(area: Area) -> None:
    text = content(1, 2_000_000)
    (area.there / "file").write_bytes(text)

    def work(number: int) -> None:
        chance = random.Random(number)
        with opened(area.here / "file") as descriptor:
            for _ in range(10):
                offset, size = chance.randrange(len(text)), chance.randrange(1, 100_000)
                assert os.pread(descriptor, size, offset) == text[offset : offset + size]

    at_once(work)


def test_two_hundred_appenders(area: Area) -> None:
    """Every line is whole and there once."""

    def work(number: int) -> None:
        with opened(area.here / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as descriptor:
            for count in range(5):
                os.write(descriptor, f"{number:03} {count} {'x' * 100}\n".encode())

    at_once(work)
    lines = (area.there / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{n:03} {c} {'x' * 100}" for n in range(WORKERS) for c in range(5))


def test_two_hundred_in_one_directory(area: Area) -> None:
    def work(number: int) -> None:
        name = area.here / f"{number}"
        for _ in range(3):
            name.mkdir()
            (name / "file").write_text("text")
            os.rename(name, area.here / f"{number}-moved")
            assert os.listdir(area.here / f"{number}-moved") == ["file"]
            os.unlink(area.here / f"{number}-moved" / "file")
            os.rmdir(area.here / f"{number}-moved")
        name.write_text("last")
        assert f"{number}" in os.listdir(area.here)

    at_once(work)
    assert sorted(os.listdir(area.there)) == sorted(os.listdir(area.here)) == sorted(map(str, range(WORKERS)))


def test_one_winner(area: Area) -> None:
    """Of many that create the same name, one succeeds; of many that remove it, one."""

    def create(_: int) -> str:
        return errno_of(lambda: os.close(os.open(area.here / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY)))

    def remove(_: int) -> str:
        return errno_of(lambda: os.unlink(area.here / "lock"))

    for _ in range(5):
        assert sorted(map(str, at_once(create, 20))) == ["EEXIST"] * 19 + ["success"]
        assert sorted(map(str, at_once(remove, 20))) == ["ENOENT"] * 19 + ["success"]


def test_opening_closing_and_removing_one_name(area: Area) -> None:
    """Nothing but the expected errors, and nothing left."""

    def work(number: int) -> None:
        for _ in range(20):
            with suppress(FileNotFoundError), opened(area.here / "name", os.O_CREAT | os.O_RDWR) as descriptor:
                os.write(descriptor, b"text")
                assert os.pread(descriptor, 4, 0) == b"text"
                os.fstat(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(area.here / "name")
            with suppress(FileNotFoundError):
                os.stat(area.here / "name")

    at_once(work, 20)
    assert os.listdir(area.here) == os.listdir(area.there) == []


def test_renaming_to_and_fro(area: Area) -> None:
    """A name is never both there and not there for one who looks it up after having renamed it."""

    def work(number: int) -> None:
        path = area.here / f"{number}"
        path.write_text(f"{number}")
        for count in range(10):
            new = area.here / f"{number}-{count}"
            os.rename(path, new)
            assert new.read_text() == f"{number}" and not os.path.lexists(path)
            path = new

    at_once(work, 50)
    assert len(os.listdir(area.there)) == 50


@pytest.mark.deadline(120)
def test_processes(area: Area) -> None:
    """Processes do not share descriptors, and write the same files in turn."""

    def work(number: int) -> int:
        def body() -> int:
            chance = random.Random(number)
            for count in range(20):
                own = area.here / f"own-{number}"
                own.write_bytes(content(number + count, 20_000))
                assert own.read_bytes() == content(number + count, 20_000)
                with opened(area.here / "shared", os.O_CREAT | os.O_RDWR) as descriptor:
                    os.pwrite(descriptor, bytes([number]) * 1000, chance.randrange(100) * 1000)
            return number

        return bounded.in_subprocess(body, 100)

    assert at_once(work, 16) == list(range(16))
    shared = (area.there / "shared").read_bytes()
    assert shared == (area.here / "shared").read_bytes()
    assert all(len(set(shared[at : at + 1000])) == 1 for at in range(0, len(shared), 1000))
