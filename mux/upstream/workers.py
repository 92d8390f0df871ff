"""A few threads for calls that may block and that no event loop can wait for, as reads and writes of regular files.

One rule: such a call may take for ever (a dead NFS server; a mount of ours that is served through this very process),
so it is never made in the loop's thread, never waited for at the end of the process, and never more of them are under
way than there are threads. Imported by the pumps, and by whoever reads files.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

from mux import signals

log = logging.getLogger(__name__)

# Files that do not answer may take as many before those that do must wait; a thread costs some 50 KiB.
MAX_THREADS: Final = 32
IDLE_S: Final = 2.0  # then a thread ends: long enough to serve a whole file, short enough to leave nothing behind

Done: TypeAlias = Callable[[Any, OSError | None], None]
T = TypeVar("T")


class Workers:
    """Threads that are started when there is something to do, and end when there is nothing."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._jobs: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, Callable[[], Any], Done]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0  # threads without a job, less the jobs that wait

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return max(0, -self._free)

    def submit(self, call: Callable[[], Any], done: Done) -> None:
        """Have `call()` made in a thread, and `done(result, error)` in this loop when it returns.

        Only `OSError` is for `done`: anything else is a bug, and becomes an `OSError` with a line in the log.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            start = self._free <= 0 and self._threads < self._max_threads
            self._threads += start
            self._free += start - 1
        self._jobs.put((loop, call, done))
        if start:
            threading.Thread(target=self._run, name="mux-worker", daemon=True).start()

    def _run(self) -> None:
        # At its end the main thread blocks them, and the kernel looks for another to take them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
        while True:
            try:
                loop, call, done = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._free <= 0:
                        continue  # a job is on its way, and counts on this thread
                    self._free -= 1
                    self._threads -= 1
                return
            result: Any = None
            error: OSError | None = None
            try:
                result = call()
            except OSError as raised:
                error = raised
            except Exception:
                log.exception("a call in a thread failed")
                error = OSError("an error of this program; see its log")
            with self._lock:
                self._free += 1
            try:
                loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:  # the loop has ended meanwhile: nobody wants to know any more
                pass
            del loop, call, done, result, error  # nothing is kept alive by a thread that waits


WORKERS: Final = Workers()


async def in_thread(call: Callable[[], T], workers: Workers = WORKERS) -> T:
    """Return what `call()` returns, or raise what it raises. Given up, it is left to itself.

    As `asyncio.to_thread`, whose threads are waited for when the loop ends.
    """
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def outcome() -> tuple[T, None] | tuple[None, Exception]:
        try:
            return call(), None
        except Exception as error:
            return None, error

    def done(found: Any, _: OSError | None) -> None:
        if answer.done():
            return
        result, error = found
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)

    workers.submit(outcome, done)
    return await answer
