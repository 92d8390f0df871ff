"""X11 and the ssh agent: a client gets them when it asks for them and the holder's options allow it, both."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.master import Master
from tests.support.ports import is_listening
from tests.support.sshd import HOST, Sshd, program
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import DEADLINE_S, Clients
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.sockets import Server, read_exactly

COOKIE = bytes(range(16))
PROTOCOL_NAME = b"MIT-MAGIC-COOKIE-1"
# Display 0 is this port (X Window System Protocol, "TCP/IP").
FIRST_X_PORT = 6000


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """An ssh-agent with one key; its socket."""
    path = tmp_path / "agent"
    process = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        key = tmp_path / "key"
        generate = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "agent's own", "-f", str(key)]
        subprocess.run(generate, check=True, timeout=DEADLINE_S)
        wait_until(lambda: is_listening(path), "the agent listens")
        env = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        add = [program("ssh-add"), "-q", str(key)]
        subprocess.run(add, check=True, timeout=DEADLINE_S, env=env, stdin=subprocess.DEVNULL)
        yield str(path)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def list_keys(clients: Clients, *arguments: str) -> bytes:
    return clients.ssh(*arguments, HOST, 'if [ -n "$SSH_AUTH_SOCK" ]; then ssh-add -l; else echo none; fi').stdout


def test_43_agent(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master], agent: str) -> None:
    """For the client that asks, and for no other."""
    clients = Clients.of(make_holder(make_sshd(), options=[f"-oForwardAgent={agent}"]))
    assert list_keys(clients) == b"none\n"
    assert list_keys(clients, "-a") == b"none\n"
    # From here on sshd tells every session of this connection of it.
    assert b"agent's own" in list_keys(clients, "-A")
    assert b"agent's own" in list_keys(clients, "-A")


def test_43_agent_not_allowed(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master], agent: str) -> None:
    """What the client wishes alone does not give away an agent."""
    clients = Clients.of(make_holder(make_sshd()))
    assert list_keys(clients, f"-oForwardAgent={agent}") == b"none\n"
    assert list_keys(clients, "-A") == b"none\n"


@ours_only
def test_43_agent_that_has_gone(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> None:
    """The command there finds nobody behind its socket, and everything else works."""
    server = make_sshd()
    clients = Clients.of(make_holder(server, options=[f"-oForwardAgent={server.control_dir}/gone"]))
    done = clients.ssh("-A", HOST, "ssh-add -l; exit 3")
    assert done.returncode == 3


class Display:
    """The side of an X server: takes connections, and notes with which authority they come.

    name  for the environment, DISPLAY
    """

    def __init__(self) -> None:
        self.authorities: list[tuple[bytes, bytes]] = []
        self._server = Server(self._serve)
        self.name = f"127.0.0.1:{self._server.port - FIRST_X_PORT}"

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody answers any more. Idempotent."""
        self._server.close()

    def _serve(self, connection: socket.socket) -> None:
        """Read the connection setup (X Window System Protocol, "Connection Setup"), little-endian, and say yes."""
        head = connection.recv(12, socket.MSG_WAITALL)
        if head[:1] != b"l":
            return
        name_bytes, data_bytes = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
        name = read_exactly(connection, (name_bytes + 3) & ~3)[:name_bytes]
        data = read_exactly(connection, (data_bytes + 3) & ~3)[:data_bytes]
        self.authorities.append((name, data))
        connection.sendall(b"\x01welcome")


@contextmanager
def authority_file(path: Path, display: str) -> Iterator[Path]:
    """~/.Xauthority with the display's cookie, as xauth makes it."""
    add = [program("xauth"), "-f", str(path), "add", display, PROTOCOL_NAME.decode(), COOKIE.hex()]
    subprocess.run(add, check=True, timeout=DEADLINE_S, stderr=subprocess.DEVNULL)
    yield path


# What a program does there: connect to $DISPLAY with the cookie that xauth has for it.
X_PROGRAM = r"""
import os, socket, subprocess, sys
host, _, number = os.environ["DISPLAY"].partition(":")
number = int(number.partition(".")[0])
listed = subprocess.run(["xauth", "list", os.environ["DISPLAY"]], capture_output=True, text=True).stdout.split()
name, data = listed[-2].encode(), bytes.fromhex(listed[-1])
if len(sys.argv) > 1:
    data = bytes(16)
pad = lambda text: text + bytes(-len(text) % 4)
setup = b"l\0" + (11).to_bytes(2, "little") + bytes(2)
setup += len(name).to_bytes(2, "little") + len(data).to_bytes(2, "little") + bytes(2) + pad(name) + pad(data)
with socket.create_connection((host or "127.0.0.1", 6000 + number), 10) as connection:
    connection.sendall(setup)
    try:
        print(data.hex(), connection.recv(100))
    except ConnectionResetError:
        print(data.hex(), b"")
"""


@pytest.fixture
def x11(
    make_sshd: Callable[..., Sshd],
    make_holder: Callable[..., Master],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Display, Callable[..., Clients]]]:
    """A display, and `holder(option...)`: clients of a holder that was started on it."""
    # Cookies of the server's side go into a file of the test's, not of the user's.
    there = ["X11Forwarding yes", f"SetEnv SHLVL=2 XAUTHORITY={tmp_path}/there"]
    server = make_sshd(extra=[f"XAuthLocation {program('xauth')}", "Match all", *there])
    (server.root / "x.py").write_text(X_PROGRAM)
    with Display() as display, authority_file(tmp_path / "authority", display.name) as path:
        outer = server.environment

        def environment() -> dict[str, str]:
            return {**outer(), "DISPLAY": display.name, "XAUTHORITY": str(path)}

        monkeypatch.setattr(server, "environment", environment)
        yield display, lambda *options: Clients.of(make_holder(server, options=list(options)))


def run_there(clients: Clients, *words: str, flag: str = "-X") -> bytes:
    script = clients.sshd.root / "x.py"
    return clients.ssh(
        flag, HOST, f'if [ -n "$DISPLAY" ]; then {sys.executable} {script} {" ".join(words)}; else echo none; fi'
    ).stdout


def test_43_x11(x11: tuple[Display, Callable[..., Clients]]) -> None:
    """The program there has another cookie than the display; the display sees its own."""
    display, holder = x11
    clients = holder("-oForwardX11=yes", "-oForwardX11Trusted=yes")
    said = run_there(clients)
    match = re.fullmatch(rb"([0-9a-f]{32}) b'\\x01welcome'\n", said)
    assert match is not None, said
    assert bytes.fromhex(match[1].decode()) != COOKIE
    assert display.authorities == [(PROTOCOL_NAME, COOKIE)]
    assert run_there(clients, flag="-x") == b"none\n"


def test_43_x11_with_a_wrong_cookie(x11: tuple[Display, Callable[..., Clients]]) -> None:
    """It is not let through to the display."""
    display, holder = x11
    clients = holder("-oForwardX11=yes", "-oForwardX11Trusted=yes")
    assert run_there(clients, "wrong").endswith(b" b''\n")
    assert display.authorities == []


def test_43_x11_not_allowed(x11: tuple[Display, Callable[..., Clients]]) -> None:
    """What the client wishes alone does not give away a display."""
    _, holder = x11
    assert run_there(holder()) == b"none\n"


def test_43_display_that_has_gone(x11: tuple[Display, Callable[..., Clients]]) -> None:
    display, holder = x11
    clients = holder("-oForwardX11=yes", "-oForwardX11Trusted=yes")
    display.close()
    assert run_there(clients).endswith(b" b''\n")
    assert clients.ssh(HOST, "exit 3").returncode == 3
