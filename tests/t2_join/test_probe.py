"""What a probe finds: real masters, whatever else can be at a control path, and what is other users'."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mux.protocol.messages import Alive, Hello, encode
from mux.rendezvous import sockets
from mux.rendezvous.sockets import Found, Probe, look, probe
from tests.support.bounded import in_subprocess
from tests.support.master import Master
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until
from tests.t2_join.fake import PID, Peer, listening, master_at
from tests.t2_join.streams import in_trio

SHORT_S = 0.2
IS_ROOT = os.geteuid() == 0
NOBODY = 65534 if IS_ROOT else os.geteuid() + 1
SOMEBODY = 54321


async def probed(path: str, deadline_s: float = sockets.HELLO_DEADLINE_S) -> Probe:
    """Probe from beside the loop that plays the master."""
    return await trio.to_thread.run_sync(partial(probe, path, deadline_s=deadline_s))


async def answer_one(listener: socket.socket) -> None:
    """Be a master to one client, who says nothing that an answer would depend on."""
    await trio.lowlevel.wait_readable(listener)
    with listener.accept()[0] as accepted:
        accepted.setblocking(False)
        accepted.sendall(encode(Hello()) + encode(Alive(0, PID)))
        said = b"?"
        while said:
            await trio.lowlevel.wait_readable(accepted)
            said = accepted.recv(4096)


def test_a_real_master(master: Master) -> None:
    found = probe(master.control_path)
    assert found == Probe(master.control_path, Found.LIVE, found.detail, master.pid)
    assert master.control_path in found.detail
    assert master.ssh("echo", "still", "here").stdout == "still here\n"


# Begins when it is told to, so that the wait is what it is stopped in.
PROBER = """
import sys
from mux.rendezvous.sockets import probe
print("ready", flush=True)
sys.stdin.readline()
print(probe(sys.argv[1], deadline_s=1).found.name)
"""


def test_a_master_is_not_frozen_because_the_machine_stood_still(master: Master) -> None:
    """Both are stopped for longer than the deadline, and who looks is the first to go on."""
    with ExitStack() as stack:
        prober = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", PROBER, master.control_path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(prober.kill)
        assert prober.stdin is not None and prober.stdout is not None
        assert prober.stdout.readline() == "ready\n"
        os.kill(master.pid, signal.SIGSTOP)
        stack.callback(os.kill, master.pid, signal.SIGCONT)
        prober.stdin.write("\n")
        prober.stdin.flush()
        wait_until(lambda: connected(prober.pid), "the prober to ask")
        os.kill(prober.pid, signal.SIGSTOP)
        time.sleep(2)  # the deadline, and a standstill behind it
        os.kill(prober.pid, signal.SIGCONT)
        time.sleep(0.3)
        os.kill(master.pid, signal.SIGCONT)
        assert prober.communicate(timeout=60)[0] == "LIVE\n"


def connected(process: int) -> bool:
    """Whether a process of that kind has its only socket."""
    descriptors = Path(f"/proc/{process}/fd")
    return any(os.readlink(each).startswith("socket:") for each in descriptors.iterdir())


def test_a_killed_master_leaves_a_stale_socket_which_is_left_alone(master: Master) -> None:
    before = os.lstat(master.control_path)
    master.kill()
    found = probe(master.control_path)
    assert found.found is Found.STALE
    assert f"rm {master.control_path}" in found.detail
    assert os.path.samestat(os.lstat(master.control_path), before)


def test_a_master_that_stopped_listening_is_gone(master: Master) -> None:
    master.stop()
    assert probe(master.control_path).found is Found.ABSENT


def test_a_frozen_master(master: Master) -> None:
    master.freeze()
    try:
        found = probe(master.control_path, deadline_s=SHORT_S)
        assert found.found is Found.FROZEN
        assert "gives no answer" in found.detail
    finally:
        master.thaw()
    assert probe(master.control_path).found is Found.LIVE


def test_a_frozen_master_whose_queue_is_full(master: Master) -> None:
    master.freeze()
    with ExitStack() as clients:
        full = False
        while not full:
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            try:
                client.connect(master.control_path)
            except BlockingIOError:
                full = True
        found = probe(master.control_path, deadline_s=SHORT_S)
        assert found.found is Found.FULL
        assert "queue" in found.detail
    master.thaw()
    assert probe(master.control_path).found is Found.LIVE


def test_a_queue_that_empties_in_time(control_path: str) -> None:
    async def main() -> None:
        with listening(control_path, backlog=0) as listener, socket.socket(socket.AF_UNIX) as first:
            first.connect(control_path)
            async with trio.open_nursery() as nursery:

                async def make_room() -> None:
                    await trio.sleep(SHORT_S)
                    listener.accept()[0].close()
                    await answer_one(listener)

                nursery.start_soon(make_room)
                assert (await probed(control_path)).found is Found.LIVE

    trio.run(main)


def test_nothing(control_path: str) -> None:
    assert probe(control_path) == Probe(control_path, Found.ABSENT, f"Nothing is at {control_path}.")


def test_nothing_and_no_directory(control_path: str) -> None:
    found = probe(f"{control_path}/x/y")
    assert found.found is Found.ABSENT
    assert "nor is there a directory" in found.detail


def make_file(path: str) -> None:
    Path(path).write_text("precious")


@pytest.mark.parametrize(
    ("make", "words"),
    [(make_file, "a regular file"), (os.mkdir, "a directory"), (os.mkfifo, "a named pipe")],
)
def test_no_socket(control_path: str, make: Callable[[str], None], words: str) -> None:
    make(control_path)
    found = probe(control_path)
    assert found.found is Found.NOT_A_SOCKET
    assert words in found.detail
    assert os.path.lexists(control_path)


def test_below_a_file(control_path: str) -> None:
    make_file(control_path)
    assert probe(f"{control_path}/x").found is Found.NOT_A_SOCKET


def test_a_symbolic_link_is_not_followed(master: Master, control_path: str) -> None:
    os.symlink(master.control_path, control_path)
    found = probe(control_path)
    assert found.found is Found.UNSAFE
    assert "symbolic link" in found.detail
    assert "readlink -f" in found.detail


@in_trio
async def test_the_longest_path(control_path: str) -> None:
    directory = os.path.dirname(control_path)
    longest = f"{directory}/{'x' * (sockets.LONGEST_PATH_BYTES - len(directory) - 1)}"
    async with master_at(longest):
        assert (await probed(longest)).found is Found.LIVE
    found = await probed(longest + "x")
    assert found.found is Found.TOO_LONG
    assert "108 bytes" in found.detail


def test_the_length_counts_bytes(control_path: str) -> None:
    assert probe(os.path.dirname(control_path) + "/" + "ü" * 50).found is Found.TOO_LONG


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_in_which_others_can_write(master: Master, mode: int) -> None:
    directory = Path(master.control_path).parent
    private = stat.S_IMODE(directory.stat().st_mode)
    directory.chmod(mode)
    try:
        found = probe(master.control_path)
        assert found.found is Found.UNSAFE
        assert f"mode {mode:o}" in found.detail
        directory.chmod(0o1777)
        assert probe(master.control_path).found is Found.LIVE
    finally:
        directory.chmod(private)


@in_trio
async def test_a_silent_listener(control_path: str) -> None:
    with listening(control_path):
        assert (await probed(control_path, SHORT_S)).found is Found.FROZEN


@in_trio
async def test_a_greeting_and_then_silence(control_path: str) -> None:
    async def greet(peer: Peer) -> None:
        await peer.send()

    async with master_at(control_path, greet):
        assert (await probed(control_path, SHORT_S)).found is Found.FROZEN


@in_trio
async def test_somebody_who_never_stops_talking(control_path: str) -> None:
    async def talk(peer: Peer) -> None:
        with trio.move_on_after(60):
            try:
                await peer.write(encode(Hello()))
                while True:
                    await peer.write(bytes.fromhex("00000008 7fffffff 00000000"))
            except OSError:
                pass

    async with master_at(control_path, talk):
        assert (await probed(control_path, SHORT_S)).found is Found.FROZEN


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "announced a message"),
        (b"\0\0\0\0", "announced a message"),
        (bytes.fromhex("00000008 00000001 00000003"), "version 3"),
        (bytes.fromhex("00000008 00000001 00000005"), "version 5"),
        (bytes.fromhex("0000000c 80000005 00000000 00000001"), "does not fit"),
        (encode(Hello()) + bytes.fromhex("00000008 80000001 00000000"), "answered"),
        (encode(Hello()) + bytes.fromhex("0000000c 80000005 00000007 00000001"), "answered"),
        (encode(Hello()) + bytes.fromhex("00000005 80000005 00"), "malformed"),
    ],
)
def test_something_that_is_no_master(control_path: str, data: bytes, words: str) -> None:
    async def main() -> None:
        async def say(peer: Peer) -> None:
            await peer.write(data)

        async with master_at(control_path, say):
            found = await probed(control_path)
            assert found.found is Found.NOT_A_MASTER
            assert words in found.detail

    trio.run(main)


@in_trio
async def test_what_it_says_cannot_reach_the_terminal(control_path: str) -> None:
    async def say(peer: Peer) -> None:
        await peer.write(b"\x1b[2J\x07\r\n" * 10)

    async with master_at(control_path, say):
        assert (await probed(control_path)).detail.isprintable()


@in_trio
async def test_somebody_who_hangs_up(control_path: str) -> None:
    async def hang_up(peer: Peer) -> None:
        peer.close()

    async with master_at(control_path, hang_up):
        found = await probed(control_path)
        assert found.found is Found.NOT_A_MASTER
        assert "hangs up" in found.detail


@in_trio
async def test_a_greeting_of_a_later_version_in_single_bytes(control_path: str) -> None:
    async def dribble(peer: Peer) -> None:
        extensions = ((b"info", b"0"), (b"later@example.org", b"1"))
        unknown = bytes.fromhex("00000005 7ffffffe 00")
        alive = bytes.fromhex("0000000d 80000005 00000000 00001267 ff")  # a field more than we know
        for byte in encode(Hello(extensions=extensions)) + unknown + alive:
            await peer.write(bytes([byte]))
            await trio.lowlevel.checkpoint()

    async with master_at(control_path, dribble):
        found = await probed(control_path)
        assert (found.found, found.pid) == (Found.LIVE, PID)


def test_a_datagram_socket(control_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(control_path)
        assert probe(control_path).found is Found.NOT_A_MASTER


@contextmanager
def leaving(path: str, then: Callable[[], None]) -> Iterator[Callable[[], Any]]:
    """A master that ends as it is joined, as when its ControlPersist time is over: its socket goes first."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    listener.setblocking(False)

    async def leave() -> None:
        await trio.lowlevel.wait_readable(listener)
        os.unlink(path)
        then()
        listener.close()

    yield leave
    listener.close()


