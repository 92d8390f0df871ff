"""Work that belongs to one connection through here: each in a task of its own.

One rule: what goes wrong in one of them is told in the log and ends that one alone. A task that is cancelled before
its first step runs nothing of its work, and so no `except` or `finally` there: what the work was handed is then let go
of by a call of its own. Imported by whoever serves connections that others make.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Tasks:
    """Those of one kind, as many as there are now."""

    def __init__(self, what: str) -> None:
        """`what` each of them is for, in the log: "an X11 connection"."""
        self._what = what
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def run(self, work: Coroutine[Any, Any, None], otherwise: Callable[[], None]) -> None:
        """Have it done, or, when the end of all comes before it begins, `otherwise`. Nobody waits for it."""
        begun = False

        async def begin() -> None:
            nonlocal begun
            begun = True
            await work

        def finished(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not begun:
                work.close()
                otherwise()
            elif not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s met with a fault", self._what, exc_info=error)

        task = asyncio.ensure_future(begin())
        self._tasks.add(task)
        task.add_done_callback(finished)

    def cancel(self) -> None:
        """The end of all."""
        for task in self._tasks:
            task.cancel()
