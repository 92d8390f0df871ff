"""Forwardings from the server's side, and those of a configuration."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.master import Master
from tests.support.ports import free_port
from tests.support.sshd import HOST, Sshd
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import SSH_FAILED, Clients
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.sockets import Server, connected, echoes, read_all, refused, socks5, there_and_back
from tests.t5_upstream.test_forwardings import failure, forwarding


def test_32_fixed_port(clients: Clients) -> None:
    port = free_port()
    with Server() as server, forwarding(clients, "-R", f"{port}:127.0.0.1:{server.port}") as said:
        assert said == b""
        assert echoes(port)
        assert echoes(port, size_bytes=5_000_000)
    wait_until(lambda: refused(port), f"nobody listens on port {port}")


def test_32_port_of_the_server_s_choice(clients: Clients) -> None:
    """It is printed; the same again gives the same; cancelled as it was opened."""
    with Server() as server:
        spec = f"0:127.0.0.1:{server.port}"
        with forwarding(clients, "-R", spec) as said:
            port = int(said)
            assert echoes(port)
            again = clients.control("forward", "-R", spec)
            assert (again.returncode, again.stdout) == (0, said)
            assert echoes(port)
        wait_until(lambda: refused(port), f"nobody listens on port {port}")


def test_32_two_ports_of_the_server_s_choice(clients: Clients) -> None:
    with (
        Server() as one,
        Server() as two,
        forwarding(clients, "-R", f"0:127.0.0.1:{one.port}") as first,
        forwarding(clients, "-R", f"0:127.0.0.1:{two.port}") as second,
    ):
        assert first != second
        assert echoes(int(first)) and echoes(int(second))
        assert (one.accepted, two.accepted) == (1, 1)


def test_32_the_same_again_is_no_fault(clients: Clients) -> None:
    port = free_port()
    with Server() as server, forwarding(clients, "-R", f"{port}:127.0.0.1:{server.port}"):
        done = clients.control("forward", "-R", f"{port}:127.0.0.1:{server.port}")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert echoes(port)


def test_32_port_that_is_taken(clients: Clients) -> None:
    with Server() as taken:
        said = failure(clients, "-R", f"127.0.0.1:{taken.port}:127.0.0.1:1")
        assert f"remote port forwarding failed for listen port {taken.port}".encode() in said
        assert echoes(taken.port)


def test_32_connection_refused_here(clients: Clients) -> None:
    port, nobody = free_port(), free_port()
    with forwarding(clients, "-R", f"{port}:127.0.0.1:{nobody}"):
        for _ in range(2):
            with connected(port) as connection:
                assert read_all(connection) == b""


def test_32_with_a_session(clients: Clients) -> None:
    port = free_port()
    with Server() as server:
        spec = f"{port}:127.0.0.1:{server.port}"
        assert clients.ssh("-R", spec, HOST, "exit 3").returncode == 3
        assert echoes(port)
        assert clients.control("cancel", "-R", spec).returncode == 0


def test_32_several_in_one_request(clients: Clients) -> None:
    ports = [free_port() for _ in range(4)]
    with Server() as server:
        there = f"127.0.0.1:{server.port}"
        remote = [argument for port in ports[:2] for argument in ("-R", f"{port}:{there}")]
        local = [argument for port in ports[2:] for argument in ("-L", f"{port}:{there}")]
        with forwarding(clients, *remote, *local):
            assert all(map(echoes, ports))


def test_33_unix_socket_there(clients: Clients, directory: Path) -> None:
    path = directory / "there"
    with Server() as server, forwarding(clients, "-R", f"{path}:127.0.0.1:{server.port}"):
        assert echoes(path)


def test_33_unix_socket_here(clients: Clients, directory: Path) -> None:
    port, path = free_port(), directory / "here"
    with Server(path=path), forwarding(clients, "-R", f"{port}:{path}"):
        assert echoes(port)


def test_33_unix_sockets_on_both_sides(clients: Clients, directory: Path) -> None:
    near, far = directory / "near", directory / "far"
    with Server(path=near), forwarding(clients, "-R", f"{far}:{near}"):
        assert echoes(far)


def test_33_unix_socket_refused(clients: Clients, directory: Path) -> None:
    path = directory / "missing" / "socket"
    said = failure(clients, "-R", f"{path}:127.0.0.1:1")
    assert f"remote port forwarding failed for listen path {path}".encode() in said


def test_33_dynamic(clients: Clients) -> None:
    """SOCKS on the server's side, connections from here."""
    port = free_port()
    with Server() as server, forwarding(clients, "-R", str(port)):
        with connected(port) as connection:
            assert socks5(connection, server.port) == 0
            assert there_and_back(connection, b"back home") == b"back home"
        with connected(port) as connection:
            assert socks5(connection, server.port, "localhost", by_name=True) == 0
            assert there_and_back(connection, b"by name") == b"by name"


