"""Signals that end a process: heeded, held back, and handed on by one that does nothing but wait."""

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
for number in sys.argv[1:]:
    signal.signal(int(number), signal.SIG_IGN)
wait = "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); print(flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-S", "-c", wait], stdout=subprocess.PIPE)
child.stdout.readline()
noted = signals.pass_on(os.pidfd_open(child.pid))
print(flush=True)
child.wait()
print(child.returncode, *map(int, noted))
"""

# It tells when it waits, and when it has tidied up, though struck once more by all of them at once.
INTERRUPTED = """
import signal
from mux import signals
signals.interrupt()
try:
    print(flush=True)
    signal.pause()
except KeyboardInterrupt:
    for number in signals.ENDING:
        signal.raise_signal(number)
    print("tidied")
"""
# Struck while that is held back: it goes on, and so does what it runs meanwhile.
HELD_BACK = """
import signal, subprocess
from mux import signals
signals.interrupt()
try:
    with signals.held_back():
        print(flush=True)
        signal.raise_signal(signal.SIGTERM)
        subprocess.run(["/bin/sh", "-c", "kill -INT $$; echo whole"])
    print("not heeded")
except KeyboardInterrupt:
    print("heeded")
"""


def running(script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    return process


def waiting(ignored: Sequence[int] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WAITING, *map(str, ignored)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    return process


def said(process: subprocess.Popen[str]) -> str:
    with process:
        return process.communicate(timeout=DEADLINE_S)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_reaches_the_other_process(number: signal.Signals) -> None:
    process = waiting()
    process.send_signal(number)
    assert said(process) == f"{-number} {int(number)}\n"


def test_none_is_lost_just_before_the_wait() -> None:
    for _ in range(STRIKES):
        process = waiting()
        process.send_signal(signal.SIGINT)
        assert said(process) == f"{-signal.SIGINT} {int(signal.SIGINT)}\n"


def test_what_is_ignored_stays_ignored() -> None:
    """But for SIGTERM."""
    process = waiting([signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert said(process) == f"{-signal.SIGTERM} {int(signal.SIGTERM)}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_interrupts_and_only_once(number: signal.Signals) -> None:
    process = running(INTERRUPTED)
    process.send_signal(number)
    assert said(process) == "tidied\n"
    assert process.returncode == 0


def test_what_is_held_back_is_heeded_afterwards() -> None:
    assert said(running(HELD_BACK)) == "whole\nheeded\n"
