"""Which opens do without the kernel's pages, and what is put into those of others beside them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import pyfuse3
import pytest
import trio

from sshmuxfs import pages
from sshmuxfs.operations import Manners
from tests.support.sftp_process import in_trio
from tests.t3_operations.world import CTX, World, refused, world

TEXT = b"what was there before"


async def opened(w: World, number: int, flags: int) -> tuple[int, bool]:
    """The handle, and whether it bypasses the kernel's pages."""
    info = await w.operations.open(number, flags, CTX)
    return info.fh, info.direct_io


@asynccontextmanager
async def with_a_file(directory: Path, mode: int = 0o644) -> AsyncIterator[tuple[World, int]]:
    """A world with a file of TEXT, and the file's inode number."""
    (directory / "file").write_bytes(TEXT)
    (directory / "file").chmod(mode)
    async with world(directory) as w:
        yield w, await w.number("file")


async def let_go(w: World, *handles: int) -> None:
    for handle in handles:
        await w.operations.flush(handle)
        await w.operations.release(handle)


@pytest.mark.parametrize(
    ("release", "drops"),
    [
        *(
            ("6.6", True),
            ("6.6.0-rc1", True),
            ("6.12.43+deb13-amd64", True),
            ("10.0.1", True),
            ("6.18.44", True),
        ),
        *(("6.5.13", False), ("6.1.0-56-amd64", False), ("5.14.0-503.el9", False), ("5.66", False)),
        *(("", False), ("6", False), ("next", False), ("v6.12", False)),
    ],
)
def test_kernels_that_drop_what_is_replaced(release: str, drops: bool) -> None:
    assert pages.dropped_by(release) is drops


@pytest.mark.parametrize(
    ("flags", "bypasses"),
    [
        (os.O_WRONLY, True),
        (os.O_WRONLY | os.O_TRUNC, True),
        (os.O_WRONLY | os.O_DSYNC, True),
        (os.O_WRONLY | os.O_APPEND, False),
        (os.O_RDONLY, False),
        (os.O_RDWR, False),
        (os.O_RDWR | os.O_TRUNC, False),
    ],
)
@in_trio
async def test_only_what_is_only_written_does_without_pages(tmp_path: Path, flags: int, bypasses: bool) -> None:
    (tmp_path / "file").write_bytes(TEXT)
    for wanted, expected in ((None, bypasses), (True, True), (False, False)):
        async with world(tmp_path, manners=Manners(direct_io=wanted)) as w:
            handle, found = await opened(w, await w.number("file"), flags)
            assert found is expected, wanted
            await let_go(w, handle)


@pytest.mark.parametrize(("flags", "bypasses"), [(os.O_WRONLY, True), (os.O_RDWR, False)])
@in_trio
async def test_a_new_file_as_any_other(tmp_path: Path, flags: int, bypasses: bool) -> None:
    async with world(tmp_path) as w:
        info, entry = await w.operations.create(1, b"file", 0o100644, flags | os.O_CREAT | os.O_EXCL, CTX)
        assert info.direct_io is bypasses
        handle, found = await opened(w, entry.st_ino, os.O_WRONLY)
        assert found is bypasses  # who comes second goes the way of the first
        await let_go(w, info.fh, handle)


@in_trio
async def test_beside_a_file_with_pages_a_writer_uses_them(tmp_path: Path) -> None:
    async with with_a_file(tmp_path) as (w, number):
        reader, _ = await opened(w, number, os.O_RDONLY)
        writer, bypasses = await opened(w, number, os.O_WRONLY)
        assert not bypasses
        await w.operations.write(writer, 0, b"new")
        assert w.stored == []
        await let_go(w, reader)
        later, bypasses = await opened(w, number, os.O_WRONLY)
        assert not bypasses, "the first writer fills pages that the second would leave old"
        await let_go(w, writer, later)
        last, bypasses = await opened(w, number, os.O_WRONLY)
        assert bypasses
        await let_go(w, last)


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
@in_trio
async def test_the_kernel_keeps_its_eye_on_programs_that_run_as_another(tmp_path: Path, mode: int) -> None:
    async with with_a_file(tmp_path, mode) as (w, number):
        handle, bypasses = await opened(w, number, os.O_WRONLY)
        assert not bypasses
        await let_go(w, handle)


