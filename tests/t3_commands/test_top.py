"""`sshmux top`: its arithmetic, and the program at a terminal and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mux.commands.top import Meter, sparkline
from tests.support.master import Master
from tests.support.sshd import HOST
from tests.support.upstream import Upstream
from tests.t3_commands.command import COMMAND_DEADLINE_S, OK, SSH_FAILED, about, read_terminal, rider, sshmux


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
def at_a_terminal(holder: Master) -> Iterator[tuple[int, subprocess.Popen[bytes], list[Any]]]:
    """`sshmux top` on a terminal of its own: its other end, the process, and the modes from before it."""
    near, far = pty.openpty()
    modes = termios.tcgetattr(near)
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    command = [sys.executable, "-m", "mux", "top", "-F", str(holder.config), "-S", holder.control_path, HOST]
    environment = {**holder.sshd.environment(), "TERM": "xterm"}
    process = subprocess.Popen(
        command, stdin=far, stdout=far, stderr=far, env=environment, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    try:
        yield near, process, modes
    finally:
        process.kill()
        process.wait()
        os.close(near)
        os.close(far)


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_at_a_terminal_until_a_key(holder: Master, key: bytes) -> None:
    with rider(holder) as riding, at_a_terminal(holder) as (terminal, process, before):
        shown = b""
        while shown.count(str(riding.pid).encode()) < 2:  # drawn, and drawn again
            shown += read_terminal(terminal)
        assert b"\x1b[?1049h" in shown  # the other screen
        os.write(terminal, key)
        rest = b""
        while b"\x1b[?1049l" not in rest:  # and back
            rest += read_terminal(terminal)
        assert process.wait(COMMAND_DEADLINE_S) == OK
        assert b"Traceback" not in rest
        assert termios.tcgetattr(terminal) == before


def test_at_a_terminal_until_the_connection_ends(holder: Master) -> None:
    with at_a_terminal(holder) as (terminal, process, _):
        shown = b""
        while f"{kind_of(holder)} {holder.pid}".encode() not in shown:
            shown += read_terminal(terminal)
        holder.exit()
        while b"sshmux: " not in shown:
            shown += read_terminal(terminal)
        assert process.wait(COMMAND_DEADLINE_S) == SSH_FAILED
