"""How a connection ends, and what everybody is told then: the server's death, its silence, its word, its nonsense."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import asyncssh
import pytest

from mux.protocol.wire import Reader, boolean, string, u32
from mux.upstream import engine as engines
from mux.upstream.engine import Engine, IncomingOpen, start
from tests.support.delay_proxy import DelayProxy
from tests.support.sshd import Sshd
from tests.t2_upstream.evil_server import EvilServer, cable, evil_server
from tests.t2_upstream.harness import DEADLINE_S, LOGIN_DEADLINE_S, Exec, connected, engine_to, options_for


async def end_of(engine: Engine) -> str:
    return await asyncio.wait_for(engine.closed(), DEADLINE_S)


async def engine_at(server: EvilServer, client: asyncssh.SSHClient | None = None, **more: Any) -> Engine:
    sock = socket.create_connection(("127.0.0.1", server.port), LOGIN_DEADLINE_S)
    client = client or asyncssh.SSHClient()
    return await start(sock, client, {**server.options, **more}, deadline_s=LOGIN_DEADLINE_S)


def test_a_server_that_dies_is_told_to_all_at_once(make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()

    async def main() -> None:
        engine = await engine_to(sshd)
        running = [Exec(engine, "cat", eof=False) for _ in range(3)]
        while not all(99 in ran.kinds for ran in running):
            await engine.measure(DEADLINE_S)
        told: list[object] = []
        sshd.kill()
        engine.request(b"no@such.request", b"", lambda ok, rest: told.append((ok, rest)))
        engine.request(b"no@such.request", b"", lambda ok, rest: told.append((ok, rest)))
        for ran in running:
            await ran.done()
        reason = await end_of(engine)
        assert reason == engine.lost
        assert {ran.gone for ran in running} == {reason}
        assert reason.startswith("Connection to box ")
        assert told == [(False, b"")] * 2

        # What comes too late is told the same, and sends nothing.
        late = Exec(engine, "true")
        await late.done()
        assert late.gone == reason
        engine.request(b"no@such.request", b"", lambda ok, rest: told.append((ok, rest)))
        assert told == [(False, b"")] * 3
        engine.send(94, b"x")
        engine.rekey()
        engine.disconnect("too late")
        assert await end_of(engine) == reason

    asyncio.run(main())


def test_we_leave(sshd: Sshd) -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def close() -> None:
            closed.set()

        sock = socket.create_connection(("127.0.0.1", sshd.port), LOGIN_DEADLINE_S)
        options = options_for(sshd)
        engine = await start(sock, asyncssh.SSHClient(), options, deadline_s=LOGIN_DEADLINE_S, close=close)
        ran = Exec(engine, "cat")
        engine.disconnect("that was \x1b[1mall")
        reason, told = engine.lost, ran.gone
        assert (reason, told) == ("that was \x1b[1mall", None)
        assert await end_of(engine) == "that was \x1b[1mall"
        assert ran.gone == engine.lost
        assert closed.is_set()
        assert sock.fileno() == -1

    asyncio.run(main())


def test_the_server_hears_our_reason() -> None:
    async def main() -> None:
        async with evil_server() as server:
            engine = await engine_at(server)
            peer = await server.peer()
            engine.disconnect("nobody needs it any more")
            await end_of(engine)
            await asyncio.wait_for(peer.wait_closed(), DEADLINE_S)

    asyncio.run(main())


def test_the_server_leaves_with_a_word() -> None:
    async def main() -> None:
        async with evil_server() as server:
            engine = await engine_at(server)
            (await server.peer()).disconnect(11, "go away\n\x1b[31m")
            assert await end_of(engine) == r"Received disconnect from evil: 11: go away\n\x1b[31m"

    asyncio.run(main())


# Silence


def test_a_silent_server_is_given_up(sshd: Sshd, make_proxy: Callable[..., DelayProxy]) -> None:
    proxy = make_proxy(sshd.port, 0.0)

    async def main() -> None:
        engine = await engine_to(sshd, proxy.port, keepalive_interval=0.1, keepalive_count_max=3)
        ran = Exec(engine, "cat", eof=False)
        asked: list[bool] = []
        os.kill(proxy.pid, signal.SIGSTOP)
        try:
            engine.request(b"no@such.request", b"", lambda ok, rest: asked.append(ok))
            assert await end_of(engine) == "Timeout, server box not responding."
            await ran.done()
            assert ran.gone == engine.lost
            assert asked == [False]
        finally:
            os.kill(proxy.pid, signal.SIGCONT)

    asyncio.run(main())


def test_a_server_that_answers_is_kept(sshd: Sshd) -> None:
    """More than twice as long as a silent one would be."""

    async def main() -> None:
        async with connected(sshd, keepalive_interval=1.0, keepalive_count_max=4) as engine:
            ran = Exec(engine, "sleep 9; echo done")
            assert await ran.done() == b"done\n"
            assert engine.facts().round_trip_s is not None

    asyncio.run(main())


def test_our_own_absence_is_not_the_servers(sshd: Sshd) -> None:
    async def main() -> None:
        async with connected(sshd, keepalive_interval=1.0, keepalive_count_max=4) as engine:
            await engine.measure(DEADLINE_S)
            time.sleep(5)  # noqa: ASYNC251 - this is what is tested: the process does not run
            assert await Exec(engine, "sleep 1.2; echo alive").done() == b"alive\n"

    asyncio.run(main())


def test_a_server_that_never_begins_has_a_deadline() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.create_connection(listener.getsockname(), LOGIN_DEADLINE_S)
            closed: list[bool] = []

            async def close() -> None:
                closed.append(True)

            with pytest.raises(TimeoutError):
                await start(sock, asyncssh.SSHClient(), {"host": "mute"}, deadline_s=0.2, close=close)
            assert sock.fileno() == -1
            assert closed == [True]

    asyncio.run(main())


def test_a_server_that_never_begins_is_given_up_even_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "HANDSHAKE_DEADLINE_S", 0.2)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.create_connection(listener.getsockname(), LOGIN_DEADLINE_S)
            with pytest.raises(asyncssh.ConnectionLost, match=r"no SSH handshake within 0\.2 s"):
                await start(sock, asyncssh.SSHClient(), {"host": "mute"}, deadline_s=None)
            assert sock.fileno() == -1

    asyncio.run(main())


def test_options_that_make_no_sense_close_the_socket() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            with pytest.raises(ValueError, match="not a valid"):
                await start(ours, asyncssh.SSHClient(), {"host": "x", "kex_algs": ["none such"]}, deadline_s=1)
            assert ours.fileno() == -1

    asyncio.run(main())


# Nonsense


@pytest.mark.parametrize(
    "text", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n", b"\0" * 40_000, b"SSH-2.0-x\r\n" + b"\xff" * 99]
)
def test_no_ssh_server(text: bytes) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            theirs.send(text)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(asyncssh.Error):
                await start(ours, asyncssh.SSHClient(), {"host": "x"}, deadline_s=LOGIN_DEADLINE_S)

    asyncio.run(main())


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def long_length(data: bytes) -> bytes:
    return b"\x7f" + data[1:]


def no_length(data: bytes) -> bytes:
    return bytes(4) + data[4:]


def noise(data: bytes) -> bytes:
    return os.urandom(len(data))


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"])
@pytest.mark.parametrize("change", [flip, long_length, no_length, noise])
def test_corruption_ends_the_connection_and_nothing_else(
    sshd: Sshd, change: Callable[[bytes], bytes], cipher: str
) -> None:
    async def main() -> None:
        async with cable(sshd.port) as wire, connected(sshd) as other:
            # Noise may be the length of a packet that never becomes whole: only silence tells then.
            engine = await engine_to(
                sshd, wire.port, encryption_algs=[cipher], keepalive_interval=1.0, keepalive_count_max=6
            )
            ran = Exec(engine, "cat", eof=False)
            await engine.measure(DEADLINE_S)
            wire.change = change
            engine.request(b"no@such.request", b"", lambda ok, rest: None)
            reason = await end_of(engine)
            await ran.done()
            assert ran.gone == reason
            assert reason.startswith(("Connection to box ended: ", "Timeout, server box"))
            if change is flip:
                assert reason == "Connection to box ended: MAC verification failed"
            assert await Exec(other, "echo alive").done() == b"alive\n"

    asyncio.run(main())


MALFORMED = {
    "a number that is not ours": (94, u32(4711) + string(b"x")),
    "a confirmation of a number that is not ours": (91, u32(4711) + u32(0) + u32(0) + u32(1)),
    "a reply to nothing": (81, b""),
    "data without a number": (94, b"\0\0"),
    "an open that is too short": (90, string(b"session") + b"\0"),
    "a disconnect that is too short": (1, b"\0"),
    "a name that is no text": (80, string(b"\xff\xff") + boolean(True)),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_server_that_breaks_the_protocol(what: str) -> None:
    kind, body = MALFORMED[what]

    async def main() -> None:
        async with evil_server() as server:
            engine = await engine_at(server)
            (await server.peer()).send_packet(kind, body)
            reason = await end_of(engine)
            assert reason.startswith("Connection to evil ended: ")
            assert "internal error" not in reason

    asyncio.run(main())


def test_a_flood_of_requests_is_answered() -> None:
    async def main() -> None:
        async with evil_server() as server:
            engine = await engine_at(server)
            peer = await server.peer()
            replies = [peer._make_global_request(b"what@ever") for _ in range(1000)]
            answers = await asyncio.wait_for(asyncio.gather(*replies), DEADLINE_S)
            assert {kind for kind, _ in answers} == {82}
            engine.disconnect("enough")
            await end_of(engine)

    asyncio.run(main())


def test_requests_that_pile_up_behind_one_end_the_connection() -> None:
    async def main() -> None:
        async with evil_server() as server:
            unanswered = asyncio.Event()

            async def handler(*keys: object) -> None:
                await unanswered.wait()

            engine = await engine_at(server, server_host_keys_handler=handler)
            peer = await server.peer()
            peer.send_packet(80, string(b"hostkeys-00@openssh.com") + boolean(True))
            for _ in range(100):
                peer.send_packet(80, string(b"what@ever") + boolean(True))
            assert await end_of(engine) == "Connection to evil ended: Too many global requests at a time"
            unanswered.set()

    asyncio.run(main())


# What an honest server may do as well


def test_opens_are_answered() -> None:
    async def main() -> None:
        async with evil_server() as server:
            engine = await engine_at(server)
            peer = await server.peer()
            asked: list[IncomingOpen] = []

            def refuse(incoming: IncomingOpen) -> bool:
                asked.append(incoming)
                return False

            engine.openers[b"x11"] = refuse
            with pytest.raises(asyncssh.ChannelOpenError) as refused:
                await asyncio.wait_for(peer.create_x11_connection(asyncssh.SSHTCPSession, "10.0.0.1", 6010), DEADLINE_S)
            assert refused.value.code == 1
            (incoming,) = asked
            assert incoming.kind == b"x11"
            assert incoming.rest == string(b"10.0.0.1") + u32(6010)
            with pytest.raises(asyncssh.ChannelOpenError) as refused:
                await asyncio.wait_for(peer.create_connection(asyncssh.SSHTCPSession, "10.0.0.1", 1), DEADLINE_S)
            assert refused.value.code == 3
            engine.disconnect("enough")
            await end_of(engine)

    asyncio.run(main())


def test_an_opener_that_fails_refuses(expect_log: Callable[[str], None]) -> None:
    expect_log("a channel that the server opened was not taken")

    async def main() -> None:
        async with evil_server() as server:
            engine = await engine_at(server)
            peer = await server.peer()

            def fail(incoming: IncomingOpen) -> bool:
                raise ValueError("no such idea")

            engine.openers[b"x11"] = fail
            with pytest.raises(asyncssh.ChannelOpenError) as refused:
                await asyncio.wait_for(peer.create_x11_connection(asyncssh.SSHTCPSession, "10.0.0.1", 6010), DEADLINE_S)
            assert refused.value.code == 1
            engine.disconnect("enough")
            await end_of(engine)

    asyncio.run(main())


def test_a_reply_is_taken_before_the_channel_behind_it() -> None:
    """As when somebody connects to a forwarded port the moment that it is there."""

    async def main() -> None:
        async with evil_server() as server:
            engine = await engine_at(server)
            peer = await server.peer()
            seen: list[object] = []
            both = asyncio.Event()

            def opened(incoming: IncomingOpen) -> bool:
                seen.append(incoming.kind)
                both.set()
                return False

            engine.openers[b"forwarded-tcpip"] = opened
            engine.request(b"tcpip-forward", string(b"") + u32(0), lambda ok, rest: seen.append(Reader(rest).u32()))
            peer.send_packet(82)  # to what is asked behind every login
            peer.send_packet(81, u32(4022))
            peer.send_packet(90, string(b"forwarded-tcpip") + u32(0) + u32(1) + u32(1))
            await asyncio.wait_for(both.wait(), DEADLINE_S)
            assert seen == [4022, b"forwarded-tcpip"]
            engine.disconnect("enough")
            await end_of(engine)

    asyncio.run(main())


def test_a_client_that_wants_to_know_is_told_of_refusals(sshd: Sshd) -> None:
    class Curious(asyncssh.SSHClient):
        def __init__(self) -> None:
            self.failures: list[tuple[list[str], bool]] = []

        def auth_failed(self, methods: list[str], partial: bool) -> None:
            self.failures.append((methods, partial))

    async def main() -> None:
        client = Curious()
        sock = socket.create_connection(("127.0.0.1", sshd.port), LOGIN_DEADLINE_S)
        options = options_for(sshd, client_keys=[asyncssh.generate_private_key("ssh-ed25519")])
        with pytest.raises(asyncssh.PermissionDenied):
            await start(sock, client, options, deadline_s=LOGIN_DEADLINE_S)
        assert sock.fileno() == -1
        assert client.failures == [(["publickey"], False)] * 2

    asyncio.run(main())
