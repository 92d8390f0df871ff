"""The random-operation checker on every kind of mount, and the checker itself: it notices what it is there for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import bounded
from tests.support.checker import Checker, Mismatch
from tests.t4_mount.fixtures import Area
from tests.t4_mount.trees import PLAIN, Setup

SANITY_OPERATIONS = 2_000
OPERATIONS = 20_000


def check(area: Area, *arguments: object) -> None:
    """Run the checker's command on the area, and show its report when something was wrong."""
    command = [sys.executable, "-m", "tests.support.checker", str(area.here), "--server", str(area.there)]
    done = bounded.in_subprocess([*command, *map(str, arguments)], 280)
    assert done.returncode == 0, done.stderr
    assert os.listdir(area.there) == []


@pytest.mark.variants(PLAIN)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_plain_directory(area: Area, seed: int) -> None:
    check(area, "--ops", SANITY_OPERATIONS, "--seed", seed)


@pytest.mark.variants(Setup("mount"))
@pytest.mark.deadline(300)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mount(area: Area, seed: int) -> None:
    check(area, "--ops", OPERATIONS, "--seed", seed)


@pytest.mark.over_putty
@pytest.mark.variants(Setup("mount"))
def test_over_every_kind_of_connection(area: Area) -> None:
    check(area, "--ops", OPERATIONS // 5, "--seed", 8)


@pytest.mark.variants(Setup("mount", ("direct_io",)))
@pytest.mark.deadline(300)
@pytest.mark.parametrize("seed", [4, 5])
def test_without_the_page_cache(area: Area, seed: int) -> None:
    check(area, "--ops", OPERATIONS // 2, "--seed", seed, "--no-mmap")


@pytest.mark.over_putty
@pytest.mark.variants(
    Setup("mount", ("dir_cache=no", "attr_timeout=0", "entry_timeout=0")),
    Setup("mount", ("sshfs_sync", "no_readahead")),
    Setup("mount", ("max_read=4096", "max_write=4096")),
)
@pytest.mark.deadline(300)
def test_other_ways_of_caching(area: Area) -> None:
    check(area, "--ops", OPERATIONS // 10, "--seed", 6)


@pytest.mark.over_putty
@pytest.mark.variants(PLAIN, Setup("mount"))
@pytest.mark.deadline(300)
def test_a_big_file(area: Area) -> None:
    check(area, "--ops", 1000, "--seed", 7, "--big")


def overwrite(path: Path) -> None:
    """Some bytes are others."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"wrong!")


def lose_a_page(path: Path) -> None:
    """A page of zeros in the midst."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(4096)[: path.stat().st_size // 2])


def cut_off(path: Path) -> None:
    """The end is missing."""
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    """A byte too many."""
    os.truncate(path, path.stat().st_size + 1)


@pytest.mark.parametrize("damage", [overwrite, lose_a_page, cut_off, grow])
def test_it_notices(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    checker = Checker(tmp_path, seed=1)
    undamaged = checker.check_size

    def damaging() -> None:
        if checker.number > 1000 and len(checker.expected) > 20_000:
            damage(checker.path)
        undamaged()

    checker.operations[checker.operations.index(checker.check_size)] = damaging
    with pytest.raises(Mismatch) as caught:
        checker.run(OPERATIONS)
    report = str(caught.value)
    assert "the last that changed these bytes" in report
    assert " instead of " in report or " wrong bytes " in report


def test_the_same_seed_does_the_same(tmp_path: Path) -> None:
    logs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        checker = Checker(tmp_path / name, seed=9)
        checker.run(500)
        logs.append([str(done) for done in checker.log])
    assert logs[0] == logs[1]


def test_a_wrong_byte_names_its_writer(tmp_path: Path) -> None:
    checker = Checker(tmp_path, seed=1)
    checker.put(checker.descriptor, 0, 4096, "write")
    checker.put(checker.descriptor, 1000, 2000, "write")
    checker.expected[1000:2000] = bytes(1000)
    with pytest.raises(Mismatch, match="written by step 2"):
        checker.compare_whole()
    os.close(checker.descriptor)
