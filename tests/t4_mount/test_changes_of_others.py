"""Close-to-open: what another wrote and closed, on the server or through another mount, is what the next open here
reads.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sshmuxfs.stillness import HOLD_S
from tests.support import bounded
from tests.t4_mount.descriptors import opened
from tests.t4_mount.differences import Difference
from tests.t4_mount.errnos import errno_of
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import MOUNT, PLAIN, Setup, Tree

pytestmark = pytest.mark.variants(PLAIN, MOUNT, Setup("mount", ("dcache_timeout=600",)))

ROUNDS = 30
LONG_AGO = 1_000_000_000


@pytest.fixture
def other(area: Area, start: Callable[..., Tree]) -> Path:
    """The area through a second tree of the same directory."""
    second = start(area.tree.setup, served=area.tree.served)
    return second.path / area.here.name


def test_a_change_of_the_size(area: Area) -> None:
    for number in range(ROUNDS):
        (area.there / "file").write_bytes(b"x" * number)
        assert (area.here / "file").read_bytes() == b"x" * number


def test_a_change_of_the_same_size(area: Area) -> None:
    """Also within one second, where neither size nor time tell."""
    for number in range(ROUNDS):
        (area.there / "file").write_bytes(b"%08d" % number * 1000)
        assert (area.here / "file").read_bytes() == b"%08d" % number * 1000


def test_a_change_of_the_same_size_long_ago(area: Area) -> None:
    """The times say that it is another content, and are both old."""
    for number in range(ROUNDS):
        (area.there / "file").write_bytes(b"%08d" % number)
        os.utime(area.there / "file", (LONG_AGO + number, LONG_AGO + number))
        assert (area.here / "file").read_bytes() == b"%08d" % number


def test_a_replaced_file(area: Area) -> None:
    for number in range(ROUNDS):
        (area.there / "new").write_bytes(b"%08d" % number)
        os.rename(area.there / "new", area.there / "file")
        assert (area.here / "file").read_bytes() == b"%08d" % number


def test_a_change_after_the_file_was_looked_at(area: Area) -> None:
    (area.there / "file").write_bytes(b"first")
    assert os.stat(area.here / "file").st_size == 5
    assert os.listdir(area.here) == ["file"]
    (area.there / "file").write_bytes(b"the second, longer")
    with opened(area.here / "file") as descriptor:
        assert os.fstat(descriptor).st_size == 18
        assert os.read(descriptor, 100) == b"the second, longer"
    (area.there / "file").write_bytes(b"short")
    assert (area.here / "file").read_bytes() == b"short"


def test_a_change_while_it_was_open_here(area: Area) -> None:
    """A descriptor opened before may read either; one opened after reads the new content."""
    (area.there / "file").write_bytes(b"a" * 10_000)
    with opened(area.here / "file") as old:
        assert os.pread(old, 10, 0) == b"a" * 10
        (area.there / "file").write_bytes(b"b" * 20_000)
        assert (area.here / "file").read_bytes() == b"b" * 20_000
        assert os.pread(old, 10, 0) == b"b" * 10


def test_a_file_replaced_while_it_is_open_here(area: Area) -> None:
    """A descriptor keeps the file it was opened on, all of it; one opened after has the new one."""
    (area.there / "file").write_bytes(b"a" * 1_000_000)
    with opened(area.here / "file") as old:
        assert os.pread(old, 10, 0) == b"a" * 10
        (area.there / "new").write_bytes(b"b" * 1000)
        os.rename(area.there / "new", area.there / "file")
        with opened(area.here / "file") as new:
            assert os.read(new, 10_000) == b"b" * 1000
            assert os.fstat(old).st_size == 1_000_000
            assert os.pread(old, 1_000_000, 0) == b"a" * 1_000_000
            assert os.fstat(new).st_ino != os.fstat(old).st_ino
        assert (area.here / "file").stat().st_size == 1000


def test_growing_by_appending(area: Area) -> None:
    """As a log file is followed: each look opens it."""
    expected = b""
    for number in range(ROUNDS):
        with open(area.there / "log", "ab") as file:
            file.write(b"line %d\n" % number)
        expected += b"line %d\n" % number
        assert (area.here / "log").read_bytes() == expected


def test_a_change_of_each_side_in_turn(area: Area) -> None:
    sides = (area.here / "file", area.there / "file")
    for number in range(ROUNDS):
        sides[number % 2].write_bytes(b"%08d" % number)
        assert sides[(number + 1) % 2].read_bytes() == b"%08d" % number
        assert sides[number % 2].read_bytes() == b"%08d" % number


def test_appending_here_to_what_grew_there(area: Area) -> None:
    (area.here / "file").write_bytes(b"one ")
    with open(area.there / "file", "ab") as file:
        file.write(b"two ")
    with open(area.here / "file", "ab") as file:
        file.write(b"three")
    assert (area.there / "file").read_bytes() == (area.here / "file").read_bytes() == b"one two three"


def test_a_file_removed_there(area: Area) -> None:
    (area.here / "file").write_text("text")
    os.unlink(area.there / "file")
    assert errno_of(lambda: os.open(area.here / "file", os.O_RDONLY)) == "ENOENT"
    (area.there / "file").write_text("another")
    if not area.differs(Difference.NAMES_MAY_BE_STALE):
        assert (area.here / "file").read_text() == "another"


def test_files_that_appear_in_a_directory_seen_for_the_first_time(area: Area) -> None:
    for number in range(10):
        (area.there / f"dir-{number}").mkdir()
        for name in ("one", "two"):
            (area.there / f"dir-{number}" / name).write_text(name)
        assert sorted(os.listdir(area.here / f"dir-{number}")) == ["one", "two"]


def test_between_two_mounts(area: Area, other: Path) -> None:
    sides = (area.here / "file", other / "file")
    for number in range(ROUNDS):
        sides[number % 2].write_bytes(b"%08d" % number * (number % 3 + 1))
        assert sides[(number + 1) % 2].read_bytes() == b"%08d" % number * (number % 3 + 1)


def test_one_winner_of_exclusive_creation(area: Area, other: Path) -> None:
    """Lock files: of two mounts that want the same name exactly one gets it."""

    def wants(side: Path, number: int) -> bool:
        found = errno_of(lambda: os.close(os.open(side / f"lock-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)))
        assert found in ("success", "EEXIST")
        return found == "success"

    with ThreadPoolExecutor(2) as pool:
        for number in range(100):
            winners = [pool.submit(wants, side, number) for side in (area.here, other)]
            assert sorted(winner.result() for winner in winners) == [False, True]


def test_one_winner_of_linking_and_making(area: Area, other: Path) -> None:
    (area.here / "mine").write_text("mine")
    (other / "yours").write_text("yours")
    with ThreadPoolExecutor(2) as pool:
        for number in range(50):
            links = [
                pool.submit(errno_of, os.link, area.here / "mine", area.here / f"link-{number}"),
                pool.submit(errno_of, os.link, other / "yours", other / f"link-{number}"),
            ]
            assert sorted(link.result() for link in links) == ["EEXIST", "success"]
            made = [pool.submit(errno_of, os.mkdir, side / f"dir-{number}") for side in (area.here, other)]
            assert sorted(one.result() for one in made) == ["EEXIST", "success"]


def test_a_reader_never_misses_a_file_that_is_replaced(area: Area, other: Path) -> None:
    """One mount replaces it by renaming, the other reads: always one of the contents, whole."""
    contents = {bytes([letter]) * 50_000 for letter in b"abc"}
    (area.here / "file").write_bytes(b"a" * 50_000)

    def replace() -> None:
        for _ in range(30):
            for content in sorted(contents):
                (area.here / "new").write_bytes(content)
                os.rename(area.here / "new", area.here / "file")

    def read(side: Path) -> int:
        count = 0
        until = time.monotonic() + 30
        while not writer.done() and time.monotonic() < until:
            assert (side / "file").read_bytes() in contents
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(replace)
        readers = [pool.submit(read, side) for side in (area.here, other)]
        writer.result()
        assert all(reader.result() > 0 for reader in readers)


def test_opening_what_is_replaced_all_the_time(area: Area) -> None:
    """Through one mount, by another process: an open that comes too late twice in a row still finds a file."""
    (area.here / "file").write_bytes(b"first")
    rounds = 150

    def replace() -> int:
        for number in range(rounds):
            (area.here / "new").write_bytes(b"%d" % number)
            os.rename(area.here / "new", area.here / "file")
        return rounds

    def look(flags: int) -> int:
        opens = 0
        while not writer.done():
            begun_s = time.monotonic()
            try:
                with opened(area.here / "file", flags) as descriptor:
                    os.pread(descriptor, 100, 0)
            except OSError as error:
                # Nobody who changes a name is held up for longer, however long whoever opens gets no processor.
                if error.errno != errno.ESTALE or time.monotonic() - begun_s < HOLD_S:
                    raise
            else:
                opens += 1
        return opens

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(bounded.in_subprocess, replace, 90)
        readers = [pool.submit(look, flags) for flags in (os.O_RDONLY, os.O_RDWR)]
        assert writer.result() == rounds
        assert all(reader.result() > 0 for reader in readers)
    assert (area.here / "file").read_bytes() == (area.there / "file").read_bytes() == b"%d" % (rounds - 1)


def test_a_directory_removed_by_the_other(area: Area, other: Path) -> None:
    (area.here / "dir").mkdir()
    (area.here / "dir" / "file").write_text("text")
    assert os.listdir(other / "dir") == ["file"]
    os.unlink(area.here / "dir" / "file")
    os.rmdir(area.here / "dir")
    assert errno_of(lambda: os.open(other / "dir" / "new", os.O_CREAT | os.O_WRONLY)) in ("ENOENT", "ESTALE")
    assert errno_of(lambda: (other / "dir" / "file").read_text()) in ("ENOENT", "ESTALE")
