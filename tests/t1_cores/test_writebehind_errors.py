"""Writing behind to a server that refuses: what is told to whom, how often, and what is not sent any more."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from sshmuxfs.io.writebehind import Dirty, WriteBehind
from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import Client, RequestTimeout
from sshmuxfs.sftp.protocol import Status, StatusError
from tests.support.sftp_process import Peer, in_trio, scripted_channel
from tests.t1_cores import replies


class Refusing:
    def __init__(self, client: Client, peer: Peer) -> None:
        self.peer = peer
        self.client = client
        self.dirty = Dirty()
        self.writer = WriteBehind(client, b"h", self.dirty)

    async def written(self) -> tuple[int, int, bytes]:
        """Id, offset and data of the next request, which has to be a WRITE."""
        request_id, request = await self.peer.request()
        assert isinstance(request, sftp.Write)
        return request_id, request.offset, request.data


@asynccontextmanager
async def refusing(*, deadline_s: float = 10.0) -> AsyncIterator[Refusing]:
    async with scripted_channel(replies.version(), max_write_bytes=1000, deadline_s=deadline_s) as (client, peer):
        yield Refusing(client, peer)


def code(caught: pytest.ExceptionInfo[StatusError]) -> int:
    return caught.value.code


@in_trio
async def test_an_error_is_told_at_the_next_write_and_at_each_one_after_it() -> None:
    async with refusing() as file:
        await file.writer.write(0, b"a")
        request_id, _, _ = await file.written()
        await file.peer.send(replies.status(request_id, Status.FAILURE))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            with pytest.raises(StatusError) as caught:
                await file.writer.write(1, b"b")
            assert code(caught) == Status.FAILURE
        # Behind a write may stand the kernel, which writes a mapping back and tells nobody.
        before = file.writer.told
        for _ in range(3):
            with pytest.raises(StatusError) as caught:
                await file.writer.drain()
            assert code(caught) == Status.FAILURE
        assert (before, file.writer.told) == (False, True)
        assert file.writer.pending_bytes == file.dirty.used_bytes == 0
        assert await file.peer.silent()


@in_trio
async def test_an_error_is_told_to_who_waits_for_all_to_be_written() -> None:
    async with refusing() as file:
        await file.writer.write(0, b"a" * 3000)
        ids = [(await file.written())[0] for _ in range(3)]
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                with pytest.raises(StatusError):
                    await file.writer.drain()

            nursery.start_soon(drain)
            await file.peer.send(replies.status(ids[0]), replies.status(ids[1], Status.PERMISSION_DENIED))
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks, "what is under way may still fail or not: it is waited for"
            await file.peer.send(replies.status(ids[2]))
        assert file.dirty.used_bytes == 0


@in_trio
async def test_of_several_errors_the_first_is_told() -> None:
    async with refusing() as file:
        await file.writer.write(0, b"a" * 2000)
        ids = [(await file.written())[0] for _ in range(2)]
        await file.peer.send(replies.status(ids[0], Status.PERMISSION_DENIED), replies.status(ids[1], Status.FAILURE))
        with pytest.raises(StatusError) as caught:
            await file.writer.drain()
        assert code(caught) == Status.PERMISSION_DENIED


@in_trio
async def test_nothing_is_sent_behind_a_write_that_failed() -> None:
    async with refusing() as file:
        await file.writer.write(0, b"a")
        await file.writer.write(1, b"b")  # waits for company
        request_id, _, _ = await file.written()
        assert await file.peer.silent()
        await file.peer.send(replies.status(request_id, Status.FAILURE))
        await trio.testing.wait_all_tasks_blocked()
        file.writer.submit()
        assert await file.peer.silent()
        assert file.writer.pending_bytes == file.dirty.used_bytes == 0


@in_trio
async def test_what_waits_goes_out_when_all_on_the_way_is_acknowledged() -> None:
    async with refusing() as file:
        await file.writer.write(0, b"a")
        await file.writer.write(1, b"b")
        await file.writer.write(2, b"c")
        request_id, offset, data = await file.written()
        assert (offset, data) == (0, b"a")
        assert await file.peer.silent()
        await file.peer.send(replies.status(request_id))
        request_id, offset, data = await file.written()
        assert (offset, data) == (1, b"bc")
        await file.peer.send(replies.status(request_id))
        await file.writer.drain()
        assert file.dirty.used_bytes == 0


@in_trio
async def test_replies_in_any_order_settle_all() -> None:
    async with refusing() as file:
        await file.writer.write(0, b"a" * 5000)
        ids = [(await file.written())[0] for _ in range(5)]
        await file.peer.send(*(replies.status(request_id) for request_id in reversed(ids)))
        await file.writer.drain()
        assert file.writer.pending_bytes == file.dirty.used_bytes == 0


@in_trio
async def test_silence_is_an_error_as_any_other(expect_log: Callable[[str], None]) -> None:
    expect_log("giving up on 1 requests")
    async with refusing(deadline_s=0.2) as file:
        await file.writer.write(0, b"a")
        request_id, _, _ = await file.written()
        with pytest.raises(RequestTimeout):
            await file.writer.drain()
        await file.peer.send(replies.status(request_id))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(RequestTimeout):
            await file.writer.write(1, b"b")
        assert file.client.lost is None
        assert await file.peer.silent()


@in_trio
async def test_an_error_told_a_thousand_times_holds_no_more_than_told_once() -> None:
    """A program that goes on writing after an error: each refusal must not keep the data it refused alive."""
    async with refusing() as file:
        await file.writer.write(0, b"a")
        request_id, _, _ = await file.written()
        await file.peer.send(replies.status(request_id, Status.FAILURE))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(1000):
            with pytest.raises(StatusError):
                await file.writer.write(1, b"b")
        assert file.writer.error is not None
        assert len(list(traceback.walk_tb(file.writer.error.__traceback__))) < 20
