"""Reading ahead from a server that answers as it likes: short, late, with errors, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sshmuxfs.io.plan import KIB, MIB, Budget
from sshmuxfs.io.readahead import ReadAhead
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import ChannelLost, Client, RequestTimeout
from sshmuxfs.sftp.protocol import Attributes, Status, StatusError
from tests.support.sftp_process import Peer, eventually, in_trio, scripted_channel
from tests.t1_cores import replies

SAFE_BYTES = 32 * KIB  # of one READ, where the server names no limit
CONTENT = bytes(range(1, 251)) * 100


class Answering:
    """A reader of a file known to be of `known_bytes`, and the peer that answers."""

    def __init__(self, client: Client, peer: Peer, known_bytes: int) -> None:
        self.client = client
        self.peer = peer
        self.known_bytes = known_bytes
        self.budget = Budget(8 * MIB)
        self.reader = ReadAhead(client, b"h", lambda: self.known_bytes, self.budget, ahead=True)
        self.answers: dict[str, bytes | Exception] = {}

    async def take(self, name: str, offset: int, size: int) -> None:
        """Read, and note what came of it under `name`."""
        try:
            self.answers[name] = bytes(await self.reader.read(offset, size))
        except Exception as error:
            self.answers[name] = error

    async def tell_size(self, size: int) -> None:
        """Answer the question how long the file is, which has to come next."""
        request_id, request = await self.peer.request()
        assert isinstance(request, sftp.Fstat)
        await self.peer.send(replies.attributes(request_id, Attributes(size=size)))


@asynccontextmanager
async def answering(
    known_bytes: int, *, block_bytes: int = 1000, deadline_s: float = 10.0
) -> AsyncIterator[tuple[Answering, trio.Nursery]]:
    channel = scripted_channel(replies.version(), max_read_bytes=block_bytes, deadline_s=deadline_s)
    async with channel as (client, peer), trio.open_nursery() as nursery:
        yield Answering(client, peer, known_bytes), nursery
        nursery.cancel_scope.cancel()


async def told(file: Answering, *names: str) -> None:
    """Wait until these have their answer."""
    await eventually(lambda: all(name in file.answers for name in names))


@in_trio
async def test_a_short_answer_is_not_the_end_and_the_rest_is_asked_for() -> None:
    async with answering(1000) as (file, nursery):
        nursery.start_soon(file.take, "all", 0, 1000)
        at = 0
        for count in (300, 1, 600, 99):
            request_id, offset, length = await file.peer.read()
            assert (offset, length) == (at, 1000 - at)
            await file.peer.send(replies.data(request_id, CONTENT[at : at + count]))
            at += count
        await told(file, "all")
        assert file.answers["all"] == CONTENT[:1000]
        assert await file.peer.silent()


@in_trio
async def test_a_short_answer_at_the_known_end_is_the_end() -> None:
    """No question more: the file was known to end there (and may have been cut since the question went out)."""
    async with answering(1000) as (file, nursery):
        nursery.start_soon(file.take, "all", 0, 1000)
        request_id, _, _ = await file.peer.read()
        file.known_bytes = 600
        await file.peer.send(replies.data(request_id, CONTENT[:600]))
        await told(file, "all")
        assert file.answers["all"] == CONTENT[:600]
        assert await file.peer.silent()


@pytest.mark.parametrize("count", [0, 1, 999])
@in_trio
async def test_the_servers_word_that_it_ends_within_the_known_size_is_the_end(count: int) -> None:
    async with answering(3000) as (file, nursery):
        nursery.start_soon(file.take, "all", 0, 3000)
        asked = [await file.peer.read() for _ in range(3)]
        assert [(offset, length) for _, offset, length in asked] == [(0, 1000), (1000, 1000), (2000, 1000)]
        first, second, third = (request_id for request_id, _, _ in asked)
        if count:
            await file.peer.send(
                replies.data(first, CONTENT[:1000]), replies.data(second, CONTENT[1000 : 1000 + count])
            )
            await file.peer.send(replies.status(third, Status.EOF))
            rest_id, offset, length = await file.peer.read()
            assert (offset, length) == (1000 + count, 1000 - count)
            await file.peer.send(replies.status(rest_id, Status.EOF))
        else:
            await file.peer.send(replies.data(first, CONTENT[:1000]))
            await file.peer.send(replies.status(second, Status.EOF), replies.status(third, Status.EOF))
        await file.tell_size(1000 + count)
        await told(file, "all")
        assert file.answers["all"] == CONTENT[: 1000 + count]


@in_trio
async def test_an_end_that_is_none_is_an_error() -> None:
    """The server says that the file ends, and that it goes on: nothing was read then."""
    async with answering(3000) as (file, nursery):
        nursery.start_soon(file.take, "all", 0, 1000)
        asked = [(await file.peer.read())[0] for _ in range(3)]
        await file.peer.send(*(replies.status(request_id, Status.EOF) for request_id in asked))
        await file.tell_size(3000)
        await told(file, "all")
        assert isinstance(file.answers["all"], StatusError)
        assert file.budget.used_bytes == 0


@in_trio
async def test_an_end_where_the_file_is_known_to_end_takes_no_question() -> None:
    async with answering(1500) as (file, nursery):
        nursery.start_soon(file.take, "all", 0, 4000)
        for _ in range(2):
            request_id, offset, length = await file.peer.read()
            await file.peer.send(replies.data(request_id, CONTENT[offset : offset + length]))
        await told(file, "all")
        assert file.answers["all"] == CONTENT[:1500]
        assert await file.peer.silent()


@in_trio
async def test_what_is_written_behind_the_end_while_it_is_read_is_not_missing() -> None:
    """As `tail -f` sees it where the page cache is passed by: the READ was before the WRITE."""
    async with answering(1500) as (file, nursery):
        nursery.start_soon(file.take, "end", 1500, 1000)
        request_id, offset, _ = await file.peer.read()
        file.known_bytes = 3000
        await file.peer.send(replies.status(request_id, Status.EOF))
        await told(file, "end")
        assert (offset, file.answers["end"]) == (1500, b"")
        assert await file.peer.silent()


@pytest.mark.parametrize("failing", [0, 1, 2])
@in_trio
async def test_a_read_that_fails_is_an_error_and_never_a_short_file(failing: int) -> None:
    async with answering(3000) as (file, nursery):
        broken = True

        async def answer() -> None:
            while True:
                request_id, offset, length = await file.peer.read()
                good = replies.data(request_id, CONTENT[offset : offset + length])
                bad = replies.status(request_id, Status.FAILURE)
                await file.peer.send(bad if broken and offset == failing * 1000 else good)

        nursery.start_soon(answer)
        nursery.start_soon(file.take, "first", 0, 3000)
        await told(file, "first")
        error = file.answers["first"]
        assert isinstance(error, StatusError)
        assert error.code == Status.FAILURE
        assert file.budget.used_bytes == 0
        broken = False
        nursery.start_soon(file.take, "again", 0, 3000)
        await told(file, "again")
        assert file.answers["again"] == CONTENT[:3000], "asked anew, not remembered"


@in_trio
async def test_an_error_behind_what_a_reader_asked_for_is_not_its_business() -> None:
    """Fetched ahead, and failed: who comes for it has it asked anew, and is told what comes of that."""
    async with answering(3000) as (file, nursery):
        nursery.start_soon(file.take, "head", 0, 1000)
        asked = [(await file.peer.read())[0] for _ in range(3)]
        await file.peer.send(replies.status(asked[1], Status.PERMISSION_DENIED))
        await file.peer.send(replies.data(asked[0], CONTENT[:1000]), replies.data(asked[2], CONTENT[:1000]))
        await told(file, "head")
        assert file.answers["head"] == CONTENT[:1000]
        for name in ("next", "after"):
            nursery.start_soon(file.take, name, 1000, 1000)
            request_id, offset, length = await file.peer.read()
            assert (offset, length) == (1000, 1000)
            failed, came = replies.status(request_id, Status.FAILURE), replies.data(request_id, b"x" * 1000)
            await file.peer.send(failed if name == "next" else came)
            await told(file, name)
        error = file.answers["next"]
        assert isinstance(error, StatusError)
        assert error.code == Status.FAILURE
        assert file.answers["after"] == b"x" * 1000


@in_trio
async def test_readers_of_the_same_piece_share_one_question() -> None:
    async with answering(1000) as (file, nursery):
        for name in ("one", "two", "three"):
            nursery.start_soon(file.take, name, 0, 1000)
        request_id, _, _ = await file.peer.read()
        assert await file.peer.silent()
        await file.peer.send(replies.data(request_id, CONTENT[:400]))
        request_id, offset, length = await file.peer.read()
        assert (offset, length) == (400, 600)
        assert await file.peer.silent()
        await file.peer.send(replies.data(request_id, CONTENT[400:1000]))
        await told(file, "one", "two", "three")
        assert set(file.answers.values()) == {CONTENT[:1000]}


@in_trio
async def test_readers_of_the_same_piece_all_hear_of_its_failure() -> None:
    async with answering(1000) as (file, nursery):
        for name in ("one", "two"):
            nursery.start_soon(file.take, name, 0, 1000)
        request_id, _, _ = await file.peer.read()
        assert await file.peer.silent()
        await file.peer.send(replies.status(request_id, Status.FAILURE))
        await told(file, "one", "two")
        assert all(isinstance(answer, StatusError) for answer in file.answers.values())


@in_trio
async def test_what_was_fetched_before_a_write_is_not_shown_after_it() -> None:
    async with answering(2000) as (file, nursery):
        nursery.start_soon(file.take, "before", 0, 1000)
        old = [(await file.peer.read())[0] for _ in range(2)]
        await file.peer.send(replies.data(old[0], b"o" * 1000))
        await told(file, "before")
        file.reader.invalidate()  # with a READ still in flight
        assert file.budget.used_bytes == 0
        nursery.start_soon(file.take, "after", 1000, 1000)
        request_id, offset, _ = await file.peer.read()
        assert offset == 1000
        await file.peer.send(replies.data(old[1], b"o" * 1000), replies.data(request_id, b"n" * 1000))
        await told(file, "after")
        assert file.answers == {"before": b"o" * 1000, "after": b"n" * 1000}


@in_trio
async def test_a_reader_that_waits_is_not_disturbed_when_its_memory_is_taken_for_another() -> None:
    async with answering(2000) as (file, nursery):
        nursery.start_soon(file.take, "slow", 0, 2000)
        asked = [(await file.peer.read())[0] for _ in range(2)]
        file.reader.give_back()
        await file.peer.send(replies.data(asked[0], CONTENT[:1000]), replies.data(asked[1], CONTENT[1000:2000]))
        await told(file, "slow")
        assert file.answers["slow"] == CONTENT[:2000]


@in_trio
async def test_how_far_ahead_of_a_stream_the_questions_go() -> None:
    """The head of a file costs a request of 128 KiB and as much again; then the window doubles with what was read."""
    async with answering(100 * MIB, block_bytes=SAFE_BYTES) as (file, nursery):
        nursery.start_soon(file.take, "a", 0, 128 * KIB)
        asked = [await file.peer.read() for _ in range(12)]
        assert await file.peer.silent()
        assert [(offset, length) for _, offset, length in asked] == [
            (at * SAFE_BYTES, SAFE_BYTES) for at in range(12)
        ]  # 128 KiB, and twice that
        for request_id, _, _ in asked:
            await file.peer.send(replies.data(request_id, bytes(SAFE_BYTES)))
        await told(file, "a")
        nursery.start_soon(file.take, "b", 128 * KIB, 128 * KIB)
        more = [await file.peer.read() for _ in range(12)]
        assert [offset for _, offset, _ in more] == [at * SAFE_BYTES for at in range(12, 24)]
        assert await file.peer.silent()  # up to 256 KiB and twice that


@in_trio
async def test_when_the_channel_dies_every_reader_hears_of_it_and_later_ones_too() -> None:
    async with answering(3000) as (file, nursery):
        nursery.start_soon(file.take, "first", 0, 1000)
        for _ in range(3):
            await file.peer.read()
        nursery.start_soon(file.take, "second", 1000, 1000)
        assert await file.peer.silent()
        file.peer.hang_up()
        await told(file, "first", "second")
        for name, offset in (("again", 0), ("elsewhere", 2500), ("once more", 0)):
            await file.take(name, offset, 500)
        assert len(file.answers) == 5
        assert all(isinstance(answer, ChannelLost) for answer in file.answers.values())
        file.reader.give_back()
        assert file.budget.used_bytes == 0


@in_trio
async def test_a_channel_that_dies_between_two_reads_of_a_run() -> None:
    """What was fetched is still right; what was not is an error, however often it is asked for."""
    async with answering(100_000) as (file, nursery):
        nursery.start_soon(file.take, "head", 0, 1000)
        asked = [await file.peer.read() for _ in range(100)]
        for request_id, _, length in asked:
            await file.peer.send(replies.data(request_id, bytes(length)))
        await told(file, "head")
        file.peer.hang_up()
        await eventually(lambda: file.client.lost is not None)
        for number in range(3):
            await file.take(f"beyond {number}", 90_000, 20_000)
            await file.take(f"elsewhere {number}", 200_000, 1000)
        failed = [answer for name, answer in file.answers.items() if name.startswith("elsewhere")]
        assert all(isinstance(answer, ChannelLost) for answer in failed)
        assert not any(isinstance(answer, AssertionError) for answer in file.answers.values())


@in_trio
async def test_a_server_that_says_nothing_is_given_up_on_and_its_late_answer_is_dropped(
    expect_log: Callable[[str], None],
) -> None:
    expect_log("giving up on 1 requests")
    async with answering(1000, deadline_s=0.5) as (file, nursery):
        nursery.start_soon(file.take, "first", 0, 1000)
        late, _, _ = await file.peer.read()
        await told(file, "first")
        assert isinstance(file.answers["first"], RequestTimeout)
        nursery.start_soon(file.take, "second", 0, 1000)
        request_id, _, _ = await file.peer.read()
        await file.peer.send(replies.data(late, b"o" * 1000), replies.data(request_id, CONTENT[:1000]))
        await told(file, "second")
        assert file.answers["second"] == CONTENT[:1000]


@in_trio
async def test_a_payload_that_stops_in_the_middle_is_given_up_on(expect_log: Callable[[str], None]) -> None:
    expect_log("giving up on 1 requests")
    async with answering(1000, deadline_s=0.5) as (file, nursery):
        nursery.start_soon(file.take, "first", 0, 1000)
        request_id, _, _ = await file.peer.read()
        reply = replies.data(request_id, CONTENT[:1000])
        await file.peer.send(reply[:500])
        await told(file, "first")
        assert isinstance(file.answers["first"], RequestTimeout)
        await file.peer.send(reply[500:])
        nursery.start_soon(file.take, "second", 0, 1000)
        request_id, _, _ = await file.peer.read()
        await file.peer.send(replies.data(request_id, CONTENT[:1000]))
        await told(file, "second")
        assert file.answers["second"] == CONTENT[:1000]
