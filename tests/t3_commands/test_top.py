"""`sshmux top`: its arithmetic, and the program at a terminal and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mux.commands.top import Meter, sparkline
from tests.support.master import Master
from tests.support.sshd import HOST
from tests.support.upstream import Upstream
from tests.t3_commands.command import COMMAND_DEADLINE_S, OK, SSH_FAILED, about, read_terminal, rider, sshmux

# The cursor is shown again, on the screen from before.
BACK = b"\x1b[?25h\x1b[?1049l"


def test_rates() -> None:
    meter = Meter()
    meter.look((1000, 50), 10.0)
    assert (meter.received, meter.sent, list(meter.past)) == (0, 0, [])
    meter.look((3000, 50), 12.0)
    assert (meter.received, meter.sent, list(meter.past)) == (1000, 0, [1000])
    meter.look((3000, 150), 12.5)
    assert (meter.received, meter.sent, list(meter.past)) == (0, 200, [1000, 200])
    meter.look((10, 0), 13.5)  # counted anew
    assert (meter.received, meter.sent) == (0, 0)
    meter.look((20, 0), 13.5)  # no time has passed
    assert list(meter.past) == [1000, 200, 0]


def test_sparklines() -> None:
    assert sparkline(deque()) == ""
    assert sparkline(deque([0.0, 0.0])) == "▁▁"
    assert sparkline(deque([0.0, 1.0, 4.0, 7.9, 8.0])) == "▁▂▅██"


def kind_of(holder: Master) -> str:
    return "sshmux" if isinstance(holder, Upstream) else "openssh"


def test_without_a_terminal_it_prints_once(holder: Master) -> None:
    with rider(holder) as process:
        done = about(holder, "top")
        assert (done.stderr, done.returncode) == ("", OK)
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"{HOST}  {kind_of(holder)} {holder.pid}  up ")
        assert lines[1].split() == ["PID", "IN", "OUT", "PAST", "COMMAND"]
        assert lines[2].split()[0] == str(process.pid) and "ssh -F" in lines[2]
        assert "\x1b" not in done.stdout
        everything = sshmux(holder.sshd, "top")
        assert f"{kind_of(holder)} {holder.pid}" in everything.stdout
    assert about(holder, "top", "-o", "ControlPath=none").returncode == OK  # -S stands first, as in ssh


def test_nothing_to_watch(holder: Master) -> None:
    holder.exit()
    done = about(holder, "top")
    assert (done.stdout, done.returncode) == ("", SSH_FAILED)
    assert "can be joined" in done.stderr


@contextmanager
def at_a_terminal(
    holder: Master, *, stderr: Path | None = None, hangup: signal.Handlers = signal.SIG_DFL
) -> Iterator[tuple[int, subprocess.Popen[bytes], list[Any]]]:
    """`sshmux top` on a terminal of its own: its other end, the process, and the modes from before it.

    The other end may be closed in the block. `hangup`: what SIGHUP does to it at first.
    """

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, hangup)

    near, far = pty.openpty()
    modes = termios.tcgetattr(near)
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    command = [sys.executable, "-m", "mux", "top", "-F", str(holder.config), "-S", holder.control_path, HOST]
    environment = {**holder.sshd.environment(), "TERM": "xterm"}
    with ExitStack() as stack:
        error = far if stderr is None else stack.enter_context(stderr.open("wb"))
        process = subprocess.Popen(
            command, stdin=far, stdout=far, stderr=error, env=environment, start_new_session=True,
            preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(far)
        try:
            yield near, process, modes
        finally:
            process.kill()
            process.wait()
            with suppress(OSError):
                os.close(near)


def read_until(terminal: int, wanted: bytes, times: int = 1) -> bytes:
    """What is shown up to these bytes."""
    shown = b""
    while shown.count(wanted) < times:
        more = read_terminal(terminal)
        assert more, shown
        shown += more
    return shown


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_at_a_terminal_until_a_key(holder: Master, key: bytes) -> None:
    with rider(holder) as riding, at_a_terminal(holder) as (terminal, process, before):
        shown = read_until(terminal, str(riding.pid).encode(), 2)  # drawn, and drawn again
        assert b"\x1b[?1049h" in shown  # the other screen
        os.write(terminal, key)
        rest = read_until(terminal, BACK)
        assert process.wait(COMMAND_DEADLINE_S) == OK
        assert b"Traceback" not in rest
        assert termios.tcgetattr(terminal) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(holder: Master, number: signal.Signals) -> None:
    with at_a_terminal(holder) as (terminal, process, before):
        read_until(terminal, f"{kind_of(holder)} {holder.pid}".encode())
        assert termios.tcgetattr(terminal) != before
        process.send_signal(number)
        process.send_signal(signal.SIGINT)  # impatience
        rest = read_until(terminal, BACK)
        assert process.wait(COMMAND_DEADLINE_S) == OK
        assert b"Traceback" not in rest
        assert termios.tcgetattr(terminal) == before


@pytest.mark.parametrize("hangup", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_terminal_that_goes_away(holder: Master, hangup: signal.Handlers, tmp_path: Path) -> None:
    """Also under nohup(1): there is nothing to be said any more, and nobody to say it to."""
    said = tmp_path / "stderr"
    with at_a_terminal(holder, stderr=said, hangup=hangup) as (terminal, process, _):
        read_until(terminal, f"{kind_of(holder)} {holder.pid}".encode())
        os.close(terminal)
        # The latter if it was about to write.
        assert process.wait(COMMAND_DEADLINE_S) in (OK, SSH_FAILED)
    assert said.read_text() == ""


def test_at_a_terminal_until_the_connection_ends(holder: Master) -> None:
    with at_a_terminal(holder) as (terminal, process, _):
        read_until(terminal, f"{kind_of(holder)} {holder.pid}".encode())
        holder.exit()
        read_until(terminal, b"sshmux: ")
        assert process.wait(COMMAND_DEADLINE_S) == SSH_FAILED
