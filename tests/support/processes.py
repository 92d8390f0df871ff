"""Processes by /proc: who descends from whom, waiting for an end, ending what we started.

The rule: a process is ended only when it was started by us or by something we started, and it is named by pid *and*
start time, so that a pid used again is never hit. `adopt_orphans` makes this process the parent of every orphan below
it (a daemon, a session of an sshd that died), which makes "descends from us" complete, and gives daemons' exit statuses
to whoever waits.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


# What the kernel may take, on a busy machine, to put an end to a process that has got SIGKILL.
KILLED_S = 30.0

CHECKOUT = Path(__file__).resolve().parents[2]

# What we make outside pytest's own directory is /tmp/smxPID-...: short, and told apart from another run's on the
# machine.
TEMP_PREFIX = f"smx{os.getpid()}-"
TEMP_PARENT = Path("/tmp")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat (proc(5)), and the command line. Two looks at one process are equal, whatever it has
    become in between."""

    pid: int
    parent: int = field(compare=False)
    state: str = field(compare=False)
    start_ticks: int
    command: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.pid} ({self.state}, child of {self.parent}): {self.command}"

    @property
    def running(self) -> bool:
        return self.state not in "ZX"


def look(pid: int) -> Process | None:
    """What is known of `pid` now; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may itself hold spaces and parentheses: the fields begin after the last one.
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    command = arguments.replace(b"\0", b" ").decode(errors="replace").strip() or f"[{name}]"
    return Process(pid, int(fields[1]), fields[0], int(fields[19]), command)


def known(pid: int) -> Process:
    """`look`, for a child of ours that nobody has waited for yet: it is there, if only as a zombie."""
    process = look(pid)
    if process is None:
        raise ProcessLookupError(f"process {pid} is not there")
    return process


def descendants(root: int) -> list[Process]:
    """Every process below `root`, parents before their children; zombies too."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(_parent(name), []).append(int(name))
    found: list[Process] = []
    ahead = [root]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += filter(None, map(look, below))
        ahead += below
    return found


def _parent(pid: str) -> int:
    """The parent, 0 for a process that is gone. All of /proc is asked this around every test: no more is read."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    try:
        return int(os.read(descriptor, 512).rpartition(b")")[2].split(None, 2)[1])
    except ProcessLookupError:
        return 0
    finally:
        os.close(descriptor)


def adopt_orphans() -> None:
    """Become the parent of orphans among our descendants (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(pid: int) -> int | None:
    """The exit code of a child that has ended (negative: the signal); None when it lives or is not our child."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if ended else None


def wait_ended(processes: Iterable[Process], deadline_s: float) -> list[Process]:
    """Wait until all have ended (a zombie has). Returns those still there at the deadline."""
    until = time.monotonic() + deadline_s
    remaining = []
    for process in processes:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            now = look(process.pid)
            if now is None or now.start_ticks != process.start_ticks:
                continue
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                remaining.append(process)
        finally:
            os.close(descriptor)
    return remaining


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it has ended already."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = look(process.pid)
        if now is None or now.start_ticks != process.start_ticks or not now.running:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def end(processes: Iterable[Process], *, grace_s: float = 3.0) -> list[Process]:
    """SIGTERM, then after `grace_s` SIGKILL. Returns those that outlived even that (stuck in the kernel)."""
    remaining = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in remaining:
            send_signal(process, number)
        remaining = wait_ended(remaining, grace_s if number == signal.SIGTERM else KILLED_S)
    return remaining


@contextmanager
def running(command: Sequence[str], **arguments: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A Popen with these arguments that is killed on the way out if it still runs: nothing waits for it without end."""
    with subprocess.Popen(command, **arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def make_directory() -> Path:
    """A new private directory with a short path: not below TMPDIR, so that control paths fit into 108 bytes."""
    return Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=TEMP_PARENT))


def environment(runtime_dir: Path | str) -> dict[str, str]:
    """The environment for programs under test: ours without agents, prompts and locale; its own runtime directory."""
    dropped = ("SSH_", "LC_", "LANG", "DISPLAY", "WAYLAND_", "XDG_", "PYTHON", "GIT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = kept.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return {
        **kept,
        "PATH": path,
        "LC_ALL": "C.UTF-8",
        "XDG_RUNTIME_DIR": str(runtime_dir),
        "PYTHONPATH": str(CHECKOUT),
    }
