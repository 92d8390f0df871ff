"""plink's forwardings on our upstream, and what the server opens for them (U15, U16, U24)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mux.protocol.wire import string, u32
from tests.support.ports import free_port, is_listening
from tests.support.sshd import Sshd, program
from tests.support.upstream import Upstream
from tests.support.waiting import wait_until
from tests.t2_upstream.proxied import Proxied
from tests.t2_upstream.riding import eventually
from tests.t5_putty.bare_clients import bare, relays, sharing, works
from tests.t5_putty.riders import Riders
from tests.t5_putty.riders import works as riders_work
from tests.t5_upstream.sockets import Server, connected, read_exactly, refused, socks5
from tests.t5_upstream.test_owners_options import (
    COOKIE,
    PROTOCOL_NAME,
    X_PROGRAM,
    Display,
    authority_file,
)

LOCALHOST = "127.0.0.1"
BULK_BYTES = 300_000


class Refused(Exception):
    """The server did not want the forwarding, by plink's word."""


@contextmanager
def forwarding(riders: Riders, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """plink -N with a forwarding, once it is there. Raises `Refused`."""
    with riders.started(options=("-v", "-N", *options)) as process:
        assert process.stderr is not None
        while line := process.stderr.readline():
            if b"port" in line and (b"forwarding" in line or b"refused" in line) and b"Requesting" not in line:
                if b"refused" in line:
                    raise Refused(line)
                break
        yield process


def test_u15_a_stream_on_standard_input_and_output(riders: Riders) -> None:
    data = os.urandom(3 << 20)
    with Server() as server:
        done = riders.plink(options=("-nc", f"{LOCALHOST}:{server.port}"), data=data)
    assert done.stdout == data


@pytest.mark.parametrize("kind", ["-L", "-D"])
def test_u15_twenty_connections_at_once(riders: Riders, kind: str) -> None:
    # Little goes up, and nobody ends before all has come down: of forwardings in bulk a plink that shares stops reading
    # some, and loses what is on its way to others, whoever holds the connection, a plink as well.
    def answer(connection: socket.socket) -> None:
        connection.sendall(pattern(read_exactly(connection, 8)))
        assert connection.recv(1) == b""

    port = free_port()
    with Server(answer) as server:
        spec = f"{LOCALHOST}:{port}" + (f":{LOCALHOST}:{server.port}" if kind == "-L" else "")

        def use(seed: int) -> bool:
            question = seed.to_bytes(8)
            with connected(port) as connection:
                if kind == "-D":
                    assert socks5(connection, server.port) == 0
                connection.sendall(question)
                return read_exactly(connection, BULK_BYTES) == pattern(question)

        with forwarding(riders, kind, spec), ThreadPoolExecutor(20) as pool:
            assert all(pool.map(use, range(20)))
        assert server.accepted == 20


def digest(connection: socket.socket) -> None:
    """Serve one that sends in bulk."""
    connection.sendall(hashlib.sha256(read_exactly(connection, BULK_BYTES)).digest())
    assert connection.recv(1) == b""


def arrives(port: int) -> bool:
    """Whether what is sent to a port comes to a `digest`."""
    data = os.urandom(BULK_BYTES)
    with connected(port) as connection:
        connection.sendall(data)
        return read_exactly(connection, 32) == hashlib.sha256(data).digest()


def pattern(seed: bytes) -> bytes:
    return hashlib.shake_256(seed).digest(BULK_BYTES)


def test_u16_a_port_of_the_server(riders: Riders) -> None:
    port = free_port()
    with Server(digest) as server:
        with forwarding(riders, "-R", f"{port}:{LOCALHOST}:{server.port}") as plink:
            assert arrives(port)
            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(arrives, [port] * 8))
            with pytest.raises(Refused), forwarding(riders, "-R", f"{port}:{LOCALHOST}:{server.port}"):
                pass
            assert arrives(port)  # still the first one's
            plink.terminate()
        wait_until(lambda: refused(port), f"nobody listens on port {port}")
        with forwarding(riders, "-R", f"{port}:{LOCALHOST}:{server.port}"):
            assert arrives(port)
    assert riders_work(riders)


