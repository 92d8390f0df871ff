"""`ssh -W`: standard input and output as a connection from the server; and through us to somewhere else."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mux.protocol.messages import UNIX_SOCKET_PORT, Failure, SessionOpened, StdioForward
from tests.support.master import Master
from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd, openssh_version, program
from tests.t5_upstream.clients import DEADLINE_S, SSH_FAILED, Clients, ended, say, witness
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Hangup, Raw, pipes
from tests.t5_upstream.sockets import Server, read_all


def test_28_there_and_back(clients: Clients) -> None:
    data = os.urandom(3_000_000)
    with Server() as server:
        done = clients.ssh("-W", f"127.0.0.1:{server.port}", HOST, input=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


def test_28_refused(clients: Clients) -> None:
    done = clients.ssh("-W", f"127.0.0.1:{free_port()}", HOST)
    assert done.returncode == SSH_FAILED
    assert b"Stdio forwarding request failed: Session open refused by peer" in done.stderr


def test_28_input_ends_first(clients: Clients) -> None:
    """The far end sees the end, and may still answer."""

    def answer_at_the_end(connection: socket.socket) -> None:
        connection.sendall(b"read %d" % len(read_all(connection)))
        connection.shutdown(socket.SHUT_WR)

    with Server(answer_at_the_end) as server:
        done = clients.ssh("-W", f"127.0.0.1:{server.port}", HOST, input=b"12345")
    assert (done.returncode, done.stdout) == (0, b"read 5")


@ours_only
def test_28_output_ends_first(clients: Clients) -> None:
    """The far end has said all, and still reads. A real master takes its end for the end of both directions."""
    heard = []
    ready = threading.Event()

    def end_and_listen(connection: socket.socket) -> None:
        connection.sendall(b"all")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))
        ready.set()

    with Server(end_and_listen) as server, clients.started("-W", f"127.0.0.1:{server.port}", HOST) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.read(3) == b"all"
        say(process, b"after the end")
        process.stdin.close()
        assert ready.wait(DEADLINE_S)
        assert ended(process) == 0
    assert heard == [b"after the end"]


@ours_only
def test_28_client_killed(clients: Clients) -> None:
    """The far end sees the end though somebody else has the client's pipes open; a real master waits for them."""
    over = threading.Event()

    def wait_for_the_end(connection: socket.socket) -> None:
        connection.sendall(b"ready")
        try:
            read_all(connection)
        finally:
            over.set()

    with Server(wait_for_the_end) as server, clients.started("-W", f"127.0.0.1:{server.port}", HOST) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        process.kill()
        assert over.wait(DEADLINE_S)


@pytest.fixture
def expects_unix(kind: str) -> bool:
    """The request for a unix path came with 9.4."""
    return kind == "ours" or openssh_version() >= (9, 4)


def test_28_unix_path(clients: Clients, directory: Path, expects_unix: bool) -> None:
    """By hand, since a client before 9.4 has no words for it; a holder before 9.4 refuses it."""
    path = directory / "socket"
    assert clients.control_path is not None
    with Server(path=path), pipes() as (given, kept), Raw(clients.control_path) as raw:
        raw.say(StdioForward(1, b"", str(path).encode(), UNIX_SOCKET_PORT), given[:2])
        if not expects_unix:
            assert raw.expect(Failure).reason == b"Session open refused by peer"
            return
        raw.expect(SessionOpened)
        os.write(kept[0], b"through a unix socket")
        assert os.read(kept[1], 100) == b"through a unix socket"


@ours_only
def test_28_unix_path_refused(clients: Clients, directory: Path) -> None:
    assert clients.control_path is not None
    with pipes() as (given, _), Raw(clients.control_path) as raw:
        raw.say(StdioForward(1, b"", str(directory / "missing").encode(), UNIX_SOCKET_PORT), given[:2])
        assert raw.expect(Failure).reason == b"Session open refused by peer"


@pytest.mark.parametrize("port", [80, UNIX_SOCKET_PORT])
def test_28_a_place_that_is_none(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master], port: int) -> None:
    """Over a NUL in a name a server hangs up on everybody: refused, or hung up on, here."""
    clients = Clients.of(make_holder(make_sshd()))
    assert clients.control_path is not None
    with (
        witness(clients),
        pipes() as (given, _),
        Raw(clients.control_path) as raw,
        suppress(Hangup, BrokenPipeError),
    ):
        raw.say(StdioForward(1, b"", b"/a\0b", port), given[:2])
        raw.expect(Failure)


def inner_config(clients: Clients, directory: Path, *lines: str) -> Path:
    """A configuration with a host "inner", behind "box" of the clients' own, which can only be joined."""
    path = directory / "config"
    own = [
        "Host inner",
        "HostName 127.0.0.1",
        f"Port {clients.sshd.port}",
        "ControlPath none",
        f"HostKeyAlias {HOST}",
        f"User {clients.sshd.user}",
        f"IdentityFile {clients.sshd.directory}/user_key",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile {clients.sshd.directory}/known_hosts",
        *lines,
    ]
    path.write_text("\n    ".join(own) + "\n" + clients.config.read_text())
    return path


def test_29_proxy_jump(clients: Clients, directory: Path) -> None:
    """A second connection through the first, as `ssh -J` makes it."""
    config = inner_config(clients, directory, f"ProxyJump {HOST}")
    data = os.urandom(3_000_000)
    done = clients.run([program("ssh"), "-F", str(config), "inner", "cat; exit 3"], input=data)
    assert (done.returncode, done.stdout == data) == (3, True)


def test_29_proxy_command(clients: Clients, directory: Path) -> None:
    command = " ".join(clients.command("-W", "%h:%p", HOST))
    config = inner_config(clients, directory, f"ProxyCommand {command}")
    done = clients.run([program("ssh"), "-F", str(config), "inner", "exit 3"], stdin=subprocess.DEVNULL)
    assert done.returncode == 3
