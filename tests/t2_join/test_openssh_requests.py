"""Requests on a control connection: to a real master first, then to one of our own for what the real one never does.

A number in a name is that of the check in the list of what a joining side has to stand.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from mux.downstream.openssh import open_control
from mux.errors import ConnectionLost, ExitCode, JoinError, LocalProtocolError, RemoteProtocolError
from mux.protocol.framing import frame
from mux.protocol.messages import (
    INFO_EXTENSION,
    AliveCheck,
    CloseForward,
    ExitMessage,
    Forward,
    ForwardKind,
    InfoRequest,
    NewSession,
    OpenForward,
    Proxy,
    Request,
    StdioForward,
    StopListening,
    Terminate,
    TtyAllocFail,
    encode,
)
from tests.support import ports
from tests.support.master import Master
from tests.support.sshd import Sshd, openssh_version
from tests.t2_join.fake import PID, Peer, master_at, yes
from tests.t2_join.streams import in_trio, read_all, read_exactly

BANNER = b"SSH-2.0-"


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port of loopback that nobody listens on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


async def join_for_ever(path: str) -> None:
    while True:
        (await open_control(path)).close()


def greeting(port: int) -> bytes:
    """What is said first at a port of loopback."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        return connection.recv(len(BANNER), socket.MSG_WAITALL)


@in_trio
async def test_22_local_forwarding_opens_once_and_closes_once(shared_master: Master, sshd: Sshd) -> None:
    with await open_control(shared_master.control_path) as connection:
        port = ports.free_port()
        forward = Forward(ForwardKind.LOCAL, b"127.0.0.1", port, b"127.0.0.1", sshd.port)
        assert await connection.open_forward(forward) == port
        assert await connection.open_forward(forward) == port
        assert greeting(port) == BANNER
        await connection.close_forward(forward)
        with pytest.raises(ConnectionRefusedError):
            greeting(port)
        with pytest.raises(JoinError, match="refused CloseForward: port not forwarded") as refused:
            await connection.close_forward(forward)
        assert refused.value.exit_code is ExitCode.FAILURE
        assert await connection.alive() == shared_master.pid


@in_trio
async def test_22_a_port_that_is_taken_is_refused(shared_master: Master, free_port: int) -> None:
    with await open_control(shared_master.control_path) as connection:
        with pytest.raises(JoinError, match="Port forwarding failed"):
            await connection.open_forward(Forward(ForwardKind.LOCAL, b"127.0.0.1", free_port, b"127.0.0.1", 1))
        assert await connection.alive() == shared_master.pid


@in_trio
async def test_22_remote_forwarding_of_port_0_tells_the_port(shared_master: Master, sshd: Sshd) -> None:
    forward = Forward(ForwardKind.REMOTE, b"127.0.0.1", 0, b"127.0.0.1", sshd.port)
    with await open_control(shared_master.control_path) as connection:
        port = await connection.open_forward(forward)
        assert port > 0
        assert greeting(port) == BANNER
        await connection.close_forward(forward)
        assert await connection.alive() == shared_master.pid


@in_trio
async def test_22_dynamic_forwarding(shared_master: Master, sshd: Sshd) -> None:
    port = ports.free_port()
    forward = Forward(ForwardKind.DYNAMIC, b"127.0.0.1", port, b"socks", 0)
    with await open_control(shared_master.control_path) as connection:
        assert await connection.open_forward(forward) == port
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(b"\5\1\0")  # SOCKS 5, one method: none (RFC 1928)
            assert client.recv(2) == b"\5\0"
        await connection.close_forward(forward)


@in_trio
async def test_23_stdio_forwarding_reaches_a_port_of_the_server(shared_master: Master, sshd: Sshd) -> None:
    connection = await open_control(shared_master.control_path)
    with await connection.stdio_forward(b"127.0.0.1", sshd.port) as stream:
        assert await read_exactly(stream, len(BANNER)) == BANNER
        assert stream.stderr_text() == ""


@in_trio
async def test_23_stdio_forwarding_refused(shared_master: Master, free_port: int) -> None:
    connection = await open_control(shared_master.control_path)
    with pytest.raises(JoinError, match="refused StdioForward: Session open refused by peer") as refused:
        await connection.stdio_forward(b"127.0.0.1", free_port)
    assert refused.value.exit_code is ExitCode.REFUSED
    assert "MaxSessions" not in refused.value.hint
    assert connection.fileno() < 0
    with await open_control(shared_master.control_path) as connection:
        assert await connection.alive() == shared_master.pid


