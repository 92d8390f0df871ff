"""Channels that die, fall silent or cannot be opened: everybody is told in time, and the file system goes on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
import trio.testing

from mux.downstream.passenger import SessionStream
from mux.errors import ConnectionLost, ExitCode, JoinError, RemoteProtocolError
from sshmuxfs.session import FIRST_PAUSE_S
from sshmuxfs.sftp.client import Client
from sshmuxfs.tree.inodes import ROOT_NUMBER
from tests.support.sftp_process import Peer, SftpProcess, eventually, in_trio
from tests.t1_cores import replies
from tests.t3_operations.world import CTX, World, refused, world

ENDED = "the channel ended"
AGAIN = "a new channel is open"


async def outcomes(w: World, calls: list[Awaitable[Any]], happens: Callable[[], object]) -> list[str]:
    """Have all calls wait for the stopped server; let it happen; what each came to, soon."""
    found: list[str] = []

    async def run(call: Awaitable[Any]) -> None:
        found.append(await refused(call))

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        happens()
        await eventually(lambda: len(found) == len(calls), within_s=10)
    return found


async def lost(client: Client) -> None:
    """Wait until the channel has noticed its end."""
    await eventually(lambda: client.lost is not None)


@in_trio
async def test_when_the_server_dies_everybody_is_told_and_the_next_request_opens_a_new_channel(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log(ENDED)
    expect_log(AGAIN)
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number)
        writing, _ = await w.create("written")
        w.process.pause()
        calls: list[Awaitable[Any]] = [w.lookup(f"name{count}") for count in range(10)]
        calls += [w.operations.read(handle, 300_000 + 10_000 * count, 4096) for count in range(5)]
        calls += [w.operations.mkdir(ROOT_NUMBER, b"dir", 0o755, CTX), w.list(), w.operations.statfs(CTX)]
        await w.operations.write(writing, 0, b"accepted")
        calls.append(w.operations.flush(writing))
        found = await outcomes(w, calls, w.process.kill)
        assert set(found) == {"ENOTCONN", "EIO"}
        assert await w.contents(number) == bytes(1 << 20)
        assert await w.number("file") == number
        assert len(w.processes) == 2


@in_trio
async def test_nonsense_about_the_end_of_a_channel_ends_nothing_else(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    """On the control connection, where the exit status is due."""
    expect_log(ENDED)
    expect_log(AGAIN)
    (tmp_path / "file").write_bytes(b"content")
    async with world(tmp_path) as w:
        number = await w.number("file")
        nonsense = RemoteProtocolError("a message of 4 GiB")
        with mock.patch.object(w.process.stream._control, "poll", side_effect=nonsense) as said:
            w.process.kill()
            await lost(await w.link.client())
            assert await w.contents(number) == b"content"
            await eventually(lambda: said.called)
        assert len(w.processes) == 2


@in_trio
async def test_files_of_a_channel_that_died(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    expect_log(ENDED)
    expect_log(AGAIN)
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        await w.operations.write(handle, 0, b"on the server")
        await w.operations.flush(handle)
        w.process.kill()
        for _ in range(2):
            assert await refused(w.operations.read(handle, 0, 10)) in ("EIO", "ENOTCONN")
            assert await refused(w.operations.write(handle, 0, b"x")) == "EIO"
            assert await refused(w.operations.flush(handle)) == "EIO"
            assert await refused(w.operations.fsync(handle, False)) == "EIO"
        assert (await w.getattr(entry.st_ino)).st_size == 13
        assert (await w.setattr(entry.st_ino, mode=0o600)).st_size == 13
        assert (await w.setattr(entry.st_ino, size=6, fh=handle)).st_size == 6
        again = await w.open(entry.st_ino, os.O_RDWR)
        assert bytes(await w.operations.read(again, 0, 100)) == b"on the"
        await w.operations.write(again, 6, b" new")
        await w.operations.flush(again)
        for each in (handle, again):
            await w.operations.release(each)
        assert (tmp_path / "file").read_bytes() == b"on the new"
        assert w.names.memory.dirty.used_bytes == w.names.memory.read.used_bytes == 0


@in_trio
async def test_a_directory_that_was_being_read(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    expect_log(ENDED)
    expect_log(AGAIN)
    for number in range(400):
        (tmp_path / str(number)).touch()
    async with world(tmp_path) as w:
        handle = await w.operations.opendir(ROOT_NUMBER, CTX)
        first = await w.readdir(handle, 0, 50)
        referred = [inode for inode in w.tree._by_number.values() if inode.lookups]
        w.process.kill()
        assert await refused(w.readdir(handle, first.entries[-1][2])) == "ENOTCONN"
        # Nor did it tell of the names before the one that it had to wait for.
        assert [inode for inode in w.tree._by_number.values() if inode.lookups] == referred
        await w.operations.releasedir(handle)
        assert len(await w.list()) == 400


@in_trio
async def test_a_new_channel_is_opened_once_for_all_who_need_it(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log(ENDED)
    expect_log(AGAIN)
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        w.process.kill()
        client = await w.link.client()
        await lost(client)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(refused, w.lookup(f"name{number}"))
        assert len(w.processes) == 2
        await w.lookup("file")


@in_trio
async def test_a_channel_can_die_again_and_again(tmp_path: Path, allow_log: Callable[[str], None]) -> None:
    allow_log(ENDED)
    allow_log(AGAIN)
    (tmp_path / "file").touch()
    async with world(tmp_path) as w:
        for turn in range(10):
            w.process.kill()
            w.tree.distrust(w.tree.root, b"file")
            client = await w.link.client()
            await lost(client)
            await w.lookup("file")
            assert len(w.processes) == turn + 2


# -- silence ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def silence(w: World) -> AsyncIterator[Callable[[], None]]:
    """The server is stopped while the block runs; from a call of what is yielded till then the deadline is short.

    Before and after it is not: a busy machine is no silent server.
    """
    client = await w.link.client()
    patient_s = client.deadline_s

    def shorten() -> None:
        client.deadline_s = 1.0

    w.process.pause()
    try:
        yield shorten
    finally:
        client.deadline_s = patient_s
        w.process.resume()


@in_trio
async def test_silence_ends_in_errors_and_the_channel_goes_on_when_the_server_does(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("giving up on")
    (tmp_path / "file").write_bytes(b"content")
    async with world(tmp_path) as w:
        number = await w.number("file")
        handle = await w.open(number)
        calls: list[Awaitable[Any]] = [w.lookup(f"name{count}") for count in range(3)]
        calls += [w.operations.mkdir(ROOT_NUMBER, b"dir", 0o755, CTX), w.operations.statfs(CTX)]
        async with silence(w) as shorten:
            assert await outcomes(w, calls, shorten) == ["EIO"] * 5
        assert (await w.getattr(number)).st_size == 7
        assert bytes(await w.operations.read(handle, 0, 100)) == b"content"
        assert len(w.processes) == 1, "late answers are dropped, and the channel is the same"
        # The mkdir was done after all: what was in doubt is asked for.
        assert (await w.lookup("dir")).st_ino
        await w.operations.release(handle)


@in_trio
async def test_a_change_whose_outcome_is_unknown_is_asked_for(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("giving up on")
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    async with world(tmp_path) as w:
        for known in await w.list():
            await w.lookup(os.fsdecode(known))
        assert await refused(w.lookup("new")) == "ENOENT"
        calls: list[Awaitable[Any]] = [
            w.operations.unlink(ROOT_NUMBER, b"a", CTX),
            w.operations.rename(ROOT_NUMBER, b"b", ROOT_NUMBER, b"moved", 0, CTX),
            w.create("new"),
        ]
        async with silence(w) as shorten:
            assert await outcomes(w, calls, shorten) == ["EIO"] * 3
        assert await w.list() == {b"c", b"moved", b"new"}
        assert await refused(w.lookup("a")) == "ENOENT"
        assert await refused(w.lookup("b")) == "ENOENT"
        assert (await w.lookup("moved")).st_size == 1
        await w.lookup("new")


@in_trio
async def test_writes_that_met_silence(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    expect_log("giving up on")
    async with world(tmp_path) as w:
        handle, entry = await w.create("file")
        async with silence(w) as shorten:
            await w.operations.write(handle, 0, b"accepted")
            shorten()
            assert await refused(w.operations.flush(handle)) == "EIO"
        assert await refused(w.operations.write(handle, 8, b"more")) == "EIO"
        await w.operations.release(handle)
        assert (await w.getattr(entry.st_ino)).st_size == 8


# -- no connection ----------------------------------------------------------------------------------------------------


class Broken:
    """Starts a server as long as `works`; counts the attempts."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.works = True
        self.attempts = 0

    async def __call__(self, w: World) -> SessionStream:
        self.attempts += 1
        await trio.lowlevel.checkpoint()
        if not self.works:
            raise self.error
        w.processes.append(SftpProcess())
        return w.process.stream


