"""Forwardings as `ssh -O forward` and `ssh -O cancel` ask for them, with real traffic through them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mux.errors import SharingError
from mux.protocol.messages import Forward, ForwardKind, Ok, OpenForward, RemotePort
from mux.protocol.socks import Connect
from mux.upstream.forwards import ForwardRefused, check, describe, remote_bind_host
from mux.upstream.listeners import bind_names, listen_unix
from mux.upstream.passages import permitted
from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd, program

from .riding import Ride, eventually, riding

FAILED = (
    "mux_client_forward: forwarding request failed: Port forwarding failed\r\n"
    "muxclient: master forward request failed\r\n"
)
PATH_PORT = 0xFFFFFFFE


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer in capitals, but only when all has been said."""
    try:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    except asyncio.CancelledError:
        writer.transport.abort()  # the test is over; asyncio's streams of 3.11 log a cancelled task as an error


@asynccontextmanager
async def shouting(unix: str | None = None) -> AsyncIterator[int]:
    """A target that shouts back; gives its port."""
    if unix is not None:
        server = await asyncio.start_unix_server(shout, unix)
    else:
        server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server:
        yield 0 if unix is not None else server.sockets[0].getsockname()[1]
    if unix is not None:
        Path(unix).unlink(missing_ok=True)  # from Python 3.13 on a server removes its own


async def say(port: int | str, data: bytes, host: str = "127.0.0.1") -> bytes:
    """Say something to a port or a path, say that it is all, and hear the answer.

    Who hangs up without having read everything resets a TCP connection, and what it said before still arrives.
    """
    if isinstance(port, str):
        reader, writer = await asyncio.open_unix_connection(port)
    else:
        reader, writer = await asyncio.open_connection(host, port)
    heard = b""
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(60):
            while piece := await reader.read(1 << 16):
                heard += piece
    except OSError as error:  # it may have been reset before all was said
        if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
            raise
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return heard


async def refused(port: int, host: str = "127.0.0.1") -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    writer.close()
    await writer.wait_closed()
    return False


async def quiet(ride: Ride) -> None:
    """Nothing is left of the connections through forwardings."""
    forwards = ride.upstream.forwards
    await eventually(lambda: not forwards.streams and forwards.gate.inside == 0)