def test_u16_connections_to_who_was_killed_harm_nobody(riders: Riders) -> None:
    port = free_port()
    with Server(digest) as server, riders.started("echo up; cat") as bystander:
        assert bystander.stdout is not None and bystander.stdout.readline() == b"up\n"
        with forwarding(riders, "-R", f"{port}:{LOCALHOST}:{server.port}") as plink:
            assert arrives(port)
            plink.send_signal(signal.SIGSTOP)
            waiting = [socket.create_connection((LOCALHOST, port), 20) for _ in range(5)]
            plink.kill()
            for connection in waiting:
                try:
                    assert connection.recv(1) == b""
                except ConnectionResetError:
                    pass
                connection.close()
        wait_until(lambda: refused(port), f"nobody listens on port {port}")
        assert bystander.communicate(b"as before", timeout=20)[0] == b"as before"
    assert riders_work(riders)


async def ask_forwarding(client: Proxied, port: int, host: bytes = b"localhost") -> int | None:
    """tcpip-forward; the port, or None when it was refused."""
    await client.say(80, string(b"tcpip-forward"), b"\1", string(host), u32(port))
    packet = await client.hear()
    assert packet is not None and packet.kind in (81, 82)
    if packet.kind == 82:
        return None
    return packet.number() if port == 0 else port


def test_u16_ports_that_the_server_chooses(sshd: Sshd) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride, bare(ride) as one, bare(ride) as other:
            ports = [await ask_forwarding(client, 0) for client in (one, one, other)]
            assert None not in ports and len(set(ports)) == 3
            first, _, third = (port or 0 for port in ports)
            assert await ask_forwarding(other, first) is None  # the server's no
            for client, port in ((one, first), (other, third)):
                reader, writer = await asyncio.open_connection(LOCALHOST, port)
                offer = await client.hear_kind(90)
                assert string(b"forwarded-tcpip") in offer.body and string(b"localhost") + u32(port) in offer.body
                number = offer.body[19:23]
                await client.say(91, number, u32(256), u32(0x4000), u32(0x4000))
                writer.write(b"to the client")
                assert (await client.hear_kind(94)).body[8:] == b"to the client"
                await client.say(94, number, string(b"to the server"))
                assert await reader.readexactly(13) == b"to the server"
                writer.close()
            # Only the owner may cancel.
            await other.say(80, string(b"cancel-tcpip-forward"), b"\1", string(b"localhost"), u32(first))
            assert (await other.hear_kind(82)).body == b""
            assert not refused(first)
            await one.say(80, string(b"cancel-tcpip-forward"), b"\1", string(b"localhost"), u32(first))
            await one.hear_kind(81)
            await asyncio.to_thread(wait_until, lambda: refused(first), "nobody listens")

    asyncio.run(main())


def test_u16_u25_an_owner_that_dies_before_it_answers(sshd: Sshd) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride:
            async with bare(ride) as client:
                port = await ask_forwarding(client, 0) or 0
                reader, writer = await asyncio.open_connection(LOCALHOST, port)
                await client.hear_kind(90)
            assert await reader.read() == b""
            writer.close()
            await asyncio.to_thread(wait_until, lambda: refused(port), "nobody listens")
            await eventually(lambda: not relays(ride))
            assert await works(ride)

    asyncio.run(main())


X11 = (string(b"x11-req"), b"\1\0")


def test_u24_the_agent_and_x11_are_denied_by_default(sshd: Sshd) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride, bare(ride) as client:
            session = await client.open_session()
            await client.say(98, session, string(b"auth-agent-req@openssh.com"), b"\0")  # wants no answer
            await client.say(98, session, string(b"auth-agent-req@openssh.com"), b"\1")
            await client.say(98, session, *X11, string(b"MIT-MAGIC-COOKIE-1"), string(b"00" * 16), u32(0))
            await client.say(98, session, string(b"exec"), b"\1", string(b"echo agent $SSH_AUTH_SOCK x11 $DISPLAY"))
            assert [await kind(client) for _ in range(3)] == [100, 100, 99]
            assert (await client.hear_kind(94)).body[8:] == b"agent x11\n"

    asyncio.run(main())


