"""Joining real masters, in every state they can be in, and sftp sessions on them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MappingProxyType

import pytest
import trio

from mux.downstream.join import Joined, is_subsystem, join, sftp_failure
from mux.downstream.openssh import SessionStream
from mux.errors import ExitCode, JoinError
from mux.rendezvous.roles import Wish
from mux.rendezvous.sockets import Found, probe
from mux.rendezvous.target import Target
from tests.support import processes
from tests.support.master import Master
from tests.support.sshd import HOST, Sshd, program, sftp_server
from tests.t2_join.fake import listening
from tests.t2_join.streams import in_trio, read_all, read_exactly, write_all

INIT = bytes.fromhex("00000005 01 00000003")
VERSION = bytes.fromhex("02 00000003")
SHORT_S = 0.3
GONE_DEADLINE_S = 30.0


def target(control_path: str | None, own: str = "") -> Target:
    return Target(HOST, "me", "127.0.0.1", 22, control_path, own, MappingProxyType({}), ("--", HOST))


async def joined(path: str) -> Joined:
    return await join(target(path), Wish(explicit=True, may_upstream=False))


async def greet(stream: SessionStream) -> None:
    """One round trip to the sftp-server; its extensions follow, and are read too."""
    await write_all(stream, INIT)
    length = int.from_bytes(await read_exactly(stream, 4), "big")
    assert (await read_exactly(stream, length)).startswith(VERSION)


async def refused(path: str, *, deadline_s: float = 5.0) -> JoinError:
    with pytest.raises(JoinError) as caught:
        await join(target(path), Wish(explicit=True, may_upstream=False), look_s=deadline_s)
    return caught.value


@in_trio
async def test_an_sftp_session(master: Master) -> None:
    connection = await joined(master.control_path)
    assert (connection.path, connection.pid) == (master.control_path, master.pid)
    stream = await connection.open_sftp()
    await greet(stream)
    stream.close()


@in_trio
async def test_several_sessions_at_once(shared_master: Master) -> None:
    connection = await joined(shared_master.control_path)
    streams = [await connection.open_sftp() for _ in range(4)]
    for stream in streams:
        await greet(stream)
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("server", [sftp_server(), f"exec {sftp_server()} -e"])
def test_a_command_in_place_of_the_subsystem(shared_master: Master, server: str) -> None:
    async def main() -> None:
        stream = await (await joined(shared_master.control_path)).open_sftp(server)
        await greet(stream)
        stream.close()

    trio.run(main)


@pytest.mark.parametrize(
    ("server", "expected"),
    [("sftp", True), ("my-sftp", True), ("/usr/lib/sftp-server", False), ("bin/x", False), ("sudo sftp", False)],
)
def test_subsystem_or_command(server: str, expected: bool) -> None:
    assert is_subsystem(server) is expected


def test_a_server_without_the_subsystem(
    make_sshd: Callable[..., Sshd], make_master: Callable[..., Master], sshd: Sshd
) -> None:
    master = make_master(make_sshd(sftp=None))

    async def main() -> None:
        connection = await joined(master.control_path)
        with_nothing = await connection.open_sftp()
        assert await read_all(with_nothing) == b""
        error = sftp_failure("sftp", await with_nothing.wait_closed(), with_nothing.stderr_text())
        with_nothing.close()
        assert error.exit_code is ExitCode.NO_SUBSYSTEM
        assert str(error).startswith("the server does not run a subsystem 'sftp'")
        assert "-o sftp_server=/usr/lib/openssh/sftp-server" in error.hint
        stream = await connection.open_sftp(sftp_server())
        await greet(stream)
        stream.close()

    trio.run(main)
    assert master.running


@in_trio
async def test_a_command_that_does_not_exist(shared_master: Master) -> None:
    server = "/nonexistent/sftp-server"
    stream = await (await joined(shared_master.control_path)).open_sftp(server)
    assert await read_all(stream) == b""
    error = sftp_failure(server, await stream.wait_closed(), stream.stderr_text())
    stream.close()
    assert error.exit_code is ExitCode.NO_SUBSYSTEM
    assert str(error).startswith("the server does not run `/nonexistent/sftp-server` (exit status 127): ")
    assert "No such file" in str(error)


def test_text_of_the_server_is_made_safe() -> None:
    assert str(sftp_failure("sftp\x1b", 1, "\x1b[2J\n")).isprintable()


def test_no_room_for_another_session(make_sshd: Callable[..., Sshd], make_master: Callable[..., Master]) -> None:
    master = make_master(make_sshd(max_sessions=1))

    async def main() -> None:
        connection = await joined(master.control_path)
        first = await connection.open_sftp()
        with pytest.raises(JoinError) as caught:
            await connection.open_sftp()
        assert caught.value.exit_code is ExitCode.REFUSED
        await greet(first)
        first.close()

    trio.run(main)
    assert probe(master.control_path).found is Found.LIVE


@in_trio
async def test_nothing_to_join(control_path: str) -> None:
    error = await refused(control_path)
    assert error.exit_code is ExitCode.NOTHING_TO_JOIN
    assert str(error) == f"no connection to box can be joined. Nothing is at {control_path}."
    assert error.hint == "start a connection to share: ssh -fNM -- box"


@in_trio
async def test_every_path_that_was_tried_is_named(control_path: str) -> None:
    os.mkdir(control_path)
    with pytest.raises(JoinError) as caught:
        await join(target(control_path, control_path + ".own"), Wish(may_upstream=False))
    assert caught.value.exit_code is ExitCode.UNSAFE_SOCKET
    assert f"At {control_path} is a directory" in str(caught.value)
    assert f"Nothing is at {control_path}.own." in str(caught.value)
    assert f"-S {control_path}.own" in caught.value.hint


@in_trio
async def test_our_own_path_after_the_configured_one(shared_master: Master, control_path: str) -> None:
    connection = await join(target(control_path, shared_master.control_path), Wish())
    assert connection.path == shared_master.control_path


@in_trio
async def test_a_path_of_the_command_line_stands_alone(shared_master: Master, control_path: str) -> None:
    with pytest.raises(JoinError) as caught:
        await join(target(control_path, shared_master.control_path), Wish(explicit=True, may_upstream=False))
    assert shared_master.control_path not in str(caught.value)


def test_a_stale_socket(master: Master) -> None:
    master.kill()
    error = trio.run(refused, master.control_path)
    assert error.exit_code is ExitCode.NOTHING_TO_JOIN
    assert f"rm {master.control_path}" in str(error)
    assert os.path.lexists(master.control_path)


@in_trio
async def test_a_frozen_master_holds_up_nobody_else(master: Master) -> None:
    master.freeze()
    turns = 0
    async with trio.open_nursery() as nursery:

        async def others() -> None:
            nonlocal turns
            while True:
                await trio.sleep(0.01)
                turns += 1

        nursery.start_soon(others)
        error = await refused(master.control_path, deadline_s=2.0)
        nursery.cancel_scope.cancel()
    assert error.exit_code is ExitCode.NO_ANSWER
    assert turns > 1
    master.thaw()
    assert (await joined(master.control_path)).pid == master.pid


@in_trio
async def test_it_can_be_given_up(control_path: str) -> None:
    with listening(control_path), trio.move_on_after(0.05) as scope:
        await joined(control_path)
    assert scope.cancelled_caught


@in_trio
async def test_a_master_that_froze_after_it_was_joined(master: Master) -> None:
    connection = await joined(master.control_path)
    master.freeze()
    with pytest.raises(JoinError) as caught:
        await connection.open_sftp(deadline_s=SHORT_S)
    assert caught.value.exit_code is ExitCode.NO_ANSWER
    master.thaw()


def test_a_dead_link_below_a_master_that_lives(
    make_sshd: Callable[..., Sshd], make_master: Callable[..., Master]
) -> None:
    server = make_sshd()
    master = make_master(server)
    stopped = server.sessions()
    for process in stopped:
        processes.send_signal(process, signal.SIGSTOP)

    async def main() -> None:
        connection = await joined(master.control_path)
        with pytest.raises(JoinError) as caught:
            await connection.open_sftp(deadline_s=SHORT_S)
        assert caught.value.exit_code is ExitCode.NO_ANSWER

    trio.run(main)
    for process in stopped:
        processes.send_signal(process, signal.SIGCONT)


def test_a_master_that_was_replaced_after_it_was_joined(sshd: Sshd, make_master: Callable[..., Master]) -> None:
    first = make_master(sshd)

    async def main() -> None:
        connection = await joined(first.control_path)
        first.exit()
        second = make_master(sshd)
        stream = await connection.open_sftp()
        await greet(stream)
        stream.close()
        assert (await joined(first.control_path)).pid == second.pid

    trio.run(main)


def test_a_session_finds_the_connection_that_is_left(
    sshd: Sshd, shared_master: Master, make_master: Callable[..., Master]
) -> None:
    master = make_master(sshd)

    async def main() -> None:
        connection = await join(target(master.control_path, shared_master.control_path), Wish())
        assert connection.path == master.control_path
        master.kill()
        stream = await connection.open_sftp()
        await greet(stream)
        stream.close()

    trio.run(main)


@in_trio
async def test_a_master_that_ended_after_it_was_joined(master: Master) -> None:
    connection = await joined(master.control_path)
    master.exit()
    with pytest.raises(JoinError, match="Nothing is at") as caught:
        await connection.open_sftp()
    assert caught.value.exit_code is ExitCode.NOTHING_TO_JOIN


@in_trio
async def test_a_stopped_listener_keeps_the_session(master: Master) -> None:
    stream = await (await joined(master.control_path)).open_sftp()
    master.stop()
    assert (await refused(master.control_path)).exit_code is ExitCode.NOTHING_TO_JOIN
    await greet(stream)
    stream.close()


@contextmanager
def ending(pid: int) -> Iterator[Callable[[], None]]:
    """Gives what waits for the end of a process."""
    process = processes.known(pid)

    def wait() -> None:
        assert not processes.wait_ended([process], GONE_DEADLINE_S), f"{process} is still there"

    yield wait


def test_control_persist_counts_from_the_end_of_our_session(sshd: Sshd, control_path: str) -> None:
    options = ["-o", "ControlMaster=auto", "-o", "ControlPersist=6s", "-S", control_path]
    sshd.ssh(*options, HOST, "true")

    async def main() -> None:
        connection = await joined(control_path)
        assert connection.pid is not None
        with ending(connection.pid) as wait:
            stream = await connection.open_sftp()
            await trio.sleep(8)  # more than its time
            await greet(stream)
            assert probe(control_path).pid == connection.pid
            stream.close()
            await trio.to_thread.run_sync(wait)
        assert probe(control_path).found is Found.ABSENT

    trio.run(main)


def test_a_foreground_master_waits_for_our_session(sshd: Sshd, control_path: str) -> None:
    shell = subprocess.Popen(
        [program("ssh"), "-F", str(sshd.ssh_config), "-M", "-S", control_path, HOST, "echo here; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    to_shell, from_shell = shell.stdin, shell.stdout
    assert to_shell is not None
    assert from_shell is not None
    assert from_shell.readline() == b"here\n"

    async def main() -> None:
        stream = await (await joined(control_path)).open_sftp()
        to_shell.close()  # its own session ends
        assert from_shell.read() == b""
        await greet(stream)
        assert shell.poll() is None
        stream.close()

    trio.run(main)
    assert shell.wait(GONE_DEADLINE_S) == 0
    from_shell.close()
