"""One SFTP channel in trio: its start, its order, its deadlines, and its end."""

from __future__ import annotations

import os
import pwd
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from sshmuxfs.sftp import protocol as sftp
from sshmuxfs.sftp.client import (
    BEST_BLOCK_BYTES,
    LAZY_S,
    SAFE_BLOCK_BYTES,
    ChannelLost,
    Client,
    RequestTimeout,
    describe,
)
from sshmuxfs.sftp.protocol import Attributes, OpenFlag, Request, Status, StatusError
from tests.support.sftp_process import Peer, SftpProcess, eventually, in_trio, real_channel, scripted_channel, serving
from tests.t1_cores import replies

LIMITS = [(b"limits@openssh.com", b"1")]

# -- the start --------------------------------------------------------------------------------------------------------


@in_trio
async def test_what_openssh_offers() -> None:
    async with real_channel() as (client, _):
        assert client.greeted
        assert (client.max_read_bytes, client.max_write_bytes) == (BEST_BLOCK_BYTES, BEST_BLOCK_BYTES)
        offered = {cls for name, cls in sftp.EXTENDED_REQUESTS.items() if name in client.extensions}
        assert {sftp.PosixRename, sftp.StatvfsPath, sftp.Hardlink, sftp.Fsync, sftp.Lsetstat} <= offered
        limits = await client.limits()
        assert limits.max_read_bytes == limits.max_write_bytes == BEST_BLOCK_BYTES


@in_trio
async def test_what_was_asked_for_by_option_caps_what_the_server_allows() -> None:
    async with real_channel(max_read_bytes=65536, max_write_bytes=4096) as (client, _):
        assert (client.max_read_bytes, client.max_write_bytes) == (65536, 4096)


@pytest.mark.parametrize(
    ("said", "read_bytes", "write_bytes"),
    [
        (None, SAFE_BLOCK_BYTES, SAFE_BLOCK_BYTES),  # it has no limits@openssh.com
        ((0, 0, 0, 0), SAFE_BLOCK_BYTES, SAFE_BLOCK_BYTES),  # it names none
        ((2**18, 2**17, 2**16, 0), 2**17, 2**16),
        ((2**64 - 1, 2**64 - 1, 2**64 - 1, 0), BEST_BLOCK_BYTES, BEST_BLOCK_BYTES),
        ((1, 1, 1, 1), 512, 512),
    ],
)
@in_trio
async def test_the_size_of_a_request(said: tuple[int, ...] | None, read_bytes: int, write_bytes: int) -> None:
    with Peer() as peer:
        async with serving(peer.stream) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.start)
            await peer.greet(replies.version(3, LIMITS if said else []))
            if said:
                request_id, request = await peer.request()
                assert request == sftp.GetLimits()
                await peer.send(replies.extended(request_id, struct.pack(">4Q", *said)))
            await trio.testing.wait_all_tasks_blocked()
            assert (client.max_read_bytes, client.max_write_bytes) == (read_bytes, write_bytes)


@in_trio
async def test_a_server_that_refuses_to_tell_its_limits_is_given_small_requests() -> None:
    with Peer() as peer:
        async with serving(peer.stream) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.start)
            await peer.greet(replies.version(3, LIMITS))
            request_id, _ = await peer.request()
            await peer.send(replies.status(request_id, Status.OP_UNSUPPORTED))
            await trio.testing.wait_all_tasks_blocked()
            assert client.max_read_bytes == SAFE_BLOCK_BYTES


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (replies.version(2), "speaks SFTP version 2"),
        (b"Welcome!\r\n" * 3, r"did not speak SFTP.*Welcome"),
        (replies.status(0), "did not speak SFTP"),
    ],
)
@in_trio
async def test_a_server_that_does_not_speak_it(greeting: bytes, message: str) -> None:
    with Peer() as peer:
        async with serving(peer.stream) as client, trio.open_nursery() as nursery:
            nursery.start_soon(peer.greet, greeting)
            with pytest.raises(ChannelLost, match=message):
                await client.start()
            assert client.broke_protocol
            assert not client.greeted


@in_trio
async def test_a_server_that_hangs_up_instead_of_a_greeting() -> None:
    with Peer() as peer:
        async with serving(peer.stream) as client:
            peer.hang_up()
            with pytest.raises(ChannelLost):
                await client.start()
            assert not client.greeted


