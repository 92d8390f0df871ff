"""What a client's process was started as, for lists.

One rule: who is gone within a moment, as most commands are, is never looked up. Imported by `clients.py`, `putty.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from mux.errors import printable

from .workers import Workers

AFTER_S: Final = 0.05  # commands that end at once, the most, never cost the look into /proc
MAX_BYTES: Final = 4096
# /proc asks the process's own memory, which may lie on a mount that hangs: a few threads may be lost to such, no more.
_LOOKERS: Final = Workers(4)
# Behind such nothing is looked up any more: a row that never gets shorter would keep every client that ever came.
MAX_WAITING: Final = 256


def look_up(pid: int, tell: Callable[[str], None]) -> asyncio.TimerHandle:
    """Call `tell` with the command line of a process, in a moment, unless what is returned is cancelled before.

    Nobody is told while too many are being looked up.
    """
    loop = asyncio.get_running_loop()

    def look() -> None:
        if _LOOKERS.waiting < MAX_WAITING:
            _LOOKERS.submit(partial(_command_line, pid), lambda line, _: tell(line or ""))

    return loop.call_later(AFTER_S, look)


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return printable(file.read(MAX_BYTES).replace(b"\0", b" "))
    except OSError:
        return ""
