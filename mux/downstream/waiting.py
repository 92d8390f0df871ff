"""Waits of who has no event loop: each has a deadline, and each can be ended by another thread.

The one rule: a thread that ends a wait makes a descriptor readable; nothing is looked at in intervals.

Imported by `start.py` and `openssh_master.py`.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

from mux.errors import ExitCode, JoinError, SharingError
from mux.rendezvous import publish

SAY_WAITING_S: Final = 2.0  # a login without questions takes less


def make_event() -> int:
    """An eventfd(2), by which another thread ends a wait. Raises JoinError when there is no descriptor left."""
    try:
        return os.eventfd(0, os.EFD_CLOEXEC)
    except OSError as error:
        raise JoinError(f"nothing can be waited for: {error.strerror}") from error


def wait_readable(descriptor: int, until: float, cancelled: int, what: str) -> None:
    """Wait for something to read, until `until` (monotonic), or for `cancelled`: these two raise JoinError."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(cancelled, select.POLLIN)
    ready = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000))
    if cancelled in ready:
        raise JoinError("interrupted", ExitCode.INTERRUPTED)
    if not ready:
        raise JoinError(f"{what} took too long", ExitCode.NO_ANSWER)


class LockWait:
    """Waits for a lock in a thread of its own: flock(2) has no deadline, and nothing to poll."""

    def __init__(self, path: str) -> None:
        """Raises JoinError when there is no descriptor left."""
        self._path = path
        self._guard = threading.Lock()
        self._given_up = False
        self._outcome: publish.Lock | SharingError | None = None
        self._event = make_event()

    def result(self, deadline_s: float, cancelled: int, say_waiting: Callable[[], None]) -> publish.Lock:
        """Return the lock. Raises JoinError (INTERRUPTED, NO_ANSWER)."""
        until = time.monotonic() + deadline_s
        taken = False
        try:
            # A daemon: it does not keep a process that was told to end.
            threading.Thread(target=self._wait, name="lock", daemon=True).start()
            if not _readable(self._event, cancelled, SAY_WAITING_S):
                say_waiting()
            wait_readable(self._event, until, cancelled, "the login of another command")
            taken = True
        finally:
            with self._guard:
                self._given_up = True
                outcome = self._outcome
                os.close(self._event)
            if isinstance(outcome, publish.Lock) and not taken:
                outcome.release()
        if isinstance(outcome, SharingError):
            raise outcome
        assert outcome is not None
        return outcome

    def _wait(self) -> None:
        outcome: publish.Lock | SharingError | None
        try:
            outcome = publish.Lock.take(self._path, wait=True)
        except SharingError as error:
            outcome = error
        with self._guard:
            if not self._given_up:
                self._outcome = outcome
                os.eventfd_write(self._event, 1)
                return
        if isinstance(outcome, publish.Lock):
            outcome.release()


def _readable(descriptor: int, cancelled: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(cancelled, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
