"""Forwardings opened and closed on a connection that is there: `ssh -O forward` and `ssh -O cancel`."""

from __future__ import annotations

import errno
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mux.protocol.messages import UNIX_SOCKET_PORT, Failure, ForwardKind, OpenForward
from tests.support.master import Master
from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import NOT_JOINED, SSH_FAILED, Clients, ended, witness
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Hangup, Raw
from tests.t5_upstream.sockets import Server, connected, echoes, read_all, refused, socks4, socks5
from tests.t5_upstream.sockets import there_and_back as exchange

REFUSED = b"mux_client_forward: forwarding request failed: Port forwarding failed"


@contextmanager
def forwarding(clients: Clients, *arguments: str) -> Iterator[bytes]:
    """A forwarding for the time of the block, and what opening it printed."""
    done = clients.control("forward", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    try:
        yield done.stdout
    finally:
        done = clients.control("cancel", *arguments)
        assert (done.returncode, done.stderr) == (0, b"")


def failure(clients: Clients, *arguments: str) -> bytes:
    """What is said when the forwarding cannot be opened."""
    done = clients.control("forward", *arguments)
    assert done.returncode == SSH_FAILED
    assert b"muxclient: master forward request failed" in done.stderr
    return done.stderr


def wait_for_echo(target: int | Path) -> None:
    """The server opens a listener before it says so; through a server's own listener bytes may still be early."""
    wait_until(lambda: echoes(target), f"an echo at {target}")


def test_30_local_port(clients: Clients) -> None:
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"):
        assert echoes(port)
        assert echoes(port, size_bytes=5_000_000)


def test_30_local_port_many_connections(clients: Clients) -> None:
    """One at a time and many at once; each its own stream."""
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"):
        opened = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(20)]
        for number, connection in enumerate(opened):
            connection.sendall(b"%d" % number)
        for number, connection in enumerate(opened):
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == b"%d" % number
            connection.close()
        assert server.accepted == 20


def test_30_local_from_a_unix_socket(clients: Clients, directory: Path) -> None:
    path = directory / "socket"
    with Server() as server, forwarding(clients, "-L", f"{path}:127.0.0.1:{server.port}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert echoes(path)


def test_30_local_to_a_unix_socket(clients: Clients, directory: Path) -> None:
    port = free_port()
    path = directory / "socket"
    with Server(path=path), forwarding(clients, "-L", f"{port}:{path}"):
        assert echoes(port)


def test_30_local_between_unix_sockets(clients: Clients, directory: Path) -> None:
    near, far = directory / "near", directory / "far"
    with Server(path=far), forwarding(clients, "-L", f"{near}:{far}"):
        assert echoes(near)


def test_30_the_same_again_is_no_fault(clients: Clients) -> None:
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"):
        done = clients.control("forward", "-L", f"{port}:127.0.0.1:{server.port}")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert echoes(port)


def test_30_port_that_is_taken(clients: Clients) -> None:
    with Server() as taken:
        assert REFUSED in failure(clients, "-L", f"127.0.0.1:{taken.port}:127.0.0.1:1")


def test_30_unix_socket_that_is_there(clients: Clients, directory: Path) -> None:
    """It is somebody's: refused, and left alone."""
    path = directory / "socket"
    with Server(path=path):
        assert REFUSED in failure(clients, "-L", f"{path}:127.0.0.1:1")
        assert echoes(path)


def test_30_connection_refused_at_the_far_end(clients: Clients) -> None:
    """The one who came is closed; the next finds the forwarding there."""
    port, nobody = free_port(), free_port()
    with forwarding(clients, "-L", f"{port}:127.0.0.1:{nobody}"):
        for _ in range(2):
            with connected(port) as connection:
                assert read_all(connection) == b""


def test_30_half_closed_ends(clients: Clients) -> None:
    """The end of what comes does not end what goes, in either direction."""
    answered = []

    def greet_and_end(connection: socket.socket) -> None:
        connection.sendall(b"greeting")
        connection.shutdown(socket.SHUT_WR)
        answered.append(read_all(connection))

    port = free_port()
    with Server(greet_and_end) as server, forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"):
        with connected(port) as connection:
            assert read_all(connection) == b"greeting"
            connection.sendall(b"after the end")
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda: answered, "the far end has read to the end")
        assert answered == [b"after the end"]


