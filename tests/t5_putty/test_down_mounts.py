"""A mount through a real `plink -share`, to a real server. A number in a name is that of the check in the list of what
a downstream of PuTTY has to stand; what goes over the wire is looked at by a man in the middle."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from mux.errors import ExitCode
from mux.protocol.connection import Message
from tests.support import bounded, mounts, processes
from tests.support.mounted import SSHMUXFS, PuttyMount
from tests.support.putty import ADDRESS, PuttyUpstream
from tests.support.putty_tap import Conversation, Tap
from tests.support.sshd import Sshd, sftp_server
from tests.support.waiting import wait_until
from tests.t5_putty.tapped import TappedMount, tapped
from tests.t6_faults.faults import DISCONNECTED, MIB, attempt, await_path, outcome, together, under_way

BULK_BYTES = 100 * MIB
LOST_CHANNELS = 30
WITHIN_S = 60.0
ENDLESS_BYTES = 1 << 40  # of holes: nobody reads as far

MakeUpstream = Callable[..., PuttyUpstream]
MakeMount = Callable[..., PuttyMount]


@pytest.fixture(scope="module")
def plink(server: Sshd) -> Iterator[PuttyUpstream]:
    """The module's upstream of PuTTY's, by a name that leaves that of a tap free; do not stop or kill it."""
    with PuttyUpstream(server, host="localhost") as upstream:
        yield upstream


@pytest.fixture
def tap(stack: ExitStack, plink: PuttyUpstream) -> Tap:
    """What a `TappedMount` goes through."""
    return stack.enter_context(tapped(plink))


@pytest.fixture
def make_upstream(stack: ExitStack) -> MakeUpstream:
    """`make_upstream(sshd, ...)`: one of this test's own, with `PuttyUpstream`'s arguments."""
    return lambda *positional, **arguments: stack.enter_context(PuttyUpstream(*positional, **arguments))


@pytest.fixture
def make(stack: ExitStack) -> MakeMount:
    """`make(upstream, directory, kind=..., ...)`: unmounted with the test."""

    def mount(
        upstream: PuttyUpstream, directory: Path, *, kind: type[PuttyMount] = PuttyMount, **arguments: object
    ) -> PuttyMount:
        made = kind(upstream, directory, **arguments)  # type: ignore[arg-type]
        stack.callback(lambda: print(f"log of {made}:\n{made.log_text()}"))
        return stack.enter_context(made)

    return mount


def digest_of(path: Path) -> str:
    """The checksum of a file, read from the kernel piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_without_end(path: Path, begun: Path, stop: Path = Path("/nonexistent")) -> None:
    """Read from the beginning, say by `begun` that there was something, and read on until told to stop."""
    with path.open("rb", buffering=0) as file:
        while file.read(MIB) and not stop.exists():
            begun.touch()


def endless(directory: Path) -> None:
    """Make a file that takes for ever to read."""
    (directory / "endless").touch()
    os.truncate(directory / "endless", ENDLESS_BYTES)


def sessions(tap: Tap) -> list[Conversation]:
    """Who said more than nothing (a look does not, nor what is kept for later), once all have ended: a mount's last
    words are read before that."""
    wait_until(lambda: all(one.ended for one in tap.conversations), "the end of what there was to say")
    return [one for one in tap.conversations if one.up.packets]


def closes(said: Sequence[Conversation]) -> list[int]:
    """How often each closed its channel."""
    return [one.sent()[Message.CHANNEL_CLOSE] for one in said]


# -- bytes ------------------------------------------------------------------------------------------------------------


