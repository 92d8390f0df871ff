"""Whatever else may be found behind a control path: each a typed error in time, and nothing left open.

A number in a name is that of the check in the list of what a joining side has to stand.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from mux.downstream.openssh import ControlConnection, open_control
from mux.errors import ConnectionLost, ExitCode, JoinError, RemoteProtocolError, SharingError
from mux.protocol.control import MAX_MESSAGE_BYTES
from mux.protocol.framing import frame
from mux.protocol.messages import Failure, Hello, PermissionDenied, encode
from tests.support.descriptors import only_free
from tests.t2_join.fake import PID, Peer, listening, master_at
from tests.t2_join.streams import in_trio

HELLO = encode(Hello())
NOBODY = 65534


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def saying(data: bytes, *, hang_up: bool = False) -> Callable[[Peer], Awaitable[None]]:
    """A master that says this, whatever it hears, and then nothing more."""

    async def handle(peer: Peer) -> None:
        await peer.write(data)
        if hang_up:
            peer.close()

    return handle


@in_trio
async def test_01_greetings_in_either_order(control_path: str) -> None:
    async def polite(peer: Peer) -> None:
        while len(peer.heard) < len(HELLO):
            await peer.read()
        await peer.serve()

    for handle in (Peer.serve, polite):
        async with master_at(control_path, handle):
            connection = await open_control(control_path)
            assert await connection.alive() == PID
            connection.close()


@in_trio
async def test_01_a_greeting_in_two_parts(control_path: str) -> None:
    async def slow(peer: Peer) -> None:
        await peer.write(HELLO[:7])
        await peer.read()
        await peer.write(HELLO[7:])

    async with master_at(control_path, slow):
        (await open_control(control_path)).close()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encode(Hello(3)), "version 3"),
        (encode(Hello(5)), "version 5"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "1397966893 bytes"),
        (b"\0\0\0\3", "3 bytes"),
        ((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"), "262145 bytes"),
        (frame(b"\0\0\0\1\0\0"), "malformed"),
        (encode(Failure(0, b"go away")), "does not fit"),
    ],
)
@in_trio
async def test_02_garbage_instead_of_a_greeting(control_path: str, data: bytes, found: str) -> None:
    before = descriptors()
    async with master_at(control_path, saying(data)):
        with pytest.raises(RemoteProtocolError, match=found) as refused:
            await open_control(control_path)
        assert refused.value.exit_code is ExitCode.PROTOCOL
    assert descriptors() == before


@in_trio
async def test_02_silence_instead_of_a_greeting(control_path: str) -> None:
    async with master_at(control_path, saying(b"")):
        with pytest.raises(JoinError, match="does not greet") as silent:
            await open_control(control_path, deadline_s=0.1)
        assert silent.value.exit_code is ExitCode.NO_ANSWER


@pytest.mark.parametrize("said", [b"", HELLO[:7]])
@in_trio
async def test_02_hanging_up_instead_of_a_greeting(control_path: str, said: bytes) -> None:
    async with master_at(control_path, saying(said, hang_up=True)):
        with pytest.raises(SharingError, match=r"hangs up|closed the connection") as refused:
            await open_control(control_path)
        assert refused.value.exit_code is ExitCode.PROTOCOL


@in_trio
async def test_a_queue_of_clients_that_stays_full(control_path: str) -> None:
    with listening(control_path, backlog=0):
        waiting: list[socket.socket] = []
        with pytest.raises(BlockingIOError):
            fill_queue(control_path, waiting)
        with pytest.raises(JoinError, match="queue of clients") as full:
            await open_control(control_path, deadline_s=0.1)
        assert full.value.exit_code is ExitCode.NO_ANSWER
        for client in waiting:
            client.close()


def fill_queue(path: str, clients: list[socket.socket]) -> None:
    while True:
        clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        clients[-1].setblocking(False)
        clients[-1].connect(path)


@in_trio
async def test_a_queue_of_clients_that_moves_on(control_path: str) -> None:
    clients: list[socket.socket] = []

    async def let_in(listener: socket.socket, nursery: trio.Nursery) -> None:
        for _ in range(len(clients)):
            await trio.lowlevel.wait_readable(listener)
            accepted = listener.accept()[0]
            accepted.send(HELLO)
            clients.append(accepted)

    with listening(control_path, backlog=0) as listener:
        with pytest.raises(BlockingIOError):
            fill_queue(control_path, clients)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_in, listener, nursery)
            (await open_control(control_path)).close()
        for client in clients:
            client.close()


def leave_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(path)


@in_trio
async def test_09_nothing_there_nobody_there_not_a_socket(control_path: str) -> None:
    with pytest.raises(JoinError, match="No such file") as missing:
        await open_control(control_path)
    assert missing.value.exit_code is ExitCode.NOTHING_TO_JOIN
    leave_stale(control_path)
    with pytest.raises(JoinError, match="refused") as refused:
        await open_control(control_path)
    assert refused.value.exit_code is ExitCode.NOTHING_TO_JOIN
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(control_path + ".other")
        with pytest.raises(JoinError, match="wrong type") as wrong:
            await open_control(control_path + ".other")
    assert wrong.value.exit_code is ExitCode.UNSAFE_SOCKET
    with pytest.raises(OSError, match="Address already in use"):  # it was left where it is
        leave_stale(control_path)


@in_trio
async def test_26_a_path_that_no_socket_can_have(control_path: str) -> None:
    longest = control_path + "x" * (107 - len(control_path))
    async with master_at(longest):
        (await open_control(longest)).close()
    for path in (longest + "x", "/" + "ü" * 54):
        with pytest.raises(JoinError, match="longer than the 107 bytes") as long:
            await open_control(path)
        assert long.value.exit_code is ExitCode.UNSAFE_SOCKET


@in_trio
async def test_09_nothing_is_sent_to_another_user(control_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(control_path)
        # The kernel notes who listens at the time of listen(). Root can be somebody else; others can only pretend to be
        # somebody else afterwards.
        if me == 0:
            os.seteuid(NOBODY)
        try:
            listener.listen()
        finally:
            os.seteuid(me)
        if me != 0:
            monkeypatch.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(JoinError, match="belongs to user") as foreign:
            await open_control(control_path)
        assert foreign.value.exit_code is ExitCode.UNSAFE_SOCKET
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(1) == b""


async def never(peer: Peer) -> None:
    """Read a request with all that belongs to it, and leave it at that."""
    await peer.request()


async def nonsense(peer: Peer) -> None:
    await peer.request()
    await peer.write(b"\xff" * 8)


async def misfit(peer: Peer) -> None:
    await peer.request()
    await peer.write(encode(Failure(99, b"")))


async def hang_up(peer: Peer) -> None:
    await peer.request()
    peer.close()


async def hang_up_early(peer: Peer) -> None:
    await peer.write(HELLO)
    peer.close()


async def refuse(peer: Peer) -> None:
    request = await peer.request()
    assert request is not None
    await peer.send(Failure(request.request_id, b"\x1b[2Jno\n"))


async def deny(peer: Peer) -> None:
    request = await peer.request()
    assert request is not None
    await peer.send(PermissionDenied(request.request_id, b"no"))


@pytest.mark.parametrize(
    ("handle", "error", "code"),
    [
        (never, JoinError, ExitCode.NO_ANSWER),
        (nonsense, RemoteProtocolError, ExitCode.PROTOCOL),
        (misfit, RemoteProtocolError, ExitCode.PROTOCOL),
        (hang_up, ConnectionLost, ExitCode.FAILURE),
        (hang_up_early, ConnectionLost, ExitCode.FAILURE),
        (refuse, JoinError, ExitCode.REFUSED),
        (deny, JoinError, ExitCode.DENIED),
    ],
)
@in_trio
async def test_a_session_that_fails_leaves_no_descriptor(
    control_path: str, handle: Callable[[Peer], Awaitable[None]], error: type[SharingError], code: ExitCode
) -> None:
    before = descriptors()
    async with master_at(control_path, handle):
        connection = await open_control(control_path)
        with pytest.raises(error) as failed:
            await connection.open_session(b"true", subsystem=False, deadline_s=0.2 if handle is never else 30.0)
        assert failed.value.exit_code is code
        assert "\x1b" not in str(failed.value)
        assert connection.fileno() < 0
    assert descriptors() == before


@in_trio
async def test_a_session_that_is_cancelled_leaves_no_descriptor(control_path: str) -> None:
    async def open_it(connection: ControlConnection) -> None:
        await connection.open_session(b"true", subsystem=False)

    before = descriptors()
    async with master_at(control_path, never) as peers:
        connection = await open_control(control_path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it, connection)
            while not peers[0].descriptors:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert connection.fileno() < 0
    assert descriptors() == before


@in_trio
async def test_no_descriptors_left_is_told(control_path: str) -> None:
    before = descriptors()
    async with master_at(control_path):
        with only_free(0), pytest.raises(JoinError, match="Too many open files"):
            await open_control(control_path)
        for spare in range(6):  # a session takes 6
            connection = await open_control(control_path)
            assert await connection.alive() == PID
            with only_free(spare), pytest.raises(JoinError, match="Too many open files"):
                await connection.open_session(b"true", subsystem=False)
            assert connection.fileno() < 0
    assert descriptors() == before