@pytest.fixture
def configured(make_sshd: Callable[..., Sshd], make_holder: Callable[..., Master]) -> Callable[..., Clients]:
    """`configured(lines...)`: a connection with further lines of configuration, and clients of it."""

    def make(*lines: str, sshd: Sshd | None = None) -> Clients:
        server = sshd or make_sshd()
        options = [f"-o{line}" for line in lines]
        return Clients.of(make_holder(server, options=options))

    return make


def test_54_forwardings_of_the_configuration(configured: Callable[..., Clients]) -> None:
    """A holder opens its own as an ordinary ssh would."""
    local, remote, dynamic = free_port(), free_port(), free_port()
    with Server() as server:
        there = f"[127.0.0.1]:{server.port}"
        configured(f"LocalForward={local} {there}", f"RemoteForward={remote} {there}", f"DynamicForward={dynamic}")
        assert echoes(local)
        assert echoes(remote)
        with connected(dynamic) as connection:
            assert socks5(connection, server.port) == 0
            assert there_and_back(connection, b"word") == b"word"


def test_54_forwarding_of_the_configuration_that_fails(configured: Callable[..., Clients]) -> None:
    """It is told, and the connection is held without it."""
    with Server() as taken:
        clients = configured(f"LocalForward={taken.port} [127.0.0.1]:1")
        assert clients.ssh(HOST, "exit 3").returncode == 3


def test_54_forwarding_refused_by_the_server(
    make_sshd: Callable[..., Sshd], configured: Callable[..., Clients]
) -> None:
    """AllowTcpForwarding no: a local one listens and serves nobody; a remote one is refused; sessions are as ever."""
    clients = configured(sshd=make_sshd(extra=["AllowTcpForwarding no", "AllowStreamLocalForwarding no"]))
    port = free_port()
    with Server() as server:
        with forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"), connected(port) as connection:
            assert read_all(connection) == b""
        failure(clients, "-R", f"{free_port()}:127.0.0.1:{server.port}")
        assert server.accepted == 0
    assert clients.ssh(HOST, "exit 3").returncode == 3


def test_54_gateway_ports(configured: Callable[..., Clients]) -> None:
    clients = configured("GatewayPorts=yes")
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{port}:127.0.0.1:{server.port}"):
        assert echoes(port, "127.0.0.2")


def test_54_unix_socket_replaced_where_allowed(configured: Callable[..., Clients], tmp_path: Path) -> None:
    """StreamLocalBindUnlink: a stale socket gives way; StreamLocalBindMask: the mode."""
    clients = configured("StreamLocalBindUnlink=yes", "StreamLocalBindMask=0117")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with Server() as server, forwarding(clients, "-L", f"{path}:127.0.0.1:{server.port}"):
        assert path.stat().st_mode & 0o777 == 0o660
        assert echoes(path)


def test_54_permitted_remote_connections(configured: Callable[..., Clients]) -> None:
    """PermitRemoteOpen: where a remote dynamic forwarding may connect to."""
    with Server() as allowed, Server() as forbidden:
        clients = configured(f"PermitRemoteOpen=127.0.0.1:{allowed.port}")
        port = free_port()
        with forwarding(clients, "-R", str(port)):
            with connected(port) as connection:
                assert socks5(connection, allowed.port) == 0
                assert there_and_back(connection, b"word") == b"word"
            with connected(port) as connection:
                request = b"\x05\x01\x00" + b"\x05\x01\x00\x01\x7f\x00\x00\x01" + forbidden.port.to_bytes(2, "big")
                connection.sendall(request)
                read_all(connection)
        assert forbidden.accepted == 0


def test_54_local_forward_to_a_name(clients: Clients) -> None:
    """The server resolves it, not we."""
    port = free_port()
    with Server() as server, forwarding(clients, "-L", f"{port}:localhost:{server.port}"):
        assert echoes(port)


@ours_only
@pytest.mark.parametrize("spec", ["0:127.0.0.1:1", "70000:127.0.0.1:1"])
def test_54_local_port_out_of_range(clients: Clients, spec: str) -> None:
    """ssh itself refuses some; whatever reaches us is refused in words, and nothing else changes."""
    done = clients.control("forward", "-L", spec)
    assert done.returncode in (0, SSH_FAILED)
    if done.returncode == 0:
        clients.control("cancel", "-L", spec)
    assert clients.ssh(HOST, "exit 3").returncode == 3
