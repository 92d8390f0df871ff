"""Ctrl-C at any moment of the start leaves nothing, and the exit code says so; what a daemon takes along: nothing."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support import mounts, processes
from tests.support.master import Master
from tests.support.mounted import SSHMUXFS, Mount
from tests.support.sshd import Sshd, program
from tests.support.waiting import wait_until
from tests.t6_faults.faults import await_path, await_reached, fill, make, outcome, read, server_option
from tests.t6_faults.launched import END_S, Launched, arguments, servers, unmounted_after

HELLO = struct.pack(">III", 8, 1, 4)  # MUX_MSG_HELLO of version 4
# What Python itself says of an interrupt while it starts, with an exit code of its own.
BEFORE_OUR_FIRST_LINE = ("Could not import runpy module", "Failed to import the site module")
# What it says of one that came in a callback of its own (that of a weak reference of importlib's): it is lost, and a
# person types it again.
SWALLOWED = b"Exception ignored "
TAKEN_S = 10.0  # an interrupt that was not lost has ended the command by then, or else it is waited for all the same
# The command, struck in the first turn of its event loop: where the loop's own handlers are not there yet.
STRUCK_AT_ONCE = """
import signal, sys, trio
receiver = trio.open_signal_receiver
@trio.lowlevel.enable_ki_protection
def struck(*numbers):
    signal.raise_signal(signal.SIGINT)
    return receiver(*numbers)
trio.open_signal_receiver = struck
from sshmuxfs.cli import main
sys.exit(main(sys.argv[1:]))
"""
BOTH = pytest.mark.parametrize("foreground", [True, False])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A mount point."""
    path = tmp_path / "mnt"
    path.mkdir()
    with unmounted_after(path):
        yield path


def interrupt(launched: Launched) -> None:
    """Ctrl-C, and what has to be the case then."""
    launched.signal(signal.SIGINT)
    assert launched.end() == ExitCode.INTERRUPTED, launched.output
    assert mounts.mounted_at(launched.place) is None
    assert "Traceback" not in launched.output
    wait_until(lambda: not servers(launched.place), "the background half to end")


@BOTH
@pytest.mark.parametrize("greets", [False, True])
def test_while_the_master_does_not_answer(sshd: Sshd, place: Path, foreground: bool, greets: bool) -> None:
    """A stopped one: it takes clients and does not greet them, or greets them and then stops."""
    control_path = sshd.control_dir / "frozen"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.settimeout(END_S)
        listener.bind(str(control_path))
        stack.callback(control_path.unlink)
        control_path.chmod(0o600)
        listener.listen()
        launched = stack.enter_context(
            Launched(sshd, sshd.root, place, control_path=control_path, foreground=foreground)
        )
        client, _ = listener.accept()
        stack.enter_context(client)
        if greets:
            client.sendall(HELLO)
            assert client.recv(100)
        interrupt(launched)


