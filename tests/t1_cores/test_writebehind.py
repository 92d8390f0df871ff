"""Writing behind to the real sftp-server: what is sent, in which pieces, in which order, and how much of it waits."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from sshmuxfs.io import plan
from sshmuxfs.io.plan import KIB, MIB
from sshmuxfs.io.writebehind import Dirty, WriteBehind
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import ChannelLost, Client
from sshmuxfs.sftp.pace import Pace
from sshmuxfs.sftp.protocol import OpenFlag
from tests.support.sftp_process import SftpProcess, in_trio, real_channel

BLOCK_BYTES = 255 * KIB
KERNEL_WRITE_BYTES = 128 * KIB


class Writing:
    """A file open for writing on the real server."""

    def __init__(self, client: Client, process: SftpProcess, path: Path, handle: bytes) -> None:
        self.client = client
        self.process = process
        self.path = path
        self.handle = handle
        self.dirty = Dirty()
        self.writer = WriteBehind(client, handle, self.dirty)

    def sent(self) -> list[tuple[int, int]]:
        """Offset and length of the WRITEs sent so far."""
        writes = (request for request in self.process.stream.requests() if isinstance(request, sftp.Write))
        return [(write.offset, len(write.data)) for write in writes]


@asynccontextmanager
async def writing(path: Path, *, max_write_bytes: int | None = None) -> AsyncIterator[Writing]:
    async with real_channel(max_write_bytes=max_write_bytes) as (client, process):
        flags = OpenFlag.READ | OpenFlag.WRITE | OpenFlag.CREAT | OpenFlag.TRUNC
        handle = await client.open(str(path).encode(), flags)
        process.stream.forget()
        yield Writing(client, process, path, handle)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@in_trio
async def test_the_first_write_goes_out_at_once(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        await file.writer.write(0, b"first")
        assert file.sent() == [(0, 5)]
        assert file.writer.pending_bytes == 5
        file.process.resume()
        await file.writer.drain()
        assert file.path.read_bytes() == b"first"
        assert file.writer.pending_bytes == file.dirty.used_bytes == 0


@pytest.mark.parametrize("size", [1, 4096, 30_000, KERNEL_WRITE_BYTES])
@in_trio
async def test_those_that_follow_are_joined_to_full_blocks(tmp_path: Path, size: int) -> None:
    count = min(3000, plan.NEAR_WRITE_WINDOW_BYTES // size)
    whole = content(count * size)
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        for at in range(0, len(whole), size):
            await file.writer.write(at, whole[at : at + size])
        full, rest = divmod(len(whole) - size, BLOCK_BYTES)
        blocks = [(0, size)] + [(size + number * BLOCK_BYTES, BLOCK_BYTES) for number in range(full)]
        file.process.resume()
        await file.writer.drain()  # sends the rest, before it waits for anything
        assert file.sent() == blocks + ([(len(whole) - rest, rest)] if rest else [])
        assert file.path.read_bytes() == whole


@in_trio
async def test_each_write_is_told_of_as_it_is_sent_and_not_as_it_is_accepted(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        told: list[list[tuple[int, int]]] = []
        file.writer.on_sent = lambda: told.append(file.sent())
        file.process.pause()
        for offset in range(4):
            await file.writer.write(offset, b"x")
        assert told == [[(0, 1)]]
        file.process.resume()
        await file.writer.drain()
        assert told == [[(0, 1)], [(0, 1), (1, 3)]]


@in_trio
async def test_a_write_greater_than_a_block_is_cut(tmp_path: Path) -> None:
    whole = content(MIB)
    async with writing(tmp_path / "file") as file:
        await file.writer.write(0, whole)
        await file.writer.drain()
        assert file.sent() == list(plan.blocks(0, MIB, BLOCK_BYTES))
        assert file.path.read_bytes() == whole


@in_trio
async def test_the_pieces_are_sent_from_where_they_lie(tmp_path: Path) -> None:
    """What waits holds the very objects that were accepted: no copy of a large write is made."""
    async with writing(tmp_path / "file") as file:
        file.process.stream.hold()
        pieces = [content(KERNEL_WRITE_BYTES) for _ in range(6)]
        for number, piece in enumerate(pieces):
            await file.writer.write(number * KERNEL_WRITE_BYTES, piece)
        owners = {id(each.obj if isinstance(each, memoryview) else each) for each in file.client._outgoing}
        assert sum(1 for piece in pieces if id(piece) in owners) >= 5
        file.process.stream.let_go()
        await file.writer.drain()
        assert file.path.read_bytes() == b"".join(pieces)


@in_trio
async def test_a_write_somewhere_else_sends_what_waits_first(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        for offset, data in ((0, b"aa"), (2, b"bb"), (4, b"cc"), (100, b"dd"), (102, b"ee"), (50, b"ff")):
            await file.writer.write(offset, data)
        assert file.sent() == [(0, 2), (2, 4), (100, 4)]
        file.writer.submit()
        assert file.sent() == [(0, 2), (2, 4), (100, 4), (50, 2)]
        file.process.resume()
        await file.writer.drain()
        expected = bytearray(104)
        expected[:6], expected[50:52], expected[100:] = b"aabbcc", b"ff", b"ddee"
        assert file.path.read_bytes() == expected


@in_trio
async def test_of_writes_to_the_same_place_the_last_wins(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        for text in (b"one", b"two", b"six"):
            await file.writer.write(0, text)
        await file.writer.write(1, b"--")
        file.process.resume()
        await file.writer.drain()
        assert file.path.read_bytes() == b"s--"


@in_trio
async def test_an_empty_write_is_no_write(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        await file.writer.write(0, b"")
        await file.writer.write(7, b"x")
        await file.writer.write(8, b"")
        await file.writer.drain()
        assert file.sent() == [(7, 1)]
        assert file.dirty.used_bytes == 0


@in_trio
async def test_what_was_submitted_is_seen_by_the_next_question(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        for number in range(10):
            await file.writer.write(number * 1000, bytes(1000))
        file.process.resume()
        file.writer.submit()
        assert (await file.client.fstat(file.handle)).size == 10_000


@pytest.mark.parametrize("near", [True, False])
@in_trio
async def test_a_writer_waits_when_its_window_is_full(tmp_path: Path, near: bool) -> None:
    async with writing(tmp_path / "file") as file:
        if near:
            while not file.client.pace.near:
                await file.client.fstat(file.handle)
        else:
            file.client.pace = Pace()
        file.process.pause()
        accepted = 0

        async def write_on() -> None:
            nonlocal accepted
            for number in range(100):
                await file.writer.write(number * KERNEL_WRITE_BYTES, bytes(KERNEL_WRITE_BYTES))
                accepted += KERNEL_WRITE_BYTES

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            await trio.testing.wait_all_tasks_blocked()
            assert accepted == plan.write_window_bytes(near=near)
            assert file.writer.pending_bytes == file.dirty.used_bytes == accepted + KERNEL_WRITE_BYTES
            file.process.resume()
        assert accepted == 100 * KERNEL_WRITE_BYTES
        await file.writer.drain()
        assert file.path.stat().st_size == accepted
        assert file.dirty.used_bytes == 0


@in_trio
async def test_the_bound_of_all_files_holds_each_of_them(tmp_path: Path) -> None:
    async with writing(tmp_path / "one") as file:
        handle = await file.client.open(str(tmp_path / "other").encode(), OpenFlag.WRITE | OpenFlag.CREAT)
        dirty = Dirty(total_bytes=300_000)
        writers = [WriteBehind(file.client, each, dirty) for each in (file.handle, handle)]
        file.process.pause()
        written = [0, 0]

        async def write_on(number: int) -> None:
            for at in range(20):
                await writers[number].write(at * 50_000, bytes(50_000))
                written[number] += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on, 0)
            nursery.start_soon(write_on, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert dirty.used_bytes <= 300_000 + 2 * 50_000
            assert 0 < sum(written) <= 6
            file.process.resume()
        for writer in writers:
            await writer.drain()
        assert written == [20, 20]
        assert dirty.used_bytes == 0
        assert [(tmp_path / name).stat().st_size for name in ("one", "other")] == [10**6, 10**6]


@in_trio
async def test_a_full_bound_never_holds_who_has_nothing_under_way(tmp_path: Path) -> None:
    """The bytes of another file that stalls must not stop this one for ever."""
    async with writing(tmp_path / "file") as file:
        dirty = Dirty(total_bytes=10)
        dirty.used_bytes += 1000  # some other file's
        writer = WriteBehind(file.client, file.handle, dirty)
        for number in range(5):
            await writer.write(number, b"x")
        await writer.drain()
        assert file.path.read_bytes() == b"xxxxx"
        assert dirty.used_bytes == 1000


@pytest.mark.parametrize("seed", range(4))
@in_trio
async def test_any_writes_in_any_order_leave_what_a_plain_file_would_hold(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    expected = bytearray()
    async with writing(tmp_path / "file", max_write_bytes=700) as file:
        offset = 0
        for _ in range(400):
            if chance.random() < 0.2:
                offset = chance.randrange(20_000)
            data = chance.randbytes(chance.choice([1, 10, 512, 699, 700, 701, 5000]))
            await file.writer.write(offset, data)
            if len(expected) < offset:
                expected += bytes(offset - len(expected))
            expected[offset : offset + len(data)] = data
            offset += len(data)
            if chance.random() < 0.05:
                file.writer.submit()
            if chance.random() < 0.02:
                await file.writer.drain()
                assert file.path.read_bytes() == expected
        await file.writer.drain()
        assert file.path.read_bytes() == expected
        assert max(length for _, length in file.sent()) <= 700
        assert file.writer.pending_bytes == file.dirty.used_bytes == 0


@in_trio
async def test_ten_thousand_tiny_writes_are_a_few_requests(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        for number in range(10_000):
            await file.writer.write(number * 7, b"%07d" % number)
        file.process.resume()
        await file.writer.drain()
        assert len(file.sent()) == 2
        assert file.process.stream.sends <= 4
        assert file.path.read_bytes() == b"".join(b"%07d" % number for number in range(10_000))


@in_trio
async def test_what_was_accepted_is_lost_with_the_channel_and_that_is_told(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        for number in range(8):
            await file.writer.write(number * KERNEL_WRITE_BYTES, bytes(KERNEL_WRITE_BYTES))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lost_in_drain, file)
                await trio.testing.wait_all_tasks_blocked()
                file.process.kill()
        for _ in range(2):
            with pytest.raises(ChannelLost):
                await file.writer.write(0, b"more")
            with pytest.raises(ChannelLost):
                await file.writer.drain()
        file.writer.submit()
        assert file.writer.pending_bytes == file.dirty.used_bytes == 0


async def lost_in_drain(file: Writing) -> None:
    with pytest.raises(ChannelLost):
        await file.writer.drain()


@in_trio
async def test_a_writer_that_waits_for_room_hears_of_the_loss(tmp_path: Path) -> None:
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        heard = trio.Event()

        async def write_on() -> None:
            try:
                for number in range(100):
                    await file.writer.write(number * KERNEL_WRITE_BYTES, bytes(KERNEL_WRITE_BYTES))
            except ChannelLost:
                heard.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            await trio.testing.wait_all_tasks_blocked()
            assert not heard.is_set()
            file.process.kill()
            with trio.fail_after(20):
                await heard.wait()
        assert file.dirty.used_bytes == 0


@in_trio
async def test_a_drain_does_not_wait_for_what_is_accepted_after_it_began(tmp_path: Path) -> None:
    """Or who writes all the time would keep it from ever ending."""
    async with writing(tmp_path / "file") as file:
        file.process.pause()
        before = content(4 * KERNEL_WRITE_BYTES)
        await file.writer.write(0, before)
        drained = trio.Event()

        async def write_on() -> None:
            offset = len(before)
            while not drained.is_set():
                await file.writer.write(offset, bytes(KERNEL_WRITE_BYTES))
                offset += KERNEL_WRITE_BYTES
                await trio.lowlevel.checkpoint()
            assert offset > len(before)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_on)
                await trio.testing.wait_all_tasks_blocked()
                file.process.resume()
                await file.writer.drain()
                drained.set()
        assert file.path.read_bytes()[: len(before)] == before
        await file.writer.drain()
