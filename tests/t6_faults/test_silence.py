"""Silence: whoever waits is told EIO when the deadline is over; others go on; what answers again is used again."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until
from tests.t6_faults.faults import (
    AT_DEADLINE,
    CONTENT,
    DEADLINE_S,
    DISCONNECTED,
    ONE_BY_ONE,
    WITHIN_DEADLINE_S,
    attempt,
    await_reached,
    evil_server,
    evil_servers,
    fill,
    make,
    names,
    outcome,
    read,
    serves_others,
    sound,
    together,
    under_way,
)

GAVE_UP = f"no answer for {DEADLINE_S:g} s"


def write(path: Path) -> list[object]:
    """The outcomes of writing a new file, of fsync and of close."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    return [attempt(lambda: os.write(descriptor, b"data")), attempt(lambda: os.fsync(descriptor)), close(descriptor)]


def close(descriptor: int) -> object:
    return attempt(lambda: os.close(descriptor))


CALLS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "Lstat": ("file", os.stat),
    "Open": ("file", read),
    "Read": ("file", read),
    "Opendir": ("directory", names),
    "Readdir": ("directory", names),
    "Readlink": ("link", os.readlink),
    "Remove": ("file", os.unlink),
    "Rmdir": ("directory", os.rmdir),
    "Mkdir": ("", os.mkdir),
    "PosixRename": ("file", lambda path: path.rename(path.with_name("good-name"))),
    "Setstat": ("file", lambda path: path.chmod(0o600)),
    "Write": ("", write),
    "Fsync": ("", write),
}
# A write is accepted before it is acknowledged, and so is a close that has nothing to wait for.
WRITTEN = {"Write": [4, "EIO", "EIO"], "Fsync": [4, "EIO", None]}


def test_one_request_of_many_is_never_answered(
    evil: Callable[..., Mount], expect_log: Callable[[str], None], remote_dir: Path
) -> None:
    """It fails alone, at its deadline, while the server keeps answering everybody else."""
    expect_log(GAVE_UP)
    for call, (kind, _) in CALLS.items():
        # Each in a directory of its own, for the kernel does one change of a directory at a time.
        (remote_dir / call).mkdir()
        if kind:
            make(remote_dir, f"never:{call}", kind, below=call)
    mount = evil(AT_DEADLINE)
    calls = [
        lambda act=act, call=call: act(mount.path / call / f"evil:never:{call}") for call, (_, act) in CALLS.items()
    ]
    outcome(lambda: [os.stat(mount.path / call) for call in CALLS])
    with under_way(lambda: together(calls), 2 * WITHIN_DEADLINE_S) as waiting:
        while not waiting.done():
            serves_others(mount, remote_dir)
    found = dict(zip(CALLS, waiting.result(), strict=True))
    assert found == dict.fromkeys(CALLS, "EIO") | WRITTEN
    sound(mount, remote_dir)


def test_a_server_that_falls_silent(
    evil: Callable[..., Mount],
    reopens: Callable[[str], None],
    expect_log: Callable[[str], None],
    sshd: Sshd,
    remote_dir: Path,
) -> None:
    """Every waiter is told at the deadline, those who come later too; when the server is gone, a new one is asked."""
    reopens("")
    expect_log(GAVE_UP)
    name = make(remote_dir, "silence:Lstat")
    (remote_dir / "dir").mkdir()
    mount = evil(AT_DEADLINE, ONE_BY_ONE)
    calls = [
        lambda: os.stat(mount.path / "unknown"),
        lambda: names(mount.path / "dir"),
        lambda: read(mount.path / "content"),
        lambda: os.mkdir(mount.path / "others" / "new"),
    ]
    outcome(lambda: [os.stat(mount.path / known) for known in ("dir", "content", "others")])
    with under_way(lambda: os.stat(mount.path / name), WITHIN_DEADLINE_S) as first:
        await_reached(remote_dir)
        assert outcome(together, calls, within_s=WITHIN_DEADLINE_S) == ["EIO"] * 4
    assert first.result() == "EIO"
    assert outcome(os.stat, mount.path / "good", within_s=WITHIN_DEADLINE_S) == "EIO"
    os.kill(evil_server(sshd, remote_dir).pid, signal.SIGKILL)
    wait_until(lambda: "the channel ended" in mount.log_text(), "the mount to notice")
    sound(mount, remote_dir)


