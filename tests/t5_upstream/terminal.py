"""A program on a pseudo-terminal of its own, driven as a user does: type, look at the screen, change the size.

The rule: what is awaited is named, and has a deadline; what came instead is in the error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Any, Self

DEADLINE_S = 60.0
# How often it is looked whether the program has ended: the terminal does not tell, for we hold its other end open.
LOOK_S = 0.05
# A session leader gets the first terminal it opens as its own: stdin, stdout and stderr are opened by the shell.
ON_TERMINAL = 'terminal=$1; shift; exec "$@" <>"$terminal" >&0 2>&0'
# The same below a shell, for a program that goes into the background. The hang-up is ignored that the kernel sends
# when this shell ends, which a user's own does not do so soon.
BELOW_A_SHELL = 'trap "" HUP; terminal=$1; shift; "$@" <>"$terminal" >&0 2>&0; exit $?'


class Terminal:
    """A context manager; the program is killed at its end if it still runs.

    seen     everything that it has written so far, each end of a line as \\r\\n
    process  the program
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: dict[str, str],
        size: tuple[int, int] = (24, 80),
        attributes: list[Any] | None = None,
        below_a_shell: bool = False,
    ) -> None:
        """`size` is (rows, columns); `attributes` as of tcgetattr(3), for the terminal before the program starts;
        `below_a_shell`: for one that goes into the background.
        """
        self.seen = b""
        self._at = 0
        self._descriptor, other = os.openpty()
        try:
            self.resize(*size)
            if attributes is not None:
                termios.tcsetattr(other, termios.TCSANOW, attributes)
            script = BELOW_A_SHELL if below_a_shell else ON_TERMINAL
            self.process = subprocess.Popen(
                ["sh", "-c", script, "sh", os.ttyname(other), *command],
                stdin=subprocess.DEVNULL,
                env=env,
                start_new_session=True,
            )
            # Held until the program has it open: with nobody there a read from our end fails.
            self._other = other
        except BaseException:
            os.close(self._descriptor)
            os.close(other)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the kernel tells the program by SIGWINCH."""
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def attributes(self) -> list[Any]:
        """The terminal's modes now, as of tcgetattr(3)."""
        return termios.tcgetattr(self._descriptor)

    @property
    def cooked(self) -> bool:
        """Whether lines are edited and echoed here, as for a shell: a client in raw mode has both off."""
        local = self.attributes()[3]
        return bool(local & termios.ICANON and local & termios.ECHO)

    def type(self, data: bytes) -> None:
        until = time.monotonic() + DEADLINE_S
        while data:
            _, writable, _ = select.select([], [self._descriptor], [], max(0.0, until - time.monotonic()))
            assert writable, f"nobody reads what is typed; seen so far:\n{self.seen!r}"
            data = data[os.write(self._descriptor, data) :]

    def expect(self, pattern: bytes, deadline_s: float = DEADLINE_S) -> re.Match[bytes]:
        """Wait for a match behind the last one. Raises AssertionError when it does not come."""
        until = time.monotonic() + deadline_s
        while True:
            match = re.compile(pattern, re.DOTALL).search(self.seen, self._at)
            if match is not None:
                self._at = match.end()
                return match
            # Asked before what it wrote is read: it may write its last words and end in between.
            ended = self.process.poll() is not None
            more = self._read(min(until, time.monotonic() + LOOK_S))
            hopeless = ended or time.monotonic() > until
            assert more or not hopeless, f"{pattern!r} did not come; behind the last match:\n{self.seen[self._at :]!r}"

    def unseen(self, pattern: bytes) -> bool:
        """Whether nothing of all that came matches."""
        return re.search(pattern, self.seen) is None

    def finish(self, deadline_s: float = DEADLINE_S) -> int:
        """Read to the end, and return the program's exit code."""
        until = time.monotonic() + deadline_s
        while self.process.poll() is None:
            self._read(min(until, time.monotonic() + LOOK_S))
            assert time.monotonic() < until, f"it runs on; seen:\n{self.seen!r}"
        while self._read(time.monotonic()):
            pass
        return self.process.returncode

    def _read(self, until: float) -> bool:
        readable, _, _ = select.select([self._descriptor], [], [], max(0.0, until - time.monotonic()))
        if not readable:
            return False
        try:
            data = os.read(self._descriptor, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        # A client that is not in raw mode yet, or no more, has a carriage return added to the one that came.
        self.seen = re.sub(rb"\r+\n", b"\r\n", self.seen + data)
        return bool(data)

    def close(self) -> None:
        """Kill the program if need be, and hang up. Idempotent."""
        if self._descriptor < 0:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        os.close(self._descriptor)
        os.close(self._other)
        self._descriptor = -1
