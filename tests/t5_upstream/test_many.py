"""Many clients, one after another and at the same time; and a mount among them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mux.protocol.messages import SessionOpened, StdioForward
from tests.support.bounded import in_subprocess
from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.sshd import HOST
from tests.support.waiting import wait_until
from tests.t5_upstream.clients import (
    DEADLINE_S,
    Clients,
    descriptors_of,
    ended,
    killed_at_end,
    line_of,
    say,
    threads_of,
)
from tests.t5_upstream.kinds import ours_only
from tests.t5_upstream.raw import Raw, null, pipes, run, session
from tests.t5_upstream.test_proxy import resident_bytes

# For as much as takes a few seconds when nothing else wants the processors. pytest-timeout allows a little more.
BULK_DEADLINE_S = 240.0


def test_40_many_at_the_same_time(clients: Clients) -> None:
    """Each with its own words, all open at once, closed in another order."""
    with ExitStack() as stack:
        running = [stack.enter_context(clients.started(HOST, f"cat; exit {number}")) for number in range(20)]
        for turn in range(3):
            for number, process in enumerate(running):
                say(process, b"%d %d\n" % (turn, number))
            for number, process in enumerate(running):
                assert line_of(process) == b"%d %d" % (turn, number)
        for process in reversed(running):
            assert process.stdin is not None
            process.stdin.close()
        assert [ended(process) for process in running] == list(range(20))


def test_40_two_hundred_one_after_another(clients: Clients, holder: Master) -> None:
    """Nothing grows: descriptors, threads; and no process is left at the server."""
    assert clients.ssh(HOST, "exit 3").returncode == 3
    descriptors, threads = len(descriptors_of(holder.pid)), threads_of(holder.pid)
    below = len(holder.sshd.sessions())
    for number in range(200):
        assert run(holder.control_path, b"exit %d" % (number % 256)) == number % 256
    wait_until(lambda: len(descriptors_of(holder.pid)) <= descriptors, "no more descriptors than before")
    # A few for files, which are kept for the next one.
    wait_until(lambda: threads_of(holder.pid) <= threads + 8, "no more threads than before")
    wait_until(lambda: len(holder.sshd.sessions()) <= below, "no more processes at the server than before")


@ours_only
def test_40_memory_does_not_grow(clients: Clients, holder: Master) -> None:
    """Sessions with a lot of output, whose readers go away in the middle."""
    for _ in range(3):
        clients.shell("$SSH box 'head -c 20000000 /dev/zero' | head -c 1000 >/dev/null")
    before = resident_bytes(holder.pid)
    for _ in range(20):
        clients.shell("$SSH box 'head -c 20000000 /dev/zero' 2>/dev/null | head -c 1000 >/dev/null")
    assert resident_bytes(holder.pid) - before < 30_000_000


@pytest.fixture
def mounted(make_mount: Callable[..., Mount], holder: Master, directory: Path) -> Mount:
    """The directory through the connection, with nothing kept: each look asks the server."""
    return make_mount(directory, master=holder, options=["attr_timeout=0", "entry_timeout=0"])


def look(mount: Mount, directory: Path, number: int) -> None:
    """Make a file on the server, and see it through the mount."""
    (directory / f"file{number}").write_text(str(number))
    assert in_subprocess(lambda: (mount.path / f"file{number}").read_text(), DEADLINE_S) == str(number)
    assert in_subprocess(lambda: (mount.path / f"file{number}").stat().st_size, DEADLINE_S) == len(str(number))


def test_52_reader_that_does_not_read_beside_a_mount(clients: Clients, mounted: Mount, directory: Path) -> None:
    with clients.started("-n", HOST, "cat /dev/zero") as stuck:
        assert stuck.stdout is not None
        assert stuck.stdout.read(1) == b"\0"
        for number in range(20):
            look(mounted, directory, number)


@pytest.mark.parametrize("way", ["out", "in", "both"])
def test_53_large_transfers_beside_a_mount(clients: Clients, mounted: Mount, directory: Path, way: str) -> None:
    """As fast as it goes in a session, while the mount is asked for one small thing after another."""
    commands = {
        "out": "$SSH -n box 'head -c 400000000 /dev/zero' >/dev/null",
        "in": "head -c 400000000 /dev/zero | $SSH box 'cat >/dev/null'",
        "both": "head -c 200000000 /dev/zero | $SSH box cat >/dev/null",
    }
    process = subprocess.Popen(
        ["sh", "-c", commands[way]],
        env=clients.environment(SSH=" ".join(clients.command())),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    looks = 0
    with killed_at_end(process):
        while process.poll() is None:
            look(mounted, directory, looks)
            looks += 1
        assert process.returncode == 0
    assert looks > 0


def test_53_mount_of_large_files_beside_a_terminal(clients: Clients, mounted: Mount, directory: Path) -> None:
    """The other way round: the mount copies, a session is typed into."""
    (directory / "large").write_bytes(os.urandom(1 << 20) * 100)
    copied = []
    copy = threading.Thread(
        target=lambda: copied.append(
            in_subprocess(["cmp", f"{mounted.path}/large", f"{directory}/large"], BULK_DEADLINE_S).returncode
        )
    )
    with clients.started(HOST, "cat") as process:
        copy.start()
        turns = 0
        while copy.is_alive():
            say(process, b"%d\n" % turns)
            assert line_of(process) == b"%d" % turns
            turns += 1
    copy.join(DEADLINE_S)
    assert copied == [0]
    assert turns > 0


def test_55_session_and_gone(clients: Clients, holder: Master) -> None:
    """At every step of its making: nothing stays, neither here nor at the server."""
    before = len(descriptors_of(holder.pid))
    with null() as descriptors, pipes() as (given, _):
        for _ in range(10):
            with Raw(holder.control_path) as raw:
                raw.say(session(1, b"cat"), given)
            with Raw(holder.control_path) as raw:
                raw.say(session(1, b"cat"), given)
                raw.expect(SessionOpened)
            with Raw(holder.control_path) as raw:
                raw.say(session(1, b"exit 3"), descriptors)
    running = "cat"
    wait_until(
        lambda: running not in [process.command for process in holder.sshd.sessions()],
        "nothing runs at the server any more",
    )
    wait_until(lambda: len(descriptors_of(holder.pid)) <= before, "the holder has what it had before")
    assert clients.ssh(HOST, "exit 3").returncode == 3


@ours_only
def test_55_stdio_and_gone(holder: Master) -> None:
    before = len(descriptors_of(holder.pid))
    with pipes() as (given, _):
        for _ in range(10):
            with Raw(holder.control_path) as raw:
                raw.say(StdioForward(1, b"", b"127.0.0.1", holder.sshd.port), given[:2])
    wait_until(lambda: len(descriptors_of(holder.pid)) <= before, "the holder has what it had before")
