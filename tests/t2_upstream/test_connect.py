"""How bytes reach the server: what TCP is told, a program in between, and other servers in between."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from mux.errors import ExitCode, SharingError
from mux.rendezvous.target import SshOptions, resolve
from mux.upstream import connect as reaching
from mux.upstream.configuration import settings_of
from mux.upstream.connect import Connected, connect
from mux.upstream.engine import Engine, start
from mux.upstream.programs import MOST_LINES
from mux.upstream.settings import Settings
from tests.support import processes
from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd, program
from tests.t2_upstream.harness import DEADLINE_S, LOGIN_DEADLINE_S, Exec, options_for


def settings_for(sshd: Sshd, **changes: Any) -> Settings:
    target = resolve(HOST, None, SshOptions(config_file=str(sshd.ssh_config)))
    return dataclasses.replace(settings_of(target), **changes)


@asynccontextmanager
async def engine_through(sshd: Sshd, connected: Connected) -> AsyncIterator[Engine]:
    engine = await start(
        connected.sock, asyncssh.SSHClient(), options_for(sshd), deadline_s=LOGIN_DEADLINE_S, close=connected.close
    )
    try:
        yield engine
    finally:
        engine.disconnect("the test is over")
        await asyncio.wait_for(engine.closed(), DEADLINE_S)


async def works(sshd: Sshd, settings: Settings, said: list[str]) -> None:
    """Log in that way, and run something."""
    async with engine_through(sshd, await connect(settings, said.append)) as engine:
        text = os.urandom(300_000)
        assert await Exec(engine, "cat", send=text).done() == text


# TCP


def test_tcp(sshd: Sshd) -> None:
    async def main() -> None:
        said: list[str] = []
        await works(sshd, settings_for(sshd), said)
        assert said == []

    asyncio.run(main())


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(DEADLINE_S)
        yield made


def test_what_the_socket_is_told(sshd: Sshd, listener: socket.socket) -> None:
    async def main() -> None:
        settings = settings_for(
            sshd,
            hostname="localhost",
            port=listener.getsockname()[1],
            address_family=socket.AF_INET,
            bind_address="127.0.0.5",
            tcp_keepalive=True,
            ip_qos=("af21", "cs1"),
        )
        connected = await connect(settings, print)
        with connected.sock as sock:
            assert sock.getsockname()[0] == "127.0.0.5"
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 18 << 2
            assert not sock.getblocking()
        await connected.close()
        listener.accept()[0].close()

    asyncio.run(main())


def test_an_interface(sshd: Sshd, listener: socket.socket) -> None:
    async def main() -> None:
        settings = settings_for(sshd, port=listener.getsockname()[1], bind_interface="lo", tcp_keepalive=False)
        with (await connect(settings, print)).sock as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        listener.accept()[0].close()
        with pytest.raises(SharingError, match="No such device"):
            await connect(dataclasses.replace(settings, bind_interface="nosuch0"), print)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("word", "octet"),
    {
        "af11": 10 << 2,
        "AF43": 38 << 2,
        "cs1": 8 << 2,
        "cs7": 56 << 2,
        "ef": 46 << 2,
        "le": 1 << 2,
        "lowdelay": 16,
        "throughput": 8,
        "reliability": 4,
        "0x20": 32,
        "16": 16,
        "none": None,
        "af14": None,
    }.items(),
)
def test_words_of_ipqos(word: str, octet: int | None) -> None:
    assert reaching._type_of_service(word) == octet


def test_nobody_listens(sshd: Sshd) -> None:
    port = free_port()

    async def main() -> None:
        with pytest.raises(
            SharingError, match=f"^cannot connect to 127.0.0.1 port {port}: Connection refused$"
        ) as error:
            await connect(settings_for(sshd, port=port), print)
        assert error.value.exit_code is ExitCode.UNREACHABLE

    asyncio.run(main())


def test_another_attempt_is_made(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "BETWEEN_ATTEMPTS_S", 0.05)
    address = ("127.0.0.1", free_port())
    seen: list[object] = []
    attempt = reaching._attempt

    async def counted(settings: Settings) -> socket.socket:
        seen.append(settings)
        if len(seen) == 3:
            second = socket.create_server(address)
            try:
                return await attempt(settings)
            finally:
                second.close()
        return await attempt(settings)

    monkeypatch.setattr(reaching, "_attempt", counted)

    async def main() -> None:
        with pytest.raises(SharingError):
            await connect(settings_for(sshd, port=address[1], connection_attempts=2), print)
        seen.clear()
        (await connect(settings_for(sshd, port=address[1], connection_attempts=3), print)).sock.close()

    asyncio.run(main())


def test_a_name_that_nobody_has(sshd: Sshd) -> None:
    async def main() -> None:
        with pytest.raises(SharingError, match=r"could not resolve hostname no-such-host\.invalid: ") as error:
            await connect(settings_for(sshd, hostname="no-such-host.invalid"), print)
        assert error.value.exit_code is ExitCode.UNREACHABLE
        with pytest.raises(SharingError, match="not a name"):
            await connect(settings_for(sshd, hostname="x" * 300), print)

    asyncio.run(main())


def test_a_connection_that_is_not_answered_has_a_deadline(sshd: Sshd) -> None:
    """A queue that is full: the kernel drops what else asks for a connection."""

    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            waiting = [socket.socket() for _ in range(4)]
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
            with pytest.raises(SharingError, match="Connection timed out") as error:
                await connect(settings_for(sshd, port=port, connect_timeout_s=1), print)
            assert error.value.exit_code is ExitCode.UNREACHABLE
            for sock in waiting:
                sock.close()

    asyncio.run(main())


# ProxyCommand


def inetd(sshd: Sshd) -> str:
    """A server of this connection alone, on its standard input and output; it talks on its stderr."""
    return f"{program('sshd')} -i -e -f {sshd.directory}/sshd_config"


def test_a_program(sshd: Sshd) -> None:
    async def main() -> None:
        said: list[str] = []
        await works(sshd, settings_for(sshd, proxy_command=inetd(sshd)), said)
        assert any("Accepted publickey" in line for line in said)

    asyncio.run(main())


def test_its_words_are_kept_apart_and_tokens_replaced(sshd: Sshd) -> None:
    async def main() -> None:
        said: list[str] = []
        talk = "echo to %h port %p as %n, 100%% >&2; printf '\\033[31mred\\rand no end' >&2; exec " + inetd(sshd)
        await works(sshd, settings_for(sshd, proxy_command=f"/bin/sh -c {shlex.quote(talk)}"), said)
        assert said[0] == f"to 127.0.0.1 port {sshd.port} as box, 100%"
        assert said[1] == "\\x1b[31mred"
        assert any(line.startswith("and no end") for line in said)

    asyncio.run(main())


def test_one_that_fails_says_why(sshd: Sshd) -> None:
    async def main() -> None:
        said: list[str] = []
        connected = await connect(settings_for(sshd, proxy_command="/no/such/program %h"), said.append)
        with pytest.raises((asyncssh.Error, OSError)):
            async with engine_through(sshd, connected):
                pass
        assert len(said) == 1 and "/no/such/program" in said[0] and "not found" in said[0]
        assert connected.sock.fileno() == -1

    asyncio.run(main())


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash", None])
def test_it_runs_in_the_users_shell(sshd: Sshd, monkeypatch: pytest.MonkeyPatch, shell: str | None) -> None:
    monkeypatch.setattr("mux.upstream.programs.ENDS_ITSELF_S", DEADLINE_S)
    if shell is None:
        monkeypatch.delenv("SHELL", raising=False)
    else:
        monkeypatch.setenv("SHELL", shell)

    async def main() -> None:
        said: list[str] = []
        # What `exec` gets is one simple command: what is left of the shell is its name for errors.
        connected = await connect(settings_for(sshd, proxy_command="/no/such/program"), said.append)
        connected.sock.close()
        await connected.close()
        assert said[0].startswith((shell or "/bin/sh") + ": ")

    asyncio.run(main())


STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
    assert signal.getsignal(number) is signal.SIG_IGN, number
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), file=sys.stderr, flush=True)
time.sleep(100)
"""


