"""Contents: every byte is the server's at that place, or there is an error; what was not written is told."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support.evil_answers import FAILS_FROM_BYTES
from tests.support.mounted import Mount
from tests.t6_faults.faults import CONTENT, attempt, make, outcome, read, sound

BLOCK_BYTES = 128 * 1024


def read_in(block_bytes: int) -> Callable[[Path], bytes]:
    """Read all of a file in blocks; what was read before an error counts for nothing."""

    def reader(path: Path) -> bytes:
        parts = []
        with path.open("rb", buffering=0) as file:
            while part := file.read(block_bytes):
                parts.append(part)
        return b"".join(parts)

    return reader


def read_back_to_front(path: Path) -> bytes:
    """In blocks, the last first: nothing is sequential."""
    with path.open("rb", buffering=0) as file:
        starts = reversed(range(0, len(CONTENT), BLOCK_BYTES))
        return b"".join(reversed([os.pread(file.fileno(), BLOCK_BYTES, at) for at in starts]))


READERS = {"whole": read, "blocks": read_in(BLOCK_BYTES), "odd": read_in(99_999), "backwards": read_back_to_front}
OPTIONS = {"ahead": (), "plain": ("no_readahead",), "direct": ("direct_io",), "small": ("max_read=50000",)}


@pytest.mark.parametrize("options", OPTIONS)
def test_short_answers_are_completed(evil: Callable[..., Mount], remote_dir: Path, options: str) -> None:
    """DATA of a third of what was asked, again and again."""
    made = {reader: make(remote_dir, f"read_answer:shorter:{reader}") for reader in READERS}
    mount = evil(*OPTIONS[options])
    found = {reader: outcome(READERS[reader], mount.path / name) == CONTENT for reader, name in made.items()}
    assert found == dict.fromkeys(READERS, True)
    sound(mount, remote_dir)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("answer", ["failure", "empty", "end"])
def test_a_read_that_fails_is_no_short_file(
    evil: Callable[..., Mount], remote_dir: Path, answer: str, options: str
) -> None:
    """FAILURE, DATA without data, or EOF in the middle of a file that goes on: an error for whoever reads so far."""
    made = {reader: make(remote_dir, f"read_answer:{answer}:{reader}") for reader in READERS}
    mount = evil(*OPTIONS[options])
    found = {reader: outcome(READERS[reader], mount.path / name) for reader, name in made.items()}
    assert {reader: each if isinstance(each, str) else len(each) for reader, each in found.items()} == dict.fromkeys(
        READERS, "EIO"
    )
    begun = outcome(lambda: (mount.path / made["whole"]).open("rb").read(BLOCK_BYTES))
    assert begun == CONTENT[:BLOCK_BYTES]
    sound(mount, remote_dir)


@pytest.mark.parametrize("end", [FAILS_FROM_BYTES, FAILS_FROM_BYTES + 1, FAILS_FROM_BYTES - 5000])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_file_that_shrinks_while_it_is_read(
    evil: Callable[..., Mount], remote_dir: Path, options: str, end: int
) -> None:
    """What there is, and no zeros behind it: up to the new end, or an error."""
    for reader in READERS:
        (remote_dir / reader).write_bytes(CONTENT)
    mount = evil(*OPTIONS[options])

    def shrink_and_read(reader: str) -> object:
        with (mount.path / reader).open("rb", buffering=0) as file:
            begun = file.read(100)
            os.truncate(remote_dir / reader, end)
            return begun + file.read() if reader == "whole" else READERS[reader](mount.path / reader)

    for reader in READERS:
        found = outcome(shrink_and_read, reader)
        assert found == "EIO" or found == CONTENT[: len(found)], reader
        assert found == "EIO" or len(found) <= end
    sound(mount, remote_dir)


def write_all(path: Path, block_bytes: int) -> list[object]:
    """Create a file of CONTENT; the outcomes of its writes up to the first that fails, of fsync twice, and of close."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    outcomes: list[object] = []
    for at in range(0, len(CONTENT), block_bytes):
        outcomes.append(attempt(os.write, descriptor, CONTENT[at : at + block_bytes]))
        if isinstance(outcomes[-1], str):
            break
    told = [attempt(lambda: os.fsync(descriptor)) for _ in range(2)]
    return [outcomes[-1], *told, attempt(lambda: os.write(descriptor, b"x")), attempt(lambda: os.close(descriptor))]


