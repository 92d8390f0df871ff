"""Who still needs the connection, and until when it stays when nobody does.

The one rule: the counting is arithmetic with the clock handed in; the one wait is `unneeded`. A *rider* is whoever has
a control connection open, whatever it does there. Somebody who merely looks (`ssh -O check`, a probe) has come and left
without riding: that restarts the time of ControlPersist, as in OpenSSH, but the mount for which the connection was
opened is still awaited.

Imported by `mux.upstream.upstream` (counts its clients) and `mux.upstream.daemon` (decides by it).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final

# A mount that had its connection opened joins it within milliseconds; on a machine that swaps, within seconds.
FIRST_RIDER_S: Final = 30.0
# Who looked, and found the connection alive, joins it a moment later: without ControlPersist it must not end between.
LINGER_S: Final = 1.0

_UNITS_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_FOR_EVER: Final = frozenset({"yes", "true"})
_NOT: Final = frozenset({"no", "false"})


def persist_s(text: str) -> float | None:
    """How long ControlPersist=`text` lets a connection stay that nobody rides on; None for ever. Raises ValueError.

    A time is written as in sshd_config(5), "1h30m"; 0 is for ever, as ssh has it.
    """
    word = text.strip().lower()
    if word in _FOR_EVER:
        return None
    if word in _NOT:
        return 0.0
    if not word or not re.fullmatch("([0-9]{1,9}[smhdw])*([0-9]{1,9})?", word):
        raise ValueError(f"ControlPersist is yes, no or a time, not {text!r}")
    seconds = sum(int(count) * _UNITS_S[unit] for count, unit in re.findall("([0-9]+)([smhdw]?)", word))
    return float(seconds) or None


class Lifetime:
    """Counts riders. `persist_s`: how long it stays when the last has left, None for ever.

    `first_rider_s`: how long the first to ride is awaited, counted from `now_s`.
    """

    def __init__(self, *, persist_s: float | None, first_rider_s: float = FIRST_RIDER_S, now_s: float) -> None:
        self.riders = 0
        self.rode_once = False
        self.listening = True
        self.persist_s = persist_s
        self.on_change: Callable[[], None] = lambda: None  # whenever `ends_s` may have another answer
        self._awaited_until_s = now_s + first_rider_s
        self._idle_since_s = now_s

    def came(self) -> None:
        """Somebody has connected."""
        self.riders += 1
        self.on_change()

    def rode(self) -> None:
        """Somebody asked for more than a look: a session, a forwarding, a proxy."""
        self.rode_once = True

    def expect_nobody(self) -> None:
        """Whoever it was opened for has gone: the first to ride is awaited no longer."""
        self._awaited_until_s = self._idle_since_s
        self.on_change()

    def left(self, now_s: float | None) -> None:
        """Somebody who had come has gone, in whatever way. None: it is as if it had not come."""
        self.riders -= 1
        if now_s is not None:
            self._idle_since_s = now_s
        self.on_change()

    def stopped_listening(self) -> None:
        """Nobody can come any more: it ends when those who are here have left."""
        self.listening = False
        self.on_change()

    def ends_s(self) -> float | None:
        """When it ends if nobody comes; None: not by itself."""
        if self.riders:
            return None
        if not self.listening:
            return self._idle_since_s
        if self.persist_s is None:
            return None
        idle = self._idle_since_s + max(self.persist_s, LINGER_S)
        return idle if self.rode_once else max(idle, self._awaited_until_s)

    def why(self) -> str:
        """The reason for the log, once it ends by itself."""
        if not self.listening:
            return "the last client has left, and no new ones are taken"
        if not self.rode_once:
            return "nobody came to use the connection"
        return "the last client has left" + (f" {self.persist_s:g} s ago" if self.persist_s else "")


async def unneeded(lifetime: Lifetime, clock: Callable[[], float] = time.monotonic) -> str:
    """Return why, once nobody needs the connection any more. The clock is the one `lifetime` was told the time of."""
    changed = asyncio.Event()
    lifetime.on_change = changed.set
    while True:
        changed.clear()
        ends_s = lifetime.ends_s()
        if ends_s is not None and clock() >= ends_s:
            return lifetime.why()
        try:
            async with asyncio.timeout(None if ends_s is None else ends_s - clock()):
                await changed.wait()
        except TimeoutError:
            pass
