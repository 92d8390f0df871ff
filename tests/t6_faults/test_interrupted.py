"""Ctrl-C at any moment of the start leaves nothing, and the exit code says so; what a daemon takes along: nothing."""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support import mounts, processes
from tests.support.master import Master
from tests.support.mounted import SSHMUXFS, Mount
from tests.support.sshd import HOST, Sshd, program
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
# The command, struck when it mounts or unmounts (FUNCTION), and with it a program that it runs then: as by Ctrl-C in a
# terminal while libfuse's fusermount3 works for it.
STRUCK_AT_THE_MOUNT = """
import signal, subprocess, sys, pyfuse3
whole = pyfuse3.FUNCTION
def struck(*arguments, **named):
    subprocess.run(["/bin/sh", "-c", "kill -INT $$; echo whole"])
    signal.raise_signal(signal.SIGINT)
    whole(*arguments, **named)
pyfuse3.FUNCTION = struck
from sshmuxfs.cli import main
sys.exit(main(sys.argv[1:]))
"""
ENDING = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
BOTH = pytest.mark.parametrize("foreground", [True, False])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A mount point."""
    path = tmp_path / "mnt"
    path.mkdir()
    with unmounted_after(path):
        yield path


@pytest.fixture
def launch(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path) -> Callable[..., Launched]:
    """Starts the command for a directory of the server, over a master that is there."""
    return partial(Launched, sshd, remote_dir, place, control_path=shared_master.control_path)


def interrupt(launched: Launched, number: signal.Signals = signal.SIGINT) -> None:
    """Ctrl-C (or what else ends a process), and what has to be the case then."""
    launched.signal(number)
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


class Slow:
    """A program to be found in PATH, which does nothing until it is told to go on, and then what it is for.

    programs   the directory to put into PATH
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.programs = directory / "bin"
        self.programs.mkdir()
        self._begun, self._went_on, gate = (directory / each for each in ("begun", "went-on", "gate"))
        os.mkfifo(gate)
        self._gate = os.open(gate, os.O_RDWR)
        script = self.programs / name
        script.write_text(
            f'#!/bin/sh\n: >{self._begun}\nread _ <{gate}\n: >{self._went_on}\nexec {program(name)} "$@"\n'
        )
        script.chmod(0o755)

    def await_begun(self) -> None:
        await_path(self._begun)

    def go_on(self) -> None:
        os.write(self._gate, b"\n")

    @property
    def went_on(self) -> bool:
        return self._went_on.exists()

    def close(self) -> None:
        os.close(self._gate)


@pytest.fixture
def make_slow(stack: ExitStack, tmp_path: Path) -> Callable[[str], Slow]:
    """`make_slow(name)`."""

    def make(name: str) -> Slow:
        slow = Slow(name, tmp_path)
        stack.callback(slow.close)
        return slow

    return make


@pytest.fixture
def slow_ssh(make_slow: Callable[[str], Slow]) -> Slow:
    return make_slow("ssh")


@BOTH
@ENDING
def test_while_ssh_is_asked(sshd: Sshd, place: Path, slow_ssh: Slow, foreground: bool, number: signal.Signals) -> None:
    """`ssh -G`, which reads its configuration from a file that never comes, and ends with the command."""
    with Launched(
        sshd, sshd.root, place, control_path="none", foreground=foreground, path=slow_ssh.programs
    ) as launched:
        slow_ssh.await_begun()
        interrupt(launched, number)
        assert launched.output == "sshmuxfs: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_command_alone(sshd: Sshd, place: Path, slow_ssh: Slow, number: signal.Signals) -> None:
    """Not its background half, which is told."""
    with Launched(sshd, sshd.root, place, control_path="none", path=slow_ssh.programs) as launched:
        slow_ssh.await_begun()
        launched.process.send_signal(number)
        assert (launched.end(), launched.output) == (ExitCode.INTERRUPTED, "sshmuxfs: interrupted\n")


@BOTH
@ENDING
def test_while_a_password_is_read(sshd: Sshd, place: Path, foreground: bool, number: signal.Signals) -> None:
    """From a pipe in which none comes."""
    reading, writing = os.pipe()
    try:
        with Launched(
            sshd,
            sshd.root,
            place,
            control_path="none",
            options=["password_stdin"],
            foreground=foreground,
            stdin=reading,
        ) as launched:
            os.write(writing, b"begun")
            wait_until(lambda: pending(reading) == 0, "the password to be read")
            interrupt(launched, number)
            assert launched.output == "sshmuxfs: interrupted\n"
    finally:
        os.close(reading)
        os.close(writing)


