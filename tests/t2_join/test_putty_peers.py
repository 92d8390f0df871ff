"""What may stand in the place of a PuTTY upstream, or come from one that goes wrong: scripted, to the byte.

A number in a name is that of the check in the list of what a downstream of PuTTY has to stand.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from mux.downstream.putty import open_session
from mux.downstream.putty_session import PuttySession
from mux.errors import ConnectionLost, ExitCode, JoinError
from mux.protocol.bare import frame
from mux.protocol.wire import boolean, string, u32
from tests.t2_join.fake import listening
from tests.t2_join.streams import in_trio, read_all, read_exactly, write_all

PREFIX = b"SSHCONNECTION@putty.projects.tartarus.org-"
GREETING = PREFIX + b"2.0-OpenSSH_9.2p1 Debian-2\r\n"
OURS, THEIRS = 0, 7


def packet(kind: int, *parts: bytes) -> bytes:
    return frame(kind, *parts, limit_bytes=1 << 20)


def confirmation(window_bytes: int = 1 << 21) -> bytes:
    return packet(91, u32(OURS), u32(THEIRS), u32(window_bytes), u32(32768))


class Upstream:
    """One client's connection, from the other side."""

    def __init__(self, accepted: socket.socket) -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
        self.heard = bytearray()

    async def send(self, *pieces: bytes) -> None:
        await self.stream.send_all(b"".join(pieces))

    async def hear(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self.heard) < count:
            data = await self.stream.receive_some(65536)
            assert data, bytes(self.heard)
            self.heard += data
        found = bytes(self.heard[:count])
        del self.heard[:count]
        return found

    async def hear_packet(self) -> tuple[int, bytes]:
        length = int.from_bytes(await self.hear(4), "big")
        body = await self.hear(length)
        return body[0], body[1:]

    async def hear_rest(self) -> bytes:
        """All up to the end, which is a reset where the other end had not read all."""
        with suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some(65536):
                self.heard += data
        return bytes(self.heard)

    async def greet(self) -> None:
        """Exchange lines."""
        await self.send(GREETING)
        assert await self.hear(len(GREETING_OF_OURS)) == GREETING_OF_OURS

    async def open(self) -> None:
        """Up to a running command."""
        await self.greet()
        assert (await self.hear_packet())[0] == 90
        await self.send(confirmation())
        assert (await self.hear_packet())[0] == 98
        await self.send(packet(99, u32(OURS)))


GREETING_OF_OURS = PREFIX + b"2.0-sshmuxfs\r\n"


@asynccontextmanager
async def upstream_at(path: str, handle: Callable[[Upstream], Awaitable[None]]) -> AsyncIterator[None]:
    """One client is handled by `handle`, which comes to its end."""

    async def serve(listener: socket.socket) -> None:
        await trio.lowlevel.wait_readable(listener)
        accepted = listener.accept()[0]
        upstream = Upstream(accepted)
        async with upstream.stream:
            await handle(upstream)

    with listening(path) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener)
            yield


async def session(path: str, **arguments: float) -> PuttySession:
    return await open_session(path, b"cat", subsystem=False, **arguments)  # type: ignore[arg-type]


# -- the greeting -----------------------------------------------------------------------------------------------------