@BOTH
def test_while_ssh_is_asked(sshd: Sshd, place: Path, tmp_path: Path, foreground: bool) -> None:
    """`ssh -G`, which reads its configuration from a file that never comes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    reached = tmp_path / "asked"
    script = programs / "ssh"
    script.write_text(f"#!/bin/sh\n: >{shlex.quote(str(reached))}\nexec sleep 60\n")
    script.chmod(0o755)
    with Launched(
        sshd, sshd.root, place, control_path=tmp_path / "none", foreground=foreground, path=programs
    ) as launched:
        await_path(reached)
        interrupt(launched)


@BOTH
@pytest.mark.parametrize("silent", ["greeting", "question"])
def test_while_the_server_does_not_answer(
    sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path, foreground: bool, silent: str
) -> None:
    """Neither the first word of SFTP, nor the first question."""
    fill(remote_dir)
    directory, conversation = remote_dir, "greeting:nothing"
    if silent == "question":
        directory, conversation = remote_dir / make(remote_dir, "silence:Stat", "directory"), "plain"
    with Launched(
        sshd,
        directory,
        place,
        control_path=shared_master.control_path,
        options=[server_option(conversation, remote_dir)],
        foreground=foreground,
    ) as launched:
        await_reached(remote_dir)
        interrupt(launched)


@BOTH
def test_right_after_the_mount(
    sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path, foreground: bool
) -> None:
    """In front, it ends the mount; in the background the mount is there, and all right, or it is not there."""
    for _ in range(5):
        with Launched(
            sshd, remote_dir, place, control_path=shared_master.control_path, foreground=foreground
        ) as launched:
            wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
            launched.signal(signal.SIGINT)
            check_ended(launched, foreground)


@BOTH
def test_at_many_moments(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path, foreground: bool) -> None:
    """Whenever it comes: all of a mount, or nothing."""
    for moment in range(12):
        with Launched(
            sshd, remote_dir, place, control_path=shared_master.control_path, foreground=foreground
        ) as launched:
            # Not an event that is awaited: any moment is as good as any other.
            time.sleep(moment * 0.04)
            launched.signal(signal.SIGINT)
            check_ended(launched, foreground)


def test_before_the_loop_receives_signals(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path) -> None:
    """One that comes before is heeded as any other."""
    said = arguments(sshd, remote_dir, place, shared_master.control_path, foreground=True)[len(SSHMUXFS) :]
    struck = subprocess.run(
        [sys.executable, "-c", STRUCK_AT_ONCE, *said],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=END_S,
        env=sshd.environment(),
    )
    assert (struck.returncode, struck.stdout) == (ExitCode.INTERRUPTED, "sshmuxfs: interrupted\n")
    assert mounts.mounted_at(place) is None


def check_ended(launched: Launched, foreground: bool) -> None:
    """Mounted and 0, or not mounted and 130; in front, a mount that was there has been ended in order."""
    try:
        code = launched.end(TAKEN_S)
    except subprocess.TimeoutExpired as late:
        if SWALLOWED in (late.output or b""):
            launched.signal(signal.SIGINT)
        code = launched.end()
    if code == 1 and any(text in launched.output for text in BEFORE_OUR_FIRST_LINE):
        code = ExitCode.INTERRUPTED
    assert code in (ExitCode.OK, ExitCode.INTERRUPTED), launched.output
    if code == ExitCode.OK and not foreground:
        with unmounted_after(launched.place):
            assert outcome(os.listdir, launched.place) == []
    wait_until(lambda: not servers(launched.place), "the background half to end")
    assert mounts.mounted_at(launched.place) is None


def test_a_daemon_lets_go_of_everything(
    make_mount: Callable[..., Mount], remote_dir: Path, shared_master: Master
) -> None:
    """A session of its own, no terminal, `/`, and /dev/null three times."""
    mount = make_mount(remote_dir, foreground=False)
    fields = Path(f"/proc/{mount.pid}/stat").read_text().rpartition(")")[2].split()
    session, terminal = fields[3], fields[4]
    assert (int(session), int(terminal)) == (mount.pid, 0)
    assert os.readlink(f"/proc/{mount.pid}/cwd") == "/"
    assert [os.readlink(f"/proc/{mount.pid}/fd/{number}") for number in (0, 1, 2)] == ["/dev/null"] * 3


def test_a_daemon_inherits_nothing(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path) -> None:
    """A descriptor that the command was started with is closed when it returns: no lock and no pipe stays held."""
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            arguments(sshd, remote_dir, place, shared_master.control_path),
            env=sshd.environment(),
            timeout=END_S,
            pass_fds=[writing],
        )
        os.close(writing)
        assert done.returncode == ExitCode.OK
        assert mounts.mounted_at(place) is not None
        assert select.select([reading], [], [], END_S)[0]
    finally:
        os.close(reading)


@pytest.mark.parametrize("stream", ["2>&1", "2>/dev/null", ">/dev/null 2>&1"])
def test_a_pipeline_returns(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path, stream: str) -> None:
    """`sshmuxfs ... | cat`: the pipe is let go."""
    command = shlex.join(arguments(sshd, remote_dir, place, shared_master.control_path))
    done = subprocess.run(
        ["sh", "-c", f"{command} {stream} | cat"],
        env=sshd.environment(),
        timeout=END_S,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert mounts.mounted_at(place) is not None


def test_a_terminal_is_let_go(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path) -> None:
    """Started in a terminal that is then closed, which sends SIGHUP to whoever still holds it."""
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [program("setsid"), "-c", "-w", *arguments(sshd, remote_dir, place, shared_master.control_path)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=sshd.environment(),
            timeout=END_S,
            check=True,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    (remote_dir / "file").write_bytes(b"still there")
    assert outcome(read, place / "file") == b"still there"


def test_ctrl_c_in_the_terminal_it_was_started_in(
    sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path
) -> None:
    """SIGINT goes to the whole group of processes in front, of which the mount is none any more."""
    command = arguments(sshd, remote_dir, place, shared_master.control_path)
    script = '"$@" && trap "echo here" INT && kill -INT 0 && sleep 0'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=sshd.environment(),
        timeout=END_S,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout) == (0, b"here\n")
    (remote_dir / "file").write_bytes(b"still there")
    assert outcome(read, place / "file") == b"still there"


def test_a_hangup_that_is_ignored(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path) -> None:
    """As under nohup(1): the mount stays, in the foreground too, and SIGTERM ends it."""
    command = ["/usr/bin/nohup", *arguments(sshd, remote_dir, place, shared_master.control_path), "-f"]
    with processes.running(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=sshd.environment()
    ) as process:
        wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
        (remote_dir / "file").write_bytes(b"still there")
        assert outcome(read, place / "file") == b"still there"
        process.send_signal(signal.SIGHUP)
        assert outcome(read, place / "file") == b"still there"
        process.terminate()
        assert process.wait(END_S) == 0
    assert mounts.mounted_at(place) is None


def test_the_log_goes_to_the_file(
    sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path, tmp_path: Path
) -> None:
    """Named from where the command was started, and written by the daemon, which is elsewhere."""
    fill(remote_dir)
    make(remote_dir, "die:Lstat")
    options = [server_option("plain", remote_dir), "log_file=the log"]
    subprocess.run(
        arguments(sshd, remote_dir, place, shared_master.control_path, options),
        env=sshd.environment(),
        timeout=END_S,
        check=True,
        cwd=tmp_path,
    )
    outcome(os.stat, place / "evil:die:Lstat")
    wait_until(lambda: "the channel ended" in (tmp_path / "the log").read_text(), "the log")
