"""Descriptors: how they are handed over, what their owner sees of us, and that none is left after many sessions.

A number in a name is that of the check in the list of what a joining side has to stand.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing

from mux.downstream.openssh import open_control
from mux.protocol.control import Signal
from mux.protocol.messages import Hello, NewSession, SessionOpened, encode
from tests.support.master import Master
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until
from tests.t2_join.fake import Peer, master_at
from tests.t2_join.streams import in_trio, read_all, read_exactly, write_all

SESSIONS = 1000
SETTLE_S = 30.0


def open_descriptors(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@in_trio
async def test_17_a_request_and_its_descriptors_leave_without_a_pause(control_path: str) -> None:
    found = []

    async def look(peer: Peer) -> None:
        await peer.write(encode(Hello()))
        await peer.read()
        # We share a thread with the joining side: what is there now it sent before it waited for anything.
        await trio.lowlevel.wait_readable(peer.socket)
        with pytest.raises(BlockingIOError):
            read_for_ever(peer)
        found.append((peer.heard, len(peer.descriptors)))
        await peer.write(encode(SessionOpened(0, 0)))

    async with master_at(control_path, look):
        connection = await open_control(control_path)
        (await connection.open_session(b"sftp", subsystem=True)).close()
    request = encode(NewSession(0, subsystem=True, command=b"sftp"))
    assert found == [(encode(Hello()) + request + bytes(3), 3)]


def read_for_ever(peer: Peer) -> None:
    while True:
        peer.read_nowait()


@in_trio
async def test_17_nothing_is_half_closed_before_all_is_closed(control_path: str) -> None:
    async with master_at(control_path) as peers:
        connection = await open_control(control_path)
        stream = await connection.open_session(b"cat", subsystem=False)
        (peer,) = peers
        stdin, stdout, stderr = (socket.socket(fileno=descriptor) for descriptor in peer.descriptors)
        peer.descriptors.clear()
        with stdin, stdout, stderr:
            # Whether they block is their owner's to choose.
            assert [end.getblocking() for end in (stdin, stdout, stderr)] == [True, True, True]
            await write_all(stream, b"to the command")
            assert stdin.recv(100) == b"to the command"
            stdout.send(b"from it")
            stderr.send(b"its trouble")
            assert await read_exactly(stream, 7) == b"from it"
            assert stream.stderr_text() == "its trouble"
            stdout.close()
            stderr.close()
            assert await read_all(stream) == b""
            for still_open in (peer.socket, stdin):
                with pytest.raises(BlockingIOError):
                    still_open.recv(1, socket.MSG_DONTWAIT)
            stream.close()
            assert stdin.recv(1) == b""
            await trio.testing.wait_all_tasks_blocked()
            assert peer.core.next_event() is Signal.ENDED


@pytest.mark.timeout(600)
def test_18_no_descriptor_is_left_after_a_thousand_sessions(
    make_sshd: Callable[..., Sshd], make_master: Callable[..., Master]
) -> None:
    # bash takes itself for no login then, and does not spend most of the time on the user's .bashrc.
    master = make_master(make_sshd(extra=["SetEnv SHLVL=2"]))

    async def sessions(count: int) -> None:
        for number in range(count):
            connection = await open_control(master.control_path)
            with await connection.open_session(b"exit 9", subsystem=False) as stream:
                # Every tenth is left before it ends, as a client that is interrupted does.
                if number % 10:
                    assert await stream.wait_closed() == 9

    trio.run(sessions, 10)
    ours, theirs = open_descriptors("self"), open_descriptors(master.pid)
    trio.run(sessions, SESSIONS)
    assert open_descriptors("self") == ours
    wait_until(lambda: open_descriptors(master.pid) <= theirs, "the master has what it had before", SETTLE_S)
    assert master.control("check").returncode == 0