@in_trio
async def test_the_first_words_to_the_byte(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        assert await upstream.hear(len(GREETING_OF_OURS)) == GREETING_OF_OURS
        # An upstream that has not logged in dies of a packet: nothing more comes before its line.
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not upstream.heard
        await upstream.send(GREETING)
        assert await upstream.hear_packet() == (90, string(b"session") + u32(OURS) + u32(8 << 20) + u32(32256))
        await upstream.send(confirmation())
        assert await upstream.hear_packet() == (98, u32(THEIRS) + string(b"env") + b"\0" + string(b"A") + string(b"b"))
        assert await upstream.hear_packet() == (98, u32(THEIRS) + string(b"exec") + b"\1" + string(b"cat"))
        assert await upstream.hear_rest() == packet(97, u32(THEIRS))

    async with upstream_at(control_path, handle):
        (await open_session(control_path, b"cat", subsystem=False, environment=[b"A=b"])).close()


@pytest.mark.parametrize(
    ("said", "complaint", "code"),
    [
        (GREETING.replace(b"2.0", b"1.5"), "version 1.5 .* only 2.0", ExitCode.PROTOCOL),
        (b"x" * 20000, "more than 16400 bytes", ExitCode.PROTOCOL),
        (b"\0\0\0\1\x5a", "neither a greeting nor a goodbye", ExitCode.PROTOCOL),
        (packet(1, u32(11), string(b"no login"), string(b"")), "hung up: no login", ExitCode.PROTOCOL),
        (b"", "hung up: it did not log in", ExitCode.NOTHING_TO_JOIN),
        (b"junk\r\n" + GREETING[:-2], "hung up: it did not log in", ExitCode.NOTHING_TO_JOIN),
    ],
)
@in_trio
async def test_d13_no_greeting(control_path: str, said: bytes, complaint: str, code: ExitCode) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.send(said)
        await upstream.stream.send_eof()
        await upstream.hear_rest()

    async with upstream_at(control_path, handle):
        with pytest.raises(JoinError, match=complaint) as refused:
            await session(control_path)
    assert refused.value.exit_code is code


@in_trio
async def test_d13_junk_before_the_greeting_and_packets_behind_it(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.send(b"hello\r\n\r\n", GREETING, packet(2, string(b"nothing")), packet(4, bytes(9)))
        await upstream.hear(len(GREETING_OF_OURS))
        await upstream.hear_packet()
        await upstream.send(confirmation(), packet(94, u32(OURS), string(b"early")))
        await upstream.hear_rest()

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            assert await read_exactly(stream, 5) == b"early"


@in_trio
async def test_d21_a_full_queue_is_asked_again_and_nothing_is_replaced(control_path: str) -> None:
    with listening(control_path, backlog=0) as listener, socket.socket(socket.AF_UNIX) as first:
        first.connect(control_path)
        before = os.lstat(control_path)
        with pytest.raises(JoinError, match=r"queue stayed full for 0\.2 s") as full:
            await session(control_path, deadline_s=0.2)
        assert full.value.exit_code is ExitCode.NO_ANSWER
        opened = trio.Event()
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                listener.accept()[0].close()
                await trio.lowlevel.wait_readable(listener)
                upstream = Upstream(listener.accept()[0])
                async with upstream.stream:
                    await upstream.open()
                    opened.set()
                    await upstream.hear_rest()

            nursery.start_soon(serve)
            with await session(control_path):
                await opened.wait()
        assert os.lstat(control_path) == before


@in_trio
async def test_a_server_that_opens_nothing(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.greet()
        await upstream.hear_rest()

    async with upstream_at(control_path, handle):
        with pytest.raises(JoinError, match=r"opened no session within 0\.2 s") as late:
            await session(control_path, deadline_s=0.2)
    assert late.value.exit_code is ExitCode.NO_ANSWER


@in_trio
async def test_d17_a_refused_session_in_the_servers_words(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.greet()
        await upstream.hear_packet()
        await upstream.send(packet(92, u32(OURS), u32(4), string(b"too many \x1b[31m"), string(b"en")))
        assert await upstream.hear_rest() == b""

    async with upstream_at(control_path, handle):
        with pytest.raises(JoinError, match=r"refused a session: too many \\x1b\[31m") as refused:
            await session(control_path)
    assert refused.value.exit_code is ExitCode.REFUSED


# -- in the middle ----------------------------------------------------------------------------------------------------


@in_trio
async def test_d14_what_is_answered_and_what_is_not(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.open()
        await upstream.send(
            packet(2, string(b"x")),
            packet(4, boolean(True) + string(b"x") + string(b"")),
            packet(3, u32(1)),
            packet(7, u32(0)),
            packet(80, string(b"keepalive@openssh.com"), boolean(True)),
            packet(98, u32(OURS), string(b"unknown@nowhere"), boolean(False)),
            packet(98, u32(OURS), string(b"keepalive@openssh.com"), boolean(True)),
            packet(90, string(b"x11"), u32(3), u32(1000), u32(1000)),
            packet(94, u32(OURS), string(b"data")),
        )
        assert await upstream.hear_packet() == (100, u32(THEIRS))
        kind, body = await upstream.hear_packet()
        assert (kind, body[:8]) == (92, u32(3) + u32(1))
        assert await upstream.hear_rest() == packet(97, u32(THEIRS))

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            assert await read_exactly(stream, 4) == b"data"


@in_trio
async def test_d12_the_words_of_a_goodbye_are_shown(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.open()
        await upstream.send(packet(94, u32(OURS), string(b"last")))
        await upstream.send(packet(1, u32(11), string(b"The user \x1b[31m is leaving"), string(b"en")))

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            assert await read_exactly(stream, 4) == b"last"
            for _ in range(2):
                with pytest.raises(ConnectionLost, match=r"lost: it hung up: The user \\x1b\[31m is leaving"):
                    await stream.receive_into([memoryview(bytearray(1))])
            with pytest.raises(ConnectionLost, match="is leaving"):
                stream.send_nowait([b"x"])
            assert await stream.wait_closed() is None


@in_trio
async def test_d12_who_writes_is_told_as_well(control_path: str) -> None:
    gone = trio.Event()

    async def handle(upstream: Upstream) -> None:
        await upstream.open()
        await upstream.send(packet(1, u32(11), string(b"goodbye"), string(b"en")))
        await upstream.stream.aclose()
        gone.set()

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            await gone.wait()
            with pytest.raises(ConnectionLost, match="hung up: goodbye"):
                await write_all(stream, b"anybody?")


@pytest.mark.parametrize("length", [0, 0x9000, 0xFFFFFFFF])
@in_trio
async def test_d19_a_length_beyond_all_bounds(control_path: str, length: int) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.open()
        await upstream.send(u32(length))
        assert await upstream.hear_rest() == b""

    async with upstream_at(control_path, handle):
        complaint = f"a packet of {length} bytes, outside of 1 to 36863"
        with await session(control_path) as stream, pytest.raises(ConnectionLost, match=complaint):
            await read_all(stream)


@in_trio
async def test_d18_packets_that_come_together_or_in_pieces(control_path: str) -> None:
    text = os.urandom(200_000)
    stream_bytes = b"".join(packet(94, u32(OURS), string(text[at : at + 777])) for at in range(0, len(text), 777))
    stream_bytes += packet(98, u32(OURS), string(b"exit-status"), boolean(False), u32(4)) + packet(96, u32(OURS))
    stream_bytes += packet(97, u32(OURS))

    async def handle(upstream: Upstream) -> None:
        await upstream.open()
        start = 0
        for size in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 1000, 5000, len(stream_bytes)):
            await upstream.send(stream_bytes[start : start + size])
            await trio.testing.wait_all_tasks_blocked()
            start += size
        await upstream.hear_rest()

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            assert await read_all(stream) == text
            assert await stream.wait_closed() == 4


@in_trio
async def test_answers_that_do_not_fit_are_sent_by_who_waits_for_output(control_path: str) -> None:
    """The upstream asks more than it reads, then reads: all is answered though nobody here has anything to send."""
    count = 12_000
    question = packet(98, u32(OURS), string(b"?"), boolean(True))

    async def handle(upstream: Upstream) -> None:
        await upstream.open()
        upstream.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(count // 1000):
            await upstream.send(question * 1000)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for _ in range(count):
            assert await upstream.hear_packet() == (100, u32(THEIRS))
        await upstream.send(packet(94, u32(OURS), string(b"done")))
        await upstream.hear_rest()

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            assert await read_exactly(stream, 4) == b"done"


@in_trio
async def test_a_packet_that_was_begun_is_finished_before_anything_else(control_path: str) -> None:
    data = os.urandom(1 << 20)

    async def handle(upstream: Upstream) -> None:
        await upstream.open()
        await upstream.send(packet(98, u32(OURS), string(b"?"), boolean(True)))
        got = bytearray()
        answered = 0
        while len(got) < len(data) or not answered:
            kind, body = await upstream.hear_packet()
            if kind == 94:
                assert body[:8] == u32(THEIRS) + u32(len(body) - 8)
                got += body[8:]
            else:
                assert (kind, body) == (100, u32(THEIRS))
                answered += 1
        assert bytes(got) == data
        await upstream.send(packet(97, u32(OURS)))
        await upstream.hear_rest()

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_all, stream, data)
                assert await read_all(stream) == b""


@in_trio
async def test_a_window_that_grows_wakes_a_writer_while_somebody_reads(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.greet()
        await upstream.hear_packet()
        await upstream.send(confirmation(window_bytes=0))
        await upstream.hear_packet()
        for letter in (b"a", b"b"):
            await trio.testing.wait_all_tasks_blocked(0.02)
            await upstream.send(packet(93, u32(OURS), u32(1)))
            assert await upstream.hear_packet() == (94, u32(THEIRS) + string(letter))
        await upstream.send(packet(97, u32(OURS)))
        await upstream.hear_rest()

    async with upstream_at(control_path, handle):
        with await session(control_path) as stream:
            assert stream.send_nowait([b"ab"]) == 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_all, stream, b"ab")
                assert await read_all(stream) == b""


@in_trio
async def test_a_command_that_is_too_long(control_path: str) -> None:
    async def handle(upstream: Upstream) -> None:
        await upstream.greet()
        await upstream.hear_packet()
        await upstream.send(confirmation())
        assert await upstream.hear_rest() == packet(97, u32(THEIRS))

    async with upstream_at(control_path, handle):
        with pytest.raises(JoinError, match="too long for a PuTTY upstream"):
            await open_session(control_path, b"x" * 20000, subsystem=False)
