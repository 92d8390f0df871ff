"""A program that runs beside a test, from when it is ready until the test has done with it.

The rule: nothing is assumed of it. That it is ready is for itself to say, its end is waited for, whatever state it is
in, and what it wrote stands in every complaint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import Self

from tests.support import processes
from tests.support.waiting import holds_within

START_DEADLINE_S = 60.0
END_DEADLINE_S = 30.0


class BackgroundError(Exception):
    """The program could not be started or ended; the text holds what it wrote."""


class Background:
    """Such a program, ready once constructed; a context manager. For classes of one program each.

    what   it is called in complaints
    pid    of the process
    """

    what = "the program"

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], *, wait: bool, stdin: int = subprocess.DEVNULL
    ) -> None:
        """`wait` False returns before it is ready. `stdin` stays the caller's."""
        # A file without a name: the text can be read while the program lives and after, and nothing is left behind.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                env=environment,
            )
        except BaseException:
            self._log.close()
            raise
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Return when it serves. Raises BackgroundError when it ended, or did not in time."""
        raise NotImplementedError

    def wait_until(self, reached: Callable[[], bool], words: str) -> None:
        """Return when it has `reached` what is waited for; `words` say of one that has not in time what it did."""

        def so_far() -> bool:
            if reached():
                return True
            if self._failed():
                raise self._complaint(f"ended with {self._process.returncode}")
            return False

        if not holds_within(START_DEADLINE_S, so_far):
            raise self._complaint(f"{words} within {START_DEADLINE_S:g} s")

    def log_text(self) -> str:
        # At no cost to the offset, which is the program's as well.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended."""
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it, and wait until it is: a signal to another process takes its time."""
        self.signal(signal.SIGSTOP)
        if not holds_within(END_DEADLINE_S, lambda: processes.known(self.pid).state == "T"):
            raise self._complaint("does not stop")

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, as after a crash: what it made stays."""
        self.signal(signal.SIGKILL)
        self.wait_ended()

    def wait_ended(self, deadline_s: float = END_DEADLINE_S) -> int:
        """Wait until it has ended by itself; return its exit status. Raises BackgroundError when it lives on."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise self._complaint("lives on") from None

    def close(self) -> None:
        """End it, whatever state it is in, and remove what it left of its own. Idempotent."""
        if not self._log.closed:
            try:
                self._end()
                self._tidy()
            finally:
                self._log.close()

    def _failed(self) -> bool:
        """Whether it will never be ready."""
        return not self.running

    def _end(self) -> None:
        if self.running:
            self._process.terminate()
            self.thaw()
            try:
                self._process.wait(END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def _tidy(self) -> None:
        """After its end."""

    def _complaint(self, words: str) -> BackgroundError:
        return BackgroundError(f"{self.what} {words}; it said:\n{self.log_text()}")