async def is_lost(w: World) -> None:
    """The server dies, and the channel has noticed."""
    client = await w.link.client()
    w.process.kill()
    await lost(client)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("the master is gone"),
        JoinError("nothing to join", ExitCode.NOTHING_TO_JOIN),
        ConnectionRefusedError(111, "refused"),
    ],
)
@in_trio
async def test_without_a_connection_everybody_is_refused_at_once_and_few_attempts_are_made(
    tmp_path: Path, error: Exception, expect_log: Callable[[str], None]
) -> None:
    expect_log(ENDED)
    expect_log("no channel could be opened")
    expect_log(AGAIN)
    (tmp_path / "file").touch()
    opening = Broken(error)
    async with world(tmp_path, still=True, open_stream=opening) as w:
        assert opening.attempts == 1
        await is_lost(w)
        opening.works = False
        for number in range(30):
            assert await refused(w.lookup(f"name{number}")) == "ENOTCONN"
        assert opening.attempts == 2
        w.jump(FIRST_PAUSE_S + 0.01)
        for number in range(30):
            assert await refused(w.lookup(f"name{number}")) == "ENOTCONN"
        assert opening.attempts == 3, "each pause is longer than the one before"
        w.jump(FIRST_PAUSE_S + 0.01)
        assert await refused(w.lookup("file")) == "ENOTCONN"
        assert opening.attempts == 3
        opening.works = True
        w.jump(60)
        await w.lookup("file")
        assert opening.attempts == 4


