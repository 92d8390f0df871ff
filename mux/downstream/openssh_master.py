"""The other engine: `ssh -M -N` holds the connection, started and found like an upstream of ours.

The one rule: ssh does what it does; nothing of its login is done here. It detaches by itself once it has logged in and
listens (`-f`), and ends by its own ControlPersist, which is the nearest it has to the lifetime of an upstream: its time
begins anew with whoever looks, it ends up to a second early, and it does not know for whom it was started.

ssh forks, so that its process is not our child and goes on, without a use, when somebody else was at the path first.
A mark in its environment tells which processes were started here.

Imported by `start.py`.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Final

from mux.errors import ExitCode, JoinError, printable
from mux.rendezvous.order import Kind, Order, Report
from mux.rendezvous.sockets import Found, probe, shown

from .waiting import wait_readable

_MARK: Final = "SSHMUX_START"
# In place of "until the last has left", which ssh does not have: the mount comes within this.
_SHORTEST_PERSIST: Final = "5"
_NO: Final = frozenset({"no", "false"})
_ASKING: Final = frozenset({"ask", "autoask"})
_COMPLAINT_BYTES: Final = 4096
_END_DEADLINE_S: Final = 2.0  # on SIGTERM ssh ends within milliseconds


def start(order: Order, command: tuple[str, ...], deadline_s: float, cancelled: int) -> Report:
    """Have ssh log in, and return how that went once it is found at the path of `order`.

    What it asks and complains of goes to the terminal by itself; without one its complaint is in the report. Raises
    JoinError when it takes longer than `deadline_s`, the descriptor `cancelled` becomes readable, or there is no
    descriptor left to wait by; what was started has then ended.
    """
    if order.password is not None:
        message = "a password from standard input cannot be handed to ssh itself"
        return Report(Kind.FAILED, message, "leave out -o password_stdin: ssh asks at the terminal", ExitCode.USAGE)
    mark = secrets.token_hex(8)
    with open(_descriptor(lambda: os.memfd_create("ssh-stderr")), "r+b") as complaint:
        try:
            process = subprocess.Popen(
                [*command, *arguments(order)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaint if order.batch else None,
                env=os.environ | {_MARK: mark},
            )
        except OSError as error:
            return Report(Kind.FAILED, f"cannot run `{printable(command[0])}`: {error.strerror}", "", ExitCode.FAILURE)
        try:
            _wait(process, deadline_s, cancelled)
            report = _outcome(order, process.returncode, mark)
        except BaseException:
            _end(mark, process)
            raise
        complaint.seek(0)
        said = printable(complaint.read(_COMPLAINT_BYTES))
    if report.kind is not Kind.READY:
        _end(mark, process)
    return report if not said or report.kind is not Kind.FAILED else _with_words(report, said)


def arguments(order: Order) -> list[str]:
    """What ssh is told, in front of all else: where of two settings the first counts, this one does."""
    configured = order.target.config.get("controlpersist", ("no",))[0]
    persist = order.persist or ("no" if order.private else configured)
    if persist.lower() in _NO:
        persist = "yes" if order.explicit_start else _SHORTEST_PERSIST
    master = order.target.config.get("controlmaster", ("no",))[0]
    *options, end, host = order.target.arguments
    return [
        "-f",
        "-N",
        "-T",
        "-M",
        *(["-M"] if master in _ASKING else []),
        *(["-o", "BatchMode=yes"] if order.batch else []),
        *(["-v"] if order.debug else []),
        "-o",
        f"ControlPersist={persist}",
        "-o",
        "RemoteCommand=none",
        *options,
        "-S",  # of several, the last counts
        order.path.replace("%", "%%"),
        end,
        host,
    ]


def _wait(process: subprocess.Popen[bytes], deadline_s: float, cancelled: int) -> None:
    descriptor = _descriptor(lambda: os.pidfd_open(process.pid))
    try:
        wait_readable(descriptor, time.monotonic() + deadline_s, cancelled, "the login")
    finally:
        os.close(descriptor)
    process.wait()


def _descriptor(make: Callable[[], int]) -> int:
    try:
        return make()
    except OSError as error:
        raise JoinError(f"ssh cannot be watched: {error.strerror}") from error


def _outcome(order: Order, status: int, mark: str) -> Report:
    if status != 0:
        message = f"ssh opened no connection to {printable(order.target.typed)} (exit status {status})"
        return Report(Kind.FAILED, message, "", ExitCode.INTERRUPTED if status == -signal.SIGINT else ExitCode.FAILURE)
    found = probe(order.path)
    if found.found is not Found.LIVE:
        return Report(
            Kind.FAILED,
            f"ssh logged in and cannot be joined at {shown(order.path)}. {found.detail}",
            "",
            ExitCode.FAILURE,
        )
    kind = Kind.READY if found.pid in set(_marked(mark)) else Kind.JOINED
    return Report(kind, pid=found.pid, path=order.path)


def _with_words(report: Report, said: str) -> Report:
    return Report(report.kind, f"{report.message}: {said}", report.hint, report.exit_code)


def _marked(mark: str) -> Iterator[int]:
    entry = f"{_MARK}={mark}".encode()
    try:
        names = os.listdir("/proc")
    except OSError:  # out of descriptors
        return
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as environment:
                    if entry in environment.read().split(b"\0"):
                        yield int(name)
            except OSError:  # it has ended, or is another user's
                continue


def _end(mark: str, process: subprocess.Popen[bytes]) -> None:
    """End what was started here; our child, if it is still there, has ended behind this."""
    _signal(mark, process, signal.SIGTERM)
    _signal(mark, process, signal.SIGCONT)  # one that was stopped, as by asking from the background, takes it only now
    try:
        process.wait(_END_DEADLINE_S)
    except subprocess.TimeoutExpired:
        _signal(mark, process, signal.SIGKILL)
        process.wait()


def _signal(mark: str, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """A process that has the mark has it from its first moment, so a pid is no other's."""
    process.send_signal(number)  # to nobody when it was waited for
    for pid in _marked(mark):
        if pid != process.pid:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
