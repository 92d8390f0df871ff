"""Reading ahead from the real sftp-server: the right bytes, each asked for once, received where they are given out."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sshmuxfs.io import plan
from sshmuxfs.io.plan import KIB, MIB, Budget
from sshmuxfs.io.readahead import ReadAhead
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client
from sshmuxfs.sftp.protocol import StatusError
from tests.support.sftp_process import SftpProcess, Tap, in_trio, real_channel

KERNEL_READ_BYTES = 128 * KIB
BLOCK_BYTES = 255 * KIB


class Opened:
    """A file open on the real server, and what is read of it."""

    def __init__(self, client: Client, process: SftpProcess, handle: bytes, known_bytes: int, budget: Budget) -> None:
        self.client = client
        self.process = process
        self.handle = handle
        self.known_bytes: int | None = known_bytes
        self.budget = budget
        self.reader = self.another()

    def another(self, *, ahead: bool = True) -> ReadAhead:
        return ReadAhead(self.client, self.handle, lambda: self.known_bytes, self.budget, ahead=ahead)

    @property
    def tap(self) -> Tap:
        return self.process.stream

    def asked(self) -> list[tuple[int, int]]:
        """Offset and length of the READs sent so far."""
        reads = (request for request in self.tap.requests() if isinstance(request, sftp.Read))
        return [(read.offset, read.length) for read in reads]


@asynccontextmanager
async def opened(
    path: Path, *, total_bytes: int = plan.READ_BUDGET_BYTES, max_read_bytes: int | None = None
) -> AsyncIterator[Opened]:
    async with real_channel(max_read_bytes=max_read_bytes) as (client, process):
        handle = await client.open(str(path).encode(), sftp.OpenFlag.READ)
        process.stream.forget()
        size = os.stat(path).st_size
        yield Opened(client, process, handle, size, Budget(total_bytes))


def made(path: Path, size: int) -> bytes:
    """A file of `size` bytes, none like its neighbours."""
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    return content


async def read_through(reader: ReadAhead, size: int) -> bytes:
    """As the kernel reads a file: until an answer is short."""
    found = bytearray()
    while True:
        answer = await reader.read(len(found), size)
        assert len(answer) <= size
        found += answer
        if len(answer) < size:
            return bytes(found)


SIZES = [0, 1, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * MIB, 8 * BLOCK_BYTES + 7, 9 * MIB + 12345]


@pytest.mark.parametrize("size", SIZES)
@in_trio
async def test_a_stream_reads_the_whole_file_and_asks_for_every_byte_once(tmp_path: Path, size: int) -> None:
    content = made(tmp_path / "file", size)
    async with opened(tmp_path / "file") as file:
        assert await read_through(file.reader, KERNEL_READ_BYTES) == content
        asked = [each for each in file.asked() if each[0] < size]
        assert sorted(asked) == asked
        covered = 0
        for offset, length in asked:
            assert offset == covered
            covered += length
        assert covered == size
        assert len(asked) <= size // BLOCK_BYTES + 2 + size // plan.EXTENT_BYTES


@pytest.mark.parametrize("size", [1000, 4096, 100_000, 3 * MIB])
@in_trio
async def test_whatever_the_reader_takes_at_a_time(tmp_path: Path, size: int) -> None:
    content = made(tmp_path / "file", 2 * MIB + 777)
    async with opened(tmp_path / "file") as file:
        assert await read_through(file.reader, size) == content


@in_trio
async def test_an_answer_is_a_view_of_where_the_bytes_were_received(tmp_path: Path) -> None:
    made(tmp_path / "file", 12 * MIB)
    async with opened(tmp_path / "file") as file:
        answers = [await file.reader.read(at, KERNEL_READ_BYTES) for at in range(0, 8 * MIB, KERNEL_READ_BYTES)]
        joined = [answer for answer in answers if not isinstance(answer, memoryview)]
        owners = {id(answer.obj) for answer in answers if isinstance(answer, memoryview)}
        assert len(answers) == 64
        # Extents grow with the trust in the reader: 255 KiB, then twice what was read, up to 4 MiB.
        assert len(owners) <= 7
        assert len(joined) == len(owners) - 1, "only what spans two extents is put together"


@in_trio
async def test_a_read_in_the_middle_of_nowhere_asks_exactly_what_was_asked(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 4 * MIB)
    async with opened(tmp_path / "file") as file:
        for offset, size in ((MIB + 17, 4096), (3 * MIB, 4096), (2 * MIB, 600 * KIB)):
            assert await file.reader.read(offset, size) == content[offset : offset + size]
        assert file.asked() == [
            *((MIB + 17, 4096), (3 * MIB, 4096)),
            *((2 * MIB, BLOCK_BYTES), (2 * MIB + BLOCK_BYTES, BLOCK_BYTES), (2 * MIB + 2 * BLOCK_BYTES, 90 * KIB)),
        ]
        assert file.budget.used_bytes == 0


@in_trio
async def test_without_reading_ahead_every_read_is_its_own(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 300 * KIB)
    async with opened(tmp_path / "file") as file:
        reader = file.another(ahead=False)
        assert await read_through(reader, 100 * KIB) == content
        assert [each for each in file.asked() if each[0] < 300 * KIB] == [(at * KIB, 100 * KIB) for at in (0, 100, 200)]


@in_trio
async def test_the_kernels_readers_of_one_stream_may_overtake_each_other(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 3 * MIB)
    async with opened(tmp_path / "file") as file:
        found: dict[int, bytes] = {}

        async def take(offset: int) -> None:
            found[offset] = bytes(await file.reader.read(offset, KERNEL_READ_BYTES))

        offsets = list(range(0, 3 * MIB, KERNEL_READ_BYTES))
        for group in range(0, len(offsets), 4):
            async with trio.open_nursery() as nursery:
                for offset in random.Random(group).sample(offsets[group : group + 4], 4):
                    nursery.start_soon(take, offset)
        assert b"".join(found[offset] for offset in offsets) == content


@in_trio
async def test_a_file_shorter_than_known_ends_where_it_ends(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 300 * KIB)
    async with opened(tmp_path / "file") as file:
        file.known_bytes = MIB
        assert await read_through(file.reader, KERNEL_READ_BYTES) == content
        with pytest.raises(StatusError):  # behind that, where the kernel would take nothing for a file of zeros
            await file.reader.read(400 * KIB, 4096)
        file.known_bytes = 300 * KIB
        assert await file.reader.read(400 * KIB, 4096) == b""


@in_trio
async def test_a_file_longer_than_known_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 300 * KIB)
    async with opened(tmp_path / "file") as file:
        file.known_bytes = 100 * KIB
        assert await file.reader.read(0, 64 * KIB) == content[: 64 * KIB]
        assert await file.reader.read(100 * KIB, 64 * KIB) == content[100 * KIB : 164 * KIB]
        file.known_bytes = None
        assert await file.reader.read(200 * KIB, 200 * KIB) == content[200 * KIB :]
        file.known_bytes = 300 * KIB
        assert await read_through(file.reader, 64 * KIB) == content


@in_trio
async def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    """As `tail -f` does: the end is met, more is appended, and the reader goes on."""
    path = tmp_path / "file"
    content = made(path, 200 * KIB)
    async with opened(path) as file:
        assert await read_through(file.reader, KERNEL_READ_BYTES) == content
        with path.open("ab") as more:
            more.write(b"more")
        file.known_bytes = path.stat().st_size
        assert await file.reader.read(200 * KIB, 4096) == b"more"


@in_trio
async def test_nothing_is_read_by_a_read_of_nothing(tmp_path: Path) -> None:
    made(tmp_path / "file", 1000)
    async with opened(tmp_path / "file") as file:
        assert await file.reader.read(0, 0) == b""
        assert await file.reader.read(10, 0) == b""


@in_trio
async def test_the_head_is_asked_for_at_once_when_that_is_all_there_is(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 5000)
    async with opened(tmp_path / "file") as file:
        file.reader.begin()
        assert file.asked() == [(0, 5000)]
        assert await file.reader.read(0, KERNEL_READ_BYTES) == content
        assert file.asked() == [(0, 5000)]
        file.known_bytes = 0
        file.another().begin()
        file.known_bytes = 100 * MIB
        file.another().begin()
        file.known_bytes = None
        file.another().begin()
        assert file.asked() == [(0, 5000)]


@in_trio
async def test_any_reads_in_any_order_give_what_is_there(tmp_path: Path) -> None:
    """With small blocks and a small budget, so that runs begin, end and are taken away all the time."""
    content = made(tmp_path / "file", 100_000)
    async with opened(tmp_path / "file", total_bytes=3 * MIB, max_read_bytes=700) as file:
        for seed in range(20):
            chance = random.Random(seed)
            readers = [file.another() for _ in range(3)]
            offset = 0
            for _ in range(60):
                jump = chance.random() < 0.2
                offset = chance.randrange(105_000) if jump else offset
                size = chance.choice([1, 512, 700, 4096, 20_000])
                answer = await chance.choice(readers).read(offset, size)
                assert answer == content[offset : offset + size], (seed, offset, size)
                offset += len(answer)
                if chance.random() < 0.05:
                    chance.choice(readers).invalidate()
                assert file.budget.used_bytes <= 3 * MIB
            for reader in readers:
                reader.give_back()
            assert file.budget.used_bytes == 0


# -- memory -----------------------------------------------------------------------------------------------------------


@in_trio
async def test_a_long_stream_holds_a_window_and_no_more_and_gives_it_back(tmp_path: Path) -> None:
    size = 24 * MIB
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("r+b") as sparse:
        sparse.truncate(size)
    async with opened(tmp_path / "file") as file:
        most = 0
        for offset in range(0, size, KERNEL_READ_BYTES):
            assert len(await file.reader.read(offset, KERNEL_READ_BYTES)) == KERNEL_READ_BYTES
            most = max(most, file.budget.used_bytes)
        assert 0 < most <= plan.MAX_WINDOW_BYTES + 3 * plan.EXTENT_BYTES
        file.reader.give_back()
        assert file.budget.used_bytes == 0


@in_trio
async def test_many_streams_share_one_budget(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 3 * MIB)
    async with opened(tmp_path / "file", total_bytes=5 * MIB) as file:
        readers = [file.another() for _ in range(6)]
        found = [bytearray() for _ in readers]
        for offset in range(0, 3 * MIB, KERNEL_READ_BYTES):
            for reader, so_far in zip(readers, found, strict=True):
                so_far += await reader.read(offset, KERNEL_READ_BYTES)
                assert file.budget.used_bytes <= 5 * MIB
        assert all(each == content for each in found)


@in_trio
async def test_without_memory_a_read_is_answered_all_the_same(tmp_path: Path) -> None:
    content = made(tmp_path / "file", 3 * MIB)
    async with opened(tmp_path / "file", total_bytes=100) as file:
        assert await read_through(file.reader, KERNEL_READ_BYTES) == content
        assert file.budget.used_bytes == 0