async def kind(client: Proxied) -> int:
    """That of the next packet that is no window."""
    while (packet := await client.hear()) is not None and packet.kind == 93:
        pass
    assert packet is not None
    return packet.kind


def test_u24_the_owners_agent_where_the_owner_allows_it(sshd: Sshd) -> None:
    agent = sshd.control_dir / "agent"
    serving = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_listening(agent), "the agent listens")
        key = ["-q", str(sshd.directory / "user_key")]
        env = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
        subprocess.run([program("ssh-add"), *key], env=env, check=True, stdin=subprocess.DEVNULL, timeout=20)

        async def main() -> None:
            async with sharing(sshd, forwarded_agent=str(agent)) as ride, bare(ride) as client:
                session = await client.open_session()
                await client.say(98, session, string(b"auth-agent-req@openssh.com"), b"\1")
                await client.say(98, session, string(b"exec"), b"\1", string(b"ssh-add -l"))
                assert [await kind(client) for _ in range(2)] == [99, 99]
                assert b"user_key" in (await client.hear_kind(94)).body  # and no channel came down for it

        asyncio.run(main())
    finally:
        serving.terminate()
        serving.wait(20)
        agent.unlink(missing_ok=True)


def test_u24_x11_by_a_way_that_cannot_be_swapped(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with sharing(sshd) as ride, bare(ride) as client:
            asked = []

            async def request() -> bytes | None:
                asked.append(1)
                return b"\0" + string(b"MIT-MAGIC-COOKIE-1") + string(b"11" * 16) + u32(0)

            monkeypatch.setattr(ride.upstream.incoming.x11, "request", request)
            session = await client.open_session()
            await client.say(98, session, *X11, string(b"NO-SUCH-PROTOCOL"), string(b"00"), u32(0))
            assert await kind(client) == 100 and not asked
            await client.say(98, session, *X11, string(b"MIT-MAGIC-COOKIE-1"), string(b"00" * 16), u32(0))
            await client.say(98, session, string(b"exec"), b"\1", string(b"true"))
            assert await kind(client) in (99, 100) and asked  # the server's own word
            assert await kind(client) == 99

    asyncio.run(main())


def test_u24_x11_comes_to_the_owners_display(
    make_sshd: Callable[..., Sshd],
    make_ours: Callable[..., tuple[Upstream, Riders]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The program there has another cookie than the display, which sees its own; so it is for each who asks."""
    there = ["X11Forwarding yes", f"SetEnv SHLVL=2 XAUTHORITY={tmp_path}/there"]
    sshd = make_sshd(extra=[f"XAuthLocation {program('xauth')}", "Match all", *there])
    (sshd.root / "x.py").write_text(X_PROGRAM)
    with Display() as display, authority_file(tmp_path / "authority", display.name) as authority:
        env = {**sshd.environment(), "DISPLAY": display.name, "XAUTHORITY": str(authority)}
        monkeypatch.setattr(sshd, "environment", lambda: env)
        _, riders = make_ours(sshd, options=["-oForwardX11=yes", "-oForwardX11Trusted=yes"])
        for count in (1, 2):
            said = riders.plink(f"{sys.executable} {sshd.root}/x.py", options=("-X",)).stdout
            match = re.fullmatch(rb"([0-9a-f]{32}) b'\\x01welcome'\n", said)
            assert match is not None, said
            assert bytes.fromhex(match[1].decode()) != COOKIE
            assert display.authorities == [(PROTOCOL_NAME, COOKIE)] * count
        assert riders.plink('echo "[$DISPLAY]"').stdout == b"[]\n"
