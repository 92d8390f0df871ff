"""open, read, write, flush, fsync, release: the same bytes everywhere, and an error told as long as it matters."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from sshmuxfs.operations import Manners
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.tree.inodes import ROOT_NUMBER
from tests.support.sftp_process import handles_left_open, in_namespace, in_trio
from tests.t3_operations.world import CTX, World, refused, world

KERNEL_BYTES = 128 * 1024


@in_trio
async def test_what_is_written_is_read_by_everybody_here_before_it_is_sent(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        other = await w.open(entry.st_ino)
        for number in range(50):
            text = b"%03d " % number
            await w.operations.write(handle, number * 4, text)
            for reader in (handle, other):
                assert bytes(await w.operations.read(reader, number * 4, 100)) == text
            assert (await w.getattr(entry.st_ino)).st_size == (number + 1) * 4
        for each in (handle, other):
            await w.operations.flush(each)
            await w.operations.release(each)
        assert (tmp_path / "file").read_bytes() == b"".join(b"%03d " % number for number in range(50))


@in_trio
async def test_two_writers_of_one_file_write_in_the_order_they_were_told_to(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, entry = await w.create("file")
        other = await w.open(entry.st_ino, os.O_WRONLY)
        chance = random.Random(1)
        expected = bytearray(5000)
        for _ in range(200):
            offset, data = chance.randrange(4000), chance.randbytes(chance.randrange(1, 900))
            expected[offset : offset + len(data)] = data
            await w.operations.write(chance.choice([one, other]), offset, data)
        for each in (one, other):
            await w.operations.flush(each)
            await w.operations.release(each)
        found = (tmp_path / "file").read_bytes()
        assert found == expected[: len(found)]


@in_trio
async def test_reads_and_writes_at_random_as_a_plain_file(tmp_path: Path) -> None:
    plain = bytearray()
    chance = random.Random(5)
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        for turn in range(300):
            offset = chance.randrange(400_000)
            if chance.random() < 0.5:
                data = chance.randbytes(chance.choice([1, 4096, KERNEL_BYTES]))
                await w.operations.write(handle, offset, data)
                if len(plain) < offset:
                    plain += bytes(offset - len(plain))
                plain[offset : offset + len(data)] = data
            elif chance.random() < 0.1:
                size = chance.randrange(500_000)
                await w.setattr(entry.st_ino, size=size, fh=handle)
                plain = plain[:size] + bytes(max(0, size - len(plain)))
            else:
                size = chance.choice([1, 4096, KERNEL_BYTES])
                assert bytes(await w.operations.read(handle, offset, size)) == plain[offset : offset + size], turn
            assert (await w.getattr(entry.st_ino)).st_size == len(plain), turn
        await w.operations.flush(handle)
        await w.operations.release(handle)
        assert (tmp_path / "file").read_bytes() == plain


@in_trio
async def test_a_handle_does_what_it_was_opened_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number, os.O_RDONLY)
        assert await refused(w.operations.write(handle, 0, b"x")) == "EBADF"
        await w.operations.flush(handle)
        await w.operations.fsync(handle, False)
        await w.operations.release(handle)
        assert (tmp_path / "file").read_bytes() == b"content"


@in_trio
async def test_a_release_without_a_flush_still_sends_what_was_accepted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, _ = await w.create("file")
        w.process.pause()
        for number in range(10):
            await w.operations.write(handle, number, b"x")
        await w.operations.release(handle)
        w.process.resume()
        await (await w.link.client()).lstat(b"/")
        assert (tmp_path / "file").read_bytes() == b"x" * 10


@in_trio
async def test_fsync_reaches_the_server(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        other = await w.open(entry.st_ino, os.O_WRONLY)
        await w.operations.write(other, 0, b"another's")
        await w.operations.write(handle, 20, b"own")
        w.asked()
        await w.operations.fsync(handle, True)
        assert w.asked()[-1] == "Fsync"
        assert (tmp_path / "file").read_bytes() == b"another's".ljust(20, b"\0") + b"own"
        extensions = (await w.link.client())._exchange.extensions
        assert extensions is not None
        del extensions[sftp.Fsync.EXTENSION]
        await w.operations.fsync(handle, False)  # the server has it, and can do no more
        for each in (handle, other):
            await w.operations.release(each)


@in_trio
async def test_synchronous_writes_are_on_the_server_when_they_return(tmp_path: Path) -> None:
    async with world(tmp_path, manners=Manners(sync_writes=True)) as w:
        handle, _ = await w.create("file")
        for number in range(5):
            await w.operations.write(handle, number, b"x")
            assert (tmp_path / "file").stat().st_size == number + 1
        await w.operations.release(handle)


# -- what the kernel may keep -----------------------------------------------------------------------------------------


@in_trio
async def test_the_kernel_keeps_its_pages_only_of_a_file_that_has_settled(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    async with world(tmp_path) as w:
        number = await w.number("file")

        async def kept() -> bool:
            info = await w.operations.open(number, os.O_RDONLY, CTX)
            await w.operations.release(info.fh)
            return info.keep_cache

        while True:
            os.utime(path)
            changed_s = int(path.stat().st_mtime)
            found = [await kept(), await kept()]
            if time.time() < changed_s + 2:  # else two seconds went by on the way
                break
        assert found == [False, False], "it may change again and not show it"
        os.utime(path, (1000, 1000))
        assert [await kept(), await kept()] == [False, True]
        os.utime(path, (1000, 1001))
        assert [await kept(), await kept()] == [False, True]
        path.write_bytes(b"more content")
        os.utime(path, (1000, 1001))
        assert [await kept(), await kept()] == [False, True]
        await w.setattr(number, size=3)
        os.utime(path, (1000, 1001))
        assert await kept() is False


@in_trio
async def test_an_open_that_finds_a_file_changed_tells_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number)
        assert w.invalidated == []
        path.write_bytes(b"more content")
        other = await w.open(number)
        assert w.invalidated == [number]
        assert bytes(await w.operations.read(other, 0, 100)) == b"more content"
        for each in (handle, other):
            await w.operations.release(each)


@in_trio
async def test_an_open_asks_once(tmp_path: Path) -> None:
    """OPEN and the question what was opened, in one send."""
    (tmp_path / "file").write_bytes(b"content")
    async with world(tmp_path) as w:
        number = await w.number("file")
        w.process.stream.forget()
        handle = await w.open(number)
        assert w.process.stream.sends <= 2  # the second: the head of the file, ahead of the first read
        assert w.asked()[:2] == ["Open", "Lstat"]
        await w.operations.read(handle, 0, 4096)
        assert [kind for kind in w.asked() if kind != "Read"] == []
        await w.operations.release(handle)


@in_trio
async def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        number = await w.number("file")
        (tmp_path / "file").unlink()
        assert await refused(w.open(number)) == "ENOENT"
        assert await refused(w.open(number, os.O_RDWR)) in ("ENOENT", "ESTALE")


# -- errors that stay -------------------------------------------------------------------------------------------------

SMALL = "mount -t tmpfs -o size=64k none small"


@in_trio
async def test_a_write_that_found_no_room_is_told_at_write_fsync_and_close_and_not_to_others(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    async with world(tmp_path / "small", make_process=lambda: in_namespace(tmp_path, SMALL)) as w:
        handle, entry = await w.create("file")
        other = await w.open(entry.st_ino, os.O_RDWR)
        await w.operations.write(handle, 0, bytes(KERNEL_BYTES))  # accepted
        assert await refused(w.operations.flush(handle)) == "ENOSPC"
        for _ in range(2):
            assert await refused(w.operations.write(handle, 0, b"x")) == "ENOSPC"
            assert await refused(w.operations.fsync(handle, False)) == "ENOSPC"
            assert await refused(w.operations.flush(handle)) == "ENOSPC"
        await w.operations.flush(other)
        await w.operations.fsync(other, False)
        await w.operations.release(handle)
        await w.setattr(entry.st_ino, size=0)
        await w.operations.write(other, 0, b"fits")
        await w.operations.flush(other)
        await w.operations.release(other)
        again = await w.open(entry.st_ino, os.O_RDWR)
        await w.operations.write(again, 4, b" too")
        await w.operations.flush(again)
        assert bytes(await w.operations.read(again, 0, 100)) == b"fits too"
        await w.operations.release(again)


@in_trio
async def test_a_loss_that_a_program_was_told_of_is_no_news_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    async with world(tmp_path / "small", make_process=lambda: in_namespace(tmp_path, SMALL)) as w:
        handle, _ = await w.create("file")
        await w.operations.write(handle, 0, bytes(KERNEL_BYTES))
        assert await refused(w.operations.flush(handle)) == "ENOSPC"
        assert w.operations.give_up() == []
        await w.operations.release(handle)


@in_trio
async def test_a_thousand_refused_writes_keep_no_data(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    async with world(tmp_path / "small", make_process=lambda: in_namespace(tmp_path, SMALL)) as w:
        handle, entry = await w.create("file")
        await w.operations.write(handle, 0, bytes(KERNEL_BYTES))
        assert await refused(w.operations.flush(handle)) == "ENOSPC"
        for _ in range(1000):
            assert await refused(w.operations.write(handle, 0, bytes(10))) == "ENOSPC"
        assert w.names.memory.dirty.used_bytes == 0
        (file,) = w.inode(entry.st_ino).files or []
        depth, error = 0, file.writer.error  # type: ignore[attr-defined]
        traceback = error.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        assert depth < 20
        await w.operations.release(handle)


@in_trio
async def test_at_the_end_what_was_accepted_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for number in range(5):
            handle, _ = await w.create(f"file{number}")
            await w.operations.write(handle, 0, b"accepted")
            await w.operations.write(handle, 8, b" and more")
        await w.operations.settle(5)
        found = {(tmp_path / f"file{number}").read_bytes() for number in range(5)}
        assert found == {b"accepted and more"}


# -- memory -----------------------------------------------------------------------------------------------------------


async def read_all(w: World, handle: int, size: int) -> None:
    for offset in range(0, size, KERNEL_BYTES):
        assert len(await w.operations.read(handle, offset, KERNEL_BYTES)) == KERNEL_BYTES


@in_trio
async def test_what_files_hold_is_given_back_when_they_are_closed(tmp_path: Path) -> None:
    size = 4 << 20
    for number in range(6):
        with (tmp_path / str(number)).open("wb") as sparse:
            sparse.truncate(size)
    async with world(tmp_path) as w:
        handles = [await w.open(await w.number(str(number))) for number in range(6)]
        async with trio.open_nursery() as nursery:
            for handle in handles:
                nursery.start_soon(read_all, w, handle, size)
        budget = w.names.memory.read
        assert 0 < budget.used_bytes <= budget.total_bytes
        for handle in handles:
            await w.operations.release(handle)
        assert budget.used_bytes == 0
        assert w.names.memory.dirty.used_bytes == 0


@in_trio
async def test_a_file_changed_elsewhere_while_it_is_open_is_seen_in_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    async with world(tmp_path, still=True) as w:
        number = await w.number("file")
        handle = await w.open(number)
        with path.open("ab") as other:
            other.write(b"6789")
        w.jump(30)
        assert (await w.getattr(number)).st_size == 9
        assert bytes(await w.operations.read(handle, 0, 100))[5:] in (b"6789", b"")
        assert bytes(await w.operations.read(handle, 5, 100)) == b"6789"
        await w.operations.release(handle)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
@in_trio
async def test_every_handle_is_given_back_to_the_server(tmp_path: Path, flags: int) -> None:
    (tmp_path / "file").write_bytes(b"x")
    async with world(tmp_path) as w:
        number = await w.number("file")
        for _ in range(100):
            await w.operations.release(await w.open(number, flags))
        assert await handles_left_open(await w.link.client()) <= 1
        assert w.inode(number).files is None
        assert w.inode(ROOT_NUMBER).files is None


@in_trio
async def test_a_handle_that_comes_too_late_is_given_back(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    """Nobody waits for it any more, and a server has only so many."""
    expect_log("giving up on")
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        number = await w.number("file")
        client = await w.link.client()
        client.deadline_s, patient_s = 0.5, client.deadline_s
        w.process.pause()
        assert await refused(w.open(number)) == "EIO"
        assert await refused(w.create("new")) == "EIO"
        assert await refused(w.operations.opendir(ROOT_NUMBER, CTX)) == "EIO"
        client.deadline_s = patient_s
        w.process.resume()
        await client.settled(client.submit(sftp.Lstat(b"/"))[0])  # behind the late answers
        assert await handles_left_open(client) == 0


@in_trio
async def test_fsync_tells_of_what_another_descriptor_writes_meanwhile(tmp_path: Path) -> None:
    """A mapping is written back through any of them, and it is fsync that msync comes to."""
    (tmp_path / "small").mkdir()
    async with world(tmp_path / "small", make_process=lambda: in_namespace(tmp_path, SMALL)) as w:
        handle, entry = await w.create("file")
        other = await w.open(entry.st_ino, os.O_RDWR)
        w.process.pause()
        await w.operations.write(handle, 0, bytes(KERNEL_BYTES))
        async with trio.open_nursery() as nursery:

            async def sync() -> None:
                assert await refused(w.operations.fsync(other, False)) == "ENOSPC"

            nursery.start_soon(sync)
            await trio.testing.wait_all_tasks_blocked()
            w.process.resume()
        assert await refused(w.operations.flush(handle)) == "ENOSPC"
        await w.operations.flush(other)
        for each in (handle, other):
            await w.operations.release(each)


@in_trio
async def test_fsync_tells_once_of_what_failed_before_through_another_descriptor(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    async with world(tmp_path / "small", make_process=lambda: in_namespace(tmp_path, SMALL)) as w:
        handle, entry = await w.create("file")
        other = await w.open(entry.st_ino, os.O_RDWR)
        await w.operations.write(handle, 0, bytes(KERNEL_BYTES))
        writer = w.operations._files[handle].writer
        assert writer is not None
        await writer.settled()
        assert await refused(w.operations.fsync(other, False)) == "ENOSPC"
        await w.operations.fsync(other, False)
        assert await refused(w.operations.flush(handle)) == "ENOSPC"
        for each in (handle, other):
            await w.operations.release(each)


@in_trio
async def test_fsync_asks_nothing_about_a_descriptor_that_was_closed_meanwhile(
    tmp_path: Path, allow_log: Callable[[str], None]
) -> None:
    """Its handle is the next file's."""
    allow_log("may be lost")
    (tmp_path / "small").mkdir()
    async with world(tmp_path / "small", make_process=lambda: in_namespace(tmp_path, SMALL)) as w:
        handle, entry = await w.create("file")
        other = await w.open(entry.st_ino, os.O_RDWR)
        w.process.pause()
        await w.operations.write(handle, 0, bytes(KERNEL_BYTES))
        async with trio.open_nursery() as nursery:

            async def sync() -> None:
                assert await refused(w.operations.fsync(other, False)) == "EIO"

            nursery.start_soon(sync)
            await trio.testing.wait_all_tasks_blocked()
            await w.operations.release(handle)
            w.asked()
            w.process.resume()
        assert w.asked() == []
        await w.operations.release(other)