def test_one_that_does_not_end_is_ended(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the terminal's signals are not for it."""
    monkeypatch.setattr("mux.upstream.programs.ENDS_ITSELF_S", 0.05)
    monkeypatch.setattr("mux.upstream.programs.TERM_DEADLINE_S", 0.05)

    async def main() -> None:
        words: asyncio.Queue[str] = asyncio.Queue()
        command = f"{sys.executable} -c {shlex.quote(STUBBORN)}"
        connected = await connect(settings_for(sshd, proxy_command=command), words.put_nowait)
        pid = int(await asyncio.wait_for(words.get(), DEADLINE_S))
        assert processes.look(pid) is not None
        connected.sock.close()
        await asyncio.gather(connected.close(), connected.close())
        await connected.close()
        assert processes.look(pid) is None

    asyncio.run(main())


def test_one_that_never_stops_talking_is_not_listened_to_for_ever(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mux.upstream.programs.ENDS_ITSELF_S", DEADLINE_S)

    async def main() -> None:
        said: list[str] = []
        talk = f"{sys.executable} -c " + shlex.quote("import sys; sys.stderr.write('x' * 100000 + 'y\\n' * 9999)")
        connected = await connect(settings_for(sshd, proxy_command=talk), said.append)
        connected.sock.close()
        await connected.close()
        assert len(said) == MOST_LINES
        assert max(map(len, said)) <= 500

    asyncio.run(main())


def test_what_it_leaves_behind_does_not_keep_us(sshd: Sshd) -> None:
    """Something that holds its stderr."""

    async def main() -> None:
        words: asyncio.Queue[str] = asyncio.Queue()
        talk = "/bin/sh -c 'sleep 100 </dev/null >/dev/null & echo $! >&2'"
        connected = await connect(settings_for(sshd, proxy_command=talk), words.put_nowait)
        left = processes.known(int(await asyncio.wait_for(words.get(), DEADLINE_S)))
        connected.sock.close()
        await asyncio.wait_for(connected.close(), DEADLINE_S)
        processes.end([left])
        processes.reap(left.pid)

    asyncio.run(main())


# ProxyJump


@pytest.fixture
def inner(sshd: Sshd, make_sshd: Callable[..., Sshd]) -> tuple[Sshd, Path]:
    """A server behind `box`, and a configuration in which "inner" is it."""
    server = make_sshd()
    config = sshd.directory / "ssh_config.jump"
    text = server.ssh_config.read_text().replace(f"Host {HOST}", "Host inner")
    middle = sshd.ssh_config.read_text().replace(f"Host {HOST}", "Host middle")
    config.write_text(text + "    ProxyJump box\n" + sshd.ssh_config.read_text() + middle)
    return server, config


@pytest.mark.parametrize("jumps", [f"{HOST}", f"middle,{HOST}", "user@middle:port"])
def test_jumps(sshd: Sshd, inner: tuple[Sshd, Path], jumps: str) -> None:
    server, config = inner

    async def main() -> None:
        settings = settings_of(resolve("inner", None, SshOptions(config_file=str(config))))
        assert settings.proxy_jump == HOST
        words = jumps.replace("user", sshd.user).replace("port", str(sshd.port))
        said: list[str] = []
        await works(server, dataclasses.replace(settings, proxy_jump=words), said)
        assert said == []

    asyncio.run(main())


def test_a_jump_that_fails_says_why(sshd: Sshd, inner: tuple[Sshd, Path]) -> None:
    server, config = inner

    async def main() -> None:
        settings = settings_of(resolve("inner", None, SshOptions(config_file=str(config))))
        said: list[str] = []
        connected = await connect(dataclasses.replace(settings, proxy_jump=f"{HOST}:1"), said.append)
        with pytest.raises((asyncssh.Error, OSError)):
            async with engine_through(server, connected):
                pass
        assert any("port 1: Connection refused" in line for line in said)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("jump", "expected"),
    [
        ("a", ["--", "a"]),
        ("u@a:2022", ["-p", "2022", "-l", "u", "-W", "[10.0.0.1]:7", "--", "a"]),
        ("u@v@a", ["-l", "u@v", "-W", "[10.0.0.1]:7", "--", "a"]),
        ("[fe80::1]:24", ["-p", "24", "-W", "[10.0.0.1]:7", "--", "fe80::1"]),
        ("fe80::1", ["-W", "[10.0.0.1]:7", "--", "fe80::1"]),
        ("ssh://u@a:2022/", ["-p", "2022", "-l", "u", "-W", "[10.0.0.1]:7", "--", "a"]),
        ("x,u@y:3,z", ["-J", "x,u@y:3", "-W", "[10.0.0.1]:7", "--", "z"]),
    ],
)
def test_the_command_of_a_jump(sshd: Sshd, jump: str, expected: list[str]) -> None:
    settings = settings_for(sshd, proxy_jump=jump, hostname="10.0.0.1", port=7)
    assert reaching.jump_command(settings)[-len(expected) :] == expected
    assert reaching.jump_command(settings)[:3] == ["ssh", "-F", str(sshd.ssh_config)]
    batch = dataclasses.replace(settings, batch=True, arguments=(HOST,))
    assert reaching.jump_command(batch)[:3] == ["ssh", "-o", "BatchMode=yes"]


@pytest.mark.parametrize("jump", ["", "a:b", "a:", "u@", ",", "[::1", "[::1]24", "a/b"])
def test_no_jump(sshd: Sshd, jump: str) -> None:
    with pytest.raises(SharingError, match=r"is not \[user@\]host\[:port\]") as error:
        reaching.jump_command(settings_for(sshd, proxy_jump=jump))
    assert error.value.exit_code is ExitCode.USAGE
