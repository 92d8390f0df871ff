"""Run something that may hang, in a process of its own, with a deadline.

A request that a mount never answers holds its caller in the kernel, where not even SIGKILL frees it before the
mount's process is gone. So the child is never waited for beyond its deadline: it is killed, left to be reaped later,
and the error says where it hangs. A page fault on a mapping of such a file would hold the whole interpreter: mappings
belong into here, always.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from tests.support import processes

Result = TypeVar("Result")

# How long a killed child may take to end before it counts as held by the kernel.
KILL_GRACE_S = 2.0
CHUNK_BYTES = 65536


class Stuck(AssertionError):
    """It did not end within its time; the text says in which state and kernel function it was."""


class ChildDied(AssertionError):
    """It ended without a result, or with one that cannot be handed over; the text holds the signal or the traceback."""


@overload
def in_subprocess(task: Callable[[], Result], timeout_s: float = ...) -> Result: ...
@overload
def in_subprocess(
    task: Sequence[str], timeout_s: float = ..., *, cwd: Path | str | None = ..., env: dict[str, str] | None = ...
) -> subprocess.CompletedProcess[str]: ...
def in_subprocess(
    task: Callable[[], Any] | Sequence[str],
    timeout_s: float = 30.0,
    *,
    cwd: Path | str | None = None,
    env: dict[str, str] | None = None,
) -> Any:
    """Call `task` in a fork and return what it returns, or raise what it raises (both are pickled); or run a command.

    Raises Stuck after `timeout_s`. A command's exit code is the caller's to judge.
    """
    if callable(task):
        return _call(task, timeout_s)
    return _run(task, timeout_s, cwd, env)


def _run(
    command: Sequence[str], timeout_s: float, cwd: Path | str | None, env: dict[str, str] | None
) -> subprocess.CompletedProcess[str]:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        start_new_session=True,
        cwd=cwd,
        env=env,
    )
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        where = _where(child.pid)
        os.killpg(child.pid, signal.SIGKILL)
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        try:
            child.wait(KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            # Disowned: whoever ends the mount frees it, and the checks around each test reap it.
            child.returncode = -signal.SIGKILL
        raise Stuck(f"{' '.join(command)} did not end within {timeout_s:g} s: {where}") from None
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def _call(task: Callable[[], Any], timeout_s: float) -> Any:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # The child runs one function and leaves by _exit; it takes no lock that another thread may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(reading)
        _answer(task, writing)
    os.close(writing)
    try:
        answer = _read_to_end(reading, time.monotonic() + timeout_s)
    finally:
        os.close(reading)
    if answer is None:
        where = _where(pid)
        child = processes.look(pid)
        if child is not None:
            processes.send_signal(child, signal.SIGKILL)
            processes.wait_ended([child], KILL_GRACE_S)
            processes.reap(pid)
        raise Stuck(f"the call did not end within {timeout_s:g} s: {where}")
    _, status = os.waitpid(pid, 0)
    if not answer:
        raise ChildDied(f"the call ended without a result, exit {os.waitstatus_to_exitcode(status)}")
    succeeded, value = pickle.loads(answer)
    if not succeeded:
        raise value
    return value


def _answer(task: Callable[[], Any], writing: int) -> None:
    try:
        answer = pickle.dumps((True, task()))
    except BaseException as error:
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)
        except Exception:
            answer = pickle.dumps((False, ChildDied(traceback.format_exc())))
    with open(writing, "wb") as pipe:
        pipe.write(answer)
    os._exit(0)


def _read_to_end(descriptor: int, until: float) -> bytes | None:
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    while poll.poll(max(0.0, until - time.monotonic()) * 1000):
        part = os.read(descriptor, CHUNK_BYTES)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def _where(pid: int) -> str:
    """The states of the process and those below it, and the kernel functions they wait in."""
    found = []
    for process in [processes.look(pid), *processes.descendants(pid)]:
        if process is None:
            continue
        try:
            function = Path(f"/proc/{process.pid}/wchan").read_text() or "?"
        except OSError:
            function = "?"
        found.append(f"{process} in {function}")
    return "; ".join(found) or "no such process any more"