@pytest.mark.parametrize("who", ["server", "master"])
def test_stopped_and_continued(
    make_mount: Callable[..., Mount],
    expect_log: Callable[[str], None],
    master: Master,
    sshd: Sshd,
    remote_dir: Path,
    who: str,
) -> None:
    """SIGSTOP in the middle of it: EIO at the deadline; after SIGCONT all works, and late replies harm nobody."""
    expect_log(GAVE_UP)
    fill(remote_dir)
    others = {process.pid for process in sshd.sftp_servers()}
    mount = make_mount(remote_dir, master=master, options=[AT_DEADLINE, "dcache_timeout=0"])
    (server,) = (process.pid for process in sshd.sftp_servers() if process.pid not in others)
    stopped = server if who == "server" else master.pid

    def use() -> list[object]:
        with (mount.path / "content").open("rb", buffering=0) as reading, (mount.path / "new").open("wb") as writing:
            reading.read(10)
            os.write(writing.fileno(), CONTENT)
            os.fsync(writing.fileno())
            os.kill(stopped, signal.SIGSTOP)
            during = together(
                [
                    lambda: os.pread(reading.fileno(), 100_000, 2_500_000),
                    lambda: os.stat(mount.path / "others"),
                    lambda: names(mount.path),
                    lambda: [os.write(writing.fileno(), CONTENT) for _ in range(8)],
                ]
            )
            during.append(attempt(lambda: os.fsync(writing.fileno())))
            os.kill(stopped, signal.SIGCONT)
            again = attempt(lambda: os.pread(reading.fileno(), 100_000, 2_500_000) == CONTENT[2_500_000:2_600_000])
            return [*during, again, attempt(writing.close)]

    try:
        found = outcome(use, within_s=3 * WITHIN_DEADLINE_S)
    finally:
        os.kill(stopped, signal.SIGCONT)
    reads, stat, listing, writes, sync, again, closing = found
    assert (reads, stat, listing, sync) == ("EIO",) * 4
    assert writes == "EIO"  # more than there is room for to wait
    assert again is True
    assert closing == "EIO"  # of what was written then nobody knows
    sound(mount, remote_dir)
    assert outcome(len, names(mount.path)) == len(os.listdir(remote_dir))


def test_a_stopped_master_and_no_channel(
    evil: Callable[..., Mount],
    make_master: Callable[..., Master],
    expect_log: Callable[[str], None],
    allow_log: Callable[[str], None],
    sshd: Sshd,
    remote_dir: Path,
) -> None:
    """The channel is gone and another cannot be had: that waits no longer than anything else."""
    expect_log("the channel ended")
    allow_log(f"no channel could be opened|{GAVE_UP}")
    expect_log("a new channel is open")
    master = make_master(sshd)
    mount = evil(AT_DEADLINE, master=master)
    os.kill(evil_server(sshd, remote_dir).pid, signal.SIGKILL)
    wait_until(lambda: "the channel ended" in mount.log_text(), "the mount to notice")
    master.freeze()
    for _ in range(3):
        assert outcome(os.stat, mount.path / "good", within_s=WITHIN_DEADLINE_S) in DISCONNECTED
    master.thaw()
    wait_until(lambda: outcome(read, mount.path / "good") == b"good", "the mount to work again")
    sound(mount, remote_dir)


def test_new_channels_that_stay_silent(
    evil: Callable[..., Mount],
    expect_log: Callable[[str], None],
    allow_log: Callable[[str], None],
    sshd: Sshd,
    remote_dir: Path,
) -> None:
    """They are given up, and given back: a server that does not answer is not left with one more each time."""
    expect_log("the channel ended")
    expect_log("a new channel is open")
    allow_log(f"no channel could be opened|{GAVE_UP}")
    mount = evil(AT_DEADLINE, conversation="mute")
    (remote_dir / "mute").touch()
    os.kill(evil_server(sshd, remote_dir).pid, signal.SIGKILL)
    wait_until(lambda: "the channel ended" in mount.log_text(), "the mount to notice")
    for _ in range(3):
        assert outcome(os.stat, mount.path / "good", within_s=WITHIN_DEADLINE_S) in DISCONNECTED
    wait_until(lambda: len(evil_servers(sshd, remote_dir)) <= 1, "channels to be given back")
    (remote_dir / "mute").unlink()
    wait_until(lambda: outcome(read, mount.path / "good") == b"good", "the mount to work again")
    sound(mount, remote_dir)


def unread_bytes(server: int) -> int:
    """What lies in the pipe that a process of the server reads its requests from."""
    count = array("i", [0])
    with open(f"/proc/{server}/fd/0", "rb", buffering=0) as requests:
        fcntl.ioctl(requests, termios.FIONREAD, count)
    return count[0]


def test_suspended_on_both_sides(
    make_mount: Callable[..., Mount], make_master: Callable[..., Master], sshd: Sshd, remote_dir: Path
) -> None:
    """The mount, the master and the server stand still for longer than the deadline: nobody's silence, and no error."""
    fill(remote_dir)
    master = make_master(sshd)
    others = {process.pid for process in sshd.sftp_servers()}
    mount = make_mount(remote_dir, master=master, options=[AT_DEADLINE, "dcache_timeout=0"])
    (server,) = (process.pid for process in sshd.sftp_servers() if process.pid not in others)
    still = (server, master.pid, mount.pid)
    (remote_dir / "late").write_bytes(b"late")
    os.kill(server, signal.SIGSTOP)
    try:
        with under_way(lambda: (mount.path / "late").read_bytes(), 2 * WITHIN_DEADLINE_S) as reading:
            wait_until(lambda: unread_bytes(server), "the request to reach the server")
            for pid in still:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(1.5 * DEADLINE_S)  # this is what is tested
            for pid in still:
                os.kill(pid, signal.SIGCONT)
            assert reading.result() == b"late"
    finally:
        for pid in still:
            os.kill(pid, signal.SIGCONT)
    sound(mount, remote_dir)