def pending(pipe: int) -> int:
    """How many bytes are in it."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_the_background_half_is_killed(sshd: Sshd, place: Path, slow_ssh: Slow) -> None:
    """What comes of it is told as a shell would."""
    with Launched(sshd, sshd.root, place, control_path="none", path=slow_ssh.programs) as launched:
        slow_ssh.await_begun()
        (half,) = [each for each in servers(place) if each.pid != launched.process.pid]
        processes.send_signal(half, signal.SIGKILL)
        assert launched.end() == 128 + signal.SIGKILL
        slow_ssh.go_on()


def test_the_command_is_killed(launch: Callable[..., Launched], place: Path, tmp_path: Path, slow_ssh: Slow) -> None:
    """Before it could tell that the mount works: there is none, and the log says why."""
    log = tmp_path / "log"
    with launch(options=[f"log_file={log}"], path=slow_ssh.programs) as launched:
        slow_ssh.await_begun()
        launched.process.kill()
        launched.process.wait()
        slow_ssh.go_on()
        launched.end()
        wait_until(lambda: not servers(place), "the background half to end")
    assert mounts.mounted_at(place) is None
    assert "the command was killed before it could tell" in log.read_text()
    assert "Traceback" not in log.read_text()


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
def test_right_after_the_mount(launch: Callable[..., Launched], place: Path, foreground: bool) -> None:
    """In front, it ends the mount; in the background the mount is there, and all right, or it is not there."""
    for _ in range(5):
        with launch(foreground=foreground) as launched:
            wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
            launched.signal(signal.SIGINT)
            check_ended(launched, foreground)


@BOTH
def test_at_many_moments(launch: Callable[..., Launched], foreground: bool) -> None:
    """Whenever it comes: all of a mount, or nothing."""
    for moment in range(12):
        with launch(foreground=foreground) as launched:
            # Not an event that is awaited: any moment is as good as any other.
            time.sleep(moment * 0.04)
            launched.signal(signal.SIGINT)
            check_ended(launched, foreground)


def test_before_the_loop_receives_signals(launch: Callable[..., Launched], place: Path) -> None:
    """One that comes before is heeded as any other."""
    with launch(foreground=True, script=STRUCK_AT_ONCE) as launched:
        assert (launched.end(), launched.output) == (ExitCode.INTERRUPTED, "sshmuxfs: interrupted\n")
    assert mounts.mounted_at(place) is None


@pytest.mark.parametrize("function", ["init", "close"])
def test_while_it_is_mounted_or_unmounted(launch: Callable[..., Launched], place: Path, function: str) -> None:
    """What works for it then is not struck; the command heeds it as soon as that has been done."""
    with launch(foreground=True, script=STRUCK_AT_THE_MOUNT.replace("FUNCTION", function)) as launched:
        if function == "close":
            wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
            launched.process.terminate()
        assert launched.end() == ExitCode.OK
    assert "whole\n" in launched.output
    assert f"ending on {'SIGINT' if function == 'init' else 'SIGTERM'}\n" in launched.output
    assert mounts.mounted_at(place) is None


def test_a_second_one_while_the_kernel_hands_over(
    launch: Callable[..., Launched], place: Path, make_slow: Callable[[str], Slow]
) -> None:
    """What asks it to is not for the terminal to interrupt."""
    sync = make_slow("sync")
    with launch(foreground=True, path=sync.programs) as launched:
        wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
        open_for_writing = ["/bin/sh", "-c", 'exec >"$0"; echo here >&2; read _', str(place / "file")]
        with processes.running(open_for_writing, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
            assert writer.stderr is not None and writer.stderr.readline() == b"here\n"
            launched.signal(signal.SIGINT)
            sync.await_begun()
            launched.signal(signal.SIGINT)
            sync.go_on()
            assert launched.end() == ExitCode.OK
    assert sync.went_on
    assert mounts.mounted_at(place) is None


def test_a_second_one_while_the_mount_ends(sshd: Sshd, remote_dir: Path, place: Path) -> None:
    """It ends the wait for those who ride on a connection that was started in front, as it would a moment later."""
    path = sshd.control_dir / "in front"
    with Launched(
        sshd,
        remote_dir,
        place,
        control_path=path,
        foreground=True,
        script=STRUCK_AT_THE_MOUNT.replace("FUNCTION", "close"),
    ) as launched:
        wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
        with processes.running(
            [program("ssh"), "-F", str(sshd.ssh_config), "-S", str(path), HOST, "echo here; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as rider:
            assert rider.stdout is not None and rider.stdout.readline() == b"here\n"
            launched.process.terminate()
            assert launched.process.wait(END_S) == ExitCode.INTERRUPTED
            assert rider.poll() is None
            rider.communicate(timeout=END_S)
        launched.end()
        assert launched.output.count("sshmuxfs: interrupted\n") == 1
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


def test_nobody_reads(sshd: Sshd) -> None:
    """Help and complaints that have no reader any more: no further words, and the exit code is the command's own."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        unheard = subprocess.run(
            [*SSHMUXFS, "--nonsense"], stdout=subprocess.PIPE, stderr=writing, env=sshd.environment(), timeout=END_S
        )
        unread = subprocess.run(
            [*SSHMUXFS, "--help"], stdout=writing, stderr=subprocess.PIPE, env=sshd.environment(), timeout=END_S
        )
    finally:
        os.close(writing)
    assert (unheard.returncode, unheard.stdout) == (ExitCode.USAGE, b"")
    assert (unread.returncode, unread.stderr) == (ExitCode.FAILURE, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(sshd: Sshd, shared_master: Master, remote_dir: Path, place: Path, closed: str) -> None:
    """The command returns, and its daemon holds /dev/null three times, whatever it was started without."""
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh"]
    command += arguments(sshd, remote_dir, place, shared_master.control_path)
    done = subprocess.run(command, env=sshd.environment(), timeout=END_S, capture_output=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert mounts.mounted_at(place) is not None
    (server,) = servers(place)
    assert [os.readlink(f"/proc/{server.pid}/fd/{number}") for number in (0, 1, 2)] == ["/dev/null"] * 3
    (remote_dir / "file").write_bytes(b"there")
    assert outcome(read, place / "file") == b"there"


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