@in_trio
async def test_30_information_as_far_as_the_master_has_it(shared_master: Master) -> None:
    with await open_control(shared_master.control_path) as connection:
        if openssh_version() < (10, 3):
            with pytest.raises(JoinError, match="refused InfoRequest: unsupported request"):
                await connection.info(b"connection")
        else:
            assert "cipher" in await connection.info(b"connection")
        assert await connection.alive() == shared_master.pid


@in_trio
async def test_the_master_ends_when_told_to(master: Master) -> None:
    with await open_control(master.control_path) as connection:
        await connection.terminate()
    with pytest.raises(JoinError) as gone:
        await join_for_ever(master.control_path)
    assert gone.value.exit_code in (ExitCode.NOTHING_TO_JOIN, ExitCode.PROTOCOL)


@in_trio
async def test_08_proxy_mode_is_never_asked_for(control_path: str) -> None:
    forward = Forward(ForwardKind.LOCAL, b"", 8080, b"host", 80)
    async with master_at(control_path) as peers:
        connection = await open_control(control_path)
        assert await connection.alive() == PID
        assert await connection.open_forward(forward) == 8080
        assert await connection.open_forward(forward._replace(listen_port=0)) == 40000
        await connection.close_forward(forward)
        await connection.info(b"channels")
        await connection.stop_listening()
        await connection.terminate()
        with await connection.open_session(b"sftp", subsystem=True):
            pass
        with await (await open_control(control_path)).stdio_forward(b"host", 1):
            pass
    heard = b"".join(peer.heard for peer in peers)
    asked: list[Request] = [
        AliveCheck(0),
        OpenForward(1, *forward),
        OpenForward(2, *forward._replace(listen_port=0)),
        CloseForward(3, *forward),
        InfoRequest(4, b"channels"),
        StopListening(5),
        Terminate(6),
        NewSession(7, subsystem=True, command=b"sftp"),
    ]
    hello = bytes.fromhex("000000080000000100000004")
    first = hello + b"".join(map(encode, asked)) + bytes(3)
    assert heard == first + hello + encode(StdioForward(0, b"", b"host", 1)) + bytes(2)
    assert encode(Proxy(0))[4:8] not in heard


@in_trio
async def test_27_trailing_fields_and_unknown_messages(control_path: str) -> None:
    async def talkative(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            await peer.write(frame(bytes.fromhex("8000007700000000")))
            peer.core.send(yes(request))
            for data, _ in peer.core.data_to_send():
                await peer.write(frame(data[4:] + b"more"))
            if isinstance(request, NewSession):
                await peer.write(frame(bytes.fromhex("90000077")) + encode(TtyAllocFail(0)) + encode(ExitMessage(0, 7)))
                peer.close()
                return

    async with master_at(control_path, talkative):
        connection = await open_control(control_path)
        assert await connection.alive() == PID
        with await connection.open_session(b"true", subsystem=False) as stream:
            assert await read_all(stream) == b""
            assert await stream.wait_closed() == 7
            assert await stream.wait_closed() == 7


@in_trio
async def test_30_a_master_of_a_later_version_is_asked_for_information(control_path: str) -> None:
    extensions = ((b"later@example.org", b"\xff"), INFO_EXTENSION)
    async with master_at(control_path, extensions=extensions):
        connection = await open_control(control_path)
        assert await connection.info(b"connection") == "cipher none\n\\x1b[31mred"
        assert await connection.alive() == PID
        connection.close()


@in_trio
async def test_nonsense_at_the_end_of_a_session_is_a_protocol_error(control_path: str) -> None:
    async def confused(peer: Peer) -> None:
        request = await peer.request()
        assert request is not None
        await peer.send(yes(request))
        await peer.write(encode(ExitMessage(99, 0)))

    async with master_at(control_path, confused):
        connection = await open_control(control_path)
        stream = await connection.open_session(b"true", subsystem=False)
        with stream, pytest.raises(RemoteProtocolError, match="ExitMessage"):
            await stream.wait_closed()


@in_trio
async def test_a_second_session_is_our_error_and_the_first_goes_on(control_path: str) -> None:
    async with master_at(control_path):
        connection = await open_control(control_path)
        with await connection.open_session(b"true", subsystem=False):
            with pytest.raises(LocalProtocolError, match="one session"):
                await connection.open_session(b"true", subsystem=False)
            assert await connection.alive() == PID


@in_trio
async def test_a_connection_closed_here_is_lost(control_path: str) -> None:
    async with master_at(control_path):
        connection = await open_control(control_path)
        connection.close()
        connection.close()
        with pytest.raises(ConnectionLost):
            await connection.alive()