def test_31_cancel(clients: Clients) -> None:
    """The listener goes, what is open stays."""
    port = free_port()
    with Server() as server:
        spec = f"{port}:127.0.0.1:{server.port}"
        with forwarding(clients, "-L", spec):
            connection = socket.create_connection(("127.0.0.1", port), 60)
            connection.sendall(b"open")
            assert connection.recv(10) == b"open"
        with connection:
            wait_until(lambda: refused(port), f"nobody listens on port {port}")
            assert exchange(connection, b"still open") == b"still open"


def test_31_cancel_what_is_not_there(clients: Clients) -> None:
    """It is told, and is no failure."""
    done = clients.control("cancel", "-L", f"{free_port()}:127.0.0.1:1")
    assert done.returncode == 0
    assert b"port not f" in done.stderr


@ours_only
def test_31_cancel_twice(clients: Clients) -> None:
    port = free_port()
    spec = f"{port}:127.0.0.1:1"
    with forwarding(clients, "-L", spec):
        pass
    done = clients.control("cancel", "-L", spec)
    assert done.returncode == 0
    assert b"port not forwarded" in done.stderr


def test_31_open_again_after_cancel(clients: Clients) -> None:
    port = free_port()
    with Server() as server:
        for _ in range(3):
            with forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"):
                assert echoes(port)


@ours_only
def test_31_cancel_removes_our_unix_socket(clients: Clients, directory: Path) -> None:
    path = directory / "socket"
    with forwarding(clients, "-L", f"{path}:127.0.0.1:1"):
        assert path.exists()
    assert not path.exists()


def test_31_forwarding_outlives_the_client_that_asked(clients: Clients) -> None:
    port = free_port()
    with Server() as server:
        spec = f"{port}:127.0.0.1:{server.port}"
        assert clients.ssh("-L", spec, HOST, "exit 3").returncode == 3
        assert echoes(port)
        assert clients.control("cancel", "-L", spec).returncode == 0


def test_35_forwarding_before_the_session(clients: Clients) -> None:
    """It is open when the command runs."""
    port = free_port()
    with Server() as server:
        spec = f"{port}:127.0.0.1:{server.port}"
        with clients.started("-L", spec, HOST, "read line") as process:
            wait_until(lambda: not refused(port), f"port {port} listens")
            assert echoes(port)
            assert process.stdin is not None
            process.stdin.write(b"\n")
            assert ended(process) == 0
        assert clients.control("cancel", "-L", spec).returncode == 0


def test_35_failure_falls_back_to_a_login(clients: Clients) -> None:
    """The client does not join, and tries by itself."""
    with Server() as taken:
        done = clients.ssh("-L", f"127.0.0.1:{taken.port}:127.0.0.1:1", HOST, "true")
        assert done.returncode == SSH_FAILED
        assert REFUSED in done.stderr
        assert NOT_JOINED in done.stderr
    assert clients.ssh(HOST, "exit 3").returncode == 3


def test_36_loopback_unless_said_otherwise(clients: Clients) -> None:
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"):
        assert echoes(port)
        assert listeners(port) <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("bind", ["localhost", "127.0.0.1", "127.0.0.2"])
def test_36_bind_address(clients: Clients, bind: str) -> None:
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{bind}:{port}:127.0.0.1:{server.port}"):
        assert echoes(port, "127.0.0.1" if bind == "localhost" else bind)
        assert listeners(port) <= ({"127.0.0.1", "::1"} if bind == "localhost" else {bind})


@pytest.mark.parametrize("bind", ["*", ""])
def test_36_every_address(clients: Clients, bind: str) -> None:
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{bind}:{port}:127.0.0.1:{server.port}"):
        assert echoes(port)
        assert echoes(port, "127.0.0.2")
        assert "0.0.0.0" in listeners(port) or "::" in listeners(port)


def test_36_ipv6_address(clients: Clients) -> None:
    port = free_port()
    if not Path("/proc/net/if_inet6").exists():
        assert REFUSED in failure(clients, "-L", f"[::1]:{port}:127.0.0.1:1")
        return
    with Server() as server, forwarding(clients, "-L", f"[::1]:{port}:127.0.0.1:{server.port}"):
        assert echoes(port, "::1")
        assert listeners(port) == {"::1"}


def listeners(port: int) -> set[str]:
    """The addresses on which somebody listens on `port`, from /proc/net/tcp and tcp6 (proc(5))."""
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path("/proc/net") / name
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                words = bytes.fromhex(address)
                # Each four bytes are one number in the machine's own order.
                swapped = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                found.add(socket.inet_ntop(family, swapped))
    return found