@in_trio
async def test_a_server_that_says_nothing_at_all() -> None:
    with Peer() as peer:
        async with serving(peer.stream, deadline_s=0.1) as client:
            with pytest.raises(RequestTimeout, match=r"sent nothing for 0\.1 s"):
                await client.start()


# -- requests ---------------------------------------------------------------------------------------------------------


@in_trio
async def test_every_request_against_the_real_server(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    async with real_channel(SftpProcess(directory=tmp_path)) as (client, _):
        handle = await client.open(top + b"/file", OpenFlag.READ | OpenFlag.WRITE | OpenFlag.CREAT)
        await client.wait(client.submit_write(handle, 0, [b"con", memoryview(b"tent")], 7))
        assert (await client.fstat(handle)).size == 7
        buffer = bytearray(10)
        reads = client.submit_reads(handle, [(0, memoryview(buffer)[:3]), (3, memoryview(buffer)[3:])])
        assert [await client.wait(each) for each in reads] == [3, 4]
        assert bytes(buffer) == b"content\0\0\0"
        await client.fsync(handle)
        await client.call(sftp.Fsetstat(handle, Attributes(permissions=0o640, atime=7, mtime=8)))
        assert (await client.stat(top + b"/file"))[3:] == (0o100640, 7, 8)
        assert (await client.fstatvfs(handle)).namemax == (await client.statvfs(top)).namemax == 255
        client.close_nowait(handle)
        await client.call(sftp.Symlink(b"file", top + b"/link"))
        assert await client.readlink(top + b"/link") == b"file"
        await client.call(sftp.Lsetstat(top + b"/link", Attributes(atime=1, mtime=2)))
        assert (await client.lstat(top + b"/link"))[4:] == (1, 2)
        await client.call(sftp.Hardlink(top + b"/file", top + b"/second"))
        await client.call(sftp.PosixRename(top + b"/second", top + b"/third"))
        await client.call(sftp.Rename(top + b"/third", top + b"/fourth"))
        await client.call(sftp.Mkdir(top + b"/dir", Attributes(permissions=0o700)))
        assert (await client.lstat(top + b"/dir")).permissions == 0o040700
        listing = await client.call(sftp.Opendir(top))
        names = {entry.filename for entry in await client.call(sftp.Readdir(listing))}
        assert names == {b".", b"..", b"file", b"link", b"fourth", b"dir"}
        with pytest.raises(StatusError) as caught:
            await client.call(sftp.Readdir(listing))
        assert caught.value.code == Status.EOF
        for request in (sftp.Remove(top + b"/fourth"), sftp.Rmdir(top + b"/dir")):
            await client.call(request)
        assert await client.realpath(top + b"//./link") == top + b"/file"
        assert await client.expand_path(b"~") == await client.realpath(b".") == top  # where it was started
        assert await client.expand_path(b"~root") == os.fsencode(pwd.getpwnam("root").pw_dir)
        assert await client.users_groups_by_id([0, 4_000_000_000], [0]) == ([b"root", b""], [b"root"])
        assert sorted(os.listdir(tmp_path)) == ["file", "link"]


@in_trio
async def test_what_the_server_does_not_offer_is_not_asked() -> None:
    async with scripted_channel(replies.version()) as (client, peer):
        for request in (sftp.PosixRename(b"a", b"b"), sftp.StatvfsPath(b"/"), sftp.Fsync(b"h")):
            with pytest.raises(StatusError) as caught:
                await client.call(request)
            assert caught.value.code == Status.OP_UNSUPPORTED
        assert await peer.silent()


@in_trio
async def test_requests_submitted_together_are_sent_together_and_in_order(tmp_path: Path) -> None:
    async with real_channel() as (client, process):
        requests: list[Request] = [sftp.Lstat(b"/%d" % number) for number in range(300)]
        pending = client.submit(*requests)
        assert process.stream.sends == 1
        assert process.stream.requests() == requests
        for each in pending:
            with pytest.raises(StatusError):
                await client.wait(each)


@in_trio
async def test_more_than_the_stream_takes_at_once_follows_when_it_can(tmp_path: Path) -> None:
    """20 MB in a thousand pieces of all sizes, to a server that reads nothing for now."""
    chance = random.Random(1)
    pieces = [chance.randbytes(chance.choice([1, 100, 20_000, 60_000])) for _ in range(1000)]
    whole = b"".join(pieces)
    async with real_channel() as (client, process):
        handle = await client.open(os.fsencode(tmp_path / "file"), OpenFlag.WRITE | OpenFlag.CREAT)
        process.pause()
        offset, writes = 0, []
        for start in range(0, 1000, 4):
            batch = pieces[start : start + 4]
            length = sum(map(len, batch))
            writes.append(client.submit_write(handle, offset, batch, length))
            offset += length
        last = client.submit(sftp.Fstat(handle))[0]
        await trio.testing.wait_all_tasks_blocked()
        assert not any(each.done for each in writes)
        process.resume()
        assert (await client.wait(last)).size == len(whole)
        assert all(each.done and each.error is None for each in writes)
        assert (tmp_path / "file").read_bytes() == whole


@in_trio
async def test_several_may_wait_for_the_same_answer() -> None:
    async with scripted_channel(replies.version()) as (client, peer):
        pending = client.submit(sftp.Lstat(b"/"))[0]
        answers: list[Attributes] = []

        async def wait() -> None:
            answers.append(await client.wait(pending))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            request_id, _ = await peer.request()
            await peer.send(replies.attributes(request_id, Attributes(size=9)))
        assert answers == [Attributes(size=9)] * 3


@in_trio
async def test_a_waiter_that_is_cancelled_leaves_the_channel_whole() -> None:
    async with scripted_channel(replies.version()) as (client, peer):
        with trio.move_on_after(0.01):
            await client.lstat(b"/never")
        first, _ = await peer.request()
        pending = client.submit(sftp.Lstat(b"/now"))[0]
        second, _ = await peer.request()
        await peer.send(replies.attributes(first, Attributes(size=1)), replies.attributes(second, Attributes(size=2)))
        assert await client.wait(pending) == Attributes(size=2)


@in_trio
async def test_a_close_goes_out_with_the_next_request_or_soon(tmp_path: Path) -> None:
    async with real_channel() as (client, process):
        opens = [
            sftp.Open(os.fsencode(tmp_path / name), OpenFlag.WRITE | OpenFlag.CREAT, Attributes()) for name in "ab"
        ]
        handles = [await client.call(request) for request in opens]
        process.stream.forget()
        client.close_nowait(handles[0])
        assert process.stream.sends == 0
        await client.lstat(b"/")
        assert process.stream.requests() == [sftp.Close(handles[0]), sftp.Lstat(b"/")]
        assert process.stream.sends == 1
        process.stream.forget()
        client.close_nowait(handles[1])
        await eventually(lambda: process.stream.sent, within_s=100 * LAZY_S)
        assert process.stream.requests() == [sftp.Close(handles[1])]


# -- deadlines --------------------------------------------------------------------------------------------------------


@in_trio
async def test_silence_fails_who_waits_and_the_channel_goes_on(expect_log: Callable[[str], None]) -> None:
    expect_log("no answer for 1 s: giving up on 3 requests")
    async with real_channel() as (client, process):
        process.pause()
        usual_s, client.deadline_s = client.deadline_s, 1.0
        pending = client.submit(*(sftp.Lstat(b"/") for _ in range(3)))
        for each in pending:
            with pytest.raises(RequestTimeout):
                await client.wait(each)
        client.deadline_s = usual_s
        process.resume()
        assert (await client.lstat(b"/tmp")).permissions is not None  # behind three late answers that are dropped
        assert client.lost is None


@in_trio
async def test_while_bytes_come_nobody_is_given_up_on() -> None:
    """A long answer, byte by byte, that takes several deadlines."""
    async with scripted_channel(replies.version(), deadline_s=0.75) as (client, peer):
        pending = client.submit(sftp.Lstat(b"/"))[0]
        request_id, _ = await peer.request()
        reply = replies.attributes(request_id, Attributes(size=1, permissions=0o100644, atime=1, mtime=1))
        for at in range(len(reply)):
            await trio.sleep(0.06)
            await peer.send(reply[at : at + 1])
        assert (await client.wait(pending)).size == 1


@in_trio
async def test_a_request_that_younger_ones_overtook_fails_alone(expect_log: Callable[[str], None]) -> None:
    expect_log("giving up on 1 requests")
    async with scripted_channel(replies.version(), deadline_s=0.5) as (client, peer):
        forgotten = client.submit(sftp.Lstat(b"/forgotten"))[0]
        forgotten_id, _ = await peer.request()
        with trio.fail_after(20):
            while not forgotten.done:
                pending = client.submit(sftp.Lstat(b"/"))[0]
                request_id, _ = await peer.request()
                await peer.send(replies.attributes(request_id, Attributes()))
                assert await client.wait(pending) == Attributes()
                await trio.sleep(0.005)
        assert isinstance(forgotten.error, RequestTimeout)
        await peer.send(replies.attributes(forgotten_id, Attributes()))
        await trio.testing.wait_all_tasks_blocked()
        assert client.lost is None


@in_trio
async def test_a_server_that_takes_nothing_is_silent_too(expect_log: Callable[[str], None]) -> None:
    """The request never left: neither it nor those behind it may wait for ever."""
    expect_log("giving up on 2 requests")
    async with scripted_channel(replies.version(), deadline_s=0.5) as (client, peer):
        peer.stream.hold()
        pending = client.submit(sftp.Lstat(b"/"), sftp.Lstat(b"/"))
        for each in pending:
            with pytest.raises(RequestTimeout):
                await client.wait(each)
        peer.stream.let_go()
        late = [(await peer.request())[0] for _ in pending]
        await peer.send(*(replies.attributes(request_id, Attributes()) for request_id in late))
        again = client.submit(sftp.Lstat(b"/"))[0]
        request_id, _ = await peer.request()
        await peer.send(replies.attributes(request_id, Attributes(size=3)))
        assert await client.wait(again) == Attributes(size=3)


# -- the end ----------------------------------------------------------------------------------------------------------


async def all_hear_of_it(client: Client, end: Callable[[], object], message: str) -> None:
    """Several requests wait; `end` is done; each has ChannelLost long before its deadline, and so have later ones."""
    heard: list[str] = []

    async def wait() -> None:
        with pytest.raises(ChannelLost) as caught:
            await client.lstat(b"/")
        heard.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        end()
        await eventually(lambda: len(heard) == 5, within_s=10)
    assert all(message in each for each in heard)
    for _ in range(2):
        with pytest.raises(ChannelLost):
            client.submit(sftp.Lstat(b"/"))
        with pytest.raises(ChannelLost):
            await client.lstat(b"/")
    client.close_nowait(b"h")
    client.end("again")
    assert client.lost is not None
    assert "again" not in client.lost


@in_trio
async def test_a_server_that_dies() -> None:
    process = SftpProcess()
    async with real_channel(process) as (client, _):
        process.pause()
        await all_hear_of_it(client, process.kill, "ended it")
        assert not client.broke_protocol


@in_trio
async def test_a_stream_that_is_closed_on_this_side() -> None:
    async with scripted_channel(replies.version()) as (client, peer):
        await all_hear_of_it(client, peer.stream.close, "the connection was lost")


@in_trio
async def test_a_channel_that_is_ended() -> None:
    async with scripted_channel(replies.version()) as (client, _):
        await all_hear_of_it(client, lambda: client.end("the mount ends"), "the mount ends")


@pytest.mark.parametrize(
    ("breach", "message"),
    [
        (replies.status(99), "request 99"),
        (struct.pack(">IBI", 0x7FFFFFFF, 103, 0), "2147483647 bytes"),
        (replies.data(0, b"x"), "asked for ATTRS"),
        (bytes(100), "0 bytes"),
    ],
)
@in_trio
async def test_a_server_that_breaks_the_protocol(breach: bytes, message: str) -> None:
    async with scripted_channel(replies.version()) as (client, peer):

        def send() -> None:
            assert peer.put_nowait(breach) == len(breach)

        await all_hear_of_it(client, send, message)
        assert client.broke_protocol


@in_trio
async def test_sending_to_a_server_that_is_gone() -> None:
    """Noticed by the sender, before the reader: the request is settled all the same."""
    async with scripted_channel(replies.version()) as (client, peer):
        peer.hang_up()
        try:
            pending = client.submit(sftp.Lstat(b"/"))[0]
        except ChannelLost:
            return
        with pytest.raises(ChannelLost):
            await client.wait(pending)


def test_the_servers_words_are_made_safe() -> None:
    assert describe(StatusError(Status.FAILURE)) == "FAILURE"
    shown = describe(StatusError(31, b"\x1b[2Jno\x07\n"))
    assert shown.startswith("status 31 (")
    assert shown.isprintable()