@in_trio
async def test_a_master_that_ends_as_it_is_joined(control_path: str) -> None:
    with leaving(control_path, lambda: None) as leave:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            assert (await probed(control_path)).found is Found.ABSENT


@in_trio
async def test_a_master_that_is_replaced_as_it_is_joined(control_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as successor:

        def succeed() -> None:
            successor.bind(control_path)
            successor.listen()
            successor.setblocking(False)

        async def serve() -> None:
            await leave()
            await answer_one(successor)

        with leaving(control_path, succeed) as leave:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                found = await probed(control_path)
    assert (found.found, found.pid) == (Found.LIVE, PID)


def test_look_stops_at_the_first_that_lives(shared_master: Master, control_path: str) -> None:
    paths = [control_path, shared_master.control_path, control_path]
    assert [found.found for found in look(paths, deadline_s=5)] == [Found.ABSENT, Found.LIVE]


# Other users. Root becomes one, in a process of its own; anybody else can only be taken for one, as to his own files.


def as_nobody(path: str) -> Probe:
    """Probe as a user who owns nothing here."""

    def become_and_probe() -> Probe:
        if IS_ROOT:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        return probe(path)

    return in_subprocess(become_and_probe)


def give(path: str, uid: int, mode: int) -> None:
    os.chmod(path, mode)
    if IS_ROOT:
        os.chown(path, uid, -1)


def test_a_directory_we_may_not_enter(control_path: str) -> None:
    directory = os.path.dirname(control_path)
    with listening(control_path):
        os.chmod(directory, 0o700 if IS_ROOT else 0)
        found = as_nobody(control_path)
        os.chmod(directory, 0o700)
    assert found.found is Found.DENIED
    assert "Permission denied" in found.detail


def test_a_socket_we_may_not_connect_to(control_path: str) -> None:
    with listening(control_path):
        os.chmod(os.path.dirname(control_path), 0o755)
        os.chmod(control_path, 0o600 if IS_ROOT else 0)
        found = as_nobody(control_path)
    assert found.found is Found.DENIED
    assert "Permission denied" in found.detail


def test_a_socket_of_another_user(control_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not IS_ROOT:
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    os.chmod(os.path.dirname(control_path), 0o755)
    with listening(control_path) as listener:
        give(control_path, SOMEBODY, 0o777)
        found = as_nobody(control_path)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert found.found is Found.FOREIGN
    assert f"you are {NOBODY}" in found.detail


def test_a_process_of_another_user_behind_our_own_socket(control_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chmod(os.path.dirname(control_path), 0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(control_path)
        if IS_ROOT:
            os.seteuid(SOMEBODY)  # a listening socket answers for who called listen()
            listener.listen()
            os.seteuid(0)
        else:
            listener.listen()
            credentials = SimpleNamespace(size=12, unpack=lambda _: (1, SOMEBODY, SOMEBODY))
            monkeypatch.setattr(sockets, "_UCRED", credentials)
        give(control_path, NOBODY, 0o777)
        found = as_nobody(control_path)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(1) == b""
    assert found.found is Found.FOREIGN
    assert f"process of user {SOMEBODY}" in found.detail


def test_a_directory_of_another_user(control_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = os.path.dirname(control_path)
    with listening(control_path):
        if IS_ROOT:
            os.chown(directory, SOMEBODY, -1)
        else:
            answers = iter([os.geteuid()])
            monkeypatch.setattr(os, "geteuid", lambda: next(answers, NOBODY))
        found = probe(control_path)
    assert found.found is Found.UNSAFE
    assert "Other users can replace" in found.detail


def test_a_stale_socket_of_root_is_not_called_ours(control_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chmod(os.path.dirname(control_path), 0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
        gone.bind(control_path)
    os.chmod(control_path, 0o777)
    if not IS_ROOT:
        monkeypatch.setattr(sockets, "_trusted", lambda uid: True)
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    found = as_nobody(control_path)
    assert found.found is Found.FOREIGN
    assert "left over" in found.detail


def test_a_master_lives_on_whatever_its_clients_do(sshd: Sshd, master: Master) -> None:
    for _ in range(20):
        assert probe(master.control_path).pid == master.pid
    assert master.running