@pytest.mark.parametrize("block_bytes", [4096, 131072, 1 << 20])
@pytest.mark.parametrize(("disk", "expected"), [("with room", "EDQUOT"), ("full", "ENOSPC")])
def test_writes_that_fail_in_the_middle(
    evil: Callable[..., Mount], remote_dir: Path, disk: str, expected: str, block_bytes: int
) -> None:
    """Told by a later write if there is one, by each fsync, and by close: each of them, by the true name."""
    mount = evil()
    name = f"evil:write_answer:{disk}"
    last_write, *told = outcome(write_all, mount.path / name, block_bytes)
    assert last_write in (expected, len(CONTENT) % block_bytes or block_bytes)
    assert told == [expected] * 4
    # What is told as written is there, as far as it goes.
    there = (remote_dir / name).read_bytes()
    assert there == CONTENT[: len(there)]
    assert len(there) <= FAILS_FROM_BYTES
    sound(mount, remote_dir)


def test_overwriting_that_fails_in_the_middle(evil: Callable[..., Mount], remote_dir: Path) -> None:
    """What has its place needs no other: that is neither a full disk nor a quota."""
    mount = evil()
    _, *told = outcome(write_all, mount.path / make(remote_dir, "write_answer"), 131072)
    assert told == ["EIO"] * 4
    sound(mount, remote_dir)


def test_writes_that_fail_and_nobody_asks(evil: Callable[..., Mount], remote_dir: Path) -> None:
    """`cp` that looks at nothing but close."""
    mount = evil()

    def copy() -> list[object]:
        descriptor = os.open(mount.path / "evil:write_answer:full", os.O_WRONLY | os.O_CREAT)
        found = [attempt(lambda: os.write(descriptor, CONTENT[: FAILS_FROM_BYTES + 10]))]
        return [*found, attempt(lambda: os.close(descriptor))]

    *_, closing = outcome(copy)
    assert closing == "ENOSPC"
    sound(mount, remote_dir)


def test_a_close_that_fails(evil: Callable[..., Mount], expect_log: Callable[[str], None], remote_dir: Path) -> None:
    """All writes were acknowledged: no program is stopped by it, nothing is lost here, and the log tells of it."""
    expect_log("evil:close_answer: what was written last may be lost: FAILURE .it failed")
    mount = evil()

    def write() -> object:
        descriptor = os.open(mount.path / "evil:close_answer", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, CONTENT)
        return attempt(lambda: os.close(descriptor))

    assert outcome(write) in (None, "EIO")
    assert (remote_dir / "evil:close_answer").read_bytes() == CONTENT
    sound(mount, remote_dir)
    mount.unmount(exit_code=ExitCode.LOST_WRITES)


def test_a_close_that_fails_after_reading(evil: Callable[..., Mount], remote_dir: Path) -> None:
    """Of no consequence: nobody is told, the log neither."""
    mount = evil()
    name = make(remote_dir, "close_answer")
    assert outcome(read, mount.path / name) == CONTENT
    assert outcome(lambda: os.close(os.open(mount.path / name, os.O_RDWR))) is None
    sound(mount, remote_dir)


def test_a_write_of_a_mapping_that_fails(
    evil: Callable[..., Mount], expect_log: Callable[[str], None], remote_dir: Path
) -> None:
    """Unmapped after the file is closed: there is no call that could be told."""
    expect_log("evil:write_answer: what was written last may be lost")
    mount = evil()
    name = make(remote_dir, "write_answer")

    def change() -> None:
        libc = ctypes.CDLL(None)  # for Python's own mappings keep a descriptor
        libc.mmap.restype = ctypes.c_void_p
        descriptor = os.open(mount.path / name, os.O_RDWR)
        protection, length = mmap.PROT_READ | mmap.PROT_WRITE, ctypes.c_size_t(len(CONTENT))
        start = libc.mmap(None, length, protection, mmap.MAP_SHARED, descriptor, ctypes.c_long(0))
        os.close(descriptor)
        ctypes.memset(start + 2 * FAILS_FROM_BYTES, 0, 1)
        libc.munmap(ctypes.c_void_p(start), length)

    assert outcome(change) is None
    mount.unmount(exit_code=ExitCode.LOST_WRITES)