def test_local_to_a_port(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with shouting() as target, riding(sshd, path) as ride:
            forward = ("-L", f"{port}:127.0.0.1:{target}")
            for _ in range(2):  # the same again is there already
                done = await ride.control("forward", *forward)
                assert (done.code, done.out, done.err) == (0, b"", "")
            assert len(ride.upstream.forwards.standing) == 1
            data = os.urandom(3 << 20).replace(b"\xc3", b"x")
            assert await say(port, data) == data.upper()
            answers = await asyncio.gather(*(say(port, b"all of us %d" % n) for n in range(30)))
            assert answers == [b"ALL OF US %d" % n for n in range(30)]
            await quiet(ride)
            done = await ride.control("cancel", *forward)
            assert (done.code, done.err) == (0, "")
            assert await refused(port)
            done = await ride.control("cancel", *forward)
            assert done.code == 0
            assert "port not forwarded" in done.err
            assert not ride.upstream.forwards.standing

    asyncio.run(main())


def test_connections_outlive_the_cancelling(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with shouting() as target, riding(sshd, path) as ride:
            await ride.control("forward", "-L", f"{port}:127.0.0.1:{target}")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await eventually(lambda: ride.upstream.forwards.gate.inside == 1)
            assert (await ride.control("cancel", "-L", f"{port}:127.0.0.1:{target}")).code == 0
            writer.write(b"still")
            writer.write_eof()
            assert await reader.read() == b"STILL"
            writer.close()
            await writer.wait_closed()
            await quiet(ride)

    asyncio.run(main())


def test_local_port_that_is_taken(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as taken, riding(sshd, path) as ride:
            done = await ride.control("forward", "-L", f"127.0.0.1:{taken}:127.0.0.1:1")
            assert (done.code, done.out) == (255, b"")
            assert done.err == FAILED
            assert (await ride.control("check")).code == 0
            assert not ride.upstream.forwards.standing

    asyncio.run(main())


def test_local_port_to_be_chosen(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as target, riding(sshd, path) as ride:
            with await ride.raw() as client:
                await client.greet()
                request = (ForwardKind.LOCAL, b"", 0, b"127.0.0.1", target)
                chosen = await client.ask(OpenForward(0, *request))
                assert isinstance(chosen, RemotePort)
                assert await client.ask(OpenForward(1, *request)) == RemotePort(1, chosen.port)
                assert await say(chosen.port, b"hello") == b"HELLO"
            assert ride.upstream.forwards.open_forwards() == [Forward(request[0], b"", chosen.port, *request[3:])]
            await quiet(ride)

    asyncio.run(main())


def test_local_with_paths_on_both_sides(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        here, there = str(sshd.control_dir / "here"), str(sshd.control_dir / "there")
        async with shouting(there), riding(sshd, path) as ride:
            done = await ride.control("forward", "-L", f"{here}:{there}")
            assert (done.code, done.err) == (0, "")
            assert Path(here).stat().st_mode & 0o777 == 0o600
            assert await say(here, b"path to path") == b"PATH TO PATH"
            done = await ride.control("forward", "-L", f"{here}:127.0.0.1:1")
            assert (done.code, done.err) == (255, FAILED)
            assert await say(here, b"unharmed") == b"UNHARMED"
            await quiet(ride)
            assert (await ride.control("cancel", "-L", f"{here}:{there}")).code == 0
            assert not Path(here).exists()
            # One that somebody else made is not ours to remove.
            assert (await ride.control("forward", "-L", f"{here}:{there}")).code == 0
            Path(here).unlink(missing_ok=True)
            Path(here).write_text("mine")
            assert (await ride.control("cancel", "-L", f"{here}:{there}")).code == 0
            assert Path(here).read_text() == "mine"
            Path(here).unlink(missing_ok=True)

    asyncio.run(main())


def test_a_path_that_has_gone_at_once(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    def listen_and_lose(path: bytes, *, mask: int, unlink_first: bool) -> socket.socket:
        made.append(listen_unix(path, mask=mask, unlink_first=unlink_first))
        os.unlink(path)
        return made[-1]

    async def main() -> None:
        here = str(sshd.control_dir / "here")
        async with riding(sshd, path) as ride:
            with monkeypatch.context() as patch:
                patch.setattr("mux.upstream.forwards.listen_unix", listen_and_lose)
                assert (await ride.control("forward", "-L", f"{here}:127.0.0.1:1")).err == FAILED
            forwards = ride.upstream.forwards
            assert not forwards.standing and not forwards.gate.listeners
            assert [one.fileno() for one in made] == [-1]
            assert (await ride.control("forward", "-L", f"{here}:127.0.0.1:1")).code == 0

    asyncio.run(main())


def test_a_path_that_is_there(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        here = str(sshd.control_dir / "here")
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(here)
        async with shouting() as target:
            async with riding(sshd, path) as ride:
                assert (await ride.control("forward", "-L", f"{here}:127.0.0.1:{target}")).err == FAILED
            async with riding(sshd, path, stream_local_unlink=True, stream_local_mask=0o117) as ride:
                assert (await ride.control("forward", "-L", f"{here}:127.0.0.1:{target}")).code == 0
                assert Path(here).stat().st_mode & 0o777 == 0o660
                assert await say(here, b"new") == b"NEW"
        assert not Path(here).exists()

    asyncio.run(main())


def test_a_target_that_is_not_there(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with riding(sshd, path) as ride:
            await ride.control("forward", "-L", f"{port}:127.0.0.1:{free_port()}")
            assert await say(port, b"anybody?") == b""
            await quiet(ride)
            assert (await ride.control("check")).code == 0

    asyncio.run(main())


def test_bind_addresses(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with shouting() as target:
            async with riding(sshd, path) as ride:
                for address, where in (
                    ("", {"127.0.0.1", "::1"}),
                    ("*:", {"0.0.0.0", "::"}),
                    ("127.0.0.2:", {"127.0.0.2"}),
                ):
                    forward = ("-L", f"{address}{port}:127.0.0.1:{target}")
                    assert (await ride.control("forward", *forward)).code == 0
                    assert listening(port) <= where
                    assert any("." in host for host in listening(port))
                    assert (await ride.control("cancel", *forward)).code == 0
                    assert not listening(port)
            async with riding(sshd, path, gateway_ports=True) as ride:
                assert (await ride.control("forward", "-L", f"{port}:127.0.0.1:{target}")).code == 0
                assert "0.0.0.0" in listening(port)

    asyncio.run(main())


def listening(port: int) -> set[str]:
    """The addresses on which somebody listens at this port, by /proc/net/tcp."""
    found = set()
    for file, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        if not os.path.exists(file):
            continue
        for line in Path(file).read_text().splitlines()[1:]:
            local, _, state = line.split()[1:4]
            address, _, number = local.partition(":")
            if int(number, 16) == port and state == "0A":
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


def test_dynamic_by_curl(sshd: Sshd, path: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async def main() -> None:
        port = free_port()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        target = server.sockets[0].getsockname()[1]
        async with server, riding(sshd, path) as ride:
            assert (await ride.control("forward", "-D", str(port))).code == 0
            for how in ("--socks4", "--socks4a", "--socks5", "--socks5-hostname"):
                for host in ("127.0.0.1", "localhost"):
                    command = [
                        "curl",
                        "-4",
                        "-sS",
                        "--noproxy",
                        "",
                        how,
                        f"127.0.0.1:{port}",
                        f"http://{host}:{target}/",
                    ]
                    done = await ride.run(program(command[0]), *command[1:])
                    assert (done.out, done.code, done.err) == (b"hello", 0, ""), command
            dead = f"http://127.0.0.1:{free_port()}/"
            done = await ride.run(program("curl"), "-sS", "--socks5", f"127.0.0.1:{port}", dead)
            assert done.code == 97, done  # the proxy said no: it did not say yes before it knew
            await quiet(ride)
            assert (await ride.control("cancel", "-D", str(port))).code == 0
            assert await refused(port)

    asyncio.run(main())


def test_dynamic_said_before_it_is_asked(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with shouting() as target, riding(sshd, path) as ride:
            await ride.control("forward", "-D", str(port))
            request = b"\4\1" + target.to_bytes(2, "big") + bytes((127, 0, 0, 1)) + b"me\0"
            answer = bytes((0, 0x5A)) + bytes(6)
            assert await say(port, request + b"already here") == answer + b"ALREADY HERE"
            assert await say(port, b"GET / HTTP/1.0\r\n\r\n") == b""
            assert await say(port, b"\5\1\2") == b"\5\xff"
            assert await say(port, request[:5]) == b""
            six = b"\5\1\0\5\1\0\4" + socket.inet_pton(socket.AF_INET6, "::1") + target.to_bytes(2, "big")
            # Nobody listens there, if there is a "there" at all on this machine.
            assert await say(port, six) == b"\5\0\5\5\0\1" + bytes(6)
            await quiet(ride)

    asyncio.run(main())


def test_a_socks_client_that_says_nothing(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.upstream.forwards.SOCKS_DEADLINE_S", 0.05)

    async def main() -> None:
        port = free_port()
        async with riding(sshd, path) as ride:
            await ride.control("forward", "-D", str(port))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(60):
                assert await reader.read() == b""
            writer.close()
            await quiet(ride)

    asyncio.run(main())


def test_remote_to_a_port(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with shouting() as target, riding(sshd, path) as ride:
            forward = ("-R", f"{port}:127.0.0.1:{target}")
            for _ in range(2):
                done = await ride.control("forward", *forward)
                assert (done.code, done.out, done.err) == (0, b"", "")
            data = os.urandom(3 << 20)
            assert await say(port, data) == data.upper()
            answers = await asyncio.gather(*(say(port, b"all of us %d" % n) for n in range(30)))
            assert answers == [b"ALL OF US %d" % n for n in range(30)]
            await quiet(ride)
            assert (await ride.control("cancel", *forward)).err == ""
            await eventually(lambda: not listening(port))
            done = await ride.control("cancel", *forward)
            assert (done.code, "port not forwarded" in done.err) == (0, True)
            # And once more: nothing of the first is left in the way.
            assert (await ride.control("forward", *forward)).code == 0
            assert await say(port, b"again") == b"AGAIN"
            await quiet(ride)

    asyncio.run(main())


def test_remote_port_to_be_chosen(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as target, riding(sshd, path) as ride:
            forward = ("-R", f"0:127.0.0.1:{target}")
            done = await ride.control("forward", *forward)
            assert (done.code, done.err) == (0, "")
            port = int(done.out)
            assert await say(port, b"chosen") == b"CHOSEN"
            assert (await ride.control("forward", *forward)).out == done.out
            other = await ride.control("forward", "-R", f"0:localhost:{target}")
            assert int(other.out) != port
            assert [forward.listen_port for forward in ride.upstream.forwards.open_forwards()] == [port, int(other.out)]
            await quiet(ride)
            assert (await ride.control("cancel", *forward)).err == ""
            await eventually(lambda: not listening(port))
            assert await say(int(other.out), b"unharmed") == b"UNHARMED"
            await quiet(ride)

    asyncio.run(main())


def test_remote_refused_by_the_server(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as taken, riding(sshd, path) as ride:
            done = await ride.control("forward", "-R", f"127.0.0.1:{taken}:127.0.0.1:1")
            assert done.code == 255
            assert f"forwarding request failed: remote port forwarding failed for listen port {taken}" in done.err
            nowhere = str(sshd.control_dir / "no" / "where")
            done = await ride.control("forward", "-R", f"{nowhere}:127.0.0.1:1")
            assert f"remote port forwarding failed for listen path {nowhere}" in done.err
            assert not ride.upstream.forwards.standing

    asyncio.run(main())


def test_remote_target_that_is_not_there(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with riding(sshd, path) as ride:
            await ride.control("forward", "-R", f"{port}:127.0.0.1:{free_port()}")
            assert await say(port, b"anybody?") == b""
            await quiet(ride)
            assert (await ride.ssh(HOST, "echo fine")).out == b"fine\n"

    asyncio.run(main())


def test_remote_with_paths_on_both_sides(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        here, there = str(sshd.control_dir / "here"), str(sshd.control_dir / "there")
        async with shouting(here), riding(sshd, path) as ride:
            done = await ride.control("forward", "-R", f"{there}:{here}")
            assert (done.code, done.out, done.err) == (0, b"", "")
            assert await say(there, b"path to path") == b"PATH TO PATH"
            await quiet(ride)
            assert (await ride.control("cancel", "-R", f"{there}:{here}")).err == ""
            await eventually(lambda: not can_connect(there))
        Path(there).unlink(missing_ok=True)

    asyncio.run(main())


def can_connect(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def test_remote_dynamic(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as target, riding(sshd, path) as ride:
            port = int((await ride.control("forward", "-R", "0")).out)
            request = b"\4\1" + target.to_bytes(2, "big") + bytes((127, 0, 0, 1)) + b"me\0"
            answer = bytes((0, 0x5A)) + bytes(6)
            assert await say(port, request + b"already here") == answer + b"ALREADY HERE"
            data = os.urandom(1 << 20)
            named = b"\5\1\0\5\1\0\3\x09localhost" + target.to_bytes(2, "big")
            assert await say(port, named + data) == b"\5\0\5\0\0\1" + bytes(6) + data.upper()
            dead = b"\5\1\0\5\1\0\1\x7f\0\0\1" + free_port().to_bytes(2, "big")
            assert await say(port, dead) == b"\5\0\5\5\0\1" + bytes(6)
            assert await say(port, b"GET / HTTP/1.0\r\n\r\n") == b""
            assert await say(port, request[:4]) == b""
            await quiet(ride)
        async with shouting() as target, riding(sshd, path, permit_remote_open=("127.0.0.1:1",)) as ride:
            port = int((await ride.control("forward", "-R", "0")).out)
            request = b"\5\1\0\5\1\0\1\x7f\0\0\1" + target.to_bytes(2, "big")
            assert await say(port, request) == b"\5\0\5\2\0\1" + bytes(6)
            await quiet(ride)

    asyncio.run(main())


def test_forwardings_of_a_client_before_its_session(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port = free_port()
        async with shouting() as target, riding(sshd, path) as ride:
            done = await ride.ssh("-L", f"{port}:127.0.0.1:{target}", HOST, "echo session")
            assert (done.code, done.out, done.err) == (0, b"session\n", "")
            assert await say(port, b"it stays") == b"IT STAYS"
            await quiet(ride)

    asyncio.run(main())


def test_the_same_asked_for_by_many_at_once(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as target, riding(sshd, path) as ride:
            ports = await asyncio.gather(*(ride.control("forward", "-R", f"0:127.0.0.1:{target}") for _ in range(6)))
            assert len({done.out for done in ports}) == 1
            assert len(ride.upstream.forwards.standing) == 1

    asyncio.run(main())


def test_a_client_that_leaves_before_the_answer(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as target, riding(sshd, path) as ride:
            with await ride.raw() as client:
                await client.greet()
                client.core.send(OpenForward(0, ForwardKind.REMOTE, b"", 0, b"127.0.0.1", target))
                for data, _ in client.core.data_to_send():
                    await client.write(data)
            await eventually(lambda: ride.upstream.forwards.standing)
            (standing,) = ride.upstream.forwards.standing.values()
            assert await say(standing.port, b"not its own") == b"NOT ITS OWN"
            await quiet(ride)

    asyncio.run(main())


def test_those_of_the_configuration(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as target:
            local = Forward(ForwardKind.LOCAL, b"127.0.0.1", free_port(), b"127.0.0.1", target)
            remote = Forward(ForwardKind.REMOTE, b"", free_port(), b"127.0.0.1", target)
            taken = Forward(ForwardKind.LOCAL, b"127.0.0.1", target, b"127.0.0.1", 1)
            async with riding(sshd, path, forwards=(local, taken, remote)) as ride:
                failures = await ride.upstream.forwards.open_configured()
                text = (
                    f"The local forward 127.0.0.1:{target} -> 127.0.0.1:1 could not be opened: Port forwarding failed."
                )
                assert failures == [text]
                assert set(ride.upstream.forwards.open_forwards()) == {local, remote}
                assert await say(local.listen_port, b"a") + await say(remote.listen_port, b"b") == b"AB"
                await quiet(ride)
            async with riding(sshd, path, forwards=(taken,), exit_on_forward_failure=True) as ride:
                with pytest.raises(SharingError, match="could not be opened"):
                    await ride.upstream.forwards.open_configured()

    asyncio.run(main())


def test_too_many_connections_wait_and_none_is_lost(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with shouting() as target, riding(sshd, path) as ride:
            ride.upstream.forwards.gate.limit = 3
            port, remote = free_port(), free_port()
            await ride.control("forward", "-L", f"{port}:127.0.0.1:{target}")
            await ride.control("forward", "-R", f"{remote}:127.0.0.1:{target}")
            waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
            await eventually(lambda: ride.upstream.forwards.gate.full)
            assert await say(remote, b"no room") == b""
            for number, (reader, writer) in enumerate(waiting):
                writer.write(b"number %d" % number)
                writer.write_eof()
                async with asyncio.timeout(60):
                    assert await reader.read() == b"NUMBER %d" % number
                writer.close()
                await writer.wait_closed()
            await quiet(ride)
            assert await say(remote, b"room") == b"ROOM"
            await quiet(ride)

    asyncio.run(main())


def test_too_many_forwardings(sshd: Sshd, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.upstream.forwards.MAX_FORWARDS", 2)

    async def main() -> None:
        async with riding(sshd, path) as ride:
            with await ride.raw() as client:
                await client.greet()
                first, second, third = ((ForwardKind.DYNAMIC, b"", free_port(), b"socks", 0) for _ in range(3))
                assert await client.ask(OpenForward(0, *first)) == Ok(0)
                assert await client.ask(OpenForward(1, *second)) == Ok(1)
                refusal = await client.ask(OpenForward(2, *third))
                assert b"there are 2 forwardings already" in getattr(refusal, "reason", b"")
                assert await client.ask(OpenForward(3, *first)) == Ok(3)

    asyncio.run(main())


def test_a_reader_that_does_not_read_stops_nobody(sshd: Sshd, path: str) -> None:
    async def gush(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        except ConnectionError:
            writer.close()

    async def main() -> None:
        port, other = free_port(), free_port()
        server = await asyncio.start_server(gush, "127.0.0.1", 0)
        async with shouting() as target, server, riding(sshd, path) as ride:
            await ride.control("forward", "-L", f"{port}:127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await ride.control("forward", "-L", f"{other}:127.0.0.1:{target}")
            with socket.create_connection(("127.0.0.1", port)):
                (standing, _) = ride.upstream.forwards.standing.values()
                await eventually(lambda: standing.connections == 1)
                for number in range(20):
                    assert await say(other, b"me %d" % number) == b"ME %d" % number
                assert (await ride.ssh(HOST, "echo me too")).out == b"me too\n"
            await quiet(ride)

    asyncio.run(main())


def test_the_end_closes_all(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        port, remote = free_port(), free_port()
        async with shouting() as target, riding(sshd, path) as ride:
            await ride.control("forward", "-L", f"{port}:127.0.0.1:{target}")
            await ride.control("forward", "-R", f"{remote}:127.0.0.1:{target}")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await eventually(lambda: ride.upstream.forwards.streams)
            ride.upstream.end("enough")
            await ride.served
            async with asyncio.timeout(60):
                assert await reader.read() == b""
            writer.close()
            assert await refused(port)
            await eventually(lambda: not listening(remote))

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["local", "remote dynamic"])
def test_the_end_as_somebody_comes(sshd: Sshd, path: str, kind: str) -> None:
    """Its task is there, and has not begun."""

    async def main() -> None:
        port = free_port()
        option = ("-L", f"{port}:127.0.0.1:1") if kind == "local" else ("-R", str(port))
        async with riding(sshd, path) as ride:
            assert (await ride.control("forward", *option)).code == 0
            forwards = ride.upstream.forwards
            (standing,) = forwards.standing.values()
            # By the kernel alone: until it is taken the loop has one turn after the other, and each begins here.
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setblocking(False)
                async with asyncio.timeout(60):
                    while not standing.taken:
                        await asyncio.sleep(0)
                forwards.close_all()
                await eventually(lambda: forwards.gate.inside == 0 and standing.connections == 0)
                ride.upstream.end("enough")
                await ride.served
                async with asyncio.timeout(60):
                    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""

    asyncio.run(main())


def test_the_end_in_the_step_in_which_one_is_open(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        listening = str(sshd.control_dir / "opened-last")
        forward = Forward(ForwardKind.LOCAL, listening.encode(), PATH_PORT, b"127.0.0.1", 9)
        async with riding(sshd, path) as ride:
            forwards = ride.upstream.forwards
            opening = asyncio.ensure_future(forwards.open(forward))
            async with asyncio.timeout(60):
                while not os.path.exists(listening):
                    await asyncio.sleep(0)
            forwards.close_all()
            await asyncio.wait([opening], timeout=60)
            assert not forwards.standing and not os.path.exists(listening)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("forward", "sound"),
    [
        (Forward(1, b"", 80, b"caf\xe9", 81), False),
        (Forward(2, b"caf\xe9", 80, b"host", 81), False),
        (Forward(1, b"/caf\xe9", PATH_PORT, b"host", 81), True),
        (Forward(2, b"", 80, b"/caf\xe9", PATH_PORT), True),
        (Forward(1, b"", 80, b"/" + b"x" * 4095, PATH_PORT), True),
        (Forward(1, b"", 80, b"/" + b"x" * 4096, PATH_PORT), False),
        (Forward(2, b"x" * 5000, 80, b"host", 81), False),
    ],
)
def test_what_the_server_is_told_is_a_name_and_what_stays_here_need_not_be(forward: Forward, sound: bool) -> None:
    if sound:
        check(forward)
    else:
        with pytest.raises(ForwardRefused, match="Invalid forwarding request"):
            check(forward)


@pytest.mark.parametrize(
    ("host", "gateway_ports", "names"),
    [
        (b"", False, ("127.0.0.1", "::1")),
        (b"", True, ("0.0.0.0", "::")),
        (b"*", False, ("0.0.0.0", "::")),
        (b"*", True, ("0.0.0.0", "::")),
        (b"localhost", True, ("127.0.0.1", "::1")),
        (b"::1", False, ("::1",)),
        (b"192.0.2.1", False, ("192.0.2.1",)),
    ],
)
def test_bind_names(host: bytes, gateway_ports: bool, names: tuple[str, ...]) -> None:
    assert bind_names(host, gateway_ports=gateway_ports) == names


@pytest.mark.parametrize(
    ("host", "sent"),
    [(b"", b"localhost"), (b"*", b""), (b"localhost", b"localhost"), (b"::1", b"::1"), (b"0.0.0.0", b"0.0.0.0")],
)
def test_remote_bind_hosts(host: bytes, sent: bytes) -> None:
    assert remote_bind_host(host) == sent


@pytest.mark.parametrize(
    ("rules", "host", "port", "may"),
    [
        (("any",), b"host", 80, True),
        (("none",), b"host", 80, False),
        (("host:80",), b"host", 80, True),
        (("host:80",), b"host", 81, False),
        (("host:*",), b"host", 81, True),
        (("*:80",), b"other", 80, True),
        (("a:1", "[::1]:22"), b"::1", 22, True),
        (("a:1", "[::1]:22"), b"::2", 22, False),
        ((), b"host", 80, False),
    ],
)
def test_permit_remote_open(rules: tuple[str, ...], host: bytes, port: int, may: bool) -> None:
    assert permitted(Connect(host, port), rules) is may


@pytest.mark.parametrize(
    ("forward", "text"),
    [
        (Forward(1, b"", 80, b"host", 81), "local forward LOCALHOST:80 -> host:81"),
        (Forward(1, b"/a", PATH_PORT, b"/b", PATH_PORT), "local forward /a -> /b"),
        (Forward(2, b"*", 0, b"host", 81), "remote forward *:0 -> host:81"),
        (Forward(2, b"", 1080, b"socks", 0), "remote forward LOCALHOST:1080 -> *"),
        (Forward(3, b"", 1080, b"socks", 0), "dynamic forward LOCALHOST:1080 -> *"),
        (Forward(1, b"\x1b[31m", 80, b"h\n", 81), "local forward \\x1b[31m:80 -> h:81"),
    ],
)
def test_descriptions(forward: Forward, text: str) -> None:
    assert describe(forward) == text
