"""The two file systems that are compared, and one mount of either: brought up, looked at, taken down.

The rule: both are started as a user starts them, daemonising, and both are measured by the same code. A contender that
rides on a connection (a real `ssh -M` or our own upstream) and cannot fails; it never makes another by itself.
(`tests.support.mounted` is for tests: it waits by polling, which a time must not hold.)
"""

from __future__ import annotations

import enum
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import mounts, processes
from tests.support.sshd import HOST, program
from tests.support.waiting import holds_within

MOUNT_DEADLINE_S = 30.0
UNMOUNT_DEADLINE_S = 60.0
END_DEADLINE_S = 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ContenderError(Exception):
    """A mount could not be made or ended; the text holds what the program said."""


class Rides(enum.Enum):
    """What a mount's bytes travel on."""

    MASTER = enum.auto()  # a real `ssh -M`, of the same configuration for both
    OUR_UPSTREAM = enum.auto()
    OWN_CONNECTION = enum.auto()


@dataclass(frozen=True, slots=True)
class Contender:
    """`name` is what reports call it, `program` what it is: "sshfs" or "sshmuxfs", `rides` on what."""

    name: str
    program: str
    rides: Rides = Rides.MASTER

    def command(self, config: Path, control_path: str, served: Path, mount_point: Path) -> list[str]:
        """The command that mounts `served`, through the connection at `control_path` to the host of `config`."""
        source = f"{HOST}:{served}"
        if self.program == "sshfs":
            # Were the master not joined, ssh would connect by itself; with such a proxy command that fails.
            riding = ["-o", f"ControlPath={control_path}", "-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
            if self.rides is Rides.OWN_CONNECTION:
                riding = ["-o", "ControlPath=none"]
            return [program("sshfs"), "-F", str(config), *riding, source, str(mount_point)]
        joining = ["-S", control_path, "-o", "upstream=no"]
        return [sys.executable, "-m", "sshmuxfs", "-F", str(config), *joining, source, str(mount_point)]


SSHFS = Contender("sshfs", "sshfs")
OURS = Contender("sshmuxfs", "sshmuxfs")
# Each as its users have it when nothing is open yet: sshfs with a connection and a cipher of ssh's choice, ours with an
# upstream of its own.
SSHFS_ALONE = Contender("sshfs", "sshfs", Rides.OWN_CONNECTION)
OURS_UPSTREAM = Contender("sshmuxfs", "sshmuxfs", Rides.OUR_UPSTREAM)
# For `--self`: what the machine's noise alone makes of a ratio.
SSHFS_AGAIN = Contender("sshfs again", "sshfs")


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds of the serving process, with its living children, and of the machine; peak resident bytes."""

    cpu_s: float
    machine_cpu_s: float
    peak_rss_bytes: int


class Mounted:
    """One mount that works once constructed; a context manager.

    start_s     from starting the command to its exit
    unmount_s   of the unmounting, once ended: what a contender put off until then shows here
    """

    def __init__(self, command: Sequence[str], mount_point: Path, environment: Mapping[str, str]) -> None:
        self.mount_point = mount_point
        self.unmount_s = 0.0
        self._process: processes.Process | None = None
        began = time.perf_counter()
        # Not captured through a pipe: a daemon that kept one open would look like a command that does not return.
        said_path = mount_point.with_name(mount_point.name + ".said")
        with said_path.open("wb") as said:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
        self._said = said_path
        ended = False
        try:
            ended = wait(child, MOUNT_DEADLINE_S)
            self.start_s = time.perf_counter() - began
            if not ended:
                raise ContenderError(f"no mount within {MOUNT_DEADLINE_S:g} s; it said: {self.said()}")
            if child.returncode != 0:
                raise ContenderError(f"ended with {child.returncode}; it said: {self.said()}")
            if mounts.mounted_at(mount_point) is None:
                raise ContenderError(f"ended with 0, and nothing is mounted; it said: {self.said()}")
            self._process = serving_process(mount_point)
        except BaseException:
            if not ended:
                child.kill()
                wait(child, END_DEADLINE_S)
            self.unmount()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()

    def said(self) -> str:
        """What the command wrote, for a message."""
        return repr(self._said.read_text(errors="replace").strip()[-1000:])

    def usage(self) -> Usage:
        """As of now. Raises ContenderError when the serving process is gone."""
        if self._process is None:
            raise ContenderError("not mounted")
        pid = self._process.pid
        times = [cpu_s(each) for each in (pid, *(child.pid for child in processes.descendants(pid)))]
        peak = peak_rss_bytes(pid)
        if times[0] is None or peak is None:
            raise ContenderError(f"process {pid} serves the mount no more")
        return Usage(sum(filter(None, times)), machine_cpu_s(), peak)

    def unmount(self) -> None:
        """Unmount and wait for the serving process's end. Idempotent. Raises ContenderError when that took force."""
        began = time.perf_counter()
        forced = ""
        said = ""

        def unmounted() -> bool:
            nonlocal said
            said = "" if mounts.mounted_at(self.mount_point) is None else fusermount("-u", self.mount_point)
            return said == ""

        if not holds_within(UNMOUNT_DEADLINE_S, unmounted):
            forced = said
        doomed = [self._process] if self._process is not None else []
        if forced:
            processes.end(doomed)
            fusermount("-uz", self.mount_point)
        stuck = processes.wait_ended(doomed, END_DEADLINE_S) and processes.end(doomed)
        for process in doomed:
            processes.reap(process.pid)
        self._process = None
        self.unmount_s = time.perf_counter() - began
        if forced or stuck:
            raise ContenderError(f"{self.mount_point} had to be unmounted by force: {forced or stuck}")


def wait(child: subprocess.Popen[bytes], deadline_s: float) -> bool:
    """Wait for a child's end, without the growing sleeps of Popen.wait. False at the deadline."""
    descriptor = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(deadline_s * 1000):
            return False
    finally:
        os.close(descriptor)
    child.wait()
    return True


def fusermount(option: str, mount_point: Path) -> str:
    """Run fusermount3; "" or what it complained of."""
    try:
        done = mounts.fusermount(option, str(mount_point))
    except subprocess.TimeoutExpired as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"fusermount3 ended with {done.returncode}"


def serving_process(mount_point: Path) -> processes.Process:
    """The process below us that was started for `mount_point` and holds the FUSE device. Raises ContenderError."""
    for process in processes.descendants(os.getpid()):
        if str(mount_point) in process.command.split(" ") and holds_fuse_device(process.pid):
            return process
    raise ContenderError(f"no process serves {mount_point}")


def holds_fuse_device(pid: int) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{directory}/{name}") == "/dev/fuse" for name in os.listdir(directory))
    except OSError:
        return False


def cpu_s(pid: int) -> float | None:
    """Processor seconds of a process with all its threads, to the nanosecond; None when there is no such process."""
    try:
        # The number that clock_getcpuclockid(3) makes; 2 is CPUCLOCK_SCHED (linux/posix-timers_types.h).
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def peak_rss_bytes(pid: int) -> int | None:
    """VmHWM of proc_pid_status(5); None when there is no such process, or only a zombie."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def machine_cpu_s() -> float:
    """Seconds that all processors together have not been idle since boot (proc_stat(5): all but idle and iowait)."""
    with open("/proc/stat", encoding="ascii") as lines:
        fields = [int(field) for field in lines.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S