@in_trio
async def test_an_attempt_that_hangs_holds_nobody_longer_than_the_deadline(
    tmp_path: Path, expect_log: Callable[[str], None], allow_log: Callable[[str], None]
) -> None:
    expect_log(ENDED)
    allow_log("no channel could be opened")
    hangs = False

    async def open_stream(w: World) -> SessionStream:
        if hangs:
            await trio.sleep_forever()
        w.processes.append(SftpProcess())
        return w.process.stream

    async with world(tmp_path, open_stream=open_stream, deadline_s=3.0) as w:
        await is_lost(w)
        hangs = True
        with trio.fail_after(13):  # one after the other they would take 15
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(refused, w.lookup(f"name{number}"))
        assert await refused(w.lookup("name")) == "ENOTCONN"


@pytest.mark.parametrize("greeting", [replies.version(2), b"Welcome!\r\n" * 9])
@in_trio
async def test_a_new_channel_that_does_not_speak_is_closed(
    tmp_path: Path, greeting: bytes, expect_log: Callable[[str], None]
) -> None:
    expect_log(ENDED)
    expect_log("no channel could be opened")
    peers: list[Peer] = []

    async def open_stream(w: World) -> SessionStream:
        if not w.processes:
            w.processes.append(SftpProcess())
            return w.process.stream
        peers.append(Peer())
        peers[-1].put_nowait(greeting)
        return peers[-1].stream

    async with world(tmp_path, open_stream=open_stream) as w:
        await is_lost(w)
        assert await refused(w.lookup("name")) == "ENOTCONN"
        assert len(peers) == 1
        with pytest.raises(ConnectionLost):
            peers[0].stream.send_nowait([b"x"])
        peers[0].hang_up()


@in_trio
async def test_a_new_channel_that_is_silent_after_its_greeting_is_closed(
    tmp_path: Path, expect_log: Callable[[str], None], allow_log: Callable[[str], None]
) -> None:
    expect_log(ENDED)
    allow_log("no channel could be opened")
    allow_log("giving up on 1 requests")
    peers: list[Peer] = []

    async def open_stream(w: World) -> SessionStream:
        if not w.processes:
            w.processes.append(SftpProcess())
            return w.process.stream
        peers.append(Peer())
        peers[-1].put_nowait(replies.version(3, [(b"limits@openssh.com", b"1")]))
        return peers[-1].stream

    async with world(tmp_path, open_stream=open_stream, deadline_s=3.0) as w:
        await is_lost(w)
        assert await refused(w.lookup("name")) == "ENOTCONN"
        with pytest.raises(ConnectionLost):
            peers[0].stream.send_nowait([b"x"])
        peers[0].hang_up()
