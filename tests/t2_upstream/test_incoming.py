"""Channels that the server opens: the owner's agent, X11, and what nobody asked for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mux.protocol.messages import UNIX_SOCKET_PORT
from mux.protocol.wire import string, u32
from mux.upstream.engine import Engine, IncomingOpen
from mux.upstream.incoming import AGENT, FORWARDED_STREAMLOCAL, FORWARDED_TCPIP, X11_KIND, Incoming
from mux.upstream.x11 import Display, Prefix, display
from tests.support.ports import is_listening
from tests.support.sshd import HOST, Sshd, program

from .harness import engine_to
from .riding import eventually, riding, settings_for

OPEN_FAILURE = 92
COOKIE = "000102030405060708090a0b0c0d0e0f"


@pytest.fixture
def path(sshd: Sshd) -> str:
    return str(sshd.control_dir / "upstream")


@asynccontextmanager
async def agent(sshd: Sshd) -> AsyncIterator[str]:
    """A real ssh-agent with the user's key in it; gives its socket."""
    place = str(sshd.control_dir / "agent")
    process = await asyncio.create_subprocess_exec(
        program("ssh-agent"), "-D", "-a", place, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await eventually(lambda: is_listening(place))
        add = await asyncio.create_subprocess_exec(
            program("ssh-add"),
            "-q",
            str(sshd.directory / "user_key"),
            env={**sshd.environment(), "SSH_AUTH_SOCK": place},
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await add.wait() == 0
        yield place
    finally:
        process.terminate()
        await process.wait()


def test_the_agent_for_those_who_may(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        async with agent(sshd) as place:
            async with riding(sshd, path, forwarded_agent=place) as ride:
                # An sshd gives all later sessions of a connection what one asked for: so this one comes first.
                assert (await ride.ssh("-a", HOST, "ssh-add -l")).code == 2
                done = await ride.ssh("-A", HOST, "ssh-add -l && ssh-add -l")
                assert (done.code, done.out.count(b"ED25519")) == (0, 2), done
                answers = await asyncio.gather(*(ride.ssh("-A", HOST, "ssh-add -l") for _ in range(6)))
                assert {done.out.count(b"ED25519") for done in answers} == {1}
                await eventually(lambda: not ride.upstream.incoming._agents)
            async with riding(sshd, path, forwarded_agent=None) as ride:
                assert (await ride.ssh("-A", HOST, "ssh-add -l")).code == 2
            async with riding(sshd, path, forwarded_agent=place + ".gone") as ride:
                done = await ride.ssh("-A", HOST, "ssh-add -l; echo lives")
                assert done.out.endswith(b"lives\n") and b"ED25519" not in done.out

    asyncio.run(main())


# What runs on the server as an X11 program: it takes the cookie that sshd put there, and says what it hears.
PROGRAM = """
import os, socket, subprocess, sys
display = os.environ["DISPLAY"]
cookie = bytes.fromhex(subprocess.run(["xauth", "list", display], capture_output=True).stdout.split()[-1].decode())
if len(sys.argv) > 1:
    cookie = bytes(16)
port = 6000 + int(display.rpartition(":")[2].partition(".")[0])
with socket.create_connection(("127.0.0.1", port)) as server:
    name = b"MIT-MAGIC-COOKIE-1"
    prefix = b"l\\0" + b"\\x0b\\0\\0\\0" + len(name).to_bytes(2, "little") + b"\\x10\\0" + b"\\0\\0" + name + b"\\0\\0"
    for piece in (prefix[:5], prefix[5:], cookie[:9], cookie[9:] + b"and then what it wants"):
        server.sendall(piece)
    server.shutdown(socket.SHUT_WR)
    heard = b""
    try:
        while piece := server.recv(4096):
            heard += piece
    except ConnectionResetError:
        pass
print(cookie.hex(), heard.hex())
"""


@pytest.fixture
def x11_sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    return make_sshd(
        accept_env="LANG LC_* XAUTHORITY",
        extra=["Match all", "X11Forwarding yes", f"XAuthLocation {program('xauth')}"],
    )


@asynccontextmanager
async def x_server(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bytes]]:
    """What takes X11 programs as the owner's $DISPLAY; gives what they said. It answers with the length of that."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.write(b"%d" % len(heard[-1]))
        await writer.drain()
        writer.close()

    for number in range(60, 200):
        try:
            server = await asyncio.start_server(serve, "127.0.0.1", 6000 + number)
            break
        except OSError:
            continue
    authority = directory / "authority"
    name = f"127.0.0.1:{number}"
    monkeypatch.setenv("DISPLAY", name + ".1")
    monkeypatch.setenv("XAUTHORITY", str(authority))
    authority.touch()
    await asyncio.to_thread(
        subprocess.run,
        [program("xauth"), "-q", "-f", str(authority), "add", name, ".", COOKIE],
        check=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
    )
    async with server:
        yield heard


def test_x11_with_a_cookie_of_each_session(x11_sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place = str(x11_sshd.control_dir / "upstream")
        script = x11_sshd.directory / "program.py"
        script.write_text(PROGRAM)
        environment = (f"XAUTHORITY={x11_sshd.directory}/remote",)
        allowed = {"forward_x11": True, "forward_x11_trusted": True, "set_env": environment}
        async with x_server(x11_sshd.directory, monkeypatch) as heard:
            async with riding(x11_sshd, place, **allowed) as ride:
                cookies = set()
                for _ in range(2):
                    done = await ride.ssh("-X", HOST, f"{sys.executable} {script}")
                    assert done.code == 0, done
                    cookie, answer = done.out.split()
                    assert bytes.fromhex(answer.decode()) == b"%d" % len(heard[-1])
                    assert heard[-1].endswith(b"and then what it wants")
                    assert heard[-1][32:48].hex() == COOKIE
                    cookies.add(cookie)
                assert len(cookies) == 2 and COOKIE.encode() not in cookies
                done = await ride.ssh("-X", HOST, f"{sys.executable} {script} forged")
                assert done.out.split() == [b"00" * 16]
                assert len(heard) == 2
                assert (await ride.ssh("-x", HOST, "echo $DISPLAY")).out == b"\n"
                await eventually(lambda: not ride.upstream.incoming.x11._streams)
            async with riding(x11_sshd, place, set_env=environment) as ride:
                assert (await ride.ssh("-X", HOST, "echo $DISPLAY")).out == b"\n"
            # There is no X server that would make a cookie for the untrusted: no X11, but the session.
            monkeypatch.setenv("DISPLAY", "127.0.0.1:59")
            async with riding(x11_sshd, place, **{**allowed, "forward_x11_trusted": False}) as ride:
                assert (await ride.ssh("-X", HOST, "echo $DISPLAY")).out == b"\n"

    asyncio.run(main())


def test_x11_without_a_place_for_a_cookie(
    x11_sshd: Sshd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails whoever asks, for as long as there is none, and nobody else."""
    monkeypatch.setenv("DISPLAY", "127.0.0.1:59")

    async def main() -> None:
        place = str(x11_sshd.control_dir / "upstream")
        async with riding(x11_sshd, place, forward_x11=True, forward_x11_trusted=False) as ride:
            monkeypatch.setattr("tempfile.tempdir", str(x11_sshd.directory / "nowhere"))
            for _ in range(2):
                done = await ride.ssh("-X", HOST, "echo here $DISPLAY")
                assert (done.code, done.out) == (0, b"here\n")
            assert caplog.text.count("there is no place for a cookie") == 2

    with caplog.at_level("INFO", "mux.upstream.x11"):
        asyncio.run(main())


def answers_to(engine: Engine, incoming: IncomingOpen) -> list[tuple[int, bytes]]:
    """What is sent in the step in which the server opens this."""
    sent: list[tuple[int, bytes]] = []
    send, engine.send = engine.send, lambda kind, *parts: sent.append((kind, b"".join(map(bytes, parts))))  # type: ignore[method-assign]
    try:
        assert engine.openers[incoming.kind](incoming)
    finally:
        engine.send = send  # type: ignore[method-assign]
    return sent


@pytest.mark.parametrize(
    ("kind", "rest"),
    [
        (AGENT, b""),
        (X11_KIND, string(b"127.0.0.1") + u32(4)),
        (FORWARDED_TCPIP, string(b"localhost") + u32(80) + string(b"127.0.0.1") + u32(4)),
        (FORWARDED_STREAMLOCAL, string(b"/some/path") + string(b"")),
        (FORWARDED_TCPIP, b"\0\0"),
        (FORWARDED_STREAMLOCAL, b"\0\0\0\xff"),
    ],
)
def test_what_nobody_asked_for_is_refused(sshd: Sshd, kind: bytes, rest: bytes) -> None:
    async def main() -> None:
        engine = await engine_to(sshd)
        Incoming(engine, settings_for(sshd, forwarded_agent="/an/agent", forward_x11=True))
        sent = answers_to(engine, IncomingOpen(kind, 7, 1 << 20, 1 << 15, rest))
        assert [(number, body[:4]) for number, body in sent] == [(OPEN_FAILURE, u32(7))]
        engine.disconnect("over")
        await engine.closed()

    asyncio.run(main())


def test_claims(sshd: Sshd) -> None:
    async def main() -> None:
        engine = await engine_to(sshd)
        incoming = Incoming(engine, settings_for(sshd))
        taken: list[tuple[str, bytes]] = []

        def claim(who: str, kind: bytes, key: tuple[bytes, int] | bytes | None) -> Callable[[], None]:
            return incoming.claim(kind, key, lambda opened: taken.append((who, opened.rest)))

        def opened(kind: bytes, rest: bytes) -> object:
            sent = answers_to(engine, IncomingOpen(kind, 7, 1 << 20, 1 << 15, rest))
            return taken.pop()[0] if taken else sent[0][0]

        def listens(host: bytes, port: int) -> bytes:
            return string(host) + u32(port) + string(b"192.0.2.1") + u32(4)

        first = claim("first", FORWARDED_TCPIP, (b"localhost", 80))
        assert opened(FORWARDED_TCPIP, listens(b"localhost", 80)) == "first"
        assert opened(FORWARDED_TCPIP, listens(b"localhost", 81)) == OPEN_FAILURE
        # A server that names the address it bound; clear only as long as there is one at this port.
        assert opened(FORWARDED_TCPIP, listens(b"127.0.0.1", 80)) == "first"
        other = claim("other", FORWARDED_TCPIP, (b"192.0.2.9", 80))
        assert opened(FORWARDED_TCPIP, listens(b"127.0.0.1", 80)) == OPEN_FAILURE
        assert opened(FORWARDED_TCPIP, listens(b"192.0.2.9", 80)) == "other"
        second = claim("second", FORWARDED_TCPIP, (b"localhost", 80))
        assert opened(FORWARDED_TCPIP, listens(b"localhost", 80)) == "second"
        first()
        assert opened(FORWARDED_TCPIP, listens(b"localhost", 80)) == "second"
        second()
        second()
        other()
        assert opened(FORWARDED_TCPIP, listens(b"localhost", 80)) == OPEN_FAILURE
        gone = claim("path", FORWARDED_STREAMLOCAL, b"/a")
        assert opened(FORWARDED_STREAMLOCAL, string(b"/a") + string(b"")) == "path"
        assert opened(FORWARDED_STREAMLOCAL, string(b"/b") + string(b"")) == OPEN_FAILURE
        gone()
        gone = claim("agent", AGENT, None)
        assert opened(AGENT, b"") == "agent"
        gone()
        assert opened(AGENT, b"") == OPEN_FAILURE
        engine.disconnect("over")
        await engine.closed()

    asyncio.run(main())


def test_the_end_before_an_answer_was_begun(sshd: Sshd, path: str) -> None:
    async def main() -> None:
        engine = await engine_to(sshd)
        incoming = Incoming(engine, settings_for(sshd, forwarded_agent=path))
        assert incoming.agent()
        assert answers_to(engine, IncomingOpen(AGENT, 7, 1 << 20, 1 << 15, b"")) == []
        incoming.close()
        engine.disconnect("over")
        await engine.closed()

    asyncio.run(main())  # what was never awaited would be a warning


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (":0", Display(":0", b"/tmp/.X11-unix/X0", UNIX_SOCKET_PORT, 0)),
        ("unix:7.2", Display("unix:7.2", b"/tmp/.X11-unix/X7", UNIX_SOCKET_PORT, 2)),
        ("localhost:10.0", Display("unix:10.0", b"localhost", 6010, 0)),
        ("192.0.2.1:1", Display("192.0.2.1:1", b"192.0.2.1", 6001, 0)),
        ("[::1]:1.1", Display("[::1]:1.1", b"::1", 6001, 1)),
        ("", None),
        ("0", None),
        (":0; rm", None),
        (":99999", None),
        ("a b:0", None),
    ],
)
def test_displays(text: str, found: Display | None) -> None:
    assert display(text) == found


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_prefix_of_an_x11_program_in_every_split(order: str) -> None:
    name, cookie, real = b"MIT-MAGIC-COOKIE-1", bytes(range(13)), bytes(range(100, 113))

    def number(value: int) -> bytes:
        return value.to_bytes(2, "big" if order == "big" else "little")

    first = b"B\0" if order == "big" else b"l\0"
    before = first + number(11) + number(0) + number(len(name)) + number(len(cookie)) + b"\0\0" + name + b"\0\0"
    said = before + cookie + bytes(3)
    for split in range(len(said)):
        prefix = Prefix()
        prefix.receive(said[:split])
        assert prefix.find_cookie() is None
        prefix.receive(said[split:] + b"more")
        assert prefix.find_cookie() == cookie
        assert prefix.with_cookie(real) == before + real + bytes(3) + b"more"
