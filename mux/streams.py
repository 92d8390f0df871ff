"""The three standard streams: there whoever starts us, and in nobody's way when they lead nowhere any more.

One rule: before anything else is opened, each that was closed (`>&-`, some supervisors) leads to /dev/null. Otherwise
the next descriptor that is opened would stand in its place, and Python has no stream object to print to. Imported by
`mux.cli` and `sshmuxfs.cli`.
"""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Open those that are closed, for us and for what we start. Raises OSError where there is no /dev/null."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(descriptor, True)
    # As Python's own, they stay open as long as the process lives.
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)


def give_up() -> None:
    """Nobody reads what we say. What stdout and stderr still hold is lost without a word, and without an exit code.

    Python would try to write it once more at its end, complain, and end with 120.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(null, stream.fileno())
    os.close(null)
