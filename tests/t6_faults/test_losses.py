"""Channels and connections that are lost: waiters are told at once, the mount stays, and what comes back is used."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mux.errors import ExitCode
from tests.support import mounts
from tests.support.master import Master
from tests.support.mounted import Mount
from tests.support.sshd import Sshd
from tests.support.waiting import wait_until
from tests.t6_faults.faults import (
    AT_DEADLINE,
    CONTENT,
    DISCONNECTED,
    MIB,
    ONE_BY_ONE,
    UNMOUNT_S,
    attempt,
    await_reached,
    ends_by,
    evil_server,
    fill,
    make,
    outcome,
    read,
    server_option,
    serves_others,
    sound,
    together,
    under_way,
)
from tests.t6_faults.launched import Launched
from tests.t6_faults.test_silence import CALLS

# What the log of a mount may say of a loss.
LOSS = "the channel ended|no channel could be opened|a new channel is open"


def loses(calls: dict[str, object]) -> dict[str, object]:
    """The calls that did not end as one does whose server died; a write may be told of it by fsync."""
    return {
        call: found
        for call, found in calls.items()
        if found not in DISCONNECTED
        and not (isinstance(found, list) and found[0] in (4, *DISCONNECTED) and found[1] in DISCONNECTED)
    }


def test_the_server_dies_at_each_request(
    evil: Callable[..., Mount], reopens: Callable[[str], None], shared_master: Master, sshd: Sshd, remote_dir: Path
) -> None:
    """SIGKILL: an error at once; then a new channel on the same connection, without another login."""
    reopens("")
    for call, (kind, _) in CALLS.items():
        if kind:
            make(remote_dir, f"die:{call}", kind)
    mount = evil()
    logins = sshd.log_text().count("Accepted publickey")
    found = {}
    for call, (_, act) in CALLS.items():
        found[call] = outcome(act, mount.path / f"evil:die:{call}")
        serves_others(mount, remote_dir)
    assert loses(found) == {}
    assert sshd.log_text().count("Accepted publickey") == logins
    assert shared_master.running
    sound(mount, remote_dir)


def test_waiters_are_told_when_the_server_dies(
    evil: Callable[..., Mount], reopens: Callable[[str], None], sshd: Sshd, remote_dir: Path
) -> None:
    """Long before their deadline."""
    reopens("")
    (remote_dir / "dir").mkdir()
    name = make(remote_dir, "silence:Lstat")
    mount = evil(ONE_BY_ONE)
    outcome(lambda: [os.stat(mount.path / known) for known in ("dir", "content", "others")])
    calls = [
        lambda: os.stat(mount.path / name),
        lambda: os.listdir(mount.path / "dir"),
        lambda: read(mount.path / "content"),
        lambda: os.mkdir(mount.path / "others" / "made"),
    ]
    with under_way(lambda: together(calls), 15.0) as waiting:
        await_reached(remote_dir)
        os.kill(evil_server(sshd, remote_dir).pid, signal.SIGKILL)
    told = [each for each in waiting.result() if each not in DISCONNECTED]
    # Who came after the death was served by the next.
    assert [each for each in told if each not in (["first", "last"], [], CONTENT, None)] == []
    assert waiting.result()[0] in DISCONNECTED
    sound(mount, remote_dir)


# A program that changes every page of a mapping and tells nobody: neither msync nor munmap.
MAPPER = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(descriptor, 0)
os.close(descriptor)
for at in range(0, len(view), mmap.PAGESIZE):
    view[at] = 1
print("changed", flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def mapping_changed(path: Path) -> Iterator[None]:
    """Somebody has changed a mapping of that file, and goes on."""
    command = [sys.executable, "-c", MAPPER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mapper:
        assert mapper.stdout is not None and mapper.stdin is not None
        assert mapper.stdout.readline() == b"changed\n"
        yield
        mapper.stdin.close()


@pytest.mark.parametrize("size", [mmap.PAGESIZE, 16 * MIB])
def test_what_was_changed_in_a_mapping_is_not_lost_with_the_mount(
    make_mount: Callable[..., Mount], remote_dir: Path, size: int
) -> None:
    """SIGTERM: the kernel has it, and is asked for it while there is still somebody to hand it to."""
    (remote_dir / "file").write_bytes(bytes(size))
    mount = make_mount(remote_dir)
    with mapping_changed(mount.path / "file"):
        mount.send_signal(signal.SIGTERM)
        mount.wait_ended()
        mount.close()
        changed = (remote_dir / "file").read_bytes()[:: mmap.PAGESIZE]
        assert changed == b"\1" * len(changed)


def test_what_was_changed_in_a_mapping_and_is_not_taken_is_named(
    evil: Callable[..., Mount], allow_log: Callable[[str], None], expect_log: Callable[[str], None], remote_dir: Path
) -> None:
    allow_log(f"{LOSS}|no answer for")
    name = make(remote_dir, "silence:Write")
    expect_log(f"{name}: what was written last may be lost")
    mount = evil(AT_DEADLINE)
    with mapping_changed(mount.path / name):
        mount.send_signal(signal.SIGTERM)
        mount.wait_ended(exit_code=ExitCode.LOST_WRITES)
        mount.close()


def test_files_that_were_open(
    make_mount: Callable[..., Mount], reopens: Callable[[str], None], sshd: Sshd, remote_dir: Path
) -> None:
    """EIO for what needs the server; a new open of the same file works at once. Nothing written is lost unsaid."""
    reopens("")
    fill(remote_dir)
    others = {process.pid for process in sshd.sftp_servers()}
    mount = make_mount(remote_dir)
    (server,) = (process.pid for process in sshd.sftp_servers() if process.pid not in others)

    def use() -> dict[str, object]:
        with (mount.path / "content").open("rb", buffering=0) as reading:
            first = reading.read(10)
            writing = os.open(mount.path / "new", os.O_RDWR | os.O_CREAT)
            os.write(writing, b"saved")
            os.fsync(writing)
            entries = os.scandir(mount.path)
            os.kill(server, signal.SIGKILL)
            found = {
                "read": attempt(lambda: os.pread(reading.fileno(), 10, 2_500_000)),
                "write": attempt(lambda: os.write(writing, b"lost")),
                "fsync": attempt(lambda: os.fsync(writing)),
                "write again": attempt(lambda: os.write(writing, b"lost")),
                "close": attempt(lambda: os.close(writing)),
                "fstat": attempt(lambda: os.fstat(reading.fileno()).st_size),
                "list": attempt(lambda: len([*entries])),
            }
            return {**found, "first": first, "anew": attempt(lambda: read(mount.path / "content") == CONTENT)}

    found = outcome(use)
    assert found.pop("first") == CONTENT[:10]
    assert found.pop("anew") is True
    assert found.pop("fstat") == len(CONTENT)
    assert found.pop("list") in (4, *DISCONNECTED)
    assert found.pop("write") in (4, "EIO")
    assert set(found.values()) == {"EIO"}, found
    assert (remote_dir / "new").read_bytes() == b"saved"
    sound(mount, remote_dir)


LOST = {
    "exit": Master.exit,
    "kill": Master.kill,
}


@pytest.mark.parametrize("way", LOST)
def test_the_connection_is_lost_in_the_middle(
    evil: Callable[..., Mount],
    make_master: Callable[..., Master],
    expect_log: Callable[[str], None],
    allow_log: Callable[[str], None],
    sshd: Sshd,
    remote_dir: Path,
    way: str,
) -> None:
    """`-O exit` or SIGKILL with requests outstanding: errors at once, the mount stays, the next master is used."""
    allow_log(LOSS)
    expect_log("the channel ended")
    expect_log("a new channel is open")
    name = make(remote_dir, "silence:Read")
    master = make_master(sshd)
    mount = evil(master=master)
    outcome(lambda: [os.stat(mount.path / known) for known in ("content", "others")])
    with under_way(lambda: read(mount.path / name), 15.0) as waiting:
        await_reached(remote_dir)
        LOST[way](master)
    assert waiting.result() in DISCONNECTED
    for _ in range(3):
        assert outcome(os.stat, mount.path / "unknown") in DISCONNECTED
        assert outcome(lambda: (mount.path / "new").write_bytes(b"not on the local disk")) in DISCONNECTED
    assert mounts.mounted_at(mount.path) is not None and mount.running
    Path(master.control_path).unlink(missing_ok=True)
    with Master(sshd, control_path=master.control_path):
        wait_until(lambda: outcome(read, mount.path / "good") == b"good", "the mount to work again")
        sound(mount, remote_dir)
        mount.unmount()


def test_a_master_that_stops_listening(
    make_mount: Callable[..., Mount], make_master: Callable[..., Master], sshd: Sshd, remote_dir: Path
) -> None:
    """`-O stop`: what is open goes on."""
    fill(remote_dir)
    master = make_master(sshd)
    mount = make_mount(remote_dir, master=master)
    master.stop()
    assert outcome(lambda: read(mount.path / "content") == CONTENT) is True
    assert outcome(lambda: (mount.path / "new").write_bytes(CONTENT)) == len(CONTENT)
    assert (remote_dir / "new").read_bytes() == CONTENT
    sound(mount, remote_dir)


STATES: dict[str, Callable[[Master, int], None]] = {
    "server stopped": lambda master, server: os.kill(server, signal.SIGSTOP),
    "server killed": lambda master, server: os.kill(server, signal.SIGKILL),
    "master stopped": lambda master, server: master.freeze(),
    "master killed": lambda master, server: master.kill(),
    "master exited": lambda master, server: master.exit(),
    "master stops listening": lambda master, server: master.stop(),
}


@pytest.mark.parametrize("way", ["fusermount", "SIGTERM"])
@pytest.mark.parametrize("state", STATES)
def test_unmounting(
    make_mount: Callable[..., Mount],
    make_master: Callable[..., Master],
    allow_log: Callable[[str], None],
    sshd: Sshd,
    remote_dir: Path,
    state: str,
    way: str,
) -> None:
    """Whatever became of the server: at once, with 0, and nothing is left. By signal also while a caller waits."""
    allow_log(LOSS)
    fill(remote_dir)
    others = {process.pid for process in sshd.sftp_servers()}
    master = make_master(sshd)
    mount = make_mount(remote_dir, master=master)
    (server,) = (process.pid for process in sshd.sftp_servers() if process.pid not in others)
    assert outcome(read, mount.path / "good") == b"good"
    STATES[state](master, server)
    try:
        if way == "fusermount":
            ends_by(mount, way)
        else:
            with under_way(lambda: os.stat(mount.path / "unknown"), UNMOUNT_S + 10.0) as waiting:
                ends_by(mount, way)
            assert waiting.result() in ("ENOENT", "ECONNABORTED", *DISCONNECTED)
    finally:
        if state == "server stopped":
            os.kill(server, signal.SIGCONT)


def test_unmounting_with_something_unsaved(evil: Callable[..., Mount], allow_log: Callable[[str], None]) -> None:
    """The server does not take it: waited for until the deadline, not for ever; and the caller is told, or the log."""
    line = "evil:silence:Write: what was written last may be lost"
    allow_log(f"{LOSS}|no answer for|{line}")
    mount = evil(AT_DEADLINE)

    def write() -> object:
        descriptor = os.open(mount.path / "evil:silence:Write", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"unsaved")
        mount.send_signal(signal.SIGTERM)
        return attempt(lambda: os.fsync(descriptor))

    told = outcome(write)
    assert told in ("EIO", "ECONNABORTED", *DISCONNECTED)
    mount.wait_ended(exit_code=None)
    mount.close()
    assert told == "EIO" or line in mount.log_text()
    assert mount.exit_code == (ExitCode.LOST_WRITES if line in mount.log_text() else ExitCode.OK)


def test_what_is_lost_is_said_in_the_foreground(
    sshd: Sshd, remote_dir: Path, shared_master: Master, tmp_path: Path
) -> None:
    """By name, on the terminal, when the log goes elsewhere; and by the exit code."""
    fill(remote_dir)
    name = make(remote_dir, "silence:Write")
    place, log = tmp_path / "mnt", tmp_path / "log"
    place.mkdir()
    options = [server_option("plain", remote_dir), AT_DEADLINE, f"log_file={log}"]
    with Launched(
        sshd, remote_dir, place, control_path=shared_master.control_path, options=options, foreground=True
    ) as launched:
        wait_until(lambda: mounts.mounted_at(place) is not None, "the mount")
        with mapping_changed(place / name):
            launched.signal(signal.SIGTERM)
            assert launched.end() == ExitCode.LOST_WRITES
    line = f"{remote_dir}/{name}: what was written last may be lost: "
    assert f"sshmuxfs: {line}" in launched.output
    assert launched.output.endswith("sshmuxfs: unmounted; what was written last to one file may be lost\n")
    assert line in log.read_text()