def write_blocks(path: Path, block: bytes, count: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            assert file.write(block) == len(block)
        os.fsync(file.fileno())


def test_d3_a_hundred_megabytes_each_way(make: MakeMount, plink: PuttyUpstream, directory: Path) -> None:
    """And a long listing: what arrives is what was sent."""
    block = os.urandom(MIB)
    count = BULK_BYTES // MIB
    expected = hashlib.sha256(block * count).hexdigest()
    names = sorted(f"{number}.{'x' * (number % 200)}" for number in range(1000))
    (directory / "many").mkdir()
    for name in names:
        (directory / "many" / name).touch()
    mount = make(plink, directory)
    bounded.in_subprocess(lambda: write_blocks(mount.path / "file", block, count), WITHIN_S)
    assert digest_of(directory / "file") == expected
    (directory / "file").rename(directory / "copy")  # which the kernel knows nothing of
    assert bounded.in_subprocess(lambda: digest_of(mount.path / "copy"), WITHIN_S) == expected
    assert bounded.in_subprocess(lambda: sorted(os.listdir(mount.path / "many"))) == names


def test_d4_d11_bulk_both_ways_and_nothing_wrong_on_the_wire(
    make: MakeMount, plink: PuttyUpstream, tap: Tap, directory: Path
) -> None:
    block = os.urandom(MIB)
    mount = make(plink, directory, kind=TappedMount)
    bounded.in_subprocess(lambda: write_blocks(mount.path / "file", block, 20), WITHIN_S)
    (directory / "file").rename(directory / "copy")
    assert bounded.in_subprocess(lambda: digest_of(mount.path / "copy")) == digest_of(directory / "copy")
    mount.unmount()
    (session,) = sessions(tap)
    tap.check()
    assert session.sent()[Message.CHANNEL_DATA] >= 20 * MIB // 16384
    assert session.down_data_bytes > 20 * MIB
    assert session.up.packets[-1][0] == Message.CHANNEL_CLOSE


def test_d4_d10_d11_random_operations_and_nothing_wrong_on_the_wire(
    make: MakeMount, plink: PuttyUpstream, tap: Tap, directory: Path
) -> None:
    mount = make(plink, directory, kind=TappedMount)
    command = [sys.executable, "-m", "tests.support.checker", str(mount.path), "--server", str(directory)]
    done = bounded.in_subprocess([*command, "--ops", "1000", "--seed", "11"], WITHIN_S)
    assert done.returncode == 0, done.stderr
    mount.unmount()
    assert closes(sessions(tap)) == [1]
    tap.check()


def test_d10_channels_that_end_while_data_goes_both_ways(
    make: MakeMount,
    expect_log: Callable[[str], None],
    server: Sshd,
    plink: PuttyUpstream,
    tap: Tap,
    directory: Path,
    tmp_path: Path,
) -> None:
    """The server closes, again and again: behind our CLOSE nothing goes, the next channel is opened at once, and nobody
    else on the connection is harmed."""
    expect_log("the channel ended")
    expect_log("a new channel is open")
    endless(directory)
    stop = tmp_path / "stop"
    mount = make(plink, directory, kind=TappedMount)

    def read() -> None:
        while not stop.exists():
            attempt(read_without_end, mount.path / "endless", tmp_path / "begun", stop)

    def write() -> None:
        while not stop.exists():
            attempt(write_blocks, mount.path / "written", bytes(MIB), 8)

    def passed() -> tuple[int, int]:
        talks = [*tap.conversations]
        return sum(len(one.up.packets) for one in talks), sum(one.down_data_bytes for one in talks)

    def flows(up: int, down: int) -> bool:
        now = passed()
        return now[0] > up + 100 and now[1] > down + MIB

    with under_way(lambda: together([read, write]), 2 * WITHIN_S) as busy:
        try:
            for _ in range(LOST_CHANNELS):
                wait_until(lambda: len(server.sftp_servers()) == 1, "a channel")
                wait_until(partial(flows, *passed()), "data to go both ways")
                (process,) = server.sftp_servers()
                processes.send_signal(process, signal.SIGKILL)
                assert not processes.wait_ended([process], WITHIN_S)
        finally:
            stop.touch()
    assert busy.result() == [None, None]
    assert outcome(lambda: (mount.path / "after").write_bytes(b"all this")) == 8
    assert (directory / "after").read_bytes() == b"all this"
    mount.unmount()
    counts = closes(sessions(tap))
    tap.check()
    assert len(counts) == LOST_CHANNELS + 1
    # What the server closed while a packet was half sent cannot be closed by us behind that; the last channel can.
    assert (max(counts), counts[-1]) == (1, 1)
    assert plink.plink("echo", "alive").stdout == "alive\n"


# -- beginnings -------------------------------------------------------------------------------------------------------


def command_of(upstream: PuttyUpstream, place: Path, *options: str) -> list[str]:
    """`sshmuxfs`, which can only join that upstream, through a tap."""
    where = ["-F", "none", "-p", str(upstream.port), "-l", upstream.sshd.user, "-o", "putty=only"]
    return [*SSHMUXFS, *where, *options, f"{ADDRESS}:{upstream.sshd.root}", str(place)]


def not_logged_in_yet(sshd: Sshd, make_upstream: MakeUpstream) -> tuple[PuttyUpstream, Callable[[], object]]:
    """A plink whose server does not answer, and what lets it."""
    listener = processes.known(sshd.pid)
    processes.send_signal(listener, signal.SIGSTOP)
    upstream = make_upstream(sshd, host="localhost", wait=False)
    upstream.wait_said("Sharing this connection at")  # it listens before it has logged in
    return upstream, lambda: processes.send_signal(listener, signal.SIGCONT)


def await_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def started(sshd: Sshd, command: list[str], place: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, running; what it mounted is unmounted at the end."""
    place.mkdir()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=sshd.environment(),
    )
    try:
        yield process
    finally:
        if mounts.mounted_at(place) is not None:
            mounts.fusermount("-u", str(place))
        elif process.poll() is None:
            process.kill()
        process.communicate(timeout=WITHIN_S)


# The tap is in this process, so this is who is waited for.
WAITING = f"sshmuxfs: waiting for the PuTTY upstream to log in (process {os.getpid()})\n"


def test_d6_an_upstream_that_logs_in_late(
    make_sshd: Callable[..., Sshd], make_upstream: MakeUpstream, tmp_path: Path
) -> None:
    """It is waited for, aloud, and sent nothing that would end it; who waits in vain is told, and the next is served
    when it has logged in."""
    sshd = make_sshd()
    (sshd.root / "file").write_text("there")
    upstream, go_on = not_logged_in_yet(sshd, make_upstream)
    vain, place = tmp_path / "vain", tmp_path / "place"
    with tapped(upstream) as tap:
        with started(sshd, command_of(upstream, vain, "-f"), vain) as in_vain:
            assert await_line(in_vain) == WAITING
            said, _ = in_vain.communicate(timeout=WITHIN_S)
            assert in_vain.returncode == ExitCode.NO_ANSWER
            assert f"(process {os.getpid()}) has not logged in yet, or is stopped" in said
        with started(sshd, command_of(upstream, place, "-f"), place) as patient:
            assert await_line(patient) == WAITING
            go_on()
            wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
            assert outcome((place / "file").read_text) == "there"
        assert patient.returncode == 0
        tap.check()


def test_d6_an_upstream_that_fails_to_log_in(
    make_sshd: Callable[..., Sshd], make_upstream: MakeUpstream, tmp_path: Path
) -> None:
    sshd = make_sshd()
    (sshd.directory / "authorized_keys").write_text("")
    upstream, go_on = not_logged_in_yet(sshd, make_upstream)
    place = tmp_path / "place"
    with tapped(upstream) as tap:
        with started(sshd, command_of(upstream, place), place) as command:
            assert await_line(command) == WAITING
            go_on()
            said, _ = command.communicate(timeout=WITHIN_S)
        tap.check()
    assert command.returncode == ExitCode.NOTHING_TO_JOIN
    assert "hung up: it did not log in" in said


# -- ends -------------------------------------------------------------------------------------------------------------


def test_d7_an_upstream_that_is_killed_in_mid_read(
    make_sshd: Callable[..., Sshd],
    make_upstream: MakeUpstream,
    make: MakeMount,
    expect_log: Callable[[str], None],
    allow_log: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """An error at once, for all that comes before there is another; the mount stays, and uses the next."""
    expect_log("the channel ended: .*the PuTTY upstream is lost")
    expect_log("a new channel is open")
    allow_log("no channel could be opened")
    sshd = make_sshd()
    (sshd.root / "file").write_text("there")
    endless(sshd.root)
    upstream = make_upstream(sshd)
    mount = make(upstream, sshd.root)
    with under_way(lambda: read_without_end(mount.path / "endless", tmp_path / "begun"), WITHIN_S / 2) as reading:
        await_path(tmp_path / "begun")
        upstream.kill()
    assert reading.result() in DISCONNECTED
    for _ in range(3):
        assert outcome(os.stat, mount.path / "unknown") in DISCONNECTED
    assert mounts.mounted_at(mount.path) is not None and mount.running
    with PuttyUpstream(sshd):  # it takes over the socket that was left
        wait_until(lambda: outcome((mount.path / "file").read_text) == "there", "the mount to work again")
        mount.unmount()


def test_d7_unmounting_without_an_upstream(
    make_sshd: Callable[..., Sshd], make_upstream: MakeUpstream, make: MakeMount, allow_log: Callable[[str], None]
) -> None:
    allow_log("the channel ended")
    sshd = make_sshd()
    upstream = make_upstream(sshd)
    mount = make(upstream, sshd.root)
    upstream.kill()
    mount.unmount()


def test_d8_an_upstream_whose_own_session_ends_stays_for_the_mount(
    make_sshd: Callable[..., Sshd], make_upstream: MakeUpstream, make: MakeMount, tmp_path: Path
) -> None:
    """And no longer; then it ends with the status of its own command, and its files are gone."""
    sshd = make_sshd()
    flag = tmp_path / "go"
    upstream = make_upstream(sshd, command=[f"while [ ! -e {flag} ]; do sleep 0.05; done; exit 5"])
    mount = make(upstream, sshd.root)
    flag.touch()
    upstream.wait_said("Main session channel closed")
    assert outcome(lambda: (mount.path / "file").write_bytes(bytes(MIB))) == MIB
    assert (sshd.root / "file").read_bytes() == bytes(MIB)
    assert upstream.running
    mount.unmount()
    assert upstream.wait_ended() == 5
    assert not os.path.exists(upstream.directory)


def test_d9_when_the_mount_is_killed_the_upstream_lives(
    make_sshd: Callable[..., Sshd], make_upstream: MakeUpstream, make: MakeMount, tmp_path: Path
) -> None:
    """In the middle of a read: who reads gets an error, the sftp-server ends, and another mount is not disturbed."""
    sshd = make_sshd()
    endless(sshd.root)
    upstream = make_upstream(sshd)
    other = make(upstream, sshd.root)
    (others,) = sshd.sftp_servers()
    mount = make(upstream, sshd.root)
    (server,) = (process for process in sshd.sftp_servers() if process != others)
    with under_way(lambda: read_without_end(mount.path / "endless", tmp_path / "begun"), WITHIN_S / 2) as reading:
        await_path(tmp_path / "begun")
        mount.kill()
    assert reading.result() in (*DISCONNECTED, "ECONNABORTED")
    for number in re.findall(rf"downstream #(\d+): connected from pid {mount.pid} ", upstream.log_text()):
        upstream.wait_said(f"downstream #{number}: disconnected")
    assert not processes.wait_ended([server], WITHIN_S)
    assert outcome(lambda: (other.path / "file").write_bytes(b"still here")) == 10
    assert (sshd.root / "file").read_bytes() == b"still here"
    assert upstream.running and upstream.plink("echo", "alive").stdout == "alive\n"
    mount.close()


# -- company ----------------------------------------------------------------------------------------------------------


def test_d22_more_channels_while_the_mount_reads(
    make: MakeMount, server: Sshd, plink: PuttyUpstream, directory: Path, tmp_path: Path
) -> None:
    """Commands, and an sftp-server that is started as one, beside the SFTP of a mount that is busy."""
    endless(directory)
    content = os.urandom(MIB)
    (directory / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    logins = server.log_text().count("Accepted publickey")
    stop = tmp_path / "stop"
    mount = make(plink, directory)
    with under_way(lambda: read_without_end(mount.path / "endless", tmp_path / "begun", stop), WITHIN_S) as reading:
        await_path(tmp_path / "begun")
        try:
            for _ in range(3):
                with PuttyMount(plink, directory, options=[f"sftp_server={sftp_server()}"]) as other:
                    assert bounded.in_subprocess((other.path / "file").read_bytes) == content
                    assert plink.plink(f"sha256sum <{directory}/file").stdout.split()[0] == expected
            assert not reading.done()
        finally:
            stop.touch()
    assert reading.result() is None
    assert server.log_text().count("Accepted publickey") == logins