@in_trio
async def test_pages_beside_a_writer_are_renewed_with_each_write(tmp_path: Path) -> None:
    async with with_a_file(tmp_path) as (w, number):
        writer, _ = await opened(w, number, os.O_WRONLY)
        another, _ = await opened(w, number, os.O_WRONLY)
        await w.operations.write(writer, 0, b"nobody looks")
        assert w.stored == []
        reader, bypasses = await opened(w, number, os.O_RDONLY)
        assert not bypasses
        await w.operations.write(writer, 5, b"somebody looks")
        await w.operations.write(another, 100, b"again")
        assert w.stored == [(number, 5, b"somebody looks"), (number, 100, b"again")]
        await let_go(w, reader)
        await w.operations.write(writer, 0, b"and nobody")
        assert len(w.stored) == 2
        handle, _ = await opened(w, number, os.O_RDWR)
        await w.operations.write(handle, 0, b"by way of pages")
        assert len(w.stored) == 2
        await let_go(w, handle, writer, another)


@in_trio
async def test_what_was_not_accepted_is_in_no_page(tmp_path: Path, allow_log: Callable[[str], None]) -> None:
    allow_log("may be lost")
    async with with_a_file(tmp_path) as (w, number):
        writer, _ = await opened(w, number, os.O_WRONLY)
        reader, _ = await opened(w, number, os.O_RDONLY)
        w.process.end()
        assert await refused(w.operations.write(writer, 0, b"lost")) == "EIO"
        assert w.stored == []
        await w.operations.release(writer)
        await w.operations.release(reader)


async def written_where_no_page_is_taken(directory: Path, number: int) -> bytes:
    async with with_a_file(directory) as (w, inode):
        writer, _ = await opened(w, inode, os.O_WRONLY)
        reader, _ = await opened(w, inode, os.O_RDONLY)
        with mock.patch.object(pyfuse3, "notify_store", side_effect=OSError(number, os.strerror(number))):
            assert await w.operations.write(writer, 0, b"new") == 3
        await let_go(w, writer, reader)
    return (directory / "file").read_bytes()


@in_trio
async def test_a_file_that_the_kernel_forgot_has_no_pages(tmp_path: Path) -> None:
    assert (await written_where_no_page_is_taken(tmp_path, errno.ENOENT))[:3] == b"new"


@in_trio
async def test_a_kernel_that_takes_no_pages_is_told_of(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    """The write was accepted, whatever becomes of the pages."""
    expect_log("its pages may be old")
    assert (await written_where_no_page_is_taken(tmp_path, errno.ENOMEM))[:3] == b"new"


@in_trio
async def test_pages_that_stay_locked_do_not_hold_the_writer_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their reader may be waiting for a place among the requests that are served at a time. The bytes come later."""
    monkeypatch.setattr(pages, "RENEW_S", 0.05)
    read, stored = threading.Event(), threading.Event()

    def store(*_: object) -> None:
        read.wait(20)
        stored.set()

    async with with_a_file(tmp_path) as (w, number):
        writer, _ = await opened(w, number, os.O_WRONLY)
        reader, _ = await opened(w, number, os.O_RDONLY)
        with mock.patch.object(pyfuse3, "notify_store", store):
            assert await w.operations.write(writer, 0, b"new") == 3
            assert not stored.is_set()
            read.set()
            assert await trio.to_thread.run_sync(stored.wait, 20)
        await let_go(w, writer, reader)


@in_trio
async def test_what_was_read_before_a_writer_that_bypasses_is_dropped_by_the_next_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    async with with_a_file(tmp_path) as (w, number):

        async def kept() -> bool:
            os.utime(path, (1000, 1000))
            info = await w.operations.open(number, os.O_RDONLY, CTX)
            await let_go(w, info.fh)
            return info.keep_cache

        assert [await kept(), await kept()] == [False, True]
        writer, bypasses = await opened(w, number, os.O_WRONLY)
        assert bypasses
        await w.operations.write(writer, 0, TEXT.upper())  # as long as before, and soon as old
        await let_go(w, writer)
        assert [await kept(), await kept()] == [False, True]
