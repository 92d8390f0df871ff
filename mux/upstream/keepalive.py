"""Whether the server is still there, asked when it has been silent (ServerAliveInterval, ServerAliveCountMax).

One rule: silence is counted in checks that found nothing, never in time that went by, so that a process that was
stopped and goes on does not take its own absence for the server's. Imported by `mux.upstream.engine` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

# The first silent check asks, the second can be the one that gives up: less would not wait for any answer.
FEWEST_CHECKS: Final = 2


class Keepalive:
    """Calls `ask` when nothing came for `interval_s`, and again each time; at the `count`th time `dead` instead.

    heard_s    `loop.time()` when bytes last came: set by who receives them
    """

    __slots__ = ("_ask", "_checked_s", "_checks", "_count", "_dead", "_interval_s", "_loop", "_timer", "heard_s")

    def __init__(self, interval_s: float, count: int, ask: Callable[[], None], dead: Callable[[], None]) -> None:
        self._interval_s = interval_s
        self._count = max(count, FEWEST_CHECKS)
        self._ask = ask
        self._dead = dead
        self._loop = asyncio.get_running_loop()
        self._checks = 0
        self.heard_s = self._checked_s = self._loop.time()
        self._timer = self._loop.call_later(interval_s, self._check)

    def stop(self) -> None:
        """No more calls. Idempotent."""
        self._timer.cancel()

    def _check(self) -> None:
        now = self._loop.time()
        if self.heard_s > self._checked_s:
            self._checks = 0
        due_s = self.heard_s + self._interval_s
        self._checked_s = now
        if due_s <= now:
            self._checks += 1
            if self._checks >= self._count:
                self._dead()
                return
            self._ask()
            due_s = now + self._interval_s
        self._timer = self._loop.call_at(due_s, self._check)