def test_34_dynamic(clients: Clients) -> None:
    """SOCKS 4, 4a and 5, by address and by name."""
    port = free_port()
    with Server() as server, forwarding(clients, "-D", str(port)):
        with connected(port) as connection:
            assert socks4(connection, server.port) == 0x5A
            assert exchange(connection, b"by 4") == b"by 4"
        with connected(port) as connection:
            assert socks4(connection, server.port, "localhost") == 0x5A
            assert exchange(connection, b"by 4a") == b"by 4a"
        with connected(port) as connection:
            assert socks5(connection, server.port) == 0
            assert exchange(connection, b"by 5") == b"by 5"
        with connected(port) as connection:
            assert socks5(connection, server.port, "localhost", by_name=True) == 0
            assert exchange(connection, b"by 5 and name") == b"by 5 and name"


@pytest.fixture
def own(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> Clients:
    """Of a connection that a test may lose."""
    return Clients.of(make_holder(make_sshd()))


@pytest.mark.parametrize("name", [b"a\0b", b"\0", b"caf\xe9.invalid"])
def test_34_dynamic_to_a_name_that_is_none(own: Clients, name: bytes) -> None:
    """Whoever may connect to the port may ask for it: a server hangs up on everybody over a NUL in a name."""
    port = free_port()
    with witness(own), forwarding(own, "-D", str(port)), connected(port) as connection:
        connection.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\0\x50")
        assert read_all(connection)[:2] == b"\x05\x00"


@pytest.mark.parametrize(
    "forward",
    [
        (ForwardKind.LOCAL, b"127.0.0.1", 0, b"a\0b", 1),
        (ForwardKind.REMOTE, b"a\0b", 0, b"127.0.0.1", 1),
        (ForwardKind.REMOTE, b"/tmp/a\0b", UNIX_SOCKET_PORT, b"127.0.0.1", 1),
        (ForwardKind.LOCAL, b"127.0.0.1", 0, b"/tmp/a\0b", UNIX_SOCKET_PORT),
    ],
)
def test_30_a_place_that_is_none(own: Clients, forward: tuple[ForwardKind, bytes, int, bytes, int]) -> None:
    """Refused, or hung up on, before anybody comes to it."""
    assert own.control_path is not None
    with witness(own), Raw(own.control_path) as raw:
        raw.say(OpenForward(1, *forward))
        with suppress(Hangup):
            raw.expect(Failure)


def test_34_dynamic_refused_at_the_far_end(clients: Clients) -> None:
    """OpenSSH answers before it knows, and closes; to say no at once is better."""
    port, nobody = free_port(), free_port()
    with forwarding(clients, "-D", str(port)), connected(port) as connection:
        connection.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\x00\x00\x01" + nobody.to_bytes(2, "big"))
        said = read_all(connection)
        assert said[:2] == b"\x05\x00"
        assert said[2:] == b"" or said[2] == 5


def test_34_dynamic_and_garbage(clients: Clients) -> None:
    """Whoever does not speak SOCKS is closed; whoever says nothing holds nobody up."""
    port = free_port()
    with Server() as server, forwarding(clients, "-D", str(port)), connected(port):
        for garbage in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"\x06\x01\x00",
            b"\x05\x01\x02\x05\x01\x02",
            b"\x05\x01\x00\x05\x09",
        ):
            with connected(port) as connection:
                assert is_closed(connection, garbage)
        with connected(port) as connection:
            assert socks5(connection, server.port) == 0
            assert exchange(connection, b"after") == b"after"


def is_closed(connection: socket.socket, garbage: bytes) -> bool:
    """Say it, and wait for the end, whatever comes before; a reset is one."""
    try:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE)
    return True


def test_34_dynamic_the_same_again_and_cancel(clients: Clients) -> None:
    port = free_port()
    with forwarding(clients, "-D", str(port)):
        assert clients.control("forward", "-D", str(port)).returncode == 0
        assert not refused(port)
    wait_until(lambda: refused(port), f"nobody listens on port {port}")


def test_34_dynamic_on_a_port_that_is_taken(clients: Clients) -> None:
    with Server() as taken:
        assert REFUSED in failure(clients, "-D", f"127.0.0.1:{taken.port}")
