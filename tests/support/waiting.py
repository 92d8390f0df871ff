"""Waiting for what the system tells nobody of: another process's file, mount, log line or end of its descriptors.

The rule: this is the one place where tests look again and again. Whoever can wait for an event (a descriptor, a
process, a task) does that.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# As long as anything here may take on a machine with ten times as much to do as it has processors.
DEADLINE_S = 60.0
POLL_S = 0.01


def holds_within(deadline_s: float, condition: Callable[[], object]) -> bool:
    """Whether `condition()` came to hold before the deadline; what it raises ends the wait."""
    until = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return once `condition()` holds. Raises AssertionError with `what` at the deadline."""
    assert holds_within(deadline_s, condition), f"not within {deadline_s:g} s: {what}"
