"""Signals handed on by a process that does nothing but wait."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

DEADLINE_S = 60.0
STRIKES = 20

# It waits for a child that ends at the first signal, and tells how that ended, and what was noted.
WAITING = """
import os, signal, subprocess, sys
from mux import signals
for number in sys.argv[2:]:
    signal.signal(int(number), signal.SIG_IGN)
wait = "import signal; print(flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-S", "-c", wait], stdout=subprocess.PIPE)
child.stdout.readline()
noted = signals.pass_on(os.pidfd_open(child.pid), *(signal.Signals(int(one)) for one in sys.argv[1:2] if one))
print(flush=True)
child.wait()
print(child.returncode, *map(int, noted))
"""


def waiting(instead: str, ignored: Sequence[int] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WAITING, instead, *map(str, ignored)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    return process


def said(process: subprocess.Popen[str]) -> str:
    with process:
        return process.communicate(timeout=DEADLINE_S)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_reaches_the_other_process(number: signal.Signals) -> None:
    process = waiting("")
    process.send_signal(number)
    assert said(process) == f"{-number} {int(number)}\n"


def test_another_is_sent_instead() -> None:
    process = waiting(str(int(signal.SIGTERM)))
    process.send_signal(signal.SIGHUP)
    assert said(process) == f"{-signal.SIGTERM} {int(signal.SIGHUP)}\n"


def test_none_is_lost_just_before_the_wait() -> None:
    for _ in range(STRIKES):
        process = waiting(str(int(signal.SIGTERM)))
        process.send_signal(signal.SIGINT)
        assert said(process) == f"{-signal.SIGTERM} {int(signal.SIGINT)}\n"


def test_what_is_ignored_stays_ignored() -> None:
    """But for SIGTERM."""
    process = waiting(str(int(signal.SIGKILL)), [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert said(process) == f"{-signal.SIGKILL} {int(signal.SIGTERM)}\n"
